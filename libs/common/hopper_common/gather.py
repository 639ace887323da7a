"""
Concurrent calls, gathered into sets.

Sixty callers who each want one row written cost sixty statements; gathered, they cost one. The first caller's item goes
at once, as a set of one; what arrives while a set is being worked on is the next set. So a single caller pays nothing,
and under load the sets grow.

By themselves they do not grow far: a busy event loop reads a call in many small turns, and when a set ends, the next
would begin with the few that were quickest: sets of four with 64 callers, each at the price of a commit. So after a set
of several the next is given as long to gather as the last one took, and never more than a few milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from hopper_common.errors import Overloaded, ResourceExhausted, Unavailable

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

LIMIT = 512
WAITING_LIMIT = 20_000
LONGEST_PAUSE = 0.005


class Gatherer(Generic[I, R]):
    """
    Runs items in sets, one set at a time, in the order they came.

    Args:
        run: Works on a set, all of it or nothing; returns one result for each item, in order: the result, or the
            exception that its caller gets. When it raises that storage is away, that is everybody's; when it raises
            anything else, each item is tried alone, so that a bad one fails alone.
        limit: Most items of a set.
        weigh: How much of the limit an item takes; default: one each.

    Attributes:
        observe: Called after each set with its size, as it is weighed, and the seconds it took; None: nobody wants to
            know.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I]], Awaitable[Sequence[R | BaseException]]],
        *,
        limit: int = LIMIT,
        weigh: Callable[[I], int] | None = None,
    ) -> None:
        self._run = run
        self._limit = limit
        self._weigh = weigh
        self.observe: Callable[[int, float], None] | None = None
        self._waiting: deque[tuple[I, asyncio.Future[R]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many items wait for their set."""
        return len(self._waiting)

    def add(self, item: I) -> asyncio.Future[R]:
        """
        Let an item join the next set. A caller that leaves before its set begins takes the item with it.

        Raises:
            Overloaded: Too many wait already.
        """
        if len(self._waiting) >= WAITING_LIMIT:
            raise Overloaded
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())
        return future

    async def close(self) -> None:
        """Wait until everything that was added has been worked on."""
        while self._worker is not None:
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        try:
            while self._waiting:
                members = self._take()
                if not members:
                    continue
                started = time.perf_counter()
                await self._run_one(members)
                took = time.perf_counter() - started
                if self.observe is not None:
                    self.observe(self._size(members), took)
                if len(members) > 1:
                    await asyncio.sleep(min(took, LONGEST_PAUSE))
        finally:
            self._worker = None

    def _take(self) -> list[tuple[I, asyncio.Future[R]]]:
        members: list[tuple[I, asyncio.Future[R]]] = []
        room = self._limit
        while self._waiting and room > 0:
            item, future = self._waiting[0]
            weight = self._weigh(item) if self._weigh else 1
            if members and weight > room:
                break
            self._waiting.popleft()
            if not future.cancelled():
                members.append((item, future))
                room -= weight
        return members

    def _size(self, members: list[tuple[I, asyncio.Future[R]]]) -> int:
        return sum(self._weigh(item) for item, _ in members) if self._weigh else len(members)

    async def _run_one(self, members: list[tuple[I, asyncio.Future[R]]]) -> None:
        try:
            results = await self._run([item for item, _ in members])
        except (Unavailable, ResourceExhausted) as error:
            # One exception each: callers add their own tracebacks.
            for _, future in members:
                _settle(future, type(error)(error.message, **error.metadata))
            return
        except Exception as error:
            if len(members) == 1:
                _settle(members[0][1], error)
                return
            for member in members:  # one of them is at fault, and is to fail alone
                await self._run_one([member])
            return
        for (_, future), result in zip(members, results, strict=True):
            _settle(future, result)


def _settle(future: asyncio.Future[R], result: R | BaseException) -> None:
    if future.cancelled():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
