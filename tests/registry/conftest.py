"""The registry, on each engine in turn: what it promises on one, it promises on the other."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hopper_common.database import Database
from hopper_registry.tables import METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase
from hopper_testing.postgres import postgres_server
from tests.registry.harness import RunningRegistry

ENGINES = ("sqlite", "postgresql")


async def _open(url: str) -> Database:
    return await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="registry")


async def _migrate(url: str) -> None:
    await (await _open(url)).close()


def empty_database(engine: str, directory: Path) -> str:
    """Where the registry's database is, or can be made; empty."""
    if engine == "sqlite":
        return str(directory / "registry.db")
    return postgres_server().create_database(made_by=_migrate)


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """See `empty_database`."""
    return empty_database(request.param, tmp_path)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[FaultyDatabase]:
    db = FaultyDatabase(await _open(database_url))
    yield db
    await db.close()


@pytest.fixture
async def registry(tmp_path: Path, database_url: str) -> AsyncIterator[RunningRegistry]:
    running = RunningRegistry(tmp_path / "hopper", ManualClock(), database_url)
    await running.start()
    yield running
    await running.close()
