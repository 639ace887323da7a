"""How each peer is doing, as this process has seen it: in memory, and true for as long as the process runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

REFUSALS: Final = frozenset({"PEER_REVOKED", "PEER_UNKNOWN"})
"""What a peer answers that wants nothing more of this Hopper."""


@dataclass(frozen=True, slots=True)
class Status:
    """
    What has been seen of a peer.

    Attributes:
        heard: When an authenticated message came from it last, in seconds of a clock that never goes back; None: never.
        reached: When a call to it succeeded last, likewise.
        failure: Why the last call to it failed, as a reason of the catalogue; empty: it did not.
        problem: The same for people.
        offset: Its clock less this one's.
        version: What both speak: `1.0`.
        leaf_end: When the certificate that it showed last runs out.
        capabilities: What it said it would take.
        free_slots: How many more tasks it said it would take.
    """

    heard: float | None = None
    reached: float | None = None
    failure: str = ""
    problem: str = ""
    offset: timedelta | None = None
    version: str = ""
    leaf_end: datetime | None = None
    capabilities: tuple[str, ...] = ()
    free_slots: int = 0

    @property
    def refuses(self) -> bool:
        """It wants nothing more of this Hopper, as far as it has said."""
        return self.failure in REFUSALS


_NOTHING = Status()


class Statuses:
    """
    Of all peers, by install id.

    Args:
        monotonic: Seconds, of a clock that never goes back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: dict[str, Status] = {}
        self._heard: list[Callable[[str], None]] = []
        self._reached: list[Callable[[str], None]] = []
        self._back: list[Callable[[str], None]] = []
        self._failed: list[Callable[[str, str], None]] = []

    def of(self, install_id: str) -> Status:
        """What has been seen of one."""
        return self._known.get(install_id, _NOTHING)

    def ago(self, moment: float | None) -> timedelta | None:
        """How long ago that was."""
        return None if moment is None else timedelta(seconds=max(0.0, self._monotonic() - moment))

    def all_heard(self) -> set[str]:
        """The install ids of all that have been heard."""
        return {install_id for install_id, status in self._known.items() if status.heard is not None}

    def on_heard(self, callback: Callable[[str], None]) -> None:
        """Call back with the install id whenever one is heard: it is there, whatever calls to it have said."""
        self._heard.append(callback)

    def on_reached(self, callback: Callable[[str], None]) -> None:
        """Call back with the install id whenever a call to one has succeeded."""
        self._reached.append(callback)

    def on_back(self, callback: Callable[[str], None]) -> None:
        """Call back with the install id when a call to one has succeeded: its first, or the first after a failure."""
        self._back.append(callback)

    def on_failed(self, callback: Callable[[str, str], None]) -> None:
        """Call back with the install id, and the reason, whenever a call to one has failed."""
        self._failed.append(callback)

    def heard(self, install_id: str, leaf_end: datetime | None = None) -> None:
        """An authenticated message came from it."""
        before = self.of(install_id)
        self._known[install_id] = replace(
            before, heard=self._monotonic(), leaf_end=before.leaf_end if leaf_end is None else leaf_end
        )
        for callback in self._heard:
            callback(install_id)

    def reached(self, install_id: str) -> None:
        """A call to it succeeded."""
        now, before = self._monotonic(), self.of(install_id)
        self._known[install_id] = replace(before, heard=now, reached=now, failure="", problem="")
        back = before.reached is None or before.failure
        for callback in (*(self._back if back else ()), *self._reached):
            callback(install_id)

    def failed(self, install_id: str, reason: str, problem: str) -> None:
        """A call to it failed."""
        self._known[install_id] = replace(self.of(install_id), failure=reason, problem=problem)
        for callback in self._failed:
            callback(install_id, reason)

    def met(self, install_id: str, *, offset: timedelta, version: str) -> None:
        """It said what time it has, and what it speaks."""
        self._known[install_id] = replace(self.of(install_id), offset=offset, version=version)

    def would_take(self, install_id: str, free_slots: int) -> None:
        """It said how many more tasks it would take."""
        self._known[install_id] = replace(self.of(install_id), free_slots=free_slots)

    def keep_only(self, install_ids: set[str]) -> None:
        """Forget whoever is no peer any more."""
        for install_id in self._known.keys() - install_ids:
            del self._known[install_id]
