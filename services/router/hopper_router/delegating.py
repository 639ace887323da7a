"""Handing over because somebody asks for it: delegate, accept, reject; `handover` has the mechanics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hopper_common.errors import DelegationWrongState
from hopper_router import handover, intake, placing, transitions
from hopper_router.errors import (
    DelegationTargetInvalid,
    DependencyCycle,
    TaskWrongState,
)
from hopper_router.model import (
    Delegation,
    DelegationKind,
    DelegationState,
    Instance,
    Task,
    TaskSpec,
    TaskState,
)
from hopper_router.scopes import delegation_allowed
from hopper_router.transitions import Event
from hopper_router.unit import Unit


def delegate(
    unit: Unit,
    name: str,
    kind: DelegationKind,
    target: str,
    subtasks: Sequence[tuple[TaskSpec, Sequence[int]]],
    reason: str,
    token: int,
) -> Delegation:
    """
    Hand a task over because somebody asks for it; a RUNNING one only with its claim's token.

    Returns:
        The delegation as it is when everything that follows has been decided: whom it went to may have sent it back.

    Raises:
        See DelegateTask.
    """
    task = unit.task(name)
    if kind is not DelegationKind.DECOMPOSE:  # whoever makes parts of a task goes on with it
        transitions.require_repeatable(task, Event.DELEGATE.value)
    task = _let_go(unit, task, token)
    _require_in_hand(unit, task, kind)
    if kind is DelegationKind.ESCALATE:
        made = _escalate(unit, task, reason)
    else:
        made = _to_instance(unit, task, kind, target, subtasks, reason)
    placing.settle(unit)
    return unit.delegation(made.name)


def _to_instance(
    unit: Unit,
    task: Task,
    kind: DelegationKind,
    target: str,
    subtasks: Sequence[tuple[TaskSpec, Sequence[int]]],
    reason: str,
) -> Delegation:
    source = unit.instance(task.instance)
    where = unit.instance(target or source.name)
    if not delegation_allowed(kind, source, where, parent_of=lambda other: unit.instance(other).parent):
        raise DelegationTargetInvalid(
            f"{kind.value} cannot go from {source.name} to {where.name}",
            kind=kind.value, **{"from": source.name, "to": where.name},
        )  # fmt: skip
    if kind is DelegationKind.DECOMPOSE:
        return _decompose(unit, task, where, subtasks, reason)
    return handover.hand_over(unit, task, where.name, kind, reason)


def _require_in_hand(unit: Unit, task: Task, kind: DelegationKind) -> None:
    """Refuse to hand over what somebody else has, or what is over; and, but for sending it back, a mere offer."""
    transitions.move(task, Event.DELEGATE, unit.now)
    if task.offered and kind is not DelegationKind.ESCALATE:
        raise TaskWrongState(
            "the task is only offered: accept the delegation first, or send it back",
            task=task.name, state=task.state.value, event=Event.DELEGATE.value,
        )  # fmt: skip


def _let_go(unit: Unit, task: Task, token: int) -> Task:
    """Take a running task from its worker, who asked for it."""
    if task.state is not TaskState.RUNNING:
        return task
    return unit.log(task, transitions.release(task, token, unit.now), Event.RELEASE)


def _decompose(
    unit: Unit, task: Task, where: Instance, parts: Sequence[tuple[TaskSpec, Sequence[int]]], reason: str
) -> Delegation:
    """
    Make several tasks out of one; it succeeds when all of them have.

    Args:
        parts: Each with the positions of the parts that must succeed first.
    """
    order = _in_order(task, parts)
    intake.require_accepting(unit, where.name)
    path, depth = handover.path_to(unit, task, where)
    delegation = handover.new_delegation(unit, task, where, DelegationKind.DECOMPOSE, reason, path, depth)
    unit.store.insert_delegation(delegation)
    unit.log(task, transitions.delegate(task, unit.now), Event.DELEGATE)
    names: dict[int, str] = {}
    for position in order:
        spec, after = parts[position]
        wanted = (*task.spec.dependencies, *spec.dependencies, *(names[other] for other in after))
        intake.require_project(unit, spec.project)
        intake.require_acyclic(unit, task.name, spec.dependencies)
        asked = replace(spec, dependencies=tuple(dict.fromkeys(wanted)))
        child = intake.new_task(unit, where, asked, delegation=delegation.name, offered=where.manual_accept)
        names[position] = child.name
        handover.take_in(unit, child)
    delegation = replace(delegation, child_tasks=tuple(names[position] for position in range(len(parts))))
    unit.store.update_delegation(delegation)
    return delegation


def _in_order(task: Task, parts: Sequence[tuple[TaskSpec, Sequence[int]]]) -> list[int]:
    """The positions of the parts, each after those it waits for."""
    waiting = {position: set(after) for position, (_, after) in enumerate(parts)}
    order: list[int] = []
    while waiting:
        free = [position for position, after in waiting.items() if not after - set(order)]
        if not free:
            path = ",".join(f"subtasks[{position}]" for position in sorted(waiting))
            raise DependencyCycle(
                "the parts wait for each other, or for parts that are not there", task=task.name, path=path
            )
        order.extend(free)
        for position in free:
            del waiting[position]
    return order


def _escalate(unit: Unit, task: Task, reason: str) -> Delegation:
    """
    Send a task up: back to whoever delegated it, or else to the parent instance.

    Raises:
        DelegationTargetInvalid: There is nobody above.
    """
    if task.delegation:
        came = unit.delegation(task.delegation)
        return handover.give_back(unit, came, DelegationState.RETURNED, reason or "escalated")
    parent = unit.instance(task.instance).parent
    if not parent:
        raise DelegationTargetInvalid(
            f"{task.instance} has nobody above it", kind="ESCALATE", **{"from": task.instance, "to": ""}
        )
    return handover.hand_over(unit, task, parent, DelegationKind.ESCALATE, reason)


def accept(unit: Unit, name: str) -> Delegation:
    """
    Take an offered task; a repeat changes nothing.

    Raises:
        DelegationWrongState: It is closed.
    """
    delegation = unit.delegation(name)
    if delegation.state is DelegationState.ACCEPTED:
        return delegation
    _require(delegation, DelegationState.OFFERED, verb="accept")
    accepted = handover.close(unit, delegation, DelegationState.ACCEPTED, delegation.reason)
    for child in unit.tasks(accepted.child_tasks):
        if not child.state.final:
            unit.log(child, transitions.accept(child, unit.now), Event.ACCEPT)
            unit.unplaced.append(child.name)
    placing.settle(unit)
    return unit.delegation(name)


def reject(unit: Unit, name: str, reason: str, token: int = 0, *, may_come_again: bool = False) -> Delegation:
    """
    Send a task back to the delegator's queue.

    Args:
        token: Of the claim that ends with this, where a worker has the task; 0: nobody has it.
        may_come_again: What kept it passes: it may be handed over to that instance again.

    Raises:
        DelegationWrongState: It is closed.
        TaskWrongState: A worker has it and no token says that it is the one who asks, or it has been handed on.
        StaleToken: The token is not that of a live claim.
    """
    delegation = unit.delegation(name)
    if not delegation.state.open:
        _require(delegation, DelegationState.OFFERED, verb="reject")
    for child in unit.tasks(delegation.child_tasks):
        if token and child.state is not TaskState.DELEGATED:
            transitions.held(child, token, unit.now)
        elif child.state in handover.BUSY:
            raise TaskWrongState(
                "a worker has the task, or it was handed on: it can no longer be rejected",
                task=child.name, state=child.state.value, event="REJECT",
            )  # fmt: skip
        transitions.require_repeatable(child, "REJECT")
    state = DelegationState.CANCELLED if may_come_again else DelegationState.RETURNED
    returned = handover.give_back(unit, delegation, state, reason)
    placing.settle(unit)
    return returned


def _require(delegation: Delegation, state: DelegationState, *, verb: str) -> None:
    if delegation.state is not state:
        raise DelegationWrongState(
            f"the delegation is {delegation.state.value}: it cannot be {verb}ed",
            delegation=delegation.name, state=delegation.state.value, verb=verb,
        )  # fmt: skip
