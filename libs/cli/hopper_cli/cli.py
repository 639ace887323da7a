"""
What every command is given: the options it shares with all others, the connection, the output.

`command` is how a function becomes a command: it is given a `Cli` first, and the shared options are added to
its own, so that `hopper --json list` and `hopper list --json` are the same.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from hopper_cli import inputs
from hopper_cli.names import SHOWN
from hopper_cli.output import Output
from hopper_cli.problems import UsageProblem

if TYPE_CHECKING:
    from hopper_client import Hopper

SHARED_PANEL: Final = "Everywhere"
DEFAULT_TIMEOUT: Final = 10.0

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Whom to ask: unix:/path or 127.0.0.1:port. Default: $HOPPER_ADDRESS, else hopper.sock in "
        "$HOPPER_DATA_DIR, else in ~/.hopper.",
        rich_help_panel=SHARED_PANEL,
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="How long a call may take, such as 30s. Default: 10s.",
        rich_help_panel=SHARED_PANEL,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="The key to show at 127.0.0.1:port; nobody else may read the file. Default: $HOPPER_API_KEY, else "
        "the file $HOPPER_API_KEY_FILE.",
        rich_help_panel=SHARED_PANEL,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Answer as JSON: one document, or a line for each event.", rich_help_panel=SHARED_PANEL
    ),
]
NoColorOption = Annotated[
    bool,
    typer.Option("--no-color", help="No colours. $NO_COLOR does the same.", rich_help_panel=SHARED_PANEL),
]


@dataclass(frozen=True, slots=True)
class Shared:
    """The options of every command; they may stand before or after its name."""

    address: str | None = None
    timeout: str | None = None
    json: bool = False
    no_color: bool = False
    key_file: Path | None = None

    def over(self, before: "Shared") -> "Shared":
        """These, and where they say nothing, those that stood before the command."""
        return Shared(
            address=self.address or before.address,
            timeout=self.timeout or before.timeout,
            json=self.json or before.json,
            no_color=self.no_color or before.no_color,
            key_file=self.key_file or before.key_file,
        )


class Cli:
    """
    One run of one command.

    Attributes:
        shared: The options of every command.
        out: Where its answer goes.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.out = Output(json=shared.json, color=not shared.no_color)
        self._hopper: Hopper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hopper is not None:
            self._hopper.close()

    @property
    def json(self) -> bool:
        """Whether programs read the answer."""
        return self.shared.json

    @cached_property
    def timeout(self) -> float:
        """Seconds a call may take."""
        from hopper_cli.times import parse_duration

        text = self.shared.timeout
        seconds = DEFAULT_TIMEOUT if text is None else parse_duration(text).total_seconds()
        if seconds <= 0:
            raise UsageProblem(f"--timeout {text}: no call can be done in no time")
        return seconds

    @cached_property
    def address(self) -> str:
        """Whom to ask."""
        from hopper_client.address import default_address

        return self.shared.address or default_address()

    @property
    def hopper(self) -> "Hopper":
        """The connection; it is made by the first call."""
        if self._hopper is None:
            from hopper_client import Hopper

            self._hopper = Hopper(self.address, timeout=self.timeout, key_file=self.shared.key_file)
        return self._hopper

    @cached_property
    def now(self) -> datetime:
        """When the command began, in the zone of whoever types."""
        return datetime.now().astimezone()

    @cached_property
    def data_dir(self) -> Path:
        """Where this user's Hopper keeps its data, and this command its claims."""
        return inputs.data_dir()

    def task(self, text: str) -> str:
        """The full name of the task that is meant by the end of its id."""
        return self.hopper.resolve_task(text)


def command(
    app: typer.Typer,
    name: str,
    *,
    examples: Sequence[str],
    panel: str | None = None,
    epilog: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Make a function a command of *app*. Its first parameter is the `Cli`; its docstring is the help.

    Args:
        examples: Command lines, shown at the end of `--help`.
        panel: The heading it is listed under.
        epilog: What follows the examples.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(_context: typer.Context, **given: Any) -> None:
            here = Shared(**{key: given.pop(f"_{key}") for key in Shared.__slots__})
            before = _context.find_root().obj
            with Cli(here.over(before if isinstance(before, Shared) else Shared())) as cli:
                function(cli, **given)

        own = list(inspect.signature(function).parameters.values())[1:]
        parameters = [_CONTEXT, *own, *_SHARED]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(
            name,
            help=unwrapped(inspect.getdoc(function) or ""),
            epilog=_epilog(examples, epilog),
            rich_help_panel=panel,
        )(run)
        return function

    return register


def unwrapped(text: str) -> str:
    """Each paragraph on a line of its own: the terminal knows better where to break it."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_CONTEXT: Final = inspect.Parameter(
    "_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)
_SHARED: Final = (
    _keyword("_address", AddressOption, None),
    _keyword("_key_file", KeyFileOption, None),
    _keyword("_timeout", TimeoutOption, None),
    _keyword("_json", JsonOption, False),
    _keyword("_no_color", NoColorOption, False),
)


def _epilog(examples: Sequence[str], more: str) -> str:
    shown = "\n".join(["Examples:", *(f"  {example}" for example in examples)])
    # The help is markup, in which a bracket would begin a style.
    return f"{shown}\n\n{more}".rstrip().replace("[", "\\[")


def task_argument(help: str = "") -> Any:
    """The argument that names a task."""
    from hopper_cli.complete import tasks

    return typer.Argument(
        metavar="TASK",
        help=help or f"Its full name, or the end of its id (the {SHOWN} characters that are shown).",
        autocompletion=tasks,
    )
