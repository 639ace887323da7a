"""Parked tasks: the attempts that failed, and trying again."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from hopper.router.v1 import delegation_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper_common.timestamps import from_proto, to_proto
from hopper_router.model import Scope
from tests.router.harness import (
    HOUR,
    MINUTE,
    NOW,
    ROOT,
    SECOND,
    Code,
    Router,
    State,
    ref,
    refusal,
    violations,
)

NEVER_AGAIN = pb.RetryPolicy(max_attempts=1)


async def replay(router: Router, *names: str, **fields: Any) -> list[svc.ReplayTasksResult]:
    """Try tasks again."""
    request = svc.ReplayTasksRequest(names=names, **fields)
    return list((await router.tasks.ReplayTasks(request)).results)


async def replayed(router: Router, task: pb.Task) -> pb.Task:
    """Try one again that can be; returns it in FULL view."""
    (result,) = await replay(router, task.name)
    assert (result.name, result.error.reason) == (task.name, "")
    return await router.get(task, pb.TASK_VIEW_FULL)


async def attempts(router: Router, task: pb.Task) -> list[pb.Attempt]:
    return list((await router.tasks.ListAttempts(svc.ListAttemptsRequest(task=task.name))).attempts)


async def failed(router: Router, project: str, reason: str = "NO_WOOD", **fields: Any) -> pb.Task:
    """A task that a worker has given up."""
    task = await router.submit(project=project, **{"retry": NEVER_AGAIN, **fields})
    (claimed,) = [each for each in await router.claim(project, max_tasks=100) if each.name == task.name]
    return await router.fail(claimed, reason, message="sold out")


@pytest.fixture
def project(router: Router) -> str:
    return router.registry.project("web")


# ---------------------------------------------------------------- attempts


async def test_a_task_that_never_failed_has_no_attempts(router: Router, project: str) -> None:
    task = await router.submit(project=project)
    assert await attempts(router, task) == []
    await router.complete(await router.claim_one(project))
    assert await attempts(router, task) == []


async def test_each_failed_attempt_is_kept_with_its_error(router: Router, project: str) -> None:
    """Newest first: one that its worker failed, one whose lease ran out, one that took too long."""
    task = await router.submit(project=project, clocks=pb.Clocks(run_for=to_proto(10 * MINUTE)))
    await router.fail(await router.claim_one(project, "ann"), "BUSY", message="later")
    await router.pass_time(MINUTE)
    await router.claim_one(project, "bob", lease_duration=to_proto(MINUTE))
    await router.pass_time(MINUTE + SECOND)
    slow = await router.claim_one(project, "eve", lease_duration=to_proto(HOUR))
    await router.pass_time(10 * MINUTE)

    third, second, first = await attempts(router, task)
    told = [(each.attempt, each.worker, each.failure.reason) for each in (first, second, third)]
    assert told == [(1, "ann", "BUSY"), (2, "bob", "LEASE_EXPIRED"), (3, "eve", "RUN_TIMEOUT")]
    assert first.failure == pb.Failure(reason="BUSY", message="later")
    assert from_proto(first.start_time) == from_proto(first.end_time) == NOW
    assert (from_proto(second.start_time), from_proto(second.end_time)) == (
        NOW + MINUTE,
        NOW + 2 * MINUTE + SECOND,
    )
    assert from_proto(third.start_time) == from_proto(slow.claim.start_time)
    assert (await router.get(task)).state == State.STATE_FAILED


async def test_what_was_given_back_or_called_off_is_no_failed_attempt(router: Router, project: str) -> None:
    released, cancelled = [await router.submit(project=project) for _ in range(2)]
    for claimed in await router.claim(project, max_tasks=2):
        if claimed.name == released.name:
            await router.work.ReleaseTask(work_svc.ReleaseTaskRequest(claim=ref(claimed)))
    await router.cancel(cancelled)
    assert [await attempts(router, task) for task in (released, cancelled)] == [[], []]


async def test_attempts_of_what_is_not_there_are_not_found(router: Router) -> None:
    name = f"{ROOT}/tasks/none"
    call = router.tasks.ListAttempts(svc.ListAttemptsRequest(task=name))
    await refusal(call, Code.NOT_FOUND, "TASK_NOT_FOUND", task=name)


# ---------------------------------------------------------------- trying again


async def test_a_failed_task_is_tried_again_from_the_start(router: Router, project: str) -> None:
    """Its attempts are counted anew, and those of before stay in its history."""
    task = await failed(router, project)
    router.clock.advance(SECOND)
    again = await replayed(router, task)
    assert (again.state, again.attempt, again.failure.reason) == (State.STATE_QUEUED, 0, "")
    assert (again.project, again.spec.title) == (project, task.spec.title)
    assert not again.HasField("finish_time")
    claimed = await router.claim_one(project)
    assert (claimed.name, claimed.attempt) == (task.name, 1)
    await router.fail(claimed, "NO_NAILS")
    assert [each.failure.reason for each in await attempts(router, task)] == ["NO_NAILS", "NO_WOOD"]


async def test_a_replayed_task_may_succeed(router: Router, project: str) -> None:
    task = await failed(router, project)
    await replayed(router, task)
    await router.complete(await router.claim_one(project), result=b"done")
    ended = await router.get(task, pb.TASK_VIEW_FULL)
    assert (ended.state, ended.result) == (State.STATE_SUCCEEDED, b"done")


async def test_tokens_go_on_growing(router: Router, project: str) -> None:
    """Whoever had the task before it was parked cannot touch it after."""
    task = await router.submit(project=project, retry=NEVER_AGAIN)
    before = await router.claim_one(project)
    await router.fail(before)
    await replayed(router, task)
    after = await router.claim_one(project)
    assert after.claim.fencing_token > before.claim.fencing_token
    (late,) = await router.complete(before)
    assert late.error.reason == "STALE_TOKEN"
    assert (await router.get(task)).state == State.STATE_RUNNING


async def test_a_rejected_task_is_decided_anew(router: Router) -> None:
    """Nobody could take it by its time; now somebody can."""
    clocks = pb.Clocks(start_by=to_proto(NOW + MINUTE))
    task = await router.submit(required_capabilities=["welding"], clocks=clocks)
    await router.pass_time(MINUTE)
    assert (await router.get(task)).state == State.STATE_REJECTED
    welder = router.registry.project("welder", "welding")
    again = await replayed(router, task)
    assert (again.state, again.project) == (State.STATE_QUEUED, welder)
    assert again.decision != task.decision
    assert not again.spec.clocks.HasField("start_by")


async def test_deadlines_that_have_passed_do_not_count_any_more(router: Router, project: str) -> None:
    clocks = pb.Clocks(
        start_by=to_proto(NOW + HOUR), finish_by=to_proto(NOW + 2 * HOUR), run_for=to_proto(MINUTE)
    )
    task = await failed(router, project, clocks=clocks)
    await router.pass_time(HOUR)
    again = await replayed(router, task)
    assert not again.spec.clocks.HasField("start_by")
    assert again.spec.clocks.finish_by == clocks.finish_by
    assert again.spec.clocks.run_for == clocks.run_for
    await router.pass_time(HOUR)
    assert (await router.get(task)).failure.reason == "DEADLINE"
    await replayed(router, task)
    await router.pass_time(timedelta(days=30))
    assert (await router.get(task)).state == State.STATE_QUEUED


async def test_what_depends_on_it_goes_on_when_it_succeeds(router: Router, project: str) -> None:
    first = await router.submit("first", project=project, retry=NEVER_AGAIN)
    then = await router.submit("then", project=project, dependencies=[first.name])
    await router.fail(await router.claim_one(project))
    assert (await router.get(then)).wait.reason == pb.Wait.REASON_DEPENDENCY
    await replayed(router, first)
    again = await router.claim_one(project)
    assert again.name == first.name
    await router.complete(again)
    assert (await router.claim_one(project)).name == then.name


# ---------------------------------------------------------------- what cannot be


async def test_only_parked_tasks_are_tried_again(router: Router, project: str) -> None:
    """Each refusal is that task's own; the others go on."""
    done = await router.submit(project=project)
    await router.complete(await router.claim_one(project))
    cancelled = await router.cancel(await router.submit(project=project))
    parked = await failed(router, project)
    queued = await router.submit(project=project)
    none = f"{ROOT}/tasks/none"
    names = [done.name, cancelled.name, parked.name, queued.name, none]
    results = await replay(router, *names)
    assert [result.name for result in results] == names
    assert [result.error.reason for result in results] == [
        "TASK_WRONG_STATE", "TASK_WRONG_STATE", "", "TASK_WRONG_STATE", "TASK_NOT_FOUND",
    ]  # fmt: skip
    wrong = results[0].error
    assert wrong.code == Code.FAILED_PRECONDITION.value[0]
    assert dict(wrong.metadata) == {"task": done.name, "state": "SUCCEEDED", "event": "REPLAY"}
    assert [(await router.get(name)).state for name in names[:4]] == [
        State.STATE_SUCCEEDED, State.STATE_CANCELLED, State.STATE_QUEUED, State.STATE_QUEUED,
    ]  # fmt: skip


