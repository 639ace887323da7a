"""
Lessons to routers, and models from and to them.

    SubmitFeedback ─► the lesson, durable ─► WatchLessons ─► every router learns it ─► acknowledges
          ▲                                                                                │
          └──────────── answered when all have, or after a quarter of a second ◄───────────┘

So whoever gave feedback and then asks where such a task would go is answered by somebody who knows. Nothing waits in
the database meanwhile. A router that let somebody wait for nothing is not waited for again until it is up to date: one
that hangs, or has much to catch up with, costs one piece of feedback a quarter of a second, and not each.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import grpc.aio

from hopper.memory.v1 import learning_service_pb2 as pb
from hopper.memory.v1 import learning_service_pb2_grpc as grpc_pb
from hopper_common.database import Signal
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_memory import convert
from hopper_memory.errors import TooManyWatchers
from hopper_memory.ports import LessonStore, ModelStore, StoredModel, Taught

Context = grpc.aio.ServicerContext[Any, Any]

MOST_WATCHERS: Final = 64
PATIENCE: Final = timedelta(milliseconds=250)
_SHA256_BYTES: Final = 32


class Watcher:
    """
    One who is told of lessons.

    Attributes:
        position: The last lesson it has learned, as it says.
        awaited: Feedback waits for it.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.awaited = True


class Watchers:
    """
    Who is told of lessons, and how far they are.

    Args:
        most: How many at once.
        patience: How long `learned` waits for them.
    """

    def __init__(self, *, most: int = MOST_WATCHERS, patience: timedelta = PATIENCE) -> None:
        self._most = most
        self._patience = patience.total_seconds()
        self._watchers: set[Watcher] = set()
        self._moved = Signal()
        self._head = 0

    @contextlib.contextmanager
    def watching(self, position: int) -> Iterator[Watcher]:
        """
        Count one more, who knows the lessons up to a position.

        Raises:
            TooManyWatchers: There are as many as may be.
        """
        if len(self._watchers) >= self._most:
            raise TooManyWatchers(service="memory")
        watcher = Watcher(position)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._moved.fire()

    def told(self, head: int) -> None:
        """There are lessons up to here, by now."""
        self._head = max(self._head, head)

    def acknowledged(self, watcher: Watcher, position: int) -> None:
        """One has learned up to here."""
        watcher.position = max(watcher.position, position)
        watcher.awaited = watcher.awaited or watcher.position >= self._head
        self._moved.fire()

    def left(self, watcher: Watcher) -> None:
        """One will say no more."""
        watcher.awaited = False
        self._moved.fire()

    async def learned(self, position: int) -> bool:
        """Wait, not for long, until all who are awaited have learned up to a position; returns whether they have."""
        self.told(position)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while self._behind(position):
                    await self._moved.wait(after=self._moved.count)
        late = self._behind(position)
        for watcher in late:
            watcher.awaited = False
        return not late

    def _behind(self, position: int) -> list[Watcher]:
        return [each for each in self._watchers if each.awaited and each.position < position]


class LearningServicer(grpc_pb.LearningServiceServicer):
    """Hands out lessons, and keeps what they add up to."""

    def __init__(self, lessons: LessonStore, models: ModelStore, watchers: Watchers) -> None:
        self._lessons = lessons
        self._models = models
        self._watchers = watchers

    async def WatchLessons(
        self, request_iterator: AsyncIterator[pb.WatchLessonsRequest], context: Context
    ) -> AsyncIterator[pb.WatchLessonsResponse]:
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidArgument("say first where to begin: position 0 is the beginning")
        with self._watchers.watching(first.position) as watcher:
            listening = asyncio.ensure_future(self._listen(request_iterator, watcher))
            try:
                async with aclosing(self._lessons.tail(after=first.position)) as batches:
                    while True:
                        taught = await _next(batches, listening)
                        self._watchers.told(taught.head)
                        yield convert.taught_to_proto(taught)
            finally:
                listening.cancel()

    async def _listen(self, requests: AsyncIterator[pb.WatchLessonsRequest], watcher: Watcher) -> None:
        async for request in requests:
            self._watchers.acknowledged(watcher, request.position)
        self._watchers.left(watcher)  # but may listen on

    async def GetModel(
        self, request: pb.GetModelRequest, context: Context
    ) -> AsyncIterator[pb.GetModelResponse]:
        model, parts = await self._models.newest(request.format, before=request.before_position)
        about = pb.GetModelResponse(position=model.position, sha256=model.sha256)
        async for part in parts:
            about.data = part
            yield about
            about = pb.GetModelResponse()

    async def SaveModel(
        self, request_iterator: AsyncIterator[pb.SaveModelRequest], context: Context
    ) -> pb.SaveModelResponse:
        first = await anext(request_iterator, pb.SaveModelRequest())
        model = _model(first)

        async def parts() -> AsyncIterator[bytes]:
            yield first.data
            async for request in request_iterator:
                yield request.data

        return pb.SaveModelResponse(position=await self._models.save(model, parts()))


async def _next(batches: AsyncIterator[Taught], listening: asyncio.Future[None]) -> Taught:
    """The next lessons, unless whoever they are for has said something that is refused."""
    step: asyncio.Future[Taught] = asyncio.ensure_future(anext(batches))
    either: list[asyncio.Future[Any]] = [step, listening]
    try:
        if not listening.done():
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            listening.result()
        return await step
    finally:
        if not step.done():
            step.cancel()
            await asyncio.wait({step})


def _model(first: pb.SaveModelRequest) -> StoredModel:
    violations = []
    if not first.format:
        violations.append(FieldViolation("format", "is required in the first part"))
    if not first.position:
        violations.append(FieldViolation("position", "is required in the first part"))
    if len(first.sha256) != _SHA256_BYTES:
        violations.append(FieldViolation("sha256", f"must be {_SHA256_BYTES} bytes in the first part"))
    if violations:
        raise InvalidArgument(violations=violations)
    return StoredModel(first.format, first.position, first.sha256)
