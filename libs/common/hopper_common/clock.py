"""
Where time comes from.

Only the composition root makes a `SystemClock`; everything else is handed a `Clock` or, in a core, the time
itself, so that a test moves time instead of waiting for it (`hopper_testing.clock.ManualClock`).

**The time of day is steady.** Leases, back-offs and deadlines are lengths of time, kept as moments: `now + lease` is
stored, and compared with a later `now`. If the wall clock is stepped in between (NTP after a long time without a
network, a person, a virtual machine that was moved), an hour's step forwards would end every lease at once, and one
backwards would keep a dead worker's tasks for an hour. So `SystemClock.now` looks at the wall clock when it is made,
and from then on counts the time that passes:

    now = wall clock at the start + time passed since + correction

The correction leads towards the wall clock, at no more than `SLEW` = 1 ms a second, in either direction:

- Less than 1, so `now` never runs backwards, and two moments in order stay in order.
- Twice the 500 ppm to which Linux bounds its own slewing of a clock, and ten times what a bad crystal drifts: a
  healthy clock is followed to within microseconds.
- Small against what is promised: a lease of 60 s is at most 60 ms longer or shorter than a minute, and a task is ready
  again within a second of its lease's end.

After a step of the wall clock this process is therefore wrong by it for a while, a thousand times the step: 17 minutes
for a second, six weeks for an hour. `behind` says by how much. A restart takes the wall clock as it is then.

Time passes while the machine sleeps too (CLOCK_BOOTTIME, where there is one): a laptop that wakes up is on time.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol

SLEW: Final = 0.001
"""How far `SystemClock` follows the wall clock, in seconds per second."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks at the wall clock."""

_SECOND: Final = 1_000_000_000
_AT_ONCE: Final = 1_000_000
"""Nanoseconds that two looks at clocks take at most, unless the process was kept waiting between them."""
_LOOKS: Final = 10
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """A source of the time of day and of monotonic time."""

    def now(self) -> datetime:
        """The time of day: UTC, aware, to the microsecond. Another process's, or a test's, may step."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never backwards. For durations within this process."""


def _time_passed() -> int:
    """Nanoseconds since some fixed point, those in which the machine slept included where it can tell."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SystemClock:
    """
    The machine's clock, steadied: see the module's text. Threads may share it.

    Args:
        wall: The wall clock, in nanoseconds since 1970. It may step.
        passed: Nanoseconds since some fixed point. Never backwards.
    """

    def __init__(
        self, *, wall: Callable[[], int] = time.time_ns, passed: Callable[[], int] = _time_passed
    ) -> None:
        self._wall = wall
        self._passed = passed
        self._lock = threading.Lock()
        # The last look at the wall clock: what had passed, what `now` was, and how far the wall clock was ahead of it.
        self._at, self._was = self._look()
        self._ahead = 0

    def now(self) -> datetime:
        """The time of day; never backwards, never by leaps."""
        with self._lock:
            return _EPOCH + timedelta(microseconds=self._now(self._passed()) // 1000)

    monotonic = staticmethod(time.monotonic)  # itself, as every call asks for it several times
    """Seconds since some fixed point; never backwards."""

    @property
    def behind(self) -> timedelta:
        """How far the wall clock is ahead of `now`; negative: `now` is ahead of it."""
        with self._lock:
            passed, wall = self._look()
            return timedelta(microseconds=(wall - self._now(passed)) // 1000)

    def _now(self, passed: int) -> int:
        length = passed - self._at
        correction = min(int(length * SLEW), abs(self._ahead))
        now = self._was + length + (correction if self._ahead > 0 else -correction)
        if length >= LOOK_EVERY * _SECOND:
            looked, wall = self._look()
            self._at, self._was, self._ahead = passed, now, wall - (now + looked - passed)
        return now

    def _look(self) -> tuple[int, int]:
        """What has passed, and the wall clock, at one moment: else a clock would be ahead by what lay between."""
        for _ in range(_LOOKS):
            passed, wall = self._passed(), self._wall()
            if self._passed() - passed < _AT_ONCE:
                break
        return passed, wall


class WallClock:
    """
    The wall clock itself, steps and all, for what others check by it: certificates, tokens.

    Args:
        clock: This process's. One of a test is taken as it is.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> datetime:
        """The time of day as the machine tells it; may step, also backwards."""
        behind = self._clock.behind if isinstance(self._clock, SystemClock) else timedelta()
        return self._clock.now() + behind

    def monotonic(self) -> float:
        """Seconds since some fixed point; never backwards."""
        return self._clock.monotonic()


class Ahead(NamedTuple):
    """
    How far a clock is ahead of ours: by something from *least* to *most*.

    Who asks another for the time does not know when on the way to and fro it was that time. What was measured while
    the machine was busy says little, but nothing wrong.
    """

    least: timedelta
    most: timedelta

    @classmethod
    def by(cls, ahead: timedelta) -> "Ahead":
        """Exactly that far."""
        return cls(ahead, ahead)

    @property
    def middle(self) -> timedelta:
        """The best guess."""
        return self.least + self.width / 2

    @property
    def width(self) -> timedelta:
        """How much is not known."""
        return self.most - self.least

    def nearest(self, shift: timedelta) -> timedelta:
        """What *shift* must be at least, or at most, to agree with what was measured; itself if it does."""
        return min(max(shift, self.least), self.most)


class SharedClock:
    """
    A clock on which several processes agree: one of their own, moved to what they share.

    What is shared is a database server's clock, or what is written in the database. A process that comes takes it as it
    is; later it is followed by no more than `FOLLOW` at a time, so that a step of that clock is no step of ours, and
    not at all as long as the two may be the same. Never backwards from then on. Threads may share it.

    Args:
        clock: This process's own.
    """

    FOLLOW: Final = timedelta(milliseconds=50)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shift: timedelta | None = None
        self._last = clock.now()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time of day on which the processes agree."""
        with self._lock:
            self._last = max(self._last, self._clock.now() + (self._shift or timedelta()))
            return self._last

    def monotonic(self) -> float:
        """Seconds since some fixed point; never backwards."""
        return self._clock.monotonic()

    def agree(self, ahead: Ahead) -> None:
        """The shared clock is that far ahead of this process's own."""
        with self._lock:
            if self._shift is None:
                # Whatever was read before: a clock that waited for the shared one to catch up would end no lease.
                self._shift, self._last = ahead.middle, self._clock.now() + ahead.middle
            else:
                wrong = ahead.nearest(self._shift) - self._shift
                self._shift += max(-self.FOLLOW, min(self.FOLLOW, wrong))
