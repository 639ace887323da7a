"""
Many callers want the same work at once, and each task goes to exactly one of them.

Every caller has a connection of its own, and all call at the same moment. `HOPPER_RACE_ROUNDS` rounds (10) for
each number of callers; the bench lane runs 100.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import AsyncHopper
from hopper_common.errors import HopperError
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.processes import HopperProcess
from tests.e2e.calls import claim_request, connected, register_crew, submit_request
from tests.e2e.conftest import Figure

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

ROUNDS = int(os.environ.get("HOPPER_RACE_ROUNDS", "10"))
CALLERS = (2, 4, 8, 16, 32, 64)


class Callers:
    """Callers with a connection each, who call when the gun goes off."""

    def __init__(self, stubs: Sequence["WorkServiceAsyncStub"]) -> None:
        self._stubs = stubs

    async def claim(self, requests: Sequence[ClaimTasksRequest]) -> list[list[Task] | HopperError]:
        """One request each, all at once; the tasks or the refusal each of them got."""
        gun = asyncio.Event()

        async def call(stub: "WorkServiceAsyncStub", request: ClaimTasksRequest) -> list[Task] | HopperError:
            await gun.wait()
            try:
                return list((await stub.ClaimTasks(request, timeout=60)).tasks)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)

        callers = [asyncio.create_task(call(*pair)) for pair in zip(self._stubs, requests, strict=False)]
        gun.set()
        return await asyncio.gather(*callers)


@pytest.fixture
async def hopper_client(hopper: HopperProcess) -> AsyncIterator[AsyncHopper]:
    hopper.start()
    with connected(hopper.address) as stubs:
        register_crew(stubs)
    async with AsyncHopper(hopper.address) as client:
        yield client


@pytest.fixture
async def callers(hopper_client: AsyncHopper, hopper: HopperProcess) -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(max(CALLERS)):
            own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(hopper.address, options=own))
            await channel.channel_ready()
            stubs.append(WorkServiceStub(channel))
        yield Callers(stubs)


@pytest.mark.timeout(1200 + 20 * ROUNDS)
async def test_one_of_many_gets_a_named_task(
    hopper_client: AsyncHopper, callers: Callers, figure: Figure
) -> None:
    won: Counter[int] = Counter()
    for count in CALLERS:
        for _ in range(ROUNDS):
            name = (await hopper_client.tasks.SubmitTask(submit_request("wanted by many"))).task.name
            answers = await callers.claim([claim_request(f"w{i}", task=name) for i in range(count)])
            assert_one_winner(name, answers)
            won[count] += 1
    figure("race rounds with one winner, by callers", dict(won))


def assert_one_winner(name: str, answers: Sequence[list[Task] | HopperError]) -> None:
    """One caller has the task, and every other was told who that is."""
    winners = [answer for answer in answers if isinstance(answer, list)]
    losers = [answer for answer in answers if isinstance(answer, HopperError)]
    assert (len(winners), len(losers)) == (1, len(answers) - 1), losers
    ((task,),) = winners
    assert (task.name, task.state) == (name, Task.STATE_RUNNING)
    until = task.claim.lease_expire_time.ToDatetime(UTC)
    told = {(loser.reason, loser.metadata["task"], loser.metadata["holder"]) for loser in losers}
    assert told == {("TASK_CLAIMED", name, task.claim.worker)}
    assert {datetime.fromisoformat(loser.metadata["lease_expire_time"]) for loser in losers} == {until}


@pytest.mark.timeout(1200 + 20 * ROUNDS)
async def test_tasks_without_a_name_go_to_one_worker_each(
    hopper_client: AsyncHopper, callers: Callers
) -> None:
    for tasks, workers, most in ((5, 16, 1), (16, 16, 1), (20, 64, 1), (40, 16, 3), (100, 64, 4)):
        for _ in range(max(1, ROUNDS // 5)):
            submits = (hopper_client.tasks.SubmitTask(submit_request(f"task {i}")) for i in range(tasks))
            ready = {answer.task.name for answer in await asyncio.gather(*submits)}
            answers = await callers.claim([claim_request(f"w{i}", most) for i in range(workers)])
            claimed: list[str] = []
            for number, answer in enumerate(answers):
                assert isinstance(answer, list), answer
                assert len(answer) <= most
                assert {task.claim.worker for task in answer} <= {f"w{number}"}
                claimed += [task.name for task in answer]
            assert len(claimed) == len(set(claimed)) == min(tasks, workers * most)
            assert set(claimed) <= ready
            await drain(hopper_client)


async def test_waiting_workers_share_what_comes(hopper_client: AsyncHopper, callers: Callers) -> None:
    """Sixteen wait on an empty queue; of what is submitted then, each task reaches one of them."""
    waiting = asyncio.create_task(callers.claim([claim_request(f"w{i}", wait=30) for i in range(16)]))
    submitted = {
        (await hopper_client.tasks.SubmitTask(submit_request(f"task {i}"))).task.name for i in range(16)
    }
    claimed = [task.name for answer in await waiting if isinstance(answer, list) for task in answer]
    assert sorted(claimed) == sorted(submitted)


async def drain(client: AsyncHopper) -> None:
    """Take what is left, so that the next round begins with an empty queue."""
    while (await client.work.ClaimTasks(claim_request("drain", 100))).tasks:
        pass
