"""
What the registry needs of a store: rows as they are inside one transaction.

An object of these types lives as long as one transaction, and its methods are plain calls. Every `save_...`
and `delete_...` of a project or an instance also puts the change into the log that watchers read: a change
that is made is a change that is told.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

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
