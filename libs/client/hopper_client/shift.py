"""
One run of a worker: the tasks in its hands, from their claim to their end.

Every claimed task has a coroutine of its own (`_work`), which leaves in one of four ways: the result is
stored, the failure is stored, the claim is lost, or the run was cancelled and the claim is given back.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from hopper.router.v1.task_pb2 import Failure, Task
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    ClaimTasksRequest,
    Completion,
    FailTaskRequest,
    ReleaseTaskRequest,
)
from hopper_client.claims import Claims, Held
from hopper_client.client import AsyncHopper
from hopper_client.context import TaskContext, TaskFailed
from hopper_client.delivery import Completions, until_answered
from hopper_client.errors import is_lost, will_pass
from hopper_client.policy import Backoff, with_request_id
from hopper_common.errors import HopperError, Internal, WrongState

log = logging.getLogger(__name__)

Handler = Callable[[TaskContext], Awaitable[bytes | str | None]]

MOST_RESULT_BYTES = 1024 * 1024
RELEASE_TIMEOUT = 2.0


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
    The tasks of one run. `claims.keep()` and `completions.deliver()` have to run beside it.

    Args:
        patient: Whether claiming waits also for what may never pass: a Hopper that has not answered yet, a
            paused queue.
    """

    def __init__(self, hopper: AsyncHopper, handler: Handler, lease: timedelta, *, patient: bool) -> None:
        self.stats = WorkerStats()
        self.claims = Claims(hopper.work, lease)
        self.completions = Completions(hopper.work)
        self._hopper = hopper
        self._handler = handler
        self._patient = patient
        self._answered = False
        self._running: set[Held] = set()
        self._freed = asyncio.Event()

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._running)

    async def wait_below(self, slots: int) -> None:
        """Return when fewer than so many are taken."""
        while self.running >= slots:
            self._freed.clear()
            await self._freed.wait()

    # Claiming.

    async def claim(self, request: ClaimTasksRequest) -> Sequence[Task]:
        """
        Send one claim until it is answered. It carries one `request_id`, so that claims whose answer was lost
        come with the next.

        Raises:
            HopperError: The queue cannot be worked on.
        """
        backoff = Backoff()
        said = ""
        while True:
            try:
                response = await self._hopper.work.ClaimTasks(request)
            except HopperError as error:
                if not self._is_worth_waiting(error):
                    raise
                if error.reason != said:  # once, not every few seconds of a long night
                    log.warning("no tasks can be claimed from %s now: %s", request.queue, error.message)
                said = error.reason
                told = error.retry_after.total_seconds() if error.retry_after else 0.0
                await asyncio.sleep(backoff.next(at_least=told))
            else:
                self._answered = True
                return response.tasks

    def _is_worth_waiting(self, error: HopperError) -> bool:
        if will_pass(error):
            return self._patient or self._answered
        return self._patient and isinstance(error, WrongState | Internal)

    async def give_back(self, task: Task) -> None:
        """Release a task that nobody has begun."""
        await self._release(ClaimRef(task=task.name, fencing_token=task.claim.fencing_token))

    # Working.

    def begin(self, group: asyncio.TaskGroup, task: Task, claimed_at: float) -> None:
        """
        Work on a task.

        Args:
            claimed_at: In the loop's time, not later than the claim was made.
        """
        held = self.claims.add(task, claimed_at)
        self._running.add(held)
        group.create_task(self._work(held))

    async def _work(self, held: Held) -> None:
        try:
            outcome = await self._handle(held)
            if outcome is None:
                self.stats.lost += 1
            else:
                await self._end(held, outcome)
        except asyncio.CancelledError:
            await self._release(held.ref)
            raise
        finally:
            self.claims.remove(held)
            self._running.discard(held)
            self._freed.set()

    async def _handle(self, held: Held) -> bytes | Failure | None:
        """What the handler made of it; None: the claim was lost meanwhile."""
        try:
            outcome = await self._call_handler(held)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            outcome = Failure(reason="HANDLER_ERROR", message="CancelledError")
        if _is_cancelled():
            # The handler would not be stopped. What it returned cannot be delivered any more.
            raise asyncio.CancelledError
        return None if held.lost.is_set() else outcome

    async def _call_handler(self, held: Held) -> bytes | Failure:
        try:
            # A task of its own, so that a lost claim cancels the handler and nothing else.
            held.handler = asyncio.ensure_future(self._handler(TaskContext(self._hopper, self.claims, held)))
            return _as_result(await held.handler)
        except TaskFailed as error:
            return Failure(reason=error.reason, message=error.message, permanent=error.permanent)
        except Exception as error:
            # Only where it happened: what exceptions say quotes data, and data has no business in a log.
            log.error(
                "the handler failed on %s: %s at %s", held.task.name, type(error).__name__, _place(error)
            )
            return Failure(reason="HANDLER_ERROR", message=type(error).__name__)

    # Ending.

    async def _end(self, held: Held, outcome: bytes | Failure) -> None:
        try:
            if isinstance(outcome, Failure):
                request = with_request_id(FailTaskRequest(claim=held.ref, failure=outcome))
                await until_answered(lambda: self._hopper.work.FailTask(request), "reporting a failure")
                self.stats.failed += 1
            else:
                await self.completions.complete(Completion(claim=held.ref, result=outcome))
                self.stats.succeeded += 1
        except HopperError as error:
            self.stats.lost += 1
            level = logging.WARNING if is_lost(error) else logging.ERROR
            log.log(level, "the end of %s was refused: %s: %s", held.task.name, error.reason, error.message)

    async def _release(self, claim: ClaimRef) -> None:
        request = with_request_id(ReleaseTaskRequest(claim=claim, reason="its worker stopped"))
        try:
            await self._hopper.work.ReleaseTask(request, timeout=RELEASE_TIMEOUT)
            self.stats.released += 1
        except HopperError as error:
            self.stats.lost += 1
            log.warning("%s was not released, its lease has to run out: %s", claim.task, error.message)


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
