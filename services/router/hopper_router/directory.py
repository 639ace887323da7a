"""
The router's copy of the registry, as a value: who could do a task, and which instances run.

A `Directory` never changes. A change makes the next one, which shares with its predecessor whatever the change
did not touch, and with it everything that was derived from it: a heartbeat moves the version and nothing else,
so the compiled candidates of ten thousand projects outlive it. Whoever decides takes the current directory once
and sees one consistent world until it is done.

Where the directory comes from is registry_watch.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Final

from hopper_router.borders import Frontier, frontiers
from hopper_router.model import Instance, InstanceState, Project, Scope
from hopper_router.routing import Candidates


class _Projects:
    """Projects by name, with what is derived from them alone."""

    def __init__(self, by_name: Mapping[str, Project], previous: Candidates | None = None) -> None:
        self.by_name: Mapping[str, Project] = MappingProxyType(dict(by_name))
        self._previous = previous

    @cached_property
    def candidates(self) -> Candidates:
        return Candidates.compile(self.by_name.values(), previous=self._previous)

    @cached_property
    def paused(self) -> frozenset[str]:
        return frozenset(name for name, project in self.by_name.items() if project.paused)

    @cached_property
    def limits(self) -> Mapping[str, int]:
        return {name: project.max_running for name, project in self.by_name.items() if project.max_running}

    @cached_property
    def limited(self) -> frozenset[str]:
        return frozenset(name for name, project in self.by_name.items() if project.has_limits)

    @cached_property
    def borders(self) -> tuple[Frontier, ...]:
        return frontiers(self.by_name.values())

    def become(self, by_name: Mapping[str, Project]) -> _Projects:
        """These projects instead; itself if they are no others."""
        if by_name == self.by_name:
            return self
        # Whatever was compiled last saves work; nobody may have asked for ours.
        return _Projects(by_name, self.__dict__.get("candidates", self._previous))


class _Tree:
    """Instances by name, with what is derived from them alone."""

    def __init__(self, by_name: Mapping[str, Instance]) -> None:
        self.by_name: Mapping[str, Instance] = MappingProxyType(dict(by_name))

    def become(self, by_name: Mapping[str, Instance]) -> _Tree:
        """These instances instead; itself if they are no others."""
        return self if by_name == self.by_name else _Tree(by_name)

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        children: dict[str, list[str]] = {}
        for name in sorted(self.by_name):
            children.setdefault(self.by_name[name].parent, []).append(name)
        return {parent: tuple(names) for parent, names in children.items()}

    @cached_property
    def halting(self) -> Mapping[str, str]:
        """Every instance that does not run, with the nearest one, itself or above it, that is why."""
        found: dict[str, str] = {}
        for name in self.by_name:
            _find_halting(name, self.by_name, found)
        return {name: by for name, by in found.items() if by}

    @cached_property
    def halted(self) -> frozenset[str]:
        return frozenset(self.halting)

    @cached_property
    def limits(self) -> Mapping[str, int]:
        return {name: instance.max_workers for name, instance in self.by_name.items() if instance.max_workers}

    @cached_property
    def with_members(self) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.by_name.values() if instance.members)

    @cached_property
    def federated(self) -> frozenset[str]:
        return frozenset(name for name, instance in self.by_name.items() if instance.scope is Scope.FEDERATED)

    @cached_property
    def peers(self) -> Mapping[str, str]:
        of_project = self.of_project.items()
        return MappingProxyType({project: name for project, name in of_project if name in self.federated})

    @cached_property
    def of_project(self) -> Mapping[str, str]:
        # By name backwards, so that of two, which the registry does not allow, always the same one counts.
        return MappingProxyType(
            {
                instance.project: name
                for name, instance in sorted(self.by_name.items(), reverse=True)
                if instance.project and instance.state is not InstanceState.TERMINATED
            }
        )


def _find_halting(name: str, instances: Mapping[str, Instance], found: dict[str, str]) -> None:
    path: list[str] = []
    at, by = name, ""
    while at:
        if at in found:
            by = found[at]
            break
        instance = instances.get(at)
        # What is not known, or stands above itself, cannot be said to run.
        if instance is None or instance.state is not InstanceState.RUNNING or at in path:
            by = at
            if instance is not None:
                found[at] = at
            break
        path.append(at)
        at = instance.parent
    found.update(dict.fromkeys(path, by))


@dataclass(frozen=True, slots=True)
class Directory:
    """
    Everything the registry said, up to its versions. Start from `EMPTY_DIRECTORY`.

    Attributes:
        projects_version: The registry's version of the projects: what decisions record, where a watch resumes.
        instances_version: The same of the instances.
        complete: Both were seen whole at least once. Before that, what is missing here may well exist.
    """

    _projects: _Projects
    _tree: _Tree
    projects_version: int = 0
    instances_version: int = 0
    complete: bool = False

    # What is in it.

    @property
    def projects(self) -> Mapping[str, Project]:
        """Projects by name; read-only."""
        return self._projects.by_name

    @property
    def instances(self) -> Mapping[str, Instance]:
        """Instances by name, terminated ones too; read-only."""
        return self._tree.by_name

    # What follows from it. Each is worked out once, when first asked for.

    @property
    def candidates(self) -> Candidates:
        """The projects, compiled for deciding. The same object until a project really changes."""
        return self._projects.candidates

    @property
    def halted(self) -> frozenset[str]:
        """The instances that do not run, because they or one above them are in another state than RUNNING."""
        return self._tree.halted

    def halted_by(self, instance: str) -> str:
        """The nearest instance, itself or above it, that keeps it from running; "" when it runs."""
        return self._tree.halting.get(instance, "") if instance in self.instances else instance

    @property
    def instance_of_project(self) -> Mapping[str, str]:
        """The instance that stands for a project, for each project that has one that is not terminated."""
        return self._tree.of_project

    @property
    def paused(self) -> frozenset[str]:
        """The projects that are paused."""
        return self._projects.paused

    @property
    def project_limits(self) -> Mapping[str, int]:
        """Most tasks running at once, for the projects that have such a limit."""
        return self._projects.limits

    @property
    def limited_projects(self) -> frozenset[str]:
        """The projects that limit what runs or starts, in whatever way."""
        return self._projects.limited

    @property
    def instance_limits(self) -> Mapping[str, int]:
        """Most tasks running at once, for the instances that have such a limit."""
        return self._tree.limits

    @property
    def with_members(self) -> tuple[Instance, ...]:
        """The instances whose tasks only their members may claim."""
        return self._tree.with_members

    @property
    def federated(self) -> frozenset[str]:
        """The instances that stand for peers."""
        return self._tree.federated

    @property
    def peers(self) -> Mapping[str, str]:
        """The instance that stands for a peer, by the peer's project."""
        return self._tree.peers

    @property
    def borders(self) -> tuple[Frontier, ...]:
        """The peers' borders; none where there are no peers."""
        return self._projects.borders

    def reaches_peer(self, instance: Instance) -> bool:
        """Whether the federation service has said what may leave for the peer that an instance stands for."""
        project = self.projects.get(instance.project)
        return project is not None and project.border is not None

    def children(self, instance: str) -> tuple[str, ...]:
        """The instances right under one, by name, terminated ones too."""
        return self._tree.children.get(instance, ()) if instance else ()

    def ancestors(self, instance: str) -> tuple[str, ...]:
        """The instances above one that are known here, nearest first."""
        return tuple(self._upwards(instance))[1:]

    def project_of(self, instance: str) -> str:
        """The project whose workers serve an instance: its own, or its nearest ancestor's; "" when none has."""
        return next(
            (at.project for at in map(self.instances.__getitem__, self._upwards(instance)) if at.project), ""
        )

    def _upwards(self, instance: str) -> Iterator[str]:
        seen: set[str] = set()
        while instance in self.instances and instance not in seen:
            seen.add(instance)
            yield instance
            instance = self.instances[instance].parent

    # What the registry says next.

    def with_projects(self, projects: Iterable[Project], version: int) -> Directory:
        """All projects there are, as of a version."""
        return self._with_projects({project.name: project for project in projects}, version)

    def with_project(self, project: Project, version: int) -> Directory:
        """One project as it is now."""
        if self.projects.get(project.name) == project:
            return replace(self, projects_version=version)
        return self._with_projects({**self.projects, project.name: project}, version)

    def without_project(self, name: str, version: int) -> Directory:
        """One project is gone."""
        rest = {key: project for key, project in self.projects.items() if key != name}
        return self._with_projects(rest, version)

    def _with_projects(self, by_name: Mapping[str, Project], version: int) -> Directory:
        return replace(self, _projects=self._projects.become(by_name), projects_version=version)

    def with_instances(self, instances: Iterable[Instance], version: int) -> Directory:
        """All instances there are, as of a version."""
        by_name = {instance.name: instance for instance in instances}
        return replace(self, _tree=self._tree.become(by_name), instances_version=version)

    def with_instance(self, instance: Instance, version: int) -> Directory:
        """One instance as it is now."""
        if self.instances.get(instance.name) == instance:
            return replace(self, instances_version=version)
        return self.with_instances({**self.instances, instance.name: instance}.values(), version)

    def completed(self) -> Directory:
        """The same, known to be whole."""
        return replace(self, complete=True)

    def same_world(self, other: Directory) -> bool:
        """Whether the two differ in nothing but their versions; quick for one made from the other."""
        return (self._projects, self._tree, self.complete) == (other._projects, other._tree, other.complete)


EMPTY_DIRECTORY: Final = Directory(_Projects({}), _Tree({}))


_AT_REST: Final = frozenset({InstanceState.CREATED, InstanceState.STOPPED, InstanceState.TERMINATED})


def run_start(before: Instance | None, state: InstanceState, update_time: datetime | None) -> datetime | None:
    """
    When the run of an instance began, which the registry does not say but its changes show.

    Args:
        before: The instance as last known.
        state: Its state now.
        update_time: When the registry changed it last. Where a run was under way before we looked, that is
            the best guess: the start itself, unless the instance was changed since.
    """
    if before is None:
        return None if state in _AT_REST else update_time
    starts_anew = before.state in _AT_REST | {InstanceState.ERROR} and state in _COMING_UP
    return update_time if starts_anew else before.start_time


_COMING_UP: Final = frozenset({InstanceState.STARTING, InstanceState.RUNNING})
