"""Working by hand: next, progress, ask, done, fail, release."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.artifact import put_beside
from hopper_cli.commands.editing import tell
from hopper_cli.commands.options import WORK, ReasonOption, TaskArgument

if TYPE_CHECKING:
    from hopper.router.v1.task_pb2 import Task
    from hopper.router.v1.work_service_pb2 import ClaimRef
    from hopper_cli.claims import ClaimsFile

_LONGEST_LEASE = "1h"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(
        app,
        "next",
        panel=WORK,
        examples=(
            "hopper next --queue moodle",
            "hopper next --queue instances/jane --wait 30s",
            "HOPPER_QUEUE=projects/moodle hopper next --json | jq -r '.tasks[0].spec.description'",
        ),
    )(take_next)
    command(
        app,
        "progress",
        panel=WORK,
        examples=('hopper progress k7q2mz 0.5 -m "half-way"', "hopper progress k7q2mz"),
    )(progress)
    command(app, "ask", panel=WORK, examples=('hopper ask k7q2mz "Which colour?" --of jane',))(ask)
    command(
        app,
        "done",
        panel=WORK,
        examples=(
            "hopper done k7q2mz",
            'hopper done k7q2mz --result "merged as 4f2a"',
            "make report | hopper done k7q2mz --result -",
            "hopper done k7q2mz --artifact report.pdf",
        ),
    )(done)
    command(
        app,
        "fail",
        panel=WORK,
        examples=(
            'hopper fail k7q2mz --reason NO_ACCESS -m "the server refuses my key"',
            "hopper fail k7q2mz --reason IMPOSSIBLE --permanent",
        ),
    )(fail)
    command(app, "release", panel=WORK, examples=("hopper release k7q2mz",))(release)


def take_next(
    cli: Cli,
    queue: Annotated[
        str,
        typer.Option(
            "--queue",
            "-q",
            metavar="QUEUE",
            help="A project or an instance. Default: $HOPPER_QUEUE, else your personal instance.",
            autocompletion=complete.queues,
        ),
    ] = "",
    worker: Annotated[
        str,
        typer.Option(
            "--worker", metavar="WHO", help="Who works. Default: $HOPPER_WORKER, else your login name."
        ),
    ] = "",
    wait: Annotated[str, typer.Option("--wait", metavar="TIME", help="How long to wait for one.")] = "0s",
    lease: Annotated[
        str,
        typer.Option("--lease", metavar="TIME", help="How long it is yours; `hopper progress` extends it."),
    ] = _LONGEST_LEASE,
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Only this one.", autocompletion=complete.tasks)
    ] = "",
) -> None:
    """
    Take the next task of a queue, and show it.

    It is yours until `hopper done`, `fail` or `release`, or until its lease runs out. Exit code 5: there is none.
    """
    from hopper_cli.exits import Exit
    from hopper_cli.inputs import me
    from hopper_cli.problems import CommandError

    worker = worker or me()
    name = cli.task(task) if task else ""
    queues = _queues(cli, queue, worker, name)
    found, used = _claim(cli, queues, worker, wait, lease, name)
    if found is None:
        waited = "" if wait == "0s" else f" within {wait}"
        raise CommandError(
            f"nothing to do in {used}{waited}",
            remedy="--wait 30s waits for a task" if not waited else "",
            exit_code=Exit.NOTHING_TO_DO,
            reason="NOTHING_TO_DO",
        )
    _keep(cli, found, used)
    _show(cli, found)


def _queues(cli: Cli, asked: str, worker: str, task: str) -> tuple[str, ...]:
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.names import instance_of, queue_names
    from hopper_cli.problems import UsageProblem

    asked = asked or os.environ.get("HOPPER_QUEUE", "")
    if asked:
        return queue_names(asked)
    if task:
        project = cli.hopper.tasks.GetTask(GetTaskRequest(name=task)).task.project
        return (project or instance_of(task),)
    personal = _personal(cli, worker)
    if len(personal) == 1:
        return personal
    raise UsageProblem(
        "which queue? " + (f"{worker} has several: {', '.join(personal)}" if personal else "say --queue"),
        remedy="`hopper next --queue PROJECT`, or set HOPPER_QUEUE; `hopper project list` shows which there are",
    )


def _personal(cli: Cli, worker: str) -> tuple[str, ...]:
    from hopper.registry.v1.instance_pb2 import SCOPE_PERSONAL, Instance
    from hopper_cli.commands.instances import all_instances

    return tuple(
        instance.name
        for instance in all_instances(cli)
        if instance.scope == SCOPE_PERSONAL
        and instance.state == Instance.STATE_RUNNING
        and worker in instance.config.members
    )


def _claim(
    cli: Cli, queues: tuple[str, ...], worker: str, wait: str, lease: str, task: str
) -> tuple["Task | None", str]:
    from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
    from hopper_cli.times import parse_duration
    from hopper_common.errors import NotFound
    from hopper_common.timestamps import to_proto

    for queue in queues:
        request = ClaimTasksRequest(
            queue=queue,
            worker=worker,
            max_tasks=1,
            lease_duration=to_proto(parse_duration(lease)),
            wait=to_proto(parse_duration(wait)),
            task=task,
        )
        try:
            claimed = cli.hopper.work.ClaimTasks(request).tasks
        except NotFound as error:
            # A bare id may be an instance's, when it is no project's.
            if queue == queues[-1] or error.reason != "PROJECT_NOT_FOUND":
                raise
            continue
        return (claimed[0] if claimed else None), queue
    raise AssertionError("a queue has at least one name")


def _keep(cli: Cli, task: "Task", queue: str) -> None:
    from hopper_cli.claims import HeldClaim

    claims(cli).keep(
        HeldClaim(
            task=task.name,
            fencing_token=task.claim.fencing_token,
            worker=task.claim.worker,
            queue=queue,
            address=cli.address,
            lease_expire_time=task.claim.lease_expire_time.ToJsonString(),
        )
    )


def _show(cli: Cli, task: "Task") -> None:
    from hopper.router.v1.work_service_pb2 import ClaimTasksResponse
    from hopper_cli.commands.tasks import show_task
    from hopper_cli.names import short

    if cli.json:
        cli.out.document(ClaimTasksResponse(tasks=[task]))
        return
    show_task(cli, task)
    cli.out.note(f"\nit is yours: `hopper done {short(task.name)}`, or `hopper fail`, `hopper release`")


def claims(cli: Cli) -> "ClaimsFile":
    """The claims that are held between commands."""
    from hopper_cli.claims import ClaimsFile

    return ClaimsFile(cli.data_dir)


def held(cli: Cli, text: str) -> "ClaimRef":
    """
    The claim that is held on a task.

    Args:
        text: The task, as typed. One that is held is found also when no Hopper could tell its full name.

    Raises:
        CommandError: None is held here.
    """
    from hopper.router.v1.work_service_pb2 import ClaimRef
    from hopper_cli.names import short
    from hopper_cli.problems import CommandError

    mine = [claim for claim in claims(cli).all() if claim.task == text or claim.task.endswith(text.lower())]
    name = mine[0].task if len(mine) == 1 and len(text) >= 4 else cli.task(text)
    claim = claims(cli).get(name)
    if claim is None:
        raise CommandError(
            f"you do not hold {short(name)}",
            remedy=f"`hopper next --task {short(name)}` takes it",
            reason="NOT_HELD",
        )
    return ClaimRef(task=name, fencing_token=claim.fencing_token)


@contextlib.contextmanager
def _forgetting(cli: Cli, task: str) -> Iterator[None]:
    """Forget a claim once it has ended, by us or behind our back; keep it when the call may be repeated."""
    from hopper_common.errors import LostRace, NotFound

    try:
        yield
    except (LostRace, NotFound):
        claims(cli).drop(task)
        raise
    claims(cli).drop(task)


def progress(
    cli: Cli,
    task: TaskArgument,
    fraction: Annotated[
        float, typer.Argument(metavar="FRACTION", min=0, max=1, help="How far, from 0 to 1.")
    ] = 0.0,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What you do now.")] = "",
    lease: Annotated[
        str, typer.Option("--lease", metavar="TIME", help="How long it stays yours from now.")
    ] = _LONGEST_LEASE,
) -> None:
    """Say how far you are with a task you hold, and keep it: the lease begins anew."""
    from hopper.router.v1.task_pb2 import Progress
    from hopper.router.v1.work_service_pb2 import ReportProgressRequest
    from hopper_cli.times import parse_duration
    from hopper_common.timestamps import to_proto

    response = cli.hopper.work.ReportProgress(
        ReportProgressRequest(
            claim=held(cli, task),
            progress=Progress(fraction=fraction, message=message),
            lease_duration=to_proto(parse_duration(lease)),
        )
    )
    tell(cli, response, response.task, f"at {fraction:.0%}")


def ask(
    cli: Cli,
    task: TaskArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you need to know.")],
    of: Annotated[str, typer.Option("--of", metavar="WHO", help="Who should answer.")] = "",
) -> None:
    """Ask somebody about a task you hold; it stays yours meanwhile, without a lease. See `hopper answer`."""
    from hopper.router.v1.task_pb2 import InputRequest
    from hopper.router.v1.work_service_pb2 import RequestInputRequest

    asked = InputRequest(question=question)
    setattr(asked, "from", of)  # a keyword of Python's
    response = cli.hopper.work.RequestInput(RequestInputRequest(claim=held(cli, task), input=asked))
    tell(cli, response, response.task, "asked")


def done(
    cli: Cli,
    task: TaskArgument,
    result: Annotated[
        str | None,
        typer.Option("--result", "-r", metavar="TEXT", help="What it yielded; - reads standard input."),
    ] = None,
    artifact: Annotated[
        list[Path] | None,
        typer.Option("--artifact", metavar="FILE", help="Put a file beside it first. Repeatable."),
    ] = None,
) -> None:
    """End a task you hold: it is done."""
    from hopper.router.v1.work_service_pb2 import CompleteTasksRequest, Completion
    from hopper_cli.inputs import read_bytes_from_stdin
    from hopper_client import from_item

    claim = held(cli, task)
    content = read_bytes_from_stdin() if result == "-" else (result or "").encode()
    for file in artifact or ():
        put_beside(cli, claim.task, str(file))
    response = cli.hopper.work.CompleteTasks(
        CompleteTasksRequest(completions=[Completion(claim=claim, result=content)])
    )
    outcome = response.results[0]
    with _forgetting(cli, claim.task):
        if outcome.HasField("error"):
            raise from_item(outcome.error)
    tell(cli, response, outcome.updated, "done")


def fail(
    cli: Cli,
    task: TaskArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="WORD", help="One word that retry policies may name.")
    ],
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What a person should know.")
    ] = "",
    permanent: Annotated[bool, typer.Option("--permanent", help="Trying again cannot help.")] = False,
) -> None:
    """End a task you hold: it did not work. It is tried again, as its retry policy says."""
    from hopper.router.v1.task_pb2 import Failure
    from hopper.router.v1.work_service_pb2 import FailTaskRequest

    claim = held(cli, task)
    failure = Failure(reason=reason, message=message, permanent=permanent)
    with _forgetting(cli, claim.task):
        response = cli.hopper.work.FailTask(FailTaskRequest(claim=claim, failure=failure))
    tell(cli, response, response.task, "failed")


def release(cli: Cli, task: TaskArgument, reason: ReasonOption = "") -> None:
    """Give a task you hold back, unfinished; it is ready for the next at once."""
    from hopper.router.v1.work_service_pb2 import ReleaseTaskRequest

    claim = held(cli, task)
    with _forgetting(cli, claim.task):
        response = cli.hopper.work.ReleaseTask(ReleaseTaskRequest(claim=claim, reason=reason))
    tell(cli, response, response.task, "released")
