"""WorkService over real gRPC: claims, leases, ends, limits, long polls, and the stream."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as svc
from hopper_common.sqlite import SqliteDatabase
from hopper_router.errors import TaskNotFound
from hopper_router.hot import Want
from hopper_router.hub import Hub
from hopper_router.model import InstanceState, Project, Scope
from hopper_router.unit import Unit
from tests.router.harness import (
    HOUR,
    MINUTE,
    NOW,
    ROOT,
    SECOND,
    Code,
    Reason,
    Router,
    State,
    ref,
    refusal,
    until,
    violations,
)

PATIENCE = 60.0
"""Seconds for what takes none: long enough for any machine, and under any load."""


def seconds(number: int) -> Duration:
    return Duration(seconds=number)


def lease_end(task: pb.Task) -> Any:
    return task.claim.lease_expire_time.ToDatetime(NOW.tzinfo)


async def renew(router: Router, *claimed: pb.Task, **fields: Any) -> list[svc.ClaimResult]:
    request = svc.RenewClaimsRequest(claims=map(ref, claimed), **fields)
    return list((await router.work.RenewClaims(request)).results)


async def progress(router: Router, claimed: pb.Task, fraction: float, **fields: Any) -> pb.Task:
    request = svc.ReportProgressRequest(claim=ref(claimed), progress=pb.Progress(fraction=fraction), **fields)
    return (await router.work.ReportProgress(request)).task


async def release(router: Router, claimed: pb.Task, **fields: Any) -> pb.Task:
    return (await router.work.ReleaseTask(svc.ReleaseTaskRequest(claim=ref(claimed), **fields))).task


async def ask(router: Router, claimed: pb.Task) -> pb.Task:
    request = svc.RequestInputRequest(claim=ref(claimed), input=pb.InputRequest(question="?"))
    return (await router.work.RequestInput(request)).task


# ---------------------------------------------------------------- claiming


async def test_claims_come_by_priority_and_then_by_age(router: Router) -> None:
    web = router.registry.project("web")
    titles = []
    for number, priority in enumerate([50, 90, 10, 90, 50, 0, 100]):
        await router.submit(str(number), priority=priority)
        router.clock.advance(SECOND)
    while claimed := await router.claim(web, max_tasks=3):
        titles += [task.spec.title for task in claimed]
    assert titles == ["6", "1", "3", "0", "4", "2", "5"]


async def test_what_was_ready_longer_comes_first(router: Router) -> None:
    """A task whose time has come later is behind one of the same priority that was ready before."""
    web = router.registry.project("web")
    scheduled = pb.Clocks()
    scheduled.start_after.FromDatetime(NOW + MINUTE)
    await router.submit("scheduled", clocks=scheduled)
    router.clock.advance(SECOND)
    await router.submit("later")
    await router.pass_time(HOUR)
    assert [task.spec.title for task in await router.claim(web, max_tasks=2)] == ["later", "scheduled"]


async def test_a_claim_shows_everything_to_the_claimant_only(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit("t", payload=b"p", description="d")
    claimed = await router.claim_one(web)
    assert (claimed.spec.payload, claimed.spec.description, claimed.claim.worker) == (b"p", "d", "ann")
    assert (claimed.claim.fencing_token, claimed.attempt, claimed.state) == (1, 1, State.STATE_RUNNING)
    assert lease_end(claimed) == NOW + MINUTE
    assert not claimed.HasField("wait")
    seen = await router.get(claimed, pb.TASK_VIEW_FULL)
    assert (seen.claim.worker, seen.claim.fencing_token) == ("ann", 0)
    (kept,) = await renew(router, claimed)
    assert kept.updated.claim.fencing_token == 0


async def test_no_task_is_claimed_twice(router: Router) -> None:
    web = router.registry.project("web")
    for _ in range(30):
        await router.submit()
    claims = await asyncio.gather(*(router.claim(web, f"w{n}", max_tasks=n % 4 + 1) for n in range(25)))
    names = [task.name for claim in claims for task in claim]
    assert len(names) == len(set(names)) == 30
    assert await router.claim(web) == []


async def test_an_instance_queue_has_what_is_queued_there(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    desk = router.registry.instance("desk", Scope.PERSONAL)
    await router.submit("desk", parent=desk)
    await router.submit("team", required_capabilities=["html"])
    assert [task.spec.title for task in await router.claim(desk, max_tasks=5)] == ["desk"]
    assert [task.spec.title for task in await router.claim(team, max_tasks=5)] == ["team"]
    assert await router.claim(web) == []


async def test_queues_that_are_none(router: Router) -> None:
    await refusal(router.claim("projects/none"), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none")
    await refusal(
        router.claim("instances/none"), Code.NOT_FOUND, "INSTANCE_NOT_FOUND", instance="instances/none"
    )
    assert set(await violations(router.claim(ROOT))) == {"queue"}
    web = router.registry.project("web")
    assert set(await violations(router.claim(web, ""))) == {"worker"}
    assert set(await violations(router.claim(web, max_tasks=101, wait=seconds(31)))) == {"max_tasks", "wait"}
    assert set(await violations(router.claim(web, lease_duration=seconds(3601)))) == {"lease_duration"}
    router.registry.hidden["projects/new"] = Project("projects/new")
    assert await router.claim("projects/new") == []


async def test_only_members_claim_and_the_first_has_it(router: Router) -> None:
    family = router.registry.instance("home", Scope.FAMILY, members=frozenset({"ann", "bob"}))
    task = await router.submit(parent=family)
    for queue_call in ({}, {"task": task.name}):
        await refusal(
            router.claim(family, "eve", **queue_call),
            Code.PERMISSION_DENIED,
            "NOT_A_MEMBER",
            instance=family,
            worker="eve",
        )
    claims = await asyncio.gather(router.claim(family, "ann"), router.claim(family, "bob"))
    assert sorted(len(claim) for claim in claims) == [0, 1]
    winner = next(claim[0] for claim in claims if claim).claim.worker
    loser = ({"ann", "bob"} - {winner}).pop()
    await refusal(
        router.claim(family, loser, task=task.name),
        Code.ABORTED,
        "TASK_CLAIMED",
        task=task.name,
        holder=winner,
        lease_expire_time=(NOW + MINUTE).isoformat().replace("+00:00", "Z"),
    )


async def test_a_personal_queue_is_its_persons(router: Router) -> None:
    desk = router.registry.instance("desk", Scope.PERSONAL, members=frozenset({"ann"}))
    await router.submit(parent=desk)
    await refusal(
        router.claim(desk, "bob"), Code.PERMISSION_DENIED, "NOT_A_MEMBER", instance=desk, worker="bob"
    )
    assert len(await router.claim(desk, "ann")) == 1


async def test_a_projects_worker_does_not_get_around_a_family(router: Router) -> None:
    """What is routed to a project but queued in an instance with members is for the members."""
    project = router.registry.project("home", "cook")
    family = router.registry.instance("home", Scope.FAMILY, project=project, members=frozenset({"ann"}))
    top = await router.submit(required_capabilities=["cook"])
    child = await router.child_of(top)
    assert await router.claim(project, "eve") == []
    await refusal(
        router.claim(project, "eve", task=child.name),
        Code.PERMISSION_DENIED,
        "NOT_A_MEMBER",
        instance=family,
        worker="eve",
    )
    assert (await router.claim_one(project, "ann")).name == child.name


async def test_claiming_one_by_name(router: Router) -> None:
    web = router.registry.project("web", "html")
    app = router.registry.project("app", "swift")
    task = await router.submit(required_capabilities=["html"])
    urgent = await router.submit(required_capabilities=["html"], priority=100)
    ghost = f"{ROOT}/tasks/none"
    await refusal(router.claim(web, task=ghost), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost)
    await refusal(router.claim(app, task=task.name), Code.NOT_FOUND, "TASK_NOT_FOUND", task=task.name)
    once = str(uuid4())
    claimed = await router.claim_one(web, task=task.name, request_id=once)
    assert claimed.name == task.name
    assert await router.claim_one(web, task=task.name, request_id=once) == claimed
    await refusal(
        router.claim(web, "bob", task=task.name),
        Code.ABORTED,
        "TASK_CLAIMED",
        task=task.name,
        holder="ann",
        lease_expire_time=(NOW + MINUTE).isoformat().replace("+00:00", "Z"),
    )
    await router.complete(claimed)
    await refusal(
        router.claim(web, task=task.name),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=task.name,
        state="SUCCEEDED",
        event="CLAIM",
    )
    assert (await router.claim_one(web)).name == urgent.name


async def test_a_router_whose_clock_is_behind_hands_out_what_another_took_in(router: Router) -> None:
    router.registry.project("web")
    task = await router.submit("a", project="projects/web")
    router.clock.time -= timedelta(milliseconds=40)
    claimed = await router.claim_one("projects/web", task=task.name)
    assert claimed.claim.start_time == task.create_time


async def test_a_repeated_claim_gets_the_same_tasks(router: Router) -> None:
    web = router.registry.project("web")
    once = str(uuid4())
    assert (
        await router.claim(web, max_tasks=2, request_id=once) == []
    )  # not remembered: it may be asked again
    for _ in range(4):
        await router.submit()
    first = await router.claim(web, max_tasks=2, request_id=once)
    assert len(first) == 2
    assert await router.claim(web, max_tasks=2, request_id=once) == first
    assert len(await router.claim(web, max_tasks=9)) == 2


# ---------------------------------------------------------------- limits and standstill


@pytest.mark.parametrize("of", ["project", "instance"])
async def test_no_more_run_than_may_however_many_ask(router: Router, of: str) -> None:
    web = router.registry.project("web", max_running=3 if of == "project" else 0)
    team = router.registry.instance(
        "web", Scope.ORCHESTRATION, project=web, max_workers=3 if of == "instance" else 0
    )
    queue, full = (web, web) if of == "project" else (team, team)
    for _ in range(12):
        await router.submit(parent=team)
    most = 0
    running: list[pb.Task] = []
    for _ in range(6):
        claims = await asyncio.gather(*(router.claim(queue, f"w{n}", max_tasks=n + 1) for n in range(5)))
        running += [task for claim in claims for task in claim]
        most = max(most, len(running))
        if running:
            waiting = await router.found(states=[State.STATE_QUEUED])
            for task in waiting:
                assert (task.wait.reason, list(task.wait.on)) == (Reason.REASON_CAPACITY, [full])
            await router.complete(running.pop())
    assert most == 3
    blocked = (await router.found(states=[State.STATE_QUEUED]))[0]
    assert len(await router.claim(queue, max_tasks=9)) == 1
    await refusal(
        router.claim(queue, task=(await router.found(states=[State.STATE_QUEUED]))[0].name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=(await router.found(states=[State.STATE_QUEUED]))[0].name,
        wait="CAPACITY",
    )
    assert blocked.state == State.STATE_QUEUED


async def test_a_question_makes_room(router: Router) -> None:
    web = router.registry.project("web", max_running=1)
    for _ in range(2):
        await router.submit()
    first = await router.claim_one(web)
    assert await router.claim(web) == []
    await ask(router, first)
    assert len(await router.claim(web)) == 1


async def test_one_full_run_does_not_hold_up_the_project(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    full = router.registry.instance("full", Scope.ORCHESTRATION, team, max_workers=1)
    for _ in range(3):
        await router.submit("in the run", parent=full, priority=90)
    await router.submit("elsewhere", parent=team)
    titles = []
    for _ in range(3):
        titles += [task.spec.title for task in await router.claim(web)]
    assert titles == ["in the run", "elsewhere"]


async def test_a_paused_project_hands_nothing_out(router: Router) -> None:
    web = router.registry.project("web")
    task, running = await router.submit("a"), await router.submit("b", priority=90)
    worked = await router.claim_one(web)
    assert worked.name == running.name
    router.registry.change(web, paused=True)
    assert await router.claim(web) == []
    waiting = await router.get(task)
    assert (waiting.wait.reason, list(waiting.wait.on)) == (Reason.REASON_PROJECT, [web])
    await refusal(
        router.claim(web, task=task.name),
        Code.FAILED_PRECONDITION,
        "PROJECT_PAUSED",
        project=web,
        state="PAUSED",
    )
    (done,) = await router.complete(worked)
    assert done.updated.state == State.STATE_SUCCEEDED
    router.registry.change(web, paused=False)
    assert (await router.claim_one(web)).name == task.name


@pytest.mark.parametrize("level", ["own", "above"])
@pytest.mark.parametrize("state", [s for s in InstanceState if s is not InstanceState.RUNNING])
async def test_an_instance_that_stands_still_hands_nothing_out(
    router: Router, level: str, state: InstanceState
) -> None:
    web, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    task, running = await router.submit(parent=run), await router.submit(parent=run, priority=90)
    worked = await router.claim_one(run)
    assert worked.name == running.name
    halted = run if level == "own" else team
    router.registry.change(halted, state=state)
    assert await router.claim(run) == []
    assert await router.claim(web) == []
    waiting = await router.get(task)
    assert (waiting.wait.reason, list(waiting.wait.on)) == (Reason.REASON_INSTANCE, [halted])
    for queue in (run, web):
        await refusal(
            router.claim(queue, task=task.name),
            Code.FAILED_PRECONDITION,
            "INSTANCE_NOT_RUNNING",
            instance=halted,
            state=state.value,
        )
    (done,) = await router.complete(worked)
    assert done.updated.state == State.STATE_SUCCEEDED
    router.registry.change(halted, state=InstanceState.RUNNING)
    assert (await router.claim_one(run)).name == task.name


# ---------------------------------------------------------------- leases


async def test_a_lease_that_runs_out_frees_the_task_for_another(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    lost = await router.claim_one(web, lease_duration=seconds(10))
    await router.pass_time(10 * SECOND)
    found = await router.claim_one(web, "bob")
    assert (found.name, found.claim.fencing_token, found.attempt) == (lost.name, 2, 2)
    assert found.failure.reason == "LEASE_EXPIRED"
    stale = {"task": lost.name, "state": "RUNNING", "holder": "bob"}
    for (result,) in (await router.complete(lost), await renew(router, lost)):
        assert (result.error.code, result.error.reason, dict(result.error.metadata)) == (
            10,
            "STALE_TOKEN",
            stale,
        )
    calls: list[Any] = [
        lambda: router.fail(lost),
        lambda: release(router, lost),
        lambda: progress(router, lost, 0.5),
        lambda: ask(router, lost),
    ]
    for call in calls:
        await refusal(call(), Code.ABORTED, "STALE_TOKEN", **stale)
    (done,) = await router.complete(found, result=b"bob's")
    assert done.updated.state == State.STATE_SUCCEEDED
    assert (await router.get(found, pb.TASK_VIEW_FULL)).result == b"bob's"
    (late,) = await router.complete(lost, result=b"ann's")
    assert dict(late.error.metadata) == {"task": lost.name, "state": "SUCCEEDED"}


async def test_a_lease_is_over_before_anybody_has_swept(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    claimed = await router.claim_one(web, lease_duration=seconds(10))
    router.clock.advance(10 * SECOND)
    (late,) = await router.complete(claimed)
    assert dict(late.error.metadata) == {"task": claimed.name, "state": "RUNNING"}


async def test_renewing_keeps_a_task(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    claimed = await router.claim_one(web, lease_duration=seconds(10))
    for _ in range(5):
        await router.pass_time(9 * SECOND)
        (kept,) = await renew(router, claimed, lease_duration=seconds(10))
        assert lease_end(kept.updated) == router.clock.now() + 10 * SECOND
    (shorter,) = await renew(router, claimed, lease_duration=seconds(1))
    assert lease_end(shorter.updated) == router.clock.now() + 10 * SECOND
    (default,) = await renew(router, claimed)
    assert lease_end(default.updated) == router.clock.now() + 60 * SECOND  # work_service.proto: default 60 s
    assert (await router.get(claimed)).state == State.STATE_RUNNING


async def test_the_heartbeat_clock_caps_every_lease(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit(clocks=pb.Clocks(heartbeat=seconds(20)))
    claimed = await router.claim_one(web, lease_duration=seconds(3600))
    assert lease_end(claimed) == NOW + 20 * SECOND
    router.clock.advance(SECOND)
    (kept,) = await renew(router, claimed, lease_duration=seconds(3600))
    assert lease_end(kept.updated) == NOW + 21 * SECOND
    router.clock.advance(SECOND)
    reported = await progress(router, claimed, 0.5, lease_duration=seconds(3600))
    assert lease_end(reported) == NOW + 22 * SECOND


async def test_progress_is_shown_and_extends_the_lease(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    claimed = await router.claim_one(web)
    router.clock.advance(30 * SECOND)
    reported = await progress(router, claimed, 0.25)
    assert (reported.progress.fraction, lease_end(reported)) == (0.25, NOW + 90 * SECOND)
    assert (await router.get(claimed)).progress.fraction == 0.25
    assert set(await violations(progress(router, claimed, 1.5))) == {"progress.fraction"}
    again = await release(router, claimed)
    assert not again.HasField("progress")


async def test_run_for_ends_an_attempt(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit(clocks=pb.Clocks(run_for=seconds(60)), retry=pb.RetryPolicy(max_attempts=1))
    claimed = await router.claim_one(web, lease_duration=seconds(3600))
    await router.pass_time(MINUTE)
    ended = await router.get(claimed)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "RUN_TIMEOUT")


# ---------------------------------------------------------------- ends


async def test_failures_back_off_and_use_attempts_up(router: Router) -> None:
    web = router.registry.project("web")
    retry = pb.RetryPolicy(max_attempts=3, first_backoff=seconds(10), factor=3)
    await router.submit(retry=retry)
    for wait in (10, 30):
        failed = await router.fail(await router.claim_one(web), "BUSY", message="later")
        assert (failed.state, failed.wait.reason) == (State.STATE_QUEUED, Reason.REASON_BACKOFF)
        assert failed.wait.until.ToDatetime(NOW.tzinfo) == router.clock.now() + wait * SECOND
        assert failed.failure.message == "later"
        await router.pass_time(wait * SECOND - timedelta(microseconds=1))
        assert await router.claim(web) == []
        await refusal(
            router.claim(web, task=failed.name),
            Code.FAILED_PRECONDITION,
            "TASK_NOT_READY",
            task=failed.name,
            wait="BACKOFF",
        )
        await router.pass_time(timedelta(microseconds=1))
    last = await router.claim_one(web)
    assert last.attempt == 3
    ended = await router.fail(last)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "BUSY")


async def test_a_back_off_that_ends_before_it_is_written_is_not_forgotten(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit has said that the task waits: whoever follows it must not go by a later time, and take it for ready."""
    web = router.registry.project("web")
    await router.submit(retry=pb.RetryPolicy(first_backoff=seconds(1)))
    worked = await router.claim_one(web)
    write = router.db.write

    async def slowly(work: Any) -> Any:
        written = await write(work)
        router.clock.advance(2 * SECOND)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(router.db, "write", slowly)
        await router.fail(worked)
    assert (await router.claim_one(web)).name == worked.name


