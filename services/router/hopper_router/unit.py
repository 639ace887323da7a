"""
One unit of work: tasks read, moved, logged and written back, in one transaction.

Everything that changes tasks is written as functions of a `Unit` (placing, handover, delegating, working). A unit reads
each task once, keeps it at hand, logs each move as it happens, and writes each changed task back once, at the end. It
remembers what it changed, so that the engine can wake workers after the commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from hopper.router.v1 import decision_pb2
from hopper_common.clock import Clock
from hopper_common.errors import DelegationNotFound, HopperError
from hopper_common.ids import Ids
from hopper_router.convert import decision_to_proto, event_to_bytes
from hopper_router.directory import Directory
from hopper_router.errors import InstanceNotFound, RegistryUnknown, TaskNotFound
from hopper_router.fairness import Turns
from hopper_router.model import Decision, Delegation, Instance, Task, TaskState, Wait
from hopper_router.policies import Policies
from hopper_router.scoring import STRATEGIES, Strategy
from hopper_router.store_sql import EVENTS, OpenCounts, Store
from hopper_router.transitions import Event
from hopper_router.waiting import Facts, why_waiting

R = TypeVar("R")

_FAILED_ATTEMPT = frozenset({Event.RETRY, Event.FAIL, Event.EXPIRE, Event.TIME_OUT})
_PART_OF_SUBMIT = frozenset({Event.DECIDE, Event.QUEUE})

WORKABLE = frozenset({TaskState.QUEUED, TaskState.RUNNING, TaskState.INPUT_REQUIRED})
"""States in which a task counts as its project's load."""


@dataclass(frozen=True, slots=True)
class World:
    """
    What deciding looks at besides the tasks: the copy of the registry, the policies, who is how busy; new ids.

    Attributes:
        strategies: The ways to judge, by the name policies call them, for the decisions of an instance.
    """

    directory: Directory
    policies: Policies
    load: OpenCounts
    ids: Ids
    turns: Turns
    strategies: Callable[[str], Mapping[str, Strategy]] = lambda _instance: STRATEGIES


@dataclass(slots=True)
class Change:
    """One move of one task: as it was, if it was, and as it is."""

    before: Task | None
    after: Task
    event: Event


