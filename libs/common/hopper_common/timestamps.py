"""
Time between its three forms: `datetime` in the core, integer microseconds in the database, protobuf on the
wire.

Microseconds are the common denominator: exact in Python, exact in an INTEGER column, comparable in SQL.
Nanoseconds that arrive on the wire are cut off.
"""

from datetime import UTC, datetime, timedelta
from typing import overload

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hopper_common.errors import InvalidArgument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)


@overload
def to_micros(time: datetime) -> int: ...
@overload
def to_micros(time: None) -> None: ...
def to_micros(time: datetime | None) -> int | None:
    """Microseconds since 1970 in UTC, as stored; None stays None. A naive time raises TypeError."""
    return None if time is None else (time - _EPOCH) // _MICROSECOND


@overload
def from_micros(micros: int) -> datetime: ...
@overload
def from_micros(micros: None) -> None: ...
def from_micros(micros: int | None) -> datetime | None:
    """The UTC time of stored microseconds; None stays None."""
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


@overload
def to_proto(value: datetime) -> Timestamp: ...
@overload
def to_proto(value: timedelta) -> Duration: ...
@overload
def to_proto(value: None) -> None: ...
def to_proto(value: datetime | timedelta | None) -> Timestamp | Duration | None:
    """A Timestamp for a time, a Duration for a length; None stays None, which means unset."""
    match value:
        case None:
            return None
        case datetime():
            seconds, rest = divmod(value - _EPOCH, _SECOND)
            return Timestamp(seconds=seconds, nanos=1000 * rest.microseconds)
        case timedelta():
            return _duration(value)


def _duration(value: timedelta) -> Duration:
    # Seconds and nanos of a Duration have the same sign, unlike those of a timedelta.
    sign = -1 if value < timedelta() else 1
    seconds, rest = divmod(abs(value), _SECOND)
    return Duration(seconds=sign * seconds, nanos=sign * 1000 * rest.microseconds)


@overload
def from_proto(value: Timestamp) -> datetime: ...
@overload
def from_proto(value: Duration) -> timedelta: ...
@overload
def from_proto(value: None) -> None: ...
def from_proto(value: Timestamp | Duration | None) -> datetime | timedelta | None:
    """
    The time of a Timestamp (UTC, aware) or the length of a Duration; None stays None.

    An unset message field reads as its zero value: where unset matters use `time_field` or `duration_field`.

    Raises:
        InvalidArgument: Outside the years 1 to 9999.
    """
    if value is None:
        return None
    try:
        length = timedelta(seconds=value.seconds, microseconds=int(value.nanos / 1000))
        return _EPOCH + length if isinstance(value, Timestamp) else length
    except OverflowError:
        raise InvalidArgument(f"{value.seconds} seconds is no time between the years 1 and 9999") from None


def time_field(message: Message, field: str) -> datetime | None:
    """The time in a Timestamp field of *message*, None when unset."""
    return from_proto(getattr(message, field)) if message.HasField(field) else None


def duration_field(message: Message, field: str) -> timedelta | None:
    """The length in a Duration field of *message*, None when unset."""
    return from_proto(getattr(message, field)) if message.HasField(field) else None
