"""B19 to B22: more replicas, more rows, more projects, deeper queues."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hopper.router.v1 import task_service_pb2, work_service_pb2
from hopper_client import Hopper
from hopper_testing.postgres import OwnServer
from tests.bench import driving, message
from tests.bench.bar import Result, at_least, at_most, bar, quantiles
from tests.bench.copies import Copies, multiply
from tests.bench.cpu import look_around, rss_bytes, settle
from tests.bench.driving import Queue
from tests.bench.full_table import DATABASE, Size, fill, opened
from tests.bench.load import BUSY, QUIET, Load, Side, closed_loop
from tests.bench.rig import ENGINE, POSTGRESQL, SQLITE, Rig, Router

TABLE: Final = os.environ.get("HOPPER_BENCH_TABLE", "")
"""The directory of the full table, as `full_table` made it; without one a small table is made."""
SMALL: Final = Size(100_000, 10_000)
SOMEBODY: Final = f"somebody-{secrets.token_hex(4)}"
"""A requester of this run alone: the tasks of earlier runs are still in the full table."""
SOME: Final = 20
RESIDENT_TASKS: Final = 100_000
DEEP: Final = 10_000
CALLS: Final = 300
PATIENCE: Final = 30.0
"""Seconds for the router to come to rest after so many tasks."""
_FREE_PROCESSORS: Final = 4
"""Fewer have none to spare for a second router, beside the first, PostgreSQL and the load."""


@bar
async def replicas(rig: Rig) -> Sequence[Result]:
    """B19: two routers on one PostgreSQL, beside one."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(rig.router(POSTGRESQL))
        second = await stack.enter_async_context(rig.router(POSTGRESQL, place=first.url))

        async def both(seconds: float) -> Load:
            loads = await asyncio.gather(
                *(driving.submit_batches(router, driving.BATCH, 2, seconds) for router in (first, second))
            )
            return Load(sum(load.count for load in loads), max(load.seconds for load in loads))

        rounds = await rig.bench().interleaved(
            Side(
                "one router",
                lambda seconds: driving.submit_batches(first, driving.BATCH, 2, seconds),
                first.processes(rig),
            ),
            Side("two routers", both, {**first.processes(rig), "second": second.pid}),
        )
    processors = os.cpu_count() or 1
    alone = f"not judged: of {processors} processors none is free for a second router"
    return [
        at_least(1.6, 1.8).judge(
            "B19 SubmitTasks of 1,000 on two routers / on one",
            rounds.ratio("two routers", "one router"),
            rounds.figures(),
            note=rounds.method,
            skipped=alone if processors < _FREE_PROCESSORS else "",
        )
    ]


# ---------------------------------------------------------------- B20


@bar
async def full_table(rig: Rig) -> Sequence[Result]:
    """B20: submit, claim and list with a full table, beside an empty one of the same server."""
    async with _full_table(rig) as table, AsyncExitStack() as stack:
        address = table.server.create_database()
        stack.callback(table.server.drop, address)
        empty = await stack.enter_async_context(rig.router(POSTGRESQL, place=address))
        begin = time.perf_counter()
        full = await stack.enter_async_context(rig.router(POSTGRESQL, place=table.url))
        started = time.perf_counter() - begin
        for router in (empty, full):
            driving.check_batch(await router.tasks.SubmitTasks(_somebodys()))
        sides = [
            side
            for name, router in (("full", full), ("empty", empty))
            for side in _uses(name, router, rig, table.server.pid)
        ]
        rounds = await rig.bench().interleaved(*sides)
        memory = {"empty": rss_bytes(empty.pid), "full": rss_bytes(full.pid)}
    note = (
        f"{rounds.method}; {table.size.finished:,} finished and {table.size.open:,} open tasks; the router took "
        f"{started:.1f} s to start, and has {memory['full'] / 1e6:.0f} MB; "
        f"with the empty table {memory['empty'] / 1e6:.0f} MB"
    )
    return [
        at_least(0.67, 0.9).judge(
            f"B20 {use} with a full table / with an empty one",
            rounds.ratio(f"{use}, full", f"{use}, empty"),
            rounds.figures(f"{use}, full", f"{use}, empty"),
            note=note,
        )
        for use in USES
    ]


@dataclass(frozen=True, slots=True)
class _Table:
    server: OwnServer
    url: str
    size: Size


@asynccontextmanager
async def _full_table(rig: Rig) -> AsyncIterator[_Table]:
    if not TABLE:
        url = rig.database()
        await fill(rig, url, SMALL)
        yield _Table(rig.postgres, url, SMALL)
        return
    with opened(Path(TABLE)) as (server, size):
        yield _Table(server, server.url(DATABASE), size)


def _somebodys() -> task_service_pb2.SubmitTasksRequest:
    """A few tasks of a requester who has no others."""
    request = task_service_pb2.SubmitTasksRequest()
    request.CopyFrom(message.batch(SOME))
    for item in request.items:
        item.spec.requester = SOMEBODY
    return request