@dataclass(slots=True)
class Unit:
    """
    One transaction's worth of work on tasks; `now` is the same for all of it.

    Attributes:
        changes: Every move, in order.
        quiet: What waits for something else than before, without a move.
        unplaced: Names of tasks that are still to be decided about; `placing.settle` does.
        recorded: The decisions that were made, by name, as they are stored.
    """

    store: Store
    world: World
    clock: Clock
    now: datetime
    changes: list[Change] = field(default_factory=list)
    quiet: list[Change] = field(default_factory=list)
    unplaced: deque[str] = field(default_factory=deque)
    recorded: dict[str, decision_pb2.Decision] = field(default_factory=dict)
    _tasks: dict[str, Task] = field(default_factory=dict)
    _new: set[str] = field(default_factory=set)
    _dirty: set[str] = field(default_factory=set)
    _load: OpenCounts | None = None
    _counted: int = 0

    # ------------------------------------------------------------ reading

    def task(self, name: str) -> Task:
        """
        A task as it is now in this unit.

        Raises:
            TaskNotFound: There is none of that name.
        """
        found = self.tasks([name])
        if not found:
            raise TaskNotFound(f"there is no task {name}", task=name)
        return found[0]

    def tasks(self, names: Iterable[str]) -> list[Task]:
        """Those of the tasks that exist, in that order."""
        wanted = list(names)
        missing = [name for name in wanted if name not in self._tasks]
        self._tasks.update(self.store.tasks(missing))
        return [self._tasks[name] for name in wanted if name in self._tasks]

    def known(self, tasks: Iterable[Task]) -> list[Task]:
        """The same tasks, as this unit has them if it has read or changed them before."""
        return [self._tasks.setdefault(task.name, task) for task in tasks]

    @property
    def load(self) -> OpenCounts:
        """Who is how busy, with what this unit has changed so far: a batch must not fill the same place twice."""
        since = self.changes[self._counted :]
        if any(_counts(change) for change in since):
            if self._load is None:
                self._load = self.world.load.copy()
            count_load(self._load, since)
        self._counted = len(self.changes)
        return self._load or self.world.load

    def delegation(self, name: str) -> Delegation:
        """
        A delegation.

        Raises:
            DelegationNotFound: There is none of that name.
        """
        found = self.store.delegations([name])
        if name not in found:
            raise DelegationNotFound(f"there is no delegation {name}", delegation=name)
        return found[name]

    def instance(self, name: str) -> Instance:
        """
        An instance of the registry's last copy.

        Raises:
            InstanceNotFound: It has none of that name.
            RegistryUnknown: There is no copy yet.
        """
        found = self.world.directory.instances.get(name)
        if found is None:
            if not self.world.directory.complete:
                raise RegistryUnknown(service="registry")
            raise InstanceNotFound(f"there is no instance {name}", instance=name)
        return found

    def rank(self, task: Task) -> int:
        """The place of a task that joins its queue now, among its equals."""
        spec = task.spec
        return self.world.turns.take(task.lane, spec.turn_of, spec.fairness_weight, spec.slots)

    # ------------------------------------------------------------ changing

    def new_name(self, collection: str) -> str:
        """A fresh resource name in that collection."""
        return f"{collection}/{self.world.ids.new(self.clock.now())}"

    def log(self, before: Task | None, after: Task, event: Event) -> Task:
        """Log a move and keep its result; returns the task with its generation."""
        failed = before is not None and after.failure is not before.failure
        if event in _FAILED_ATTEMPT and failed and before and before.claim and after.failure:
            self.store.add_attempt(before, after.failure, self.now)
        if event in _PART_OF_SUBMIT and before is not None and self._is_submit(before):
            return self._amend(after)
        body = event_to_bytes(
            event.value,
            before.state if before else None,
            after,
            self._wait(after),
            from_project=before.project if before else "",
        )
        generation = EVENTS.append(
            self.store.conn, topic=event.value, key=after.name, body=body, now=self.now
        )  # fmt: skip
        logged = replace(after, generation=generation)
        self.changes.append(Change(before, logged, event))
        self._keep(logged, new=before is None)
        return logged

    def _is_submit(self, task: Task) -> bool:
        """Whether the last that happened to a task is that this unit took it in."""
        last = self.changes[-1] if self.changes else None
        return last is not None and last.event is Event.SUBMIT and last.after is task

    def _amend(self, after: Task) -> Task:
        """What is decided as a task is taken in is part of that: one event, of the task as it was placed."""
        logged = replace(after, generation=self.changes[-1].after.generation)
        body = event_to_bytes(Event.SUBMIT.value, None, logged, self._wait(logged))
        EVENTS.amend(self.store.conn, logged.generation, body)
        self.changes[-1] = Change(None, logged, Event.SUBMIT)
        self._counted = min(self._counted, len(self.changes) - 1)
        self._keep(logged, new=True)
        return logged

    def keep(self, task: Task) -> Task:
        """Keep a change that is not worth an event: a renewed lease, or another reason to wait."""
        before = self._tasks.get(task.name)
        if before is not None and before.wait != task.wait:
            self.quiet.append(Change(before, task, Event.DECIDE))
        self._keep(task, new=False)
        return task

    def _keep(self, task: Task, *, new: bool) -> None:
        self._tasks[task.name] = task
        if new:
            self._new.add(task.name)
        elif task.name not in self._new:
            self._dirty.add(task.name)

    def flush(self) -> None:
        """Write back what has changed; needed before a query that must see it, and done at the end."""
        if self._new:
            self.store.insert_tasks([self._tasks[name] for name in sorted(self._new)], self.now)
        for name in sorted(self._dirty):
            self.store.update_task(self._tasks[name], self.now)
        self._new.clear()
        self._dirty.clear()

    def forget_since(self, mark: int) -> None:
        """Take back what was changed after the first *mark* changes; the caller has rolled the rows back."""
        del self.changes[mark:]
        self.unplaced.clear()
        self._load, self._counted = None, 0
        self._tasks.clear()
        self._new.clear()
        self._dirty.clear()

    def record(self, decision: Decision, task: Task, started: float) -> Decision:
        """Name a decision, and store it."""
        named = replace(
            decision,
            name=self.new_name("decisions"),
            task=task.name,
            instance=task.instance,
            elapsed=timedelta(seconds=self.clock.monotonic() - started),
            create_time=self.now,
        )
        message = decision_to_proto(named)
        self.recorded[named.name] = message
        self.store.insert_decision(named, message.SerializeToString())
        return named

    def _wait(self, task: Task) -> Wait | None:
        # What the log says of waiting is what can be said without asking the database: no names of what else
        # blocks it, no counts of what else runs.
        return wait_as_logged(self, task)


def wait_as_logged(unit: Unit, task: Task, now: datetime | None = None) -> Wait | None:
    """What the log says, or said then, of a task's waiting: what can be said without asking the database."""
    return why_waiting(task, _facts(unit, task, now or unit.now))


def _facts(unit: Unit, task: Task, now: datetime) -> Facts:
    directory = unit.world.directory
    return Facts(
        now=now,
        blockers=task.spec.dependencies,
        dead=(),
        delegations=(),
        halted_by=directory.halted_by(task.instance),
        paused=directory.paused,
    )


def own_savepoint(unit: Unit, work: Callable[[], R]) -> R:
    """Run part of a unit so that a refusal of it leaves no trace in the rest."""
    unit.flush()
    mark = len(unit.changes)
    try:
        with unit.store.conn.begin_nested():
            result = work()
            unit.flush()
            return result
    except HopperError:
        unit.forget_since(mark)
        raise


def _counts(change: Change) -> bool:
    """Whether a change may have made somebody more or less busy."""
    return any(task is not None and task.state in WORKABLE for task in (change.before, change.after))


def count_load(load: OpenCounts, changes: Collection[Change], times: int = 1) -> None:
    """Bring the counts of open work up to date with what a unit changed; -1 *times*: take that back."""
    for change in changes:
        for task, step in ((change.before, -times), (change.after, times)):
            if task is not None and task.state in WORKABLE:
                load.add(task.project, task.instance, step)
