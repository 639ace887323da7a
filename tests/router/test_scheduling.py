"""Schedules over gRPC, with the clock in the test's hand, on both engines."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.router.v1 import schedule_pb2 as pb
from hopper.router.v1 import schedule_service_pb2 as svc
from hopper.router.v1 import task_pb2
from hopper_common.database import Database
from hopper_common.errors import StorageUnavailable
from hopper_common.time_zones import ZoneUnknown
from hopper_common.timestamps import from_proto, to_proto
from hopper_router import schedule_rows, schedules, tables
from hopper_router.engine import Engine
from hopper_router.model import InstanceState, Scope
from hopper_router.scheduling import Scheduler
from hopper_router.unit import Unit
from tests.router.harness import HOUR, MINUTE, NOW, ROOT, Code, Router, State, refusal, until, violations

DAY = timedelta(days=1)
NIGHTLY = "schedules/nightly"


async def create(
    router: Router, id_: str = "nightly", *, title: str = "tidy up", request_id: str = "", **fields: Any
) -> pb.Schedule:
    """Make a schedule; hourly, unless another expression is given."""
    schedule = pb.Schedule(
        **{"instance": ROOT, "cron": "0 * * * *", "spec": task_pb2.TaskSpec(title=title), **fields}
    )
    request = svc.CreateScheduleRequest(schedule=schedule, schedule_id=id_, request_id=request_id)
    return (await router.schedules.CreateSchedule(request)).schedule


async def get(router: Router, name: str = NIGHTLY) -> pb.Schedule:
    return (await router.schedules.GetSchedule(svc.GetScheduleRequest(name=name))).schedule


async def update(router: Router, *paths: str, **fields: Any) -> pb.Schedule:
    schedule = pb.Schedule(**{"name": NIGHTLY, **fields})
    request = svc.UpdateScheduleRequest(schedule=schedule, update_mask=FieldMask(paths=paths))
    return (await router.schedules.UpdateSchedule(request)).schedule


async def pause(router: Router, reason: str = "") -> pb.Schedule:
    request = svc.PauseScheduleRequest(name=NIGHTLY, reason=reason)
    return (await router.schedules.PauseSchedule(request)).schedule


async def resume(router: Router) -> pb.Schedule:
    return (await router.schedules.ResumeSchedule(svc.ResumeScheduleRequest(name=NIGHTLY))).schedule


async def at(router: Router, time: datetime) -> int:
    """Let it become *time*, and the scheduler look; returns how many occurrences were carried out."""
    router.clock.advance(time - router.clock.now())
    return await Scheduler(router.engine).run_due()


async def tasks_of(router: Router) -> list[task_pb2.Task]:
    """Every task there is, oldest first."""
    return (await router.found(states=[s for s in State.values() if s]))[::-1]


def occurrences(tasks: list[task_pb2.Task]) -> list[datetime]:
    """Of which occurrence each task is."""
    return [datetime.fromisoformat(task.spec.labels["hopper.scheduled_time"]) for task in tasks]


def times(stamps: Any) -> list[datetime]:
    return [from_proto(stamp) for stamp in stamps]


# ---------------------------------------------------------------- keeping them


async def test_a_schedule_is_kept_with_its_defaults_and_says_when_it_comes(router: Router) -> None:
    made = await create(router, cron="30 2 * * *", time_zone="Europe/Berlin")
    assert (made.name, made.state) == (NIGHTLY, pb.Schedule.STATE_ACTIVE)
    assert (made.overlap, made.catch_up) == (pb.Schedule.OVERLAP_SKIP, pb.Schedule.CATCH_UP_ONE)
    first = datetime(2026, 1, 1, 1, 30, tzinfo=UTC)
    assert times([made.next_time]) == [first]
    assert times(made.next_times) == [first + day * DAY for day in range(5)]
    assert await get(router) == made


async def test_without_an_id_it_is_given_one(router: Router) -> None:
    one, other = await create(router, ""), await create(router, "")
    assert one.name != other.name
    assert await get(router, one.name) == one


async def test_an_id_is_taken_once(router: Router) -> None:
    request_id = str(uuid.uuid4())
    made = await create(router, request_id=request_id)
    assert await create(router, request_id=request_id) == made
    await refusal(create(router), Code.ALREADY_EXISTS, "SCHEDULE_EXISTS", schedule=NIGHTLY)


async def test_validating_makes_nothing(router: Router) -> None:
    schedule = pb.Schedule(instance=ROOT, cron="@daily", spec=task_pb2.TaskSpec(title="x"))
    request = svc.CreateScheduleRequest(schedule=schedule, schedule_id="nightly", validate_only=True)
    drafted = (await router.schedules.CreateSchedule(request)).schedule
    assert times(drafted.next_times) == [NOW + day * DAY for day in range(1, 6)]
    await refusal(get(router), Code.NOT_FOUND, "SCHEDULE_NOT_FOUND", schedule=NIGHTLY)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "61 * * * *"}, "schedule.cron"),
        ({"cron": ""}, "schedule.cron"),
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
        ({"overlap": pb.Schedule.OVERLAP_LIMIT}, "schedule.max_open"),
        ({"overlap": 77}, "schedule.overlap"),
        ({"spec": task_pb2.TaskSpec()}, "schedule.spec.title"),
        ({"instance": "global"}, "schedule.instance"),
        (
            {"spec": task_pb2.TaskSpec(title="x", clocks=task_pb2.Clocks(finish_by=to_proto(NOW)))},
            "schedule.spec.clocks.finish_by",
        ),
    ],
)
async def test_what_cannot_work_is_refused(router: Router, fields: dict[str, Any], field: str) -> None:
    assert field in await violations(create(router, **fields))


async def test_its_instance_and_project_have_to_be_there(router: Router) -> None:
    gone = "instances/gone"
    await refusal(create(router, instance=gone), Code.NOT_FOUND, "INSTANCE_NOT_FOUND", instance=gone)
    spec = task_pb2.TaskSpec(title="x", project="projects/gone")
    await refusal(create(router, spec=spec), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/gone")


async def test_they_are_listed_by_name_page_by_page(router: Router) -> None:
    other = router.registry.instance("other", Scope.GLOBAL)
    for id_ in ("c", "a", "b"):
        await create(router, id_, spec=task_pb2.TaskSpec(title=id_, description="long", payload=b"long"))
    await create(router, "z", instance=other)
    request = svc.ListSchedulesRequest(parent=ROOT, page_size=2)
    first = await router.schedules.ListSchedules(request)
    assert [each.name for each in first.schedules] == ["schedules/a", "schedules/b"]
    assert not first.schedules[0].spec.description
    request.page_token = first.next_page_token
    second = await router.schedules.ListSchedules(request)
    assert [each.name for each in second.schedules] == ["schedules/c"]
    assert not second.next_page_token
    request.parent = other
    await refusal(router.schedules.ListSchedules(request), Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_changes_touch_what_the_mask_names(router: Router) -> None:
    made = await create(router, title="before", spec=task_pb2.TaskSpec(title="before", tags=["a"]))
    renamed = await update(router, "spec.title", spec=task_pb2.TaskSpec(title="after"))
    assert (renamed.spec.title, list(renamed.spec.tags)) == ("after", ["a"])
    assert (renamed.next_time, renamed.etag != made.etag) == (made.next_time, True)
    by_what_is_set = await update(router, spec=task_pb2.TaskSpec(tags=["b"]), cron="@daily")
    assert (by_what_is_set.spec.title, list(by_what_is_set.spec.tags)) == ("after", ["b"])
    assert times([by_what_is_set.next_time]) == [NOW + DAY]
    assert await get(router) == by_what_is_set


async def test_a_change_that_others_overtook_is_refused(router: Router) -> None:
    made = await create(router)
    now = await update(router, "cron", cron="@daily", etag=made.etag)
    await refusal(
        update(router, "cron", cron="@hourly", etag=made.etag),
        Code.ABORTED, "ETAG_MISMATCH", resource=NIGHTLY, etag=now.etag,
    )  # fmt: skip
    request = svc.DeleteScheduleRequest(name=NIGHTLY, etag=made.etag)
    await refusal(
        router.schedules.DeleteSchedule(request),
        Code.ABORTED,
        "ETAG_MISMATCH",
        resource=NIGHTLY,
        etag=now.etag,
    )


async def test_a_change_cannot_make_it_wrong(router: Router) -> None:
    await create(router)
    assert "schedule.cron" in await violations(update(router, "cron", cron="nonsense"))
    assert "schedule.spec.title" in await violations(update(router, "spec.title"))
    assert "update_mask" in await violations(update(router, "run_count", run_count=7))


async def test_a_removed_one_is_gone_and_its_id_free(router: Router) -> None:
    await create(router)
    assert await at(router, NOW + HOUR) == 1
    await router.schedules.DeleteSchedule(svc.DeleteScheduleRequest(name=NIGHTLY))
    await refusal(get(router), Code.NOT_FOUND, "SCHEDULE_NOT_FOUND", schedule=NIGHTLY)
    assert await at(router, NOW + DAY) == 0
    assert len(await tasks_of(router)) == 1
    again = await create(router)
    assert (again.run_count, len(again.recent_runs)) == (0, 0)


@pytest.mark.parametrize(
    "method", ["GetSchedule", "PauseSchedule", "ResumeSchedule", "DeleteSchedule", "TriggerSchedule"]
)
async def test_what_is_not_there_is_not_found(router: Router, method: str) -> None:
    call = getattr(router.schedules, method)(getattr(svc, f"{method}Request")(name=NIGHTLY))
    await refusal(call, Code.NOT_FOUND, "SCHEDULE_NOT_FOUND", schedule=NIGHTLY)


# ---------------------------------------------------------------- carrying them out


async def test_its_task_is_submitted_when_its_time_has_come(router: Router) -> None:
    project = router.registry.project("web")
    spec = task_pb2.TaskSpec(title="tidy up", project=project, priority=70, payload=b"all", labels={"a": "b"})
    await create(router, spec=spec, finish_within=to_proto(HOUR))
    assert await at(router, NOW + HOUR - timedelta(microseconds=1)) == 0
    assert await at(router, NOW + HOUR) == 1
    (task,) = await tasks_of(router)
    task = await router.get(task, task_pb2.TASK_VIEW_FULL)
    assert (task.spec.title, task.project, task.spec.priority, task.spec.payload) == (
        "tidy up",
        project,
        70,
        b"all",
    )
    assert dict(task.spec.labels) == {
        "a": "b",
        "hopper.schedule": "nightly",
        "hopper.scheduled_time": "2026-01-01T01:00:00Z",
    }
    assert times([task.spec.clocks.finish_by]) == [NOW + 2 * HOUR]
    schedule = await get(router)
    assert (schedule.run_count, times([schedule.next_time])) == (1, [NOW + 2 * HOUR])
    assert (schedule.last_run.task, schedule.last_run.task_state) == (task.name, State.STATE_QUEUED)
    assert times([schedule.last_run.scheduled_time, schedule.last_run.run_time]) == [NOW + HOUR] * 2


async def test_clocks_put_back_and_forward_over_a_year(router: Router) -> None:
    """A task a day, whatever the wall shows."""
    project = router.registry.project("web")
    spec = task_pb2.TaskSpec(title="x", project=project)
    await create(
        router, cron="30 2 * * *", time_zone="Europe/Berlin", spec=spec, overlap=pb.Schedule.OVERLAP_QUEUE
    )
    for change in (datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)):
        await at(router, change)
        before = (await get(router)).run_count
        for hours in range(1, 73):
            await at(router, change + hours * HOUR / 2 + HOUR)
        assert (await get(router)).run_count - before == 2
    found = [f"{time:%m-%d %H:%M}" for time in occurrences(await tasks_of(router))]
    assert [time for time in found if time[:5] in {"03-28", "03-29", "10-24", "10-25"}] == [
        "03-28 01:30", "03-29 01:00", "10-24 00:30", "10-25 00:30",
    ]  # fmt: skip


async def test_while_one_is_open_the_next_is_left_out(router: Router) -> None:
    project = router.registry.project("web")
    await create(router)
    for hour in range(1, 4):
        await at(router, NOW + hour * HOUR)
    assert occurrences(await tasks_of(router)) == [NOW + HOUR]
    schedule = await get(router)
    assert (schedule.run_count, schedule.skip_count) == (1, 2)
    await router.complete(await router.claim_one(project))
    await at(router, NOW + 4 * HOUR)
    assert occurrences(await tasks_of(router)) == [NOW + HOUR, NOW + 4 * HOUR]


async def test_overlap_may_be_wanted_or_bounded(router: Router) -> None:
    project = router.registry.project("web")
    await create(router, "every", overlap=pb.Schedule.OVERLAP_QUEUE)
    await create(router, "two", overlap=pb.Schedule.OVERLAP_LIMIT, max_open=2)
    for hour in range(1, 5):
        await at(router, NOW + hour * HOUR)
    counts = [(await get(router, f"schedules/{id_}")) for id_ in ("every", "two")]
    assert [(each.run_count, each.skip_count) for each in counts] == [(4, 0), (2, 2)]
    for task in await router.claim(project, max_tasks=100):
        await router.complete(task)
    await at(router, NOW + 5 * HOUR)
    assert (await get(router, "schedules/two")).run_count == 3


@pytest.mark.parametrize(
    ("catch_up", "hours", "missed"),
    [
        (pb.Schedule.CATCH_UP_NONE, [], 5),
        (pb.Schedule.CATCH_UP_ONE, [5], 4),
        (pb.Schedule.CATCH_UP_ALL, [1, 2, 3, 4, 5], 0),
    ],
)
async def test_after_a_time_away_it_catches_up_as_it_says(
    router: Router, catch_up: pb.Schedule.CatchUp.ValueType, hours: list[int], missed: int
) -> None:
    await create(router, catch_up=catch_up, overlap=pb.Schedule.OVERLAP_QUEUE)
    await router.stop()
    await router.start()
    await at(router, NOW + 5.5 * HOUR)
    assert occurrences(await tasks_of(router)) == [NOW + hour * HOUR for hour in hours]
    schedule = await get(router)
    assert (schedule.run_count, schedule.miss_count) == (len(hours), missed)
    assert times([schedule.next_time]) == [NOW + 6 * HOUR]


async def test_much_to_catch_up_is_done_in_steps_each_once(router: Router) -> None:
    await create(
        router, cron="* * * * *", catch_up=pb.Schedule.CATCH_UP_ALL, max_catch_up=70,
        overlap=pb.Schedule.OVERLAP_QUEUE,
    )  # fmt: skip
    assert await at(router, NOW + 3 * HOUR) == 70 + 2  # two are on time: of now, and of a minute ago
    found = occurrences(await tasks_of(router))
    assert found == [NOW + 3 * HOUR - minutes * MINUTE for minutes in range(71, -1, -1)]
    assert (await get(router)).miss_count == 180 - 72
    assert await at(router, NOW + 3 * HOUR) == 0


async def test_jitter_delays_the_task_and_not_the_times(router: Router) -> None:
    made = await create(router, jitter=to_proto(HOUR))
    assert times([made.next_time]) == [NOW + HOUR]
    await at(router, NOW + HOUR)
    early = await tasks_of(router)
    await at(router, NOW + 2 * HOUR - timedelta(seconds=1))
    (task,) = await tasks_of(router)
    assert not early
    assert occurrences([task]) == [NOW + HOUR]


async def test_it_ends_when_it_says(router: Router) -> None:
    await create(router, end_time=to_proto(NOW + 2 * HOUR))
    await at(router, NOW + HOUR)
    schedule = await get(router)
    assert (schedule.state, list(schedule.next_times)) == (pb.Schedule.STATE_ENDED, [])
    longer = await update(router, "end_time")
    assert (longer.state, times([longer.next_time])) == (pb.Schedule.STATE_ACTIVE, [NOW + 2 * HOUR])


async def test_a_paused_one_stands_still_and_goes_on_from_now(router: Router) -> None:
    await create(router)
    paused = await pause(router, "holidays")
    assert (paused.state, paused.pause_reason) == (pb.Schedule.STATE_PAUSED, "holidays")
    assert times(paused.next_times)[0] == NOW + HOUR
    assert await pause(router, "again") == paused
    assert await at(router, NOW + 3.5 * HOUR) == 0
    resumed = await resume(router)
    assert (resumed.state, resumed.pause_reason) == (pb.Schedule.STATE_ACTIVE, "")
    assert times([resumed.next_time]) == [NOW + 4 * HOUR]
    assert await resume(router) == resumed
    assert await at(router, NOW + 4 * HOUR) == 1


async def test_a_changed_paused_one_stays_paused(router: Router) -> None:
    await create(router)
    await pause(router)
    assert (await update(router, "cron", cron="@daily")).state == pb.Schedule.STATE_PAUSED
    assert await at(router, NOW + 2 * DAY) == 0


async def test_by_hand_it_runs_now_whatever_is_open_or_paused(router: Router) -> None:
    await create(router)
    await pause(router)
    request = svc.TriggerScheduleRequest(name=NIGHTLY, request_id=str(uuid.uuid4()))
    first = await router.schedules.TriggerSchedule(request)
    assert await router.schedules.TriggerSchedule(request) == first
    request.request_id = str(uuid.uuid4())
    second = await router.schedules.TriggerSchedule(request)
    assert first.task.name != second.task.name
    assert [run.by_hand for run in second.schedule.recent_runs] == [True, True]
    assert (second.schedule.run_count, len(await tasks_of(router))) == (2, 2)


# ---------------------------------------------------------------- what is refused


async def test_a_refused_occurrence_is_told_and_the_next_one_tried(router: Router) -> None:
    team = router.registry.instance("team", Scope.ORCHESTRATION)
    await create(router, instance=team)
    router.registry.change(team, state=InstanceState.STOPPED)
    assert await at(router, NOW + HOUR) == 1
    schedule = await get(router)
    assert (schedule.error.reason, schedule.error_count) == ("INSTANCE_NOT_RUNNING", 1)
    assert dict(schedule.error.metadata) == {"instance": team, "state": "STOPPED"}
    assert schedule.error.code == Code.FAILED_PRECONDITION.value[0]
    assert (schedule.last_run.task, schedule.last_run.error.reason) == ("", "INSTANCE_NOT_RUNNING")
    listed = (await router.schedules.ListSchedules(svc.ListSchedulesRequest())).schedules[0]
    assert listed.error == schedule.error
    assert await tasks_of(router) == []

    router.registry.change(team, state=InstanceState.RUNNING)
    await at(router, NOW + 2 * HOUR)
    schedule = await get(router)
    assert (schedule.HasField("error"), schedule.error_count, schedule.run_count) == (False, 1, 1)
    assert [bool(run.task) for run in schedule.recent_runs] == [True, False]
    assert occurrences(await tasks_of(router)) == [NOW + 2 * HOUR]


async def test_a_refusal_is_believed_only_after_the_registry_was_asked(router: Router) -> None:
    """What was started a moment ago is used at once."""
    team = router.registry.instance("team", Scope.ORCHESTRATION)
    await create(router, instance=team)
    running = router.registry.current.instances[team]
    router.registry.change(team, state=InstanceState.STOPPED)
    router.registry.hidden[team] = running
    assert await at(router, NOW + HOUR) == 1
    schedule = await get(router)
    assert (schedule.run_count, schedule.error_count) == (1, 0)


async def test_one_that_is_refused_keeps_no_other_from_its_turn(router: Router) -> None:
    team = router.registry.instance("team", Scope.ORCHESTRATION)
    await create(router, "bad", instance=team)
    await create(router, "good")
    router.registry.change(team, state=InstanceState.TERMINATED)
    assert await at(router, NOW + HOUR) == 2
    assert [task.spec.labels["hopper.schedule"] for task in await tasks_of(router)] == ["good"]


async def test_a_zone_that_is_not_known_any_more_pauses_it_and_says_so(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(router, time_zone="Europe/Berlin")
    await create(router, "other")

    def unknown(name: str) -> tzinfo:
        if name == "Europe/Berlin":
            raise ZoneUnknown("is no time zone known here")
        return UTC

    schedules.parse_cron.cache_clear()
    monkeypatch.setattr(schedules, "zone_of", unknown)  # as after an update of the machine
    assert await at(router, NOW + HOUR) == 1
    monkeypatch.undo()
    schedule = await get(router)
    assert schedule.state == pb.Schedule.STATE_PAUSED
    assert "Europe/Berlin" in schedule.pause_reason


async def test_trouble_that_passes_loses_nothing(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be stored stays due."""
    await create(router)
    store = schedule_rows.ScheduleStore

    def fails(*_: Any, **__: Any) -> None:
        raise StorageUnavailable(service="router")

    monkeypatch.setattr(store, "end_run", fails)
    with pytest.raises(StorageUnavailable):
        await at(router, NOW + HOUR)
    assert await tasks_of(router) == []
    monkeypatch.undo()
    assert await at(router, NOW + HOUR) == 1
    assert occurrences(await tasks_of(router)) == [NOW + HOUR]


