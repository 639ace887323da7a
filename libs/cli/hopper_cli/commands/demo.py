"""`hopper demo`: all of it, once, in a minute."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import RUN

if TYPE_CHECKING:
    from hopper_cli.demo.data import DemoData
    from hopper_cli.demo.neighbours import Together
    from hopper_cli.demo.run import Outcome


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "demo",
        panel=RUN,
        examples=(
            "hopper demo",
            "hopper demo --tasks 2000",
            "hopper demo --data mine.jsonl --json | jq .accuracy",
        ),
    )(demo)


def demo(
    cli: Cli,
    tasks: Annotated[
        int, typer.Option("--tasks", "-n", metavar="N", min=1, max=100_000, help="How many tasks.")
    ] = 400,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="JSON lines (.jsonl, .jsonl.gz) with title, target, and perhaps description and tags.",
        ),
    ] = None,
) -> None:
    """
    Start a Hopper of its own, route real tasks to thirteen teams, work them off, and learn where they belong.

    Then two Hoppers find each other, are paired, and hand work over, also while one of them is killed. Nothing is left
    behind. Exit code 1 when anything was lost on the way.
    """
    import asyncio

    from hopper_cli.demo.data import load
    from hopper_cli.demo.report import as_json, tell
    from hopper_cli.demo.run import failures
    from hopper_cli.exits import Exit

    loaded = load(tasks, data)
    outcome, together = asyncio.run(_run(cli, loaded))
    failed = {**failures(outcome, len(loaded.samples)), **together.failed}
    if cli.json:
        cli.out.document(as_json(loaded, outcome, together, failed))
    else:
        tell(cli.out, loaded, outcome, together, failed)
    if failed:
        raise typer.Exit(Exit.FAILED)


async def _run(cli: Cli, data: "DemoData") -> "tuple[Outcome, Together]":
    from hopper_cli.demo.neighbours import together

    outcome = await _alone(cli, data)
    return outcome, await together(cli.out.note)


async def _alone(cli: Cli, data: "DemoData") -> "Outcome":
    from hopper_cli.demo.child import running_hopper
    from hopper_cli.demo.run import Demo
    from hopper_cli.demo.show import shown
    from hopper_client import AsyncHopper

    cli.out.note("starting a Hopper of its own")
    async with running_hopper() as child:
        cli.out.note(f"it listens on {child.address}; {len(data.projects)} teams, {data.source}")
        async with AsyncHopper(child.address, timeout=max(cli.timeout, 30.0)) as hopper:
            run = Demo(hopper, data)
            async with shown(cli.out, run.progress):
                return await run.run()
