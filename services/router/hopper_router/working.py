"""Claiming tasks, keeping them, and ending them: what workers ask for, as functions of a `Unit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_router import handover, placing, transitions
from hopper_router.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    NotAMember,
    ProjectNotFound,
    ProjectPaused,
    TaskNotFound,
    TaskNotReady,
)
from hopper_router.model import DelegationState, Failure, InputRequest, Progress, Scope, Task, TaskState
from hopper_router.scopes import may_claim
from hopper_router.store_sql import ReadyQuery
from hopper_router.transitions import Event
from hopper_router.unit import Unit


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Who wants how much, of which queue (`projects/p` or `instances/i`)."""

    queue: str
    worker: str
    most: int
    lease: timedelta

    @property
    def column(self) -> str:
        """What the queue is a queue of: `project` or `instance`."""
        return "project" if self.queue.startswith("projects/") else "instance"


# ---------------------------------------------------------------- claiming


def claim_ready(unit: Unit, wanted: ClaimRequest) -> list[Task]:
    """
    Pick the tasks that are next, and claim them. A queue that stands still is empty.

    Raises:
        ProjectNotFound, InstanceNotFound, NotAMember, InvalidArgument: There is no such queue for this worker.
    """
    _require_queue(unit, wanted)
    room = Room(unit)
    query = ready_query(unit, wanted, room)
    if query is None:
        return []
    claimed: list[Task] = []
    for task in unit.known(unit.store.ready(query, wanted.most)):
        if room.take(task):
            claimed.append(_claim(unit, task, wanted))
    return claimed


def ready_query(unit: Unit, wanted: ClaimRequest, room: Room) -> ReadyQuery | None:
    """What may be claimed of the queue now; None: it stands still, or is full."""
    directory = unit.world.directory
    closed = set(directory.halted) | room.full_instances() | _not_for(unit, wanted.worker)
    paused = directory.paused | room.full_projects()
    if wanted.queue in closed or wanted.queue in paused:
        return None
    return ReadyQuery(wanted.column, wanted.queue, closed, paused)


def _not_for(unit: Unit, worker: str) -> set[str]:
    """Instances whose tasks that worker may not have."""
    return {
        instance.name for instance in unit.world.directory.with_members if not may_claim(worker, instance)
    }


def claim_one(unit: Unit, name: str, wanted: ClaimRequest) -> Task:
    """
    Claim that task, now.

    Raises:
        TaskNotFound: It is not in the queue.
        TaskClaimed: Somebody has it; the error says who.
        TaskNotReady, ProjectPaused, InstanceNotRunning, NotAMember: What keeps it.
    """
    _require_queue(unit, wanted)
    task = unit.task(name)
    if getattr(task, wanted.column) != wanted.queue:
        raise TaskNotFound(f"{name} is not in the queue of {wanted.queue}", task=name)
    if task.state is TaskState.QUEUED:
        _require_open(unit, task, wanted)
    return _claim(unit, task, wanted)


def _require_open(unit: Unit, task: Task, wanted: ClaimRequest) -> None:
    directory = unit.world.directory
    halted_by = directory.halted_by(task.instance)
    if halted_by:
        state = directory.instances[halted_by].state.value if halted_by in directory.instances else "UNKNOWN"
        raise InstanceNotRunning(f"{halted_by} is {state}", instance=halted_by, state=state)
    if task.project in directory.paused:
        raise ProjectPaused(f"{task.project} is paused", project=task.project, state="PAUSED")
    if task.instance in _not_for(unit, wanted.worker):
        raise NotAMember(instance=task.instance, worker=wanted.worker)
    if not Room(unit).take(task):
        raise TaskNotReady("as many tasks run there as may", task=task.name, wait="CAPACITY")


def _require_queue(unit: Unit, wanted: ClaimRequest) -> None:
    directory = unit.world.directory
    if wanted.column == "project":
        if wanted.queue not in directory.projects:
            raise ProjectNotFound(f"there is no project {wanted.queue}", project=wanted.queue)
        return
    instance = directory.instances.get(wanted.queue)
    if instance is None:
        raise InstanceNotFound(f"there is no instance {wanted.queue}", instance=wanted.queue)
    if instance.scope in (Scope.GLOBAL, Scope.FEDERATED):
        why = f"a {instance.scope.value} instance executes nothing: claim from a project, e.g. projects/web"
        raise InvalidArgument(violations=[FieldViolation("queue", why)])
    if not may_claim(wanted.worker, instance):
        raise NotAMember(
            f"{wanted.worker} is not a member of {instance.name}",
            instance=instance.name,
            worker=wanted.worker,
        )


