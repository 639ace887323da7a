"""
Handing tasks over between instances, and passing their ends back up.

A hand-over makes a new task in the other instance and a `Delegation` between the two; the delegator's task is DELEGATED
until the new one ends. Ends travel back the way the work came, one level at a time, in the transaction of the end
itself: a task that ends (`finish`) unblocks what depended on it and closes the delegation that brought it, which ends
the delegator's task, and so on up to the top.

What a hand-over brings, or a return brings back, is decided about afterwards: it is left in `unit.unplaced`, for
`placing.settle`. What callers ask for by name is in `delegating`.

Work cannot come back to an instance it has been in: each delegation carries the path of all of them, and an instance
that sent the work back is not asked again; a peer is, by who names it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from hopper_router import intake, transitions
from hopper_router.errors import (
    DelegationLoop,
)
from hopper_router.model import (
    MAX_PATH,
    Delegation,
    DelegationKind,
    DelegationState,
    Failure,
    Instance,
    Scope,
    Task,
    TaskState,
)
from hopper_router.transitions import Event
from hopper_router.unit import Unit

BUSY: Final = frozenset({TaskState.RUNNING, TaskState.INPUT_REQUIRED, TaskState.DELEGATED})


# ---------------------------------------------------------------- over


def hand_over(unit: Unit, task: Task, target: str, kind: DelegationKind, reason: str) -> Delegation:
    """
    Make the task another instance's.

    Raises:
        DelegationLoop: The instance had the work before, or it is nested too deep.
        InstanceNotFound, InstanceNotRunning, FederationUnavailable.
    """
    where = intake.require_accepting(unit, target)
    path, depth = path_to(unit, task, where)
    delegation = new_delegation(unit, task, where, kind, reason, path, depth)
    child = intake.new_task(unit, where, task.spec, delegation=delegation.name, offered=where.manual_accept)
    child = replace(child, hold=task.hold)  # what somebody holds back is held back wherever it goes
    delegation = replace(delegation, child_tasks=(child.name,))
    unit.store.insert_delegation(delegation)
    project = unit.world.directory.project_of(where.name)
    delegated = replace(transitions.delegate(task, unit.now), project=project)
    unit.log(task, delegated, Event.DELEGATE)
    take_in(unit, child)
    return delegation


def take_in(unit: Unit, child: Task) -> None:
    """Log a new task that a delegation brings, to be decided about unless it is only offered."""
    if child.offered:
        unit.log(None, child, Event.OFFER)
    else:
        unit.log(None, child, Event.SUBMIT)
        unit.unplaced.append(child.name)


def path_to(unit: Unit, task: Task, where: Instance) -> tuple[tuple[str, ...], int]:
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
    if where.name in _had(unit, task, where, path):
        raise DelegationLoop(
            f"{where.name} had this work before", path=",".join(path), instance=where.name
        )  # fmt: skip
    return (*path, where.name), depth


def _had(unit: Unit, task: Task, where: Instance, path: Collection[str]) -> Collection[str]:
    """
    The instances that cannot have the work again.

    A peer sends work back for what may pass: it was away, or had enough. No decision goes there again by itself, but
    who names it means it.
    """
    return path if where.scope is Scope.FEDERATED else intake.visited(unit, task)


def new_delegation(
    unit: Unit,
    task: Task,
    where: Instance,
    kind: DelegationKind,
    reason: str,
    path: tuple[str, ...],
    depth: int,
) -> Delegation:
    """A delegation that nothing has been done about yet."""
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


# ---------------------------------------------------------------- back


def give_back(unit: Unit, delegation: Delegation, state: DelegationState, reason: str) -> Delegation:
    """Close a delegation unfinished: its tasks are called off, the delegator decides anew, without that instance."""
    closed = close(unit, delegation, state, reason)
    for child in unit.tasks(delegation.child_tasks):
        if not child.state.final:
            cancel(unit, child, reason or "sent back")
    task = unit.task(delegation.task)
    back = transitions.returned(task, unit.now)
    if len(delegation.child_tasks) == 1:
        back = replace(back, hold=unit.task(delegation.child_tasks[0]).hold)
    unit.log(task, back, Event.RETURN)
    unit.unplaced.append(task.name)
    return closed


def give_back_if_idle(unit: Unit, delegation: Delegation, reason: str) -> bool:
    """Give a delegation's tasks back, unless it is closed or somebody works on one of them; returns whether it was."""
    children = unit.tasks(delegation.child_tasks)
    busy = any(child.state in BUSY or not transitions.repeatable(child) for child in children)
    if busy or not delegation.state.open:
        return False
    give_back(unit, delegation, DelegationState.RETURNED, reason)
    return True


def expire(unit: Unit, offer: Delegation) -> Delegation:
    """Take back an offer that nobody answered in time."""
    return give_back(unit, offer, DelegationState.EXPIRED, "nobody answered the offer in time")


def close(unit: Unit, delegation: Delegation, state: DelegationState, reason: str) -> Delegation:
    """Move a delegation on."""
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
        close(unit, delegation, DelegationState.CANCELLED, reason)
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
            freed = transitions.ready(task, unit.now)
            if not freed.blockers and ended.claim is not None:
                # What is warm there, files or a conversation, the next step may use.
                freed = replace(freed, affinity=ended.claim.worker)
            unit.log(task, freed, Event.READY)


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
    close(unit, delegation, DelegationState.COMPLETED, delegation.reason)
    result = ended.result if len(children) == 1 else b""  # the parts' results stay with the parts
    finish(unit, parent, transitions.children_done(parent, result, unit.now), Event.CHILDREN_DONE)


def _one_failed(unit: Unit, delegation: Delegation, parent: Task, ended: Task) -> None:
    why = ended.failure.reason if ended.failure else ended.state.value
    close(unit, delegation, DelegationState.FAILED, why)
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
