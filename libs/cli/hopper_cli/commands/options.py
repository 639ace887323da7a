"""Options that several commands have, and the headings they are listed under."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import task_argument

RUN: Final = "Run"
TASKS: Final = "Tasks"
WORK: Final = "Work"
HAND_OVER: Final = "Hand over"
SET_UP: Final = "Set up and govern"

TaskArgument = Annotated[str, task_argument()]
ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Its id.", autocompletion=complete.projects)
]
InstanceArgument = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="Its id.", autocompletion=complete.instances)
]
InstanceOption = Annotated[
    str,
    typer.Option(
        "--instance", "-i", metavar="INSTANCE", help="Which instance.", autocompletion=complete.instances
    ),
]
RoutedToOption = Annotated[
    str,
    typer.Option(
        "--project",
        "-p",
        metavar="PROJECT",
        help="Only those routed there.",
        autocompletion=complete.projects,
    ),
]
WithinOption = Annotated[
    str,
    typer.Option(
        "--instance", "-i", metavar="INSTANCE", help="Only those in it.", autocompletion=complete.instances
    ),
]
FinishedOption = Annotated[bool, typer.Option("--all", "-a", help="Finished ones too.")]
PeerArgument = Annotated[
    str, typer.Argument(metavar="PEER", help="Its name here.", autocompletion=complete.peers)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", metavar="TEXT", help="Why, for those who look.")]
AuthorOption = Annotated[
    str | None,
    typer.Option("--as", metavar="WHO", help="Who says so. Default: $HOPPER_WORKER, else your login name."),
]


class StateChoice(StrEnum):
    """States a task may be listed by."""

    OPEN = "open"
    SUBMITTED = "submitted"
    QUEUED = "queued"
    RUNNING = "running"
    INPUT_REQUIRED = "input-required"
    DELEGATED = "delegated"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
