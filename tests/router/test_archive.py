"""What is finished goes to the archive, whole, and only when nobody needs it; what is there is found, and forgotten."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.queue_service_pb2 import ArchiveTasksRequest, ArchiveTasksResponse
from hopper_common.timestamps import to_micros
from hopper_router import archive, archive_months, tables
from hopper_router.archive_months import Month
from hopper_router.retention import Retention
from hopper_router.settings import RouterSettings
from hopper_router.store_sql import EPISODES_SENT, EVENTS, Store
from tests.router.harness import HOUR, NOW, ROOT, Code, Router, refusal

DAY = timedelta(days=1)


@pytest.fixture
async def web(router: Router) -> Router:
    router.registry.project("web", "web")
    return router


async def tell_memory(router: Router) -> None:
    """Memory has been told of everything so far."""
    await router.db.write(lambda conn: Store(conn).put_value(EPISODES_SENT, str(EVENTS.head(conn)).encode()))


async def archived(router: Router, older_than: timedelta = HOUR, **fields: Any) -> list[ArchiveTasksResponse]:
    request = ArchiveTasksRequest(**fields)
    request.older_than.FromTimedelta(older_than)
    return [response async for response in router.queues.ArchiveTasks(request)]


async def count(router: Router, table: str) -> int:
    query = text(f"SELECT count(*) FROM {table}")
    return int(await router.db.read(lambda conn: conn.execute(query).scalar_one()))


async def finished(router: Router, how_many: int = 1, **fields: Any) -> list[pb.Task]:
    for n in range(how_many):
        await router.submit(f"task {n}", required_capabilities=["web"], **fields)
    claimed = await router.claim("projects/web", max_tasks=min(how_many, 100))
    await router.complete(*claimed, result=b"it stands")
    return claimed


async def later(router: Router, time: timedelta = 2 * HOUR) -> None:
    await tell_memory(router)
    router.clock.advance(time)


# ---------------------------------------------------------------- going


async def test_a_finished_task_goes_whole_and_is_found_as_it_was(web: Router) -> None:
    (task,) = await finished(web, description="a long story", tags=["fence"])
    full = await web.get(task, pb.TASK_VIEW_FULL)
    basic = await web.get(task)
    await later(web)

    assert [(each.total, each.moved, each.done) for each in await archived(web)] == [
        (1, 0, False), (1, 1, False), (1, 1, True)
    ]  # fmt: skip

    assert await web.get(task, pb.TASK_VIEW_FULL) == full
    assert await web.get(task) == basic
    for table in ("tasks", "routing_decisions", "task_dependencies", "task_attempts", "task_delegations"):
        assert await count(web, table) == 0, table
    assert await count(web, "tasks_archive") == 1
    states = [pb.Task.STATE_SUCCEEDED]
    assert await web.found(states=states) == []
    (decision,) = await web.db.read(lambda conn: archive.decisions(conn, task.name))
    assert decision.name == full.decision


async def test_attempts_and_dependencies_go_with_their_task(web: Router) -> None:
    first = await web.submit(required_capabilities=["web"])
    second = await web.submit(required_capabilities=["web"], dependencies=[first.name])
    await web.fail(await web.claim_one("projects/web"))
    await web.pass_time(timedelta(seconds=1))
    await web.complete(await web.claim_one("projects/web"))
    await web.complete(await web.claim_one("projects/web"))
    assert (await count(web, "task_attempts"), await count(web, "task_dependencies")) == (1, 1)
    await later(web)
    assert (await archived(web))[-1].moved == 2
    assert (await count(web, "task_attempts"), await count(web, "task_dependencies")) == (0, 0)
    found = await web.get(second, pb.TASK_VIEW_FULL)
    assert list(found.spec.dependencies) == [first.name]


async def test_a_dry_run_only_counts(web: Router) -> None:
    await finished(web, 3)
    await later(web)
    assert [(each.total, each.moved, each.done) for each in await archived(web, dry_run=True)] == [
        (3, 0, True)
    ]
    assert await count(web, "tasks") == 3


async def test_it_goes_in_steps_and_may_be_broken_off(web: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "STEP", 2)
    monkeypatch.setattr(archive, "WINDOW", 3)
    await finished(web, 7)
    await later(web)
    request = ArchiveTasksRequest()
    request.older_than.FromTimedelta(HOUR)
    write, writes = web.db.write, 0

    async def once(work: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes > 1:
            await asyncio.Event().wait()  # the second step does not come before it is broken off
        return await write(work)

    with monkeypatch.context() as patch:
        patch.setattr(web.db, "write", once)
        call = web.queues.ArchiveTasks(request)
        async for response in call:
            if response.moved:
                call.cancel()
                break
    assert (await count(web, "tasks"), await count(web, "tasks_archive")) == (5, 2)
    assert (await archived(web))[-1].done
    assert (await count(web, "tasks"), await count(web, "tasks_archive")) == (0, 7)


# ---------------------------------------------------------------- staying


async def test_what_has_just_ended_or_has_not_ended_stays(web: Router) -> None:
    await finished(web)
    open_ = await web.submit(required_capabilities=["web"])
    await later(web)
    await finished(web, 2)
    await tell_memory(web)
    assert (await archived(web))[-1].moved == 1
    assert await count(web, "tasks") == 3 - 0
    assert (await web.get(open_)).state != pb.Task.STATE_UNSPECIFIED


async def test_what_memory_has_not_been_told_of_stays(web: Router) -> None:
    await finished(web)
    web.clock.advance(DAY)
    assert (await archived(web))[-1].total == 0
    await tell_memory(web)
    assert (await archived(web))[-1].moved == 1


async def test_what_an_open_task_depends_on_stays(web: Router) -> None:
    (first,) = await finished(web)
    second = await web.submit(required_capabilities=["web"], dependencies=[first.name])
    await later(web)
    assert (await archived(web))[-1].moved == 0
    await web.cancel(second)
    await later(web)
    assert (await archived(web))[-1].moved == 2


async def test_parts_stay_until_the_whole_is_done_and_the_whole_until_its_parts_are_gone(
    router: Router,
) -> None:
    router.registry.team("team", "team")
    task = await router.submit(parent="instances/team", required_capabilities=["team"])
    parts = [{"spec": pb.TaskSpec(title="p", required_capabilities=["team"])} for _ in range(2)]
    await router.delegate(task, Delegation.KIND_DECOMPOSE, subtasks=parts)
    one, other = await router.claim("projects/team", max_tasks=2)
    await router.complete(one)
    await later(router, timedelta(seconds=20))
    router.clock.advance(-timedelta(seconds=20) + timedelta(seconds=20))
    assert (await archived(router))[-1].total == 0
    await router.complete(other)
    assert (await router.get(task)).state == pb.Task.STATE_SUCCEEDED
    await later(router, DAY)
    assert (await archived(router))[-1].moved == 2
    assert (await router.get(one)).state == pb.Task.STATE_SUCCEEDED
    assert len(await router.chain(task)) == 1
    assert (await archived(router))[-1].moved == 1
    assert await count(router, "task_delegations") == 0


@pytest.mark.parametrize("what", ["replayed", "awaited"])
async def test_what_changes_between_the_look_and_the_move_stays(web: Router, what: str) -> None:
    await web.submit(required_capabilities=["web"], retry=pb.RetryPolicy(max_attempts=1))
    task = await web.fail(await web.claim_one("projects/web"))
    await later(web)
    packed = await web.db.read(lambda conn: archive.pack(conn, [task.name[-26:]]))
    if what == "replayed":
        await web.tasks.ReplayTasks(task_svc.ReplayTasksRequest(names=[task.name]))
    else:
        await web.submit(required_capabilities=["web"], dependencies=[task.name])
    assert await web.db.write(lambda conn: archive.move(conn, packed)) == 0
    assert await count(web, "tasks_archive") == 0


async def test_two_at_once_move_each_task_once(web: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "STEP", 2)
    await finished(web, 9)
    await later(web)
    both = await asyncio.gather(archived(web), archived(web))
    assert sum(each[-1].moved for each in both) == 9
    assert await count(web, "tasks_archive") == 9


# ---------------------------------------------------------------- what others notice


async def test_an_archived_task_is_not_found_by_who_would_change_it(web: Router) -> None:
    (task,) = await finished(web)
    await later(web)
    await archived(web)
    await refusal(
        web.tasks.CancelTask(task_svc.CancelTaskRequest(name=task.name)),
        Code.NOT_FOUND, "TASK_NOT_FOUND", task=task.name,
    )  # fmt: skip
    await refusal(
        web.tasks.GetTask(task_svc.GetTaskRequest(name=f"{ROOT}/tasks/{'0' * 26}")),
        Code.NOT_FOUND, "TASK_NOT_FOUND", task=f"{ROOT}/tasks/{'0' * 26}",
    )  # fmt: skip


async def test_a_repeat_of_a_call_gets_the_first_answer_though_its_task_is_archived(web: Router) -> None:
    spec = pb.TaskSpec(title="t", required_capabilities=["web"])
    request = task_svc.SubmitTaskRequest(
        parent=ROOT, spec=spec, request_id="7f1c5c60-0000-4000-8000-000000000001"
    )
    first = await web.tasks.SubmitTask(request)
    await web.complete(await web.claim_one("projects/web"))
    await later(web)
    assert (await archived(web))[-1].moved == 1
    again = await web.tasks.SubmitTask(request)
    assert again.task.name == first.task.name
    assert again.decision == first.decision


async def test_the_log_still_tells_of_archived_tasks(web: Router) -> None:
    (task,) = await finished(web)
    await later(web)
    await archived(web)
    kinds = []
    async for response in web.tasks.WatchTasks(task_svc.WatchTasksRequest(parent=ROOT, after_generation=1)):
        kinds.append(response.change.kind)
        assert response.change.task.name == task.name
        if len(kinds) == 2:
            break
    assert kinds == ["CLAIM", "COMPLETE"]


async def test_words_of_archived_tasks_are_forgotten(web: Router) -> None:
    await finished(web, 2)
    await web.submit("still here", required_capabilities=["web"])
    found = await web.tasks.SearchTasks(task_svc.SearchTasksRequest(query="task", include_finished=True))
    assert len(found.tasks) == 2
    await later(web)
    await archived(web)
    assert await count(web, "tasks_fts" if web.db.dialect == "sqlite" else "task_words") == 1
    still = await web.tasks.SearchTasks(task_svc.SearchTasksRequest(query="here"))
    assert [task.spec.title for task in still.tasks] == ["still here"]


# ---------------------------------------------------------------- by itself


async def test_it_archives_and_forgets_by_itself_what_the_settings_say(web: Router) -> None:
    settings = RouterSettings(keep_finished=DAY, keep_archive=100 * DAY)
    retention = Retention(web.db, web.clock, settings)
    (task,) = await finished(web)
    await later(web, DAY / 2)
    assert await retention.keep_house() == 0
    web.clock.advance(DAY)
    assert await retention.keep_house() == 1
    assert await retention.keep_house() == 0
    web.clock.advance(50 * DAY)
    await retention.keep_house()
    assert (await web.get(task)).name == task.name
    web.clock.advance(100 * DAY)
    await retention.keep_house()
    assert await count(web, "tasks_archive") == 0


async def test_nothing_is_kept_house_of_when_all_is_to_be_kept(web: Router) -> None:
    await finished(web)
    await later(web, 10_000 * DAY)
    keep_all = RouterSettings(keep_finished=timedelta(0), keep_archive=timedelta(0))
    assert await Retention(web.db, web.clock, keep_all).keep_house() == 0
    assert await count(web, "tasks") == 1


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPPER_ROUTER_KEEP_FINISHED", raising=False)
    assert RouterSettings().keep_finished == 30 * DAY
    monkeypatch.setenv("HOPPER_ROUTER_KEEP_FINISHED", "P7D")
    monkeypatch.setenv("HOPPER_ROUTER_KEEP_ARCHIVE", "86400")
    assert (RouterSettings().keep_finished, RouterSettings().keep_archive) == (7 * DAY, DAY)


# ---------------------------------------------------------------- months


@pytest.mark.parametrize(
    ("month", "count_", "expected"),
    [(Month(2026, 1), 0, (2026, 1)), (Month(2026, 11), 2, (2027, 1)), (Month(2026, 12), 1, (2027, 1)),
     (Month(2026, 1), 24, (2028, 1))],
)  # fmt: skip
def test_months_follow_each_other(month: Month, count_: int, expected: tuple[int, int]) -> None:
    assert month.next(count_) == expected


on_postgres = pytest.mark.parametrize("engine_kind", ["postgresql"])
"""Only PostgreSQL has partitions."""


@on_postgres
async def test_each_month_has_a_partition_made_before_it_is_needed(web: Router) -> None:
    await finished(web)
    await later(web, 40 * DAY)
    await archived(web)
    months = await web.db.read(archive_months.partitions)
    assert months == {Month(2026, 1), Month(2026, 2), Month(2026, 3), Month(2026, 4)}
    assert (await count(web, "tasks_archive_2026_01"), await count(web, archive_months.REST)) == (1, 0)


@on_postgres
async def test_what_lay_in_the_rest_moves_to_its_month(web: Router) -> None:
    row = {"id": "x", "instance": ROOT, "project": "", "state": "SUCCEEDED", "body": b""}
    times = [to_micros(time) for time in (NOW, NOW + 31 * DAY - timedelta(microseconds=1), NOW + 31 * DAY)]

    def insert(conn: Connection) -> None:
        conn.execute(tables.archive.insert(), [{**row, "finish_time": time} for time in times])

    await web.db.write(insert)
    assert await count(web, archive_months.REST) == 3
    made = await web.db.write(lambda conn: archive_months.ensure(conn, times[:1], NOW - 365 * DAY))
    assert Month(2026, 1) in made
    assert (await count(web, "tasks_archive_2026_01"), await count(web, archive_months.REST)) == (2, 1)
    assert await web.db.write(lambda conn: archive_months.ensure(conn, times[:1], NOW - 365 * DAY)) == []
    total = select(func.count()).select_from(tables.archive)
    assert await web.db.read(lambda conn: conn.execute(total).scalar()) == 3


@on_postgres
@pytest.mark.parametrize(
    ("before", "left"), [(NOW + 30 * DAY, True), (NOW + 31 * DAY, False), (NOW + 365 * DAY, False)]
)
async def test_a_month_is_dropped_when_all_of_it_is_old(web: Router, before: datetime, left: bool) -> None:
    (task,) = await finished(web)
    await later(web, 40 * DAY)
    await archived(web)
    await web.db.write(lambda conn: archive_months.drop(conn, before))
    assert (Month(2026, 1) in await web.db.read(archive_months.partitions)) == left
    assert bool(await web.db.read(lambda conn: archive.tasks(conn, [task.name]))) == left
