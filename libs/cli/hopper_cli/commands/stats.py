"""How it goes: tasks by state, and how good decisions were."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP

if TYPE_CHECKING:
    from hopper.memory.v1.feedback_service_pb2 import GetStatsResponse
    from hopper.router.v1.task_pb2 import Task

_MOST: Final = 10_000
"""Tasks that are counted in each state: there is no call that counts, and lists are read for it."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "stats",
        panel=SET_UP,
        examples=("hopper stats", "hopper stats --project mesos --json | jq .memory.accuracy"),
    )(stats)


def stats(
    cli: Cli,
    project: Annotated[
        str,
        typer.Option(
            "--project", "-p", metavar="PROJECT", help="Only this one.", autocompletion=complete.projects
        ),
    ] = "",
    instance: Annotated[
        str,
        typer.Option(
            "--instance", "-i", metavar="INSTANCE", help="Only this one.", autocompletion=complete.instances
        ),
    ] = "",
) -> None:
    """Tasks by state, and how good decisions were: accuracy, calibration, regret."""
    from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest
    from hopper_cli.names import instance_name, project_name
    from hopper_cli.output import to_json

    project = project_name(project) if project else ""
    instance = instance_name(instance) if instance else ""
    counts = _counts(cli, project, instance)
    memory = cli.hopper.feedback.GetStats(GetStatsRequest(project=project, instance=instance))
    if cli.json:
        cli.out.document({"tasks": counts, "tasks_counted_to": _MOST, "memory": to_json(memory)})
        return
    cli.out.say(_count_table(counts))
    cli.out.say()
    for line in memory_lines(memory):
        cli.out.say(line)
    if memory.bins:
        cli.out.say(calibration_table(memory))


def _counts(cli: Cli, project: str, instance: str) -> dict[str, int]:
    from hopper.router.v1.task_pb2 import Task

    return {
        Task.State.Name(state).removeprefix("STATE_"): _count(cli, state, project, instance)
        for state in Task.State.values()
        if state != Task.STATE_UNSPECIFIED
    }


def _count(cli: Cli, state: "Task.State.ValueType", project: str, instance: str) -> int:
    from hopper.router.v1.task_service_pb2 import ListTasksRequest

    request = ListTasksRequest(states=[state], project=project, parent=instance, page_size=1000)
    count = 0
    while count < _MOST:
        page = cli.hopper.tasks.ListTasks(request)
        count += len(page.tasks)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    return count


def _count_table(counts: dict[str, int]) -> Any:
    from hopper_cli.render import bar, grid, plain

    table = grid("state", "#tasks", "")
    largest = max(counts.values(), default=0) or 1
    for state, count in counts.items():
        shown = f"{count}+" if count >= _MOST else str(count)
        table.add_row(state.replace("_", " ").lower(), shown, plain(bar(count / largest)))
    return table


def memory_lines(memory: "GetStatsResponse") -> list[str]:
    """What memory says about decisions, a line each."""
    judged = (
        f"{memory.judged} judged, {memory.right} of them right: accuracy {memory.accuracy:.1%}"
        if memory.judged
        else "none judged yet: `hopper feedback TASK --good` says how it went"
    )
    lines = [
        f"{memory.decisions} decisions, {memory.with_outcome} joined to an outcome, {memory.succeeded} ended well",
        judged,
    ]
    if memory.judged:
        lines.append(f"calibration error {memory.calibration_error:.3f}, regret {memory.regret:.3f}")
    return lines


def calibration_table(memory: "GetStatsResponse") -> Any:
    """How sure decisions were, and how often they were right."""
    from hopper_cli.render import bar, grid, plain

    table = grid("confidence", "#judged", "#mean", "#right", "")
    for each in memory.bins:
        if each.count:
            table.add_row(
                f"{getattr(each, 'from'):.1f} to {each.to:.1f}",
                str(each.count),
                f"{each.mean_confidence:.0%}",
                f"{each.accuracy:.0%}",
                plain(bar(each.accuracy)),
            )
    return table
