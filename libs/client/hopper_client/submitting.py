"""
Submitting many tasks: on a stream of them, or in batches.

`Window` keeps the books of a stream, without input or output: what is to be sent, what was sent and not answered. All
requests carry a `request_id`, so what was not answered when a stream broke is sent again, and counts once.

A stream that breaks may have been refused for one of its requests, and which is not always heard. So the first that
was not answered is then submitted by a call of its own, whose answer is certain; then a new stream goes on behind it.
"""

import asyncio
import logging
import queue
import threading
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from hopper.router.v1.task_pb2 import ItemError, TaskSpec
from hopper.router.v1.task_service_pb2 import (
    SubmitStreamRequest,
    SubmitStreamResponse,
    SubmitTaskRequest,
    SubmitTaskResponse,
    SubmitTasksItem,
    SubmitTasksRequest,
    SubmitTasksResult,
)
from hopper_client.delivery import until_answered
from hopper_client.errors import from_item, will_pass
from hopper_common.errors import HopperError, ResourceExhausted
from hopper_common.rpc.errors import MethodNotOffered, code_of

if TYPE_CHECKING:
    from hopper_client.blocking import Hopper
    from hopper_client.client import AsyncHopper

log = logging.getLogger(__name__)

WINDOW = 256
MOST_ITEMS = 1000
BATCH_TIMEOUT = 60.0
"""Seconds for one call of a thousand tasks: where one of them is out of the ordinary, they go in one by one."""
MOST_BATCH_BYTES = 3 * 1024 * 1024  # the contract allows 4 MiB
_OVERHEAD_BYTES = 16

Item = str | TaskSpec | SubmitStreamRequest
"""What is asked for: a title, a specification, or a whole request, whose own instance and request id count then."""


def stream_request(item: Item, instance: str) -> SubmitStreamRequest:
    """The request for an item, with a `request_id`."""
    if isinstance(item, SubmitStreamRequest):
        request = SubmitStreamRequest()
        request.CopyFrom(item)
    else:
        spec = TaskSpec(title=item) if isinstance(item, str) else item
        request = SubmitStreamRequest(spec=spec)
    request.parent = request.parent or instance
    request.request_id = request.request_id or str(uuid.uuid4())
    return request


class Window:
    """The books of one submission."""

    def __init__(self, instance: str, size: int = WINDOW) -> None:
        self._instance = instance
        self._size = size
        self._to_send: deque[SubmitStreamRequest] = deque()
        self._sent: deque[SubmitStreamRequest] = deque()

    @property
    def full(self) -> bool:
        """Whether answers have to be waited for before there is room for more."""
        return len(self._to_send) + len(self._sent) >= self._size

    @property
    def empty(self) -> bool:
        """Whether everything has been answered."""
        return not (self._to_send or self._sent)

    def add(self, item: Item) -> None:
        """Take in what is to be submitted."""
        self._to_send.append(stream_request(item, self._instance))

    def next(self) -> SubmitStreamRequest | None:
        """What to send now."""
        if not self._to_send:
            return None
        self._sent.append(self._to_send.popleft())
        return self._sent[-1]

    def answered(self) -> SubmitStreamRequest:
        """What the answer that has come is to."""
        return self._sent.popleft()

    def broke(self) -> None:
        """The stream has ended: what was not answered is to be sent again."""
        self._to_send.extendleft(reversed(self._sent))
        self._sent.clear()


def call_of(request: SubmitStreamRequest) -> SubmitTaskRequest:
    """The same as a call of its own; the router knows one for a repeat of the other."""
    return SubmitTaskRequest(
        parent=request.parent,
        spec=request.spec,
        request_id=request.request_id,
        allow_duplicate=request.allow_duplicate,
    )


def answer_of(response: SubmitTaskResponse) -> SubmitStreamResponse:
    """What a stream would have answered."""
    return SubmitStreamResponse(task=response.task, duplicates=response.duplicates)


def refusal(error: HopperError) -> SubmitStreamResponse:
    """The answer that says why a task was not taken in."""
    code = code_of(error).value[0]
    refused = ItemError(code=code, reason=error.reason, message=error.message, metadata=dict(error.metadata))
    return SubmitStreamResponse(error=refused)


