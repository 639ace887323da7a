from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hopper_testing.clock import ManualClock
from tests.registry.harness import RunningRegistry


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    running = RunningRegistry(tmp_path / "hopper", ManualClock())
    await running.start()
    yield running
    await running.stop()
