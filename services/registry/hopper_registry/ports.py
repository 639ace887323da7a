"""
What the registry needs of a store: rows as they are inside one transaction.

An object of these types lives as long as one transaction, and its methods are plain calls. Every `save_...`
and `delete_...` of a project, an instance, a principal or a key also puts the change into the log that watchers
read: a change that is made is a change that is told.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from hopper_registry.access_model import ApiKey, Principal
from hopper_registry.model import Instance, Project, Worker


class ProjectStore(Protocol):
    """Projects and their workers."""

    @property
    def now(self) -> datetime:
        """When this transaction happens; UTC, aware."""

    def project(self, name: str) -> Project | None:
        """The project with its presence, if there is one."""

    def projects(
        self, *, after: str = "", limit: int | None = None, capability: str = "", tag: str = ""
    ) -> Sequence[Project]:
        """Projects by name, from the one after *after*; those that have the capability and the tag."""

    def save_project(self, project: Project) -> None:
        """Insert or replace it, and tell."""

    def delete_project(self, name: str) -> None:
        """Remove it and its workers, and tell."""

    def tell_presence(self, project: str) -> None:
        """Tell that a project's workers have changed."""

    def refresh_worker(self, worker: Worker) -> bool:
        """
        Note the time of a heartbeat that says nothing new.

        Returns:
            Whether it was one: the worker is known, live, and has the same slots, load and labels.
        """

    def save_worker(self, worker: Worker) -> None:
        """Insert or replace it. The project exists."""

    def workers(self, project: str, *, after: str = "", limit: int | None = None) -> Sequence[Worker]:
        """A project's workers by name, from the one after *after*."""

    def expire_workers(self) -> Sequence[str]:
        """Mark those dead whose time to live has run out; the names of their projects, each once."""

    def forget_workers(self, *, before: datetime) -> int:
        """Drop the dead ones whose time to live ran out before a time; how many."""


class InstanceStore(Protocol):
    """The tree of instances."""

    @property
    def now(self) -> datetime:
        """When this transaction happens; UTC, aware."""

    def has_project(self, name: str) -> bool:
        """Whether there is such a project."""

    def instance(self, name: str) -> Instance | None:
        """The instance, if there is one."""

    def instance_for(self, project: str) -> str:
        """The name of the instance, not terminated, that stands for a project; empty if none does."""

    def instances(self, *, after: str = "", limit: int | None = None, parent: str = "") -> Sequence[Instance]:
        """Instances by name, from the one after *after*; the direct children of *parent*, if given."""

    def subtree(self, name: str, *, limit: int | None = None, terminated: bool = True) -> Sequence[Instance]:
        """An instance and everything under it, the upper levels first; perhaps without terminated ones."""

    def save_instance(self, instance: Instance) -> None:
        """Insert or replace it, and tell."""


class AccessStore(Protocol):
    """People, agents and their keys; and the places they may be bound to."""

    @property
    def now(self) -> datetime:
        """When this transaction happens; UTC, aware."""

    def has_project(self, name: str) -> bool:
        """Whether there is such a project."""

    def instance(self, name: str) -> Instance | None:
        """The instance, if there is one."""

    def principal(self, name: str) -> Principal | None:
        """The principal, if there is one."""

    def principals(self, *, after: str = "", limit: int | None = None) -> Sequence[Principal]:
        """Principals by name, from the one after *after*."""

    def agents_of(self, person: str) -> Sequence[Principal]:
        """Those that act for somebody, by name."""

    def bound_to(self, resource: str) -> Sequence[Principal]:
        """Those that have a role on a place, by name."""

    def save_principal(self, principal: Principal) -> None:
        """Insert or replace it, and tell."""

    def delete_principal(self, name: str) -> None:
        """Remove it and its keys, and tell."""

    def first_admin(self) -> str:
        """The name of the first admin there ever was; empty before."""

    def save_first_admin(self, name: str) -> None:
        """Note who it is, for ever."""

    def key(self, name: str) -> ApiKey | None:
        """The key, if there is one; those that ended too."""

    def keys(self, principal: str) -> Sequence[ApiKey]:
        """A principal's keys, newest first; those that ended too."""

    def save_key(self, key: ApiKey) -> None:
        """Insert or replace it, and tell."""

    def forget_keys(self, names: Sequence[str]) -> None:
        """Remove keys that ended. Nobody is told: they let nobody in before, either."""

    def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Note when keys were used last, by the ids of the keys. Earlier times than those known are passed over."""
