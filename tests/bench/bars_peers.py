"""
B9 to B12: the queues that people use, doing the same: one process that enqueues, one that works, jobs of 1 KB that do
nothing.

Hopper's tasks are routed among 1,000 projects when they are taken in, leased when they are worked on, and all of that
is durable. pgqueuer and procrastinate are as durable, on the same server. Celery and taskiq are on Redis with its
defaults: what it has acknowledged may be lost.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.bench.bar import Result, at_least, at_most, bar
from tests.bench.load import Bench, Load, Pace, Rounds, Side
from tests.bench.peers.running import Running, redis, running
from tests.bench.rig import Rig

PACE_PER_SECOND: Final = 50.0
FIRST: Final = 50
"""Jobs at the beginning whose latency does not count: the worker is still starting."""
MOST_PER_SECOND: Final = 40_000.0
LONGEST: Final = 1.0
"""Seconds of a sample: there are many."""


@dataclass(slots=True)
class Contender:
    """
    Hopper or a peer, with one way of working.

    Attributes:
        name: As in the figures.
        options: Of its worker.
        batches: Whether it can enqueue many jobs in one call.
        forgets: Whether what is left over can be forgotten, rather than worked off.
        rate: What it was worked off with, jobs a second; says how much is filled in.
        waiting: Jobs in its queue.
    """

    name: str
    peer: Running
    options: Mapping[str, Any] = field(default_factory=dict)
    batches: bool = True
    forgets: bool = True
    rate: float = 300.0
    waiting: int = 0

    def sides(self, seconds: float, *, enqueue: bool = True) -> list[Side]:
        """Enqueueing one by one and in batches, and working off."""
        work = Side(f"{self.name}: work", self.work, self.peer.processes, lambda: self.prepare(seconds))
        if not enqueue:
            return [work]
        singles = Side(
            f"{self.name}: c{16 if self.batches else 1}",
            lambda seconds: self.enqueue(seconds, 1),
            self._taking_in,
        )
        batched = Side(f"{self.name}: batch", lambda seconds: self.enqueue(seconds, 100), self._taking_in)
        return [singles, *([batched] if self.batches else []), work]

    @property
    def _taking_in(self) -> dict[str, int]:
        return {"enqueuer": self.peer.enqueuer.pid, **self.peer.servers}

    async def enqueue(self, seconds: float, size: int) -> Load:
        """Enqueue for a while, in calls of so many."""
        callers = 16 if size == 1 else 1
        answer = await self.peer.enqueuer.ask("enqueue", seconds=seconds, callers=callers, size=size)
        self.waiting += answer["count"]
        return Load(answer["count"], answer["seconds"])

    async def prepare(self, seconds: float) -> None:
        """Have about as much waiting as can be worked off in that time."""
        wanted = max(200, int(self.rate * seconds))
        if self.forgets and self.waiting > 2 * wanted:
            await self.peer.enqueuer.ask("clear")
            self.waiting = 0
        if self.waiting < wanted * 0.7:
            self.waiting += (await self.peer.enqueuer.ask("fill", count=wanted - self.waiting))["count"]

    async def work(self, _: float) -> Load:
        """Work off all that waits."""
        done = await self.peer.worker.ask("work", count=self.waiting, **self.options)
        self.waiting = 0
        load = Load(done["count"] - 1, done["seconds"])  # from the first start to the last
        self.rate = min(load.count / load.seconds, MOST_PER_SECOND)
        return load

    async def warm(self, seconds: float) -> Contender:
        """Find out about how much it can do; a few jobs say little, hence twice."""
        for part in (0.2, 0.5):
            await self.prepare(part * seconds)
            begin = time.perf_counter()
            count = self.waiting
            await self.work(seconds)
            if part < 0.5:
                self.rate = count / (time.perf_counter() - begin)  # its start included: rather too few
        return self

    async def start_latency(self, seconds: float) -> Load:
        """How long jobs take from being enqueued to being started, at 50 a second, by an idle worker."""
        if self.waiting:
            await self.work(seconds)
        count = FIRST + int(PACE_PER_SECOND * max(seconds, 0.2))
        listening = asyncio.ensure_future(self.peer.worker.ask("listen", count=count, **self.options))
        await self.peer.enqueuer.ask("paced", rate=PACE_PER_SECOND, count=count)
        listened = await listening
        delays = [delay / 1e3 for delay in listened["delays_ms"][FIRST:]]
        return Load(len(delays), len(delays) / PACE_PER_SECOND, delays)


@asynccontextmanager
async def _hopper(rig: Rig) -> AsyncIterator[dict[str, Contender]]:
    async with rig.router() as router:
        arguments = [router.address, str(rig.certificates)]
        servers = router.processes(rig)
        own = Path(sys.executable)
        async with running("hopper_peer", arguments, servers, interpreter=own) as peer:
            yield {
                how: Contender(f"hopper {how}", peer, {"how": how}, forgets=False)
                for how in ("claim", "stream")
            }


@asynccontextmanager
async def _peer(rig: Rig, name: str, server: str, url: str, pid: int) -> AsyncIterator[Running]:
    async with running(f"{name}_peer", [url], {server: pid}) as peer:
        yield peer


@bar
async def peers(rig: Rig) -> Sequence[Result]:
    """B9, B10, B11: throughput beside that of other queues."""
    seconds = min(LONGEST, rig.pace.seconds)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hopper = await enter(_hopper(rig))
        postgres = rig.postgres.pid
        cache = stack.enter_context(redis())
        pgqueuer = await enter(_peer(rig, "pgqueuer", "postgres", rig.database(), postgres))
        procrastinate = await enter(_peer(rig, "procrastinate", "postgres", rig.database(), postgres))
        celery = await enter(_peer(rig, "celery", "redis", cache.url(0), cache.pid))
        taskiq = await enter(_peer(rig, "taskiq", "redis", cache.url(1), cache.pid))
        contenders = [
            hopper["claim"],
            Contender("pgqueuer 100", pgqueuer, {"batch_size": 100}),
            Contender("procrastinate", procrastinate),
            Contender("celery", celery, batches=False),
        ]
        workers = [  # whose enqueueing is another's, or in no bar
            hopper["stream"],
            Contender("pgqueuer default", pgqueuer, {"batch_size": 10}),
            Contender("taskiq", taskiq),
        ]
        bench = Bench(Pace(seconds, rig.pace.rounds))
        rounds = await bench.in_order(
            *[(await contender.warm(seconds)).sides(seconds) for contender in contenders],
            *[(await contender.warm(seconds)).sides(seconds, enqueue=False) for contender in workers],
        )
    return [*_worked_off(rounds), *_end_to_end(rounds)]


def _worked_off(rounds: Rounds) -> list[Result]:
    bars = {
        "pgqueuer 100": at_least(0.8, 1.2),
        "pgqueuer default": at_least(2, 3),
        "procrastinate": at_least(20, 35),
        "celery": at_least(8, 12),
        "taskiq": at_least(2.5, 4),
    }
    best = max(("hopper claim: work", "hopper stream: work"), key=rounds.rate)
    return [
        limit.judge(
            f"B9 worked off / {name}'s",
            rounds.ratio(best, f"{name}: work"),
            rounds.figures("hopper claim: work", "hopper stream: work", f"{name}: work"),
            note=rounds.method,
        )
        for name, limit in bars.items()
    ]


def _end_to_end(rounds: Rounds) -> list[Result]:
    def rate(name: str, enqueue: str, work: str) -> float:
        """Jobs a second of one after the other: N / (time to enqueue + time to work off)."""
        return 1 / (1 / rounds.rate(f"{name}: {enqueue}") + 1 / rounds.rate(f"{work}: work"))

    def result(
        number: str,
        peer: str,
        enqueue: str,
        peer_enqueue: str,
        must: float,
        target: float,
        enqueuer: str = "",
    ) -> Result:
        ours = max(rate("hopper claim", enqueue, work) for work in ("hopper claim", "hopper stream"))
        theirs = rate(enqueuer or peer, peer_enqueue, peer)
        figures = rounds.figures(f"hopper claim: {enqueue}", f"{enqueuer or peer}: {peer_enqueue}")
        figures = {"end to end": {"hopper": round(ours), peer: round(theirs)}, **figures}
        return at_least(must, target).judge(
            f"{number} end to end, {enqueue} / {peer}'s",
            ours / theirs,
            figures,
            note=rounds.method,
            skipped=rounds.skipped,
        )

    return [
        result("B10", "pgqueuer 100", "c16", "c16", 1.0, 1.3),
        result("B10", "procrastinate", "c16", "c16", 4, 6),
        result("B10", "celery", "c16", "c1", 2, 2.5),
        result("B11", "pgqueuer 100", "batch", "batch", 0.7, 1.0),
        result("B11", "pgqueuer default", "batch", "batch", 1.4, 2.0, enqueuer="pgqueuer 100"),
        result("B11", "procrastinate", "batch", "batch", 12, 20),
    ]


@bar
async def start_latency(rig: Rig) -> Sequence[Result]:
    """B12: from enqueueing to starting, at 50 jobs a second."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hopper = await enter(_hopper(rig))
        postgres = rig.postgres.pid
        cache = stack.enter_context(redis())
        pgqueuer = await enter(_peer(rig, "pgqueuer", "postgres", rig.database(), postgres))
        procrastinate = await enter(_peer(rig, "procrastinate", "postgres", rig.database(), postgres))
        taskiq = await enter(_peer(rig, "taskiq", "redis", cache.url(1), cache.pid))
        contenders = [
            hopper["stream"],
            hopper["claim"],
            Contender("pgqueuer", pgqueuer, {"batch_size": 100}),
            Contender("procrastinate", procrastinate),
            Contender("taskiq", taskiq),
        ]
        sides = [
            Side(contender.name, contender.start_latency, contender.peer.processes)
            for contender in contenders
        ]
        rounds = await rig.bench().interleaved(*sides, warm=False)
    return [
        at_most(1.2, 0.9).judge(
            "B12 start latency at 50/s, p50 / pgqueuer's",
            rounds.p50("hopper stream") / rounds.p50("pgqueuer"),
            rounds.figures(),
            note=rounds.method,
            skipped=rounds.skipped,
        ),
        at_most(1.0, 0.6).judge(
            "B12 start latency at 50/s, p99 / procrastinate's",
            rounds.p99("hopper stream") / rounds.p99("procrastinate"),
            rounds.figures(),
            note=rounds.method,
            skipped=rounds.skipped,
        ),
    ]
