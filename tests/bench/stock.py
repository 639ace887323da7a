"""Tasks that are planned already, and the rows they become: for bars about storage alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from hopper_common.clock import SystemClock
from hopper_common.ids import Ids
from hopper_router import tables
from hopper_router.convert import decision_to_proto, spec_from_proto
from hopper_router.directory import EMPTY_DIRECTORY
from hopper_router.fairness import Turns
from hopper_router.hot import Admission, submitted_body
from hopper_router.model import Decision, Instance, InstanceState, Project, Scope, Task
from hopper_router.planning import plan
from hopper_router.policies import Policies
from hopper_router.rows import task_to_row
from hopper_router.store_sql import OpenCounts
from hopper_router.unit import World
from tests.bench import message

COLUMNS: Final = tuple(column.name for column in tables.tasks.c)


class Stock:
    """Makes tasks that differ in their ids alone, each decided about once among 1,000 projects."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._ids = Ids()
        self._task, self._decision = self._planned()
        self._record = decision_to_proto(self._decision).SerializeToString()
        self._ready: list[Admission] = []
        self._generation = 0

    def _planned(self) -> tuple[Task, Decision]:
        root = Instance(message.ROOT, Scope.GLOBAL, InstanceState.RUNNING, start_time=self._now)
        projects = [
            Project(
                f"projects/p{number}",
                description=message.project(number).description,
                tags=frozenset(message.project(number).tags),
            )
            for number in range(message.PROJECTS)
        ]
        directory = EMPTY_DIRECTORY.with_projects(projects, 1).with_instances([root], 1).completed()
        world = World(directory, Policies(()), OpenCounts(), self._ids, Turns())
        spec = spec_from_proto(message.spec(message.HOT))
        planned = plan(world, root, spec, SystemClock(), self._now)
        assert planned is not None
        return planned

    def make(self, calls: int, tasks: int) -> None:
        """Have so many calls of so many tasks each at hand."""
        self._ready = [self._admission(tasks) for _ in range(calls)]

    @property
    def calls(self) -> int:
        """How many of them are left."""
        return len(self._ready)

    def take(self) -> Admission:
        """One of them."""
        return self._ready.pop()

    def _admission(self, count: int) -> Admission:
        tasks, decisions = [], []
        for _ in range(count):
            name = f"{message.ROOT}/tasks/{self._ids.new(self._now)}"
            decision = replace(self._decision, name=f"decisions/{self._ids.new(self._now)}", task=name)
            decisions.append(decision)
            tasks.append(replace(self._task, name=name, decision=decision.name))
        return Admission("", b"", b"", tasks, decisions, [self._record] * count, self._now)

    def rows(self, admission: Admission) -> Rows:
        """The rows that it becomes, with generations of their own."""
        rows: list[dict[str, Any]] = []
        for task in admission.tasks:
            self._generation += 1
            rows.append({**task_to_row(task, self._now), "generation": self._generation})
        return Rows(rows, [submitted_body(task) for task in admission.tasks], admission)


class Rows:
    """What taking tasks in leaves in `tasks`, `task_events` and `routing_decisions`."""

    def __init__(
        self, tasks: Sequence[dict[str, Any]], events: Sequence[bytes], admission: Admission
    ) -> None:
        self.tasks = tasks
        now = tasks[0]["create_time"]
        self.events = [
            (row["generation"], "SUBMIT", task.name, event, now)
            for row, task, event in zip(tasks, admission.tasks, events, strict=True)
        ]
        self.decisions = [
            (
                decision.name.removeprefix("decisions/"),
                decision.task,
                decision.instance,
                decision.project,
                record,
            )
            for decision, record in zip(admission.decisions, admission.records, strict=True)
        ]
