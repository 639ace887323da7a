from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hopper_client import AsyncHopper, presence, shift
from tests.client.router import Router, RunningRouter


@pytest.fixture(autouse=True)
def _time_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker says last is waited for, however busy the machine is: a person would not have the patience."""
    monkeypatch.setattr(shift, "RELEASE_TIMEOUT", 60.0)
    monkeypatch.setattr(presence, "LEAVE_TIMEOUT", 60.0)


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
