"""Parked tasks, which failed or were rejected: parked, replay."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, WithinOption

if TYPE_CHECKING:
    from hopper.router.v1.task_service_pb2 import ListTasksResponse, ReplayTasksRequest, ReplayTasksResponse

ParkedProject = Annotated[
    str,
    typer.Option(
        "--project",
        "-p",
        metavar="PROJECT",
        help="Only those that were with it.",
        autocompletion=complete.projects,
    ),
]
ParkedInstance = WithinOption


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(
        app,
        "parked",
        panel=TASKS,
        examples=(
            "hopper parked",
            "hopper parked --project mesos --reason LEASE_EXPIRED",
            "hopper parked --json | jq -r '.tasks[].failure.reason' | sort | uniq -c",
        ),
    )(parked)
    command(
        app,
        "replay",
        panel=TASKS,
        examples=("hopper replay k7q2mz 4xw0aa", "hopper replay --reason NO_NETWORK --project mesos"),
    )(replay)


def parked(
    cli: Cli,
    reason: Annotated[
        str, typer.Option("--reason", "-r", metavar="REASON", help="Only those that failed for it.")
    ] = "",
    project: ParkedProject = "",
    instance: ParkedInstance = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Most to list.")] = 100,
) -> None:
    """List tasks that failed or were rejected, newest first, and why. `hopper replay` tries them again."""
    from hopper_cli.names import short
    from hopper_cli.render import parked_table

    found, more = _parked(cli, reason, project, instance, limit)
    if cli.json:
        cli.out.document(found)
    elif not found.tasks:
        cli.out.note("no task is parked" if not reason else f"no task is parked for {reason}")
    else:
        cli.out.say(parked_table(found.tasks, cli.now))
        cli.out.note(
            f"`hopper show {short(found.tasks[0].name)}` has the attempts, `hopper replay` tries again"
        )
        if more:
            cli.out.note(f"the first {limit}; there are more: --limit {10 * limit}")


def _parked(
    cli: Cli, reason: str, project: str, instance: str, limit: int
) -> tuple["ListTasksResponse", bool]:
    """The first of them, and whether there are more."""
    from hopper.router.v1.task_pb2 import Task
    from hopper.router.v1.task_service_pb2 import ListTasksRequest, ListTasksResponse
    from hopper_cli.names import instance_name, project_name

    request = ListTasksRequest(
        parent=instance_name(instance) if instance else "",
        project=project_name(project) if project else "",
        states=[Task.STATE_FAILED, Task.STATE_REJECTED],
        page_size=1000,
    )
    found = ListTasksResponse()
    while len(found.tasks) <= limit:
        page = cli.hopper.tasks.ListTasks(request)
        found.tasks.extend(task for task in page.tasks if not reason or task.failure.reason == reason)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    more = len(found.tasks) > limit
    del found.tasks[limit:]
    return found, more


def replay(
    cli: Cli,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]...",
            help="Their full names, or the ends of their ids.",
            autocompletion=complete.parked,
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", "-r", metavar="REASON", help="All that failed for it.")
    ] = "",
    project: ParkedProject = "",
    instance: ParkedInstance = "",
) -> None:
    """
    Try parked tasks again: those you name, or all that failed for a reason, at most 1,000 at a time.

    Each is decided anew, its attempts are counted from the start, and its history is kept. Exit code 1 when one of them
    cannot be tried again.
    """
    from hopper_cli.exits import Exit

    response = cli.hopper.tasks.ReplayTasks(_request(cli, tasks or [], reason, project, instance))
    if cli.json:
        cli.out.document(response)
    else:
        _tell(cli, response, reason)
    if any(result.HasField("error") for result in response.results):
        raise typer.Exit(Exit.FAILED)


def _request(cli: Cli, tasks: list[str], reason: str, project: str, instance: str) -> "ReplayTasksRequest":
    from hopper.router.v1.task_service_pb2 import ReplayTasksRequest
    from hopper_cli.names import instance_name, project_name
    from hopper_cli.problems import UsageProblem

    if bool(tasks) == bool(reason):
        raise UsageProblem(
            "say either which tasks, or --reason and all that failed for it",
            remedy="`hopper parked` shows tasks and reasons",
        )
    if tasks and (project or instance):
        raise UsageProblem("--project and --instance go with --reason, not with tasks that are named")
    return ReplayTasksRequest(
        names=[cli.task(task) for task in tasks],
        reason=reason,
        project=project_name(project) if project else "",
        parent=instance_name(instance) if instance else "",
    )


def _tell(cli: Cli, response: "ReplayTasksResponse", reason: str) -> None:
    from rich.text import Text

    from hopper_cli.names import short
    from hopper_cli.output import one_line
    from hopper_cli.render import state_text, where

    for result in response.results:
        name = Text(short(result.name), style="bold")
        if result.HasField("error"):
            cli.out.say(Text.assemble(name, "  ", (one_line(result.error.message), "red")))
        else:
            cli.out.say(Text.assemble(name, "  ", state_text(result.task.state), f", {where(result.task)}"))
    if not response.results:
        cli.out.note(f"no task is parked for {reason}")
    elif len(response.results) == 1000:
        cli.out.note("that were 1,000; there may be more: repeat the command")
