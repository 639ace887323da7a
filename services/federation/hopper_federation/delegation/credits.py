"""How many more tasks each peer would take now, as it said last: nobody is offered more."""

from hopper_common.database import Signal


class Credits:
    """
    In memory: who starts anew asks anew.

    Attributes:
        changed: Fires when a peer has said something else.
    """

    def __init__(self) -> None:
        self.changed = Signal()
        self._free: dict[str, int] = {}

    def told(self, install_id: str, free: int) -> None:
        """A peer said so, and knows what it was offered until then."""
        if self._free.get(install_id) != free:
            self._free[install_id] = max(0, free)
            self.changed.fire()

    def spent(self, install_id: str, count: int) -> None:
        """It was offered so many, and has not said anything since."""
        self._free[install_id] = max(0, self.of(install_id) - count)

    def earned(self, install_id: str) -> None:
        """Something that it had is over, and it has not said anything since."""
        self.told(install_id, self.of(install_id) + 1)

    def of(self, install_id: str) -> int:
        """How many it may be offered."""
        return self._free.get(install_id, 0)