USES: Final = (
    "SubmitTask c64", "claim + complete", "ListTasks c16", "ListTasks of a project", "ListTasks of a requester",
)  # fmt: skip


def _uses(name: str, router: Router, rig: Rig, postgres: int) -> list[Side]:
    queue = Queue(router)
    processes = {"router": router.pid, "postgres": postgres}

    async def fill_queue() -> None:
        queue.ready = 0  # somebody else's, of the same projects, may be there
        await queue.fill_for(rig.pace.seconds)

    def lists(project: str = "", requester: str = "") -> Callable[[float], Awaitable[Load]]:
        request = task_service_pb2.ListTasksRequest(page_size=50, project=project, requester=requester)
        return lambda seconds: closed_loop(lambda _: router.tasks.ListTasks(request), 16, seconds)

    runs: list[Callable[[float], Awaitable[Load]]] = [
        lambda seconds: driving.submit(router, 64, seconds),
        lambda seconds: queue.work_off(seconds, workers=1, batch=driving.CLAIM),
        lists(),
        lists(project=message.QUEUE),
        lists(requester=SOMEBODY),
    ]
    return [
        Side(f"{use}, {name}", run, processes, fill_queue if use.startswith("claim") else None)
        for use, run in zip(USES, runs, strict=True)
    ]


# ---------------------------------------------------------------- B21, B22


@bar
async def resident(rig: Rig) -> Sequence[Result]:
    """B21: the memory of a router that knows 1,000 projects and has 100,000 open tasks."""
    count = RESIDENT_TASKS if rig.pace.seconds >= 1 else RESIDENT_TASKS // 10
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        idle = rss_bytes(router.pid)
        for _ in range(count // driving.BATCH):
            driving.check_batch(await router.tasks.SubmitTasks(message.batch(driving.BATCH)))
        filled = rss_bytes(router.pid)
        restarted = filled
        if router.url:
            again = await stack.enter_async_context(rig.router(POSTGRESQL, place=router.url))
            restarted = rss_bytes(again.pid)
    megabytes = {"idle": idle / 1e6, "with open tasks": filled / 1e6, "started again": restarted / 1e6}
    sides = {"resident, MB": {name: round(value, 1) for name, value in megabytes.items()}}
    name = f"B21 resident memory, 1,000 projects and {count:,} open tasks ({ENGINE})"
    return [at_most(250, 200, "MB").judge(name, max(filled, restarted) / 1e6, sides)]


@bar
async def next_task(rig: Rig) -> Sequence[Result]:
    """B22: what `hopper next` calls, with a deep queue and as many blocked tasks in it, on both engines."""
    return [await _next_task(rig, engine) for engine in (POSTGRESQL, SQLITE)]


async def _next_task(rig: Rig, engine: str) -> Result:
    place = rig.place(engine)
    async with rig.router(engine, place=place) as router:
        await Queue(router).fill(1)
        driving.check_batch(await router.tasks.SubmitTasks(await _blocked(router)))
    await multiply(
        place if engine == POSTGRESQL else Path(place) / "router.db",
        [
            Copies("blockers > 0", "0b", DEEP, spread=False),
            Copies(f"ready AND project = '{message.QUEUE}'", "0q", DEEP + CALLS, spread=False),
        ],
    )
    async with rig.router(engine, place=place) as router:
        before = await settle([os.getpid()], patience=PATIENCE)
        # As the command does it: the synchronous client, on the Unix socket.
        taken = await asyncio.to_thread(_call_next, router.socket)
        after = await look_around([os.getpid()])
    busy = max(before.others, after.others) > QUIET
    name = f"B22 hopper next with {DEEP:,} blocked and {DEEP:,} ready tasks, p99 ({engine})"
    figures = quantiles(taken)
    limit = at_most(30, 15, "ms")
    return limit.judge(name, figures["p99_ms"], {f"{CALLS} calls": figures}, skipped=BUSY if busy else "")


async def _blocked(router: Router) -> task_service_pb2.SubmitTasksRequest:
    """A task of the queue that waits for another's end."""
    other = (await router.tasks.SubmitTask(message.submit(message.HOT + 1))).task.name
    request = task_service_pb2.SubmitTasksRequest()
    request.CopyFrom(message.batch(1, topic=message.HOT))
    request.items[0].spec.dependencies.append(other)
    return request


def _call_next(address: str) -> list[float]:
    taken: list[float] = []
    with Hopper(address) as hopper:
        for number in range(CALLS):
            request = work_service_pb2.ClaimTasksRequest(
                queue=message.QUEUE, worker=f"person-{number}", max_tasks=1
            )
            begin = time.perf_counter()
            claimed = hopper.work.ClaimTasks(request).tasks
            taken.append(time.perf_counter() - begin)
            if len(claimed) != 1:
                raise driving.Refused("nothing to claim from a deep queue")
    return taken
