"""Why a task is where it is."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, TaskArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hopper.federation.v1.delegation_service_pb2 import GetRemoteDelegationResponse
    from hopper.memory.v1.episodic_service_pb2 import SimilarEpisode
    from hopper.registry.v1.project_pb2 import Project
    from hopper.router.v1.decision_pb2 import Decision
    from hopper.router.v1.delegation_pb2 import Delegation
    from hopper.router.v1.task_service_pb2 import ExplainTaskResponse, LearnedReason, WhyNot

MOST_SIMILAR: Final = 5
_MOST_NAMES: Final = 50
_MOST_TEXT_BYTES: Final = 4000


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "why", panel=TASKS, examples=("hopper why k7q2mz", "hopper why k7q2mz --not mesos"))(why)


def why(
    cli: Cli,
    task: TaskArgument,
    not_project: Annotated[
        str,
        typer.Option("--not", metavar="PROJECT", help="Why not there?", autocompletion=complete.projects),
    ] = "",
) -> None:
    """
    Tell why a task is where it is, why not elsewhere, and what it waits for.

    With the candidates and what their scores are made of; where what was learned has decided, the words that moved it;
    tasks like it, and how they went; and what alone would have changed the decision.
    """
    from hopper.router.v1.delegation_service_pb2 import ListDelegationsRequest
    from hopper.router.v1.task_service_pb2 import ExplainTaskRequest
    from hopper_cli.names import project_name
    from hopper_cli.output import to_json

    name = cli.task(task)
    request = ExplainTaskRequest(name=name, not_project=project_name(not_project) if not_project else "")
    answer = cli.hopper.tasks.ExplainTask(request)
    chain = cli.hopper.delegations.ListDelegations(ListDelegationsRequest(task=name))
    similar = _similar(cli, answer)
    crossed = _crossed(cli, name, list(chain.delegations))
    if cli.json:
        likes = [to_json(each) for each in similar or ()]
        across = [to_json(each) for each in crossed]
        cli.out.document({**to_json(answer), **to_json(chain), "similar": likes, "hand_overs": across})
        return
    _head(cli, answer.task.name, answer.task.spec.title, list(answer.sentences))
    if answer.HasField("why_not"):
        _why_not(cli, answer.why_not)
    if answer.decisions:
        _decision(cli, answer.decisions[0])
    _because(cli, answer, similar)
    if len(answer.decisions) > 1:
        _earlier(cli, list(answer.decisions[1:]))
    if chain.delegations:
        _chain(cli, list(chain.delegations))
    if crossed:
        _custody(cli, name, crossed)
    _now_what(cli, answer, crossed)


def _crossed(cli: Cli, task: str, chain: "list[Delegation]") -> "list[GetRemoteDelegationResponse]":
    """The hand-overs to and from peers that a task went through, wherever on its way within this Hopper."""
    from hopper.federation.v1.delegation_service_pb2 import ExplainCustodyRequest
    from hopper_client import HopperError, MethodNotOffered

    names = [task, *(each.task for each in chain), *(name for each in chain for name in each.child_tasks)]
    found: dict[tuple[str, bool], GetRemoteDelegationResponse] = {}
    try:
        for name in list(dict.fromkeys(names))[:_MOST_NAMES]:
            answer = cli.hopper.remote_delegations.ExplainCustody(ExplainCustodyRequest(task=name))
            found |= {(each.delegation.id, each.delegation.handed_over): each for each in answer.hand_overs}
    except MethodNotOffered:  # this Hopper knows no others
        return []
    except HopperError as error:  # the rest of the answer does not need it
        cli.out.note(f"the federation service does not say whether it crossed: {error.reason}")
    return sorted(found.values(), key=lambda each: each.delegation.create_time.ToMicroseconds())


def _custody(cli: Cli, task: str, crossed: "list[GetRemoteDelegationResponse]") -> None:
    from hopper_cli.artifact_text import missing_lines
    from hopper_cli.hand_over_text import custody_lines, hand_over_table

    _heading(cli, "Between Hoppers")
    for each in crossed:
        cli.out.say(hand_over_table([each.delegation], cli.now))
        for line in custody_lines(each.custody, cli.now):
            cli.out.say(line)
    if any(each.delegation.artifacts for each in crossed):
        for line in missing_lines(cli, task):
            cli.out.say(line)


def _now_what(cli: Cli, answer: "ExplainTaskResponse", crossed: "list[GetRemoteDelegationResponse]") -> None:
    """What a person can do about a task that does not go on by itself."""
    from hopper.router.v1.task_pb2 import Wait
    from hopper_cli.hand_over_text import next_steps
    from hopper_cli.stuck import what_to_do

    steps = [step for each in crossed for step in next_steps(each.delegation)]
    if answer.decisions and answer.task.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR:
        steps += what_to_do(answer.decisions[0], answer.task.name, lambda name: _project(cli, name))
    if steps:
        _heading(cli, "What you can do")
        for step in steps:
            cli.out.say(f"  {step}")


def _project(cli: Cli, name: str) -> "Project | None":
    from hopper.registry.v1.project_service_pb2 import GetProjectRequest
    from hopper_client import HopperError

    try:
        return cli.hopper.projects.GetProject(GetProjectRequest(name=name)).project
    except HopperError:  # it is gone meanwhile, or not this caller's to see
        return None


def _similar(cli: Cli, answer: "ExplainTaskResponse") -> "Sequence[SimilarEpisode] | None":
    """Past tasks that say the same words, best first; None: memory does not answer."""
    from hopper.memory.v1.episodic_service_pb2 import SearchSimilarRequest
    from hopper_common.errors import HopperError

    text = f"{answer.task.spec.title} {answer.task.spec.description}".encode()[:_MOST_TEXT_BYTES]
    if not answer.decisions or not text.strip():
        return ()
    request = SearchSimilarRequest(
        text=text.decode(errors="ignore"), instance=answer.decisions[0].instance, limit=3 * MOST_SIMILAR
    )
    try:
        found = cli.hopper.episodes.SearchSimilar(request).matches
    except HopperError as error:  # the rest of the answer does not need it
        cli.out.note(f"memory does not say what is like it: {error.reason}")
        return None
    others = {each.episode.task: each for each in reversed(found) if each.episode.task != answer.task.name}
    return sorted(others.values(), key=lambda each: -each.score)[:MOST_SIMILAR]


def _because(cli: Cli, answer: "ExplainTaskResponse", similar: "Sequence[SimilarEpisode] | None") -> None:
    from hopper_cli.render import similar_table

    if answer.learned:
        _learned(cli, answer.learned)
    if similar:
        _heading(cli, "Tasks like it")
        cli.out.say(similar_table(similar, cli.now))
    if answer.counterfactuals:
        _heading(cli, "What would have changed it")
        for change in answer.counterfactuals:
            cli.out.say(f"  {change.message}")


def _learned(cli: Cli, reasons: "Sequence[LearnedReason]") -> None:
    from hopper_cli.names import bare
    from hopper_cli.render import opinion_table, word_table

    first = reasons[0]
    _heading(cli, "The words that mattered, as it is known now")
    cli.out.say(word_table(reasons) if first.words else "  nothing was learned of any of its words yet")
    _heading(cli, f"What each part of the model says of {bare(first.project)}")
    cli.out.say(opinion_table(first))


def _head(cli: Cli, name: str, title: str, sentences: list[str]) -> None:
    from rich.text import Text

    from hopper_cli.names import short
    from hopper_cli.output import one_line

    cli.out.say(Text.assemble((short(name), "bold"), "  ", (one_line(title), "bold")))
    for sentence in sentences:
        cli.out.say(f"  {one_line(sentence)}")


def _heading(cli: Cli, text: str) -> None:
    from rich.text import Text

    cli.out.say()
    cli.out.say(Text(text, style="bold"))


def _why_not(cli: Cli, why_not: "WhyNot") -> None:
    from hopper_cli.names import bare
    from hopper_cli.output import one_line
    from hopper_cli.render import factor_table

    _heading(cli, f"Why not {bare(why_not.project)}?")
    cli.out.say(f"  {one_line(why_not.message)}")
    if why_not.recomputed:
        cli.out.say("  (worked out now: the record of the decision does not have it)", style="dim")
    if why_not.HasField("candidate") and why_not.candidate.factors:
        cli.out.say(factor_table(why_not.candidate))


def _decision(cli: Cli, decision: "Decision") -> None:
    from hopper_cli.names import bare
    from hopper_cli.render import candidate_table, exclusion_table, factor_table, lead_table, stage_table

    if decision.opinions:
        _heading(cli, "Who was asked")
        cli.out.say(stage_table(decision.opinions))
    if len(decision.candidates) > 1:
        _heading(cli, f"Candidates ({decision.eligible_count} eligible)")
        cli.out.say(candidate_table(decision.candidates[:5]))
    two = decision.candidates[:2]
    if len(two) > 1 and two[0].factors and two[1].factors:
        _heading(cli, f"What put {bare(two[0].project)} before {bare(two[1].project)}")
        cli.out.say(lead_table(*two))
    for candidate in two:
        if candidate.factors:
            _heading(cli, f"What speaks for {bare(candidate.project)}")
            cli.out.say(factor_table(candidate))
    if decision.exclusions:
        _heading(cli, "Ruled out")
        cli.out.say(exclusion_table(decision))
    _heading(cli, "Decided")
    _basis(cli, decision)


def _basis(cli: Cli, decision: "Decision") -> None:
    from hopper_cli.names import bare
    from hopper_cli.render import facts
    from hopper_cli.times import format_duration, format_time
    from hopper_common.timestamps import from_proto

    basis = decision.basis
    version = f"version {basis.policy_version}" if basis.policy_version else "built in"
    cli.out.say(
        facts(
            [
                ("by", f"{bare(decision.instance)}, strategy {decision.strategy}"),
                ("when", format_time(from_proto(decision.create_time), cli.now)),
                ("took", format_duration(from_proto(decision.elapsed))),
                ("policy", f"{basis.policy}, {version}" if basis.policy else ""),
                ("directory", f"projects {basis.projects_version}, instances {basis.instances_version}"),
                ("decision", decision.name),
            ]
        )
    )


def _earlier(cli: Cli, decisions: list["Decision"]) -> None:
    from hopper_cli.render import decision_line
    from hopper_cli.times import format_age
    from hopper_common.timestamps import from_proto

    _heading(cli, "Before that")
    for decision in decisions:
        age = format_age(from_proto(decision.create_time), cli.now)
        cli.out.say(f"  {age} ago: {decision_line(decision)}")


def _chain(cli: Cli, delegations: list["Delegation"]) -> None:
    from hopper_cli.render import delegation_table

    _heading(cli, "Handed over")
    cli.out.say(delegation_table(delegations, cli.now))
