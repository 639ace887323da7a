"""
Server-made resource ids that sort by time.

The layout is ULID's: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32 (no i, l, o, u).
Ours are lower case because resource names are. Time order keeps new rows together at the end of an index; the
random tail makes ids unguessable and lets replicas mint them without asking each other. Ids of the same
millisecond have no order, unless one `Ids` made them.
"""

import secrets
import threading
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_RANDOM_BYTES = 10
_LENGTH = 26


def new_id(now: datetime) -> str:
    """
    A new id: 26 lower-case characters, unique, later than all ids of earlier milliseconds.

    Args:
        now: UTC, aware, not before 1970.
    """
    return _spelled(_number(now))


class Ids:
    """
    Makes ids of which each is later than the one before, also within a millisecond and when the clock steps back.

    For things whose order matters within one process, as that of the tasks of one batch. Safe to use from several
    threads.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def new(self, now: datetime) -> str:
        """A new id; see `new_id`."""
        number = _number(now)
        with self._lock:
            self._last = max(number, self._last + 1)
            return _spelled(self._last)


def _number(now: datetime) -> int:
    milliseconds = (now - _EPOCH) // _MILLISECOND
    return milliseconds << 8 * _RANDOM_BYTES | int.from_bytes(secrets.token_bytes(_RANDOM_BYTES))


def _spelled(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 0x3FF] for shift in range(5 * _LENGTH - 10, -1, -10)])
