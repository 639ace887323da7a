"""
Handing tasks over between instances, and passing their ends back up.

A hand-over makes a new task in the other instance and a `Delegation` between the two; the delegator's task is DELEGATED
until the new one ends. Ends travel back the way the work came, one level at a time, in the transaction of the end
itself: a task that ends (`finish`) unblocks what depended on it and closes the delegation that brought it, which ends
the delegator's task, and so on up to the top.

Work cannot come back to an instance it has been in: each delegation carries the path of all of them, and an instance
that sent the work back is not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hopper_router import placing, transitions
from hopper_router.errors import (
    DelegationLoop,
    DelegationTargetInvalid,
    DelegationWrongState,
    DependencyCycle,
    TaskWrongState,
)
from hopper_router.model import (
    MAX_PATH,
    Delegation,
    DelegationKind,
    DelegationState,
    Failure,
    Instance,
    Task,
    TaskSpec,
    TaskState,
)
from hopper_router.scopes import delegation_allowed
from hopper_router.transitions import Event
from hopper_router.unit import Unit

_BUSY: Final = frozenset({TaskState.RUNNING, TaskState.INPUT_REQUIRED, TaskState.DELEGATED})


# ---------------------------------------------------------------- over


def hand_over(
    unit: Unit, task: Task, target: str, kind: DelegationKind, reason: str
) -> tuple[Task, Delegation]:
    """
    Make the task another instance's.

    Raises:
        DelegationLoop: The instance had the work before, or it is nested too deep.
        InstanceNotFound, InstanceNotRunning, FederationUnavailable.
    """
    where = placing.require_accepting(unit, target)
    path, depth = _path_to(unit, task, where)
    delegation = _new_delegation(unit, task, where, kind, reason, path, depth)
    child = placing.new_task(unit, where, task.spec, delegation=delegation.name, offered=where.manual_accept)
    child = replace(child, hold=task.hold)  # what somebody holds back is held back wherever it goes
    delegation = replace(delegation, child_tasks=(child.name,))
    unit.store.insert_delegation(delegation)
    project = unit.world.directory.project_of(where.name)
    delegated = replace(transitions.delegate(task, unit.now), project=project)
    delegated = unit.log(task, delegated, Event.DELEGATE)
    _take_in(unit, child)
    return delegated, delegation


def _take_in(unit: Unit, child: Task) -> None:
    if child.offered:
        unit.log(None, child, Event.OFFER)
    else:
        placing.place(unit, unit.log(None, child, Event.SUBMIT))


def _path_to(unit: Unit, task: Task, where: Instance) -> tuple[tuple[str, ...], int]:
    """Every instance the work will have been in, and how deep it will be nested."""
    came = unit.delegation(task.delegation) if task.delegation else None
    path = came.path if came else (task.instance,)
    depth = came.depth + 1 if came else 1
    if depth > MAX_PATH:
        raise DelegationLoop(
            f"the work is nested {MAX_PATH} deep already", path=",".join(path), instance=where.name
        )  # fmt: skip
    if where.name == task.instance:
        return path, depth
    if where.name in placing.visited(unit, task):
        raise DelegationLoop(
            f"{where.name} had this work before", path=",".join(path), instance=where.name
        )  # fmt: skip
    return (*path, where.name), depth


def _new_delegation(
    unit: Unit,
    task: Task,
    where: Instance,
    kind: DelegationKind,
    reason: str,
    path: tuple[str, ...],
    depth: int,
) -> Delegation:
    return Delegation(
        name=unit.new_name("delegations"),
        kind=kind,
        state=DelegationState.OFFERED if where.manual_accept else DelegationState.ACCEPTED,
        task=task.name,
        from_instance=task.instance,
        to_instance=where.name,
        path=path,
        child_tasks=(),
        create_time=unit.now,
        update_time=unit.now,
        reason=reason,
        offer_end=unit.now + where.offer_timeout if where.manual_accept else None,
        depth=depth,
    )


# ---------------------------------------------------------------- asked for


def delegate(
    unit: Unit,
    name: str,
    kind: DelegationKind,
    target: str,
    subtasks: Sequence[tuple[TaskSpec, Sequence[int]]],
    reason: str,
    token: int,
) -> tuple[Task, Delegation]:
    """
    Hand a task over because somebody asked for it; a RUNNING one only with its claim's token.

    Raises:
        See DelegateTask.
    """
    task = _let_go(unit, unit.task(name), token)
    _require_in_hand(unit, task, kind)
    if kind is DelegationKind.ESCALATE:
        return escalate(unit, task, reason)
    source = unit.instance(task.instance)
    where = unit.instance(target or source.name)
    if not delegation_allowed(kind, source, where, parent_of=lambda other: unit.instance(other).parent):
        raise DelegationTargetInvalid(
            f"{kind.value} cannot go from {source.name} to {where.name}",
            kind=kind.value, **{"from": source.name, "to": where.name},
        )  # fmt: skip
    if kind is DelegationKind.DECOMPOSE:
        return decompose(unit, task, where, subtasks, reason)
    return hand_over(unit, task, where.name, kind, reason)


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


def decompose(
    unit: Unit, task: Task, where: Instance, parts: Sequence[tuple[TaskSpec, Sequence[int]]], reason: str
) -> tuple[Task, Delegation]:
    """
    Make several tasks out of one; it succeeds when all of them have.

    Args:
        parts: Each with the positions of the parts that must succeed first.
    """
    order = _in_order(task, parts)
    placing.require_accepting(unit, where.name)
    path, depth = _path_to(unit, task, where)
    delegation = _new_delegation(unit, task, where, DelegationKind.DECOMPOSE, reason, path, depth)
    unit.store.insert_delegation(delegation)
    delegated = unit.log(task, transitions.delegate(task, unit.now), Event.DELEGATE)
    names: dict[int, str] = {}
    for position in order:
        spec, after = parts[position]
        wanted = (*task.spec.dependencies, *spec.dependencies, *(names[other] for other in after))
        placing.require_project(unit, spec.project)
        placing.require_acyclic(unit, task.name, spec.dependencies)
        asked = replace(spec, dependencies=tuple(dict.fromkeys(wanted)))
        child = placing.new_task(unit, where, asked, delegation=delegation.name, offered=where.manual_accept)
        names[position] = child.name
        event = Event.OFFER if child.offered else Event.SUBMIT
        unit.log(None, child, event)
    delegation = replace(delegation, child_tasks=tuple(names[position] for position in range(len(parts))))
    unit.store.update_delegation(delegation)
    if not where.manual_accept:
        _place_all(unit, delegation.child_tasks)
    return delegated, delegation


def _place_all(unit: Unit, names: Sequence[str]) -> None:
    """Place tasks that came together; one that is refused at once may end the others before it is their turn."""
    for name in names:
        task = unit.task(name)
        if task.state is TaskState.SUBMITTED:
            placing.place(unit, task)


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


def escalate(unit: Unit, task: Task, reason: str) -> tuple[Task, Delegation]:
    """
    Send a task up: back to whoever delegated it, or else to the parent instance.

    Raises:
        DelegationTargetInvalid: There is nobody above.
    """
    if task.delegation:
        came = unit.delegation(task.delegation)
        returned = give_back(unit, came, DelegationState.RETURNED, reason or "escalated")
        return unit.task(task.name), returned
    parent = unit.instance(task.instance).parent
    if not parent:
        raise DelegationTargetInvalid(
            f"{task.instance} has nobody above it", kind="ESCALATE", **{"from": task.instance, "to": ""}
        )
    return hand_over(unit, task, parent, DelegationKind.ESCALATE, reason)


# ---------------------------------------------------------------- taken, or sent back


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
    accepted = _close(unit, delegation, DelegationState.ACCEPTED, delegation.reason)
    for child in unit.tasks(accepted.child_tasks):
        if not child.state.final:
            unit.log(child, transitions.accept(child, unit.now), Event.ACCEPT)
    _place_all(unit, accepted.child_tasks)
    return unit.delegation(name)


def reject(unit: Unit, name: str, reason: str) -> Delegation:
    """
    Send a task back to the delegator's queue.

    Raises:
        DelegationWrongState: It is closed.
        TaskWrongState: A worker has it, or it has been handed on.
    """
    delegation = unit.delegation(name)
    if not delegation.state.open:
        _require(delegation, DelegationState.OFFERED, verb="reject")
    for child in unit.tasks(delegation.child_tasks):
        if child.state in _BUSY:
            raise TaskWrongState(
                "a worker has the task, or it was handed on: it can no longer be rejected",
                task=child.name, state=child.state.value, event="REJECT",
            )  # fmt: skip
    return give_back(unit, delegation, DelegationState.RETURNED, reason)


def give_back(unit: Unit, delegation: Delegation, state: DelegationState, reason: str) -> Delegation:
    """Close a delegation unfinished: its tasks are called off, the delegator decides anew, without that instance."""
    closed = _close(unit, delegation, state, reason)
    for child in unit.tasks(delegation.child_tasks):
        if not child.state.final:
            cancel(unit, child, reason or "sent back")
    task = unit.task(delegation.task)
    back = transitions.returned(task, unit.now)
    if len(delegation.child_tasks) == 1:
        back = replace(back, hold=unit.task(delegation.child_tasks[0]).hold)
    placing.place(unit, unit.log(task, back, Event.RETURN))
    return closed


def give_back_if_idle(unit: Unit, delegation: Delegation, reason: str) -> bool:
    """Give a delegation's tasks back, unless it is closed or somebody works on one of them; returns whether it was."""
    busy = any(child.state in _BUSY for child in unit.tasks(delegation.child_tasks))
    if busy or not delegation.state.open:
        return False
    give_back(unit, delegation, DelegationState.RETURNED, reason)
    return True


