"""Claiming tasks, keeping them, and ending them: what workers ask for, as functions of a `Unit`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

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
from hopper_router.hot import AFFINITY_GRACE
from hopper_router.limits import Room
from hopper_router.model import (
    FEDERATION,
    DelegationState,
    Failure,
    InputRequest,
    InstanceState,
    Progress,
    Scope,
    Task,
    TaskState,
    WaitReason,
)
from hopper_router.scopes import may_claim
from hopper_router.store_sql import ReadyQuery
from hopper_router.transitions import Event
from hopper_router.unit import Unit

RESERVE_AFTER: Final = timedelta(seconds=5)
"""How long smaller tasks may pass one that needs more slots than a worker has free just now."""
_MOST_PAGES: Final = 8
_NEXT_PAGE: Final = 16


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """
    Who wants how much, of which queue (`projects/p` or `instances/i`).

    Attributes:
        most: How many slots there are to fill.
        slots: How many slots the worker has in all, busy ones too; at least *most*.
        for_peers: The federation service asks.
    """

    queue: str
    worker: str
    most: int
    lease: timedelta
    slots: int = 0
    for_peers: bool = False

    @property
    def column(self) -> str:
        """What the queue is a queue of: `project` or `instance`."""
        return "project" if self.queue.startswith("projects/") else "instance"


# ---------------------------------------------------------------- claiming


class Picked(NamedTuple):
    """
    What was claimed.

    Attributes:
        look_again: When there may be more, of what waits for nothing but a time; None: that is not known.
    """

    tasks: list[Task]
    look_again: datetime | None


def claim_ready(unit: Unit, wanted: ClaimRequest) -> Picked:
    """
    Pick the tasks that are next, and claim them. A queue that stands still is empty.

    A task takes as many of the worker's free slots as it says. One that needs more than are free, and no more than the
    worker has in all, is passed by smaller ones for `RESERVE_AFTER`; then nothing behind it is handed out, so that the
    worker's slots get free for it.

    Raises:
        ProjectNotFound, InstanceNotFound, NotAMember, InvalidArgument: There is no such queue for this worker.
    """
    _require_queue(unit, wanted)
    room = Room(unit, (wanted.queue,) if wanted.column == "project" else None)
    claimed: list[Task] = []
    free = wanted.most
    for task in _candidates(unit, wanted, room):
        if task.spec.slots > free:
            if _waited(task, unit.now) >= RESERVE_AFTER:
                break
        elif room.take(task):
            claimed.append(_claim(unit, task, wanted))
            free -= task.spec.slots
            if not free:
                break
    room.flush()
    return Picked(claimed, _look_again(unit, wanted, room, claimed))


def _candidates(unit: Unit, wanted: ClaimRequest, room: Room) -> Iterator[Task]:
    """
    What may be claimed, in the order of claiming: among equal priorities what is the worker's own by affinity first.

    What is full by then is left out of each page, so that a page has at least one task that there is room for.
    """
    query = ready_query(unit, wanted, room)
    if query is None:
        return
    own = deque(unit.known(unit.store.ready(replace(query, own=True), wanted.most)))
    size = wanted.most
    for _ in range(_MOST_PAGES):
        page = unit.known(unit.store.ready(query, size))
        for task in page:
            while own and own[0].spec.priority >= task.spec.priority:
                yield own.popleft()
            yield task
        following = ready_query(unit, wanted, room)
        if len(page) < size or following is None:
            break
        last = page[-1]
        query = replace(following, after=(last.spec.priority, last.rank, last.id))
        size = max(wanted.most, _NEXT_PAGE)
    yield from own


def ready_query(unit: Unit, wanted: ClaimRequest, room: Room) -> ReadyQuery | None:
    """What may be claimed of the queue now; None: it stands still, or is full."""
    directory = unit.world.directory
    closed = (set(directory.halted) - _emptied(unit, wanted)) | room.full_instances() | _not_for(unit, wanted)
    paused = directory.paused | room.full_projects()
    if wanted.queue in closed or wanted.queue in paused:
        return None
    return ReadyQuery(
        wanted.column,
        wanted.queue,
        closed,
        paused if wanted.column == "instance" else (),
        room.full_keys(),
        most_slots=max(wanted.slots, wanted.most),
        worker=wanted.worker,
        left_alone_since=unit.now - AFFINITY_GRACE,
    )


def _waited(task: Task, now: datetime) -> timedelta:
    """How long a task has been ready, and no longer than since it was last changed."""
    return now - max(task.ready_time, task.update_time)


def _look_again(unit: Unit, wanted: ClaimRequest, room: Room, claimed: list[Task]) -> datetime | None:
    if claimed:
        # A token that comes back wakes one worker, and that one's claim brings the next wake-up.
        return (room.next_start or unit.now) if room.has_rates else None
    changed = unit.store.left_alone_until(wanted.column, wanted.queue, unit.now - AFFINITY_GRACE)
    times = (room.next_start, changed + AFFINITY_GRACE if changed else None)
    return min((time for time in times if time is not None), default=None)


def _not_for(unit: Unit, wanted: ClaimRequest) -> set[str]:
    """Instances whose tasks that worker may not have."""
    directory = unit.world.directory
    others = {instance.name for instance in directory.with_members if not may_claim(wanted.worker, instance)}
    return others if wanted.for_peers else others | directory.federated


def _emptied(unit: Unit, wanted: ClaimRequest) -> set[str]:
    """A peer's place that is being stopped: of what waits there, the federation service alone knows what has left."""
    place = unit.world.directory.instances.get(wanted.queue)
    stopping = place is not None and place.scope is Scope.FEDERATED and place.state is InstanceState.STOPPING
    return {wanted.queue} if stopping and wanted.for_peers else set()


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
    if halted_by and halted_by not in _emptied(unit, wanted):
        state = directory.instances[halted_by].state.value if halted_by in directory.instances else "UNKNOWN"
        raise InstanceNotRunning(f"{halted_by} is {state}", instance=halted_by, state=state)
    if task.project in directory.paused:
        raise ProjectPaused(f"{task.project} is paused", project=task.project, state="PAUSED")
    if task.instance in _not_for(unit, wanted):
        raise NotAMember(instance=task.instance, worker=wanted.worker)
    room = Room(unit, (task.project,))
    match room.refusal(task):
        case WaitReason.CAPACITY:
            raise TaskNotReady("as many tasks run there as may", task=task.name, wait="CAPACITY")
        case WaitReason.RATE_LIMIT:
            raise TaskNotReady("as many tasks have started there as may", task=task.name, wait="RATE_LIMIT")
    if transitions.claimable(task, unit.now):
        room.take(task)
        room.flush()