async def test_a_failure_that_is_permanent_or_named_so_is_the_last(router: Router) -> None:
    web = router.registry.project("web")
    for fields in ({"permanent": True}, {"reason": "NO_SUCH_FILE"}):
        await router.submit(retry=pb.RetryPolicy(non_retryable_reasons=["NO_SUCH_FILE"]))
        assert (await router.fail(await router.claim_one(web), **fields)).state == State.STATE_FAILED
    await router.submit()
    claimed = await router.claim_one(web)
    assert set(await violations(router.fail(claimed, ""))) == {"failure.reason"}
    assert set(await violations(router.fail(claimed, "two words"))) == {"failure.reason"}


async def test_a_released_task_is_ready_at_once_and_the_attempt_does_not_count(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit(retry=pb.RetryPolicy(max_attempts=1))
    for turn in range(1, 4):
        claimed = await router.claim_one(web)
        assert (claimed.claim.fencing_token, claimed.attempt) == (turn, 1)
        once = str(uuid4())
        released = await release(router, claimed, request_id=once, reason="shift is over")
        assert (released.state, released.attempt) == (State.STATE_QUEUED, 0)
        assert await release(router, claimed, request_id=once, reason="shift is over") == released


async def test_each_claim_of_a_batch_is_on_its_own(router: Router) -> None:
    web = router.registry.project("web")
    for _ in range(5):
        await router.submit()
    a, b, c, d, e = await router.claim(web, max_tasks=5)
    await router.cancel(b)
    wrong = pb.Task(name=c.name, claim=pb.Claim(fencing_token=99))
    ghost = pb.Task(name=f"{ROOT}/tasks/none", claim=pb.Claim(fencing_token=1))
    batch = [a, b, wrong, ghost, d, d, e]
    kept = await renew(router, *batch)
    assert [r.WhichOneof("result") for r in kept] == [
        *("updated", "error", "error", "error"),
        *["updated"] * 3,
    ]
    results = await router.complete(*batch)
    assert [result.task for result in results] == [task.name for task in batch]
    assert [r.WhichOneof("result") for r in results] == [
        *("updated", "error", "error", "error", "updated", "error", "updated")
    ]
    assert [(r.error.code, r.error.reason) for r in results if r.HasField("error")] == [
        (10, "STALE_TOKEN"),
        (10, "STALE_TOKEN"),
        (5, "TASK_NOT_FOUND"),
        (10, "STALE_TOKEN"),
    ]
    states = {task.name: task.state for task in await router.found(states=list(State.values())[1:])}
    assert [states[task.name] for task in (a, b, c, d, e)] == [
        State.STATE_SUCCEEDED,
        State.STATE_CANCELLED,
        State.STATE_RUNNING,
        State.STATE_SUCCEEDED,
        State.STATE_SUCCEEDED,
    ]


async def test_repeats_of_ends_get_the_first_answer(router: Router) -> None:
    web = router.registry.project("web")
    for _ in range(2):
        await router.submit()
    done, failed = await router.claim(web, max_tasks=2)
    request = svc.CompleteTasksRequest(completions=[svc.Completion(claim=ref(done))], request_id=str(uuid4()))
    first = await router.work.CompleteTasks(request)
    assert first.results[0].HasField("updated")
    assert await router.work.CompleteTasks(request) == first
    broken = svc.FailTaskRequest(
        claim=ref(failed), failure=pb.Failure(reason="BUSY"), request_id=str(uuid4())
    )
    answer = await router.work.FailTask(broken)
    await router.pass_time(HOUR)
    assert await router.work.FailTask(broken) == answer


async def test_a_batch_of_a_thousand(router: Router) -> None:
    web = router.registry.project("web")
    items = [task_svc.SubmitTasksItem(spec=pb.TaskSpec(title="x"))] * 1000
    await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))
    claimed: list[pb.Task] = []
    while more := await router.claim(web, max_tasks=100):
        claimed += more
    assert len({task.name for task in claimed}) == 1000
    assert all(result.HasField("updated") for result in await router.complete(*claimed))
    assert await router.found() == []


