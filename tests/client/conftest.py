from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hopper_client import AsyncHopper
from tests.client.router import Router, RunningRouter


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningRouter]:
    running = RunningRouter(tmp_path / "hopper.sock")
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def router(running: RunningRouter) -> Router:
    return running.router


@pytest.fixture
async def hopper(running: RunningRouter) -> AsyncIterator[AsyncHopper]:
    async with AsyncHopper(running.address) as hopper:
        yield hopper