def _require_queue(unit: Unit, wanted: ClaimRequest) -> None:
    directory = unit.world.directory
    if wanted.worker == FEDERATION and wanted.queue not in directory.federated:
        why = "is the federation service, which claims from FEDERATED instances alone"
        raise InvalidArgument(violations=[FieldViolation("worker", why)])
    if wanted.column == "project":
        if wanted.queue not in directory.projects:
            raise ProjectNotFound(f"there is no project {wanted.queue}", project=wanted.queue)
        return
    instance = directory.instances.get(wanted.queue)
    if instance is None:
        raise InstanceNotFound(f"there is no instance {wanted.queue}", instance=wanted.queue)
    if instance.scope is Scope.GLOBAL:
        why = "a GLOBAL instance executes nothing: claim from a project, e.g. projects/web"
        raise InvalidArgument(violations=[FieldViolation("queue", why)])
    if instance.scope is Scope.FEDERATED and not wanted.for_peers:
        raise NotAMember(
            f"{instance.name} stands for a peer: the federation service alone claims from it",
            instance=instance.name,
            worker=wanted.worker,
        )
    if not may_claim(wanted.worker, instance):
        raise NotAMember(
            f"{wanted.worker} is not a member of {instance.name}",
            instance=instance.name,
            worker=wanted.worker,
        )


def _claim(unit: Unit, task: Task, wanted: ClaimRequest) -> Task:
    unit.world.turns.served(task.lane, task.rank)
    return unit.log(task, transitions.claim(task, wanted.worker, wanted.lease, unit.now), Event.CLAIM)


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
    """Answer a question: its worker's, or where it goes."""
    task = unit.task(name)
    if transitions.asks_where(task):
        return placing.answer_where(unit, task, text, by)
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
    after, event = transitions.give_back(task, token, unit.now)
    return handover.finish(unit, task, after, event)


def undeliver(unit: Unit, name: str, token: int) -> Task:
    """Take back a claim that has not reached its worker: nothing was begun."""
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
    elif transitions.unanswered(task, unit.now):
        placing.go_on_unanswered(unit, task)


def run_offer(unit: Unit, name: str) -> None:
    """Take back an offer that nobody answered in time."""
    offer = unit.delegation(name)
    if offer.state is DelegationState.OFFERED:
        handover.expire(unit, offer)
        placing.settle(unit)
