"""
`python -m tests.bench [NAME…]`: measure, print, keep.

What the environment may say is in README.md.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import (  # noqa: F401 - importing them registers their bars
    bars_hopper,
    bars_memory,
    bars_peers,
    bars_routing,
    bars_submit,
    bars_work,
)
from tests.bench.bar import BARS, Result, keep, machine
from tests.bench.rig import Rig


async def main(names: list[str]) -> int:
    """Run the bars whose names contain one of *names*, or all."""
    console = Console()
    console.print(f"machine: {machine()}")
    results: list[Result] = []
    async with Rig() as rig:
        for name, measure in BARS.items():
            if names and not any(wanted in name for wanted in names):
                continue
            begin = time.monotonic()
            with console.status(f"measuring {name}"):
                measured = await measure(rig)
            keep(measured)
            results += measured
            console.print(f"{name}: {time.monotonic() - begin:.0f} s")
    console.print(_table(results))
    missed = [result.name for result in results if result.ok is False]
    if missed:
        console.print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def _table(results: list[Result]) -> Table:
    table = Table("bar", "value", "must", "target", "verdict", "figures", title="bars", show_lines=True)
    for result in results:
        said = result.verdict or ("" if result.ok is None else "met" if result.ok else "missed")
        figures = [f"{side}: {_figures(values)}" for side, values in result.sides.items()]
        figures += [result.note] if result.note else []
        value = f"{result.value:g} {result.unit}"
        table.add_row(result.name, value, result.must, result.target, said, "\n".join(figures))
    return table


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(sys.argv[1:])))
