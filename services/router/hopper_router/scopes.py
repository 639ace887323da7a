"""
What each scope of instance does with a task that arrives: one small class each, with one decision to make.

A scope answers with a `Placement`: choose among the projects, keep the task in this instance's queue, or hand it to
another instance. It does neither the choosing nor the handing over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Protocol

from hopper_router.model import DelegationKind, Instance, InstanceState, Scope, TaskSpec


@dataclass(frozen=True, slots=True)
class Choose:
    """Choose among the registered projects."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep it in this instance's queue, for the workers of *project*, or of the instance where that is empty."""

    project: str
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hand it to another instance."""

    instance: str
    reason: str


Placement = Choose | Keep | HandOver


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What a scope may look at besides the task.

    Attributes:
        project: The instance's project, or that of the nearest instance above it that has one.
        children: Its direct children.
        visited: Instances that had the work before, or sent it back.
        load: How many open tasks an instance has.
    """

    project: str
    children: Sequence[Instance]
    visited: frozenset[str]
    load: Callable[[str], int]


class ScopeRule(Protocol):
    """One scope's decision."""

    def place(self, spec: TaskSpec, instance: Instance, around: Surroundings) -> Placement:
        """Say what becomes of a task that arrives."""
        ...


class GlobalScope:
    """Never executes: it picks a project."""

    def place(self, spec: TaskSpec, instance: Instance, around: Surroundings) -> Placement:
        """Choose."""
        return Choose()


class ProjectScope:
    """Keeps simple tasks for the project's workers, hands complex ones to its least busy orchestration."""

    def place(self, spec: TaskSpec, instance: Instance, around: Surroundings) -> Placement:
        """Hand over if the estimated effort says so, and somebody can take it."""
        if not is_complex(spec, instance.complex_effort):
            return Keep(around.project, "simple enough for the project's own queue")
        orchestrations = [
            child.name
            for child in around.children
            if child.scope is Scope.ORCHESTRATION
            and child.state is InstanceState.RUNNING
            and child.name not in around.visited
        ]
        if not orchestrations:
            return Keep(around.project, "complex, but no orchestration runs that could take it")
        chosen = min(orchestrations, key=lambda name: (around.load(name), name))
        return HandOver(chosen, f"complex: estimated at {instance.complex_effort} or more")


def is_complex(spec: TaskSpec, threshold: timedelta) -> bool:
    """Whether a task's estimated effort makes it one for an orchestration."""
    return spec.estimated_effort is not None and spec.estimated_effort >= threshold


class QueueScope:
    """ORCHESTRATION, PERSONAL, FAMILY: a queue; who may claim, and how many at once, is checked when they do."""

    def place(self, spec: TaskSpec, instance: Instance, around: Surroundings) -> Placement:
        """Keep."""
        return Keep(around.project, "the instance has one queue")


class EventScope(QueueScope):
    """Plans backwards from a date: see `planned`."""


class FederatedScope:
    """Stands for a peer: a queue from which the federation service alone claims, to hand the tasks over."""

    def place(self, spec: TaskSpec, instance: Instance, around: Surroundings) -> Placement:
        """Keep."""
        return Keep(around.project, "the federation service hands it to the peer")


SCOPES: Final[Mapping[Scope, ScopeRule]] = MappingProxyType(
    {
        Scope.GLOBAL: GlobalScope(),
        Scope.PROJECT: ProjectScope(),
        Scope.ORCHESTRATION: QueueScope(),
        Scope.PERSONAL: QueueScope(),
        Scope.FAMILY: QueueScope(),
        Scope.EVENT: EventScope(),
        Scope.FEDERATED: FederatedScope(),
    }
)


def planned(spec: TaskSpec, instance: Instance) -> TaskSpec:
    """A task as an instance plans it: in an EVENT, its deadline is counted back from the date."""
    if instance.scope is not Scope.EVENT or instance.event_time is None or spec.before_event is None:
        return spec
    deadline = instance.event_time - spec.before_event
    return replace(spec, clocks=replace(spec.clocks, finish_by=deadline))


def may_claim(worker: str, instance: Instance) -> bool:
    """Whether a worker may claim what is queued in an instance: where it names members, only they."""
    return not instance.members or worker in instance.members


def delegation_allowed(
    kind: DelegationKind, source: Instance, target: Instance, *, parent_of: Callable[[str], str]
) -> bool:
    """Whether that kind of hand-over may go from one instance to the other: by their places in the tree alone."""
    if kind is DelegationKind.ROUTE:
        return parent_of(target.name) == source.name
    if kind is DelegationKind.REASSIGN:
        return target.name != source.name and bool(source.parent) and target.parent == source.parent
    if kind is DelegationKind.ESCALATE:
        return bool(source.parent) and target.name == source.parent
    return target.name == source.name or parent_of(target.name) == source.name
