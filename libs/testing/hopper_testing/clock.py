"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta


class ManualClock:
    """
    A `hopper_common.clock.Clock` for tests.

    Args:
        now: Where it starts; aware.

    Attributes:
        time: The wall clock's hand. Setting it is a person or NTP changing the time of day: `monotonic` does
        not notice.
    """

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.time = now
        self._elapsed = timedelta()

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self._elapsed.total_seconds()

    def advance(self, length: timedelta) -> datetime:
        """Let *length* pass, on both hands, and return the new time of day."""
        if length < timedelta():
            raise ValueError(f"time does not run backwards: {length}; set `time` to change the time of day")
        self.time += length
        self._elapsed += length
        return self.time
