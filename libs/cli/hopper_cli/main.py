"""The entry of `hopper`: builds the commands, runs one, and turns whatever goes wrong into a line and a code."""

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

import typer

from hopper_cli import VERSION, exits
from hopper_cli.cli import (
    AddressOption,
    JsonOption,
    KeyFileOption,
    NoColorOption,
    Shared,
    TimeoutOption,
    unwrapped,
)
from hopper_cli.exits import Exit
from hopper_cli.output import Output, ReaderGone
from hopper_cli.problems import CommandError, Problem, of_command, of_hopper

_NAME: Final = "hopper"


def build() -> typer.Typer:
    """All commands."""
    from hopper_cli.commands import register_all

    app = typer.Typer(
        name=_NAME,
        no_args_is_help=True,
        add_completion=False,  # `hopper completion` says for which shell
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=exits.epilog(),
    )
    app.callback(help=unwrapped(inspect.getdoc(_root) or ""))(_root)
    register_all(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"hopper {VERSION}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    address: AddressOption = None,
    key_file: KeyFileOption = None,
    timeout: TimeoutOption = None,
    json: JsonOption = False,
    no_color: NoColorOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version, and leave.",
            callback=_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """
    Hopper routes tasks to whoever should do them.

    First `hopper up` in one terminal, then in another `hopper project add`, `hopper add "..."`, `hopper next`,
    `hopper why`, `hopper watch`. `hopper demo` shows all of it in a minute.
    """
    ctx.obj = Shared(address=address, timeout=timeout, json=json, no_color=no_color, key_file=key_file)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        arguments: Without the program's name. Default: those of this process.

    Returns:
        The exit code, of `hopper_cli.exits`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    out = Output(json=_wants_json(given), color="--no-color" not in given)
    try:
        code = _run(given)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        # Python would fail once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.READER_GONE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:
        problem = _problem(error)
        if problem is None:
            return Exit.USAGE  # the help has been printed
        out.complain(problem)
        return problem.exit_code
    return code


@cache
def _command() -> Any:
    """All commands, ready to run. Making them takes a tenth of a second: once a process is enough."""
    from typer.main import get_command

    return get_command(build())


def _run(arguments: list[str]) -> int:
    if os.environ.get("_HOPPER_COMPLETE"):
        from typer._completion_classes import completion_init  # typer calls it only for its own options

        completion_init()
    code = _command().main(arguments, prog_name=_NAME, standalone_mode=False)
    return code if isinstance(code, int) else Exit.OK


def _wants_json(arguments: Sequence[str]) -> bool:
    # Read by hand, because a command line that cannot be parsed has an error to tell, too.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _problem(error: Exception) -> Problem | None:
    if isinstance(error, CommandError):
        return of_command(error)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    from hopper_common.errors import HopperError
    from hopper_common.startup import StartupError

    if isinstance(error, HopperError):
        return of_hopper(error)
    if isinstance(error, StartupError):
        return Problem(str(error), "USAGE", Exit.USAGE)
    return _defect(error)


def _usage(error: typer.TyperException) -> Problem | None:
    text = error.format_message().strip()
    if not text or type(error).__name__ == "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    remedy = f"`{context.command_path} --help` shows how it is meant" if context is not None else ""
    return Problem(
        " ".join((text[:1].lower() + text[1:].removesuffix(".")).split()), "USAGE", Exit.USAGE, remedy
    )


def _defect(error: Exception) -> Problem:
    if os.environ.get("HOPPER_DEBUG"):
        traceback.print_exception(error)
    return Problem(
        f"a defect of this command: {type(error).__name__}: {error}",
        "INTERNAL",
        Exit.FAILED,
        "HOPPER_DEBUG=1 shows where; please report it",
    )
