"""
How many tasks may start in a period: a token bucket, kept as one number.

The bucket holds `count` tokens, a start takes one, and one comes back every `period / count`. Instead of tokens and the
time they were counted, one time is kept: until when what was started uses the rate up (the generic cell rate algorithm,
ITU-T I.371). It is in the past for a full bucket, and one period ahead for an empty one. So a bucket that nobody uses
needs no looking after, and one number in a row is all that replicas and restarts need to agree on.

Times here are nanoseconds since 1970: a token of 1,000,000 in 1.5 s comes every 1,500 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hopper_common.timestamps import from_micros, to_micros
from hopper_router.model import RateLimit

_MICROSECOND: Final = timedelta(microseconds=1)
_NANOS: Final = 1000


@dataclass(frozen=True, slots=True)
class Bucket:
    """The arithmetic of one limit; `used_until` is a bucket's state, 0 a full one."""

    limit: RateLimit

    @property
    def _step(self) -> int:
        """How long one token takes to come back; rounded up, so that no more start than may."""
        return -(-(self.limit.period // _MICROSECOND) * _NANOS // self.limit.count)

    @property
    def _depth(self) -> int:
        return self._step * self.limit.count

    def left(self, used_until: int, now: datetime) -> int:
        """How many may start now."""
        at = nanos(now)
        return (at + self._depth - self._bounded(used_until, at)) // self._step

    def take(self, used_until: int, now: datetime) -> int:
        """The state after one more has started."""
        return self._bounded(used_until, nanos(now)) + self._step

    def next_time(self, used_until: int, now: datetime) -> datetime:
        """When the next may start: now, or the end of the wait for a token."""
        at = nanos(now)
        ready = self._bounded(used_until, at) + self._step - self._depth
        return max(now, from_micros(-(-ready // _NANOS)))

    def empty_between(self, now: datetime) -> tuple[int, int]:
        """A bucket whose state is greater than the first, and not than the second, has no token now."""
        full_period = nanos(now) + self._depth
        return full_period - self._step, full_period

    def _bounded(self, used_until: int, at: int) -> int:
        # Further ahead than a period it says nothing: the limit was another, or the clock has been set back.
        return at if used_until > at + self._depth else max(used_until, at)


def nanos(time: datetime) -> int:
    """A time as this module counts."""
    return to_micros(time) * _NANOS
