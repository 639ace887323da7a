"""The run while it runs: bars on a terminal, plain lines elsewhere, nothing for programs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hopper_cli.demo.run import Progress as Run
from hopper_cli.output import Output

_TICK: Final = 0.1
_LINES_EVERY: Final = 20  # ticks


@contextlib.asynccontextmanager
async def shown(out: Output, run: Run) -> AsyncIterator[None]:
    """Show how far a run is, while the body runs."""
    if out.json:
        yield
        return
    with contextlib.ExitStack() as stack:
        update = _bars(out, run, stack) if out.errors.is_terminal else _lines(out, run)
        ticking = asyncio.create_task(_tick(update))
        try:
            yield
        finally:
            ticking.cancel()
            update()


async def _tick(update: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_TICK)
        update()


def _counts(run: Run) -> dict[str, int]:
    return {
        "submitted and routed": run.submitted,
        "worked off": run.worked,
        "judged": run.judged,
        "joined to outcomes": run.joined,
    }


def _bars(out: Output, run: Run, stack: contextlib.ExitStack) -> Callable[[], None]:
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = stack.enter_context(Progress(*columns, console=out.errors))
    bars = {name: progress.add_task(name, total=run.total) for name in _counts(run)}

    def update() -> None:
        for name, count in _counts(run).items():
            progress.update(bars[name], completed=count)

    return update


def _lines(out: Output, run: Run) -> Callable[[], None]:
    said = ""
    ticks = 0

    def update() -> None:
        nonlocal said, ticks
        ticks += 1
        line = ", ".join(f"{count} {name}" for name, count in _counts(run).items())
        if line != said and (ticks % _LINES_EVERY == 0 or run.joined == run.total):
            said = line
            out.note(f"of {run.total}: {line}")

    return update
