"""
What may leave for peers, as far as routing can tell: the filters `border`, `path` and `federation`.

A peer is a project with a border: its owner's policy for that peer, which the federation service keeps there. Each
task is held against it before the peer can be chosen, and nothing bypasses that, a pin neither. The federation service
rules again when the task does leave, by what it knows besides: how much is under way, and whether the policy's
signature holds.

    border      the policy lets no such task leave; or it cannot be read, and then nothing does
    path        the task came through the peer, or from it
    federation  half a peer: no FEDERATED instance stands for it, so that nobody would hand the task over
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from hopper_common.auth.model import TrustLevel
from hopper_common.border.grant_toml import read_grant
from hopper_common.border.grants import Crossing, Direction, Grant, Usage, decide
from hopper_common.border.levels import Level
from hopper_common.errors import PolicyInvalid
from hopper_router.model import Border, Project, TaskSpec

MARK: Final = "hopper."
"""Labels that begin so are this Hopper's own marks: they leave with no task, and no policy is asked about them."""
PATH: Final = "hopper.path"
"""Install ids of the Hoppers that a task came through, with commas."""
TASK_UID: Final = "hopper.task_uid"
"""Of a task that came from a peer: the install id of the Hopper it is of, a slash, and its id there."""

_UNUSED: Final = Usage()


@dataclass(frozen=True, slots=True)
class Frontier:
    """
    A peer's border, read.

    Attributes:
        project: The project that stands for the peer.
        peer: Its install id.
        grant: The policy; None: there is none.
        broken: Why the policy cannot be read; empty: it can.
    """

    project: Project
    peer: str
    level: Level
    grant: Grant | None
    broken: str = ""


def frontiers(projects: Iterable[Project]) -> tuple[Frontier, ...]:
    """Those of the projects that are peers."""
    return tuple(_frontier(project, project.border) for project in projects if project.border is not None)


def _frontier(project: Project, border: Border) -> Frontier:
    grant, broken = _read(border.policy)
    return Frontier(project, border.peer, _level(border.level), grant, broken)


@lru_cache(1024)
def _read(policy: str) -> tuple[Grant | None, str]:
    """A policy's text, read once however often its project changes, and why that failed."""
    if not policy:
        return None, ""
    try:
        return read_grant(policy), ""
    except PolicyInvalid as error:
        return None, error.message


def _level(number: int) -> Level:
    """The level of that number of the contract; one that is not known here counts for nothing."""
    return _LEVELS.get(number, Level.UNTRUSTED)


_LEVELS: Final = {level.value: Level[level.name] for level in TrustLevel}


def held_back(
    borders: Iterable[Frontier], task: TaskSpec, instances: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """
    Which peers cannot have a task, by project, and by which filter; after a colon, why.

    Those that the task does not need to be held against, because they lack a capability or another project was asked
    for, are left to the filters that say so.

    Args:
        instances: The instance that stands for a project, FEDERATED ones alone.
    """
    crossing: Crossing | None = None
    needed = frozenset(task.required_capabilities)
    came = _came_through(task)
    filters: dict[str, str] = {}
    for frontier in borders:
        project = frontier.project
        if not needed <= project.capabilities or task.project not in ("", project.name):
            continue
        if project.name not in instances:
            filters[project.name] = "federation: no instance stands for the peer"
        elif frontier.peer in came:
            filters[project.name] = "path: the task came through that Hopper"
        else:
            crossing = crossing or crossing_of(task)
            refusal = _refusal(frontier, crossing, now)
            if refusal:
                filters[project.name] = f"border: {refusal}"
    return filters


def crossing_of(task: TaskSpec) -> Crossing:
    """
    A task as policies see it.

    Its size is that of what its requester wrote: what leaves is a little more, and the federation service counts that.
    """
    facts = {**task.required_labels, **task.labels}
    labels = (f"{key}={value}" for key, value in sorted(facts.items()) if not key.startswith(MARK))
    texts = (task.title, task.description, *task.tags, *task.required_capabilities)
    return Crossing(
        Direction.OUT,
        capabilities=task.required_capabilities,
        labels=(*task.tags, *labels),
        priority=task.priority,
        bytes=len(task.payload) + sum(len(text.encode()) for text in texts),
        exclusive=task.exclusive,
        origin=_origin(task),
        by_hand=bool(task.project),
    )


def _refusal(frontier: Frontier, crossing: Crossing, now: datetime) -> str:
    """Why a task may not leave for a peer; empty: it may."""
    if frontier.broken:
        return f"the policy cannot be read, so that nothing leaves: {frontier.broken}"
    ruling = decide(frontier.grant, frontier.level, crossing, _UNUSED, now)
    return "" if ruling.allowed else f"by `{ruling.rule}`, {ruling.reason}: {ruling.detail}"


def _origin(task: TaskSpec) -> str:
    """Install id of the Hopper that a task is of; empty: this one."""
    return task.labels.get(TASK_UID, "").partition("/")[0]


def _came_through(task: TaskSpec) -> frozenset[str]:
    """Install ids of the Hoppers that a task has been in before this one, as far as its labels tell."""
    path = task.labels.get(PATH, "")
    return frozenset(filter(None, (*path.split(","), _origin(task))))
