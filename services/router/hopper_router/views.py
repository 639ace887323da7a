"""Tasks as callers see them: with why they wait, which takes a look at what surrounds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.task_service_pb2 import PossibleDuplicate
from hopper_router import limits
from hopper_router.convert import STATE_TO_PROTO, task_to_proto
from hopper_router.lookout import Duplicate
from hopper_router.model import Task, TaskState, Wait
from hopper_router.store_sql import Blockers
from hopper_router.unit import Unit
from hopper_router.waiting import Facts, why_waiting

BASIC = pb.TASK_VIEW_BASIC
FULL = pb.TASK_VIEW_FULL


def task_view(
    unit: Unit, task: Task, view: pb.TaskView.ValueType = BASIC, *, show_token: bool = False
) -> pb.Task:
    """One task."""
    return task_views(unit, [task], view, show_token=show_token)[0]


def task_views(
    unit: Unit, tasks: Sequence[Task], view: pb.TaskView.ValueType = BASIC, *, show_token: bool = False
) -> list[pb.Task]:
    """Several tasks, in their order, with a fixed number of queries however many they are."""
    waits = waits_of(unit, tasks)
    return [task_to_proto(task, view=view, wait=waits[task.name], show_token=show_token) for task in tasks]


def duplicate_view(found: Duplicate) -> PossibleDuplicate:
    """An open task that looks like the same work as a new one."""
    return PossibleDuplicate(
        task=found.task, score=found.score, shared_words=found.shared, state=STATE_TO_PROTO[found.state]
    )


def waits_of(unit: Unit, tasks: Sequence[Task]) -> dict[str, Wait | None]:
    """Why each of those tasks is not running, by name."""
    if any(task.blockers or task.state is TaskState.DELEGATED for task in tasks):
        unit.flush()
    blockers = unit.store.blockers([task.name for task in tasks if task.blockers])
    delegations = _open_delegations(unit, [task.name for task in tasks if task.state is TaskState.DELEGATED])
    limited = limits.waits(unit, tasks)
    return {
        task.name: why_waiting(
            task, _facts(unit, task, blockers.get(task.name), delegations, limited.get(task.name))
        )
        for task in tasks
    }


def _facts(
    unit: Unit,
    task: Task,
    blockers: Blockers | None,
    delegations: dict[str, list[str]],
    limited: Wait | None,
) -> Facts:
    directory = unit.world.directory
    waiting_for = blockers or Blockers()
    return Facts(
        now=unit.now,
        blockers=waiting_for.names,
        dead=waiting_for.dead,
        delegations=tuple(delegations.get(task.name, ())),
        halted_by=directory.halted_by(task.instance),
        paused=directory.paused,
        limited=limited,
    )


def _open_delegations(unit: Unit, names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    if names:
        for delegation in unit.store.delegations_of(names):
            if delegation.state.open:
                found[delegation.task].append(delegation.name)
    return found
