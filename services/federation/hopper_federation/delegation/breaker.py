"""
When to try a peer again that could not be sent to. A core: time and chance are given.

    1 s, 2, 4, 8 ─ five failures in a row ─► 60 s, then one message to see ─ it fails ─► 60 s, 64, … 300
      └──────────────── a sign of life: at once ────────────────┘           └─ it is answered ─► as if nothing had been
"""

from dataclasses import dataclass, replace
from typing import Final

FIRST: Final = 1.0
LONGEST: Final = 300.0
SPREAD: Final = 0.4
"""By how much a pause may be longer or shorter, so that many do not come back at once."""
OPENS_AT: Final = 5
"""That many failures in a row, and one message at a time is sent to see."""
REST: Final = 60.0
SHORTEST: Final = 0.5
"""However alive a peer is: what has just failed waits so long."""


@dataclass(frozen=True, slots=True)
class Hold:
    """
    Why nothing is sent to a peer for now.

    Attributes:
        failures: In a row.
        failed: When the last was.
        until: It is tried again then.
        reason: Why the last failed, as a reason of the catalogue.
        detail: The same for people.
    """

    failures: int = 0
    failed: float = 0.0
    until: float = 0.0
    reason: str = ""
    detail: str = ""

    @property
    def open(self) -> bool:
        """Whether only one message is sent, to see."""
        return self.failures >= OPENS_AT

    def after(self, now: float, reason: str, detail: str, *, chance: float, least: float = 0.0) -> "Hold":
        """
        After one more failure.

        Args:
            chance: From 0 to 1, anything as likely as anything else.
            least: How long it has to wait whatever else is true.
        """
        failures = self.failures + 1
        pause = FIRST * 2.0 ** min(failures - 1, 20)
        if failures >= OPENS_AT:
            pause = max(pause, REST)
        spread = min(pause, LONGEST) * (1 - SPREAD + 2 * SPREAD * chance)
        return Hold(failures, now, now + min(LONGEST, max(spread, least)), reason, detail)

    def shortened(self) -> "Hold":
        """After a sign of life."""
        return replace(self, until=min(self.until, self.failed + SHORTEST))

    def begun(self, now: float) -> "Hold":
        """As it is read at a start: the clock may have been set meanwhile."""
        back = max(0.0, self.failed - now)
        return replace(self, failed=self.failed - back, until=min(self.until - back, now + LONGEST))