# ---------------------------------------------------------------- waiting for work


@asynccontextmanager
async def waiting(
    router: Router, queue: str, worker: str = "ann", **fields: Any
) -> AsyncIterator[asyncio.Task[Any]]:
    """A long poll that has come to wait."""
    before = len(router.engine.hub._waiting.get(queue, ()))
    poll = asyncio.ensure_future(router.claim(queue, worker, **{"wait": seconds(30), **fields}))

    async def registered() -> bool:
        return len(router.engine.hub._waiting.get(queue, ())) > before or poll.done()

    await until(registered)
    await router.followed()  # so that nothing but what the test does wakes it
    # It has looked, and asked for the next time, when what we ask for after it has been answered.
    await router.db.write(lambda conn: None)
    for _ in range(4):
        await router.db.read(lambda conn: None)
    try:
        yield poll
    finally:
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)


async def test_a_refusal_of_what_nobody_waits_for_any_more_is_no_error(router: Router) -> None:
    """Its caller has gone while it was under way."""
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context["message"]))

    def work(_: Unit) -> None:
        raise TaskNotFound(task="instances/global/tasks/1")

    calling = asyncio.create_task(router.engine.run(work))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    for _ in range(3):
        await router.db.write(lambda conn: None)  # after it
    gc.collect()
    assert said == []


