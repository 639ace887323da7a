"""
`python -m tests.bench [NAME…]`: measure, print, keep.

What the environment may say is in README.md.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import (  # noqa: F401 - importing them registers their bars
    bars_delegation,
    bars_fairness,
    bars_federation,
    bars_growth,
    bars_guard,
    bars_hopper,
    bars_memory,
    bars_partitions,
    bars_peers,
    bars_restart,
    bars_routing,
    bars_storage,
    bars_submit,
    bars_work,
)
from tests.bench.bar import BARS, Result, keep, machine
from tests.bench.rig import Rig

METHOD: Final = (
    "{rounds} interleaved rounds of {seconds:g} s a side, medians; us_x is processor time of x for each item; "
    "others is how many processors other programs used"
)


async def main(names: list[str]) -> int:
    """Run the bars whose names contain one of *names*, or all."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    console.print(f"machine: {machine()}")
    results: list[Result] = []
    async with Rig() as rig:
        _ = rig.postgres  # first: its start forks, which gRPC's threads do not like
        console.print(f"method: {METHOD.format(seconds=rig.pace.seconds, rounds=rig.pace.rounds)}")
        for name, measure in BARS.items():
            if names and not any(wanted in name for wanted in names):
                continue
            begin = time.monotonic()
            measured = await measure(rig)
            console.print(f"\n{name} ({time.monotonic() - begin:.0f} s)")
            for result in measured:
                _print(console, result)
            keep(measured)
            results += measured
    console.print(_table(results))
    missed = [result.name for result in results if result.ok is False]
    if missed:
        console.print(f"missed: {'; '.join(missed)}")
    return 1 if missed else 0


def _print(console: Console, result: Result) -> None:
    console.print(f"  {result.name}: {result.value:g} {result.unit}  {_limits(result)}")
    for side, values in result.sides.items():
        figures = "  ".join(f"{name} {value:g}" for name, value in values.items())
        console.print(f"      {side + ':':32} {figures}")
    if result.note:
        console.print(f"      ({result.note})")


def _limits(result: Result) -> str:
    limits = [f"must {result.must}"] if result.must else []
    limits += [f"target {result.target}"] if result.target else []
    return ", ".join(limits) + (": " if limits else "") + _verdict(result)


def _verdict(result: Result) -> str:
    return result.verdict or ("" if result.ok is None else "met" if result.ok else "missed")


def _table(results: list[Result]) -> Table:
    table = Table("bar", "value", "must", "target", "verdict")
    for result in results:
        value = f"{result.value:g} {result.unit}"
        table.add_row(result.name, value, result.must, result.target, _verdict(result))
    return table


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(sys.argv[1:])))
