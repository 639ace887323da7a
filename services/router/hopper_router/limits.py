"""
What projects and instances limit: how much of them may run at once, and how much may start in a period.

    of a project     max_running, start_rate, and both for each concurrency key
    of an instance   max_workers

All claims from queues with limits are units of work, and writers take turns, over all replicas: what is counted here is
true until the unit ends. What has reached its limit is left out by the query for what is ready, so that ten thousand
tasks that wait for one key cost a look into an index, and hold up nobody behind them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from hopper_router.model import Project, RateLimit, Task, TaskState, Wait, WaitReason
from hopper_router.rates import Bucket, nanos
from hopper_router.unit import Unit

WHOLE = ""
"""In place of a concurrency key: the project as a whole."""


class Room:
    """
    How many more tasks the limits leave room for; counted as it is used up.

    Args:
        projects: Those whose limits matter here; default: all.
    """

    def __init__(self, unit: Unit, projects: Collection[str] | None = None) -> None:
        directory = unit.world.directory
        known = directory.projects
        chosen = directory.limited_projects if projects is None else projects
        limited = {name: known[name] for name in chosen if name in known and known[name].has_limits}
        self._unit = unit
        self._limited = limited
        running = {name: project.max_running for name, project in limited.items() if project.max_running}
        instances = directory.instance_limits
        self._projects = _left(running, unit.store.running("project", running))
        self._instances = _left(instances, unit.store.running("instance", instances))
        self._keys = {
            name: _left_by_key(project, unit.store.running_by_key(name))
            for name, project in limited.items()
            if project.max_running_per_key
        }
        self._rates = _Rates(unit, limited)

    @property
    def next_start(self) -> datetime | None:
        """When the next may start of what a rate keeps from starting now; None: no rate does."""
        return self._rates.next_start

    @property
    def has_rates(self) -> bool:
        """Whether any rate limits what starts."""
        return self._rates.any

    def full_projects(self) -> set[str]:
        """Projects of which nothing may start now."""
        return self.running_full() | self._rates.empty_projects()

    def running_full(self) -> set[str]:
        """Projects that run as many as they may."""
        return {name for name, left in self._projects.items() if left <= 0}

    def full_instances(self) -> set[str]:
        """Instances that run as many as they may."""
        return {name for name, left in self._instances.items() if left <= 0}

    def full_keys(self) -> dict[str, set[str]]:
        """By project, the concurrency keys of which nothing may start now."""
        full = {name: {key for key, left in keys.items() if left <= 0} for name, keys in self._keys.items()}
        for name, keys in self._rates.empty_keys().items():
            full[name] = full.get(name, set()) | keys
        return {name: keys for name, keys in full.items() if keys}

    def refusal(self, task: Task) -> WaitReason | None:
        """What keeps a task from starting now."""
        key = task.spec.concurrency_key
        room = (
            self._projects.get(task.project, 1),
            self._instances.get(task.instance, 1),
            self._keys[task.project][key] if key and task.project in self._keys else 1,
        )
        if min(room) <= 0:
            return WaitReason.CAPACITY
        return None if self._rates.allow(task) else WaitReason.RATE_LIMIT

    def take(self, task: Task) -> bool:
        """Use up one place for a task, if there is one."""
        if self.refusal(task) is not None:
            return False
        for left, name in ((self._projects, task.project), (self._instances, task.instance)):
            if name in left:
                left[name] -= 1
        key = task.spec.concurrency_key
        if key and task.project in self._keys:
            self._keys[task.project][key] -= 1
        self._rates.take(task)
        return True

    def binding_rate(self, task: Task) -> tuple[str, RateLimit, datetime]:
        """Of the rates that keep a task from starting the one that does so longest: its key, and until when."""
        return self._rates.binding(task)

    def flush(self) -> None:
        """Write down what has started, where a rate limits that."""
        self._rates.flush()


class _KeysLeft(Counter[str]):
    """Room by concurrency key; one that runs nothing has all of it."""

    def __init__(self, most: int, left: Mapping[str, int]) -> None:
        super().__init__(left)
        self._most = most

    def __missing__(self, key: str) -> int:
        return self._most


def _left(limits: Mapping[str, int], running: Mapping[str, int]) -> Counter[str]:
    return Counter({name: limit - running.get(name, 0) for name, limit in limits.items()})


def _left_by_key(project: Project, running: Mapping[str, int]) -> _KeysLeft:
    most = project.max_running_per_key
    return _KeysLeft(most, {key: most - count for key, count in running.items()})


class _Rates:
    """The buckets of projects, and of their keys; read when first asked for."""

    def __init__(self, unit: Unit, projects: Mapping[str, Project]) -> None:
        self._unit = unit
        self._whole = {name: Bucket(p.start_rate) for name, p in projects.items() if p.start_rate}
        self._per_key = {
            name: Bucket(p.start_rate_per_key) for name, p in projects.items() if p.start_rate_per_key
        }
        self._states: dict[tuple[str, str], int] = {}
        self._changed: set[tuple[str, str]] = set()
        self._empty = {
            name: set(unit.store.starts_between(name, *bucket.empty_between(unit.now)))
            for name, bucket in self._per_key.items()
        }

    @property
    def any(self) -> bool:
        return bool(self._whole or self._per_key)

    @property
    def next_start(self) -> datetime | None:
        now = self._unit.now
        times = [self._whole[name].next_time(self._state(name, WHOLE), now) for name in self.empty_projects()]
        for name, keys in self._empty.items():
            states = [self._state(name, key) for key in keys]
            if states:
                times.append(self._per_key[name].next_time(min(states), now))
        return min(times, default=None)

    def empty_projects(self) -> set[str]:
        now = self._unit.now
        return {
            name for name, bucket in self._whole.items() if bucket.left(self._state(name, WHOLE), now) < 1
        }

    def empty_keys(self) -> dict[str, set[str]]:
        return {name: set(keys) for name, keys in self._empty.items() if keys}

    def allow(self, task: Task) -> bool:
        return all(
            bucket.left(self._state(task.project, key), self._unit.now) > 0 for bucket, key in self._of(task)
        )

    def binding(self, task: Task) -> tuple[str, RateLimit, datetime]:
        now = self._unit.now
        rates = [
            (bucket.next_time(self._state(task.project, key), now), key, bucket.limit)
            for bucket, key in self._of(task)
        ]
        until, key, limit = max(rates, key=lambda rate: rate[0])
        return key, limit, until

    def take(self, task: Task) -> None:
        now = self._unit.now
        for bucket, key in self._of(task):
            at = task.project, key
            self._states[at] = bucket.take(self._state(*at), now)
            self._changed.add(at)
            if key and bucket.left(self._states[at], now) < 1:
                self._empty[task.project].add(key)

    def flush(self) -> None:
        for project, key in sorted(self._changed):
            self._unit.store.put_start(project, key, self._states[project, key])
        self._changed.clear()

    def _of(self, task: Task) -> Iterable[tuple[Bucket, str]]:
        if task.project in self._whole:
            yield self._whole[task.project], WHOLE
        key = task.spec.concurrency_key
        if key and task.project in self._per_key:
            yield self._per_key[task.project], key

    def _state(self, project: str, key: str) -> int:
        if (project, key) not in self._states:
            self._states[project, key] = self._unit.store.start(project, key)
        return self._states[project, key]


def forget_starts(unit: Unit) -> None:
    """Drop the buckets that are full again: a full one is one that is not there."""
    unit.store.forget_starts(nanos(unit.now))


# ---------------------------------------------------------------- why it waits


def waits(unit: Unit, tasks: Collection[Task]) -> dict[str, Wait]:
    """Which of those tasks a limit keeps from being claimed, and what that waits for, by name."""
    directory = unit.world.directory
    queued = [task for task in tasks if task.state is TaskState.QUEUED]
    projects = {task.project for task in queued} & directory.limited_projects
    if not projects and not any(task.instance in directory.instance_limits for task in queued):
        return {}
    unit.flush()
    room = Room(unit, projects)
    found = {task.name: _wait(unit, room, task) for task in queued}
    return {name: wait for name, wait in found.items() if wait is not None}


def _wait(unit: Unit, room: Room, task: Task) -> Wait | None:
    match room.refusal(task):
        case WaitReason.CAPACITY:
            return _for_room(room, task)
        case WaitReason.RATE_LIMIT:
            return _for_start(unit, room, task)
    return None


def _for_room(room: Room, task: Task) -> Wait:
    full = next(
        (
            name
            for name, those in ((task.instance, room.full_instances()), (task.project, room.running_full()))
            if name in those
        ),
        "",
    )
    if full:
        return Wait(WaitReason.CAPACITY, (full,), message=f"{full} runs as many tasks as it may")
    key = task.spec.concurrency_key
    message = f"{task.project} runs as many tasks with the key {key} as it may"
    return Wait(WaitReason.CAPACITY, (task.project,), message=message)


def _for_start(unit: Unit, room: Room, task: Task) -> Wait:
    key, limit, until = room.binding_rate(task)
    what = f"tasks with the key {key}" if key else "tasks"
    seconds = limit.period.total_seconds()
    message = f"{task.project} starts no more than {limit.count} {what} in {seconds:g} s"
    return Wait(WaitReason.RATE_LIMIT, (task.project,), until=until, message=message)