async def test_a_waiting_worker_has_a_new_task_at_once(live_router: Router) -> None:
    """It is told: it does not look by itself."""
    router = live_router
    web = router.registry.project("web")
    for _ in range(5):
        async with waiting(router, web) as poll:
            task = await router.submit()
            (claimed,) = await poll
            assert claimed.name == task.name
        await router.complete(claimed)


async def test_every_waiting_worker_has_one(live_router: Router) -> None:
    """As many are woken as there are tasks, though claims and submissions cross."""
    router = live_router
    web = router.registry.project("web")
    for _ in range(4):
        polls = [asyncio.ensure_future(router.claim(web, f"w{n}", wait=seconds(30))) for n in range(12)]
        await asyncio.gather(*(router.submit() for _ in range(12)))
        claims = await asyncio.gather(*polls)
        assert [len(claim) for claim in claims] == [1] * 12


@pytest.mark.parametrize("engine_kind", ["sqlite"])  # it blocks SQLite's writer to order what comes
async def test_a_wake_up_is_not_lost_with_the_worker_that_got_it(live_router: Router) -> None:
    """
    One commit: ann claims the one task there is, bob finds nothing, and another task comes.

    The new task may wake ann, who came first but has work by now; bob must hear of it all the same.
    """
    router = live_router
    web = router.registry.project("web")
    await router.submit("first")
    assert isinstance(router.db, SqliteDatabase)
    writer, busy, gate = router.db._writer, threading.Event(), threading.Event()

    def block(_: Any) -> bool:
        busy.set()
        return gate.wait(PATIENCE)

    blocker = asyncio.ensure_future(router.db.write(block))
    assert await asyncio.to_thread(busy.wait, PATIENCE)
    calls: list[asyncio.Future[Any]] = []
    for worker in ("ann", "bob", ""):
        call = router.claim(web, worker, wait=seconds(30)) if worker else router.submit("second")
        calls.append(asyncio.ensure_future(call))
        while writer._queue.qsize() + len(router.engine.hot._claims) < len(calls):  # noqa: ASYNC110 - a queue of threads; in this order
            await asyncio.sleep(0)
    gate.set()
    ann, bob, _ = await asyncio.gather(*calls)
    assert [task.spec.title for task in (*ann, *bob)] == ["first", "second"]
    assert await blocker is True


