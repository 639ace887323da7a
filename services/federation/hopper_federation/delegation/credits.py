"""How many more tasks each peer would take now, as it said last: nobody is offered more."""

from collections.abc import Callable
from typing import Final

from hopper_common.database import Signal

LONGEST_HOLD: Final = 600.0


class Credits:
    """
    In memory: who starts anew asks anew.

    Args:
        monotonic: Seconds, of a clock that never goes back.

    Attributes:
        changed: Fires when a peer has said something else.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.changed = Signal()
        self._monotonic = monotonic
        self._free: dict[str, int] = {}
        self._held: dict[str, float] = {}  # until when

    def told(self, install_id: str, free: int) -> None:
        """A peer said so, and knows what it was offered until then."""
        if self._free.get(install_id) != free:
            self._free[install_id] = max(0, free)
            self.changed.fire()

    def spent(self, install_id: str, count: int) -> None:
        """It was offered so many, and has not said anything since."""
        self._free[install_id] = max(0, self._told(install_id) - count)

    def earned(self, install_id: str) -> None:
        """Something that it had is over, and it has not said anything since."""
        self._held.pop(install_id, None)
        self.told(install_id, self._told(install_id) + 1)

    def hold(self, install_id: str, seconds: float) -> None:
        """This Hopper's own policy lets nothing more go there for so long, unless something that it had is over."""
        self._held[install_id] = self._monotonic() + min(seconds, LONGEST_HOLD)

    def let_go(self) -> None:
        """Policies may have changed."""
        self._held.clear()
        self.changed.fire()

    def of(self, install_id: str) -> int:
        """How many it may be offered."""
        return 0 if self.held(install_id) else self._told(install_id)

    def held(self, install_id: str) -> bool:
        """Whether nothing more goes there for now."""
        return self._monotonic() < self._held.get(install_id, 0.0)

    def _told(self, install_id: str) -> int:
        return self._free.get(install_id, 0)