async def test_what_was_handed_over_is_tried_again_by_who_did_that(router: Router) -> None:
    """The end of a child has been passed on; the delegator's task is the one to try."""
    _, team = router.registry.team("app", "coding")
    task = await router.submit(required_capabilities=["coding"], retry=NEVER_AGAIN)
    child = await router.child_of(task)
    await router.fail(await router.claim_one(team))
    assert (await router.get(task)).state == State.STATE_FAILED
    (refused,) = await replay(router, child.name)
    assert refused.error.reason == "TASK_WRONG_STATE"
    assert "delegator" in refused.error.message

    again = await replayed(router, task)
    assert again.state == State.STATE_DELEGATED
    fresh = await router.child_of(task)
    assert fresh.name != child.name
    await router.complete(await router.claim_one(team))
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


async def test_one_whose_parts_failed_is_decided_anew(router: Router, project: str) -> None:
    task = await router.submit(project=project)
    part = delegation_pb2.Subtask(spec=pb.TaskSpec(title="part", project=project, retry=NEVER_AGAIN))
    await router.delegate(task, delegation_pb2.Delegation.KIND_DECOMPOSE, subtasks=[part])
    await router.fail(await router.claim_one(project))
    assert (await router.get(task)).failure.reason == "CHILD_FAILED"
    assert (await replayed(router, task)).state == State.STATE_QUEUED


