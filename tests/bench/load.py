"""
How a figure is made: load for a while, one side after the other, in interleaved rounds.

    round 1:  echo  hopper  insert      round 2:  insert  echo  hopper      round 3:  hopper  insert  echo
              │
              prepare (not measured) ─► who else uses the processors? ─► load for 1.5 s ─► who else … now?

Both sides of a ratio see the same machine that way. A sample around which other programs used more than `QUIET`
processors is busy, and left out. When of any side half of them are, the machine is busy: ratios of throughput are then
made of the best rounds, and latencies are not judged.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.cpu import settle, snapshot

QUIET: Final = 0.3
BUSY: Final = "not judged: busy machine"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often is measured."""

    seconds: float
    rounds: int

    @classmethod
    def of_environment(cls) -> Pace:
        """As `HOPPER_BENCH_SECONDS` and `HOPPER_BENCH_ROUNDS` say."""
        seconds, rounds = (os.environ.get(f"HOPPER_BENCH_{name}") for name in ("SECONDS", "ROUNDS"))
        return cls(float(seconds or 1.5), int(rounds or 3))


@dataclass(frozen=True, slots=True)
class Load:
    """What a load of calls came to. Latencies in seconds, of calls, not of the items in them."""

    count: int
    seconds: float
    latencies: Sequence[float] = ()


Call = Callable[[int], Awaitable[object]]
"""One call; its argument is a number that no other call of the same load has."""


async def closed_loop(call: Call, callers: int, seconds: float, *, each: int = 1, most: int = 0) -> Load:
    """
    Callers that each wait for an answer before they call again.

    Args:
        each: How many items a call is worth.
        most: Stop after so many items; 0: only when time is up.
    """
    latencies: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    calls_left = most // each if most else 1 << 60
    number = 0

    async def caller() -> None:
        nonlocal number
        # The first call is made also by a machine that stood still until time was up.
        while number < calls_left and ((begin := time.perf_counter()) < end or not number):
            mine, number = number, number + 1
            await call(mine)
            latencies.append(time.perf_counter() - begin)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return Load(len(latencies) * each, time.perf_counter() - start, latencies)


@dataclass(frozen=True, slots=True)
class Side:
    """
    One thing to measure.

    Attributes:
        run: Puts load on it for that many seconds, or for as long as what was prepared lasts.
        processes: Whose processor time is counted, with their descendants: a short name to a process id.
        prepare: Makes what is used up; not measured.
    """

    name: str
    run: Callable[[float], Awaitable[Load]]
    processes: Mapping[str, int] = field(default_factory=dict)
    prepare: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """
    One side in one round.

    Attributes:
        cpu: Microseconds of processor time for each item, by process.
        others: Processors that other programs used, before or after.
    """

    rate: float
    latencies: Sequence[float]
    cpu: Mapping[str, float]
    others: float


class Rounds:
    """The samples of all sides. Those that others disturbed are left out, unless that leaves too few."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        quiet = {name: [one for one in side if one.others <= QUIET] for name, side in samples.items()}
        self.busy = any(len(quiet[name]) * 2 <= len(side) for name, side in samples.items())
        self._samples = samples if self.busy else quiet
        self._count = max(len(side) for side in samples.values())

    @property
    def skipped(self) -> str:
        """Why latencies are not judged; "" if they are."""
        return BUSY if self.busy else ""

    @property
    def method(self) -> str:
        """How ratios were made, in words."""
        return f"{'best' if self.busy else 'median'} of {self._count} interleaved rounds"

    def rate(self, side: str) -> float:
        """Items a second: the median, or the best on a busy machine."""
        rates = [sample.rate for sample in self._samples[side]]
        return max(rates) if self.busy else statistics.median(rates)

    def ratio(self, over: str, under: str) -> float:
        """One side's rate over another's."""
        return self.rate(over) / self.rate(under)

    def cpu(self, side: str, process: str) -> float:
        """Microseconds of processor time for each item: the median, or the least on a busy machine."""
        spent = [sample.cpu[process] for sample in self._samples[side]]
        return min(spent) if self.busy else statistics.median(spent)

    def p50(self, side: str) -> float:
        """The median latency in seconds: the median of the rounds, or the least on a busy machine."""
        middles = [statistics.median(sample.latencies) for sample in self._samples[side]]
        return min(middles) if self.busy else statistics.median(middles)

    def p99(self, side: str) -> float:
        """The 99th percentile of the latencies of all rounds together, in seconds."""
        ordered = sorted(taken for sample in self._samples[side] for taken in sample.latencies)
        return ordered[int(len(ordered) * 0.99)]

    def figures(self, *sides: str) -> dict[str, dict[str, float]]:
        """All there is to know of some sides, or all, for people."""
        return {side: self._figures(side) for side in sides or self._samples}

    def _figures(self, side: str) -> dict[str, float]:
        samples = self._samples[side]
        rates = [sample.rate for sample in samples]
        known: dict[str, float] = {
            "per_s": round(statistics.median(rates)),
            "min": round(min(rates)),
            "max": round(max(rates)),
        }
        if all(sample.latencies for sample in samples):
            known |= {"p50_ms": round(self.p50(side) * 1e3, 3), "p99_ms": round(self.p99(side) * 1e3, 3)}
        for process in samples[0].cpu:
            spent = statistics.median(sample.cpu[process] for sample in samples)
            known[f"us_{process}"] = round(spent, 1)
        known["others"] = round(max(sample.others for sample in samples), 2)
        return known


class Bench:
    """
    Measures sides in interleaved rounds.

    Args:
        ours: The roots of our own process trees that are not descendants of this process.
    """

    def __init__(self, pace: Pace, *, ours: Sequence[int] = ()) -> None:
        self.pace = pace
        self._ours = [os.getpid(), *ours]
        self._random = random.Random(7)

    async def interleaved(self, *sides: Side, warm: bool = True) -> Rounds:
        """
        Measure each side once a round, in another order each time.

        Args:
            warm: Run each for a moment first, without counting it.
        """
        if warm:
            for side in sides:
                await self._prepared(side)
                await side.run(min(0.3, self.pace.seconds))
        return await self.in_order(*([side] for side in sides))

    async def in_order(self, *groups: Sequence[Side]) -> Rounds:
        """The same where the sides of a group need their order, because one leaves what the next uses up."""
        samples: dict[str, list[Sample]] = {side.name: [] for group in groups for side in group}
        for _ in range(self.pace.rounds):
            for group in self._random.sample(groups, len(groups)):
                for side in group:
                    await self._prepared(side)
                    samples[side.name].append(await self._sample(side))
        return Rounds(samples)

    @staticmethod
    async def _prepared(side: Side) -> None:
        if side.prepare is not None:
            await side.prepare()

    async def _sample(self, side: Side) -> Sample:
        calm = await settle(self._ours)
        before = snapshot()
        load = await side.run(self.pace.seconds)
        after = snapshot()
        calm_after = await settle(self._ours, patience=0)
        spent = {name: after.of(root) - before.of(root) for name, root in side.processes.items()}
        return Sample(
            rate=load.count / load.seconds,
            latencies=load.latencies,
            cpu={name: seconds / max(load.count, 1) * 1e6 for name, seconds in spent.items()},
            others=max(calm.others, calm_after.others),
        )
