"""B7, B8, B16: claiming and completing through the router, beside bare SQL that does the same."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from tests.bench import driving
from tests.bench.bar import Result, at_least, at_most, bar, quantiles
from tests.bench.cpu import look_around
from tests.bench.driving import Queue
from tests.bench.load import QUIET, Load, Side
from tests.bench.rawsql import RawPostgres, pinned
from tests.bench.rig import ENGINE, POSTGRESQL, Rig

BATCH: Final = 100
WORKERS: Final = 64
RAW_PER_SECOND: Final = 45_000
PINNED_TASKS: Final = 40_000
AT_AN_END: Final = 3_000
"""Tasks at the beginning and at the end whose claims are compared."""


@bar
async def claim(rig: Rig) -> Sequence[Result]:
    """B7, B8: one worker that claims 100 at a time, and 64 that claim one."""
    seconds = rig.pace.seconds
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        raw = await stack.enter_async_context(RawPostgres.open(rig.database(), connections=1))
        hundreds, ones = Queue(router), Queue(router)

        async def fill(queue: Queue) -> None:
            hundreds.ready = ones.ready = max(hundreds.ready, ones.ready)  # it is one
            await queue.fill_for(seconds)

        async def work_off(queue: Queue, workers: int, batch: int, length: float) -> Load:
            load = await queue.work_off(length, workers=workers, batch=batch)
            hundreds.ready = ones.ready = queue.ready
            return load

        rounds = await rig.bench().interleaved(
            Side("echo c64", lambda length: driving.submit(rig.echo, 64, length), {"server": rig.echo.pid}),
            Side(
                "raw claim 100 + complete",
                lambda length: raw.work_off(BATCH, length),
                {"postgres": rig.postgres.pid},
                lambda: raw.have_ready(int(RAW_PER_SECOND * seconds)),
            ),
            Side(
                "hopper claim 100 + complete",
                lambda length: work_off(hundreds, 1, BATCH, length),
                router.processes(rig),
                lambda: fill(hundreds),
            ),
            Side(
                "hopper 64 one-slot workers",
                lambda length: work_off(ones, WORKERS, 1, length),
                router.processes(rig),
                lambda: fill(ones),
            ),
        )
    return [
        at_least(0.35, 0.50).judge(
            f"B7 claim 100 + complete, 1 worker ({ENGINE}) / raw SKIP LOCKED",
            rounds.ratio("hopper claim 100 + complete", "raw claim 100 + complete"),
            rounds.figures("hopper claim 100 + complete", "raw claim 100 + complete"),
            note=rounds.method,
            skipped=rounds.skipped,
        ),
        at_least(0.25, 0.35).judge(
            f"B8 64 one-slot workers, claim + complete pairs ({ENGINE}) / bare echo c64",
            rounds.ratio("hopper 64 one-slot workers", "echo c64"),
            rounds.figures("hopper 64 one-slot workers", "echo c64"),
            note=rounds.method,
        ),
    ]


@bar
async def pinned_claim(rig: Rig) -> Sequence[Result]:
    """B16: what a claim takes when 40,000 tasks have come and gone and nothing could be cleaned away."""
    before = await look_around([os.getpid()])
    async with rig.router(POSTGRESQL) as router, pinned(router.url):
        hopper = await _hopper_claims(Queue(router), rig)
    url = rig.database()
    async with RawPostgres.open(url, connections=1) as raw, pinned(url):
        naive = [await raw.claim_seconds(BATCH) for _ in range(_batches(rig))]
    ends = AT_AN_END // BATCH
    after = await look_around([os.getpid()])
    busy = max(before.others, after.others) > QUIET
    ours, theirs = (_growth(claims, ends, busy=busy) for claims in (hopper, naive))
    sides = {
        "hopper, first claims": quantiles(hopper[:ends]),
        "hopper, last claims": quantiles(hopper[-ends:]),
        "naive SQL, first claims": quantiles(naive[:ends]),
        "naive SQL, last claims": quantiles(naive[-ends:]),
        "growth": {"hopper": round(ours, 2), "naive SQL": round(theirs, 2)},
    }
    name = f"B16 claim p50 after {_batches(rig) * BATCH:,} tasks with xmin pinned / at the start"
    note = (
        f"by the {'quickest tenth, on a busy machine' if busy else 'median'} of {ends} claims at either end"
    )
    return [at_most(2.0, 1.2).judge(name, ours, sides, note=note)]


def _batches(rig: Rig) -> int:
    """As many as the bar says, or fewer in a hurry."""
    return max(2 * AT_AN_END, int(PINNED_TASKS * min(1.0, rig.pace.seconds))) // BATCH


async def _hopper_claims(queue: Queue, rig: Rig) -> list[float]:
    """Seconds of each claim of 100, with between 100 and 1,100 ready."""
    taken: list[float] = []
    await queue.fill(1000)  # the first ones warm up
    for _ in range(9):
        await driving.complete(queue.target, await driving.claim(queue.target, "bench", BATCH))
        queue.ready -= BATCH
    while len(taken) < _batches(rig):
        if queue.ready < 2 * BATCH:
            await queue.fill(queue.ready + 1000)
        begin = time.perf_counter()
        tasks = await driving.claim(queue.target, "bench", BATCH)
        taken.append(time.perf_counter() - begin)
        queue.ready -= len(tasks)
        await driving.complete(queue.target, tasks)
    return taken


def _growth(claims: Sequence[float], ends: int, *, busy: bool) -> float:
    def typical(some: Sequence[float]) -> float:
        return statistics.quantiles(some, n=10)[0] if busy else statistics.median(some)

    return typical(claims[-ends:]) / typical(claims[:ends])