def expire(unit: Unit, offer: Delegation) -> Delegation:
    """Take back an offer that nobody answered in time."""
    return give_back(unit, offer, DelegationState.EXPIRED, "nobody answered the offer in time")


def _require(delegation: Delegation, state: DelegationState, *, verb: str) -> None:
    if delegation.state is not state:
        raise DelegationWrongState(
            f"the delegation is {delegation.state.value}: it cannot be {verb}ed",
            delegation=delegation.name, state=delegation.state.value, verb=verb,
        )  # fmt: skip


def _close(unit: Unit, delegation: Delegation, state: DelegationState, reason: str) -> Delegation:
    closed = replace(delegation, state=state, reason=reason, update_time=unit.now, offer_end=None)
    unit.store.update_delegation(closed)
    return closed


# ---------------------------------------------------------------- ends


def finish(unit: Unit, before: Task, after: Task, event: Event) -> Task:
    """Log a move; if it ended the task, tell those who waited for it, one level up at a time."""
    ended = unit.log(before, after, event)
    if ended.state is TaskState.SUCCEEDED:
        _unblock_dependents(unit, ended)
    if ended.state.final and ended.delegation:
        _pass_up(unit, ended)
    return ended


def cancel(unit: Unit, task: Task, reason: str) -> Task:
    """Call a task off, and first whatever it was handed over as."""
    moved = transitions.cancel(task, reason, unit.now)  # refuses a finished task before anything is touched
    if task.state is TaskState.DELEGATED:
        _call_off_delegations(unit, task, reason)
    return finish(unit, task, moved, Event.CANCEL)


