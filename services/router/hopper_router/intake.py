"""
What a task must meet before it is taken in anywhere: an instance that takes tasks, a project that exists, dependencies
that exist and do not lead back to it, and a way that has not led through the same instance before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

from hopper_router.errors import (
    DependencyCycle,
    FederationUnavailable,
    InstanceNotRunning,
    ProjectNotFound,
    TaskNotFound,
)
from hopper_router.model import (
    MAX_PATH,
    DelegationState,
    Instance,
    InstanceState,
    Scope,
    Task,
    TaskSpec,
    TaskState,
)
from hopper_router.scopes import planned
from hopper_router.unit import Unit

ACCEPTING: Final = frozenset({InstanceState.STARTING, InstanceState.RUNNING, InstanceState.PAUSED})

MOST_LOST: Final = 3
"""How often an instance may send the same task back for what passes."""


def new_task(
    unit: Unit, where: Instance, spec: TaskSpec, *, delegation: str = "", offered: bool = False
) -> Task:
    """A task that nobody has decided about yet; nothing is logged or stored."""
    spec = planned(spec, where)
    created = unit.now
    return Task(
        name=unit.new_name(f"{where.name}/tasks"),
        instance=where.name,
        spec=spec,
        state=TaskState.SUBMITTED,
        create_time=created,
        update_time=created,
        ready_time=max(spec.clocks.start_after or created, created),
        delegation=delegation,
        offered=offered,
        blockers=open_dependencies(unit, spec.dependencies),
    )


def open_dependencies(unit: Unit, names: Collection[str]) -> int:
    """
    How many of those tasks have not succeeded.

    Raises:
        TaskNotFound: One of them does not exist.
    """
    if not names:
        return 0
    found = {task.name: task for task in unit.tasks(dict.fromkeys(names))}
    for name in names:
        if name not in found:
            raise TaskNotFound(f"there is no task {name} to depend on", task=name)
    return sum(task.state is not TaskState.SUCCEEDED for task in found.values())


def require_accepting(unit: Unit, name: str) -> Instance:
    """
    The instance, if it takes tasks in.

    Raises:
        InstanceNotFound, InstanceNotRunning, FederationUnavailable.
    """
    instance = unit.instance(name)
    require_kept_peer(unit, instance)
    if instance.state not in ACCEPTING:
        state = instance.state.value
        raise InstanceNotRunning(
            f"{name} is {state} and takes no tasks: start it", instance=name, state=state
        )
    return instance


def require_kept_peer(unit: Unit, instance: Instance) -> None:
    """
    Refuse an instance that stands for a peer that nobody keeps: what is queued there is never handed over.

    Raises:
        FederationUnavailable.
    """
    if instance.scope is Scope.FEDERATED and not unit.world.directory.reaches_peer(instance):
        raise FederationUnavailable(instance=instance.name)


def require_project(unit: Unit, name: str) -> None:
    """
    Refuse a pin to a project that is not registered.

    Raises:
        ProjectNotFound.
    """
    if name and name not in unit.world.directory.projects:
        raise ProjectNotFound(
            f"there is no project {name}: register it, or leave the choice to Hopper", project=name
        )


# ---------------------------------------------------------------- the way it came


def nested_out(unit: Unit, task: Task) -> bool:
    """Whether a task is nested as deep as may be, so that it goes nowhere from here."""
    return bool(task.delegation) and unit.delegation(task.delegation).depth >= MAX_PATH


def visited(unit: Unit, task: Task) -> frozenset[str]:
    """The instances that had the work before, sent it back, or lost it too often: it must not go there again."""
    had = set(unit.delegation(task.delegation).path) if task.delegation else {task.instance}
    if task.decision:  # A task nobody has decided about yet cannot have been handed over.
        past = unit.store.delegations_of([task.name])
        sent_back = (DelegationState.RETURNED, DelegationState.EXPIRED)
        had.update(each.to_instance for each in past if each.state in sent_back)
        lost = Counter(each.to_instance for each in past if each.state is DelegationState.CANCELLED)
        had.update(name for name, times in lost.items() if times >= MOST_LOST)
    return frozenset(had)


# ---------------------------------------------------------------- what it waits for


def require_acyclic(unit: Unit, name: str, dependencies: Collection[str]) -> None:
    """
    Refuse dependencies through which a task would wait for itself, hand-overs included.

    Raises:
        DependencyCycle: With the path that leads back.
    """
    came_from: dict[str, str] = dict.fromkeys(dependencies, name)
    frontier = list(came_from)
    while frontier:
        if name in frontier:
            path = _path_back(came_from, name)
            raise DependencyCycle(
                f"the task would wait for itself: {' > '.join(path)}", task=name, path=",".join(path)
            )
        step = _waited_for(unit, frontier)
        frontier = []
        for waiting, others in step:
            for other in others:
                if other not in came_from or other == name:
                    came_from[other] = waiting
                    frontier.append(other)


def _waited_for(unit: Unit, names: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """What each of those tasks waits for: its dependencies, and the tasks it was handed over as."""
    edges = [(name, blockers.names) for name, blockers in unit.store.blockers(names).items()]
    open_ones = [past for past in unit.store.delegations_of(names) if past.state.open]
    return edges + [(past.task, past.child_tasks) for past in open_ones]


def _path_back(came_from: dict[str, str], name: str) -> list[str]:
    path = [name]
    while True:
        path.append(came_from[path[-1]])
        if path[-1] == name:
            return path[::-1]
