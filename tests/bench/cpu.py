"""
Who uses the processors: trees of processes, and everybody else. Linux only: it reads /proc.

A tree is a process and all its descendants, also those that have ended: the kernel adds their time to the parent's
when they are reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS: Final = (3, 4)  # of the cpu line of /proc/stat: idle and iowait
WINDOW: Final = 0.15
"""Seconds over which it is seen who uses the processors while nothing is measured."""


class _Process(NamedTuple):
    parent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    Processor time up to a moment.

    Attributes:
        at: `time.perf_counter()` of it.
        busy: Seconds that all processors together were busy, since the machine started.
    """

    at: float
    busy: float
    processes: dict[int, _Process]

    def of(self, root: int) -> float:
        """Seconds used by a process and its descendants, as far as it and they still ran."""
        tree = {root}
        grown = True
        while grown:
            found = {pid for pid, process in self.processes.items() if process.parent in tree} - tree
            tree |= found
            grown = bool(found)
        return sum(self.processes[pid].seconds for pid in tree if pid in self.processes)


def snapshot() -> Snapshot:
    """Read it all now: a few milliseconds."""
    with Path("/proc/stat").open("rb") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]  # the rest is counted in these
    busy = sum(value for place, value in enumerate(fields) if place not in _IDLE_FIELDS)
    return Snapshot(time.perf_counter(), busy * _TICK, dict(_processes()))


def _processes() -> Iterator[tuple[int, _Process]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            # It may end while it is looked at.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path("/proc", name, "stat").read_text(errors="replace")
                fields = stat[stat.rindex(")") + 2 :].split()
                yield int(name), _Process(int(fields[1]), sum(map(int, fields[11:15])) * _TICK)


class Calm(NamedTuple):
    """Processors in use while nothing is measured: by programs of others, and still by our own."""

    others: float
    ours: float


async def look_around(ours: Collection[int], seconds: float = WINDOW) -> Calm:
    """
    See who uses the processors while we do nothing.

    Args:
        ours: The roots of all our process trees.
    """
    before = snapshot()
    await asyncio.sleep(seconds)
    after = snapshot()
    length = after.at - before.at
    own = sum(after.of(root) - before.of(root) for root in ours)
    return Calm(others=max(0.0, after.busy - before.busy - own) / length, ours=own / length)


async def settle(ours: Collection[int], *, patience: float = 3.0) -> Calm:
    """Wait until what we did last has come to rest, or patience ends."""
    end = time.perf_counter() + patience
    while True:
        calm = await look_around(ours)
        if calm.ours <= 0.3 or time.perf_counter() >= end:
            return calm


def process_seconds(pid: int) -> float:
    """Processor time of one process, to the nanosecond: for what is too short for the ticks of /proc."""
    # clock_getcpuclockid(3), which Python does not have.
    return time.clock_gettime((~pid << 3) | 2)


def rss_bytes(pid: int) -> int:
    """How much memory a process has in use: its resident set."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
