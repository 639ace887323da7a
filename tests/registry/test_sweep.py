"""What the registry does by itself, on a real database and with the clock in the test's hand."""

from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from uuid import uuid4

import pytest
import structlog.testing
from sqlalchemy import func, insert, select

from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest, RegisterProjectResponse
from hopper_common.errors import ResumeTooOld, StorageFull, StorageUnavailable
from hopper_common.eventlog import EventLog
from hopper_common.timestamps import to_micros
from hopper_registry import projects
from hopper_registry.model import Presence, ProjectSpec, Worker
from hopper_registry.store_sql import KEEP_EVENTS, PROJECT_CHANGED, Registry
from hopper_registry.sweep import Sweeper
from hopper_registry.tables import EVENTS, REQUESTS
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def registry(db: FaultyDatabase, clock: ManualClock) -> Registry:
    registry = Registry(db, clock)
    await registry.write(lambda store: projects.register(store, "projects/a", ProjectSpec()))
    return registry


async def beat(registry: Registry, worker: str, seconds: int) -> None:
    alive = Worker(f"projects/a/workers/{worker}", time_to_live=seconds * SECOND)
    await registry.write(lambda store: projects.heartbeat(store, alive))


async def live(registry: Registry) -> dict[str, bool]:
    workers = await registry.read(lambda store: store.workers("projects/a"))
    return {worker.name.rsplit("/", 1)[1]: worker.live for worker in workers}


async def presence(registry: Registry) -> Presence:
    return await registry.read(lambda store: projects.get(store, "projects/a").presence)


async def test_each_worker_dies_when_its_own_time_to_live_has_run_out(
    registry: Registry, clock: ManualClock
) -> None:
    sweeper = Sweeper(registry, clock)
    await beat(registry, "short", 10)
    await beat(registry, "long", 30)
    clock.advance(10 * SECOND - timedelta(microseconds=1))
    await sweeper.sweep()
    assert await live(registry) == {"short": True, "long": True}
    clock.advance(timedelta(microseconds=1))
    await sweeper.sweep()
    assert await live(registry) == {"short": False, "long": True}
    assert await presence(registry) == Presence(live_workers=1, slots=1)
    clock.advance(20 * SECOND)
    await sweeper.sweep()
    assert await live(registry) == {"short": False, "long": False}
    assert await presence(registry) == Presence()


async def test_a_heartbeat_keeps_a_worker_alive_and_brings_it_back(
    registry: Registry, clock: ManualClock
) -> None:
    sweeper = Sweeper(registry, clock)
    await beat(registry, "w", 10)
    for _ in range(5):
        clock.advance(9 * SECOND)
        await beat(registry, "w", 10)
        await sweeper.sweep()
        assert await live(registry) == {"w": True}
    clock.advance(10 * SECOND)
    await sweeper.sweep()
    assert await live(registry) == {"w": False}
    await beat(registry, "w", 10)
    assert await presence(registry) == Presence(live_workers=1, slots=1)


async def test_a_project_is_told_once_however_many_of_its_workers_die(
    registry: Registry, clock: ManualClock
) -> None:
    for number in range(5):
        await beat(registry, f"w{number}", 10)
    before = await registry.read(lambda store: store.version)
    clock.advance(10 * SECOND)
    await Sweeper(registry, clock).sweep()
    assert await registry.read(lambda store: store.version) == before + 1


async def test_a_dead_worker_is_forgotten_after_a_day(registry: Registry, clock: ManualClock) -> None:
    sweeper = Sweeper(registry, clock)
    await beat(registry, "gone", 10)
    clock.advance(10 * SECOND + timedelta(days=1))
    await beat(registry, "here", 10)
    await sweeper.sweep()
    assert await live(registry) == {"gone": False, "here": True}
    clock.advance(timedelta(minutes=1))
    await sweeper.sweep()
    assert await live(registry) == {"here": False}


async def test_a_quiet_round_writes_nothing(
    registry: Registry, clock: ManualClock, db: FaultyDatabase
) -> None:
    sweeper = Sweeper(registry, clock)
    await beat(registry, "w", 10)
    await sweeper.sweep()
    commits = db.committed.count
    clock.advance(SECOND)
    await sweeper.sweep()
    assert db.committed.count == commits


async def test_sweeping_outlives_a_full_disk_but_not_a_defect(
    registry: Registry, clock: ManualClock, db: FaultyDatabase
) -> None:
    await beat(registry, "w", 10)
    clock.advance(10 * SECOND)
    db.set_next_error(StorageFull(service="registry"))
    db.set_next_error(StorageUnavailable(service="registry"))
    db.set_next_error(RuntimeError("a defect"), at="answer")
    with pytest.raises(RuntimeError, match="a defect"), structlog.testing.capture_logs() as logs:
        await Sweeper(registry, clock, pause=0).run()
    put_off = [entry["reason"] for entry in logs if entry["event"] == "sweep put off"]
    assert put_off == ["STORAGE_FULL", "STORAGE_UNAVAILABLE"]
    assert await live(registry) == {"w": False}


async def test_first_answers_are_kept_for_a_day(
    registry: Registry, clock: ManualClock, db: FaultyDatabase
) -> None:
    async def answer() -> None:
        request = RegisterProjectRequest(project_id="x", project=Project(), request_id=str(uuid4()))
        await registry.answer(request, RegisterProjectResponse, lambda store: RegisterProjectResponse())

    async def kept() -> int:
        return await db.read(lambda conn: conn.scalar(select(func.count()).select_from(REQUESTS)) or 0)

    await answer()
    clock.advance(timedelta(days=1))
    await registry.forget()
    assert await kept() == 1
    clock.advance(SECOND)
    await answer()
    await registry.forget()
    assert await kept() == 1


async def oldest(db: FaultyDatabase) -> int:
    return await db.read(EventLog(EVENTS).oldest)


async def head(db: FaultyDatabase) -> int:
    return await db.read(lambda conn: conn.scalar(select(func.max(EVENTS.c.version))) or 0)


def many_events(clock: ManualClock, count: int) -> Callable[..., None]:
    row = {
        "topic": PROJECT_CHANGED,
        "key": "projects/a",
        "body": b"",
        "create_time": to_micros(clock.now()),
    }
    return lambda conn: conn.execute(insert(EVENTS), [row] * count)


async def test_changes_are_dropped_when_they_are_both_old_and_many(
    registry: Registry, clock: ManualClock, db: FaultyDatabase
) -> None:
    await db.write(many_events(clock, KEEP_EVENTS + 500))
    await registry.forget()
    assert await oldest(db) == 1  # many, but young

    clock.advance(timedelta(hours=1, seconds=1))
    await registry.forget()
    first_kept = await head(db) - KEEP_EVENTS + 1
    assert await oldest(db) == first_kept > 1

    async with aclosing(registry.changes(after=first_kept - 2, topics=())) as changes:
        with pytest.raises(ResumeTooOld) as refused:
            await anext(changes)
    assert refused.value.metadata == {"oldest": str(first_kept), "asked": str(first_kept - 2)}
    async with aclosing(registry.changes(after=first_kept - 1, topics=())) as changes:
        assert (await anext(changes))[0].version == first_kept


async def test_old_changes_are_kept_while_they_are_few_and_young_ones_though_many(
    registry: Registry, clock: ManualClock, db: FaultyDatabase
) -> None:
    clock.advance(timedelta(days=9))
    await registry.forget()
    assert await oldest(db) == 1
    await db.write(many_events(clock, KEEP_EVENTS + 500))
    await registry.forget()
    assert await oldest(db) == 2  # the registration, nine days ago