def _claim(unit: Unit, task: Task, wanted: ClaimRequest) -> Task:
    return unit.log(task, transitions.claim(task, wanted.worker, wanted.lease, unit.now), Event.CLAIM)


class Room:
    """How many more tasks the projects and instances that have a limit may run; counted as it is used up."""

    def __init__(self, unit: Unit) -> None:
        directory = unit.world.directory
        projects = {
            name: project.max_running for name, project in directory.projects.items() if project.max_running
        }
        instances = {name: node.max_workers for name, node in directory.instances.items() if node.max_workers}
        self._projects = _left(projects, unit.store.running("project", projects))
        self._instances = _left(instances, unit.store.running("instance", instances))

    def full_projects(self) -> set[str]:
        """Projects that run as many as they may."""
        return {name for name, left in self._projects.items() if left <= 0}

    def full_instances(self) -> set[str]:
        """Instances that run as many as they may."""
        return {name for name, left in self._instances.items() if left <= 0}

    def take(self, task: Task) -> bool:
        """Use up one place for a task, if there is one."""
        if self._projects.get(task.project, 1) <= 0 or self._instances.get(task.instance, 1) <= 0:
            return False
        for left, name in ((self._projects, task.project), (self._instances, task.instance)):
            if name in left:
                left[name] -= 1
        return True


def _left(limits: Mapping[str, int], running: Mapping[str, int]) -> Counter[str]:
    return Counter({name: limit - running.get(name, 0) for name, limit in limits.items()})


# ---------------------------------------------------------------- keeping


def renew(unit: Unit, name: str, token: int, lease: timedelta | None) -> Task:
    """Extend a lease."""
    return unit.keep(transitions.renew(unit.task(name), token, lease, unit.now))


def progress(unit: Unit, name: str, token: int, how_far: Progress, lease: timedelta | None) -> Task:
    """Say how far a worker is."""
    task = unit.task(name)
    return unit.log(task, transitions.progress(task, token, how_far, lease, unit.now), Event.PROGRESS)


def ask(unit: Unit, name: str, token: int, question: InputRequest) -> Task:
    """Ask, and wait."""
    task = unit.task(name)
    return unit.log(task, transitions.ask(task, token, question, unit.now), Event.ASK)


def answer(unit: Unit, name: str, text: str, by: str) -> Task:
    """Answer a question."""
    task = unit.task(name)
    return unit.log(task, transitions.answer(task, text, by, unit.now), Event.ANSWER)


# ---------------------------------------------------------------- ending


def complete(unit: Unit, name: str, token: int, result: bytes, *, again: bool = False) -> Task:
    """
    End a claim with success. Safe to repeat by itself: where the caller says that it may be a repeat (*again*), one
    that this very claim has ended with this very result is the first answer again.
    """
    task = unit.task(name)
    if again and task.state is TaskState.SUCCEEDED and (task.token, task.result) == (token, result):
        return task
    return handover.finish(unit, task, transitions.complete(task, token, result, unit.now), Event.COMPLETE)


def fail(unit: Unit, name: str, token: int, failure: Failure) -> Task:
    """End a claim with a failure."""
    task = unit.task(name)
    after, event = transitions.fail(task, token, failure, unit.now)
    return handover.finish(unit, task, after, event)


def release(unit: Unit, name: str, token: int) -> Task:
    """Give a claim back unfinished."""
    task = unit.task(name)
    return unit.log(task, transitions.release(task, token, unit.now), Event.RELEASE)


# ---------------------------------------------------------------- clocks


def run_clock(unit: Unit, name: str) -> None:
    """Do what a task's clocks that have run out ask for."""
    task = unit.task(name)  # another's end may have ended it too
    timed = transitions.on_time(task, unit.now)
    if timed is not None:
        handover.end_delegated(unit, task, *timed)
        placing.settle(unit)


def run_offer(unit: Unit, name: str) -> None:
    """Take back an offer that nobody answered in time."""
    offer = unit.delegation(name)
    if offer.state is DelegationState.OFFERED:
        handover.expire(unit, offer)
        placing.settle(unit)
