"""
Bringing home what workers have done: nothing is given up while it may still be accepted.

An end is sent until the router has answered for it, through lost connections and restarts; it counts once, because
failures and releases keep their `request_id`, and a completion is known by its fencing token and its result. It is
over when it was stored, or when its token is stale.

`Outbox` holds the ends on their way; `deliver` brings them home in calls, `hopper_client.stream` on a stream.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from hopper.router.v1.work_service_pb2 import (
    ClaimResult,
    CompleteTasksRequest,
    Completion,
    FailTaskRequest,
    ReleaseTaskRequest,
)
from hopper_client.claims import Held
from hopper_client.errors import from_item, will_pass
from hopper_client.policy import Backoff, with_request_id
from hopper_common.errors import HopperError, ResourceExhausted

if TYPE_CHECKING:  # stubs of grpc.aio are types only
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_COMPLETIONS = 1000
MOST_BATCH_BYTES = 3 * 1024 * 1024  # the contract allows 4 MiB
MOST_CALLS = 50
_OVERHEAD_BYTES = 200


async def until_answered(call: Callable[[], Awaitable[T]], what: str) -> T:
    """
    Make a call again and again until it is answered.

    Args:
        call: Sends the same request, with the same `request_id`, each time.
        what: For the log.

    Raises:
        HopperError: An answer that will not change.
    """
    backoff = Backoff()
    while True:
        try:
            return await call()
        except HopperError as error:
            if not will_pass(error):
                raise
            pause = backoff.next(error.retry_after.total_seconds() if error.retry_after else 0.0)
            log.warning("%s: no answer, trying again in %.1f s: %s", what, pause, error.message)
        await asyncio.sleep(pause)


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """
    How a claim ends.

    Attributes:
        result: What it yielded, None if it did not succeed.
        request: What is said otherwise; the same each time it is sent.
    """

    held: Held
    result: bytes | None
    request: FailTaskRequest | ReleaseTaskRequest | None = None

    @classmethod
    def by(cls, held: Held, request: FailTaskRequest | ReleaseTaskRequest) -> "Ending":
        """Other than with success."""
        return cls(held, None, with_request_id(request))


class Outbox:
    """
    Ends on their way: those that wait while others are under way travel together.

    Args:
        changed: Set when something was put in.
        answered: Told what became of each: stored, or refused with that error.
    """

    def __init__(
        self, changed: asyncio.Event, answered: Callable[[Ending, HopperError | None], None]
    ) -> None:
        self._changed = changed
        self._answered = answered
        self._wake = asyncio.Event()
        self._successes: deque[Ending] = deque()
        self._others: deque[Ending] = deque()

    def __len__(self) -> int:
        return len(self._successes) + len(self._others)

    def put(self, ending: Ending) -> None:
        """Send it."""
        (self._others if ending.result is None else self._successes).append(ending)
        self._wake.set()
        self._changed.set()

    def put_back(self, endings: Sequence[Ending]) -> None:
        """Send these before all others: they were sent, and nobody knows whether they came through."""
        for ending in reversed(endings):
            (self._others if ending.result is None else self._successes).appendleft(ending)
        self._wake.set()
        self._changed.set()

    def next_successes(self) -> list[Ending]:
        """As many as fit into one message."""
        batch: list[Ending] = []
        size = 0
        while self._successes and len(batch) < MOST_COMPLETIONS:
            size += len(self._successes[0].result or b"") + _OVERHEAD_BYTES
            if batch and size > MOST_BATCH_BYTES:
                break
            batch.append(self._successes.popleft())
        return batch

    def next_other(self) -> Ending | None:
        """A failure or a release, if there is one."""
        return self._others.popleft() if self._others else None

    def answer(self, endings: Sequence[Ending], results: Sequence[ClaimResult]) -> None:
        """Take in what became of them."""
        for ending, result in zip(endings, results, strict=True):
            if not result.HasField("error"):
                self._answered(ending, None)
            else:
                self.refused(ending, from_item(result.error))

    def refused(self, ending: Ending, error: HopperError) -> None:
        """It was not accepted: now, or ever."""
        if will_pass(error) or isinstance(error, ResourceExhausted):
            asyncio.get_running_loop().call_later(Backoff(first=0.2).next(), self.put, ending)
        else:
            self._answered(ending, error)

    # Without a stream.

    async def deliver(self, work: "WorkServiceAsyncStub") -> NoReturn:
        """Send what waits in calls of its own, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while len(self):
                others = [ending for ending in (self.next_other() for _ in range(MOST_CALLS)) if ending]
                calls = [self._call(work, ending) for ending in others]
                await asyncio.gather(self._complete(work, self.next_successes()), *calls)

    async def try_once(self, work: "WorkServiceAsyncStub", timeout: float) -> None:
        """Send what waits once, and not longer than *timeout* seconds; the worker is being cancelled."""
        try:
            async with asyncio.timeout(timeout):
                while batch := self.next_successes():
                    response = await work.CompleteTasks(completion_of(batch), timeout=timeout)
                    self.answer(batch, response.results)
                while ending := self.next_other():
                    await self._call(work, ending)
        except (HopperError, TimeoutError) as error:
            log.warning("results were not delivered, their leases have to run out: %s", error)

    async def _complete(self, work: "WorkServiceAsyncStub", batch: Sequence[Ending]) -> None:
        if not batch:
            return
        request = completion_of(batch)
        try:
            response = await until_answered(lambda: work.CompleteTasks(request), "completing tasks")
        except asyncio.CancelledError:
            self.put_back(batch)  # others go on with it
            raise
        except HopperError as error:
            if len(batch) == 1:
                self._answered(batch[0], error)
                return
            # One bad item must not cost the others their results.
            for ending in batch:
                await self._complete(work, [ending])
            return
        self.answer(batch, response.results)

    async def _call(self, work: "WorkServiceAsyncStub", ending: Ending) -> None:
        request = ending.request
        try:
            if isinstance(request, FailTaskRequest):
                await until_answered(lambda: work.FailTask(request), "reporting a failure")
            elif isinstance(request, ReleaseTaskRequest):
                await until_answered(lambda: work.ReleaseTask(request), "releasing a task")
        except asyncio.CancelledError:
            self.put_back([ending])
            raise
        except HopperError as error:
            self._answered(ending, error)
        else:
            self._answered(ending, None)


def completion_of(batch: Iterable[Ending]) -> CompleteTasksRequest:
    """The request that completes these, fit to be repeated."""
    completions = [Completion(claim=ending.held.ref, result=ending.result or b"") for ending in batch]
    return CompleteTasksRequest(completions=completions, request_id=str(uuid.uuid4()))
