"""
Databases of released versions, brought up to this one: everything that was there is there, and goes on.

`released_0001.json` is what the release before the task engine wrote: fourteen tasks, one in each situation.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import hopper_router.migrations
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_common import sqlite_file
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.errors import DatabaseNewer
from hopper_router import tables
from hopper_testing.clock import ManualClock
from hopper_testing.database import differences
from hopper_testing.processes import temporary_directory
from tests.router.harness import HOUR, NOW, Router, State, a_database

RELEASED = Path(__file__).parent / "released_0001.json"
MIGRATIONS = "hopper_router.migrations"


def make_released(path: Path) -> None:
    """The SQLite file as release 0001 left it."""
    sqlite_file.prepare(path)
    engine = sa.create_engine(f"sqlite:///{path}")
    script = ScriptDirectory(str(Path(hopper_router.migrations.__path__[0])))
    with engine.begin() as connection:
        options: dict[str, Any] = {
            "version_table": "alembic_version_router",
            "fn": lambda revision, _context: script._upgrade_revs("0001", revision),
        }
        context = MigrationContext.configure(connection, opts=options)
        with Operations.context(context):
            context.run_migrations()
    engine.dispose()
    with sqlite3.connect(path) as driver:
        for table, rows in json.loads(RELEASED.read_text()).items():
            for row in rows:
                values = [bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for v in row.values()]
                marks = ", ".join("?" * len(values))
                driver.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", values)
        driver.execute(
            "INSERT INTO tasks_fts (id, title, description, tags) SELECT id, 'queued', '', '' FROM tasks "
            "WHERE tags <> ''"
        )


@pytest.fixture
async def upgraded(tmp_path: Path) -> AsyncIterator[Router]:
    """A router on a database that the release before made."""
    make_released(tmp_path / "router.db")
    router = Router(tmp_path, ManualClock(NOW + timedelta(seconds=1)))
    router.registry.project("web")
    router.registry.project("app", "swift")
    router.registry.team("team", "team")
    await router.start()
    yield router
    await router.close()


async def by_title(router: Router) -> dict[str, pb.Task]:
    every = [state for state in State.values() if state]
    return {task.spec.title: task for task in await router.found(states=every, view=pb.TASK_VIEW_FULL)}


async def test_every_task_is_where_it_was(upgraded: Router) -> None:
    tasks = await by_title(upgraded)
    states = {title: State.Name(task.state).removeprefix("STATE_") for title, task in tasks.items()}
    assert states | {"delegated": ""} == {
        "queued": "RUNNING",
        "depends": "QUEUED",
        "done": "SUCCEEDED",
        "failed": "FAILED",
        "backs off": "QUEUED",
        "held": "QUEUED",
        "asks": "INPUT_REQUIRED",
        "scheduled": "QUEUED",
        "with deadline": "QUEUED",
        "nobody can": "SUBMITTED",
        "called off": "CANCELLED",
        "ready": "QUEUED",
        "delegated": "",
    }
    assert tasks["done"].result == b"42"
    assert tasks["queued"].claim.worker == "ann"
    assert (tasks["asks"].input.question, tasks["asks"].claim.worker) == ("which?", "bob")
    assert (tasks["failed"].failure.reason, tasks["failed"].failure.message) == ("BROKEN", "no use")
    assert tasks["held"].hold.by == "cleo"


async def test_work_goes_on(upgraded: Router) -> None:
    tasks = await by_title(upgraded)
    web = "projects/web"
    ready = await upgraded.claim(web, "new", max_tasks=10)
    assert [task.spec.title for task in ready] == ["with deadline", "ready"]
    deadline = ready[0]
    assert deadline.claim.lease_expire_time.ToDatetime(NOW.tzinfo) == upgraded.clock.now() + timedelta(
        seconds=30
    )
    running = tasks["queued"]
    running.claim.fencing_token = 1
    (done,) = await upgraded.complete(running)
    assert done.updated.state == State.STATE_SUCCEEDED
    assert [task.spec.title for task in await upgraded.claim(web, max_tasks=10)] == ["depends"]
    await upgraded.pass_time(timedelta(minutes=11))
    assert "backs off" in [task.spec.title for task in await upgraded.claim(web, max_tasks=10)]
    await upgraded.pass_time(HOUR * 6)
    assert "scheduled" in [task.spec.title for task in await upgraded.claim(web, max_tasks=10)]
    team = await upgraded.claim("projects/team", max_tasks=10)
    assert [task.spec.title for task in team] == ["delegated"]
    await upgraded.complete(*team)
    assert (await upgraded.get((await by_title(upgraded))["delegated"])).state == State.STATE_SUCCEEDED


async def test_the_log_goes_on(upgraded: Router) -> None:
    watch = upgraded.tasks.WatchTasks(svc.WatchTasksRequest(after_generation=1))
    messages = aiter(watch)
    old = [await anext(messages) for _ in range(10)]
    assert [message.generation for message in old] == list(range(2, 12))
    watch.cancel()
    fresh = await upgraded.submit("fresh", project="projects/web")
    assert fresh.generation == 53
    request = svc.SearchTasksRequest(query="fresh")
    assert [task.name for task in (await upgraded.tasks.SearchTasks(request)).tasks] == [fresh.name]
    request = svc.SearchTasksRequest(query="queued", include_finished=True)
    assert len((await upgraded.tasks.SearchTasks(request)).tasks) == 1


@pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql"])
async def test_the_tables_are_those_of_the_code(engine_kind: str, tmp_path: Path) -> None:
    with a_database(engine_kind) as url:
        found = await differences(metadata=tables.metadata, migrations=MIGRATIONS, service="router", url=url)
    assert found == []


@pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql"])
async def test_a_newer_database_is_refused(engine_kind: str, tmp_path: Path) -> None:
    with a_database(engine_kind) as postgres:
        url = postgres or str(tmp_path / "router.db")

        async def opened() -> Database:
            return await Database.open(url, metadata=tables.metadata, migrations=MIGRATIONS, service="router")

        db = await opened()
        await db.write(
            lambda conn: conn.execute(sa.text("UPDATE alembic_version_router SET version_num = '9999'"))
        )
        await db.close()
        with pytest.raises(DatabaseNewer):
            await opened()


async def test_a_second_router_comes_while_the_first_takes_tasks_in() -> None:
    """Its look at the tables and its start cost the first nothing, and both see everything."""
    with a_database("postgresql") as url, temporary_directory() as one, temporary_directory() as other:
        first, second = (Router(path, SystemClock(), url) for path in (one, other))
        for router in (first, second):
            router.registry.project("web")
        await first.start()
        enough = asyncio.Event()
        names: list[str] = []

        async def submit() -> None:
            while not enough.is_set():
                names.append((await first.submit("x")).name)

        submitting = [asyncio.ensure_future(submit()) for _ in range(4)]
        await second.start()
        enough.set()
        await asyncio.gather(*submitting)
        assert {task.name for task in await second.found()} == set(names)
        await second.close()
        await first.close()
