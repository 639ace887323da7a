"""
The hot path's shell: gathers calls, plans them, runs the statements, and does what has to follow a commit.

See `hot` for the idea, `planning` for what is decided, `hot_sqlite` and `hot_postgres` for the statements.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from hopper_common.clock import Clock
from hopper_common.errors import HopperError, IdempotencyConflict
from hopper_common.gather import Gatherer
from hopper_router.convert import decision_to_bytes
from hopper_router.fairness import lane
from hopper_router.hot import Admission, End, HotStore, Keep, Left, Repeat, Row, Want
from hopper_router.model import Task, TaskSpec
from hopper_router.planning import Plan, plan
from hopper_router.queue_stats import Delta, delta_of_admitted, delta_of_claimed, delta_of_completed
from hopper_router.replicas import queues
from hopper_router.unit import World

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


@dataclass(frozen=True, slots=True)
class Step:
    """
    What a set has changed, in numbers: all that needs to be known for what follows its commit.

    Attributes:
        generation: That of one of its events.
        counts: For the counts of queues.
        ready: Tasks that got ready, by queue.
        next_ready: When the first of those gets ready that did not at once.
        ended: Tasks that do not run any more, by project and instance.
    """

    generation: int
    counts: Delta
    ready: Counter[str] = field(default_factory=Counter)
    next_ready: datetime | None = None
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def admitted(cls, tasks: Sequence[Task], generation: int, now: datetime) -> Step:
        """Of tasks that were taken in."""
        ready: Counter[str] = Counter()
        later: list[datetime] = []
        for task in tasks:
            if task.ready_time <= now:
                ready.update(queues(task))
            else:
                later.append(task.ready_time)
        return cls(generation, delta_of_admitted(tasks), ready, min(later, default=None))

    @classmethod
    def claimed(cls, rows: Sequence[Row]) -> Step:
        """Of tasks that were claimed."""
        return cls(rows[0]["generation"], delta_of_claimed(rows))

    @classmethod
    def completed(cls, rows: Sequence[Row]) -> Step:
        """Of tasks that are done."""
        ended = Counter([(row["project"], row["instance"]) for row in rows])
        return cls(rows[0]["generation"], delta_of_completed(rows), ended=ended)


class HotPath:
    """Submit, claim, renew and complete, in sets."""

    def __init__(
        self,
        store: HotStore,
        world: Callable[[], World],
        clock: Clock,
        follow: Callable[[Step], None],
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
        self._claims: Gatherer[Want, list[Row] | Repeat | Left] = Gatherer(self._claim, limit=group)
        self._keeps: Gatherer[Sequence[Keep], list[Row | Left]] = Gatherer(
            self._renew, limit=max(group, 1), weigh=len
        )
        self._ends: Gatherer[Sequence[End], list[Row | Left]] = Gatherer(
            self._complete, limit=max(group, 1), weigh=len
        )

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

    async def claim(self, want: Want) -> list[Row] | Repeat | Left:
        """
        Claim what is next in a queue without limits: `hot.CLAIMED_ROW` of each. Where more must be weighed, that is
        left to a unit.
        """
        outcome = await self._claims.add(want)
        if isinstance(outcome, Repeat):
            require_same(outcome, "ClaimTasks", want.request_id, want.digest)
        return outcome

    async def renew(self, keeps: Sequence[Keep]) -> list[Row | Left]:
        """Extend leases: `hot.RENEWED_ROW` of each; what is not live is left to a unit, which says why."""
        return await self._keeps.add(keeps)

    async def complete(self, ends: Sequence[End]) -> list[Row | Left]:
        """
        End claims with success: `hot.COMPLETED_ROW` of each; whatever concerns others, or is not live, is left to a
        unit.
        """
        return await self._ends.add(ends)

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
        stored_tasks: list[Task] = []
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
            stored_tasks += admission.tasks
            last = generation
        if stored_tasks:
            self._follow(Step.admitted(stored_tasks, last, fresh[0][1].now))

    def _uncount(self, world: World, admission: Admission) -> None:
        for task in admission.tasks:
            count(world, task, -1)

    # ------------------------------------------------------------ working

    async def _claim(self, wants: Sequence[Want]) -> Sequence[list[Row] | Repeat | Left]:
        found = await self._store.claim(wants, self._clock.now(), self._origin)
        rows = [row for some in found if isinstance(some, list) for row in some]
        if rows:
            turns = self._world().turns
            for queue, rank in _served(rows).items():
                turns.served(queue, rank)
            self._follow(Step.claimed(rows))
        return found

    async def _renew(self, calls: Sequence[Sequence[Keep]]) -> list[list[Row | Left]]:
        keeps = [keep for call in calls for keep in call]
        return _parted(await self._store.renew(keeps, self._clock.now()), calls)

    async def _complete(self, calls: Sequence[Sequence[End]]) -> list[list[Row | Left]]:
        ends = [end for call in calls for end in call]
        found = await self._store.complete(ends, self._clock.now(), self._origin)
        rows = [row for row in found if row is not None]
        if rows:
            step = Step.completed(rows)
            load = self._world().load
            for (project, instance), done in step.ended.items():
                load.add(project, instance, -done)
            self._follow(step)
        return _parted(found, calls)


def _served(rows: Sequence[Row]) -> dict[str, int]:
    """The lanes that those tasks were claimed from, each with the last rank that it served."""
    served: dict[tuple[str, int], int] = {}
    for row in rows:
        at, rank = (row["project"] or row["instance"], row["priority"]), row["rank"]
        if rank > served.get(at, -1):
            served[at] = rank
    return {lane(*at): rank for at, rank in served.items()}


def _parted(found: Sequence[Row | None], calls: Sequence[Sequence[Any]]) -> list[list[Row | Left]]:
    """The outcomes of a set, call by call."""
    outcomes = iter([Left.COLD if row is None else row for row in found])
    return [list(islice(outcomes, len(call))) for call in calls]


def count(world: World, task: Task, step: int) -> None:
    """Count a task in, or out, of the open work."""
    world.load.add(task.project, task.instance, step)


def require_same(repeat: Repeat, method: str, request_id: str, digest: bytes) -> None:
    """Refuse a request id that stood for something else."""
    if repeat.digest != digest:
        raise IdempotencyConflict(request_id=request_id, method=method)
