"""A whole Hopper, as a user starts it: one process, SQLite, a Unix socket. The load comes from this process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from hopper.registry.v1 import project_service_pb2
from hopper.router.v1 import work_service_pb2
from hopper_client import AsyncHopper, Hopper
from hopper_common.errors import HopperError
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.bench import message
from tests.bench.bar import Result, bar, quantiles
from tests.bench.rig import Rig

ROUNDS: Final = 3
RACERS: Final = (2, 4, 8, 16, 32, 64)
RACES: Final = 100


@contextmanager
def running(projects: int) -> Iterator[HopperProcess]:
    """A Hopper with that many projects."""
    with temporary_directory() as directory, HopperProcess(directory / "data") as process:
        with Hopper(process.address) as client:
            for number in range(projects):
                client.projects.RegisterProject(
                    project_service_pb2.RegisterProjectRequest(
                        project_id=f"p{number}", project=message.project(number)
                    )
                )
        yield process


# ---------------------------------------------------------------- bars


@bar
async def suggest(_: Rig) -> Sequence[Result]:
    """One decision among 1,000 projects over gRPC: what the record says it took, and the whole call."""
    inside: list[float] = []
    whole: list[float] = []
    with running(1000) as process:
        async with AsyncHopper(process.address) as client:
            for number in range(520):
                start = time.perf_counter()
                response = await client.tasks.SubmitTask(message.submit(number))
                if number >= 20:
                    whole.append(time.perf_counter() - start)
                    inside.append(response.decision.elapsed.ToTimedelta().total_seconds())
    taken = quantiles(inside)
    sides = {"deciding and recording": taken, "the whole SubmitTask": quantiles(whole)}
    name = "decision recorded with a SubmitTask, 1,000 projects, p99"
    return [Result(name, taken["p99_ms"], "ms", "< 10 ms", taken["p99_ms"] < 10, sides)]


@bar
async def race(_: Rig) -> Sequence[Result]:
    """N callers claim the same task: exactly one wins, and every loser learns who."""
    wrong = 0
    with running(1) as process:
        for racers in RACERS:
            clients = [AsyncHopper(process.address) for _ in range(racers)]
            for _round in range(RACES):
                wrong += await _one_race(clients)
            await asyncio.gather(*(client.close() for client in clients))
    rounds = f"{RACES} rounds each of N = {', '.join(map(str, RACERS))}"
    sides = {rounds: {"races": len(RACERS) * RACES, "without exactly one winner": wrong}}
    return [Result("races for one task not won by exactly one", wrong, "races", "0", wrong == 0, sides)]


async def _one_race(clients: Sequence[AsyncHopper]) -> int:
    task = (await clients[0].submit("race", project="projects/p0")).task

    async def claim(number: int) -> str:
        wanted = work_service_pb2.ClaimTasksRequest(queue="projects/p0", worker=f"w{number}", task=task.name)
        try:
            return "won by " + (await clients[number].work.ClaimTasks(wanted)).tasks[0].claim.worker
        except HopperError as error:
            return "told of " + error.metadata.get("holder", error.reason)

    said = await asyncio.gather(*(claim(number) for number in range(len(clients))))
    winners = [word.removeprefix("won by ") for word in said if word.startswith("won by ")]
    told = {word.removeprefix("told of ") for word in said if word.startswith("told of ")}
    return 0 if len(winners) == 1 and told <= set(winners) else 1


@bar
async def start(_: Rig) -> Sequence[Result]:
    """From launching `hopper up` on an empty directory to the first accepted task; and the memory it takes idle."""
    accepted: list[float] = []
    resident: list[float] = []
    for _round in range(ROUNDS):
        with temporary_directory() as directory:
            begin = time.perf_counter()
            with HopperProcess(directory / "data") as process, Hopper(process.address) as client:
                client.submit("first")
                accepted.append(time.perf_counter() - begin)
                await asyncio.sleep(1)  # let it come to rest
                resident.append(process.rss_bytes() / 1e6)
    seconds = round(statistics.median(accepted), 2)
    return [
        Result("start to first accepted task", seconds, "s", "<= 2 s", seconds <= 2),
        Result("resident memory, idle", round(statistics.median(resident), 1), "MB"),
    ]
