from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.memory.harness", "tests.memory.suite_episodes", "tests.memory.suite_working"
)

from hopper_testing.clock import ManualClock  # noqa: E402 - after the rewriting is asked for
from tests.memory.harness import RunningMemory  # noqa: E402


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[RunningMemory]:
    running = RunningMemory(tmp_path / "hopper", ManualClock())
    await running.start()
    yield running
    await running.close()
