"""
Many callers want the same task at once, through all routers there are, and exactly one of them gets it.

`HOPPER_RACE_ROUNDS` rounds (3) for each number of callers; `make faults` runs 100.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import grpc
import grpc.aio
import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import AsyncHopper
from hopper_common.errors import HopperError
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.dump import micros
from hopper_testing.workload import PROJECT, claim_request
from tests.faults.stage import Stage

ROUNDS: Final = int(os.environ.get("HOPPER_RACE_ROUNDS", "3"))
CALLERS: Final = (2, 4, 8, 16, 32, 64)

Call = Callable[[str], "asyncio.Future[Task | HopperError]"]


@asynccontextmanager
async def racers(addresses: Sequence[str], count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connections, each a caller's own, to the routers in turn; no call is tried twice."""
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with AsyncExitStack() as stack:
        channels = []
        for number in range(count):
            address = addresses[number % len(addresses)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=own))
            await channel.channel_ready()
            channels.append(channel)
        yield channels


async def race(channels: Sequence[grpc.aio.Channel], name: str) -> list[Task | HopperError]:
    """All call at once; the task or the refusal each of them got."""
    gun = asyncio.Event()

    async def call(number: int, channel: grpc.aio.Channel) -> Task | HopperError:
        await gun.wait()
        try:
            answer = await WorkServiceStub(channel).ClaimTasks(
                claim_request(f"w{number}", task=name, lease=3600), timeout=60
            )
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        (task,) = answer.tasks
        return task

    calls = [asyncio.create_task(call(*pair)) for pair in enumerate(channels)]
    gun.set()
    return await asyncio.gather(*calls)


@pytest.mark.timeout(1200 + 5 * ROUNDS)
async def test_one_of_many_gets_a_task_and_the_others_learn_who(
    stage: Stage, figure: Callable[[str, object], None]
) -> None:
    async with (
        racers(stage.addresses, max(CALLERS)) as channels,
        AsyncHopper(stage.addresses[0], timeout=30.0) as hopper,
    ):
        for count in CALLERS:
            for round_number in range(ROUNDS):
                name = (await hopper.submit(f"race {count} {round_number}", project=PROJECT)).task.name
                answers = await race(channels[:count], name)
                assert_one_winner(name, answers)
    figure(
        f"races on {stage.engine}, {len(stage.addresses)} routers, each with one winner",
        f"{ROUNDS} of {CALLERS}",
    )


def assert_one_winner(name: str, answers: Sequence[Task | HopperError]) -> None:
    """One has the task; every other was told who that is, and until when."""
    winners = [answer for answer in answers if isinstance(answer, Task)]
    losers = [answer for answer in answers if isinstance(answer, HopperError)]
    assert (len(winners), len(losers)) == (1, len(answers) - 1), losers
    (winner,) = winners
    assert (winner.name, winner.state) == (name, Task.STATE_RUNNING)
    assert winner.claim.worker == f"w{answers.index(winner)}"
    told = {(loser.reason, loser.metadata.get("task"), loser.metadata.get("holder")) for loser in losers}
    assert told == {("TASK_CLAIMED", name, winner.claim.worker)}
    until = {datetime.fromisoformat(loser.metadata["lease_expire_time"]) for loser in losers}
    assert until == {winner.claim.lease_expire_time.ToDatetime(UTC)}
    assert micros(winner.claim.lease_expire_time) > micros(winner.claim.start_time)


async def test_each_of_many_tasks_reaches_one_of_those_who_wait(stage: Stage) -> None:
    """Callers that wait at different routers share what is submitted at one of them."""
    async with (
        racers(stage.addresses, 16) as channels,
        AsyncHopper(stage.addresses[0], timeout=30.0) as hopper,
    ):
        waiting = [
            asyncio.ensure_future(
                WorkServiceStub(channel).ClaimTasks(claim_request(f"w{number}", wait=30), timeout=60)
            )
            for number, channel in enumerate(channels)
        ]
        names = [(await hopper.submit(f"shared {number}", project=PROJECT)).task.name for number in range(16)]
        answers = await asyncio.gather(*waiting)
    assert sorted(task.name for answer in answers for task in answer.tasks) == sorted(names)
