"""
Decisions as the bytes of their message, put together by hand.

A decision has some sixty messages in it, most of which say the same in every decision: a factor that is 0, what a
project costs, who is paused. Making each as an object takes long. Here each `Factor` and `Exclusion` is made
into bytes once, is remembered in its `wire`, and a decision is joined from what there is. The bytes are exactly those
that protobuf makes of the same message; a test holds the two against each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from hopper.router.v1 import decision_pb2
from hopper_router.model import Basis, Candidate, Decision, Exclusion, Factor, Opinion, Outcome, WeightOrigin
from hopper_router.wire_fields import (
    duration_body,
    float_field,
    message_field,
    name_field,
    number_field,
    text_field,
    texts_field,
    time_body,
)

OUTCOME_NUMBERS: Final = {
    outcome: decision_pb2.Decision.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome
}

ORIGIN_NUMBERS: Final = {
    origin: decision_pb2.WeightOrigin.Value(f"WEIGHT_ORIGIN_{origin.value}") for origin in WeightOrigin
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_two_doubles: Final = struct.Struct("<cdcd").pack


def decision_wire(decision: Decision) -> bytes:
    """The serialized message."""
    parts = [
        text_field(b"\x0a", decision.name),
        text_field(b"\x12", decision.task),
        name_field(b"\x1a", decision.instance),
        _ROUTED if decision.outcome is Outcome.ROUTED else _outcome(decision.outcome),
        name_field(b"\x2a", decision.project),
        float_field(b"\x31", decision.confidence),
        name_field(b"\x3a", decision.strategy),
        text_field(b"\x42", decision.reasoning),
        *[_candidate(candidate) for candidate in decision.candidates],
        *[exclusion.wire or _exclusion(exclusion) for exclusion in decision.exclusions],
        number_field(b"\x58", decision.eligible_count),
        _basis(decision.basis),
        _elapsed(decision.elapsed),
    ]
    if decision.create_time is not None:
        parts.append(_create_time(decision.create_time))
    for opinion in decision.opinions:
        parts.append(message_field(b"\x7a", _opinion(opinion)))
    return b"".join(parts)


def _opinion(opinion: Opinion) -> bytes:
    """There are few of them, so that the message may be made as others are."""
    message = decision_pb2.Opinion(
        stage=opinion.stage,
        word=decision_pb2.Opinion.Word.Value(f"WORD_{opinion.word.name}"),
        project=opinion.project,
        confidence=opinion.confidence,
        threshold=opinion.threshold,
        reason=opinion.reason,
        answer=opinion.answer,
        model=opinion.model,
        input_tokens=opinion.input_tokens,
        output_tokens=opinion.output_tokens,
        money_micros=opinion.money,
        stated_confidence=opinion.stated,
        suggested_tags=opinion.tags,
    )
    if opinion.elapsed:
        message.elapsed.FromTimedelta(opinion.elapsed)
    if opinion.effort is not None:
        message.suggested_effort.FromTimedelta(opinion.effort)
    return message.SerializeToString()


def _outcome(outcome: Outcome) -> bytes:
    return number_field(b"\x20", OUTCOME_NUMBERS[outcome])


_ROUTED: Final = _outcome(Outcome.ROUTED)


@lru_cache(4096)
def _elapsed(length: timedelta) -> bytes:
    """Most decisions take nearly as long as others, in microseconds."""
    return message_field(b"\x6a", duration_body(length))


@lru_cache(16)
def _create_time(time: datetime) -> bytes:
    """Those of a set have the same."""
    return message_field(b"\x72", time_body(time - _EPOCH))


def _candidate(candidate: Candidate) -> bytes:
    factors = [factor.wire or _factor(factor) for factor in candidate.factors]
    numbers = _floats(candidate.score, candidate.confidence)
    return message_field(b"\x4a", b"".join([name_field(b"\x0a", candidate.project), numbers, *factors]))


def _factor(factor: Factor) -> bytes:
    numbers = _floats(factor.value, factor.weight)
    parts = [name_field(b"\x0a", factor.name), numbers, *[_evidence(text) for text in factor.evidence]]
    if factor.origin is not WeightOrigin.SHIPPED:
        parts.append(number_field(b"\x28", ORIGIN_NUMBERS[factor.origin]))
        parts.append(number_field(b"\x30", factor.lessons))
    factor.wire = wire = message_field(b"\x22", b"".join(parts))
    return wire


@lru_cache(32_768)
def _evidence(text: str) -> bytes:
    """Projects are spoken for by the same few words again and again."""
    return message_field(b"\x22", text.encode())


def _floats(second: float, third: float) -> bytes:
    """The two numbers that candidates and factors have, as fields 2 and 3."""
    if second and third:
        return _two_doubles(b"\x11", second, b"\x19", third)
    return float_field(b"\x11", second) + float_field(b"\x19", third)


def _exclusion(exclusion: Exclusion) -> bytes:
    head = text_field(b"\x0a", exclusion.filter) + number_field(b"\x10", exclusion.count)
    body = head + texts_field(b"\x1a", exclusion.projects) + text_field(b"\x22", exclusion.detail)
    exclusion.wire = wire = message_field(b"\x52", body)
    return wire


@lru_cache(256)
def _basis(basis: Basis) -> bytes:
    versions = number_field(b"\x08", basis.projects_version) + number_field(b"\x10", basis.instances_version)
    policy = text_field(b"\x1a", basis.policy) + number_field(b"\x20", basis.policy_version)
    return message_field(b"\x62", versions + policy)


# ---------------------------------------------------------------- answers


def submitted(task: bytes, decision: bytes) -> bytes:
    """A SubmitTaskResponse of a serialized Task and a serialized Decision."""
    return message_field(b"\x0a", task) + message_field(b"\x12", decision)


def submitted_name(name: str) -> bytes:
    """A SubmitTaskResponse of which only the task's name is kept."""
    return message_field(b"\x0a", text_field(b"\x0a", name))


def submitted_names(names: Iterable[str]) -> bytes:
    """A SubmitTasksResponse of which only the tasks' names are kept."""
    return b"".join([message_field(b"\x0a", submitted_name(name)) for name in names])