def may_pass(response: SubmitStreamResponse) -> bool:
    """Whether a task was refused for now only."""
    if not response.HasField("error"):
        return False
    error = from_item(response.error)
    return will_pass(error) or isinstance(error, ResourceExhausted)


# On a stream.


class _Stream:
    """The async submission: what is pumped in, what is sent, and the answers in order."""

    def __init__(
        self, hopper: "AsyncHopper", items: Iterable[Item] | AsyncIterable[Item], instance: str
    ) -> None:
        self._hopper = hopper
        self._items = items
        self._window = Window(instance)
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._offered = True
        self._over = False
        self._has_answered = False
        self._pumping: asyncio.Task[None] = asyncio.ensure_future(self._pump())
        self._pumping.add_done_callback(lambda _: self._changed.set())

    async def answers(self) -> AsyncGenerator[SubmitStreamResponse, None]:
        try:
            while await self._has_something():
                if self._offered:
                    async with aclosing(self._on_a_stream()) as answers:
                        async for answer in answers:
                            yield answer
                    self._window.broke()
                if (first := self._window.next()) is not None:
                    answer = await self._alone(first)
                    self._answered()
                    yield answer
            await self._pumping  # raises what the caller's items have raised
        finally:
            self._pumping.cancel()
            with suppress(asyncio.CancelledError):
                await self._pumping

    async def _has_something(self) -> bool:
        """Wait until there is something to submit; whether there is."""
        while self._window.empty and not self._pumping.done():
            self._changed.clear()
            await self._changed.wait()
        return not self._window.empty

    async def _on_a_stream(self) -> AsyncGenerator[SubmitStreamResponse, None]:
        self._over = False
        call = self._hopper.tasks.SubmitStream(self._requests())
        try:
            async for response in call:
                yield await self._settled(response)
        except MethodNotOffered:
            self._offered = False
        except HopperError as error:
            log.info("a stream of tasks broke: %s", error.message)  # for which of them is found out now
        finally:
            self._over = True
            self._changed.set()  # lets `_requests` end
            call.cancel()

    async def _pump(self) -> None:
        async for item in _each(self._items):
            while self._window.full:
                self._room.clear()
                await self._room.wait()
            self._window.add(item)
            self._changed.set()

    async def _requests(self) -> AsyncIterator[SubmitStreamRequest]:
        while not self._over:
            self._changed.clear()
            request = self._window.next()
            if request is not None:
                yield request
            elif self._pumping.done():
                return
            else:
                await self._changed.wait()

    def _answered(self) -> SubmitStreamRequest:
        self._has_answered = True
        self._room.set()
        return self._window.answered()

    async def _settled(self, response: SubmitStreamResponse) -> SubmitStreamResponse:
        request = self._answered()
        return await self._alone(request) if may_pass(response) else response

    async def _alone(self, request: SubmitStreamRequest) -> SubmitStreamResponse:
        call = call_of(request)
        try:
            if self._has_answered:  # then it is worth waiting for
                answer = await until_answered(
                    lambda: self._hopper.tasks.SubmitTask(call), "submitting a task"
                )
            else:
                answer = await self._hopper.tasks.SubmitTask(call)
        except HopperError as error:
            if will_pass(error):
                raise
            return refusal(error)
        return answer_of(answer)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item


async def submit_all(
    hopper: "AsyncHopper", items: Iterable[Item] | AsyncIterable[Item], instance: str
) -> AsyncGenerator[SubmitStreamResponse, None]:
    """See `AsyncHopper.submit_many`."""
    answers = _Stream(hopper, items, instance).answers()
    try:
        async for answer in answers:
            yield answer
    finally:
        await answers.aclose()


