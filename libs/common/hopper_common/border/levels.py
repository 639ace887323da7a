"""How far a peer is trusted."""

from enum import StrEnum
from typing import Final


class Level(StrEnum):
    """A ceiling, over which no policy goes. BLOCKED stands beside the line of the others."""

    UNTRUSTED = "UNTRUSTED"
    KNOWN = "KNOWN"
    TRUSTED = "TRUSTED"
    VERIFIED = "VERIFIED"
    BLOCKED = "BLOCKED"


LINE: Final = (Level.UNTRUSTED, Level.KNOWN, Level.TRUSTED, Level.VERIFIED)
"""Those that stand in a line, lowest first."""


def reaches(level: Level, needed: Level) -> bool:
    """Whether a peer of that level may do what needs the other; a blocked one may do nothing."""
    return level in LINE and LINE.index(level) >= LINE.index(needed)
