"""The federation service, on each engine in turn: what it promises on one, it promises on the other."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hopper_common.database import Database
from hopper_federation.store_sql import Federation
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from hopper_testing.processes import temporary_directory
from tests.federation.harness import RunningFederation


async def _open(url: str) -> Database:
    return await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="federation")


async def _migrate(url: str) -> None:
    await (await _open(url)).close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the database is, or can be made; empty."""
    if request.param == "sqlite":
        return str(tmp_path / "federation.db")
    return postgres_server().create_database(made_by=_migrate)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))  # gRPC goes by the real time when it looks at certificates


@pytest.fixture
async def federation(database_url: str, clock: ManualClock) -> AsyncIterator[Federation]:
    """The store."""
    db = await _open(database_url)
    yield Federation(db, clock)
    await db.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with temporary_directory() as directory:
        yield directory


@pytest.fixture
async def alice(place: Path, clock: ManualClock) -> AsyncIterator[RunningFederation]:
    running = RunningFederation(place / "alice", clock)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
async def bob(place: Path, clock: ManualClock) -> AsyncIterator[RunningFederation]:
    running = RunningFederation(place / "bob", clock)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
async def eve(place: Path, clock: ManualClock) -> AsyncIterator[RunningFederation]:
    running = RunningFederation(place / "eve", clock)
    await running.start()
    yield running
    await running.close()
