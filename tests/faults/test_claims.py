"""
What becomes of claims when workers hang, come late, share a name, are called off, or miss an answer: on each engine,
through all the routers there are.
"""

import asyncio
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message

from hopper.router.v1.task_pb2 import Task, TaskView
from hopper.router.v1.task_service_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    SubmitTaskRequest,
)
from hopper.router.v1.work_service_pb2 import (
    ClaimResult,
    ClaimTasksRequest,
    CompleteTasksRequest,
    Completion,
    RenewClaimsRequest,
)
from hopper_client import AsyncHopper
from hopper_common.errors import LostRace, WrongState
from hopper_testing.checker import check
from hopper_testing.dump import take_dump
from hopper_testing.history import History, Kind, Ledger
from hopper_testing.workload import ROOT, claim_request, grant_of, prepare, ref, task_spec
from tests.e2e.calls import Stubs, connected
from tests.faults.promises import MARGIN
from tests.faults.stage import Stage

PROMISE: Final = timedelta(seconds=1)
CLOCKS_DIFFER: Final = timedelta(milliseconds=50)  # those of two routers, and more than they do
WAIT: Final = 30.0  # as long as a claim may
CANCEL_ROUNDS: Final = int(os.environ.get("HOPPER_CANCEL_ROUNDS", "30"))


@pytest.fixture
def stubs(stage: Stage) -> Iterator[tuple[Stubs, Stubs]]:
    """The first router and the last; on SQLite they are the same."""
    with ExitStack() as stack:
        first, *_, last = (
            stack.enter_context(connected(address)) for address in (stage.addresses[0], stage.addresses[-1])
        )
        yield first, last
    with connected(stage.addresses[0]) as afterwards:  # routers may have been killed meanwhile
        call_off(afterwards)


def call_off(stubs: Stubs) -> None:
    """Call off what is left, so that the next test begins with an empty queue."""
    for task in stubs.tasks.ListTasks(ListTasksRequest(page_size=1000), timeout=60).tasks:
        stubs.tasks.CancelTask(CancelTaskRequest(name=task.name), timeout=60)


def submit(stubs: Stubs, title: str) -> Task:
    request = SubmitTaskRequest(parent=ROOT, spec=task_spec(title), request_id=str(uuid.uuid4()))
    return stubs.tasks.SubmitTask(request, timeout=60).task


def claim(stubs: Stubs, worker: str, *, lease: float = 60.0, wait: float = 0.0) -> Task:
    (task,) = stubs.work.ClaimTasks(claim_request(worker, lease=lease, wait=wait), timeout=60).tasks
    return task


def completion(task: Task, result: bytes, request_id: str = "") -> CompleteTasksRequest:
    return CompleteTasksRequest(
        completions=[Completion(claim=ref(task), result=result)], request_id=request_id
    )


def complete(stubs: Stubs, task: Task, result: bytes) -> ClaimResult:
    (answer,) = stubs.work.CompleteTasks(completion(task, result), timeout=60).results
    return answer


def read(stubs: Stubs, name: str) -> Task:
    request = GetTaskRequest(name=name, view=TaskView.TASK_VIEW_FULL)
    return stubs.tasks.GetTask(request, timeout=60).task


def lease_end(task: Task) -> datetime:
    return task.claim.lease_expire_time.ToDatetime(UTC)


# ---------------------------------------------------------------- workers that hang, and come late


def test_the_task_of_a_worker_that_hangs_is_anothers_soon_after_its_lease(
    stubs: tuple[Stubs, Stubs], figure: Callable[[str, object], None]
) -> None:
    first, last = stubs
    name = submit(first, "hangs").name
    lost = claim(first, "hanging", lease=1.0)
    won = claim(last, "waiting", wait=WAIT)
    waited = won.claim.start_time.ToDatetime(UTC) - lease_end(lost)
    figure("ready again after the lease's end", waited)
    assert (won.name, won.attempt) == (name, 2)
    assert -CLOCKS_DIFFER <= waited <= PROMISE + timedelta(microseconds=MARGIN)
    assert won.claim.fencing_token > lost.claim.fencing_token


