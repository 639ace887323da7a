"""`hopper up`: all of Hopper in one process."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopper_cli import exits
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import RUN

if TYPE_CHECKING:
    from hopper_common.host import Ready
    from hopper_common.settings import HostSettings


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "up",
        panel=RUN,
        examples=(
            "hopper up",
            "hopper up --listen 127.0.0.1:8300",
            "hopper up --data-dir ./here   (then: export HOPPER_DATA_DIR=./here)",
            "HOPPER_LOG_LEVEL=warning hopper up --json",
        ),
        epilog=exits.up_epilog(),
    )(up)


def up(
    cli: Cli,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="A port for people and agents with keys; 0 takes a free one. Default: $HOPPER_LISTEN, else none.",
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            help="Where it keeps everything. Default: $HOPPER_DATA_DIR, else ~/.hopper.",
        ),
    ] = None,
) -> None:
    """Run all of Hopper in this terminal, until Ctrl-C."""
    from hopper_common.host import installed_services, run

    settings = _settings(listen, data_dir)
    # With an exit code of its own table, and past this command's: `hopper_common.host` has told why.
    raise typer.Exit(run(installed_services(), settings, ready=lambda reached: _ready(cli, reached)))


def _settings(listen: str | None, data_dir: str | None) -> "HostSettings":
    from pydantic import ValidationError

    from hopper_cli.problems import UsageProblem
    from hopper_common.settings import HostSettings, load_settings

    given: dict[str, Any] = {}
    if listen is not None:
        given["listen"] = listen
    if data_dir is not None:
        given["data_dir"] = data_dir
    if not given:
        return load_settings()
    try:
        return HostSettings(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"{entry['loc'][0] if entry['loc'] else ''}: {entry['msg']}" for entry in error.errors()
        )
        raise UsageProblem(f"the settings are wrong: {wrong}") from None


def _ready(cli: Cli, reached: "Ready") -> None:
    if cli.json:
        cli.out.record(
            {
                "addresses": list(reached.addresses),
                "data_dir": str(reached.data_dir),
                "services": list(reached.services),
                "pid": reached.pid,
            }
        )
        return
    from hopper_cli.render import facts
    from hopper_client.address import default_address

    cli.out.say(f"Hopper is up: {', '.join(reached.services)}", style="bold green")
    cli.out.say(
        facts(
            [
                ("address", "\n".join(reached.addresses)),
                ("data", str(reached.data_dir)),
                ("process", str(reached.pid)),
            ]
        )
    )
    cli.out.say()
    cli.out.say("In another terminal:")
    if default_address() != reached.addresses[0]:
        cli.out.say(f"  export HOPPER_DATA_DIR={reached.data_dir}")
    for line in (
        'hopper project add docs -d "Manuals and release notes" --can writing',
        'hopper add "Tidy the release notes"',
        "hopper next --queue docs",
        "hopper why TASK        hopper watch        hopper doctor        hopper --help",
    ):
        cli.out.say(f"  {line}")
    cli.out.say()
    cli.out.say("Ctrl-C stops it.", style="dim")
    cli.out.console.file.flush()
