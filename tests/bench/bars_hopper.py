"""A whole Hopper, as a user starts it: one process, SQLite, a Unix socket. The load comes from this process."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hopper.registry.v1 import project_pb2, project_service_pb2
from hopper.router.v1 import task_pb2, task_service_pb2, work_service_pb2
from hopper_client import AsyncHopper, Hopper
from hopper_common.errors import HopperError
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.bench.bar import Result, bar, quantiles
from tests.bench.echo import echo_server

ROUNDS: Final = 3
SECONDS: Final = 2.0
RACERS: Final = (2, 4, 8, 16, 32, 64)
RACES: Final = 100
_DESCRIPTION: Final = " ".join(f"word{number % 97}" for number in range(115))  # about 800 characters
_INSTANCE: Final = "instances/global"


def request(number: int) -> task_service_pb2.SubmitTaskRequest:
    """A task of about 1 KB."""
    spec = task_pb2.TaskSpec(
        title=f"look into the report of topic{number % 50} once more",
        description=_DESCRIPTION,
        tags=[f"tag{number % 7}", "kind:report", "from:customer", "area:web", "lang:en", "tier:gold"],
        labels={f"key{part}": "value" for part in range(6)},
    )
    return task_service_pb2.SubmitTaskRequest(parent=_INSTANCE, spec=spec)


@contextmanager
def running(projects: int) -> Iterator[HopperProcess]:
    """A Hopper with that many projects."""
    with temporary_directory() as directory, HopperProcess(directory / "data") as process:
        with Hopper(process.address) as client:
            for number in range(projects):
                project = project_pb2.Project(
                    description=f"topic{number} and topic{number + 1}", tags=[f"tag{number}"]
                )
                client.projects.RegisterProject(
                    project_service_pb2.RegisterProjectRequest(project_id=f"p{number}", project=project)
                )
        yield process


async def per_second(
    call: Callable[[int], Awaitable[object]], callers: int
) -> tuple[float, dict[str, float]]:
    """How many calls a second that many callers get answered, each one at a time; and how long one takes."""
    taken: list[float] = []
    end = time.perf_counter() + SECONDS

    async def caller(number: int) -> None:
        while (start := time.perf_counter()) < end:
            await call(number)
            taken.append(time.perf_counter() - start)
            number += callers

    start = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(taken) / (time.perf_counter() - start), quantiles(taken)


# ---------------------------------------------------------------- floors


def raw_inserts(path: Path) -> float:
    """Durable single-row inserts a second through sqlite3, WAL and synchronous=FULL: one caller, one commit each."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, state TEXT, body BLOB)")
    body, count = b"x" * 1000, 0
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS / 2:
        connection.execute("INSERT INTO rows (state, body) VALUES ('QUEUED', ?)", (body,))
        count += 1
    rate = count / (time.perf_counter() - start)
    connection.close()
    return rate


# ---------------------------------------------------------------- bars


@bar
async def submit() -> Sequence[Result]:
    """SubmitTask, routed among 1,000 projects, durable and explained, beside its two floors."""
    rounds: dict[str, list[float]] = {}
    latency: dict[str, float] = {}
    with running(1000) as process, echo_server() as echo, tempfile.TemporaryDirectory() as directory:
        async with AsyncHopper(process.address) as client, AsyncHopper(echo.address) as bare:
            await per_second(lambda number: client.tasks.SubmitTask(request(number)), 16)  # warm
            for _ in range(ROUNDS):
                rounds.setdefault("sqlite", []).append(raw_inserts(Path(directory) / "floor.db"))
                for callers in (1, 16, 64):
                    rate, latency = await per_second(
                        lambda number: client.tasks.SubmitTask(request(number)), callers
                    )
                    rounds.setdefault(f"hopper c{callers}", []).append(rate)
                    rate, _ = await per_second(lambda number: bare.tasks.SubmitTask(request(number)), callers)
                    rounds.setdefault(f"echo c{callers}", []).append(rate)
    rates = {name: round(statistics.median(values), 1) for name, values in rounds.items()}
    hopper = {name: value for name, value in rates.items() if name.startswith("hopper")} | latency
    floor = {name: value for name, value in rates.items() if not name.startswith("hopper")}
    return [
        Result(
            "SubmitTask c64 on SQLite, among 1,000 projects",
            rates["hopper c64"],
            "tasks/s",
            sides={"hopper": hopper, "floor (bare echo; raw sqlite3 FULL)": floor},
        ),
        Result("  of the bare echo", round(rates["hopper c64"] / rates["echo c64"], 3), "x", sides={}),
        Result(
            "  of raw sqlite3, a commit a row", round(rates["hopper c64"] / rates["sqlite"], 3), "x", sides={}
        ),
    ]


@bar
async def suggest() -> Sequence[Result]:
    """One decision among 1,000 projects over gRPC: what the record says it took, and the whole call."""
    inside: list[float] = []
    whole: list[float] = []
    with running(1000) as process:
        async with AsyncHopper(process.address) as client:
            for number in range(520):
                start = time.perf_counter()
                response = await client.tasks.SubmitTask(request(number))
                if number >= 20:
                    whole.append(time.perf_counter() - start)
                    inside.append(response.decision.elapsed.ToTimedelta().total_seconds())
    taken = quantiles(inside)
    sides = {"deciding and recording": taken, "the whole SubmitTask": quantiles(whole)}
    name = "decision recorded with a SubmitTask, 1,000 projects, p99"
    return [Result(name, taken["p99_ms"], "ms", "< 10 ms", taken["p99_ms"] < 10, sides)]


@bar
async def race() -> Sequence[Result]:
    """N callers claim the same task: exactly one wins, and every loser learns who."""
    wrong = 0
    with running(1) as process:
        for racers in RACERS:
            clients = [AsyncHopper(process.address) for _ in range(racers)]
            for _ in range(RACES):
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
async def start() -> Sequence[Result]:
    """From launching `hopper up` on an empty directory to the first accepted task; and the memory it takes idle."""
    accepted: list[float] = []
    resident: list[float] = []
    for _ in range(ROUNDS):
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
