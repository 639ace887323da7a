import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from hopper_common.clock import SystemClock
from hopper_router import clockwork, engine
from hopper_router.hub import Hub
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW, Router, a_router, make_tables


@pytest.fixture(scope="session")
def empty_router_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once."""
    path = tmp_path_factory.mktemp("router") / "router.db"

    asyncio.run(make_tables(str(path)))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_kind(request: pytest.FixtureRequest) -> str:
    """Every behaviour of the router is that of both engines."""
    return str(request.param)


@pytest.fixture
async def router(empty_router_db: Path, engine_kind: str) -> AsyncIterator[Router]:
    """A router whose time stands still."""
    async with a_router(empty_router_db, ManualClock(NOW), engine=engine_kind) as made:
        yield made


@pytest.fixture
def no_safety_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks only because time has passed: who waits is told, or waits in vain."""
    monkeypatch.setattr(engine, "Hub", partial(Hub, safety_net=3600.0))
    monkeypatch.setattr(clockwork, "LOOK_AGAIN_EVERY", 3600.0)


@pytest.fixture
async def live_router(empty_router_db: Path, engine_kind: str, no_safety_net: None) -> AsyncIterator[Router]:
    """A router in real time, whose loops run."""
    async with a_router(empty_router_db, SystemClock(), engine=engine_kind) as made, made.running():
        yield made