class _BlockingStream:
    """The same for threads: items are taken in the caller's, only the answers are read beside it."""

    def __init__(self, hopper: "Hopper", items: Iterable[Item], instance: str) -> None:
        self._hopper = hopper
        self._items = iter(items)
        self._window = Window(instance)
        self._exhausted = False
        self._offered = True

    @property
    def _done(self) -> bool:
        return self._exhausted and self._window.empty

    def answers(self) -> Generator[SubmitStreamResponse, None, None]:
        while not self._done:
            if self._window.empty:
                self._fill()
                continue
            if self._offered:
                yield from self._on_a_stream()
                self._window.broke()
            if (first := self._window.next()) is not None:
                answer = self._alone(first)
                self._window.answered()
                yield answer

    def _on_a_stream(self) -> Generator[SubmitStreamResponse, None, None]:
        outgoing: queue.SimpleQueue[SubmitStreamRequest | None] = queue.SimpleQueue()
        heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()
        call: Any = self._hopper.tasks.SubmitStream(iter(outgoing.get, None))
        threading.Thread(target=_read, args=(call, heard), daemon=True).start()
        try:
            while not self._done:
                self._send(outgoing)
                try:
                    answer = heard.get(block=self._exhausted or self._window.full)
                except queue.Empty:
                    continue
                if not isinstance(answer, SubmitStreamResponse):
                    self._offered = not isinstance(answer, MethodNotOffered)
                    return
                request = self._window.answered()
                yield self._alone(request) if may_pass(answer) else answer
        finally:
            outgoing.put(None)
            call.cancel()

    def _send(self, outgoing: "queue.SimpleQueue[SubmitStreamRequest | None]") -> None:
        """Send what is to be sent, and take the next item if there is room for it."""
        if not (self._exhausted or self._window.full):
            self._fill()
        while (request := self._window.next()) is not None:
            outgoing.put(request)
        if self._exhausted:
            outgoing.put(None)

    def _fill(self) -> None:
        try:
            self._window.add(next(self._items))
        except StopIteration:
            self._exhausted = True

    def _alone(self, request: SubmitStreamRequest) -> SubmitStreamResponse:
        try:
            return answer_of(self._hopper.tasks.SubmitTask(call_of(request)))
        except HopperError as error:
            if will_pass(error):
                raise
            return refusal(error)


def submit_all_blocking(
    hopper: "Hopper", items: Iterable[Item], instance: str
) -> Generator[SubmitStreamResponse, None, None]:
    """See `Hopper.submit_many`."""
    return _BlockingStream(hopper, items, instance).answers()


_Heard = SubmitStreamResponse | HopperError | None
"""An answer, or how the stream ended."""


def _read(call: Iterator[Any], heard: "queue.SimpleQueue[_Heard]") -> None:
    try:
        for response in call:
            heard.put(response)
    except HopperError as error:
        heard.put(error)
    else:
        heard.put(None)


# In batches.


class Batches:
    """
    Items of any number as the SubmitTasks calls that they take, one after the other.

    Args:
        items: Titles, specifications, or whole items; their `after` are positions among all of them.

    Attributes:
        results: Of the calls so far, one per item, in order.
    """

    def __init__(self, items: Iterable[str | TaskSpec | SubmitTasksItem], instance: str) -> None:
        self.results: list[SubmitTasksResult] = []
        self._instance = instance
        self._items = deque(_item(item) for item in items)

    def next(self) -> SubmitTasksRequest | None:
        """The next call, after the results of those before it; None: there is no more."""
        if not self._items:
            return None
        request = SubmitTasksRequest(parent=self._instance, request_id=str(uuid.uuid4()))
        size = 0
        while self._items and len(request.items) < MOST_ITEMS:
            size += self._items[0].ByteSize() + _OVERHEAD_BYTES
            if request.items and size > MOST_BATCH_BYTES:
                break
            request.items.append(self._within(self._items.popleft()))
        return request

    def _within(self, item: SubmitTasksItem) -> SubmitTasksItem:
        """An item whose `after` names those of earlier calls by name: positions are of one call."""
        first = len(self.results)
        here = [position - first for position in item.after if position >= first]
        names = [self.results[position].task.name for position in item.after if position < first]
        made = SubmitTasksItem(spec=item.spec, after=here)
        # One that was refused has no name; a name that is none is refused in its turn.
        made.spec.dependencies.extend(name or f"{self._instance}/tasks/refused" for name in names)
        return made


def _item(item: str | TaskSpec | SubmitTasksItem) -> SubmitTasksItem:
    if isinstance(item, SubmitTasksItem):
        return item
    return SubmitTasksItem(spec=TaskSpec(title=item) if isinstance(item, str) else item)
