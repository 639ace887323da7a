"""
Fields of messages as bytes, for messages that are put together by hand.

A tag is `field number << 3 | wire type`, as https://protobuf.dev/programming-guides/encoding/ has it; fields that have
their default are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Final

_double: Final = struct.Struct("<d").pack
_SHORT: Final = [bytes([length]) for length in range(128)]
_NOTHING: Final = bytes(8)
_SECOND: Final = 1_000_000


def text_field(tag: bytes, text: str) -> bytes:
    """A text."""
    return message_field(tag, text.encode()) if text else b""


@lru_cache(8192)
def name_field(tag: bytes, text: str) -> bytes:
    """A text that many messages have."""
    return text_field(tag, text)


def texts_field(tag: bytes, texts: Iterable[str]) -> bytes:
    """A repeated text."""
    return b"".join([message_field(tag, text.encode()) for text in texts])


def message_field(tag: bytes, body: bytes) -> bytes:
    """A message that is bytes already; present also when it is empty."""
    length = len(body)
    return tag + (_SHORT[length] if length < 128 else _length(length)) + body


def float_field(tag: bytes, value: float) -> bytes:
    """A double."""
    packed = _double(value)
    return tag + packed if packed != _NOTHING else b""  # -0.0 is something


def number_field(tag: bytes, value: int) -> bytes:
    """An integer or an enum."""
    return tag + (_SHORT[value] if 0 < value < 128 else varint(value)) if value else b""


@lru_cache(8192)
def micros_field(tag: bytes, micros: int) -> bytes:
    """A Timestamp of microseconds since 1970: those of a set have many in common."""
    seconds, rest = divmod(micros, _SECOND)
    return message_field(tag, number_field(b"\x08", seconds) + number_field(b"\x10", rest * 1000))


def duration_body(length: timedelta) -> bytes:
    """A Duration, without tag and length."""
    if length.days >= 0:
        return time_body(length)
    ago = -length  # seconds and nanos of a Duration have the same sign
    return number_field(b"\x08", -(ago.days * 86_400 + ago.seconds)) + number_field(
        b"\x10", -ago.microseconds * 1000
    )


def time_body(since: timedelta) -> bytes:
    """A Timestamp that long after 1970, without tag and length."""
    seconds = since.days * 86_400 + since.seconds
    return number_field(b"\x08", seconds) + number_field(b"\x10", since.microseconds * 1000)


@lru_cache(4096)
def _length(length: int) -> bytes:
    return varint(length)


def varint(value: int) -> bytes:
    """An integer of variable length."""
    value &= 0xFFFFFFFFFFFFFFFF  # negative numbers are written as what they are modulo 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
