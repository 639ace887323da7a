"""
Follows the router's tasks while any of them is with a peer or has come from one, and tells the desk what becomes of
them.

    WatchTasks ── label `hopper.delegation` ──► came from a peer: it runs, how far it is, how it ended (`concluding`)
               └─ in a peer's instance, over ─► is with a peer, and nobody wants it any more: the peer is told

Where it stands in the router's log is written down with what it told the desk, so that it goes on there. Some of it may
come twice, which the desk does not mind. Where the log does not go back so far, all open hand-overs are compared with
their tasks instead.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
import structlog

from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_common.errors import HopperError, Overloaded, ResumeTooOld, StorageFull, StorageUnavailable
from hopper_common.timestamps import from_proto
from hopper_federation.delegation import positions
from hopper_federation.delegation.bodies import DELEGATION
from hopper_federation.delegation.calls import Followed, passes
from hopper_federation.delegation.claims import ENDED, Claims
from hopper_federation.delegation.concluding import Concluder
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Delegation, Role, TaskNews
from hopper_federation.delegation.presence import Places
from hopper_federation.store_sql import Federation

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub

log = structlog.get_logger(__name__)

NAME: Final = "tasks"
_NOWHERE: Final = "instances/none"
"""An instance without tasks: a snapshot of it says no more than where the log ends."""

AGAIN_AFTER: Final = 0.5
LONGEST_PAUSE: Final = 30.0
IDLE_LOOK: Final = 5.0
SAVE_EVERY: Final = 1000
_AT_ONCE: Final = 64
_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)
_AT_WORK: Final = frozenset({Task.STATE_RUNNING, Task.STATE_INPUT_REQUIRED})


@dataclass(slots=True)
class _Told:
    """A place in the log, and whether what was said there has been done."""

    generation: int
    done: bool = False


class Watcher:
    """Runs beside the server."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        desks: Desks,
        claims: Claims,
        places: Places,
        concluder: Concluder,
        federation: Federation,
    ) -> None:
        self._tasks: TaskServiceAsyncStub = TaskServiceStub(channel)
        self._desks = desks
        self._claims = claims
        self._places = places
        self._concluder = concluder
        self._federation = federation
        self._begun: dict[str, datetime] = {}  # when work on it began, as far as that was seen
        self._order: deque[_Told] = deque()
        self._last: dict[str, asyncio.Task[None]] = {}
        self._passed_over = 0
        self._compared = False
        self._instances: set[str] = set()  # of what is with peers, where the registry has not said yet
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Follow for ever, whenever there is something to follow."""
        while True:
            try:
                commits = self._federation.committed.count
                if await self._anything_open():
                    await self._follow()
                else:
                    await self._until_commit(commits)
            except HopperError as error:
                log.info("the router's tasks are not followed", reason=error.reason)
                await asyncio.sleep(AGAIN_AFTER)

    async def _until_commit(self, commits: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_LOOK):
                await self._federation.committed.wait(after=commits)

    async def _anything_open(self) -> bool:
        return await self._desks.read(lambda rows: bool(rows.open_peers()))

    # Following.

    async def _follow(self) -> None:
        """Follow until nothing is open any more."""
        position = await self._federation.read(lambda store: positions.read(store.conn, NAME))
        compare = not position or not self._compared
        if not position:
            position = await self._head()
        self._order.clear()
        self._last.clear()
        try:
            await self._follow_from(position, compare=compare)
        except* HopperError as errors:
            refused = _first(errors)
        else:
            return
        raise refused

    async def _follow_from(self, position: int, *, compare: bool) -> None:
        async with asyncio.TaskGroup() as group:
            if compare:
                await self._compare(group)
            reading = group.create_task(self._read(group, position))
            ending = group.create_task(self._until_nothing_open())
            await asyncio.wait([reading, ending], return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if not reading.done():
                reading.cancel()
                await self._forget_position()

    async def _until_nothing_open(self) -> None:
        open_now = True
        while open_now:
            await asyncio.sleep(IDLE_LOOK)
            open_now = await self._anything_open()

    async def _read(self, group: asyncio.TaskGroup, position: int) -> None:
        request = tsvc.WatchTasksRequest(after_generation=position)
        stream = Followed(self._tasks.WatchTasks(request))
        try:
            async for message in stream:
                await self._hear(group, message)
        except ResumeTooOld:
            await self._forget_position()
        except HopperError as error:
            log.info("the router's tasks are not followed", reason=error.reason)
            await asyncio.sleep(AGAIN_AFTER)
        finally:
            stream.cancel()

    async def _forget_position(self) -> None:
        await self._desks.write(lambda sitting: positions.save(sitting.store.conn, NAME, 0))

    async def _hear(self, group: asyncio.TaskGroup, message: Any) -> None:
        task: Task = message.change.task if message.HasField("change") else message.task
        about = self._about(task)
        if not about:
            await self._pass_over(message.generation)
            return
        told = _Told(message.generation)
        self._order.append(told)
        await self._room.acquire()
        self._begin(group, about, lambda: self._news(about, task), told)

    def _begin(
        self, group: asyncio.TaskGroup, about: str, news: Callable[[], Awaitable[None]], told: _Told | None
    ) -> None:
        """Tell news, after what there was of the same hand-over before."""
        before = self._last.get(about)
        self._last[about] = group.create_task(self._tell(about, news, told, before))

    async def _pass_over(self, generation: int) -> None:
        """What is nobody's news moves the place in the log, and is written down now and then."""
        if self._order and self._order[-1].done:
            self._order[-1].generation = generation
        else:
            self._order.append(_Told(generation, done=True))
        self._passed_over += 1
        if self._passed_over >= SAVE_EVERY:
            self._passed_over = 0
            await self._desks.write(self._save_position)

    def _about(self, task: Task) -> str:
        """Whose news it is: those of one hand-over are told one after the other; empty: nobody's."""
        instance = task.name.partition("/tasks/")[0]
        if instance not in self._instances and not self._places.peer_at(instance):
            return task.spec.labels.get(DELEGATION, "")
        if task.state in ENDED:
            return task.name
        # Claimed is not begun, there: what counts is what the peer says.
        return task.spec.labels.get(DELEGATION, "") if task.HasField("progress") else ""

    async def _tell(
        self,
        about: str,
        news: Callable[[], Awaitable[None]],
        told: _Told | None,
        before: "asyncio.Task[None] | None",
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._undisturbed(about, news)
            if told is not None:
                told.done = True
        finally:
            if told is not None:
                self._room.release()
            if self._last.get(about) is asyncio.current_task():
                del self._last[about]

    async def _undisturbed(self, about: str, news: Callable[[], Awaitable[None]]) -> None:
        """Until the router and this Hopper's database have answered: news of others do not wait for that."""
        pause = AGAIN_AFTER
        while True:
            try:
                await news()
            except HopperError as error:
                say = log.info if passes(error) or isinstance(error, _PUT_OFF) else log.error
                say("news of a task wait", about=about, reason=error.reason)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    async def _news(self, about: str, task: Task) -> None:
        if about == task.name:
            await self._with_peer(task)
        elif task.state in ENDED or task.state in _AT_WORK:
            known = await self._submitted(about)
            if known is not None:
                await self._from_peer(known, task)

    async def _submitted(self, delegation: str) -> Delegation | None:
        """
        What came from a peer, once it is known which task was made of it: the router may be faster than this Hopper's
        own database. None: nothing has come, or nothing is made of it.
        """
        while True:
            commits = self._federation.committed.count
            known = await self._desks.read(lambda rows: rows.delegation(Role.IN, delegation))
            if known is None or known.task or not known.state.open:
                return known
            await self._federation.committed.wait(after=commits)

    def _save_position(self, sitting: Sitting) -> None:
        """Up to where everything has been done."""
        reached = 0
        while self._order and self._order[0].done:
            reached = self._order.popleft().generation
        if reached:
            positions.save(sitting.store.conn, NAME, reached)

    # What becomes of tasks.

    async def _with_peer(self, task: Task) -> None:
        """A task that is with a peer is over here: if the peer has not been heard of its end, nobody wants that."""
        why = task.failure.message or task.failure.reason or "it is over where it came from"

        def work(sitting: Sitting) -> None:
            known = sitting.rows.of_task(task.name)
            if known is not None and known.role is Role.OUT and known.state.open:
                sitting.desk.cancel(known.id, why, by_router=True)
            self._save_position(sitting)

        await self._desks.write(work)

    async def _from_peer(self, known: Delegation, task: Task) -> None:
        if task.name == known.task and task.state in ENDED:
            news = await self._concluder.conclude(known, self._begun.pop(known.id, None))
        elif task.state in _AT_WORK:
            self._begun.setdefault(known.id, from_proto(task.claim.start_time))
            news = TaskNews(running=True, fraction=task.progress.fraction, message=task.progress.message)
        else:
            return
        if news is None:
            return

        def work(sitting: Sitting) -> None:
            sitting.desk.news(known.id, news)
            self._save_position(sitting)

        await self._desks.write(work)

    # Comparing.

    async def _compare(self, group: asyncio.TaskGroup) -> None:
        """Look at the task of each open hand-over, and at those that are being made."""
        held = await self._desks.read(
            lambda rows: [each for peer in rows.open_peers() for each in rows.open_of(peer)]
        )
        self._instances = {each.task.partition("/tasks/")[0] for each in held if each.role is Role.OUT}
        for each in held:
            about = each.task if each.role is Role.OUT else each.id
            self._begin(group, about, partial(self._look, each), None)
        self._compared = True

    async def _look(self, known: Delegation) -> None:
        """What has become of the task of a hand-over."""
        if known.role is Role.OUT:
            task = await self._claims.task(known.task)
            if task is not None and task.state in ENDED:
                await self._with_peer(task)
            return
        submitted = await self._submitted(known.id)
        task = await self._claims.task(submitted.task) if submitted is not None and submitted.task else None
        if task is not None and submitted is not None:
            await self._from_peer(submitted, task)

    async def _head(self) -> int:
        request = tsvc.WatchTasksRequest(parent=_NOWHERE)
        stream = Followed(self._tasks.WatchTasks(request))
        try:
            async for message in stream:
                if message.WhichOneof("event") == "snapshot_complete":
                    return int(message.generation)
        finally:
            stream.cancel()
        raise RuntimeError("the router's watch ended before its snapshot did")


def _first(errors: ExceptionGroup[HopperError]) -> HopperError:
    """One of those that came together."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
