"""
Has Sages order what waits, where policies ask for that (`{use: sage, prioritize: true}`).

    every few seconds ─► queues with tasks the Sage has not seen yet ─► PrioritizeQueue ─► a unit: ranks change places

A queue is claimed from by priority, then by rank, and a rank is a turn of its requester (`fairness`). The Sage says
in which order a requester's own turns are spent on their tasks of one priority: so what is urgent stays urgent, nobody
gets a turn more, and the worst that a Sage can do is to put somebody's tasks in an odd order. It is bounded: the first
200 tasks of a queue, asked about once unless new ones come, within the stage's deadline and budget of calls. A Sage
that is down, too slow, out of budget or answers no order of these tasks leaves everything as it is.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import structlog

from hopper_common.errors import HopperError, ShuttingDown
from hopper_router.advice import Sages, asked_of
from hopper_router.cascade import Stage
from hopper_router.engine import Engine
from hopper_router.llm.budget import Budget, Limits
from hopper_router.llm.errors import BudgetExhausted
from hopper_router.model import ROOT_INSTANCE, Task
from hopper_router.sage.advisor import Asked
from hopper_router.sage.errors import SageAnswerInvalid, SageRefused, SageUnavailable
from hopper_router.store_sql import ReadyQuery
from hopper_router.transitions import claimable
from hopper_router.unit import Unit

LOOK_EVERY: Final = 5.0
MOST_TASKS: Final = 200
MOST_QUEUES: Final = 50
"""Of one round."""

_log = structlog.get_logger("hopper.router")


class Queue(NamedTuple):
    """What waits in an instance, all of it in one queue: `projects/p`, or the instance itself."""

    instance: str
    name: str
    owner: str
    stage: Stage
    tasks: Sequence[Asked]


class QueueOrder:
    """
    Asks for orders.

    Args:
        budget: What Sages may be asked in a day, for whatever.
    """

    def __init__(self, engine: Engine, sages: Sages, budget: Budget) -> None:
        self._engine = engine
        self._sages = sages
        self._budget = budget
        self._seen: dict[tuple[str, str], frozenset[str]] = {}

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            try:
                await self.order()
            except ShuttingDown:
                raise
            except HopperError as error:
                _log.warning("trouble, will try again", what="queue order", reason=error.reason)
            await asyncio.sleep(LOOK_EVERY)

    async def order(self) -> int:
        """
        Have the queues ordered that have new tasks; returns how many tasks got another rank.

        Raises:
            HopperError: The storage is in trouble.
        """
        if not self._engine.policies.order_queues:
            self._seen.clear()
            return 0
        busy = sorted(self._engine.busy_projects)
        queues = await self._engine.read(lambda unit: list(_queues(unit, busy)))
        self._seen = {
            key: self._seen[key] for queue in queues if (key := (queue.instance, queue.name)) in self._seen
        }
        moved = 0
        for queue in [queue for queue in queues if self._is_news(queue)][:MOST_QUEUES]:
            moved += await self._order(queue)
        return moved

    def _is_news(self, queue: Queue) -> bool:
        seen = self._seen.get((queue.instance, queue.name), frozenset())
        return len(queue.tasks) > 1 and not seen.issuperset(task.name for task in queue.tasks)

    async def _order(self, queue: Queue) -> int:
        try:
            reservation = await self._budget.reserve(queue.owner, Limits(queue.stage.calls_per_day), 0)
        except BudgetExhausted:
            return 0
        try:
            sage = self._sages.at(queue.stage.address)
            order = await sage.prioritize(queue.name, queue.tasks, within=queue.stage.deadline)
        except (SageUnavailable, SageAnswerInvalid, SageRefused) as error:
            if error.metadata.get("cause") == "resting":
                await self._budget.release(reservation)
            _log.info("a queue stays as it is", queue=queue.name, reason=error.reason)
            if isinstance(error, SageRefused):  # and would for ever
                self._see(queue)
            return 0
        self._see(queue)
        names = [one.task for one in order.ranked]
        return await self._engine.run(lambda unit: reorder(unit, queue.instance, names))

    def _see(self, queue: Queue) -> None:
        self._seen[queue.instance, queue.name] = frozenset(task.name for task in queue.tasks)


def _queues(unit: Unit, busy: Iterable[str]) -> Iterator[Queue]:
    """What waits in the instances whose policies ask for an order."""
    directory, policies = unit.world.directory, unit.world.policies
    for instance in directory.instances:
        in_force = policies.in_force(instance, directory)
        stage = next((stage for stage in in_force.policy.stages if stage.prioritize), None)
        if stage is None:
            continue
        owner = in_force.name.removesuffix("/policy")
        for name, tasks in _waiting(unit, instance, busy).items():
            yield Queue(instance, name, owner, stage, [asked_of(task) for task in tasks[:MOST_TASKS]])


def _waiting(unit: Unit, instance: str, busy: Iterable[str]) -> dict[str, list[Task]]:
    """The first that wait in an instance, by queue, in the order of claiming."""
    if instance == ROOT_INSTANCE:  # whose tasks are all in queues of projects
        queries = [ReadyQuery("project", project) for project in busy]
    else:
        queries = [ReadyQuery("instance", instance)]
    waiting: dict[str, list[Task]] = defaultdict(list)
    for query in queries:
        for task in unit.store.ready(query, MOST_TASKS):
            if task.instance == instance:
                waiting[task.project or instance].append(task)
    return waiting


def reorder(unit: Unit, instance: str, names: Sequence[str]) -> int:
    """Let the tasks that still wait there change ranks, each with its equals, into that order; returns how many did."""
    equals: dict[tuple[str, str], list[Task]] = defaultdict(list)
    for task in unit.tasks(names):
        if task.instance == instance and claimable(task, unit.now):
            equals[task.lane, task.spec.turn_of].append(task)
    moved = 0
    for tasks in equals.values():
        ranks = sorted(task.rank for task in tasks)
        for task, rank in zip(tasks, ranks, strict=True):
            if task.rank != rank:
                unit.keep(replace(task, rank=rank))
                moved += 1
    return moved