# ---------------------------------------------------------------- exactly once


async def test_however_many_look_at_once_each_occurrence_is_one_task(router: Router) -> None:
    """As replicas do that both think they lead."""
    for number in range(5):
        await create(router, f"s{number}", overlap=pb.Schedule.OVERLAP_QUEUE)
    for _ in range(5):
        router.clock.advance(HOUR)
        counts = await asyncio.gather(*(Scheduler(router.engine).run_due() for _again in range(8)))
        assert sum(counts) == 5
    found = await tasks_of(router)
    assert (
        len(
            {
                (task.spec.labels["hopper.schedule"], time)
                for task, time in zip(found, occurrences(found), strict=True)
            }
        )
        == 25
    )
    assert len(found) == 25


@pytest.mark.parametrize("engine_kind", ["postgresql"])  # SQLite has one process
async def test_two_routers_on_one_database_make_one_task_of_each(router: Router) -> None:
    await create(router, cron="* * * * *", overlap=pb.Schedule.OVERLAP_QUEUE)
    async with another(router) as other:
        for _ in range(20):
            router.clock.advance(MINUTE)
            counts = await asyncio.gather(Scheduler(router.engine).run_due(), Scheduler(other).run_due())
            assert sum(counts) == 1
    assert occurrences(await tasks_of(router)) == [NOW + minute * MINUTE for minute in range(1, 21)]


