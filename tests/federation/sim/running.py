"""Worlds by the thousand, on all cores. Apart from the command, so that its processes can import it."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.federation.sim.invariants import violations
from tests.federation.sim.world import World

CHUNK = 10
"""How many seeds a process gets at a time."""


@dataclass
class Tally:
    """What came of some seeds."""

    seeds: int = 0
    events: int = 0
    wrong: dict[int, list[str]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count the other's too."""
        self.seeds += other.seeds
        self.events += other.events
        self.wrong |= other.wrong


def tried(seed: int) -> tuple[list[str], int]:
    """What is wrong with one world, and how many events it had."""
    world = World(seed)
    try:
        world.run()
    except Exception:  # a violation like any other: the next seed is tried all the same
        return [traceback.format_exc()], world.events
    return violations(world), world.events


def _chunk(first: int) -> Tally:
    tally = Tally(CHUNK)
    for seed in range(first, first + CHUNK):
        found, events = tried(seed)
        tally.events += events
        if found:
            tally.wrong[seed] = found
    return tally


def chunks(first: int, seconds: float, jobs: int) -> Iterator[Tally]:
    """What comes of each chunk from the first on, until the time is over, as they are done."""
    until = time.monotonic() + seconds
    firsts = itertools.count(first, CHUNK)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        under_way: set[Future[Tally]] = set()
        while under_way or time.monotonic() < until:
            while len(under_way) < 2 * jobs and time.monotonic() < until:
                under_way.add(pool.submit(_chunk, next(firsts)))
            over, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in over)
