"""
One run of a worker: the tasks in its hands, from their claim to their end.

Every task that is begun has a coroutine of its own (`_work`), which leaves in one of four ways: the result is put into
the outbox, the failure is, the claim is lost, or the run was cancelled and the claim is given back. A claim is kept
until its end has been answered; its slots are free as soon as the handler is through.

How tasks come and ends go is not known here: see `hopper_client.stream` and `hopper_client.polling`.
"""

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from hopper.router.v1.task_pb2 import Failure, Task
from hopper.router.v1.work_service_pb2 import ClaimRef, FailTaskRequest, ReleaseTaskRequest
from hopper_client.claims import Claims, Held
from hopper_client.client import AsyncHopper
from hopper_client.context import TaskContext, TaskFailed
from hopper_client.delivery import Ending, Outbox
from hopper_client.errors import is_lost, will_pass
from hopper_client.policy import Backoff, with_request_id
from hopper_common.errors import HopperError, Internal, WrongState

log = logging.getLogger(__name__)

Handler = Callable[[TaskContext], Awaitable[bytes | str | None]]

MOST_RESULT_BYTES = 1024 * 1024
MOST_UNANSWERED = 2000
"""Ends on their way, beyond which no more tasks are taken."""
RELEASE_TIMEOUT = 5.0


@dataclass(slots=True)
class WorkerStats:
    """
    What became of the tasks of one run.

    Attributes:
        lost: Claims that ran out or were cancelled from outside, and ends that the router refused.
        released: Given back unfinished, because the worker stopped.
    """

    claimed: int = 0
    succeeded: int = 0
    failed: int = 0
    lost: int = 0
    released: int = 0


