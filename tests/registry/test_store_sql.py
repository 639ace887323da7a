"""The store and its tables, on a real database."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from hopper_common.errors import InvalidArgument, StorageFull
from hopper_registry import instances, projects
from hopper_registry.errors import ProjectNotFound
from hopper_registry.model import (
    ROOT,
    Executor,
    Instance,
    InstanceSpec,
    ProjectSpec,
    Scope,
    Worker,
)
from hopper_registry.store_sql import Registry, SqlStore
from hopper_registry.tables import EVENTS, METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase, differences


@pytest.fixture
def registry(db: FaultyDatabase) -> Registry:
    return Registry(db, ManualClock())


async def test_the_migrations_make_the_tables(database_url: str) -> None:
    found = await differences(metadata=METADATA, migrations=MIGRATIONS, service="registry", url=database_url)
    assert found == []


async def test_a_project_comes_back_as_it_was_saved(registry: Registry) -> None:
    spec = ProjectSpec(
        tags=("a",),
        sla=timedelta(microseconds=1_500_000),
        priority_boosts={"a": -1.5},
        executor=Executor(config=b"\n\x05\n\x01a\x12\x00"),
    )
    saved = await registry.write(lambda store: projects.register(store, "projects/a", spec))
    assert saved.spec.executor.config
    assert await registry.read(lambda store: store.project("projects/a")) == saved


async def test_a_change_and_its_telling_are_there_both_or_neither(
    registry: Registry, db: FaultyDatabase
) -> None:
    def register_then_fail(store: SqlStore) -> None:
        projects.register(store, "projects/a", ProjectSpec())
        projects.get(store, "projects/none")

    with pytest.raises(ProjectNotFound):
        await registry.write(register_then_fail)
    db.set_next_error(StorageFull(service="registry"))
    with pytest.raises(StorageFull):
        await registry.write(lambda store: projects.register(store, "projects/a", ProjectSpec()))
    assert await registry.read(lambda store: store.projects()) == []
    assert await db.read(lambda conn: conn.scalar(select(func.count()).select_from(EVENTS))) == 0


async def test_two_instances_for_a_project_are_refused_by_the_table_too(registry: Registry) -> None:
    def save_two(store: SqlStore) -> None:
        for name in ("instances/a", "instances/b"):
            spec = InstanceSpec(Scope.PROJECT, ROOT, project="projects/a")
            store.save_instance(Instance(name, spec, 1, store.now, store.now))

    with pytest.raises(IntegrityError):
        await registry.write(save_two)


async def test_many_heartbeats_share_few_commits(registry: Registry, db: FaultyDatabase) -> None:
    await registry.write(lambda store: projects.register(store, "projects/a", ProjectSpec()))
    workers = [Worker(f"projects/a/workers/w{number}") for number in range(200)]

    async def beat(worker: Worker) -> Worker:
        return await registry.write(lambda store: projects.heartbeat(store, worker))

    await asyncio.gather(*map(beat, workers))
    version = await registry.read(lambda store: store.version)
    commits = db.committed.count
    await asyncio.gather(*map(beat, workers))
    assert db.committed.count - commits < len(workers) / 4
    assert await registry.read(lambda store: store.version) == version


async def test_a_tree_that_is_too_large_is_refused_rather_than_cut(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 100  # as many as there may be take minutes to make on a slow machine
    monkeypatch.setattr(instances, "TREE_LIMIT", most)

    def grow(store: SqlStore, first: int, last: int) -> None:
        for number in range(first, last):
            spec = InstanceSpec(Scope.EVENT, ROOT, display_name="e")
            store.save_instance(Instance(f"instances/e{number}", spec, 1, store.now, store.now))

    await registry.write(instances.ensure_root)
    await registry.write(lambda store: grow(store, 1, most))
    tree = await registry.read(lambda store: instances.tree(store, "", terminated=False))
    assert len(tree) == most
    await registry.write(lambda store: grow(store, most, most + 1))
    with pytest.raises(InvalidArgument) as refused:
        await registry.read(lambda store: instances.tree(store, "", terminated=False))
    assert [violation.field for violation in refused.value.violations] == ["root"]
