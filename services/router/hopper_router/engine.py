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
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

import structlog
from google.protobuf.message import Message
from sqlalchemy import Connection

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.task_pb2 import TaskView
from hopper_common.clock import Clock
from hopper_common.database import Database, Signal, notify
from hopper_common.errors import HopperError
from hopper_common.idempotency import Requests, digest_of
from hopper_common.ids import Ids
from hopper_router import recall, tables, working
from hopper_router.convert import task_to_proto
from hopper_router.fairness import Turns
from hopper_router.hot import AFFINITY_GRACE, HotStore, Repeat
from hopper_router.hot_path import HotPath, Step, require_same
from hopper_router.hot_sqlite import SqliteHotStore
from hopper_router.hub import Hub
from hopper_router.inquiries import Inquiries, waits_for_advice
from hopper_router.learned import Learned
from hopper_router.lookout import Lookout
from hopper_router.model import Task, TaskState
from hopper_router.policies import Policies
from hopper_router.policy_yaml import load_policy
from hopper_router.ports import Registry
from hopper_router.queue_counts import QueueCounts
from hopper_router.queue_stats import delta_of
from hopper_router.replicas import News, news_of, queues, queues_at
from hopper_router.store_sql import OpenCounts, Store
from hopper_router.transitions import Event, claimable
from hopper_router.unit import Change, Unit, World, count_load
from hopper_router.waiting import Facts, why_waiting
from hopper_router.words_index import WordIndex
from hopper_router.working import ClaimRequest

log = structlog.get_logger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)
LOOK_EVERY: Final = 0.25
"""Seconds between two looks at a task that waits for advice."""
HOT: Final = frozenset({"SubmitTask", "SubmitTasks", "ClaimTasks"})
"""Methods whose answers may be kept the short way; see recall."""


def hot_store(db: Any) -> HotStore:
    """The hot path's statements for the engine that a database is of."""
    if db.dialect == "sqlite":
        return SqliteHotStore(db)
    from hopper_router.hot_postgres import PostgresHotStore  # noqa: PLC0415  # its driver is an extra

    return PostgresHotStore(db)


class _NothingReady(Exception):
    """A claim found nothing: takes its transaction back, so that an empty answer is not remembered."""


