"""Why a task waits: each reason, and which comes first."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hopper_router.model import (
    Claim,
    Hold,
    InputRequest,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
)
from hopper_router.waiting import MOST_NAMES, Facts, why_waiting

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(microseconds=1)
QUEUED = Task(
    name="instances/i/tasks/t",
    instance="instances/i",
    spec=TaskSpec("t"),
    state=TaskState.QUEUED,
    create_time=NOW,
    update_time=NOW,
    ready_time=NOW,
    project="projects/p",
)
FACTS = Facts(
    now=NOW, blockers=(), dead=(), delegations=(), halted_by="", paused=frozenset({"projects/other"})
)

# What brings each reason about, in the order of the contract: the first that applies is the answer.
BEFORE_PLACING: list[tuple[WaitReason, dict[str, Any], tuple[str, ...]]] = [
    (WaitReason.APPROVAL, {"offered": True}, ("instances/i",)),
    (WaitReason.DEPENDENCY, {"blockers": 1}, ("instances/i/tasks/b",)),
    (WaitReason.PERSON, {"hold": Hold("cleo")}, ("cleo",)),
    (WaitReason.SCHEDULE, {"ready_time": LATER}, ()),
]
BEFORE_CLAIMING: list[tuple[WaitReason, dict[str, Any], tuple[str, ...]]] = [
    (WaitReason.INSTANCE, {"halted_by": "instances/up"}, ("instances/up",)),
    (WaitReason.PROJECT, {"paused": {"projects/p"}}, ("projects/p",)),
    (WaitReason.CAPACITY, {"limited": Wait(WaitReason.CAPACITY, ("projects/p",))}, ("projects/p",)),
    (WaitReason.WORKER, {}, ("projects/p",)),
]


def why(task: Task, **facts: Any) -> Wait:
    wait = why_waiting(task, replace(FACTS, blockers=("instances/i/tasks/b",), **facts))
    assert wait is not None
    return wait


@pytest.mark.parametrize("state", [TaskState.RUNNING, *(s for s in TaskState if s.final)])
def test_what_runs_or_is_over_waits_for_nothing(state: TaskState) -> None:
    held = replace(QUEUED, state=state, hold=Hold(), blockers=1, wait=Wait(WaitReason.UNSURE))
    assert why_waiting(held, FACTS) is None


@pytest.mark.parametrize("first", range(len(BEFORE_PLACING)))
@pytest.mark.parametrize("state", [TaskState.SUBMITTED, TaskState.QUEUED])
def test_the_first_reason_hides_the_others(first: int, state: TaskState) -> None:
    changes: dict[str, Any] = {"state": state, "wait": Wait(WaitReason.UNSURE)}
    for _, change, _ in BEFORE_PLACING[first:]:
        changes |= change
    facts: dict[str, Any] = {}
    for _, fact, _ in BEFORE_CLAIMING:
        facts |= fact
    reason, _, names = BEFORE_PLACING[first]
    wait = why(replace(QUEUED, **changes), **facts)
    assert (wait.reason, wait.on) == (reason, names)


@pytest.mark.parametrize("first", range(len(BEFORE_CLAIMING)))
def test_the_first_thing_that_keeps_workers_away_hides_the_others(first: int) -> None:
    facts: dict[str, Any] = {}
    for _, fact, _ in BEFORE_CLAIMING[first:]:
        facts |= fact
    reason, _, names = BEFORE_CLAIMING[first]
    wait = why(QUEUED, **facts)
    assert (wait.reason, wait.on) == (reason, names)


def test_the_order_is_that_of_the_contract() -> None:
    told = [WaitReason.APPROVAL, WaitReason.DEPENDENCY, WaitReason.PERSON, WaitReason.SCHEDULE]
    told += [WaitReason.BACKOFF, WaitReason.NO_ELIGIBLE_EXECUTOR, WaitReason.UNSURE]
    told += [reason for reason, _, _ in BEFORE_CLAIMING]
    order = list(WaitReason)
    assert [order.index(reason) for reason in told] == sorted(order.index(reason) for reason in told)


def test_a_back_off_is_not_a_schedule() -> None:
    scheduled = why(replace(QUEUED, ready_time=LATER))
    backing_off = why(replace(QUEUED, ready_time=LATER, failures=1))
    assert (scheduled.reason, backing_off.reason) == (WaitReason.SCHEDULE, WaitReason.BACKOFF)
    assert scheduled.until == backing_off.until == LATER
    assert why(replace(QUEUED, ready_time=NOW, failures=1)).reason is WaitReason.WORKER


@pytest.mark.parametrize("reason", [WaitReason.NO_ELIGIBLE_EXECUTOR, WaitReason.UNSURE])
def test_what_deciding_left_open_is_passed_on(reason: WaitReason) -> None:
    left = Wait(reason, message="m", exclusions={"capability": 3})
    assert (
        why(replace(QUEUED, state=TaskState.SUBMITTED, project="", wait=left), halted_by="instances/i")
        == left
    )


def test_questions_name_whom_they_are_put_to() -> None:
    asking = replace(
        QUEUED,
        state=TaskState.INPUT_REQUIRED,
        claim=Claim("ann", 1, timedelta(minutes=1), None, NOW),
        input=InputRequest("?", "cleo"),
    )
    assert (why(asking).reason, why(asking).on) == (WaitReason.PERSON, ("cleo",))
    anybody = why(replace(asking, input=InputRequest("?")))
    assert (anybody.on, anybody.message) == ((), "waits for an answer from somebody")


def test_a_hold_by_nobody_in_particular() -> None:
    assert why(replace(QUEUED, hold=Hold())).on == ()


def test_a_delegated_task_waits_for_its_delegations_whatever_else_holds() -> None:
    away = replace(QUEUED, state=TaskState.DELEGATED, hold=Hold(), blockers=2, ready_time=LATER)
    wait = why(away, delegations=("delegations/d",), halted_by="instances/i")
    assert (wait.reason, wait.on) == (WaitReason.DELEGATION, ("delegations/d",))


def test_dependencies_that_cannot_succeed_are_told_first() -> None:
    wait = why(replace(QUEUED, blockers=2), dead=("instances/i/tasks/d",))
    assert wait.on == ("instances/i/tasks/d",)
    assert "update or cancel" in wait.message


def test_no_more_than_twenty_names() -> None:
    names = tuple(f"delegations/{n}" for n in range(MOST_NAMES + 5))
    assert len(why(replace(QUEUED, state=TaskState.DELEGATED), delegations=names).on) == MOST_NAMES == 20
    blocked = why_waiting(replace(QUEUED, blockers=25), replace(FACTS, blockers=names))
    assert blocked is not None
    assert len(blocked.on) == 20


def test_a_queue_without_a_project_waits_for_a_worker_of_the_instance() -> None:
    assert why(replace(QUEUED, project="")).on == ("instances/i",)
