"""
What can be done with projects and workers, each inside one transaction of a store.

Pure of gRPC and SQL, like `model`: the store is a port, and brings the time with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from hopper_registry.errors import ProjectExists, ProjectNotFound
from hopper_registry.model import (
    Project,
    ProjectSpec,
    Worker,
    check_border,
    check_etag,
    check_hours,
    with_display_name,
)
from hopper_registry.ports import ProjectStore

FORGET_WORKERS_AFTER = timedelta(days=1)


def register(store: ProjectStore, name: str, spec: ProjectSpec) -> Project:
    """
    Add a project.

    Raises:
        ProjectExists: The name is taken. InvalidArgument: Its hours are none, or its border is not whole.
    """
    if store.project(name):
        raise ProjectExists(project=name)
    check_hours(spec)
    check_border(spec)
    spec = with_display_name(spec, name)
    project = Project(name=name, spec=spec, revision=1, create_time=store.now, update_time=store.now)
    store.save_project(project)
    return project


def get(store: ProjectStore, name: str) -> Project:
    """
    The project of that name.

    Raises:
        ProjectNotFound: There is none.
    """
    project = store.project(name)
    if project is None:
        raise ProjectNotFound(f"there is no project {name}: register it first", project=name)
    return project


def update(
    store: ProjectStore, name: str, etag: str, change: Callable[[ProjectSpec], ProjectSpec]
) -> Project:
    """
    Change what is said about a project. A change that changes nothing leaves it as it is, etag and all.

    Args:
        etag: What the caller has seen; empty: whatever it is now.
        change: From the spec as it is to the one wanted; may raise.

    Raises:
        ProjectNotFound: There is none. EtagMismatch: Somebody else changed it.
    """
    project = get(store, name)
    check_etag(project, etag)
    updated = project.updated(change(project.spec), store.now)
    if updated is not project:
        store.save_project(updated)
    return updated


def unregister(store: ProjectStore, name: str, etag: str) -> None:
    """
    Remove a project and its workers. An instance that stands for it keeps its name, and serves the next
    project that has it.

    Raises:
        ProjectNotFound: There is none. EtagMismatch: Somebody else changed it.
    """
    check_etag(get(store, name), etag)
    store.delete_project(name)


def heartbeat(store: ProjectStore, worker: Worker) -> Worker:
    """
    Note a worker's sign of life. Watchers hear of it only if it says something new.

    Returns:
        The worker as known now.

    Raises:
        ProjectNotFound: The worker's project is not there.
    """
    worker = replace(worker, last_heartbeat_time=store.now, live=True)
    if store.refresh_worker(worker):  # nearly always: one statement
        return worker
    get(store, worker.project)
    store.save_worker(worker)
    store.tell_presence(worker.project)
    return worker


def workers(store: ProjectStore, project: str, *, after: str, limit: int) -> Sequence[Worker]:
    """
    A page of a project's workers by name, the dead ones of the last day included.

    Raises:
        ProjectNotFound: There is no such project.
    """
    get(store, project)
    return store.workers(project, after=after, limit=limit)


def expire_workers(store: ProjectStore) -> Sequence[str]:
    """Mark the workers dead that have been silent too long; the names of their projects."""
    names = store.expire_workers()
    for name in names:
        store.tell_presence(name)
    return names


def forget_workers(store: ProjectStore) -> int:
    """Drop the workers that have been dead for a day; how many."""
    return store.forget_workers(before=store.now - FORGET_WORKERS_AFTER)