def _call_off_delegations(unit: Unit, task: Task, reason: str) -> None:
    unit.flush()
    for delegation in unit.store.delegations_of([task.name]):
        if not delegation.state.open:
            continue
        _close(unit, delegation, DelegationState.CANCELLED, reason)
        for child in unit.tasks(delegation.child_tasks):
            if not child.state.final:
                cancel(unit, child, reason)


def end_delegated(unit: Unit, task: Task, after: Task, event: Event) -> Task:
    """End a task that may be DELEGATED, by its clock: what it was handed over as is called off with it."""
    if task.state is TaskState.DELEGATED:
        _call_off_delegations(unit, task, "the delegator's deadline has passed")
    return finish(unit, task, after, event)


def _unblock_dependents(unit: Unit, ended: Task) -> None:
    unit.flush()  # a dependent may have been made in this very unit
    for task in unit.tasks(unit.store.dependents(ended.name)):
        if not task.state.final and task.blockers:
            unit.log(task, transitions.ready(task, unit.now), Event.READY)


def _pass_up(unit: Unit, ended: Task) -> None:
    delegation = unit.delegation(ended.delegation)
    if not delegation.state.open:
        return
    parent = unit.task(delegation.task)
    if ended.state is TaskState.SUCCEEDED:
        _one_succeeded(unit, delegation, parent, ended)
    elif ended.state is TaskState.REJECTED and len(delegation.child_tasks) == 1:
        give_back(unit, delegation, DelegationState.RETURNED, "nobody there could take it")
    else:
        _one_failed(unit, delegation, parent, ended)


def _one_succeeded(unit: Unit, delegation: Delegation, parent: Task, ended: Task) -> None:
    children = unit.tasks(delegation.child_tasks)
    if any(child.state is not TaskState.SUCCEEDED for child in children):
        return
    _close(unit, delegation, DelegationState.COMPLETED, delegation.reason)
    result = ended.result if len(children) == 1 else b""  # the parts' results stay with the parts
    finish(unit, parent, transitions.children_done(parent, result, unit.now), Event.CHILDREN_DONE)


def _one_failed(unit: Unit, delegation: Delegation, parent: Task, ended: Task) -> None:
    why = ended.failure.reason if ended.failure else ended.state.value
    _close(unit, delegation, DelegationState.FAILED, why)
    for child in unit.tasks(delegation.child_tasks):
        if not child.state.final:
            cancel(unit, child, "another part failed")
    failure = Failure("CHILD_FAILED", f"{ended.name} ended {ended.state.value}: {why}")
    finish(unit, parent, transitions.child_failed(parent, failure, unit.now), Event.CHILD_FAILED)


def chain(unit: Unit, name: str, most: int) -> list[Delegation]:
    """Every delegation from the first task above that one to the last ones below it, oldest first."""
    top = unit.task(name)
    while top.delegation:
        top = unit.task(unit.delegation(top.delegation).task)
    found: dict[str, Delegation] = {}
    level = [top.name]
    while level and len(found) < most:
        delegations = unit.store.delegations_of(level)
        found.update((delegation.name, delegation) for delegation in delegations)
        level = [child for delegation in delegations for child in delegation.child_tasks]
    return sorted(found.values(), key=lambda delegation: delegation.name)[:most]