def test_a_completion_after_the_lease_is_refused_and_the_winners_result_stands(
    stubs: tuple[Stubs, Stubs],
) -> None:
    first, last = stubs
    name = submit(first, "late").name
    lost = claim(first, "late", lease=1.0)
    won = claim(last, "next", wait=WAIT)
    for router in stubs:
        refusal = complete(router, lost, b"late").error
        assert (refusal.reason, refusal.metadata["holder"]) == ("STALE_TOKEN", "next")
    assert complete(last, won, b"next").updated.state == Task.STATE_SUCCEEDED
    for router in stubs:
        refusal = complete(router, lost, b"late").error
        assert (refusal.reason, refusal.metadata["state"]) == ("STALE_TOKEN", "SUCCEEDED")
        assert read(router, name).result == b"next"


def test_a_lease_is_over_when_it_is_over_whether_or_not_anybody_has_noticed(
    stubs: tuple[Stubs, Stubs],
) -> None:
    """Completed the moment its lease is over, before the reaper's next round."""
    first, last = stubs
    submit(first, "over")
    task = claim(first, "w", lease=5.0)
    refs = RenewClaimsRequest(claims=[ref(task)])
    refs.lease_duration.FromTimedelta(timedelta(seconds=5))
    end = lease_end(last.work.RenewClaims(refs, timeout=60).results[0].updated)
    while datetime.now(UTC) < end + timedelta(
        milliseconds=100
    ):  # the router's clock is steady, ours may be ahead
        assert read(last, task.name).attempt == 1
    answer = complete(last, task, b"r")
    assert answer.error.reason == "STALE_TOKEN"


def test_two_workers_of_one_name_are_two_owners(stubs: tuple[Stubs, Stubs]) -> None:
    first, last = stubs
    names = {submit(first, f"one name {number}").name for number in range(2)}
    # The short one last: it may have run out at once.
    other, one = claim(last, "same", lease=60.0), claim(first, "same", lease=1.0)
    assert {one.name, other.name} == names
    again = claim(last, "same", wait=WAIT)  # the first's lease runs out, and the other gets its task
    assert again.name == one.name
    assert complete(first, one, b"first").error.reason == "STALE_TOKEN"
    assert complete(last, again, b"second").updated.state == Task.STATE_SUCCEEDED
    assert complete(first, other, b"other").updated.state == Task.STATE_SUCCEEDED
    assert read(first, one.name).result == b"second"


# ---------------------------------------------------------------- cancel races complete


@pytest.mark.timeout(1200 + 3 * CANCEL_ROUNDS)
async def test_of_a_cancellation_and_a_completion_one_wins_and_both_are_told_so(
    stage: Stage, ledger: Ledger, chance: random.Random, figure: Callable[[str, object], None]
) -> None:
    at_rest = await asyncio.to_thread(prepare, stage.addresses[0])
    won = {"COMPLETE": 0, "CANCEL": 0}
    async with (
        AsyncHopper(stage.addresses[0], timeout=30.0) as worker,
        AsyncHopper(stage.addresses[-1], timeout=30.0) as canceller,
    ):
        for number in range(CANCEL_ROUNDS):
            name = await submitted(worker, ledger, f"cancelled or completed {number}")
            task = await claimed(worker, ledger)
            assert task.name == name
            head_start = chance.uniform(-0.004, 0.004)
            completed, cancelled = await asyncio.gather(
                after(head_start, lambda task=task: completing(worker, ledger, task)),  # type: ignore[misc]
                after(-head_start, lambda name=name: cancelling(canceller, ledger, name)),  # type: ignore[misc]
            )
            assert completed is not cancelled, name
            won["COMPLETE" if completed else "CANCEL"] += 1
            states = {
                (await hopper.tasks.GetTask(GetTaskRequest(name=name))).task.state
                for hopper in (worker, canceller)
            }
            assert states == {Task.STATE_SUCCEEDED if completed else Task.STATE_CANCELLED}
    figure("won", won)
    history = History.read([ledger.path])
    dump = await asyncio.to_thread(lambda: take_dump(stage.addresses[0], after=at_rest))
    assert check(history, dump).violations == []


