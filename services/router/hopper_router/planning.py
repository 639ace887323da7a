"""
Where a new task goes, when nothing but memory is needed to say: the plan of the hot path, pure.

The same decision by the same functions as in `placing`, without a unit of work. What needs more than memory, or moves
more than this one task, is left to a unit (None).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from hopper_common.clock import Clock
from hopper_router import routing
from hopper_router.fairness import lane
from hopper_router.intake import ACCEPTING
from hopper_router.model import Basis, Decision, Instance, Outcome, Scope, Task, TaskSpec, TaskState
from hopper_router.placing import left_out
from hopper_router.scopes import SCOPES, Keep, Surroundings, planned
from hopper_router.unit import World


class Plan(NamedTuple):
    """A task as it is taken in and placed, and the decision that placed it."""

    task: Task
    decision: Decision


def plan(world: World, where: Instance | None, spec: TaskSpec, clock: Clock, now: datetime) -> Plan | None:
    """Place a new task in a queue; None: a unit of work must look."""
    if where is None or where.state not in ACCEPTING or spec.dependencies:
        return None
    if spec.project and spec.project not in world.directory.projects:
        return None
    started = clock.monotonic()
    spec = planned(spec, where)
    decision = _decide(world, where, spec, now)
    if decision is None:
        return None
    return _placed(world, where, spec, decision, now, timedelta(seconds=clock.monotonic() - started))


def _decide(world: World, where: Instance, spec: TaskSpec, now: datetime) -> Decision | None:
    if where.scope is Scope.GLOBAL:
        decision = _choose(world, where, spec, now)
        stands_for = world.directory.instance_of_project.get(decision.project, where.name)
        return decision if decision.outcome is Outcome.ROUTED and stands_for == where.name else None
    if where.scope is Scope.FEDERATED and not world.directory.reaches_peer(where):
        return None
    placement = SCOPES[where.scope].place(spec, where, _surroundings(world, where))
    if not isinstance(placement, Keep):
        return None
    directory = world.directory
    return Decision(
        outcome=Outcome.QUEUED,
        project=placement.project,
        confidence=1.0,
        strategy="scope",
        reasoning=placement.reason,
        basis=Basis(directory.projects_version, directory.instances_version, "", 0),
    )


def _choose(world: World, where: Instance, spec: TaskSpec, now: datetime) -> Decision:
    directory = world.directory
    in_force = world.policies.in_force(where.name, directory)
    return routing.decide(
        spec,
        directory.candidates,
        in_force.policy,
        load=world.load.by_project,
        refused=left_out(directory, spec, {where.name}, {where.name}, now),
        basis=_basis(
            directory.projects_version, directory.instances_version, in_force.name, in_force.version
        ),
        strategies=world.strategies(where.name),
        now=now,
    )


_basis = lru_cache(16)(Basis)


def _surroundings(world: World, where: Instance) -> Surroundings:
    directory = world.directory
    return Surroundings(
        project=directory.project_of(where.name),
        children=[directory.instances[child] for child in directory.children(where.name)],
        visited=frozenset({where.name}),
        load=lambda name: world.load.by_instance.get(name, 0),
    )


def _placed(
    world: World, where: Instance, spec: TaskSpec, decision: Decision, now: datetime, elapsed: timedelta
) -> Plan:
    name = f"{where.name}/tasks/{world.ids.new(now)}"
    decision.name = f"decisions/{world.ids.new(now)}"
    decision.task, decision.instance = name, where.name
    decision.elapsed, decision.create_time = elapsed, now
    task = Task(
        name=name,
        instance=where.name,
        spec=spec,
        state=TaskState.QUEUED,
        create_time=now,
        update_time=now,
        ready_time=max(spec.clocks.start_after or now, now),
        project=decision.project,
        decision=decision.name,
        queue_time=now,
        rank=world.turns.take(
            lane(decision.project or where.name, spec.priority),
            spec.turn_of,
            spec.fairness_weight,
            spec.slots,
        ),
    )
    return Plan(task, decision)
