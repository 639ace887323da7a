"""Numbers of queues: counts, ages and rates, as they are told, after a restart too, and between routers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1.queue_service_pb2 import GetQueueStatsRequest, GetQueueStatsResponse, QueueStats
from hopper_common.timestamps import to_proto
from hopper_router.directory import EMPTY_DIRECTORY
from hopper_router.model import InstanceState, Scope, Task, TaskSpec, TaskState
from hopper_router.queue_counts import QueueCounts, _lines, count_open
from hopper_router.queue_stats import (
    STAGE_OF,
    Backlog,
    Delta,
    delta_of,
    delta_of_admitted,
    delta_of_claimed,
    delta_of_completed,
    ready_second,
    ready_span,
)
from hopper_router.rows import task_to_row
from hopper_router.store_sql import OpenCounts
from hopper_router.transitions import Event
from hopper_router.unit import Change
from hopper_testing.clock import ManualClock
from tests.router.harness import HOUR, MINUTE, NOW, ROOT, SECOND, Router


async def stats(router: Router, queue: str = "", limit: int = 0) -> GetQueueStatsResponse:
    return await router.queues.GetQueueStats(GetQueueStatsRequest(queue=queue, limit=limit))


async def total(router: Router, queue: str = "") -> QueueStats:
    return (await stats(router, queue)).total


@pytest.fixture
async def web(router: Router) -> Router:
    router.registry.project("web", "web")
    return router


# ---------------------------------------------------------------- counts


async def test_nothing_is_all_zeros(router: Router) -> None:
    answer = await stats(router)
    assert answer.total == QueueStats()
    assert (len(answer.projects), len(answer.keys)) == (0, 0)
    assert answer.time.ToDatetime(tzinfo=NOW.tzinfo) == NOW


async def test_each_reason_to_wait_is_counted(web: Router) -> None:
    registry = web.registry
    registry.project("paused", "paused")
    registry.project("full", "full", max_running=1)
    registry.team("stopped", "stopped")
    later = pb.Clocks(start_after=to_proto(NOW + HOUR))
    first = await web.submit(required_capabilities=["web"])
    await web.submit(required_capabilities=["web"], dependencies=[first.name])
    await web.submit(required_capabilities=["web"], clocks=later)
    held = await web.submit(required_capabilities=["web"])
    await web.tasks.BlockTask(task_svc.BlockTaskRequest(name=held.name, hold=pb.Hold(by="cleo")))
    await web.submit(required_capabilities=["nobody"])
    await web.submit(required_capabilities=["paused"])
    for _ in range(3):
        await web.submit(required_capabilities=["full"])
    await web.claim_one("projects/full")
    await web.submit(required_capabilities=["stopped"])
    registry.change("instances/stopped", state=InstanceState.PAUSED)
    registry.change("projects/paused", paused=True)

    seen = await total(web)

    assert dict(seen.waits) == {
        "WORKER": 1,
        "DEPENDENCY": 1,
        "SCHEDULE": 1,
        "PERSON": 1,
        "NO_ELIGIBLE_EXECUTOR": 1,
        "PROJECT": 1,
        "CAPACITY": 2,
        "INSTANCE": 1,
        "DELEGATION": 1,
    }
    assert dict(seen.states) == {"QUEUED": 8, "SUBMITTED": 1, "RUNNING": 1, "DELEGATED": 1}
    assert seen.ready == 1


async def test_a_failed_attempt_backs_off_and_is_ready_when_its_time_has_come(web: Router) -> None:
    await web.submit(required_capabilities=["web"])
    await web.fail(await web.claim_one("projects/web"))
    assert dict((await total(web)).waits) == {"BACKOFF": 1}
    web.clock.advance(SECOND)  # and nobody has noticed yet
    seen = await total(web)
    assert (dict(seen.waits), seen.ready, seen.oldest_ready.ToTimedelta()) == ({"WORKER": 1}, 1, 0 * SECOND)


async def test_projects_and_keys_have_numbers_of_their_own_the_greatest_backlog_first(web: Router) -> None:
    web.registry.project("api", "api")
    for capability, key, count in (("web", "ann", 2), ("web", "bob", 1), ("api", "bob", 4), ("api", "cy", 1)):
        for _ in range(count):
            await web.submit(required_capabilities=[capability], fairness_key=key)
    await web.claim_one("projects/api")

    answer = await stats(web)

    assert [(each.name, each.ready) for each in answer.projects] == [("projects/api", 4), ("projects/web", 3)]
    assert sum(each.ready for each in answer.keys) == answer.total.ready == 7
    assert {each.name: sum(each.states.values()) for each in answer.keys} == {"bob": 5, "ann": 2, "cy": 1}
    assert answer.keys[0].name == "bob"
    assert [each.name for each in (await stats(web, limit=1)).projects] == ["projects/api"]
    of_web = await stats(web, "projects/web")
    assert of_web.total.name == "projects/web"
    assert {each.name: each.ready for each in of_web.keys} == {"ann": 2, "bob": 1}
    assert [each.name for each in of_web.projects] == ["projects/web"]


async def test_an_instances_queue_is_asked_for_by_its_name(router: Router) -> None:
    router.registry.instance("me", Scope.PERSONAL)
    await router.submit(parent="instances/me")
    await router.submit(parent="instances/me")
    seen = await stats(router, "instances/me")
    assert (seen.total.name, seen.total.ready, len(seen.projects)) == ("instances/me", 2, 0)
    assert (await total(router, "instances/other")).ready == 0


# ---------------------------------------------------------------- ages


async def test_the_oldest_ready_task_is_as_old_as_it_has_been_ready(web: Router) -> None:
    waits = await web.submit(required_capabilities=["web"])
    blocked = await web.submit(required_capabilities=["web"], dependencies=[waits.name])
    web.clock.advance(HOUR)
    await web.submit(required_capabilities=["web"])
    assert (await total(web)).oldest_ready.ToTimedelta() == HOUR
    claimed = await web.claim_one("projects/web")
    assert claimed.name == waits.name
    assert (await total(web)).oldest_ready.ToTimedelta() == 0 * SECOND
    web.clock.advance(MINUTE)
    await web.update(blocked, "spec.priority", priority=60)
    await web.complete(await web.claim_one("projects/web"))
    web.clock.advance(MINUTE)
    # What was blocked for an hour is still blocked: nothing is ready.
    assert not (await total(web)).HasField("oldest_ready")


async def test_what_was_blocked_is_ready_from_then_on(web: Router) -> None:
    first = await web.submit(required_capabilities=["web"])
    claimed = await web.claim_one("projects/web", lease_duration=to_proto(HOUR))
    await web.submit(required_capabilities=["web"], dependencies=[first.name])
    held = await web.submit(required_capabilities=["web"])
    await web.tasks.BlockTask(task_svc.BlockTaskRequest(name=held.name, hold=pb.Hold(by="cleo")))
    web.clock.advance(HOUR / 2)
    await web.complete(claimed)
    await web.tasks.UnblockTask(task_svc.UnblockTaskRequest(name=held.name))
    web.clock.advance(MINUTE)
    seen = await total(web)
    assert (seen.ready, seen.oldest_ready.ToTimedelta()) == (2, MINUTE)


# ---------------------------------------------------------------- rates


async def test_rates_are_of_the_last_minute(web: Router) -> None:
    for _ in range(6):
        await web.submit(required_capabilities=["web"], retry=pb.RetryPolicy(max_attempts=1), requester="ann")
    claimed = await web.claim("projects/web", max_tasks=3)
    await web.complete(claimed[0])
    await web.fail(claimed[1])
    await web.cancel(claimed[2])
    seen = await total(web, "projects/web")
    assert (seen.add_rate, seen.start_rate, seen.finish_rate, seen.failed) == (0.1, 0.05, 0.05, 1)
    (ann,) = (await stats(web)).keys
    assert (ann.name, ann.add_rate, ann.failed) == ("ann", 0.1, 1)
    web.clock.advance(59 * SECOND)
    assert (await total(web)).add_rate == 0.1
    await web.submit(required_capabilities=["web"])
    web.clock.advance(SECOND)
    later = await total(web)
    assert (later.add_rate, later.start_rate, later.finish_rate, later.failed) == (1 / 60, 0, 0, 0)
    web.clock.advance(MINUTE)
    assert (await total(web)).add_rate == 0


async def test_a_parked_task_that_is_replayed_comes_anew(web: Router) -> None:
    await web.submit(required_capabilities=["web"], retry=pb.RetryPolicy(max_attempts=1))
    failed = await web.fail(await web.claim_one("projects/web"))
    web.clock.advance(HOUR)
    await web.tasks.ReplayTasks(task_svc.ReplayTasksRequest(names=[failed.name]))
    seen = await total(web)
    assert (seen.ready, seen.add_rate, dict(seen.states)) == (1, 1 / 60, {"QUEUED": 1})


async def test_nothing_of_what_is_over_stays_in_memory(web: Router) -> None:
    await web.submit(required_capabilities=["web"], requester="somebody")
    await web.complete(await web.claim_one("projects/web"))
    backlog = web.engine.queues.backlog
    assert backlog._places
    web.clock.advance(MINUTE)
    await stats(web)
    assert not backlog._places
    assert backlog.totals == [1, 1, 1, 0]


# ---------------------------------------------------------------- counting anew


async def test_a_restart_counts_from_the_rows(web: Router) -> None:
    for n in range(3):
        await web.submit(required_capabilities=["web"], requester=f"r{n}")
    await web.claim_one("projects/web")
    web.clock.advance(HOUR)
    before = await stats(web)
    await web.stop()
    await web.start()
    assert await stats(web) == before


async def test_what_happens_while_it_counts_is_counted_once(web: Router) -> None:
    """A commit that the snapshot has seen and whose news come later; and one that it has not seen."""
    await web.submit(required_capabilities=["web"])
    backlog = web.engine.queues.backlog
    backlog.begin_recount()
    await web.submit(required_capabilities=["web"])  # before the snapshot
    snapshot = await web.db.read(count_open)
    await web.submit(required_capabilities=["web"])  # after it
    assert backlog.recounted(snapshot.backlog, snapshot.head)
    assert (await total(web)).ready == 3
    late: Delta = {("projects/web", ROOT, "anonymous", STAGE_OF["RUNNING", ""], 0): 1}
    backlog.merge(late, NOW, generation=snapshot.head)  # of which the snapshot knew
    assert dict((await total(web)).states) == {"QUEUED": 3}


async def test_a_count_is_not_believed_when_nobody_can_say_what_it_has_seen(web: Router) -> None:
    backlog = web.engine.queues.backlog
    backlog.begin_recount()
    snapshot = await web.db.read(count_open)
    await web.submit(required_capabilities=["nobody"])
    backlog.follow_quiet([a_change()])
    assert not backlog.recounted(snapshot.backlog, snapshot.head)


def a_change() -> Change:
    task = Task(f"{ROOT}/tasks/t", ROOT, TaskSpec("t"), TaskState.SUBMITTED, NOW, NOW, NOW)
    return Change(task, task, Event.DECIDE)


async def test_what_has_been_ready_for_long_is_counted_by_wider_spans(web: Router) -> None:
    for _ in range(20):
        await web.submit(required_capabilities=["web"])
        web.clock.advance(timedelta(minutes=1))
    web.clock.advance(timedelta(days=2))
    exact = (await total(web)).oldest_ready.ToTimedelta()
    await web.engine.queues.recount()
    [place] = web.engine.queues.backlog._places.values()
    assert (len(place.since), sum(place.since.values())) == (1, 20)
    wider = (await total(web)).oldest_ready.ToTimedelta()
    assert exact <= wider <= exact * 7 / 6
    await web.submit(required_capabilities=["web"])  # as exact as ever
    assert len(place.since) == 2
    await web.complete(*await web.claim("projects/web", max_tasks=20))
    seen = await total(web)
    assert (seen.ready, seen.oldest_ready.ToTimedelta() < MINUTE) == (1, True)


async def test_a_recount_sets_the_load_right_and_forgets_nothing_that_came_meanwhile(web: Router) -> None:
    await web.submit(required_capabilities=["web"])
    engine = web.engine
    engine._load.add("projects/web", ROOT, 7)
    engine._load.add("projects/gone", ROOT, 7)
    read = web.db.read

    async def meanwhile(work: Any) -> Any:
        counted = await read(work)
        await web.submit(required_capabilities=["web"])
        return counted

    web.db.read = meanwhile  # type: ignore[method-assign]
    await engine.queues.recount()
    web.db.read = read  # type: ignore[method-assign]
    load = engine._load
    assert (load.by_project["projects/web"], load.by_project["projects/gone"]) == (2, 0)
    assert load.by_instance[ROOT] == 2


async def test_doubt_ends_with_the_next_question(web: Router) -> None:
    await web.submit(required_capabilities=["web"])
    spot = ("projects/web", ROOT, "anonymous", STAGE_OF["RUNNING", ""], 0)
    web.engine.queues.backlog.merge({spot: 7}, NOW, generation=10**9)
    assert (await total(web)).states["RUNNING"] == 7
    web.engine.queues.doubt()
    assert dict((await total(web)).states) == {"QUEUED": 1}


# ---------------------------------------------------------------- between routers


async def test_what_one_router_tells_another_counts_there_too(web: Router) -> None:
    """All that one has followed, as lines, makes the same counts at another."""
    here = web.engine.queues
    here._shared = True
    for n in range(30):
        await web.submit(required_capabilities=["web"], requester=f"requester-{n}")
    await web.complete(*await web.claim("projects/web", max_tasks=3))
    there = QueueCounts(web.db, ManualClock(NOW), "other", OpenCounts())
    lines = list(_lines(here._outgoing, here._generations, "here"))
    assert len(lines) > 1
    assert all(len(line) <= 1000 for line in lines)
    for line in lines:
        there._heard(line)
        here._heard(line.replace('"o":"here"', f'"o":"{here._origin}"'))  # one's own
    assert there.backlog.spots() == here.backlog.spots()
    assert there.backlog.totals == here.backlog.totals == [30, 3, 3, 0]
    assert not there._doubtful


def test_too_much_to_tell_is_said_to_be_too_much() -> None:
    delta: Delta = {("projects/" + "p" * 60, ROOT, f"{n:060}", 0, 0): 1 for n in range(1000)}
    (line,) = _lines(delta, (1, 1000), "here")
    assert json.loads(line)["q"] is None


@pytest.mark.parametrize(
    "line", ["", '{"o":"x","g":[1,5],"q":null}', '{"o":"x","g":[1,5],"q":[["","","",0,0,1]]}']
)
async def test_what_was_missed_or_seen_in_part_is_counted_from_the_rows(web: Router, line: str) -> None:
    queues = web.engine.queues
    queues.backlog.counted_through = 3
    queues._heard(line)
    assert queues._doubtful
    await stats(web)
    assert not queues._doubtful


async def test_lines_of_others_are_left_alone(web: Router) -> None:
    web.engine.queues._heard('{"o":"x","r":{"projects/web":1}}')
    assert not web.engine.queues._doubtful


# ---------------------------------------------------------------- the core


def test_what_waits_for_a_time_is_ready_in_the_second_after_it_and_the_rest_in_spans() -> None:
    half = timedelta(milliseconds=500)
    second = int(NOW.timestamp())
    assert [ready_second(NOW + time) - second for time in (0 * half, half, 2 * half)] == [0, 1, 1]
    assert [ready_span(NOW + n * SECOND) - second for n in (0, 9, 10, 19)] == [0, 0, 10, 10]


def test_a_claim_and_an_end_of_the_hot_path_undo_what_came_before() -> None:
    tasks = [
        Task(f"{ROOT}/tasks/t{n}", ROOT, TaskSpec("t"), TaskState.QUEUED, NOW, NOW, ready, queue_time=NOW)
        for n, ready in enumerate([NOW, NOW, NOW + HOUR])
    ]
    rows = [task_to_row(task, NOW) for task in tasks]
    backlog = Backlog()
    for delta in (delta_of_admitted(tasks), delta_of_claimed(rows), delta_of_completed(rows)):
        backlog.merge(delta, NOW, generation=1)
    assert backlog.spots() == {}
    assert backlog.totals == [3, 3, 3, 0]


def test_a_progress_changes_no_count() -> None:
    task = Task(f"{ROOT}/tasks/t", ROOT, TaskSpec("t"), TaskState.RUNNING, NOW, NOW, NOW)
    assert not any(delta_of([Change(task, replace(task, generation=2), Event.PROGRESS)]).values())


def test_a_million_tasks_of_some_kinds_are_a_few_numbers() -> None:
    delta: Delta = {
        (f"projects/p{n % 10}", ROOT, f"k{n // 10}", STAGE_OF["QUEUED", "WORKER"], 0): 20_000
        for n in range(50)
    }
    answer = Backlog.of(delta).numbers(EMPTY_DIRECTORY, NOW, limit=3)
    assert answer.total.states == {"QUEUED": 1_000_000}
    assert dict(answer.total.waits) == {"INSTANCE": 1_000_000}  # of an instance that nobody knows
    assert (len(answer.projects), len(answer.keys)) == (3, 3)
