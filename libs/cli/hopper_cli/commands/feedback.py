"""How it went: what Hopper learns from."""

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, AuthorOption, TaskArgument

if TYPE_CHECKING:
    from hopper.federation.v1.delegation_pb2 import Appraisal
    from hopper.memory.v1.episode_pb2 import Feedback

_MOST_COMMENT_BYTES: Final = 1000


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
    """
    Say how a task went. It counts for the decision in force and for every decision above it.

    Where a peer has done it, its Hopper hears of it too, without your name: whether it was right there, how good the
    result is, and your comment; unless the policy keeps feedback here.
    """
    from hopper.memory.v1.episode_pb2 import Feedback
    from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
    from hopper_cli.inputs import me
    from hopper_cli.names import bare, project_name
    from hopper_cli.output import to_json
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
    name = cli.task(task)
    response = cli.hopper.feedback.SubmitFeedback(
        SubmitFeedbackRequest(decision=_decision_of(cli, name), feedback=said)
    )
    told = _tell_peer(cli, name, said)
    if cli.json:
        cli.out.document({**to_json(response), "told": told.peer, "not_told": told.why_not})
        return
    above = f", and by {len(response.passed_to)} above it" if response.passed_to else ""
    peer = f", and told {bare(told.peer)}" if told.peer else ""
    cli.out.say(f"thank you: noted for the decision in force{above}{peer}")


class _Told(NamedTuple):
    """Which peer hears of it; or why the one that has done it does not, a reason. Both empty: none has done it."""

    peer: str = ""
    why_not: str = ""


def _tell_peer(cli: Cli, task: str, said: "Feedback") -> _Told:
    """Tell who has done it how well, if that is another Hopper: the match, the quality and the comment."""
    from hopper.federation.v1.delegation_service_pb2 import AppraiseRemoteDelegationRequest
    from hopper_client import HopperError, MethodNotOffered, NotFound

    appraisal = _appraisal(said)
    if not appraisal.ListFields():
        return _Told()
    request = AppraiseRemoteDelegationRequest(task=task, appraisal=appraisal)
    try:
        answer = cli.hopper.remote_delegations.AppraiseRemoteDelegation(request)
    except (MethodNotOffered, NotFound):  # this Hopper knows no others, or it was done here
        return _Told()
    except HopperError as error:  # it is noted all the same
        cli.out.note(f"whoever has done it is not told: {error.message} ({error.reason})")
        return _Told(why_not=error.reason)
    return _Told(answer.delegation.peer)


def _appraisal(said: "Feedback") -> "Appraisal":
    from hopper.federation.v1.delegation_pb2 import Appraisal
    from hopper.memory.v1.episode_pb2 import Feedback
    from hopper_common.text import one_line

    appraisal = Appraisal(comment=one_line(said.comment, most_bytes=_MOST_COMMENT_BYTES))
    if said.match != Feedback.MATCH_UNSPECIFIED:
        appraisal.good_match = said.match == Feedback.MATCH_GOOD
    if said.HasField("quality"):
        appraisal.quality = said.quality
    return appraisal


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
