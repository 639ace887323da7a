"""Decisions put together by hand are the bytes that protobuf makes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from hopper.router.v1 import decision_pb2 as pb
from hopper_router.convert import (
    OUTCOME_TO_PROTO,
    decision_from_bytes,
    decision_to_bytes,
    decision_to_proto,
    spec_from_bytes,
    spec_to_bytes,
    spec_to_proto,
)
from hopper_router.model import Basis, Candidate, Decision, Exclusion, Factor, Outcome, TaskSpec, WeightOrigin

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.just("x" * 200)
FLOATS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0])
NAMES = st.lists(TEXTS, max_size=4).map(tuple)
VERSIONS = st.integers(0, 2**62)
ORIGINS = st.one_of(
    st.tuples(st.just(WeightOrigin.LEARNED), st.integers(0, 2**40)),
    st.tuples(st.sampled_from((WeightOrigin.SHIPPED, WeightOrigin.POLICY)), st.just(0)),
)
FACTORS = st.builds(
    lambda name, value, weight, evidence, origin: Factor(name, value, weight, evidence, *origin),
    TEXTS,
    FLOATS,
    FLOATS,
    NAMES,
    ORIGINS,
)
DECISIONS = st.builds(
    Decision,
    st.sampled_from(Outcome),
    project=TEXTS,
    confidence=FLOATS,
    strategy=TEXTS,
    reasoning=TEXTS,
    candidates=st.lists(
        st.builds(Candidate, TEXTS, FLOATS, FLOATS, st.lists(FACTORS, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    exclusions=st.lists(st.builds(Exclusion, TEXTS, st.integers(0, 2**31 - 1), NAMES, TEXTS), max_size=3).map(
        tuple
    ),
    eligible_count=st.integers(0, 2**31 - 1),
    basis=st.builds(Basis, VERSIONS, VERSIONS, TEXTS, VERSIONS),
    name=TEXTS,
    task=TEXTS,
    instance=TEXTS,
    elapsed=st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000)),
    create_time=st.none()
    | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(tzinfo=UTC)),
)


def by_protobuf(decision: Decision) -> pb.Decision:
    """The message, made of messages."""
    message = pb.Decision(
        name=decision.name,
        task=decision.task,
        instance=decision.instance,
        outcome=OUTCOME_TO_PROTO[decision.outcome],
        project=decision.project,
        confidence=decision.confidence,
        strategy=decision.strategy,
        reasoning=decision.reasoning,
        candidates=[
            pb.Candidate(
                project=candidate.project,
                score=candidate.score,
                confidence=candidate.confidence,
                factors=[
                    pb.Factor(
                        name=f.name,
                        value=f.value,
                        weight=f.weight,
                        evidence=f.evidence,
                        weight_origin=pb.WeightOrigin.Value(f"WEIGHT_ORIGIN_{f.origin.value}"),
                        weight_lessons=f.lessons,
                    )
                    for f in candidate.factors
                ],
            )
            for candidate in decision.candidates
        ],
        exclusions=[
            pb.Exclusion(filter=e.filter, count=e.count, projects=e.projects, detail=e.detail)
            for e in decision.exclusions
        ],
        eligible_count=decision.eligible_count,
        basis=pb.Basis(
            projects_version=decision.basis.projects_version,
            instances_version=decision.basis.instances_version,
            policy=decision.basis.policy,
            policy_version=decision.basis.policy_version,
        ),
        elapsed=Duration(),
    )
    message.elapsed.FromTimedelta(decision.elapsed)
    if decision.create_time is not None:
        time = Timestamp()
        time.FromDatetime(decision.create_time)
        message.create_time.CopyFrom(time)
    return message


@given(DECISIONS)
def test_the_bytes_are_those_of_protobuf(decision: Decision) -> None:
    message = by_protobuf(decision)

    assert decision_to_bytes(decision) == message.SerializeToString()
    assert decision_to_proto(decision) == message


@given(DECISIONS)
def test_a_second_time_the_bytes_are_the_same(decision: Decision) -> None:
    first = decision_to_bytes(decision)

    assert decision_to_bytes(decision) == first
    assert decision_from_bytes(first) == decision


def test_a_spec_is_made_into_bytes_once_and_a_changed_one_anew() -> None:
    spec = TaskSpec("title", description="all of it", tags=("a",), labels={"k": "v"}, priority=7)
    body = spec_to_bytes(spec)

    assert spec_to_bytes(spec) is body
    assert spec_to_bytes(spec_from_bytes(body)) is body
    assert spec_from_bytes(spec_to_bytes(replace(spec, title="other"))).title == "other"
    assert spec_to_proto(spec) == spec_to_proto(replace(spec))