async def test_a_worker_that_leaves_passes_its_wake_up_on() -> None:
    hub = Hub()
    first, second, third = hub.waiting("q"), hub.waiting("q"), hub.waiting("q")
    hub.wake({"q": 1})
    assert (first.done(), second.done()) == (True, False)
    hub.leave("q", first, looks_again=False)
    assert (second.done(), third.done()) == (True, False)
    hub.leave("q", second, looks_again=True)
    hub.leave("q", third, looks_again=False)
    assert hub._waiting == {}


@pytest.mark.parametrize(
    "how", ["unblock", "dependency", "release", "retry", "resume project", "resume instance", "room"]
)
async def test_a_waiting_worker_hears_of_what_gets_ready(live_router: Router, how: str) -> None:
    router = live_router
    web = router.registry.project("web", max_running=1 if how == "room" else 0)
    task = await router.submit("waits", retry=pb.RetryPolicy(first_backoff=Duration()))
    helper = router.registry.instance("desk", Scope.PERSONAL)
    first = await router.submit("first", parent=helper)

    async def nothing() -> None: ...

    free: Any = nothing
    if how == "unblock":
        await router.tasks.BlockTask(task_svc.BlockTaskRequest(name=task.name, hold=pb.Hold(by="cleo")))
        request = task_svc.UnblockTaskRequest(name=task.name)
        free = lambda: router.tasks.UnblockTask(request)  # noqa: E731
    elif how == "dependency":
        await router.update(task, dependencies=[first.name])
        worked = await router.claim_one(helper)
        free = lambda: router.complete(worked)  # noqa: E731
    elif how in ("release", "retry", "room"):
        worked = await router.claim_one(web, "bob")
        free = {"release": lambda: release(router, worked), "retry": lambda: router.fail(worked)}.get(
            how, lambda: router.complete(worked)
        )
        if how == "room":
            task = await router.submit("second")
    elif how == "resume project":
        router.registry.change(web, paused=True)

        async def free() -> None:
            router.registry.change(web, paused=False)

    else:
        router.registry.change(ROOT, state=InstanceState.PAUSED)

        async def free() -> None:
            router.registry.change(ROOT, state=InstanceState.RUNNING)

    async with waiting(router, web) as poll:
        await free()
        (claimed,) = await poll
        assert claimed.name == task.name


