"""What is wrong, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands import peer_trust
from hopper_cli.commands.options import RUN

if TYPE_CHECKING:
    from hopper_cli.checks import Check


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "doctor",
        panel=RUN,
        examples=(
            "hopper doctor",
            "hopper doctor --json | jq '.checks[] | select(.status != \"ok\")'",
            "hopper doctor bob",
            "hopper doctor 192.168.1.7:8470",
        ),
    )(doctor)


def doctor(
    cli: Cli,
    target: Annotated[
        str,
        typer.Argument(
            metavar="[PEER|ADDRESS]",
            help="Look at what is between here and a peer, or whoever is at host:port.",
            autocompletion=complete.peers,
        ),
    ] = "",
) -> None:
    """
    Look at everything that can be wrong: data directory, socket, services, databases, memory; or at a peer.

    Works when nothing runs, but for a peer. Exit code 1 when something has to be mended.
    """
    if target:
        peer_trust.check(cli, target)
        return
    from hopper_cli.checks import Status
    from hopper_cli.checkup import examine
    from hopper_cli.exits import Exit

    checks = examine(cli)
    failed = sum(check.status is Status.FAIL for check in checks)
    if cli.json:
        cli.out.document({"ok": not failed, "checks": [check.as_json() for check in checks]})
    else:
        warned = sum(check.status is Status.WARN for check in checks)
        for check in checks:
            _print(cli, check)
        cli.out.say()
        cli.out.say(
            f"{len(checks)} checks: {failed} failed, {warned} to look at"
            if failed or warned
            else f"{len(checks)} checks: all is well"
        )
    if failed:
        raise typer.Exit(Exit.FAILED)


def _print(cli: Cli, check: "Check") -> None:
    from rich.text import Text

    from hopper_cli.output import one_line

    style = {"ok": "green", "warn": "yellow", "fail": "red"}[check.status.value]
    cli.out.say(
        Text.assemble((f"{check.status.value:<5}", style), f"{check.name:<16} {one_line(check.detail)}")
    )
    if check.remedy:
        cli.out.say(Text(f"{'':<22}{one_line(check.remedy)}", style="dim"))
