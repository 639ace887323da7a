"""Conversion: what goes out comes back, defaults are the contract's, views hide what they must."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from hopper.registry.v1 import instance_pb2, project_pb2
from hopper.router.v1 import decision_pb2, delegation_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper_common.errors import InvalidArgument
from hopper_common.working_hours import parse
from hopper_router import convert
from hopper_router.convert import BASIC, FULL
from hopper_router.errors import StaleToken, TaskNotFound
from hopper_router.model import (
    Basis,
    Candidate,
    Claim,
    Clocks,
    Decision,
    Delegation,
    DelegationKind,
    DelegationState,
    Exclusion,
    ExecutorType,
    Factor,
    Failure,
    Hold,
    InputRequest,
    InstanceState,
    Outcome,
    Progress,
    RateLimit,
    RetryPolicy,
    Scope,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

words = st.text(max_size=8)
tuples = st.lists(words, max_size=3).map(tuple)
maps = st.dictionaries(words, words, max_size=3)
moments = st.datetimes(timezones=st.just(UTC))
lengths = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=366))
numbers = st.floats(min_value=0, max_value=1)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


specs = st.builds(
    TaskSpec,
    title=words,
    description=words,
    tags=tuples,
    required_capabilities=tuples,
    required_labels=maps,
    priority=st.integers(0, 100),
    project=words,
    requester=st.text(min_size=1, max_size=8),
    dependencies=tuples,
    payload=st.binary(max_size=8),
    clocks=st.builds(
        Clocks,
        start_after=maybe(moments),
        start_by=maybe(moments),
        run_for=maybe(lengths),
        finish_by=maybe(moments),
        heartbeat=maybe(lengths),
    ),
    retry=st.builds(
        RetryPolicy,
        max_attempts=st.integers(1, 1000),
        first_backoff=lengths,
        factor=st.floats(1, 100),
        max_backoff=lengths,
        non_retryable_reasons=st.frozensets(words, max_size=3),
    ),
    estimated_effort=maybe(lengths),
    before_event=maybe(lengths),
    labels=maps,
)
candidates = st.builds(
    Candidate,
    words,
    numbers,
    numbers,
    st.lists(st.builds(Factor, words, numbers, numbers, tuples), max_size=3).map(tuple),
)
decisions = st.builds(
    Decision,
    outcome=st.sampled_from(Outcome),
    project=words,
    confidence=numbers,
    strategy=words,
    reasoning=words,
    candidates=st.lists(candidates, max_size=3).map(tuple),
    exclusions=st.lists(st.builds(Exclusion, words, st.integers(0, 100), tuples, words), max_size=3).map(
        tuple
    ),
    eligible_count=st.integers(0, 100),
    basis=st.builds(Basis, st.integers(0, 2**62), st.integers(0, 2**62), words, st.integers(0, 2**62)),
    name=words,
    task=words,
    instance=words,
    elapsed=lengths,
    create_time=maybe(moments),
)
waits = st.builds(
    Wait,
    reason=st.sampled_from(WaitReason),
    on=tuples,
    until=maybe(moments),
    message=words,
    exclusions=st.dictionaries(words, st.integers(0, 100), max_size=3),
)


def a_task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "instances/global/tasks/01",
        "instance": "instances/global",
        "spec": TaskSpec(title="mend it", description="all of it", payload=b"payload", tags=("a",)),
        "state": TaskState.RUNNING,
        "create_time": NOW,
        "update_time": NOW + timedelta(seconds=1),
        "ready_time": NOW,
        "claim": a_claim(),
    }
    return Task(**{**values, **changes})


def a_claim(lease_end: datetime | None = NOW + timedelta(minutes=1)) -> Claim:
    return Claim("w1", token=7, lease=timedelta(minutes=1), lease_end=lease_end, start=NOW)


# ---------------------------------------------------------------- specs


@given(specs)
def test_a_spec_comes_back_from_the_store_as_it_was(spec: TaskSpec) -> None:
    assert convert.spec_from_bytes(convert.spec_to_bytes(spec)) == spec


@given(specs)
def test_a_spec_comes_back_from_the_wire_as_it_was(spec: TaskSpec) -> None:
    assert convert.spec_from_proto(convert.spec_to_proto(spec)) == spec


def test_what_is_not_said_has_the_contracts_default() -> None:
    assert convert.spec_from_proto(pb.TaskSpec(title="mend it")) == TaskSpec(title="mend it")


def test_an_empty_retry_policy_has_the_contracts_defaults() -> None:
    spec = convert.spec_from_proto(pb.TaskSpec(title="mend it", retry=pb.RetryPolicy()))

    assert spec.retry == RetryPolicy()


def test_priority_zero_is_not_the_default() -> None:
    assert convert.spec_from_proto(pb.TaskSpec(title="mend it", priority=0)).priority == 0


def test_a_back_off_of_zero_is_not_the_default() -> None:
    retry = pb.RetryPolicy()
    retry.first_backoff.seconds = 0
    retry.max_backoff.seconds = 0

    back = convert.spec_from_proto(pb.TaskSpec(title="mend it", retry=retry)).retry

    assert (back.first_backoff, back.max_backoff) == (timedelta(), timedelta())


def test_a_factor_below_one_is_one() -> None:
    spec = pb.TaskSpec(title="mend it", retry=pb.RetryPolicy(factor=0.5))

    assert convert.spec_from_proto(spec).retry.factor == 1


def test_defaults_are_written_out() -> None:
    spec = convert.spec_to_proto(TaskSpec(title="mend it"))

    assert spec.priority == 50
    assert spec.requester == "anonymous"
    assert spec.retry.max_attempts == 3
    assert spec.retry.first_backoff.seconds == 1
    assert spec.retry.factor == 2
    assert spec.retry.max_backoff.seconds == 3600
    assert not spec.HasField("clocks")
    assert not spec.HasField("estimated_effort")


def test_the_same_spec_is_the_same_bytes() -> None:
    reasons = [f"REASON_{number}" for number in range(20)]
    forwards = TaskSpec(title="x", retry=RetryPolicy(non_retryable_reasons=frozenset(reasons)))
    backwards = TaskSpec(title="x", retry=RetryPolicy(non_retryable_reasons=frozenset(reversed(reasons))))

    assert convert.spec_to_bytes(forwards) == convert.spec_to_bytes(backwards)


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-7)))
    spec = TaskSpec(title="x", clocks=Clocks(start_by=there))

    assert convert.spec_from_proto(convert.spec_to_proto(spec)).clocks.start_by == NOW


def test_a_time_beyond_the_calendar_is_refused() -> None:
    spec = pb.TaskSpec(title="x")
    spec.clocks.start_by.seconds = 2**62

    with pytest.raises(InvalidArgument, match="no time"):
        convert.spec_from_proto(spec)


# ---------------------------------------------------------------- tasks


def test_basic_view_has_no_description_no_payload_and_no_result() -> None:
    task = convert.task_to_proto(a_task(result=b"r", state=TaskState.SUCCEEDED), view=BASIC, wait=None)

    assert (task.spec.description, task.spec.payload, task.result) == ("", b"", b"")
    assert task.spec.title == "mend it"
    assert list(task.spec.tags) == ["a"]


def test_unspecified_view_is_basic() -> None:
    task = convert.task_to_proto(a_task(), view=pb.TASK_VIEW_UNSPECIFIED, wait=None)

    assert task == convert.task_to_proto(a_task(), view=BASIC, wait=None)


def test_full_view_has_everything() -> None:
    task = a_task(
        state=TaskState.INPUT_REQUIRED,
        generation=12,
        spec_version=3,
        project="projects/p",
        decision="decisions/d",
        attempt=2,
        failure=Failure("NO_NETWORK", "no route", permanent=False),
        progress=Progress(0.5, "half"),
        result=b"r",
        delegation="delegations/x",
        input=InputRequest("which?", "ann", "that", "bob"),
        hold=Hold("ann", "holidays"),
        finish_time=NOW + timedelta(seconds=2),
    )
    wait = Wait(WaitReason.PERSON, on=("ann",), message="waits for ann")

    out = convert.task_to_proto(task, view=FULL, wait=wait)

    assert convert.spec_from_proto(out.spec) == task.spec
    assert (out.name, out.generation, out.etag) == (task.name, 12, "s3")
    assert out.state == pb.Task.STATE_INPUT_REQUIRED
    assert (out.project, out.decision, out.delegation) == ("projects/p", "decisions/d", "delegations/x")
    assert (out.attempt, out.result) == (2, b"r")
    assert convert.failure_from_proto(out.failure) == task.failure
    assert convert.progress_from_proto(out.progress) == task.progress
    assert convert.input_from_proto(out.input) == task.input
    assert convert.hold_from_proto(out.hold) == task.hold
    assert convert.wait_from_proto(out.wait) == wait
    assert out.create_time.ToDatetime(UTC) == NOW
    assert out.update_time.ToDatetime(UTC) == NOW + timedelta(seconds=1)
    assert out.finish_time.ToDatetime(UTC) == NOW + timedelta(seconds=2)


@pytest.mark.parametrize("state", TaskState)
def test_the_claim_shows_only_while_a_worker_has_the_task(state: TaskState) -> None:
    task = convert.task_to_proto(a_task(state=state), view=FULL, wait=None, show_token=True)

    assert task.HasField("claim") == (state in {TaskState.RUNNING, TaskState.INPUT_REQUIRED})


def test_the_token_shows_only_to_the_claimant() -> None:
    others = convert.task_to_proto(a_task(), view=FULL, wait=None)
    claimant = convert.task_to_proto(a_task(), view=FULL, wait=None, show_token=True)

    assert others.claim.fencing_token == 0
    assert others.claim.worker == "w1"
    assert claimant.claim.fencing_token == 7


def test_a_stopped_lease_has_no_end() -> None:
    task = a_task(state=TaskState.INPUT_REQUIRED, claim=a_claim(lease_end=None))
    out = convert.task_to_proto(task, view=BASIC, wait=None)

    assert not out.claim.HasField("lease_expire_time")
    assert out.claim.HasField("start_time")


def test_parts_that_are_not_there_are_unset() -> None:
    out = convert.task_to_proto(a_task(state=TaskState.QUEUED, claim=None), view=FULL, wait=None)

    present = {field.name for field, _ in out.ListFields()}
    assert present.isdisjoint({"wait", "claim", "failure", "progress", "input", "hold", "finish_time"})


@given(waits)
def test_a_wait_comes_back_as_it_was(wait: Wait) -> None:
    assert convert.wait_from_proto(convert.wait_to_proto(wait)) == wait


def test_no_wait_is_none() -> None:
    assert convert.wait_from_proto(pb.Wait()) is None


@given(words, words, words, words, st.booleans(), numbers)
def test_the_small_parts_come_back_as_they_were(
    one: str, two: str, three: str, four: str, permanent: bool, fraction: float
) -> None:
    failure, progress = Failure(one, two, permanent), Progress(fraction, three)
    question, hold = InputRequest(one, two, three, four), Hold(one, two)

    assert convert.failure_from_proto(convert.failure_to_proto(failure)) == failure
    assert convert.progress_from_proto(convert.progress_to_proto(progress)) == progress
    assert convert.input_from_proto(convert.input_to_proto(question)) == question
    assert convert.hold_from_proto(convert.hold_to_proto(hold)) == hold


@pytest.mark.parametrize("state", TaskState)
def test_states_have_the_same_names_on_both_sides(state: TaskState) -> None:
    number = convert.STATE_TO_PROTO[state]

    assert pb.Task.State.Name(number) == f"STATE_{state.name}"
    assert convert.state_from_proto(number) is state


def test_the_enums_of_the_contract_have_no_value_the_model_lacks() -> None:
    pairs: list[tuple[Any, Any]] = [
        (pb.Task.State, convert.STATE_FROM_PROTO),
        (pb.Wait.Reason, convert.REASON_FROM_PROTO),
        (decision_pb2.Decision.Outcome, convert.OUTCOME_FROM_PROTO),
        (delegation_pb2.Delegation.Kind, convert.KIND_FROM_PROTO),
        (delegation_pb2.Delegation.State, convert.DELEGATION_STATE_FROM_PROTO),
        (instance_pb2.Instance.State, convert.INSTANCE_STATE_FROM_PROTO),
        (instance_pb2.Scope, convert.SCOPE_FROM_PROTO),
        (project_pb2.Executor.Type, convert.EXECUTOR_FROM_PROTO),
    ]
    for contract, model in pairs:
        assert set(contract.values()) - {0} == set(model), contract


def test_an_unknown_state_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.state_from_proto(pb.Task.STATE_UNSPECIFIED, field="states[0]")

    assert caught.value.violations[0].field == "states[0]"


# ---------------------------------------------------------------- events


def test_an_event_carries_the_task_after_it_in_basic_view() -> None:
    task = a_task(project="projects/p", result=b"r")
    wait = Wait(WaitReason.WORKER, on=("projects/p",))

    event = convert.event_from_bytes(convert.event_to_bytes("CLAIM", TaskState.QUEUED, task, wait), 42)

    expected = convert.task_to_proto(task, view=BASIC, wait=wait)
    expected.generation = 42
    assert event.kind == "CLAIM"
    assert event.from_state == pb.Task.STATE_QUEUED
    assert event.task == expected


def test_an_event_never_shows_the_token() -> None:
    event = convert.event_from_bytes(convert.event_to_bytes("CLAIM", TaskState.QUEUED, a_task(), None), 1)

    assert event.task.claim.worker == "w1"
    assert event.task.claim.fencing_token == 0


def test_the_first_event_comes_from_no_state() -> None:
    event = convert.event_from_bytes(convert.event_to_bytes("SUBMIT", None, a_task(), None), 1)

    assert event.from_state == pb.Task.STATE_UNSPECIFIED


# ---------------------------------------------------------------- decisions and delegations


@given(decisions)
def test_a_decision_comes_back_as_it_was(decision: Decision) -> None:
    assert convert.decision_from_proto(convert.decision_to_proto(decision)) == decision
    assert convert.decision_from_bytes(convert.decision_to_bytes(decision)) == decision


@given(candidates)
def test_a_candidate_comes_back_as_it_was(candidate: Candidate) -> None:
    assert convert.candidate_from_proto(convert.candidate_to_proto(candidate)) == candidate


def test_a_negative_length_keeps_its_sign() -> None:
    # A clock set back while deciding: the record says so and stays readable.
    decision = Decision(Outcome.ROUTED, elapsed=timedelta(seconds=-1, microseconds=-500_000))
    out = convert.decision_to_proto(decision)

    assert (out.elapsed.seconds, out.elapsed.nanos) == (-1, -500_000_000)
    assert convert.decision_from_proto(out) == decision


def test_a_delegation_shows_when_its_offer_ends() -> None:
    delegation = Delegation(
        name="delegations/d",
        kind=DelegationKind.ESCALATE,
        state=DelegationState.OFFERED,
        task="instances/a/tasks/1",
        from_instance="instances/a",
        to_instance="instances/b",
        path=("instances/a", "instances/b"),
        child_tasks=("instances/b/tasks/2",),
        create_time=NOW,
        update_time=NOW,
        reason="too big",
        offer_end=NOW + timedelta(hours=24),
    )
    out = convert.delegation_to_proto(delegation)

    assert (out.name, out.task, out.reason) == (delegation.name, delegation.task, "too big")
    assert out.kind == delegation_pb2.Delegation.KIND_ESCALATE
    assert out.state == delegation_pb2.Delegation.STATE_OFFERED
    assert list(out.path) == ["instances/a", "instances/b"]
    assert list(out.child_tasks) == ["instances/b/tasks/2"]
    assert (out.from_instance, out.to_instance) == ("instances/a", "instances/b")
    assert out.offer_expire_time.ToDatetime(UTC) == NOW + timedelta(hours=24)
    assert out.create_time == out.update_time
    assert convert.kind_from_proto(out.kind) is DelegationKind.ESCALATE


# ---------------------------------------------------------------- the registry's nouns


HOURS = project_pb2.WorkingHours(
    time_zone="Asia/Tokyo",
    stretches=[project_pb2.WorkingStretch(weekday=1, from_minute=540, to_minute=1020)],
)


def test_hours_of_a_zone_that_is_not_known_here_are_none() -> None:
    project = project_pb2.Project(name="projects/p", working_hours=HOURS)
    project.working_hours.time_zone = "Mars/Base"
    assert convert.project_from_registry(project).working_hours is None


def test_a_project_is_read_whole() -> None:
    project = convert.project_from_registry(
        project_pb2.Project(
            name="projects/p",
            display_name="P",
            description="does things",
            capabilities=["python"],
            tags=["type:Bug"],
            labels={"region": "eu"},
            examples=["mend it"],
            velocity_per_day=4,
            sla=Duration(seconds=60),
            capacity=project_pb2.Capacity(
                max_running=2,
                max_open=9,
                max_running_per_key=1,
                start_rate=project_pb2.RateLimit(count=7),
                start_rate_per_key=project_pb2.RateLimit(count=5, period=Duration(seconds=30)),
            ),
            cost_per_task=1.5,
            executor=project_pb2.Executor(type=project_pb2.Executor.TYPE_AGENT, requires_live_worker=True),
            priority_boosts={"urgent": 2},
            working_hours=HOURS,
            state=project_pb2.Project.STATE_PAUSED,
            presence=project_pb2.Presence(live_workers=1),
        )
    )

    assert (project.name, project.id, project.display_name) == ("projects/p", "p", "P")
    assert project.description == "does things"
    assert project.capabilities == {"python"}
    assert project.tags == {"type:Bug"}
    assert project.labels == {"region": "eu"}
    assert project.examples == ("mend it",)
    assert (project.velocity, project.sla, project.cost) == (4, timedelta(minutes=1), 1.5)
    assert (project.max_running, project.max_open, project.max_running_per_key) == (2, 9, 1)
    assert project.start_rate == RateLimit(7, timedelta(seconds=1))
    assert project.start_rate_per_key == RateLimit(5, timedelta(seconds=30))
    assert project.has_limits
    assert (project.executor, project.requires_live_worker) == (ExecutorType.AGENT, True)
    assert project.boosts == {"urgent": 2}
    assert project.working_hours == parse("mon 09:00-17:00 Asia/Tokyo")
    assert (project.paused, project.live_workers) == (True, 1)


def test_heartbeats_change_nothing_that_routing_reads() -> None:
    few = project_pb2.Project(name="projects/p", presence=project_pb2.Presence(live_workers=1, slots=1))
    many = project_pb2.Project(name="projects/p", presence=project_pb2.Presence(live_workers=9, slots=50))
    none = project_pb2.Project(name="projects/p")

    assert convert.project_from_registry(few) == convert.project_from_registry(many)
    assert convert.project_from_registry(few) != convert.project_from_registry(none)


def test_a_project_of_no_kind_has_workers() -> None:
    project = convert.project_from_registry(project_pb2.Project(name="projects/p"))

    assert project.executor is ExecutorType.WORKERS
    assert (project.sla, project.paused) == (None, False)


def test_an_instance_without_settings_has_the_contracts_defaults() -> None:
    instance = convert.instance_from_registry(
        instance_pb2.Instance(
            name="instances/i",
            parent="instances/global",
            project="projects/p",
            scope=instance_pb2.SCOPE_PROJECT,
            state=instance_pb2.Instance.STATE_RUNNING,
        )
    )

    assert (instance.scope, instance.state) == (Scope.PROJECT, InstanceState.RUNNING)
    assert (instance.parent, instance.project) == ("instances/global", "projects/p")
    assert instance.complex_effort == timedelta(hours=4)
    assert instance.offer_timeout == timedelta(hours=24)
    assert (instance.manual_accept, instance.max_workers, instance.event_time) == (False, 0, None)


def test_an_instances_settings_are_read() -> None:
    config = instance_pb2.InstanceConfig(max_workers=3, members=["ann"], manual_accept=True)
    config.complex_effort.seconds = 60
    config.offer_timeout.seconds = 120
    config.event_time.FromDatetime(NOW)
    instance = convert.instance_from_registry(
        instance_pb2.Instance(name="instances/i", scope=instance_pb2.SCOPE_EVENT, config=config),
    )

    assert (instance.max_workers, instance.manual_accept) == (3, True)
    assert instance.members == {"ann"}
    assert instance.complex_effort == timedelta(minutes=1)
    assert instance.offer_timeout == timedelta(minutes=2)
    assert (instance.event_time, instance.start_time) == (NOW, None)


def test_an_instance_in_an_unknown_state_does_not_run() -> None:
    instance = instance_pb2.Instance(name="instances/i", scope=instance_pb2.SCOPE_EVENT)
    instance.MergeFromString(b"\x38\x63")  # field 7, state = 99

    assert convert.instance_from_registry(instance).state is InstanceState.ERROR


def test_an_instance_of_an_unknown_scope_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        convert.instance_from_registry(instance_pb2.Instance(name="instances/i"))


# ---------------------------------------------------------------- errors


def test_an_item_is_refused_as_the_call_would_be() -> None:
    lost = convert.item_error(StaleToken(task="instances/i/tasks/t"))
    missing = convert.item_error(TaskNotFound("no such task", task="instances/i/tasks/t"))

    assert (lost.code, lost.reason) == (grpc.StatusCode.ABORTED.value[0], "STALE_TOKEN")
    assert lost.metadata == {"task": "instances/i/tasks/t"}
    assert (missing.code, missing.message) == (grpc.StatusCode.NOT_FOUND.value[0], "no such task")
