"""
Whether the database is the one this Hopper ended with, or was brought back from a copy: then it has forgotten what was
promised to peers since, and numbers that it would give have been given.

Three things are compared at each start: the identity's `incarnation` file, which is another one after a restore; the
row in the database; and a mark beside the database, which follows it at a distance of seconds. A database that is
behind its mark is an earlier one. Functions of these three; the files are `incarnation_keeping`'s.

Who brings back the whole data directory brings back the mark as well: only peers can notice that, by what they were
told.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Restored(StrEnum):
    """How it was found that the database is another one than this Hopper ended with."""

    NO = ""
    IDENTITY = "the identity was restored from a backup, or the database is another Hopper's"
    EARLIER = "the database is an earlier one than this Hopper had: it was restored from a copy"
    UNMARKED = "the database was not written in this data directory: it was brought here from elsewhere"
    EMPTY = "the database is new, and this data directory had one before"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """
    What the database knows of itself.

    Attributes:
        identity: The identity's `incarnation` when it was written.
        number: Grows with each restore, and is never given twice: seconds since 1970 of when it began, or more.
        tick: Grows as the database changes.
        restored: Why the number was raised last.
    """

    identity: str
    number: int
    tick: int = 0
    restored: Restored = Restored.NO

    def ticked(self) -> "Incarnation":
        """After some changes."""
        return replace(self, tick=self.tick + 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """What was known of the database outside of it, and was true some seconds before it ended."""

    number: int
    tick: int


def at_start(stored: Incarnation | None, mark: Mark | None, identity: str, now: int) -> Incarnation:
    """
    What the database is from this start on; *stored* itself where nothing was restored.

    Args:
        stored: Its row; None: it has none yet.
        mark: None: there is none.
        identity: The identity's `incarnation`.
        now: Seconds since 1970.
    """
    if stored is None and mark is None:
        return Incarnation(identity, now)
    restored = _difference(stored, mark, identity)
    if stored is not None and restored is Restored.NO:
        return stored
    numbers = [each.number for each in (stored, mark) if each is not None]
    ticks = [each.tick for each in (stored, mark) if each is not None]
    return Incarnation(identity, max(now, *(number + 1 for number in numbers)), max(ticks) + 1, restored)


def _difference(stored: Incarnation | None, mark: Mark | None, identity: str) -> Restored:
    if stored is None:
        return Restored.EMPTY
    if stored.identity != identity:
        return Restored.IDENTITY
    if mark is None:
        return Restored.UNMARKED
    return Restored.EARLIER if stored.tick < mark.tick else Restored.NO
