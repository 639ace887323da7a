"""
What routers on the same database tell each other after a commit, in one line of JSON.

Nothing that must be right hangs on it: rows and locks see to that. It spares waiting workers the next look for
themselves, and keeps what each router has in memory of the whole (who is how busy, whose turn it is) near the truth.
What is missed is made good by counting anew.

    {"o": origin, "r": {queue: tasks that got ready}, "p": {project: open tasks more}, "i": {instance: open tasks more},
     "v": {lane: rank served last}, "y": 1 if policies have changed, "a": 1 if it is too much to tell}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hopper_common.database import PAYLOAD_LIMIT
from hopper_router.model import Task
from hopper_router.transitions import Event, claimable
from hopper_router.unit import WORKABLE, Change


@dataclass(frozen=True, slots=True)
class News:
    """What a commit changed, for those who hold a copy of it in memory."""

    ready: Mapping[str, int] = field(default_factory=dict)
    projects: Mapping[str, int] = field(default_factory=dict)
    instances: Mapping[str, int] = field(default_factory=dict)
    served: Mapping[str, int] = field(default_factory=dict)
    policies: bool = False
    too_much: bool = False

    def told(self, origin: str, limit: int = PAYLOAD_LIMIT) -> str:
        """As it is told in one notification, whose length is limited: what does not fit is to be looked up."""
        line = self.line(origin)
        return line if len(line) <= limit else News(too_much=True).line(origin)

    def line(self, origin: str) -> str:
        """As it is told."""
        said = {"r": self.ready, "p": self.projects, "i": self.instances, "v": self.served}
        line: dict[str, Any] = {"o": origin, **{key: value for key, value in said.items() if value}}
        if self.policies:
            line["y"] = 1
        if self.too_much:
            line["a"] = 1
        return json.dumps(line, separators=(",", ":"))

    @classmethod
    def heard(cls, line: str, origin: str) -> News | None:
        """What another router told; None: it was this one."""
        said = json.loads(line)
        if said["o"] == origin:
            return None
        return cls(
            said.get("r") or {},
            said.get("p") or {},
            said.get("i") or {},
            said.get("v") or {},
            bool(said.get("y")),
            bool(said.get("a")),
        )


def news_of(changes: Iterable[Change], now: datetime) -> News:
    """What a unit of work has to tell."""
    ready: Counter[str] = Counter()
    projects: Counter[str] = Counter()
    instances: Counter[str] = Counter()
    served: dict[str, int] = {}
    for change in changes:
        if claimable(change.after, now):
            ready.update(queues(change.after))
        if change.event is Event.CLAIM:
            lane = change.after.lane
            served[lane] = max(change.after.rank, served.get(lane, 0))
        for task, step in ((change.before, -1), (change.after, 1)):
            if task is not None and task.state in WORKABLE:
                projects[task.project] += step
                instances[task.instance] += step
    return News(ready, _moved(projects), _moved(instances), served)


def news_of_admitted(tasks: Sequence[Task], now: datetime) -> News:
    """What new tasks in queues have to tell."""
    ready: Counter[str] = Counter()
    for task in tasks:
        if task.ready_time <= now:
            ready.update(queues(task))
    return News(ready, Counter(task.project for task in tasks), Counter(task.instance for task in tasks))


def _moved(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: step for name, step in counts.items() if step}


def queues(task: Task) -> list[str]:
    """The queues a task may be claimed from."""
    return queues_at(task.project, task.instance)


def queues_at(project: str, instance: str) -> list[str]:
    """The queues that a task of that project is in there; of none: it is ""."""
    return [instance, project] if project else [instance]
