"""
Many at once: a flood of tasks of one requester, and a thousand workers who wait for one.

`HOPPER_FLOOD_TASKS` tasks (5,000; `make faults` takes 100,000) with one fairness key; `HOPPER_HERD_WORKERS` waiting
workers (1,000).
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import grpc.aio
import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2 import GetTaskRequest, SubmitTasksItem, SubmitTasksRequest
from hopper.router.v1.work_service_pb2 import ClaimTasksResponse
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import AsyncHopper
from hopper_testing.processes import HopperProcess
from hopper_testing.workload import PROJECT, ROOT, claim_request, prepare, task_spec
from tests.faults.stage import ENGINES, Engine, Stage, stage_in_temporary_directory

FLOOD: Final = int(os.environ.get("HOPPER_FLOOD_TASKS", "5000"))
HERD: Final = int(os.environ.get("HOPPER_HERD_WORKERS", "1000"))
_BATCH: Final = 1000
_WAIT_SECONDS: Final = 30.0
_OF_A_POLL: Final = 3
"""Transactions, at most, of one that finds nothing."""

Figure = Callable[[str, object], None]


@pytest.fixture(params=ENGINES)
def lone(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An empty Hopper with one router, on each engine."""
    engine: Engine = request.param
    with stage_in_temporary_directory(engine, replicas=1) as stage:
        prepare(stage.addresses[0])
        yield stage


@pytest.mark.slow
@pytest.mark.timeout(1200 + FLOOD // 50)
async def test_a_flood_of_one_requester_is_taken_in_whole_and_starves_nobody(
    lone: Stage, figure: Figure
) -> None:
    async with AsyncHopper(lone.addresses[0], timeout=120.0) as hopper:
        names: set[str] = set()
        began = time.monotonic()
        for batch in range(0, FLOOD, _BATCH):
            count = min(_BATCH, FLOOD - batch)
            items = [
                SubmitTasksItem(spec=task_spec(f"flood {batch + number}", key="flood"))
                for number in range(count)
            ]
            answer = await hopper.tasks.SubmitTasks(SubmitTasksRequest(parent=ROOT, items=items))
            assert not any(result.HasField("error") for result in answer.results)
            names |= {result.task.name for result in answer.results}
        figure("tasks/s taken in", round(FLOOD / (time.monotonic() - began)))
        assert len(names) == FLOOD
        # Ten of somebody else's come last, and are among the first to be had.
        for number in range(10):
            await hopper.submit(f"other {number}", project=PROJECT, requester="other")
        began = time.monotonic()
        first = [await claim_one(hopper) for _ in range(40)]
        figure("ms a claim, before so many", round((time.monotonic() - began) / 40 * 1e3, 1))
        assert sum(task.spec.requester == "other" for task in first) == 10
        taken = Counter(task.name for task in first)
        while tasks := (await hopper.work.ClaimTasks(claim_request("w", 100, lease=3600))).tasks:
            taken.update(task.name for task in tasks)
            if len(taken) >= min(FLOOD, 10_000):
                break
    assert set(taken.values()) == {1}
    assert len(taken) >= min(FLOOD, 10_000)


async def claim_one(hopper: AsyncHopper) -> Task:
    (task,) = (await hopper.work.ClaimTasks(claim_request("w", lease=3600))).tasks
    return task


@pytest.mark.slow
async def test_of_a_herd_that_waits_one_gets_the_task_and_nobody_else_stirs(
    lone: Stage, figure: Figure
) -> None:
    (router,) = lone.routers
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with AsyncHopper(lone.addresses[0], timeout=30.0) as hopper:
        # Workers share a few connections, as those of a few machines would.
        channels = [grpc.aio.insecure_channel(lone.addresses[0], options=own) for _ in range(20)]
        polls: Counter[int] = Counter()
        waiting = [
            asyncio.ensure_future(wait_for_work(channels[number % len(channels)], number, polls))
            for number in range(HERD)
        ]
        await settled(router, transactions(lone))
        before, cpu, began = transactions(lone)(), cpu_seconds(router), time.monotonic()
        asked = polls.total()
        name = (await hopper.submit("one for a thousand", project=PROJECT)).task.name
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        figure("ms until one of the herd has it", round((time.monotonic() - began) * 1e3))
        slowest = await slowest_read(hopper, name)
        figure("ms of the slowest read beside them", round(slowest * 1e3))
        figure("CPU seconds of the server", round(cpu_seconds(router) - cpu, 2))
        await asyncio.sleep(1.2)  # what the server counts is a second late
        counted, asked_again = transactions(lone)() - before, polls.total() - asked
        figure("transactions", counted)
        # One claim, the submission, reads of this test, and what goes on by itself every second: not a thousand.
        assert counted - _OF_A_POLL * asked_again < HERD / 2
        for poll in waiting:
            poll.cancel()
        await asyncio.wait(waiting)
        for channel in channels:
            await channel.close()
    answers = [poll.result() for poll in waiting if not poll.cancelled()]
    assert [task.name for answer in answers for task in answer.tasks] == [name]
    assert len(done) == 1


async def wait_for_work(channel: grpc.aio.Channel, number: int, polls: Counter[int]) -> ClaimTasksResponse:
    """Poll until there is some: on a slow machine the first may be over before the last of the herd has come."""
    request = claim_request(f"w{number}", wait=_WAIT_SECONDS, lease=3600)
    while True:
        polls[number] += 1
        answer = await WorkServiceStub(channel).ClaimTasks(request, timeout=_WAIT_SECONDS + 60)
        if answer.tasks:
            return answer


async def settled(router: HopperProcess, count: Callable[[], int]) -> None:
    """Wait until all wait: the server has nothing to do for a second."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        before, cpu = count(), cpu_seconds(router)
        await asyncio.sleep(1.0)
        if cpu_seconds(router) - cpu < 0.25 and count() - before < 60:
            return
    raise AssertionError("the server does not come to rest")


async def slowest_read(hopper: AsyncHopper, name: str) -> float:
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        await hopper.tasks.GetTask(GetTaskRequest(name=name))
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def transactions(stage: Stage) -> Callable[[], int]:
    """How many transactions the server has seen; of a file nobody counts them, and the answer is 0."""

    def count() -> int:
        if stage.server is None:
            return 0
        counted: int = stage.server.execute(
            "SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname LIKE 'hopper%'"
        )
        return counted

    return count


def cpu_seconds(process: HopperProcess) -> float:
    """What a process has used of its processors' time."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
