"""
Taking tasks in and deciding where they go: filter, score, decide, record.

Every function here works on a `Unit`. The decision itself is pure and lives in `routing`; what an instance does with a
task that arrives is its scope's decision and lives in `scopes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from hopper_common.errors import EtagMismatch
from hopper_router import handover, routing, transitions
from hopper_router.errors import (
    DependencyCycle,
    FederationUnavailable,
    InstanceNotRunning,
    ProjectNotFound,
    TaskNotFound,
)
from hopper_router.model import (
    MAX_PATH,
    Basis,
    Decision,
    DelegationKind,
    DelegationState,
    Failure,
    Hold,
    Instance,
    InstanceState,
    Outcome,
    Scope,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
)
from hopper_router.scopes import SCOPES, Choose, HandOver, Keep, Surroundings, planned
from hopper_router.transitions import Event
from hopper_router.unit import Unit

ACCEPTING: Final = frozenset({InstanceState.STARTING, InstanceState.RUNNING, InstanceState.PAUSED})


# ---------------------------------------------------------------- taking in


def submit(unit: Unit, instance: str, spec: TaskSpec) -> tuple[Task, Decision]:
    """
    Take a task in and decide where it goes.

    Returns:
        The task where it was taken in (it may be DELEGATED already), and the decision made there.

    Raises:
        InstanceNotFound, InstanceNotRunning, FederationUnavailable, ProjectNotFound, TaskNotFound: See SubmitTask.
    """
    where = require_accepting(unit, instance)
    require_project(unit, spec.project)
    task = new_task(unit, where, spec)
    _, decision = place(unit, unit.log(None, task, Event.SUBMIT))
    placed = unit.task(
        task.name
    )  # what it was handed to may have sent it back, and it was decided about once more
    return placed, decision if placed.decision == decision.name else unit.store.decisions([placed.decision])[
        placed.decision
    ]


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
    if instance.scope is Scope.FEDERATED:
        raise FederationUnavailable(instance=name)
    if instance.state not in ACCEPTING:
        state = instance.state.value
        raise InstanceNotRunning(
            f"{name} is {state} and takes no tasks: start it", instance=name, state=state
        )
    return instance


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


# ---------------------------------------------------------------- deciding


def place(unit: Unit, task: Task) -> tuple[Task, Decision]:
    """Decide about a SUBMITTED or QUEUED task, record it, and do what was decided."""
    started = unit.clock.monotonic()
    instance = unit.instance(task.instance)
    placement = SCOPES[instance.scope].place(task.spec, instance, surroundings(unit, task, instance))
    match placement:
        case Choose():
            decision = unit.record(choose(unit, task), task, started)
            return carry_out(unit, task, decision), decision
        case Keep(project, reason):
            decision = unit.record(_kept(unit, project, reason), task, started)
            return carry_out(unit, task, decision), decision
        case HandOver(target, reason):
            decision = unit.record(_kept(unit, instance.project, reason), task, started)
            decided = unit.log(task, transitions.decide(task, decision.name, unit.now), Event.DECIDE)
            return handover.hand_over(unit, decided, target, DelegationKind.ROUTE, reason)[0], decision


def suggest(unit: Unit, where: Instance, spec: TaskSpec) -> Decision:
    """What would be decided about a task that came in now; nothing is recorded."""
    started = unit.clock.monotonic()
    task = new_task(unit, where, spec)
    placement = SCOPES[where.scope].place(task.spec, where, surroundings(unit, task, where))
    match placement:
        case Choose():
            decision = choose(unit, task)
        case Keep(project, reason):
            decision = _kept(unit, project, reason)
        case HandOver(target, reason):
            decision = _kept(unit, where.project, f"{reason}; handed to {target}")
    elapsed = timedelta(seconds=unit.clock.monotonic() - started)
    return replace(decision, instance=where.name, elapsed=elapsed, create_time=unit.now)


def surroundings(unit: Unit, task: Task, instance: Instance) -> Surroundings:
    """What the scope may look at."""
    directory = unit.world.directory
    return Surroundings(
        project=directory.project_of(instance.name),
        children=[]
        if nested_out(unit, task)
        else [directory.instances[child] for child in directory.children(instance.name)],
        visited=visited(unit, task),
        load=lambda name: unit.load.by_instance.get(name, 0),
    )


def nested_out(unit: Unit, task: Task) -> bool:
    """Whether a task is nested as deep as may be, so that it goes nowhere from here."""
    return bool(task.delegation) and unit.delegation(task.delegation).depth >= MAX_PATH


def visited(unit: Unit, task: Task) -> frozenset[str]:
    """The instances that had the work before, or sent it back: it must not go there again."""
    had = set(unit.delegation(task.delegation).path) if task.delegation else {task.instance}
    if task.decision:  # A task nobody has decided about yet cannot have been handed over.
        had.update(
            past.to_instance
            for past in unit.store.delegations_of([task.name])
            if past.state in (DelegationState.RETURNED, DelegationState.EXPIRED)
        )
    return frozenset(had)


def choose(unit: Unit, task: Task) -> Decision:
    """Decide among the registered projects, by the policy in force."""
    world = unit.world
    in_force = world.policies.in_force(task.instance, world.directory)
    return routing.decide(
        task.spec,
        world.directory.candidates,
        in_force.policy,
        load=unit.load.by_project,
        refused=refused(unit, task),
        basis=basis(unit, in_force.name, in_force.version),
    )


def basis(unit: Unit, policy: str, version: int) -> Basis:
    """The versions of everything a decision looks at."""
    directory = unit.world.directory
    return Basis(directory.projects_version, directory.instances_version, policy, version)


def refused(unit: Unit, task: Task) -> dict[str, str]:
    """Projects whose instance cannot have this task, and the filter that says so."""
    directory = unit.world.directory
    if not directory.instance_of_project:
        return {}
    had = visited(unit, task)
    path = set(unit.delegation(task.delegation).path) if task.delegation else {task.instance}
    if nested_out(unit, task):
        path = set(directory.instances)
    filters: dict[str, str] = {}
    for project, name in directory.instance_of_project.items():
        instance = directory.instances[name]
        if instance.scope is Scope.FEDERATED:
            filters[project] = "federation"
        elif name in path:
            filters[project] = "path"
        elif name in had:
            filters[project] = "rejected-before"
        elif name in directory.halted:
            filters[project] = "instance-not-running"
    return filters


def _kept(unit: Unit, project: str, reason: str) -> Decision:
    return Decision(
        outcome=Outcome.QUEUED,
        project=project,
        confidence=1.0,
        strategy="scope",
        reasoning=reason,
        basis=basis(unit, "", 0),
    )


def carry_out(unit: Unit, task: Task, decision: Decision) -> Task:
    """Do what a recorded decision says."""
    wait = _left_waiting(decision)
    decided = unit.log(task, transitions.decide(task, decision.name, unit.now, wait=wait), Event.DECIDE)
    if decision.outcome is Outcome.REJECTED:
        failure = Failure("POLICY", decision.reasoning, permanent=True)
        return handover.finish(unit, decided, transitions.reject(decided, failure, unit.now), Event.REJECT)
    if wait is not None:
        return decided
    target = unit.world.directory.instance_of_project.get(decision.project)
    if target and target != task.instance and decision.outcome is Outcome.ROUTED:
        return handover.hand_over(unit, decided, target, DelegationKind.ROUTE, decision.reasoning)[0]
    return unit.log(decided, transitions.queue(decided, decision.project, unit.now), Event.QUEUE)


def _left_waiting(decision: Decision) -> Wait | None:
    if decision.outcome is Outcome.NO_CANDIDATE:
        counts = {exclusion.filter: exclusion.count for exclusion in decision.exclusions}
        return Wait(WaitReason.NO_ELIGIBLE_EXECUTOR, message=decision.reasoning, exclusions=counts)
    if decision.outcome is Outcome.UNSURE:
        return Wait(WaitReason.UNSURE, message=decision.reasoning)
    return None


def place_again(unit: Unit, tasks: Iterable[Task]) -> int:
    """
    Look once more at tasks that wait for somebody who may take them, or whose project is gone; returns how many moved.

    A decision that leaves a task where it was is not recorded: the registry changes more often than the answer.
    """
    moved = 0
    for task in unit.known(tasks):
        if task.state is TaskState.SUBMITTED and task.wait is not None:
            still = _still_waiting(unit, task)
            if still is not None:
                if still != task.wait:
                    unit.keep(replace(task, wait=still))
                continue
        place(unit, task)
        moved += 1
    return moved


def place_orphan(unit: Unit, task: Task) -> bool:
    """
    Decide anew about a queued task whose project is gone; returns whether it moved.

    In an instance that stands for that project there is nothing to decide: what was handed to it goes back to whoever
    did that, and the rest waits for the project, or for a worker of the instance.
    """
    placement = _placement(unit, task)
    if not isinstance(placement, Keep) or placement.project != task.project:
        place(unit, task)
        return True
    if not task.delegation:
        return False
    return handover.give_back_if_idle(unit, unit.delegation(task.delegation), f"{task.project} is gone")


def _still_waiting(unit: Unit, task: Task) -> Wait | None:
    """What a task would wait for if it were decided about now; None: it would move."""
    if not isinstance(_placement(unit, task), Choose):
        return None
    return _left_waiting(choose(unit, task))


def _placement(unit: Unit, task: Task) -> Choose | Keep | HandOver:
    instance = unit.instance(task.instance)
    return SCOPES[instance.scope].place(task.spec, instance, surroundings(unit, task, instance))


# ---------------------------------------------------------------- changing what is asked for


def change_spec(unit: Unit, name: str, spec: TaskSpec, *, etag: str) -> Task:
    """
    Change what is asked for, and decide anew.

    Raises:
        EtagMismatch, DependencyCycle, TaskNotFound, ProjectNotFound, TaskWrongState.
    """
    task = unit.task(name)
    if etag and etag != task.etag:
        raise EtagMismatch(resource=name, etag=task.etag)
    if spec.project != task.spec.project:  # one that has gone since must not keep the rest from being changed
        require_project(unit, spec.project)
    spec = planned(spec, unit.instance(task.instance))
    blockers = open_dependencies(unit, spec.dependencies)
    require_acyclic(unit, name, spec.dependencies)
    changed = replace(transitions.update(task, spec, unit.now), blockers=blockers)
    changed = unit.log(task, changed, Event.UPDATE)
    unit.flush()
    unit.store.reindex(changed)
    if not changed.offered:
        place(unit, changed)
    return unit.task(name)  # what it was handed to may have sent it back by now


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


def block(unit: Unit, name: str, hold: Hold) -> Task:
    """Hold a task back."""
    task = unit.task(name)
    return unit.log(task, transitions.block(task, hold, unit.now), Event.BLOCK)


def unblock(unit: Unit, name: str) -> Task:
    """Let a task go on; a repeat changes nothing."""
    task = unit.task(name)
    moved = transitions.unblock(task, unit.now)
    return unit.log(task, moved, Event.UNBLOCK) if task.hold is not None else task


def cancel(unit: Unit, name: str, reason: str) -> Task:
    """Call a task off, and whatever it was handed over as; a repeat changes nothing."""
    task = unit.task(name)
    if task.state is TaskState.CANCELLED:
        return task
    return handover.cancel(unit, task, reason)
