"""
Bringing home what workers have done: nothing is given up while it may still be accepted.

A result is sent until the router has answered for it, through lost connections and restarts, with one
`request_id` so that it counts once. It ends when it was stored, or when its token is stale.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

from hopper.router.v1.work_service_pb2 import ClaimResult, CompleteTasksRequest, Completion
from hopper_client.errors import from_item, will_pass
from hopper_client.policy import Backoff, with_request_id
from hopper_common.errors import HopperError

if TYPE_CHECKING:  # stubs of grpc.aio are types only
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_COMPLETIONS = 1000
MOST_BATCH_BYTES = 3 * 1024 * 1024  # the contract allows 4 MiB


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


class _Waiting(NamedTuple):
    completion: Completion
    answer: "asyncio.Future[None]"


class Completions:
    """
    Successes on their way: those that come while a call is under way travel together in the next.
    """

    def __init__(self, work: "WorkServiceAsyncStub") -> None:
        self._work = work
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()

    async def complete(self, completion: Completion) -> None:
        """
        End a claim with success; returns when that is durable.

        Raises:
            HopperError: The router refused it.
        """
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(completion, answer))
        self._wake.set()
        await answer

    async def deliver(self) -> NoReturn:
        """Send what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._send(self._next_batch())

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        size = batch[0].completion.ByteSize()
        while self._waiting and len(batch) < MOST_COMPLETIONS:
            size += self._waiting[0].completion.ByteSize()
            if size > MOST_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        request = with_request_id(CompleteTasksRequest(completions=[each.completion for each in batch]))
        try:
            response = await until_answered(lambda: self._work.CompleteTasks(request), "completing tasks")
        except HopperError as error:
            await self._refused(batch, error)
            return
        for each, result in zip(batch, response.results, strict=True):
            self._answer(each, result)

    async def _refused(self, batch: list[_Waiting], error: HopperError) -> None:
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        # One bad item must not cost the others their results.
        for each in batch:
            await self._send([each])

    def _answer(self, each: _Waiting, result: ClaimResult) -> None:
        if not result.HasField("error"):
            if not each.answer.done():
                each.answer.set_result(None)
            return
        error = from_item(result.error)
        if will_pass(error):
            self._waiting.append(each)
        else:
            _fail(each, error)


def _fail(each: _Waiting, error: HopperError) -> None:
    if not each.answer.done():  # it is, when its worker was cancelled
        each.answer.set_exception(error)
