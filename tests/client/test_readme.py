"""The README's examples run as they are."""

import asyncio
import os
import re
import sys
from pathlib import Path

from hopper.router.v1.task_pb2 import Task
from tests.client.router import RunningRouter

README = Path(__file__).parents[2] / "libs" / "client" / "README.md"
SUBMIT, MANY, WATCH, WORK, GET = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


async def run(example: str, running: RunningRouter) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        example,
        env={**os.environ, "HOPPER_ADDRESS": running.address},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def test_ask_and_get(running: RunningRouter) -> None:
    assert "went to projects/alpha" in await run(SUBMIT, running)
    assert await run(GET, running) == "TASK_NOT_FOUND {'task': 'instances/global/tasks/nosuch'}\n"


async def test_many_are_asked_for_where_no_streams_are_offered(running: RunningRouter) -> None:
    assert (await run(MANY, running)).split() == list(running.router.tasks)
    titles = [task.spec.title for task in running.router.tasks.values()]
    assert titles == [f"read chapter {number}" for number in range(1, 6)]


async def test_follow_what_a_worker_does(running: RunningRouter) -> None:
    watching = asyncio.create_task(run(WATCH, running))
    await running.router.wait_for(lambda: running.router.watchers == 1)
    assert "succeeded=1" in await run(WORK, running)
    assert (await watching).split() == ["CLAIM", "PROGRESS", "COMPLETE"]
    assert running.router.in_state(Task.STATE_SUCCEEDED)[0].result == b"done: tidy the release notes"
