import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_router import tables
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW, Router, a_router


@pytest.fixture(scope="session")
def empty_router_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once."""
    path = tmp_path_factory.mktemp("router") / "router.db"

    async def make() -> None:
        db = await Database.open(
            path, metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
        )
        await db.close()

    asyncio.run(make())
    return path


@pytest.fixture
async def router(empty_router_db: Path) -> AsyncIterator[Router]:
    """A router whose time stands still."""
    async with a_router(empty_router_db, ManualClock(NOW)) as made:
        yield made


@pytest.fixture
async def live_router(empty_router_db: Path) -> AsyncIterator[Router]:
    """A router in real time, whose loops run."""
    async with a_router(empty_router_db, SystemClock()) as made, made.running():
        yield made
