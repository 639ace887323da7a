"""Answers to "why?": why here, why not there, why waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hopper.router.v1 import task_service_pb2 as svc
from hopper_learning import Explanation
from hopper_router import placing, routing
from hopper_router.convert import candidate_to_proto, decision_to_proto
from hopper_router.counterfactual import Counterfactual, Known, counterfactuals, first_two
from hopper_router.errors import ProjectNotFound
from hopper_router.model import Decision, Outcome, Task, TaskSpec, Wait
from hopper_router.unit import Unit
from hopper_router.views import task_view, waits_of

MOST_DECISIONS: Final = 20
MOST_WORDS: Final = 12

Explain = Callable[[str, TaskSpec, str], Explanation | None]
"""Why a project gets its share of a task in an instance, as it is known now: `Learned.explain`."""


def explain(unit: Unit, name: str, not_project: str, learned: Explain) -> svc.ExplainTaskResponse:
    """
    Tell why a task is where it is and what it waits for; with *not_project*, why it is not there.

    Raises:
        TaskNotFound, ProjectNotFound.
    """
    task = unit.task(name)
    decisions = unit.store.list_decisions(task=name, limit=MOST_DECISIONS)
    wait = waits_of(unit, [task])[name]
    reasons = _what_was_learned(task, decisions[0], learned) if decisions else []
    return svc.ExplainTaskResponse(
        task=task_view(unit, task),
        decisions=map(decision_to_proto, decisions),
        sentences=_sentences(task, decisions, wait),
        why_not=_why_not(unit, task, decisions, not_project) if not_project else None,
        learned=map(_learned_to_proto, reasons),
        counterfactuals=_counterfactuals(unit, task, decisions[0], reasons) if decisions else (),
    )


def _sentences(task: Task, decisions: list[Decision], wait: Wait | None) -> list[str]:
    said = [_why_here(decisions[0])] if decisions else ["nobody has decided about it yet"]
    if len(decisions) > 1:
        said.append(f"it was decided about {len(decisions)} times; the last counts")
    if wait is not None:
        said.append(f"it is not running because: {wait.message}")
    elif task.state.final:
        said.append(f"it ended {task.state.value}" + (f": {task.failure.reason}" if task.failure else ""))
    elif task.claim is not None:
        said.append(f"{task.claim.worker} has it")
    return said


def _why_here(decision: Decision) -> str:
    if decision.outcome is Outcome.ROUTED:
        sure = f"{decision.confidence:.0%} sure, by {decision.strategy}"
        return f"it went to {decision.project} ({sure}): {decision.reasoning}"
    if decision.outcome is Outcome.QUEUED:
        return f"it stays in {decision.project or decision.instance}: {decision.reasoning}"
    return f"it went nowhere: {decision.reasoning}"


# ---------------------------------------------------------------- what was learned


def _what_was_learned(task: Task, decision: Decision, learned: Explain) -> list[Explanation]:
    """What was learned of the first two, where it took part in deciding."""
    two = first_two(decision) or decision.candidates[:1]
    if not any(factor.name == "learned" for candidate in two for factor in candidate.factors):
        return []
    said = (learned(decision.instance, task.spec, candidate.project) for candidate in two)
    return [explanation for explanation in said if explanation is not None]


def _learned_to_proto(said: Explanation) -> svc.LearnedReason:
    return svc.LearnedReason(
        project=said.target,
        probability=said.probability,
        words=[svc.LearnedWord(word=word, weight=weight) for word, weight in said.words[:MOST_WORDS]],
        opinions=[
            svc.LearnedOpinion(name=name, probability=opinion.probability, weight=opinion.weight)
            for name, opinion in said.experts.items()
        ],
    )


# ---------------------------------------------------------------- what would have changed it


def _counterfactuals(
    unit: Unit, task: Task, decision: Decision, reasons: Sequence[Explanation]
) -> Iterator[svc.Counterfactual]:
    two = first_two(decision)
    candidates = unit.world.directory.candidates
    row = candidates.rows.get(two[1].project) if two else None
    known = Known(
        tags=candidates.folded_tags[row] if row is not None else (),
        tags_of_any=len(candidates.tags.keys() & {tag.casefold() for tag in task.spec.tags}),
        moved={said.target: dict(said.words) for said in reasons},
    )
    return map(_counterfactual_to_proto, counterfactuals(decision, task.spec, known))


def _counterfactual_to_proto(change: Counterfactual) -> svc.Counterfactual:
    return svc.Counterfactual(
        kind=svc.Counterfactual.Kind.Value(f"KIND_{change.kind.value}"),
        what=change.what,
        value=change.value,
        needed=change.needed,
        project=change.project,
        recomputed=change.recomputed,
        message=change.message,
    )


# ---------------------------------------------------------------- why not there


def _why_not(unit: Unit, task: Task, decisions: list[Decision], project: str) -> svc.WhyNot:
    if decisions and decisions[0].project == project:
        return svc.WhyNot(project=project, rank=1, message=f"it did go to {project}")
    recorded = _from_record(decisions[0], project) if decisions else None
    return recorded or _recomputed(unit, task, project)


def _from_record(decision: Decision, project: str) -> svc.WhyNot | None:
    """What the decision itself recorded about a project, if it did."""
    for rank, candidate in enumerate(decision.candidates, start=1):
        if candidate.project == project:
            return svc.WhyNot(
                project=project,
                candidate=candidate_to_proto(candidate),
                rank=rank,
                message=f"it was number {rank} of {decision.eligible_count}",
            )
    for exclusion in decision.exclusions:
        if project in exclusion.projects:
            return _excluded(project, exclusion.filter, exclusion.detail, recomputed=False)
    return None


def _recomputed(unit: Unit, task: Task, project: str) -> svc.WhyNot:
    world = unit.world
    if project not in world.directory.projects:
        raise ProjectNotFound(f"there is no project {project}", project=project)
    ruled_out, detail, candidate, rank = routing.why_not(
        task.spec,
        world.directory.candidates,
        world.policies.in_force(task.instance, world.directory).policy,
        project,
        load=unit.load.by_project,
        refused=placing.refused(unit, task),
        strategies=world.strategies(task.instance),
        now=unit.now,
    )
    if candidate is None:
        return _excluded(project, ruled_out, detail, recomputed=True)
    return svc.WhyNot(
        project=project,
        candidate=candidate_to_proto(candidate),
        rank=rank,
        recomputed=True,
        message=f"as things are now it would be number {rank}",
    )


def _excluded(project: str, ruled_out: str, detail: str, *, recomputed: bool) -> svc.WhyNot:
    message = f"the filter `{ruled_out}` ruled it out" + (f": {detail}" if detail else "")
    return svc.WhyNot(
        project=project, filter=ruled_out, detail=detail, recomputed=recomputed, message=message
    )
