"""Clearing away what is finished."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hopper.router.v1.queue_service_pb2 import ArchiveTasksResponse


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "archive",
        panel=SET_UP,
        examples=("hopper archive --older-than 30d --dry-run", "hopper archive --older-than 30d"),
    )(archive)


def archive(
    cli: Cli,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="TIME", help="How long ago they must have ended, such as 30d; 1h or more."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be moved.")] = False,
) -> None:
    """
    Move tasks that ended long ago out of the way of the others. Ctrl-C leaves what is moved moved.

    `hopper show` finds archived tasks by their full names; lists and searches do not. What open tasks depend on stays,
    and what memory has not been told of yet. A router does this by itself: HOPPER_ROUTER_KEEP_FINISHED.
    """
    from hopper.router.v1.queue_service_pb2 import ArchiveTasksRequest
    from hopper_cli.times import parse_duration

    request = ArchiveTasksRequest(dry_run=dry_run)
    request.older_than.FromTimedelta(parse_duration(older_than))
    steps = cli.hopper.queues.ArchiveTasks(request, timeout=None)
    last = _record(cli, steps) if cli.json else _follow(cli, steps)
    if cli.json:
        return
    if dry_run:
        cli.out.say(f"{last.total} tasks would be archived")
    else:
        cli.out.say(f"{last.moved} tasks were archived")


def _record(cli: Cli, steps: "Iterable[ArchiveTasksResponse]") -> "ArchiveTasksResponse":
    from hopper.router.v1.queue_service_pb2 import ArchiveTasksResponse

    last = ArchiveTasksResponse()
    for last in steps:
        cli.out.record(last)
    return last


def _follow(cli: Cli, steps: "Iterable[ArchiveTasksResponse]") -> "ArchiveTasksResponse":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from hopper.router.v1.queue_service_pb2 import ArchiveTasksResponse

    last = ArchiveTasksResponse()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=cli.out.errors, transient=True) as progress:
        bar = progress.add_task("archive", total=None)
        for last in steps:
            progress.update(bar, total=last.total, completed=last.moved)
    return last
