"""Changing what was asked for: edit, block, unblock, answer, cancel."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, AuthorOption, ReasonOption, TaskArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hopper.router.v1.task_pb2 import Task


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(
        app,
        "edit",
        panel=TASKS,
        examples=(
            "hopper edit k7q2mz --priority urgent --due 2h",
            "hopper edit k7q2mz --project mesos",
            'hopper edit k7q2mz --project "" --tag type:Bug --no-tag type:Story',
        ),
    )(edit)
    command(
        app,
        "block",
        panel=TASKS,
        examples=('hopper block k7q2mz --by jane --reason "the contract is not signed"',),
    )(block)
    command(app, "unblock", panel=TASKS, examples=("hopper unblock k7q2mz",))(unblock)
    command(
        app,
        "answer",
        panel=TASKS,
        examples=('hopper answer k7q2mz "the blue one"', "hopper answer k7q2mz - < decision.txt"),
    )(answer)
    command(
        app, "cancel", panel=TASKS, examples=("hopper cancel k7q2mz", 'hopper cancel k7q2mz -m "not needed"')
    )(cancel)


def edit(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    task: TaskArgument,
    title: Annotated[str | None, typer.Option("--title", metavar="TITLE", help="Another title.")] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", "-d", metavar="TEXT", help="All of it; - reads standard input."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="Add it. Repeatable.")
    ] = None,
    no_tag: Annotated[
        list[str] | None, typer.Option("--no-tag", metavar="TAG", help="Take it off. Repeatable.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            "-p",
            metavar="PROJECT",
            help='Send it there; "" lets Hopper decide again.',
            autocompletion=complete.projects,
        ),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option("--priority", metavar="LEVEL", help="low, normal, high, urgent, or 0 to 100."),
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--needs", metavar="CAPABILITY", help="What the executor must be able to do. Repeatable."
        ),
    ] = None,
    no_needs: Annotated[
        list[str] | None,
        typer.Option("--no-needs", metavar="CAPABILITY", help="What it need not be able to do. Repeatable."),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            metavar="TASK",
            help="A task that must succeed first. Repeatable.",
            autocompletion=complete.tasks,
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option("--effort", metavar="TIME", help="How long the work should take, such as 2h."),
    ] = None,
    due: Annotated[
        str | None, typer.Option("--due", "--by", metavar="TIME", help="When it must be done.")
    ] = None,
    start_after: Annotated[
        str | None, typer.Option("--start-after", metavar="TIME", help="Not before this time.")
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", metavar="FILE", help="Anything for the executor; - reads standard input."),
    ] = None,
    retry: Annotated[
        int | None,
        typer.Option("--retry", metavar="N", min=0, max=999, help="How often to try again when it fails."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A fact for people and filters. Repeatable."),
    ] = None,
) -> None:
    """Change a task that nobody works on yet; Hopper decides anew where it goes."""
    from hopper.router.v1.task_pb2 import TASK_VIEW_FULL
    from hopper.router.v1.task_service_pb2 import GetTaskRequest, UpdateTaskRequest
    from hopper_cli.problems import UsageProblem
    from hopper_cli.specs import SpecOptions, apply

    options = SpecOptions(
        title=title,
        description=description,
        tags=tag or (),
        no_tags=no_tag or (),
        needs=needs or (),
        no_needs=no_needs or (),
        labels=label or (),
        project=project,
        priority=priority,
        after=after or (),
        effort=effort,
        due=due,
        start_after=start_after,
        payload=payload,
        retry=retry,
    )
    # Read first: tags are added to those that are there, and the etag says that nobody else changed them.
    present = cli.hopper.tasks.GetTask(GetTaskRequest(name=cli.task(task), view=TASK_VIEW_FULL)).task
    mask = apply(options, present.spec, cli.task, cli.now)
    if not mask.paths:
        raise UsageProblem("nothing to change: say what", remedy="`hopper edit --help` has the options")
    response = cli.hopper.tasks.UpdateTask(UpdateTaskRequest(task=present, update_mask=mask))
    tell(cli, response, response.task, "changed")


def block(
    cli: Cli,
    task: TaskArgument,
    by: Annotated[str, typer.Option("--by", metavar="WHO", help="Who is waited for.")] = "",
    reason: ReasonOption = "",
) -> None:
    """Hold a task back, until `hopper unblock`."""
    from hopper.router.v1.task_pb2 import Hold
    from hopper.router.v1.task_service_pb2 import BlockTaskRequest
    from hopper_cli.inputs import me

    hold = Hold(by=by or me(), reason=reason)
    response = cli.hopper.tasks.BlockTask(BlockTaskRequest(name=cli.task(task), hold=hold))
    tell(cli, response, response.task, "held back")


def unblock(cli: Cli, task: TaskArgument) -> None:
    """Let a task go on that was held back."""
    from hopper.router.v1.task_service_pb2 import UnblockTaskRequest

    response = cli.hopper.tasks.UnblockTask(UnblockTaskRequest(name=cli.task(task)))
    tell(cli, response, response.task, "goes on")


def answer(
    cli: Cli,
    task: TaskArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer; - reads standard input.")],
    author: AuthorOption = None,
) -> None:
    """Answer the question that a task waits for."""
    from hopper.router.v1.task_service_pb2 import AnswerTaskRequest
    from hopper_cli.inputs import me, read_text

    response = cli.hopper.tasks.AnswerTask(
        AnswerTaskRequest(name=cli.task(task), answer=read_text(text), answered_by=author or me())
    )
    tell(cli, response, response.task, "answered")


def cancel(cli: Cli, task: TaskArgument, reason: ReasonOption = "") -> None:
    """Call a task off, with everything it was handed over or decomposed into."""
    from hopper.router.v1.task_service_pb2 import CancelTaskRequest

    response = cli.hopper.tasks.CancelTask(CancelTaskRequest(name=cli.task(task), reason=reason))
    tell(cli, response, response.task, "cancelled")


def tell(cli: Cli, response: "Message", task: "Task", done: str) -> None:
    """Say what became of a task."""
    from hopper_cli.names import short
    from hopper_cli.output import one_line
    from hopper_cli.render import state_word, where

    if cli.json:
        cli.out.document(response)
        return
    waits = f": {one_line(task.wait.message)}" if task.wait.message else ""
    cli.out.say(f"{short(task.name)} {done}; {state_word(task.state)} at {where(task)}{waits}")