class Engine:
    """
    Runs units of work; see the module's text.

    Attributes:
        stopping: Set when the process begins to stop: long polls answer then.
        room_made: Fires when a task has ended or left, so that another may be placed, or an instance may stop.
        inquiries: Which tasks wait for advice.
    """

    def __init__(
        self,
        db: Database,
        registry: Registry,
        policies: Policies,
        load: OpenCounts,
        turns: Turns,
        clock: Clock,
        learned: Learned,
    ) -> None:
        self.db = db
        self.learned = learned
        learned.projects = lambda: registry.current.candidates if registry.current.complete else None
        self.registry = registry
        self.policies = policies
        self.clock = clock
        self.hub = Hub()
        self.stopping = asyncio.Event()
        self.room_made = Signal()
        self.requests = Requests(tables.requests, clock)
        self.words = WordIndex(db)
        self.lookout = Lookout(db, policies, lambda: registry.current)
        self.inquiries = Inquiries()
        self._load = load
        self._ids = Ids()
        self._turns = turns
        self._beside: set[asyncio.Task[None]] = set()
        self._next_ready: datetime | None = None
        self._wakes: dict[str, datetime] = {}
        self._origin = secrets.token_hex(4)
        db.on_notify(self._heard)
        self.queues = QueueCounts(db, clock, self._origin, load)
        self.hot = HotPath(
            hot_store(db), lambda: self._world(self._load), clock, self._follow_set, self._origin
        )

    def stop(self) -> None:
        """Let long polls answer."""
        self.stopping.set()
        self.hub.wake_all()

    @classmethod
    async def open(
        cls, db: Database, registry: Registry, clock: Clock, learned: Learned | None = None
    ) -> Engine:
        """Read what the engine keeps in memory, and make one."""
        learned = learned or Learned()
        rows = await db.read(lambda conn: Store(conn).policies())
        policies = Policies((row.instance, row.version, row.source) for row in rows)
        turns = Turns()
        turns.restore(await db.read(lambda conn: Store(conn).waiting_turns()))
        engine = cls(db, registry, policies, OpenCounts(), turns, clock, learned)
        await engine.learn_if_asked()
        await engine.promote()
        await engine.queues.recount()
        return engine

    # ------------------------------------------------------------ units

    async def run(self, work: Callable[[Unit], T]) -> T:
        """
        Run *work* in one transaction, and return when it is durable.

        It is finished even if the caller goes away: what follows a commit must follow it.
        """
        running = asyncio.ensure_future(self._run(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(_unheard)
            raise

    async def _run(self, work: Callable[[Unit], T]) -> T:
        counted: Sequence[Change] = ()

        def body(conn: Connection) -> tuple[T, Unit]:
            nonlocal counted
            self._uncount(counted)  # it runs again, after a transaction that was lost
            counted = ()
            unit = self._unit(conn, self._load)
            result = work(unit)
            if unit.unplaced:  # a defect, and better refused than stored
                raise RuntimeError("a unit left tasks undecided: whoever hands over must settle")
            unit.flush()
            if self.db.dialect == "postgresql" and unit.changes:
                notify(conn, news_of(unit.changes, unit.now).told(self._origin))
            count_load(self._load, unit.changes)
            counted = unit.changes
            return result, unit

        try:
            result, unit = await self.db.write(body)
        except HopperError:
            if counted:  # and then not committed, or nobody knows
                self._uncount(counted)
                self.queues.doubt()
            raise
        self.queues.backlog.follow_quiet(unit.quiet)
        self._follow(unit.changes, unit.now)
        return result

    def _uncount(self, changes: Sequence[Change]) -> None:
        count_load(self._load, changes, -1)

    async def mutate(
        self, method: str, request: Message, response_type: type[M], effect: Callable[[Unit], M]
    ) -> M:
        """Run *effect* once for each `request_id`: a repeat gets the first answer."""

        def once(unit: Unit) -> M:
            if method in HOT:
                request_id = cast("Any", request).request_id
                repeat = unit.store.repeat(request_id)
                if repeat is not None:
                    require_same(repeat, method, request_id, digest_of(method, request))
                    return recall.answer(unit, method, repeat, response_type)
            return self.requests.once(unit.store.conn, method, request, response_type, lambda: effect(unit))

        return await self.run(once)

    async def read(self, look: Callable[[Unit], T]) -> T:
        """Run *look* on one consistent snapshot; it must change nothing."""
        return await self.db.read(lambda conn: look(self._unit(conn, self._load)))

    def _unit(self, conn: Connection, load: OpenCounts) -> Unit:
        return Unit(Store(conn), self._world(load), self.clock, self.clock.now())

    def _world(self, load: OpenCounts) -> World:
        return World(
            self.registry.current, self.policies, load, self._ids, self._turns, self.learned.strategies
        )

    def view(
        self, task: Task, view: TaskView.ValueType, *, show_token: bool = False, generation: int = 0
    ) -> pb.Task:
        """
        A task as callers see it, with what can be said of its waiting from memory alone; *generation*: if the task's
        own is not known yet.
        """
        directory = self.registry.current
        wait = None
        if task.state is TaskState.QUEUED:
            wait = why_waiting(
                task,
                Facts(
                    now=task.update_time,
                    blockers=(),
                    dead=(),
                    delegations=(),
                    halted_by=directory.halted_by(task.instance),
                    paused=directory.paused,
                ),
            )
        message = task_to_proto(task, view=view, wait=wait, show_token=show_token)
        if generation:
            message.generation = generation
        return message

    async def told_again(self, method: str, repeat: Repeat, response_type: type[M]) -> M:
        """The first answer to a call that the hot path has answered before."""
        return await self.read(lambda unit: recall.answer(unit, method, repeat, response_type))

    # ------------------------------------------------------------ other routers on the same database

    def _heard(self, line: str) -> None:
        news = News.heard(line, self._origin) if line else News(too_much=True)  # or something was missed
        if news is None:
            return
        if news.too_much:
            self.queues.doubt()
            self.hub.wake_all()
            self._start(self.refresh_policies())
            return
        for project, step in news.projects.items():
            self._load.by_project[project] += step
        for instance, step in news.instances.items():
            self._load.by_instance[instance] += step
        for queue, rank in news.served.items():
            self._turns.served(queue, rank)
        if any(step < 0 for step in news.instances.values()):
            self.room_made.fire()
        if news.policies:
            self._start(self.refresh_policies())
        self.hub.wake(news.ready)

    async def tell_of_policies(self) -> None:
        """Let other routers look at the policies again."""
        if self.db.dialect == "postgresql":
            line = News(policies=True).line(self._origin)
            await self.db.write(lambda conn: notify(conn, line))

    async def refresh_policies(self) -> None:
        """Put the stored policies in force; those that are known already change nothing."""
        for row in await self.db.read(lambda conn: Store(conn).policies()):
            self.policies.put(row.instance, row.version, load_policy(row.source) if row.source else None)
        await self.learn_if_asked()

    async def learn_if_asked(self) -> None:
        """Load what was learned, and look out for duplicates, if a policy in force goes by it."""
        self.lookout.wake()
        self.inquiries.opened.fire()  # another policy may ask others: then the adviser looks more often
        if "learned" in self.policies.strategies:
            await self.learned.wake()
            await self.learned.ready()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; storage trouble in it is made good by the next who does it."""

        async def run() -> None:
            with contextlib.suppress(HopperError):
                await work

        task = asyncio.ensure_future(run())
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def wait_for_advice(self, task: str) -> bool:
        """Wait until a task does not wait for advice any more, for as long as the policy says; whether that is so."""
        instance = task.rpartition("/tasks/")[0]
        policy = self.policies.in_force(instance, self.registry.current).policy
        left = policy.wait.total_seconds()
        while left > 0 and not self.stopping.is_set():
            found = await self.read(lambda unit: unit.tasks([task]))
            if not found or not waits_for_advice(found[0]):
                return bool(found)
            # Another router may be the one that asks, which this one does not hear of.
            if await self.inquiries.over(task, min(left, LOOK_EVERY)):
                return True
            left -= LOOK_EVERY
        return False

    @property
    def busy_projects(self) -> set[str]:
        """The projects that have open tasks, as this router counts them."""
        return {project for project, count in list(self._load.by_project.items()) if count > 0 and project}

    # ------------------------------------------------------------ after the commit

    def _follow_set(self, step: Step) -> None:
        """Do what has to follow what the hot path did."""
        self.queues.follow(step.counts, step.generation)
        if step.next_ready is not None:
            self._look_at(step.next_ready)
        ready = step.ready
        for place, count in step.ended.items():
            for queue in self._limited_queues(*place):
                ready[queue] += count
        self.hub.wake(ready)
        if step.ended:
            self.room_made.fire()

    def _follow(self, changes: Sequence[Change], now: datetime) -> None:
        """
        Do what has to follow what a unit did.

        Args:
            now: The unit's, by which the rows say what is ready. A time that has come since is still to be looked at.
        """
        if not changes:
            return
        self.inquiries.follow(changes)
        self.queues.follow(delta_of(changes), changes[0].after.generation)
        ready: Counter[str] = Counter()
        left = False
        for change in changes:
            before, after = change.before, change.after
            if claimable(after, now):
                if change.event is Event.READY and after.affinity:
                    self._tell_its_worker(after, now)
                    continue
                ready.update(queues(after))
            elif after.state is TaskState.QUEUED and after.ready_time > now:
                self._look_at(after.ready_time)
            if before is not None and _stopped_running(change) and not claimable(after, now):
                ready.update(self._limited_queues(before.project, before.instance))
                left = True
            left = left or after.state.final or after.state is TaskState.DELEGATED
        self.hub.wake(ready)
        if left:
            self.room_made.fire()

    def _tell_its_worker(self, task: Task, now: datetime) -> None:
        """Wake the worker that a task is left alone for; anybody, when its time for that is over."""
        for queue in queues(task):
            self.hub.wake_worker(queue, task.affinity)
            self._wake_at(queue, now + AFFINITY_GRACE)

    def _wake_at(self, queue: str, time: datetime) -> None:
        """Wake somebody who waits at a queue then, unless that is to be done before anyway."""
        now = self.clock.now()
        if now < self._wakes.get(queue, now) <= time:
            return
        self._wakes[queue] = time

        def wake() -> None:
            if self._wakes.get(queue) == time:
                del self._wakes[queue]
            self.hub.wake({queue: 1})

        delay = max((time - now).total_seconds(), 0.001)
        asyncio.get_running_loop().call_later(delay, wake)

    def _limited_queues(self, project: str, instance: str) -> list[str]:
        """The queues of tasks that ended there, where their limits may have kept others from running."""
        directory = self.registry.current
        limited, where = directory.projects.get(project), directory.instances.get(instance)
        if (limited and limited.has_limits) or (where and where.max_workers):
            return queues_at(project, instance)
        return []

    # ------------------------------------------------------------ what waits for its time

    async def promote(self) -> None:
        """Put the tasks whose time has come into their queues, and wake who waits for them."""
        now = self.clock.now()

        def work(conn: Connection) -> tuple[list[tuple[str, str]], datetime | None]:
            store = Store(conn)
            return store.promote(now, self._turns), store.next_ready_time()

        promoted, upcoming = await self.db.write(work)
        self._next_ready = None
        if upcoming is not None:
            self._look_at(upcoming)
        self.hub.wake(Counter(queue for places in promoted for queue in places if queue))

    def _look_at(self, time: datetime) -> None:
        """Promote at a time, unless that is to be done before anyway."""
        if self._next_ready is not None and self._next_ready <= time:
            return
        self._next_ready = time
        delay = (time - self.clock.now()).total_seconds()
        asyncio.get_running_loop().call_later(max(delay, 0.001), self._time_has_come)

    def _time_has_come(self) -> None:
        due = self._next_ready is not None and self._next_ready <= self.clock.now()
        if due and not self.stopping.is_set():
            self._start(self.promote())

    async def promote_due(self) -> None:
        """Promote, if anything is known to be due."""
        if self._next_ready is not None and self._next_ready <= self.clock.now():
            await self.promote()

    # ------------------------------------------------------------ claiming

    def is_simple(self, queue: str) -> bool:
        """Whether nothing but readiness keeps tasks of a queue from a worker, so that claims may be gathered."""
        directory = self.registry.current
        project = directory.projects.get(queue)
        return (
            project is not None
            and not project.has_limits
            and not project.paused
            and not (directory.halted or directory.with_members or directory.instance_limits)
            and directory.instance_of_project.get(queue) not in directory.federated
        )

    async def claim(
        self,
        queue: str,
        attempt: Callable[[], Awaitable[T | None]],
        *,
        wait: timedelta,
        empty: T,
        most: int = 1,
        worker: str = "",
    ) -> T:
        """
        Claim by *attempt* what is ready, at *most* so many; if nothing is (None), wait for up to *wait* until
        something is, or is for that *worker*.
        """
        if not wait:
            await self.promote_due()
            claimed = await attempt()
            return empty if claimed is None else claimed
        end = self.clock.monotonic() + wait.total_seconds()
        while True:
            await self.promote_due()
            waiter, looks_again, found = self.hub.waiting(queue, most, worker), False, False
            try:
                claimed = await attempt()
                if claimed is not None:
                    found = True
                    return claimed
                left = end - self.clock.monotonic()
                if left <= 0 or self.stopping.is_set():
                    return empty
                await asyncio.wait([waiter], timeout=left)
                if not waiter.done():
                    return empty
                looks_again = True
            finally:
                self.hub.leave(queue, waiter, looks_again=looks_again, found=found)

    async def claim_by_unit(
        self,
        wanted: ClaimRequest,
        *,
        method: str,
        request: Message,
        response_type: type[M],
        answer: Callable[[Unit, list[Task]], M],
    ) -> M | None:
        """
        Claim by a unit of work; None: nothing is ready.

        Only an answer with tasks is remembered under the request's id, so that an empty one may be asked again.
        """

        look_again: datetime | None = None

        def effect(unit: Unit) -> M:
            nonlocal look_again
            tasks, look_again = working.claim_ready(unit, wanted)
            if not tasks:
                raise _NothingReady
            return answer(unit, tasks)

        try:
            return await self.mutate(method, request, response_type, effect)
        except _NothingReady:
            return None
        finally:
            if look_again is not None:
                self._wake_at(wanted.queue, look_again)


def _unheard(done: asyncio.Future[Any]) -> None:
    """Whoever wanted to know has gone: a refusal is nobody's news, a defect is."""
    error = None if done.cancelled() else done.exception()
    if error is not None and not isinstance(error, HopperError | _NothingReady):
        log.error("a unit failed whose caller had gone", exc_info=error)


def _stopped_running(change: Change) -> bool:
    return change.before is not None and (
        change.event is Event.COMPLETE or change.before.state is TaskState.RUNNING is not change.after.state
    )