async def test_a_waiting_worker_has_a_retried_task_when_its_back_off_ends(live_router: Router) -> None:
    """The back-off begins after the worker has come to wait, which does not look by itself."""
    router = live_router
    web = router.registry.project("web")
    await router.submit(retry=pb.RetryPolicy(first_backoff=Duration(nanos=300_000_000)))
    worked = await router.claim_one(web, "bob")
    async with waiting(router, web) as poll:
        started = time.perf_counter()
        await router.fail(worked)
        (claimed,) = await poll
        assert time.perf_counter() - started > 0.25
        assert claimed.name == worked.name


async def test_a_poll_that_finds_nothing_ends_in_time(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    started = time.perf_counter()
    assert await router.claim(web, wait=Duration(nanos=200_000_000)) == []
    assert time.perf_counter() - started > 0.15
    assert router.engine.hub._waiting == {}


async def test_polls_answer_when_the_router_stops(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    async with waiting(router, web) as poll:
        began = time.perf_counter()
        router.engine.stop()
        assert await poll == []
        assert time.perf_counter() - began < 25  # of the thirty seconds that it would have waited


async def test_a_poll_whose_project_goes_says_so(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    async with waiting(router, web) as poll:
        router.registry.remove(web)
        await refusal(poll, Code.NOT_FOUND, "PROJECT_NOT_FOUND", project=web)


# ---------------------------------------------------------------- the stream


class Stream:
    """A worker's end of Work."""

    def __init__(self, router: Router) -> None:
        self._call = router.work.Work()

    async def say(self, **message: Any) -> None:
        await self._call.write(svc.WorkRequest(**message))

    async def hear(self) -> svc.WorkResponse:
        async with asyncio.timeout(PATIENCE):
            answer = await self._call.read()
        assert isinstance(answer, svc.WorkResponse)
        return answer

    async def assigned(self) -> list[pb.Task]:
        answer = await self.hear()
        assert answer.WhichOneof("message") == "assigned"
        return list(answer.assigned.tasks)

    async def answered(self) -> list[svc.ClaimResult]:
        answer = await self.hear()
        assert answer.WhichOneof("message") == "answer"
        return list(answer.answer.results)

    async def end(self) -> Any:
        """Close this side, and wait for the other."""
        await self._call.done_writing()
        async with asyncio.timeout(PATIENCE):
            return await self._call.read()

    def cancel(self) -> None:
        self._call.cancel()

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(PATIENCE):
            return await self._call.code()

    async def refused(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._call.read()


async def opened(router: Router, queue: str, **fields: Any) -> Stream:
    stream = Stream(router)
    await stream.say(open=svc.WorkOpen(queue=queue, worker="ann", **fields))
    return stream


async def test_a_stream_assigns_renews_and_ends(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    stream = await opened(router, web, lease_duration=seconds(30))
    await stream.say(slots=svc.WorkSlots(free=2))
    first = await router.submit("first", payload=b"p")
    (a,) = await stream.assigned()
    assert (a.name, a.spec.payload, a.claim.worker) == (first.name, b"p", "ann")
    assert a.claim.fencing_token > 0
    await stream.say(renew=svc.RenewClaimsRequest(claims=[ref(a)], lease_duration=seconds(90)))
    (kept,) = await stream.answered()
    assert lease_end(kept.updated) > lease_end(a)
    await stream.say(progress=svc.ReportProgressRequest(claim=ref(a), progress=pb.Progress(fraction=0.5)))
    (said,) = await stream.answered()
    assert said.updated.progress.fraction == 0.5
    await stream.say(
        complete=svc.CompleteTasksRequest(completions=[svc.Completion(claim=ref(a), result=b"r")])
    )
    (done,) = await stream.answered()
    assert done.updated.state == State.STATE_SUCCEEDED
    for message in ("renew", "complete", "fail", "release", "progress"):
        body: Any = {
            "renew": svc.RenewClaimsRequest(claims=[ref(a)]),
            "complete": svc.CompleteTasksRequest(completions=[svc.Completion(claim=ref(a))]),
            "fail": svc.FailTaskRequest(claim=ref(a), failure=pb.Failure(reason="X")),
            "release": svc.ReleaseTaskRequest(claim=ref(a)),
            "progress": svc.ReportProgressRequest(claim=ref(a), progress=pb.Progress()),
        }[message]
        await stream.say(**{message: body})
        (late,) = await stream.answered()
        assert (late.task, late.error.reason, late.error.code) == (a.name, "STALE_TOKEN", 10)
    await router.submit("second")
    (b,) = await stream.assigned()
    await stream.say(fail=svc.FailTaskRequest(claim=ref(b), failure=pb.Failure(reason="X", permanent=True)))
    (failed,) = await stream.answered()
    assert failed.updated.state == State.STATE_FAILED
    assert await stream.end() == grpc.aio.EOF
    assert await stream.code() == Code.OK


async def test_slots_bound_what_is_assigned(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    for _ in range(6):
        await router.submit()
    stream = await opened(router, web)
    await stream.say(slots=svc.WorkSlots(free=2))
    got = await stream.assigned()
    while len(got) < 2:
        got += await stream.assigned()
    await stream.say(renew=svc.RenewClaimsRequest(claims=map(ref, got)))
    assert len(await stream.answered()) == 2  # and no third task before it
    assert len(await router.found(states=[State.STATE_RUNNING])) == 2
    await stream.say(slots=svc.WorkSlots(free=3))
    while len(got) < 5:
        got += await stream.assigned()
    assert len(got) == 5
    stream.cancel()


async def test_slots_replace_what_was_said_before(live_router: Router) -> None:
    """A worker that has no more room is sent nothing, though it was waiting for work when it said so."""
    router = live_router
    web = router.registry.project("web")
    await router.followed()  # which sends everybody to look
    stream = await opened(router, web)
    await stream.say(slots=svc.WorkSlots(free=5))

    async def polling() -> bool:
        return bool(router.engine.hub._waiting.get(web))

    await until(polling)
    await stream.say(slots=svc.WorkSlots(free=0))
    ghost = pb.Task(name=f"{ROOT}/tasks/none", claim=pb.Claim(fencing_token=1))
    await stream.say(renew=svc.RenewClaimsRequest(claims=[ref(ghost)]))
    await stream.answered()  # so the slots have been heard

    async def idle() -> bool:
        return not router.engine.hub._waiting.get(web)

    await until(idle)
    task = await router.submit()
    assert (await router.get(task)).state == State.STATE_QUEUED
    await stream.say(slots=svc.WorkSlots(free=1))
    assert [each.name for each in await stream.assigned()] == [task.name]
    stream.cancel()


async def test_a_stream_begins_with_open_once(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    early = Stream(router)
    await early.say(slots=svc.WorkSlots(free=1))
    assert set(await violations(early.refused())) == {"open"}
    empty = Stream(router)
    assert set(await violations(empty.end())) == {"open"}
    twice = await opened(router, web)
    await twice.say(open=svc.WorkOpen(queue=web, worker="ann"))
    assert set(await violations(twice.refused())) == {"message"}
    bad = await opened(router, web)
    await bad.say(renew=svc.RenewClaimsRequest())
    assert set(await violations(bad.refused())) == {"renew.claims"}


async def test_a_stream_for_a_queue_that_is_none(live_router: Router) -> None:
    router = live_router
    stream = await opened(router, "projects/none")
    await stream.say(slots=svc.WorkSlots(free=1))
    await refusal(stream.refused(), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none")


async def test_claims_outlive_their_stream(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    await router.submit()
    first = await opened(router, web)
    await first.say(slots=svc.WorkSlots(free=1))
    (task,) = await first.assigned()
    first.cancel()
    second = await opened(router, web)
    await second.say(renew=svc.RenewClaimsRequest(claims=[ref(task)]))
    (kept,) = await second.answered()
    assert kept.HasField("updated")
    await second.say(complete=svc.CompleteTasksRequest(completions=[svc.Completion(claim=ref(task))]))
    (done,) = await second.answered()
    assert done.updated.state == State.STATE_SUCCEEDED
    second.cancel()


async def test_a_stream_rests_when_the_router_stops(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While calls are drained an idle stream must not claim in a circle."""
    router = live_router
    web = router.registry.project("web")
    stream = await opened(router, web)
    await stream.say(slots=svc.WorkSlots(free=1))

    async def polling() -> bool:
        return bool(router.engine.hub._waiting.get(web))

    await until(polling)
    calls = 0
    claim = router.engine.hot.claim

    async def counted(want: Want) -> Any:
        nonlocal calls
        calls += 1
        return await claim(want)

    monkeypatch.setattr(router.engine.hot, "claim", counted)
    router.engine.stop()
    for _ in range(20):
        await router.db.read(lambda conn: None)
    assert calls <= 2
    stream.cancel()


async def test_tokens_only_grow(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit(retry=pb.RetryPolicy(max_attempts=50, first_backoff=Duration()))
    tokens = []
    for turn in range(20):
        claimed = await router.claim_one(web, lease_duration=seconds(1))
        tokens.append(claimed.claim.fencing_token)
        if turn % 3 == 0:
            await router.fail(claimed)
        elif turn % 3 == 1:
            await release(router, claimed)
        else:
            await router.pass_time(SECOND)
    assert all(later > earlier for earlier, later in pairwise(tokens))
