"""How it went: what Hopper learns from."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, AuthorOption, TaskArgument

if TYPE_CHECKING:
    from hopper.memory.v1.episode_pb2 import Feedback


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "feedback",
        panel=TASKS,
        examples=(
            "hopper feedback k7q2mz --good",
            "hopper feedback k7q2mz --bad --should-be mulestudio",
            'hopper feedback k7q2mz --good --quality 0.6 --rework --effort 3h --blocker "no test data"',
        ),
    )(feedback)


def feedback(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    task: TaskArgument,
    good: Annotated[bool, typer.Option("--good", help="It went to the right place.")] = False,
    bad: Annotated[bool, typer.Option("--bad", help="It did not.")] = False,
    nobody: Annotated[bool, typer.Option("--nobody", help="Nobody here should have had it.")] = False,
    should_be: Annotated[
        str,
        typer.Option(
            "--should-be",
            metavar="PROJECT",
            help="Where it should have gone; says --bad, too.",
            autocompletion=complete.projects,
        ),
    ] = "",
    quality: Annotated[
        float | None, typer.Option("--quality", metavar="0..1", min=0, max=1, help="How good the result is.")
    ] = None,
    rework: Annotated[bool, typer.Option("--rework", help="It had to be done again.")] = False,
    effort: Annotated[
        str | None, typer.Option("--effort", metavar="TIME", help="How long the work took.")
    ] = None,
    blocker: Annotated[
        list[str] | None, typer.Option("--blocker", metavar="TEXT", help="What stood in the way. Repeatable.")
    ] = None,
    comment: Annotated[str, typer.Option("--comment", "-m", metavar="TEXT", help="Anything else.")] = "",
    author: AuthorOption = None,
) -> None:
    """Say how a task went. It counts for the decision in force and for every decision above it."""
    from hopper.memory.v1.episode_pb2 import Feedback
    from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
    from hopper_cli.inputs import me
    from hopper_cli.names import project_name
    from hopper_cli.times import parse_duration
    from hopper_common.timestamps import to_proto

    said = Feedback(
        match=_match(good, bad or bool(should_be), nobody),
        better_project=project_name(should_be) if should_be else "",
        quality=quality,
        rework=rework,
        actual_effort=to_proto(parse_duration(effort)) if effort else None,
        blockers=blocker or [],
        comment=comment,
        author=author or me(),
    )
    _require_something(said)
    response = cli.hopper.feedback.SubmitFeedback(
        SubmitFeedbackRequest(decision=_decision_of(cli, cli.task(task)), feedback=said)
    )
    if cli.json:
        cli.out.document(response)
        return
    above = f", and by {len(response.passed_to)} above it" if response.passed_to else ""
    cli.out.say(f"thank you: noted for the decision in force{above}")


def _match(good: bool, bad: bool, nobody: bool) -> "Feedback.Match.ValueType":
    from hopper.memory.v1.episode_pb2 import Feedback
    from hopper_cli.problems import UsageProblem

    if good + bad + nobody > 1:
        raise UsageProblem("--good, --bad (or --should-be) and --nobody exclude each other")
    if good:
        return Feedback.MATCH_GOOD
    if bad:
        return Feedback.MATCH_BAD
    return Feedback.MATCH_NONE if nobody else Feedback.MATCH_UNSPECIFIED


def _require_something(said: "Feedback") -> None:
    from hopper.memory.v1.episode_pb2 import Feedback
    from hopper_cli.problems import UsageProblem

    if said == Feedback(author=said.author):
        raise UsageProblem("nothing is said", remedy="say --good, or --bad --should-be PROJECT, or more")


def _decision_of(cli: Cli, task: str) -> str:
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.names import short
    from hopper_cli.problems import CommandError

    decision = cli.hopper.tasks.GetTask(GetTaskRequest(name=task)).task.decision
    if not decision:
        raise CommandError(f"nothing was decided about {short(task)} yet", reason="NO_DECISION")
    return decision