async def after(seconds: float, call: Callable[[], Awaitable[bool]]) -> bool:
    await asyncio.sleep(max(0.0, seconds))
    return await call()


async def submitted(hopper: AsyncHopper, ledger: Ledger, title: str) -> str:
    call = ledger.asks(Kind.SUBMIT, title=title)
    name = (await hopper.tasks.SubmitTask(SubmitTaskRequest(parent=ROOT, spec=task_spec(title)))).task.name
    ledger.told(call, task=name)
    return name


async def claimed(hopper: AsyncHopper, ledger: Ledger) -> Task:
    call = ledger.asks(Kind.CLAIM, worker="w", lease=60.0)
    (task,) = (await hopper.work.ClaimTasks(claim_request("w"))).tasks
    ledger.told(call, grants=[grant_of(task)])
    return task


async def completing(hopper: AsyncHopper, ledger: Ledger, task: Task) -> bool:
    """Whether it was completed; if not, the refusal says that it was cancelled."""
    token = task.claim.fencing_token
    call = ledger.asks(Kind.COMPLETE, task=task.name, token=token, result=b"done".hex())
    (result,) = (await hopper.work.CompleteTasks(completion(task, b"done"))).results
    if not result.HasField("error"):
        ledger.told(call)
        return True
    ledger.refused(call, result.error.reason)
    assert (result.error.reason, result.error.metadata["state"]) == ("STALE_TOKEN", "CANCELLED")
    return False


async def cancelling(hopper: AsyncHopper, ledger: Ledger, name: str) -> bool:
    """Whether it was called off; if not, the refusal says that it has succeeded."""
    call = ledger.asks(Kind.CANCEL, task=name)
    try:
        await hopper.tasks.CancelTask(CancelTaskRequest(name=name))
    except (WrongState, LostRace) as error:
        refusal = error
    else:
        ledger.told(call)
        return True
    ledger.refused(call, refusal.reason)
    assert (refusal.reason, refusal.metadata["state"]) == ("TASK_WRONG_STATE", "SUCCEEDED")
    return False


# ---------------------------------------------------------------- an answer that comes too late


def test_who_gave_up_waiting_after_the_commit_gets_the_first_answer_again(
    stage: Stage, stubs: tuple[Stubs, Stubs]
) -> None:
    """
    Every answer comes a second after its commit; callers wait for a fifth of it, and ask again elsewhere.

    One that is held up itself may find its answer nevertheless; it asks again all the same.
    """
    router, (first, last) = stage.routers[0], stubs
    slow = "; ".join(f"router:{place}.after=sleep:1" for place in ("commit", "statement"))
    router.kill()
    stage.start(router, slow)
    try:
        submit_request = SubmitTaskRequest(
            parent=ROOT, spec=task_spec("given up on"), request_id=str(uuid.uuid4())
        )
        gives_up(lambda: first.tasks.SubmitTask(submit_request, timeout=0.2))
        submitted = last.tasks.SubmitTask(submit_request, timeout=60).task
        claim_for: ClaimTasksRequest = claim_request("w", request_id=str(uuid.uuid4()))
        gives_up(lambda: first.work.ClaimTasks(claim_for, timeout=0.2))
        (task,) = last.work.ClaimTasks(claim_for, timeout=60).tasks
        done = completion(task, b"r", str(uuid.uuid4()))
        gives_up(lambda: first.work.CompleteTasks(done, timeout=0.2))
        (result,) = last.work.CompleteTasks(done, timeout=60).results
    finally:
        stage.calm()
    assert task.name == submitted.name
    assert result.updated.state == Task.STATE_SUCCEEDED
    events = [event for event in take_dump(stage.addresses[0]).events if event.task == task.name]
    kinds = [event.kind for event in events if event.kind in ("SUBMIT", "CLAIM", "COMPLETE")]
    assert kinds == ["SUBMIT", "CLAIM", "COMPLETE"]
    titles = [one.title for one in take_dump(stage.addresses[0]).tasks]
    assert titles.count("given up on") == 1


def gives_up(call: Callable[[], Message]) -> None:
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
