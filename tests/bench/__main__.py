"""`python -m tests.bench [NAME…]`: measure, print, keep."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console
from rich.table import Table

from tests.bench import bars_hopper, bars_memory, bars_routing  # noqa: F401 - importing them registers their bars
from tests.bench.bar import BARS, Result, keep, machine


async def main(names: list[str]) -> int:
    """Run the bars whose names contain one of *names*, or all."""
    console = Console()
    console.print(f"machine: {machine()}")
    results: list[Result] = []
    for name, measure in BARS.items():
        if names and not any(wanted in name for wanted in names):
            continue
        with console.status(f"measuring {name}"):
            measured = await measure()
        keep(measured)
        results += measured
    console.print(_table(results))
    missed = [result.name for result in results if result.ok is False]
    if missed:
        console.print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def _table(results: list[Result]) -> Table:
    table = Table("bar", "value", "target", "ok", "figures", title="bars")
    for result in results:
        ok = "" if result.ok is None else "yes" if result.ok else "NO"
        figures = "\n".join(f"{side}: {dict(values)}" for side, values in result.sides.items())
        table.add_row(result.name, f"{result.value:g} {result.unit}", result.target, ok, figures)
    return table


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