@asynccontextmanager
async def another(router: Router) -> AsyncIterator[Engine]:
    """A second router's engine on the same database."""
    db = await Database.open(
        router.url, metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    )
    try:
        yield await Engine.open(db, router.registry, router.clock)
    finally:
        await db.close()


async def test_a_row_from_a_moment_ago_makes_no_second_task(router: Router) -> None:
    """Should the time in the row be set back by whatever means, the runs remember."""
    made = await create(router, overlap=pb.Schedule.OVERLAP_QUEUE)
    await at(router, NOW + HOUR)

    def set_back(unit: Unit) -> None:
        store = schedule_rows.ScheduleStore(unit.store.conn)
        schedule = store.get("nightly")
        assert schedule is not None
        store.update(replace(schedule, next_time=NOW + HOUR, due_time=NOW + HOUR))

    await router.engine.run(set_back)
    await at(router, NOW + HOUR + MINUTE)
    assert occurrences(await tasks_of(router)) == [NOW + HOUR]
    schedule = await get(router)
    assert (schedule.run_count, times([schedule.next_time])) == (1, [NOW + 2 * HOUR])
    assert schedule.etag == made.etag


CRASHING = """
import asyncio, sys
from datetime import timedelta
from hopper_common import failpoints
from hopper_common.database import Database
from hopper_router import tables
from hopper_router.engine import Engine
from hopper_router.scheduling import Scheduler
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW, FakeRegistry

async def main(url, place):
    db = await Database.open(url, metadata=tables.metadata, migrations="hopper_router.migrations", service="router")
    engine = await Engine.open(db, FakeRegistry(), ManualClock(NOW + timedelta(hours=3)))
    with failpoints.active(f"{place}=kill@1"):
        await Scheduler(engine).run_due()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "place", ["transaction.begun", "unit.after", "commit.before", "commit.sent", "commit.after"]
)
async def test_a_crash_at_any_point_leaves_one_task_of_each(router: Router, place: str) -> None:
    """The process is killed around the commit in which three occurrences are caught up."""
    await create(router, catch_up=pb.Schedule.CATCH_UP_ALL, overlap=pb.Schedule.OVERLAP_QUEUE)
    await router.stop()
    crashed = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASHING, router.url, place)
    async with asyncio.timeout(300):  # it imports everything
        assert await crashed.wait() == -signal.SIGKILL
    await router.start()
    before = len(await tasks_of(router))
    if place != "commit.sent":  # of which nobody can know
        assert before == (3 if place == "commit.after" else 0)
    await at(router, NOW + 3 * HOUR)
    assert occurrences(await tasks_of(router)) == [NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR]
    schedule = await get(router)
    assert (schedule.run_count, times([schedule.next_time])) == (3, [NOW + 4 * HOUR])


async def test_old_runs_are_forgotten_and_open_ones_kept(router: Router) -> None:
    project = router.registry.project("web")
    await create(router, cron="* * * * *", overlap=pb.Schedule.OVERLAP_LIMIT, max_open=2)
    await at(router, NOW + MINUTE)
    (stuck,) = await tasks_of(router)
    await router.claim_one(project, worker="slow", lease_duration=to_proto(HOUR))
    for minute in range(2, schedule_rows.KEEP_RUNS + 10):
        await at(router, NOW + minute * MINUTE)
        if minute <= schedule_rows.KEEP_RUNS + 5:
            await router.complete(await router.claim_one(project))

    def runs(unit: Unit) -> list[str]:
        return [run.task for run in schedule_rows.ScheduleStore(unit.store.conn).last_runs("nightly", 1000)]

    kept = await router.engine.read(runs)
    assert len(kept) == schedule_rows.KEEP_RUNS + 1
    assert kept[-1] == stuck.name
    schedule = await get(router)
    assert schedule.skip_count == 3  # the stuck one still counts
    assert len(schedule.recent_runs) == 10


# ---------------------------------------------------------------- the loop


@asynccontextmanager
async def scheduling(router: Router) -> AsyncIterator[None]:
    """The loop runs by itself meanwhile, as the app runs it."""
    scheduler = Scheduler(router.engine, look_again_every=0.02)
    loop = asyncio.ensure_future(router.db.lead("scheduler", scheduler.schedule_forever))
    try:
        yield
        assert not loop.done()
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_the_loop_carries_out_what_becomes_due(router: Router) -> None:
    async with scheduling(router):
        await create(router)
        router.clock.advance(HOUR)

        async def ran() -> bool:
            return (await get(router)).run_count == 1

        await until(ran)


async def test_the_loop_wakes_when_a_schedule_is_changed(router: Router) -> None:
    """It does not wait for its next look, which is an hour away."""
    scheduler = Scheduler(router.engine, look_again_every=3600)
    loop = asyncio.ensure_future(scheduler.schedule_forever())
    try:
        await create(router)
        router.clock.advance(HOUR)
        await create(router, "other")

        async def ran() -> bool:
            return (await get(router)).run_count == 1

        await until(ran)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_the_loop_outlives_trouble(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(router)
    troubles = 0
    real = schedule_rows.ScheduleStore.due

    def troubled(self: schedule_rows.ScheduleStore, now: datetime, limit: int) -> list[str]:
        nonlocal troubles
        troubles += 1
        if troubles < 3:
            raise StorageUnavailable(service="router")
        return real(self, now, limit)

    monkeypatch.setattr(schedule_rows.ScheduleStore, "due", troubled)
    router.clock.advance(HOUR)
    async with scheduling(router):

        async def ran() -> bool:
            return (await get(router)).run_count == 1

        await until(ran)
    assert troubles >= 3