async def test_names_or_a_reason_have_to_be_said(router: Router) -> None:
    assert "names" in await violations(replay(router))
    assert "names" in await violations(replay(router, project="projects/web"))


# ---------------------------------------------------------------- by reason


async def test_all_that_failed_for_a_reason_are_tried_again_oldest_first(
    router: Router, project: str
) -> None:
    first = await failed(router, project, "NO_WOOD")
    other_reason = await failed(router, project, "NO_NAILS")
    last = await failed(router, project, "NO_WOOD")
    await router.submit(project=project)
    results = await replay(router, reason="NO_WOOD")
    assert [result.name for result in results] == [first.name, last.name]
    assert (await router.get(other_reason)).state == State.STATE_FAILED
    assert await replay(router, reason="NO_WOOD") == []


async def test_a_reason_is_the_whole_word_and_not_a_pattern(router: Router, project: str) -> None:
    exact = await failed(router, project, "NO_WOOD")
    await failed(router, project, "NO_WOOD_AT_ALL")
    await failed(router, project, "NOXWOOD")
    assert await replay(router, reason="NO%") == []
    assert [result.name for result in await replay(router, reason="NO_WOOD")] == [exact.name]


async def test_a_reason_may_be_narrowed_to_a_project_or_an_instance(router: Router, project: str) -> None:
    other = router.registry.project("app")
    run = router.registry.instance("run", Scope.ORCHESTRATION)
    here, there = await failed(router, project), await failed(router, other)
    inside = await router.submit(parent=run, retry=NEVER_AGAIN, project=project)
    queue = (await router.get(inside)).project or run
    (claimed,) = await router.claim(queue)
    await router.fail(claimed, "NO_WOOD")
    assert [each.name for each in await replay(router, reason="NO_WOOD", parent=run)] == [inside.name]
    assert [each.name for each in await replay(router, reason="NO_WOOD", project=other)] == [there.name]
    assert [each.name for each in await replay(router, reason="NO_WOOD", parent=ROOT)] == [here.name]


async def test_children_do_not_match_a_reason(router: Router) -> None:
    """They cannot be tried again, so they would be in the way of those that can."""
    _, team = router.registry.team("app", "coding")
    task = await router.submit(required_capabilities=["coding"], retry=NEVER_AGAIN)
    await router.fail(await router.claim_one(team), "NO_WOOD")
    failure = (await router.get(task)).failure.reason
    assert [each.name for each in await replay(router, reason=failure)] == [task.name]


# ---------------------------------------------------------------- repeats, restarts, followers


async def test_a_repeated_request_gets_the_first_answer(router: Router, project: str) -> None:
    """And does not try again what failed again meanwhile."""
    task = await failed(router, project)
    request_id = str(uuid.uuid4())
    first = await replay(router, task.name, request_id=request_id)
    router.clock.advance(SECOND)
    await router.fail(await router.claim_one(project))
    assert await replay(router, task.name, request_id=request_id) == first
    assert (await router.get(task)).state == State.STATE_FAILED
    await refusal(
        replay(router, task.name, f"{ROOT}/tasks/none", request_id=request_id),
        Code.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=request_id,
        method="ReplayTasks",
    )


async def test_it_is_durable(router: Router, project: str) -> None:
    task = await failed(router, project)
    await replayed(router, task)
    await router.stop()
    await router.start()
    assert (await router.claim_one(project)).name == task.name
    assert [each.failure.reason for each in await attempts(router, task)] == ["NO_WOOD"]


async def test_followers_are_told(router: Router, project: str) -> None:
    task = await failed(router, project)
    watch = router.tasks.WatchTasks(svc.WatchTasksRequest(task=task.name, after_generation=task.generation))
    await replayed(router, task)
    change = (await anext(aiter(watch))).change
    watch.cancel()
    assert (change.kind, change.from_state) == ("REPLAY", State.STATE_FAILED)
