"""
Server-made resource ids that sort by time.

The layout is ULID's: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32 (no i, l, o, u).
Ours are lower case because resource names are. Time order keeps new rows together at the end of an index; the
random tail makes ids unguessable and lets replicas mint them without asking each other. Ids of the same
millisecond have no order, unless one `Ids` made them.
"""

import os
import secrets
import threading
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_RANDOM_BYTES = 10
_RANDOM_BITS = 8 * _RANDOM_BYTES
_AT_ONCE = 64


def new_id(now: datetime) -> str:
    """
    A new id: 26 lower-case characters, unique, later than all ids of earlier milliseconds.

    Args:
        now: UTC, aware, not before 1970.
    """
    return _spelled(_milliseconds(now) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))


class Ids:
    """
    Makes ids of which each is later than the one before, also within a millisecond and when the clock steps back.

    For things whose order matters within one process, as that of the tasks of one batch. Safe to use from several
    threads.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()
        self._tails: list[int] = []
        self._process = 0

    def new(self, now: datetime) -> str:
        """A new id; see `new_id`."""
        with self._lock:
            # A process that was forked must not go on with the other's.
            if not self._tails or os.getpid() != self._process:
                self._process, self._tails = os.getpid(), _fetched()
            number = _milliseconds(now) << _RANDOM_BITS | self._tails.pop()
            self._last = max(number, self._last + 1)
            return _spelled(self._last)


def _fetched() -> list[int]:
    """Random tails for many ids: asking the system takes longer than making one."""
    block = secrets.token_bytes(_AT_ONCE * _RANDOM_BYTES)
    return [int.from_bytes(block[at : at + _RANDOM_BYTES]) for at in range(0, len(block), _RANDOM_BYTES)]


def _milliseconds(now: datetime) -> int:
    return (now - _EPOCH) // _MILLISECOND


def _spelled(number: int) -> str:
    # In halves: Python is quicker with small numbers.
    a, b = number >> 40 & 0xFF_FFFF_FFFF, number & 0xFF_FFFF_FFFF
    return (
        f"{_spelled_time(number >> _RANDOM_BITS)}"
        f"{_PAIRS[a >> 30]}{_PAIRS[a >> 20 & 0x3FF]}{_PAIRS[a >> 10 & 0x3FF]}{_PAIRS[a & 0x3FF]}"
        f"{_PAIRS[b >> 30]}{_PAIRS[b >> 20 & 0x3FF]}{_PAIRS[b >> 10 & 0x3FF]}{_PAIRS[b & 0x3FF]}"
    )


@lru_cache(16)
def _spelled_time(milliseconds: int) -> str:
    return "".join([_PAIRS[milliseconds >> shift & 0x3FF] for shift in (40, 30, 20, 10, 0)])
