"""What workers are answered is put together by hand, and says what is made of the same task in the usual way."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import work_service_pb2 as svc
from hopper_router import work_wire
from hopper_router.convert import task_to_proto
from hopper_router.model import (
    Claim,
    Clocks,
    Failure,
    Hold,
    InputRequest,
    Progress,
    Task,
    TaskSpec,
    TaskState,
)
from hopper_router.rows import task_to_row
from tests.router.harness import NOW

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.just("x" * 200)
TIMES = st.timedeltas(timedelta(), timedelta(days=9000)).map(lambda ago: NOW - ago)
SPECS = st.builds(
    TaskSpec,
    TEXTS,
    description=TEXTS,
    tags=st.lists(TEXTS, max_size=3).map(tuple),
    priority=st.integers(0, 100),
    payload=st.binary(max_size=300),
    clocks=st.builds(Clocks, heartbeat=st.none() | st.just(timedelta(minutes=5))),
    labels=st.dictionaries(TEXTS, TEXTS, max_size=2),
    fairness_key=TEXTS,
)
TASKS = st.builds(
    Task,
    name=st.just("instances/global/tasks/01jgnh3000abcdefghjkmnpqrs"),
    instance=st.just("instances/global"),
    spec=SPECS,
    state=st.just(TaskState.RUNNING),
    create_time=TIMES,
    update_time=TIMES,
    ready_time=TIMES,
    queue_time=TIMES,
    first_start=TIMES,
    generation=st.integers(1, 2**62),
    spec_version=st.integers(1, 1000),
    project=st.sampled_from(["", "projects/web"]),
    decision=TEXTS,
    claim=st.builds(Claim, TEXTS, st.integers(1, 2**62), st.just(timedelta(minutes=1)), TIMES, TIMES),
    attempt=st.integers(1, 2**31 - 1),
    delegation=TEXTS,
    failure=st.none() | st.builds(Failure, TEXTS, TEXTS, st.booleans()),
    progress=st.none() | st.builds(Progress, st.floats(0, 1), TEXTS),
    input=st.none() | st.builds(InputRequest, TEXTS, TEXTS, TEXTS, TEXTS),
    hold=st.none() | st.builds(Hold, TEXTS, TEXTS),
)


def as_claimed(task: Task) -> Task:
    assert task.claim is not None
    return replace(task, token=task.claim.token)


def as_usual(task: Task, view: pb.TaskView.ValueType, *, show_token: bool = False) -> pb.Task:
    return task_to_proto(task, view=view, wait=None, show_token=show_token)


@given(st.lists(TASKS, max_size=3))
def test_claimed_tasks_are_whole_and_have_their_tokens(tasks: list[Task]) -> None:
    tasks = [as_claimed(task) for task in tasks]
    made = svc.ClaimTasksResponse.FromString(work_wire.claimed([task_to_row(task, NOW) for task in tasks]))
    assert list(made.tasks) == [as_usual(task, pb.TASK_VIEW_FULL, show_token=True) for task in tasks]


@given(TASKS)
def test_a_claim_that_goes_on_is_told_in_brief(task: Task) -> None:
    made = pb.Task.FromString(work_wire.renewed(task_to_row(task, NOW)))
    assert made == as_usual(task, pb.TASK_VIEW_BASIC)


@given(TASKS)
def test_what_is_done_is_told_in_brief(task: Task) -> None:
    done = replace(task, state=TaskState.SUCCEEDED, finish_time=NOW, result=b"42")
    made = pb.Task.FromString(work_wire.completed(task_to_row(done, NOW)))
    assert made == as_usual(done, pb.TASK_VIEW_BASIC)


def test_results_of_both_kinds_are_in_one_answer() -> None:
    updated, refused = pb.Task(name="a", attempt=2), svc.ClaimResult(task="b")
    refused.error.reason = "STALE_TOKEN"
    body = work_wire.result("a", updated.SerializeToString()) + work_wire.other_result(refused)
    expected = [svc.ClaimResult(task="a", updated=updated), refused]
    for response in (svc.CompleteTasksResponse, svc.RenewClaimsResponse, svc.WorkAnswer):
        assert list(response.FromString(body).results) == expected
    told = svc.WorkResponse.FromString(work_wire.answered(body))
    assert list(told.answer.results) == expected
    (task,) = svc.WorkResponse.FromString(work_wire.assigned(b"\x0a\x03\x0a\x01a")).assigned.tasks
    assert task == pb.Task(name="a")
