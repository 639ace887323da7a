"""A worker that runs a command for each task."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import WORK

if TYPE_CHECKING:
    from datetime import timedelta

    from hopper_client import WorkerStats


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "work",
        panel=WORK,
        examples=(
            "hopper work --queue moodle --exec 'jq -r .spec.title | ./triage' --concurrency 4",
            "hopper work --queue instances/run-3 --exec ./build --once",
            "hopper work --queue mesos --exec 'agent --task \"$HOPPER_TASK\"' --lease 5m --drain",
        ),
    )(work)


def work(
    cli: Cli,
    execute: Annotated[
        str,
        typer.Option(
            "--exec",
            "-x",
            metavar="COMMAND",
            help="What to run: a shell command. The task is on its standard input as JSON, its name in "
            "$HOPPER_TASK; what it prints is the result, and a status other than 0 a failure.",
        ),
    ],
    queue: Annotated[
        str,
        typer.Option(
            "--queue",
            "-q",
            metavar="QUEUE",
            help="A project or an instance.",
            envvar="HOPPER_QUEUE",
            autocompletion=complete.queues,
        ),
    ],
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", metavar="N", min=1, max=1000, help="Tasks at once.")
    ] = 1,
    worker: Annotated[
        str, typer.Option("--worker", metavar="WHO", help="Who works. Default: made from host and process.")
    ] = "",
    lease: Annotated[
        str, typer.Option("--lease", metavar="TIME", help="How long a task waits for us if we vanish.")
    ] = "60s",
    once: Annotated[
        bool, typer.Option("--once", help="One task if there is one (else exit code 5), then leave.")
    ] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Until the queue is empty, then leave.")] = False,
) -> None:
    """
    Work on a queue: run a command for each task, until Ctrl-C.

    The first Ctrl-C lets running commands finish, the second ends them and gives their tasks back.
    """
    import asyncio

    from hopper_cli.exits import Exit
    from hopper_cli.problems import CommandError
    from hopper_cli.worker import Job

    job = Job(
        address=cli.address,
        timeout=cli.timeout,
        queue=_queue(cli, queue),
        execute=execute,
        concurrency=concurrency,
        worker=worker or None,
        lease=_lease(lease),
        until_idle=once or drain,
        key_file=cli.shared.key_file,
        max_tasks=1 if once else None,
    )
    cli.out.note(f"working on {job.queue}; Ctrl-C ends" if not job.until_idle else f"working on {job.queue}")
    stats = asyncio.run(
        job.run(
            lambda task, outcome, seconds: _tell(cli, task, outcome, seconds),
            stopping=lambda: cli.out.note("finishing what runs; Ctrl-C again ends it and gives it back"),
        )
    )
    _summarize(cli, stats)
    if once and not stats.claimed:
        raise CommandError(
            f"nothing to do in {job.queue}", exit_code=Exit.NOTHING_TO_DO, reason="NOTHING_TO_DO"
        )
    if once and not stats.succeeded:
        raise CommandError("the task did not succeed", reason="TASK_NOT_DONE")


def _queue(cli: Cli, text: str) -> str:
    from hopper.registry.v1.project_service_pb2 import GetProjectRequest
    from hopper_cli.names import queue_names
    from hopper_common.errors import NotFound

    names = queue_names(text)
    if len(names) > 1:
        try:
            cli.hopper.projects.GetProject(GetProjectRequest(name=names[0]))
        except NotFound:
            return names[1]
    return names[0]


def _lease(text: str) -> "timedelta":
    from hopper_cli.problems import UsageProblem
    from hopper_cli.times import parse_duration

    lease = parse_duration(text)
    if not 1 <= lease.total_seconds() <= 3600:
        raise UsageProblem(f"--lease {text} is not between 1s and 1h")
    return lease


def _tell(cli: Cli, task: str, outcome: str, seconds: float) -> None:
    from datetime import timedelta

    from hopper_cli.names import short
    from hopper_cli.times import format_duration

    if cli.json:
        cli.out.record({"task": task, "outcome": outcome, "seconds": round(seconds, 3)})
    else:
        cli.out.say(f"{short(task)} {outcome} after {format_duration(timedelta(seconds=seconds))}")


def _summarize(cli: Cli, stats: "WorkerStats") -> None:
    from dataclasses import asdict

    if cli.json:
        cli.out.record({"stats": asdict(stats)})
    else:
        cli.out.note(", ".join(f"{count} {what}" for what, count in asdict(stats).items()))
