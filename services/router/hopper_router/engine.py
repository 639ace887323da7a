"""
The engine: runs units of work on the database, and does what has to follow a commit.

    servicer ─► Engine.mutate ─► Database.write: Unit ─ placing, handover, working ─► rows and events, one commit
                      │                                                                      │
                      ◄─────────────── the answer, once it is durable ────────────────────────┤
                                                                    waiting workers are woken ◄┘

It decides nothing itself. What it does on its own is in `clockwork`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection

from hopper_common.clock import Clock
from hopper_common.database import Database, Signal
from hopper_common.errors import HopperError
from hopper_common.idempotency import Requests
from hopper_common.ids import Ids
from hopper_router import tables, working
from hopper_router.hub import SAFETY_NET, Hub
from hopper_router.model import Task, TaskState
from hopper_router.policies import Policies
from hopper_router.ports import Registry
from hopper_router.store_sql import OpenCounts, Store
from hopper_router.transitions import claimable
from hopper_router.unit import Change, Unit, World, count_load
from hopper_router.working import ClaimRequest

T = TypeVar("T")
M = TypeVar("M", bound=Message)
_LOOK_AHEAD: Final = timedelta(seconds=SAFETY_NET)


class _NothingReady(Exception):
    """A claim found nothing: takes its transaction back, so that an empty answer is not remembered."""


class Engine:
    """
    Runs units of work; see the module's text.

    Attributes:
        stopping: Set when the process begins to stop: long polls answer then.
        room_made: Fires when a task has ended or left, so that another may be placed, or an instance may stop.
    """

    def __init__(
        self, db: Database, registry: Registry, policies: Policies, load: OpenCounts, clock: Clock
    ) -> None:
        self.db = db
        self.registry = registry
        self.policies = policies
        self.clock = clock
        self.hub = Hub()
        self.stopping = asyncio.Event()
        self.room_made = Signal()
        self.requests = Requests(tables.requests, clock)
        self._load = load
        self._load_is_doubtful = False
        self._ids = Ids()

    def stop(self) -> None:
        """Let long polls answer."""
        self.stopping.set()
        self.hub.wake_all()

    @classmethod
    async def open(cls, db: Database, registry: Registry, clock: Clock) -> Engine:
        """Read what the engine keeps in memory, and make one."""
        rows = await db.read(lambda conn: Store(conn).policies())
        policies = Policies((row.instance, row.version, row.source) for row in rows)
        return cls(db, registry, policies, await db.read(lambda conn: Store(conn).open_counts()), clock)

    # ------------------------------------------------------------ units

    async def run(self, work: Callable[[Unit], T]) -> T:
        """
        Run *work* in one transaction, and return when it is durable.

        It is finished even if the caller goes away: what follows a commit must follow it.
        """
        return await asyncio.shield(asyncio.ensure_future(self._run(work)))

    async def _run(self, work: Callable[[Unit], T]) -> T:
        counted = False

        def body(conn: Connection) -> tuple[T, list[Change]]:
            nonlocal counted
            if self._load_is_doubtful:
                self._count(conn)
            unit = self._unit(conn, self._load)
            result = work(unit)
            if unit.unplaced:  # a defect, and better refused than stored
                raise RuntimeError("a unit left tasks undecided: whoever hands over must settle")
            unit.flush()
            counted = True
            count_load(self._load, unit.changes)
            return result, unit.changes

        try:
            result, changes = await self.db.write(body)
        except HopperError:
            if counted:  # and then not committed: the next unit counts anew
                self._load_is_doubtful = True
            raise
        self._follow(changes)
        return result

    async def recount(self) -> None:
        """Count open work anew from the rows."""
        await self.db.write(self._count)

    def _count(self, conn: Connection) -> None:
        # On the thread that writes, where the counts are kept: what is under way there must not be forgotten.
        fresh = Store(conn).open_counts()
        self._load.by_project, self._load.by_instance = fresh.by_project, fresh.by_instance
        self._load_is_doubtful = False

    async def mutate(
        self, method: str, request: Message, response_type: type[M], effect: Callable[[Unit], M]
    ) -> M:
        """Run *effect* once for each `request_id`: a repeat gets the first answer."""

        def once(unit: Unit) -> M:
            return self.requests.once(unit.store.conn, method, request, response_type, lambda: effect(unit))

        return await self.run(once)

    async def read(self, look: Callable[[Unit], T]) -> T:
        """Run *look* on one consistent snapshot; it must change nothing."""
        # The counts are the writer's, which changes them while others read: readers get their own.
        return await self.db.read(lambda conn: look(self._unit(conn, self._load.copy())))

    def _unit(self, conn: Connection, load: OpenCounts) -> Unit:
        world = World(self.registry.current, self.policies, load, self._ids)
        return Unit(Store(conn), world, self.clock, self.clock.now())

    # ------------------------------------------------------------ after the commit

    def _follow(self, changes: list[Change]) -> None:
        now = self.clock.now()
        ready: list[str] = []
        left = False
        for change in changes:
            if claimable(change.after, now):
                ready += _queues(change.after)
            elif claimable(change.after, now + _LOOK_AHEAD):
                # Those who have come to wait do not know of it; what is later, they see when they look for themselves.
                delay = (change.after.ready_time - now).total_seconds()
                asyncio.get_running_loop().call_later(delay, self.hub.wake, _queues(change.after))
            if change.before is not None and _stopped_running(change) and not claimable(change.after, now):
                ready += self._limited_queues(change.before)
                left = True
            left = left or change.after.state.final or change.after.state is TaskState.DELEGATED
        self.hub.wake(ready)
        if left:
            self.room_made.fire()

    def _limited_queues(self, task: Task) -> list[str]:
        """The queues of a task that ended, where their limits may have kept others from running."""
        directory = self.registry.current
        project, instance = directory.projects.get(task.project), directory.instances.get(task.instance)
        if (project and project.max_running) or (instance and instance.max_workers):
            return _queues(task)
        return []

    # ------------------------------------------------------------ claiming

    async def claim(
        self,
        wanted: ClaimRequest,
        *,
        wait: timedelta,
        method: str,
        request: Message,
        response_type: type[M],
        answer: Callable[[Unit, list[Task]], M],
        give_up: asyncio.Event | None = None,
    ) -> M:
        """
        Claim what is ready; if nothing is, wait for up to *wait* until something is, or until *give_up* is set.

        Only an answer with tasks is remembered under the request's id, so that an empty one may be asked again.
        """

        def effect(unit: Unit) -> M:
            tasks = working.claim_ready(unit, wanted)
            if not tasks:
                raise _NothingReady
            return answer(unit, tasks)

        end = self.clock.monotonic() + wait.total_seconds()
        while True:
            waiter, looks_again = self.hub.waiting(wanted.queue), False
            try:
                return await self.mutate(method, request, response_type, effect)
            except _NothingReady:
                left = end - self.clock.monotonic()
                if left <= 0 or self.stopping.is_set():
                    return response_type()
                await _either(waiter, give_up, min(left, await self._until_ready(wanted)))
                if give_up is not None and give_up.is_set():
                    return response_type()
                looks_again = True
            finally:
                self.hub.leave(wanted.queue, waiter, looks_again=looks_again)

    async def _until_ready(self, wanted: ClaimRequest) -> float:
        """Seconds until a task of the queue that only waits for its time may be claimed."""
        at = await self.read(lambda unit: working.next_ready(unit, wanted))
        if at is None:
            return SAFETY_NET
        return min(SAFETY_NET, max(0.001, (at - self.clock.now()).total_seconds()))


async def _either(waiter: asyncio.Future[None], give_up: asyncio.Event | None, timeout: float) -> None:
    """Wait until the waiter is woken, the other is set, or time is up."""
    waits: list[asyncio.Future[Any]] = [waiter]
    if give_up is not None:
        waits.append(asyncio.ensure_future(give_up.wait()))
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for other in waits[1:]:
            other.cancel()


def _queues(task: Task) -> list[str]:
    return [task.instance, task.project] if task.project else [task.instance]


def _stopped_running(change: Change) -> bool:
    return change.before is not None and change.before.state is TaskState.RUNNING is not change.after.state
