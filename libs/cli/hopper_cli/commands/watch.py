"""Following tasks as they change."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli.cli import Cli, command, task_argument
from hopper_cli.commands.options import TASKS, RoutedToOption, WithinOption

if TYPE_CHECKING:
    from hopper.router.v1.task_pb2 import Task
    from hopper.router.v1.task_service_pb2 import TaskEvent, WatchTasksResponse


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "watch",
        panel=TASKS,
        examples=(
            "hopper watch",
            "hopper watch --project mesos",
            "hopper watch k7q2mz && echo done",
            "hopper watch --json | jq -r 'select(.change) | .change.kind'",
        ),
    )(watch)


def watch(
    cli: Cli,
    task: Annotated[str | None, task_argument("Only this one, to its end: 0 if it succeeds, else 1.")] = None,
    project: RoutedToOption = "",
    instance: WithinOption = "",
) -> None:
    """Follow tasks live: what is open, then every change. It outlives lost connections."""
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.problems import UsageProblem

    if task is None:
        _follow_all(cli, project, instance)
        return
    if project or instance:
        raise UsageProblem("one task is in one place: leave --project and --instance out")
    present = cli.hopper.tasks.GetTask(GetTaskRequest(name=cli.task(task))).task
    if cli.json:
        cli.out.record(_as_snapshot(present))
    else:
        _print_task(cli, present)
    follow(cli, present)


def _follow_all(cli: Cli, project: str, instance: str) -> None:
    from hopper_cli.names import instance_name, project_name

    changes = cli.hopper.watch_tasks(
        project=project_name(project) if project else "",
        instance=instance_name(instance) if instance else "",
    )
    for message in changes:
        if cli.json:
            cli.out.record(message)
        else:
            _print(cli, message)


def follow(cli: Cli, task: "Task") -> None:
    """
    Print a task's changes until it ends.

    Args:
        task: As it has been shown.

    Raises:
        CommandError: It did not succeed.
    """
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.render import FINAL

    last = task
    if last.state not in FINAL:
        for message in cli.hopper.watch_tasks(task=task.name, after_generation=task.generation):
            if message.HasField("snapshot_complete"):
                # We were away for too long, and a snapshot has open tasks only: ours may be over.
                last = cli.hopper.tasks.GetTask(GetTaskRequest(name=task.name)).task
            else:
                last = message.change.task if message.HasField("change") else message.task
                if cli.json:
                    cli.out.record(message)
                else:
                    _print(cli, message)
            if last.state in FINAL:
                break
    _conclude(cli, last)


def _conclude(cli: Cli, task: "Task") -> None:
    from hopper.router.v1.task_pb2 import TASK_VIEW_FULL, Task
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.names import short
    from hopper_cli.problems import CommandError
    from hopper_cli.render import readable, state_word

    if task.state != Task.STATE_SUCCEEDED:
        why = f": {task.failure.reason} {task.failure.message}".rstrip() if task.failure.reason else ""
        raise CommandError(f"{short(task.name)} {state_word(task.state)}{why}", reason="TASK_NOT_DONE")
    result = cli.hopper.tasks.GetTask(GetTaskRequest(name=task.name, view=TASK_VIEW_FULL)).task.result
    if result and not cli.json:
        cli.out.say(readable(result))


def _as_snapshot(task: "Task") -> "WatchTasksResponse":
    from hopper.router.v1.task_service_pb2 import WatchTasksResponse

    return WatchTasksResponse(generation=task.generation, task=task)


def _print(cli: Cli, message: "WatchTasksResponse") -> None:
    if message.HasField("change"):
        _print_change(cli, message.change)
    elif message.HasField("task"):
        _print_task(cli, message.task)
    else:
        count = message.snapshot_complete.count
        cli.out.note(
            f"{count} open; changes follow, Ctrl-C ends"
            if count
            else "nothing open; changes follow, Ctrl-C ends"
        )


def _print_task(cli: Cli, task: "Task") -> None:
    from rich.text import Text

    from hopper_cli.names import short
    from hopper_cli.output import one_line
    from hopper_cli.render import state_text, where

    cli.out.say(
        Text.assemble(
            "         ",
            (f"{short(task.name)}  ", "bold"),
            state_text(task.state),
            f"  {where(task)}  ",
            (one_line(task.spec.title), "dim"),
        )
    )


def _print_change(cli: Cli, change: "TaskEvent") -> None:
    from datetime import datetime

    from rich.text import Text

    from hopper_cli.names import short
    from hopper_cli.output import one_line
    from hopper_cli.render import state_text, where
    from hopper_common.timestamps import from_proto

    task = change.task
    at = from_proto(task.update_time).astimezone(datetime.now().astimezone().tzinfo)
    cli.out.say(
        Text.assemble(
            (f"{at:%H:%M:%S} ", "dim"),
            (f"{short(task.name)}  ", "bold"),
            f"{change.kind.lower().replace('_', ' ')}  ",
            state_text(task.state),
            f"  {where(task)}  ",
            (one_line(_news(task)), "dim"),
        )
    )


def _news(task: "Task") -> str:
    from hopper.router.v1.task_pb2 import Task

    if task.state == Task.STATE_RUNNING and task.HasField("progress") and task.progress.fraction > 0:
        return f"{task.progress.fraction:.0%} {task.progress.message}"
    if task.state == Task.STATE_RUNNING:
        return f"{task.claim.worker}: {task.spec.title}"
    if task.state == Task.STATE_INPUT_REQUIRED:
        return task.input.question
    if task.failure.reason and task.state != Task.STATE_SUCCEEDED:
        return f"{task.failure.reason} {task.failure.message}"
    return task.wait.message or task.spec.title
