"""
How a small difference is made out: many short blocks of calls, one side right after the other.

    group 1:  open service key      group 2:  service key open      group 3:  key open service      …
               │
               50 calls, one after the other ─► wall time of a call, processor time of the server for a call

A machine gets faster and slower by more than the difference, but not within the quarter of a second that a group takes.
So each group gives a ratio of its own, and what counts is the median of these. How sure that is says its interval of
95 %, by bootstrap: the groups are drawn again and again, with repetition.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tests.bench.cpu import process_seconds, settle
from tests.bench.load import BUSY, QUIET, Pace

BLOCK: Final = 50
_DRAWS: Final = 2_000

Call = Callable[[int], Awaitable[object]]
"""One call; its argument is a number below `BLOCK`."""


class Block(NamedTuple):
    """What one call took, on average: seconds until its answer, and of the server's processor time."""

    wall: float
    cpu: float


Group = Mapping[str, Block]
"""A block of each side, by its name."""


class Extra(NamedTuple):
    """How much more one side takes than another, in percent, and between which two it is with 95 % certainty."""

    median: float
    low: float
    high: float


class Pairs:
    """
    The groups of all rounds. Rounds that others disturbed are left out, unless half of them are.

    Args:
        rounds: The groups of each, with the processors that others used before or after.
    """

    def __init__(self, rounds: Sequence[tuple[Sequence[Group], float]]) -> None:
        quiet = [one for one in rounds if one[1] <= QUIET]
        self.busy = len(quiet) * 2 <= len(rounds)
        self.groups = [group for groups, _ in (rounds if self.busy else quiet) for group in groups]

    @property
    def skipped(self) -> str:
        """Why nothing is judged; "" if it is."""
        return BUSY if self.busy else ""

    @property
    def method(self) -> str:
        """How it was measured, in words."""
        return f"median of the ratios in {len(self.groups)} groups of blocks of {BLOCK} calls"

    def wall(self, side: str, beside: str) -> Extra:
        """How much longer a call takes."""
        return _extra([group[side].wall / group[beside].wall for group in self.groups])

    def cpu(self, side: str, beside: str) -> Extra:
        """How much more of the server's processor time it takes."""
        return _extra([group[side].cpu / group[beside].cpu for group in self.groups])

    def figures(self, side: str) -> dict[str, float]:
        """Microseconds of a call: the medians, and the middle half of the blocks."""
        walls = [group[side].wall * 1e6 for group in self.groups]
        lower, middle, upper = statistics.quantiles(walls, n=4)
        cpu = statistics.median(group[side].cpu for group in self.groups) * 1e6
        return {
            "us": round(middle, 1),
            "us_p25": round(lower, 1),
            "us_p75": round(upper, 1),
            "us_server": round(cpu, 1),
        }


def _extra(ratios: Sequence[float]) -> Extra:
    chance = random.Random(7)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    ends = (medians[int(_DRAWS * share)] for share in (0.025, 0.975))
    return Extra(*(round((ratio - 1) * 100, 2) for ratio in (statistics.median(ratios), *ends)))


async def paired(pace: Pace, sides: Mapping[str, Call], server: int) -> Pairs:
    """
    Measure sides block by block, each for about as long as *pace* says.

    Args:
        server: The process id of what all of them call; a descendant of this process.
    """
    await _group(list(sides), sides, server)  # not counted: connections are made
    rounds = []
    for _ in range(pace.rounds):
        before = await settle([os.getpid()])
        groups = await _groups(pace.seconds * len(sides), sides, server)
        after = await settle([os.getpid()], patience=0)
        rounds.append((groups, max(before.others, after.others)))
    return Pairs(rounds)


async def _groups(seconds: float, sides: Mapping[str, Call], server: int) -> list[Group]:
    names, chance = list(sides), random.Random(7)
    groups: list[Group] = []
    end = time.perf_counter() + seconds
    while len(groups) < 2 or time.perf_counter() < end:
        chance.shuffle(names)
        groups.append(await _group(names, sides, server))
    return groups


async def _group(names: Sequence[str], sides: Mapping[str, Call], server: int) -> Group:
    return {name: await _block(sides[name], server) for name in names}


async def _block(call: Call, server: int) -> Block:
    cpu, start = process_seconds(server), time.perf_counter()
    for number in range(BLOCK):
        await call(number)
    wall = time.perf_counter() - start
    return Block(wall / BLOCK, (process_seconds(server) - cpu) / BLOCK)
