"""
The hot path's shell: gathers calls, plans them, runs the statements, and does what has to follow a commit.

See `hot` for the idea, `planning` for what is decided, `hot_sqlite` and `hot_postgres` for the statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from hopper_common.clock import Clock
from hopper_common.errors import HopperError, IdempotencyConflict
from hopper_common.gather import Gatherer
from hopper_router.convert import decision_to_bytes
from hopper_router.hot import Admission, End, HotStore, Keep, Left, Repeat, Row, Want
from hopper_router.model import Task, TaskSpec
from hopper_router.planning import Plan, plan
from hopper_router.rows import task_from_row
from hopper_router.transitions import Event
from hopper_router.unit import Change, World

T = TypeVar("T")

GROUP: Final = 512
BREATH: Final = 50
"""Tasks of a batch that are decided about at a stretch: then others have their turn."""


class Taken(NamedTuple):
    """A task that was taken in, its generation, and the decision about it, serialized."""

    task: Task
    generation: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """Tasks of one call that are to be taken in together."""

    method: str
    parent: str
    specs: Sequence[TaskSpec]
    request_id: str
    digest: bytes
    answer: Callable[[Mapping[int, Task]], bytes]
    partial: bool = False
    others: Collection[int] = ()
    """Places of tasks that are known to be for a unit."""


class HotPath:
    """Submit, claim, renew and complete, in sets."""

    def __init__(
        self,
        store: HotStore,
        world: Callable[[], World],
        clock: Clock,
        follow: Callable[[Sequence[Change], int], None],
        origin: str,
        *,
        group: int = GROUP,
    ) -> None:
        self._store = store
        self._world = world
        self._clock = clock
        self._follow = follow
        self._origin = origin
        self._submits: Gatherer[Call, list[Taken | None] | Repeat | Left] = Gatherer(
            self._admit, limit=max(group, 1), weigh=lambda call: len(call.specs)
        )
        self._claims: Gatherer[Want, list[Task] | Repeat | Left] = Gatherer(self._claim, limit=group)
        self._keeps: Gatherer[Keep, Task | Left] = Gatherer(self._renew, limit=group)
        self._ends: Gatherer[End, Task | Left] = Gatherer(self._complete, limit=group)

    # ------------------------------------------------------------ what callers ask for

    async def submit(self, call: Call) -> list[Taken | None] | Repeat | Left:
        """
        Take the tasks of a call in: all of them or none, or those of the simple kind where the call is *partial*; the
        others are None.

        Raises:
            IdempotencyConflict: The id was used for something else.
        """
        outcome = await self._submits.add(call)
        if isinstance(outcome, Repeat):
            require_same(outcome, call.method, call.request_id, call.digest)
        return outcome

    async def claim(self, want: Want) -> list[Task] | Repeat | Left:
        """Claim what is next in a queue without limits; where more must be weighed, that is left to a unit."""
        outcome = await self._claims.add(want)
        if isinstance(outcome, Repeat):
            require_same(outcome, "ClaimTasks", want.request_id, want.digest)
        return outcome

    async def renew(self, keeps: Sequence[Keep]) -> list[Task | Left]:
        """Extend leases; what is not live is left to a unit, which says why."""
        futures = [self._keeps.add(keep) for keep in keeps]
        return [await future for future in futures]

    async def complete(self, ends: Sequence[End]) -> list[Task | Left]:
        """End claims with success; whatever concerns others, or is not live, is left to a unit."""
        futures = [self._ends.add(end) for end in ends]
        return [await future for future in futures]

    @property
    def gatherers(self) -> Mapping[str, Gatherer[Any, Any]]:
        """What gathers each kind of call."""
        return {
            "submit": self._submits,
            "claim": self._claims,
            "renew": self._keeps,
            "complete": self._ends,
        }

    async def close(self) -> None:
        """Wait for what is under way."""
        for gatherer in (self._submits, self._claims, self._keeps, self._ends):
            await gatherer.close()

    # ------------------------------------------------------------ taking in

    async def _admit(self, calls: Sequence[Call]) -> list[list[Taken | None] | Repeat | Left | BaseException]:
        now, world = self._clock.now(), self._world()
        outcomes: list[list[Taken | None] | Repeat | Left | BaseException] = []
        fresh: list[tuple[int, Admission]] = []
        seen: dict[str, int] = {}
        for position, call in enumerate(calls):
            planned = None if call.request_id in seen else await self._plan(world, call, now)
            outcomes.append(Left.COLD)
            if call.request_id:
                seen.setdefault(call.request_id, position)
            if planned is not None:
                fresh.append((position, planned))
        if fresh:
            await self._store_admitted(world, calls, fresh, outcomes)
        return outcomes

    async def _plan(self, world: World, call: Call, now: datetime) -> Admission | None:
        plans: dict[int, Plan] = {}
        where = world.directory.instances.get(call.parent)
        for place, spec in enumerate(call.specs):
            if place in call.others:
                continue
            try:
                planned = plan(world, where, spec, self._clock, now)
            except HopperError:  # a unit says it again, to the one who asked
                planned = None
            if planned is None and call.partial:
                continue
            if planned is None:
                return None  # the only one
            plans[place] = planned
            count(world, planned.task, 1)  # a batch must not fill the same place twice
            if len(plans) % BREATH == 0:
                await asyncio.sleep(0)
        if not plans:
            return None
        tasks = {place: planned.task for place, planned in plans.items()}
        return Admission(
            request_id=call.request_id,
            digest=call.digest,
            answer=call.answer(tasks) if call.request_id else b"",
            tasks=list(tasks.values()),
            decisions=[planned.decision for planned in plans.values()],
            records=[decision_to_bytes(planned.decision) for planned in plans.values()],
            now=now,
            places=list(plans),
        )

    async def _store_admitted(
        self,
        world: World,
        calls: Sequence[Call],
        fresh: Sequence[tuple[int, Admission]],
        outcomes: list[list[Taken | None] | Repeat | Left | BaseException],
    ) -> None:
        try:
            stored = await self._store.admit([admission for _, admission in fresh], self._origin)
        except BaseException:
            for _, admission in fresh:
                self._uncount(world, admission)
            raise
        changes: list[Change] = []
        last = 0
        for (position, admission), generation in zip(fresh, stored, strict=True):
            if isinstance(generation, Repeat):
                self._uncount(world, admission)
                outcomes[position] = generation
                continue
            taken: list[Taken | None] = [None] * len(calls[position].specs)
            for n, place in enumerate(admission.places):
                taken[place] = Taken(admission.tasks[n], generation + n, admission.records[n])
            outcomes[position] = taken
            changes += [Change(None, task, Event.SUBMIT) for task in admission.tasks]
            last = generation
        self._follow(changes, last)

    def _uncount(self, world: World, admission: Admission) -> None:
        for task in admission.tasks:
            count(world, task, -1)

    # ------------------------------------------------------------ working

    async def _claim(self, wants: Sequence[Want]) -> list[list[Task] | Repeat | Left | BaseException]:
        now = self._clock.now()
        found = await self._store.claim(wants, now, self._origin)
        answers: list[list[Task] | Repeat | Left | BaseException] = []
        turns = self._world().turns
        changes: list[Change] = []
        for rows in found:
            if isinstance(rows, Repeat | Left):
                answers.append(rows)
                continue
            tasks = [task_from_row(row) for row in rows]
            changes += [Change(task, task, Event.CLAIM) for task in tasks]
            for task in tasks:
                turns.served(task.lane, task.rank)
            answers.append(tasks)
        self._follow(changes, 0)
        return answers

    async def _renew(self, keeps: Sequence[Keep]) -> list[Task | Left | BaseException]:
        return [_task_or_left(row) for row in await self._store.renew(keeps, self._clock.now())]

    async def _complete(self, ends: Sequence[End]) -> list[Task | Left | BaseException]:
        answers = [
            _task_or_left(row) for row in await self._store.complete(ends, self._clock.now(), self._origin)
        ]
        world, done = self._world(), [task for task in answers if isinstance(task, Task)]
        for task in done:
            count(world, task, -1)
        self._follow([Change(task, task, Event.COMPLETE) for task in done], 0)
        return list(answers)


def _task_or_left(row: Row | None) -> Task | Left:
    return Left.COLD if row is None else task_from_row(row)


def count(world: World, task: Task, step: int) -> None:
    """Count a task in, or out, of the open work."""
    world.load.add(task.project, task.instance, step)


def require_same(repeat: Repeat, method: str, request_id: str, digest: bytes) -> None:
    """Refuse a request id that stood for something else."""
    if repeat.digest != digest:
        raise IdempotencyConflict(request_id=request_id, method=method)
