"""
Where time comes from.

Only the composition root makes a `SystemClock`; everything else is handed a `Clock` or, in a core, the time
itself, so that a test moves time instead of waiting for it (`hopper_testing.clock.ManualClock`).
"""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock and of monotonic time."""

    def now(self) -> datetime:
        """The time of day: UTC, aware, to the microsecond. It may step backwards: never subtract it."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never backwards. For durations within this process."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()