class Shift:
    """
    The tasks of one run.

    Args:
        slots: How many tasks run at once, if each takes one.
        stopping: Set when no more tasks are wanted; those that still come are given back.
        patient: Whether to wait also for what may never pass: a Hopper that has not answered yet, a paused queue.

    Attributes:
        group: Where the tasks run; set before the first is taken.
        changed: Set when there may be something to say: ends, leases that are due, free slots.
        free: Slots that are.
        running: Tasks that are being worked on.
    """

    group: asyncio.TaskGroup

    def __init__(
        self,
        hopper: AsyncHopper,
        handler: Handler,
        lease: timedelta,
        slots: int,
        *,
        stopping: asyncio.Event,
        patient: bool,
    ) -> None:
        self.stats = WorkerStats()
        self.changed = asyncio.Event()
        self.claims = Claims(hopper.work, lease, self.changed)
        self.outbox = Outbox(self.changed, self._answered)
        self.free = slots
        self.running = 0
        self.stopping = stopping
        self._slots = slots
        self._hopper = hopper
        self._handler = handler
        self._patient = patient
        self._has_answered = False
        self._backlog: deque[Held] = deque()
        self._coming_back: deque[tuple[Held, asyncio.Future[None]]] = deque()
        self._freed = asyncio.Event()

    @property
    def in_hand(self) -> int:
        """Claims that have not ended, as far as is known."""
        return len(self.claims)

    @property
    def room(self) -> int:
        """How many slots' worth of tasks may be asked for."""
        if self._backlog or self._coming_back or self.in_hand - self.running >= MOST_UNANSWERED:
            return 0
        return self.free

    async def wait_changed(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds that hangs on slots, or on what is in hand."""
        while not condition():
            self._freed.clear()
            await self._freed.wait()

    # Trouble with claiming.

    def answered(self) -> None:
        """A Hopper is there, and the queue can be worked on."""
        self._has_answered = True

    def pause_after(self, error: HopperError, backoff: Backoff, queue: str, said: str) -> float:
        """
        Seconds to wait before the next try.

        Args:
            said: The reason of the failure before this one, which is not logged again.

        Raises:
            HopperError: The one given: the queue cannot be worked on.
        """
        if not self._is_worth_waiting(error):
            raise error
        if error.reason != said:  # once, not every few seconds of a long night
            log.warning("no tasks can be claimed from %s now: %s", queue, error.message)
        return backoff.next(at_least=error.retry_after.total_seconds() if error.retry_after else 0.0)

    def _is_worth_waiting(self, error: HopperError) -> bool:
        if will_pass(error):
            return self._patient or self._has_answered
        return self._patient and isinstance(error, WrongState | Internal)

    # Taking.

    def take(self, tasks: Iterable[Task], claimed_at: float) -> None:
        """
        Work on tasks: now, or as soon as there are slots for them.

        Args:
            claimed_at: In the loop's time, not later than the claims were made.
        """
        for task in tasks:
            self.stats.claimed += 1
            held = self.claims.add(task, claimed_at)
            if self.stopping.is_set():
                self._give_back(held)
            elif self._backlog or not self._fits(held):
                self._backlog.append(held)
            else:
                self._begin(held)

    def _fits(self, held: Held) -> bool:
        return self.free >= min(held.slots, self._slots)

    def _begin(self, held: Held) -> None:
        self.running += 1
        self._seize(held)
        held.runner = self.group.create_task(self._work(held))

    def _seize(self, held: Held) -> None:
        self.free -= held.slots
        held.has_slots = True

    def _yield(self, held: Held) -> None:
        """Let others have the slots: first those that had them before."""
        if not held.has_slots:
            return
        self.free += held.slots
        held.has_slots = False
        while self._coming_back and self._fits(self._coming_back[0][0]):
            back, future = self._coming_back.popleft()
            if not future.done():
                self._seize(back)
                future.set_result(None)
        while self._backlog and not self._coming_back and self._fits(self._backlog[0]):
            self._next_of_backlog()
        self.changed.set()
        self._freed.set()

    def _next_of_backlog(self) -> None:
        held = self._backlog.popleft()
        if held.is_lost:
            self._gone(held)
        elif self.stopping.is_set():
            self._give_back(held)
        else:
            self._begin(held)

    def _give_back(self, held: Held) -> None:
        """Give a claim back that no handler has seen."""
        request = ReleaseTaskRequest(claim=held.ref, reason="its worker stopped", not_begun=True)
        self.outbox.put(Ending.by(held, request))

    @asynccontextmanager
    async def away(self, held: Held) -> AsyncIterator[None]:
        """Within, the slots of a task are for others; afterwards it waits until it has them back."""
        self._yield(held)
        yield
        if self._fits(held) and not self._coming_back:
            self._seize(held)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._coming_back.append((held, future))
        await future

    # Working.

    async def _work(self, held: Held) -> None:
        try:
            outcome = await self._call_handler(held)
            if _is_cancelled() and not held.is_lost:
                # The handler would not be stopped. What it returned cannot be delivered any more.
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            if not held.is_lost:
                await self.release_now(held)
                raise
        finally:
            self.running -= 1
            self._yield(held)
        if held.is_lost:
            self._gone(held)
        elif isinstance(outcome, bytes):
            self.outbox.put(Ending(held, outcome))
        else:
            self.outbox.put(Ending.by(held, FailTaskRequest(claim=held.ref, failure=outcome)))

    async def _call_handler(self, held: Held) -> bytes | Failure:
        try:
            return _as_result(await self._handler(TaskContext(self._hopper, self, held)))
        except TaskFailed as error:
            return Failure(reason=error.reason, message=error.message, permanent=error.permanent)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return Failure(reason="HANDLER_ERROR", message="CancelledError")
        except Exception as error:
            if held.is_lost:
                return b""  # it was cancelled, and this is what it made of that
            # Only where it happened: what exceptions say quotes data, and data has no business in a log.
            log.error(
                "the handler failed on %s: %s at %s", held.task.name, type(error).__name__, _place(error)
            )
            return Failure(reason="HANDLER_ERROR", message=type(error).__name__)

    # Ending.

    def _answered(self, ending: Ending, error: HopperError | None) -> None:
        if error is not None:
            level = logging.WARNING if is_lost(error) else logging.ERROR
            log.log(
                level,
                "the end of %s was refused: %s: %s",
                ending.held.task.name,
                error.reason,
                error.message,
            )
            self.stats.lost += 1
        elif ending.result is not None:
            self.stats.succeeded += 1
        elif isinstance(ending.request, FailTaskRequest):
            self.stats.failed += 1
        else:
            self.stats.released += 1
        self._forget(ending.held)

    def _gone(self, held: Held) -> None:
        self.stats.lost += 1
        self._forget(held)

    def _forget(self, held: Held) -> None:
        self.claims.remove(held)
        self.changed.set()
        self._freed.set()

    async def abandon(self) -> None:
        """The run was cancelled: deliver what is done, give back what was not begun; once, and not for long."""
        while self._backlog:
            self._give_back(self._backlog.popleft())
        await self.outbox.try_once(self._hopper.work, RELEASE_TIMEOUT)

    async def release_now(self, held: Held) -> None:
        """Give a claim back; if that cannot be done at once, its lease has to run out."""
        claim = ClaimRef(task=held.task.name, fencing_token=held.ref.fencing_token)
        request = with_request_id(ReleaseTaskRequest(claim=claim, reason="its worker stopped"))
        try:
            await self._hopper.work.ReleaseTask(request, timeout=RELEASE_TIMEOUT)
            self.stats.released += 1
        except HopperError as error:
            self.stats.lost += 1
            log.warning("%s was not released, its lease has to run out: %s", claim.task, error.message)
        finally:
            self._forget(held)


def _is_cancelled() -> bool:
    """Whether somebody cancels the coroutine this runs in, and not just what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _as_result(value: object) -> bytes | Failure:
    if value is None:
        return b""
    result = value.encode() if isinstance(value, str) else value
    if not isinstance(result, bytes):
        raise TypeError(f"a handler returns bytes, str or None, not {type(value).__name__}")
    if len(result) > MOST_RESULT_BYTES:
        message = (
            f"the result has {len(result)} bytes of at most {MOST_RESULT_BYTES}: return where it is instead"
        )
        return Failure(reason="RESULT_TOO_LARGE", message=message, permanent=True)
    return result


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
