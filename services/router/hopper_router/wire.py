"""
Decisions as the bytes of their message, put together by hand.

A decision has some sixty messages in it, most of which say the same in every decision: a factor that is 0, what a
project costs, who is paused. Making each as an object takes long. Here each `Factor` and `Exclusion` is made
into bytes once, is remembered in its `wire`, and a decision is joined from what there is. The bytes are exactly those
that protobuf makes of the same message; a test holds the two against each other.

The tags below are `field number << 3 | wire type`, as https://protobuf.dev/programming-guides/encoding/ has it; fields
that have their default are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from hopper.router.v1 import decision_pb2
from hopper_router.model import Basis, Candidate, Decision, Exclusion, Factor, Outcome

OUTCOME_NUMBERS: Final = {
    outcome: decision_pb2.Decision.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_double: Final = struct.Struct("<d").pack
_two_doubles: Final = struct.Struct("<cdcd").pack
_SHORT: Final = [bytes([length]) for length in range(128)]


def decision_wire(decision: Decision) -> bytes:
    """The serialized message."""
    parts = [
        _text(b"\x0a", decision.name),
        _text(b"\x12", decision.task),
        _name(b"\x1a", decision.instance),
        _number(b"\x20", OUTCOME_NUMBERS[decision.outcome]),
        _name(b"\x2a", decision.project),
        _float(b"\x31", decision.confidence),
        _name(b"\x3a", decision.strategy),
        _text(b"\x42", decision.reasoning),
        *[_candidate(candidate) for candidate in decision.candidates],
        *[exclusion.wire or _exclusion(exclusion) for exclusion in decision.exclusions],
        _number(b"\x58", decision.eligible_count),
        _basis(decision.basis),
        _message(b"\x6a", _length(decision.elapsed)),
    ]
    if decision.create_time is not None:
        parts.append(_message(b"\x72", _seconds(decision.create_time - _EPOCH)))
    return b"".join(parts)


def _candidate(candidate: Candidate) -> bytes:
    factors = b"".join([factor.wire or _factor(factor) for factor in candidate.factors])
    head = _name(b"\x0a", candidate.project) + _floats(candidate.score, candidate.confidence)
    return _message(b"\x4a", head + factors)


def _factor(factor: Factor) -> bytes:
    body = _name(b"\x0a", factor.name) + _floats(factor.value, factor.weight)
    if factor.evidence:
        body += _texts(b"\x22", factor.evidence)
    factor.wire = wire = _message(b"\x22", body)
    return wire


def _floats(second: float, third: float) -> bytes:
    """The two numbers that candidates and factors have, as fields 2 and 3."""
    if second and third:
        return _two_doubles(b"\x11", second, b"\x19", third)
    return _float(b"\x11", second) + _float(b"\x19", third)


def _exclusion(exclusion: Exclusion) -> bytes:
    head = _text(b"\x0a", exclusion.filter) + _number(b"\x10", exclusion.count)
    body = head + _texts(b"\x1a", exclusion.projects) + _text(b"\x22", exclusion.detail)
    exclusion.wire = wire = _message(b"\x52", body)
    return wire


@lru_cache(256)
def _basis(basis: Basis) -> bytes:
    versions = _number(b"\x08", basis.projects_version) + _number(b"\x10", basis.instances_version)
    policy = _text(b"\x1a", basis.policy) + _number(b"\x20", basis.policy_version)
    return _message(b"\x62", versions + policy)


def _length(length: timedelta) -> bytes:
    if length.days >= 0:
        return _seconds(length)
    ago = -length  # seconds and nanos of a Duration have the same sign
    return _number(b"\x08", -(ago.days * 86_400 + ago.seconds)) + _number(b"\x10", -ago.microseconds * 1000)


def _seconds(length: timedelta) -> bytes:
    seconds = length.days * 86_400 + length.seconds
    return _number(b"\x08", seconds) + _number(b"\x10", length.microseconds * 1000)


# ---------------------------------------------------------------- answers


def submitted(task: bytes, decision: bytes) -> bytes:
    """A SubmitTaskResponse of a serialized Task and a serialized Decision."""
    return _message(b"\x0a", task) + _message(b"\x12", decision)


def submitted_name(name: str) -> bytes:
    """A SubmitTaskResponse of which only the task's name is kept."""
    return _message(b"\x0a", _text(b"\x0a", name))


def submitted_names(names: Iterable[str]) -> bytes:
    """A SubmitTasksResponse of which only the tasks' names are kept."""
    return b"".join([_message(b"\x0a", submitted_name(name)) for name in names])


# ---------------------------------------------------------------- fields


def _text(tag: bytes, text: str) -> bytes:
    return _message(tag, text.encode()) if text else b""


@lru_cache(8192)
def _name(tag: bytes, text: str) -> bytes:
    """A text that many decisions have."""
    return _text(tag, text)


def _texts(tag: bytes, texts: Iterable[str]) -> bytes:
    return b"".join([_message(tag, text.encode()) for text in texts])


def _message(tag: bytes, body: bytes) -> bytes:
    length = len(body)
    return tag + (_SHORT[length] if length < 128 else _varint(length)) + body


def _float(tag: bytes, value: float) -> bytes:
    packed = _double(value)
    return tag + packed if packed != _NOTHING else b""  # -0.0 is something


_NOTHING: Final = bytes(8)


def _number(tag: bytes, value: int) -> bytes:
    return tag + (_SHORT[value] if 0 < value < 128 else _varint(value)) if value else b""


def _varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF  # negative numbers are written as what they are modulo 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
