"""Answers to "why?": why here, why not there, why waiting."""

from __future__ import annotations

from typing import Final

from hopper.router.v1 import task_service_pb2 as svc
from hopper_router import placing, routing
from hopper_router.convert import candidate_to_proto, decision_to_proto
from hopper_router.errors import ProjectNotFound
from hopper_router.model import Decision, Outcome, Task, Wait
from hopper_router.unit import Unit
from hopper_router.views import task_view, waits_of

MOST_DECISIONS: Final = 20


def explain(unit: Unit, name: str, not_project: str) -> svc.ExplainTaskResponse:
    """
    Tell why a task is where it is and what it waits for; with *not_project*, why it is not there.

    Raises:
        TaskNotFound, ProjectNotFound.
    """
    task = unit.task(name)
    decisions = unit.store.list_decisions(task=name, limit=MOST_DECISIONS)
    wait = waits_of(unit, [task])[name]
    return svc.ExplainTaskResponse(
        task=task_view(unit, task),
        decisions=map(decision_to_proto, decisions),
        sentences=_sentences(task, decisions, wait),
        why_not=_why_not(unit, task, decisions, not_project) if not_project else None,
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
