"""
One worker's stream of `Work`.

    requests ─► listen ─► one coroutine each ─► answers, in the order of the requests ─┐
                   │ slots                                                              ├─► responses
                   └─────► assign: claims of up to `BATCH`, one on its way at a time ──┘

Three things go on beside each other. What the worker says is worked on as it comes, many messages at once; those that
are about the same task take effect one after the other. Answers wait for their turn. And free slots are kept filled.

Claims are never lost with a stream: what was claimed and was not yet to be written is released at once; what was to be
written may have arrived, and is the worker's until its lease ends. A claim that is under way when the stream ends is
waited for, for that reason.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import work_service_pb2 as svc
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_router import work_wire
from hopper_router.convert import item_error
from hopper_router.engine import Engine
from hopper_router.model import DEFAULT_LEASE
from hopper_router.servicer import Context, lease_of, up_to_date
from hopper_router.working import ClaimRequest

if TYPE_CHECKING:
    from hopper_router.work_servicer import Claimed, WorkServicer

BATCH: Final = 200
"""Most slots that one claim fills."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of one message of tasks, unless one task alone has more."""
MOST_MESSAGES: Final = 64
MOST_CLAIMS: Final = 2000
"""Messages, and claims in them, that are worked on at once; the stream then waits, which is its flow control."""


class WorkStream:
    """
    See the module's text.

    Args:
        servicer: Does what the worker asks for.
    """

    def __init__(
        self, servicer: WorkServicer, engine: Engine, opened: svc.WorkOpen, context: Context
    ) -> None:
        self._servicer = servicer
        self._engine = engine
        self._context = context
        self._wanted = ClaimRequest(opened.queue, opened.worker, 0, lease_of(opened) or DEFAULT_LEASE)
        self._free = 0
        self._slots = 0  # the most that were ever free: all there are, for one who has just come
        self._over = False
        self._said_all = False
        self._failure: Exception | None = None
        self._answers: deque[asyncio.Future[bytes]] = deque()
        self._assigned: deque[bytes] = deque()
        self._in_work: dict[str, asyncio.Future[Any]] = {}
        self._claims_in_work = 0
        self._to_write = asyncio.Event()
        self._to_read = asyncio.Event()
        self._to_assign = asyncio.Event()
        self._nudged: asyncio.Future[None] | None = None

    async def run(self, requests: AsyncIterator[svc.WorkRequest]) -> AsyncGenerator[bytes, None]:
        """
        Serve the stream until the worker closes its side and has been answered, or something fails.

        Yields:
            Serialized WorkResponses.
        """
        assigning = asyncio.ensure_future(self._assign())
        listening = asyncio.ensure_future(self._listen(requests))
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._answers and self._answers[0].done():
                    yield work_wire.answered(self._next_answer())
                elif self._assigned and not self._said_all:
                    # From here on it may arrive, whatever becomes of the stream: it is the worker's.
                    yield work_wire.assigned(self._assigned.popleft())
                    self._to_assign.set()
                elif self._said_all and not self._answers:
                    return
                else:
                    self._to_write.clear()
                    await self._to_write.wait()
        finally:
            listening.cancel()
            self._stop_assigning()
            await self._servicer.beside(self._wind_up(assigning))

    async def _wind_up(self, assigning: asyncio.Future[None]) -> None:
        """Wait for what is under way, and give back what was claimed and never sent."""
        under_way: list[asyncio.Future[Any]] = [assigning, *self._answers]
        await asyncio.wait(under_way)
        for answer in self._answers:
            answer.exception()  # nobody is there to be told
        left = [task for part in self._assigned for task in svc.ClaimTasksResponse.FromString(part).tasks]
        if left:
            await self._servicer.give_back(left)

    # ------------------------------------------------------------ what the worker says

    async def _listen(self, requests: AsyncIterator[svc.WorkRequest]) -> None:
        try:
            async for request in requests:
                if request.WhichOneof("message") == "slots":
                    self._free = request.slots.free
                    self._slots = max(self._slots, self._free)
                    self._look_at_slots()
                    continue
                await self._until_there_is_room()
                self._begin(request)
        except Exception as error:
            # Told after the answers to what came before, as the stream's own end: like any other call's.
            failed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            self._answers.append(failed)
        else:
            self._said_all = True
            self._stop_assigning()
        self._to_write.set()

    async def _until_there_is_room(self) -> None:
        while len(self._answers) >= MOST_MESSAGES or self._claims_in_work >= MOST_CLAIMS:
            self._to_read.clear()
            await self._to_read.wait()

    def _begin(self, request: svc.WorkRequest) -> None:
        """Let a message be worked on, after those about the same tasks."""
        names = _tasks_of(request)
        before = {self._in_work[name] for name in names if name in self._in_work}
        answer = asyncio.ensure_future(self._answer(request, before))
        self._claims_in_work += len(names)
        for name in names:
            self._in_work[name] = answer
        self._answers.append(answer)

        def done(_: asyncio.Future[Any]) -> None:
            self._claims_in_work -= len(names)
            for name in names:
                if self._in_work.get(name) is answer:
                    del self._in_work[name]
            self._to_write.set()
            self._to_read.set()

        answer.add_done_callback(done)

    def _next_answer(self) -> bytes:
        answer = self._answers.popleft()
        self._to_read.set()
        return answer.result()

    async def _answer(self, request: svc.WorkRequest, before: Iterable[asyncio.Future[Any]]) -> bytes:
        """The serialized WorkAnswer, or another message that has its results in the same place."""
        if before:
            await asyncio.wait(before)
        work, context = self._servicer, self._context
        match request.WhichOneof("message"):
            case "renew":
                return await _each(request.renew.claims, work.RenewClaims(request.renew, context))
            case "complete":
                claims = [end.claim for end in request.complete.completions]
                return await _each(claims, work.CompleteTasks(request.complete, context))
            case "progress":
                changed = _one(request.progress.claim, work.ReportProgress(request.progress, context))
            case "fail":
                changed = _one(request.fail.claim, work.FailTask(request.fail, context))
            case "release":
                changed = _one(request.release.claim, work.ReleaseTask(request.release, context))
            case "ask":
                changed = self._ask(request.ask)
            case _:
                problem = "must be slots, or be about claims"
                raise InvalidArgument(violations=[FieldViolation("message", problem)])
        return work_wire.other_result(await changed)

    async def _ask(self, request: svc.RequestInputRequest) -> svc.ClaimResult:
        """Ask, and have the slots back meanwhile."""
        asked = await _one(request.claim, self._servicer.RequestInput(request, self._context))
        if asked.updated.state == pb.Task.STATE_INPUT_REQUIRED:
            self._free += max(asked.updated.spec.slots, 1)
            self._look_at_slots()
        return asked

    # ------------------------------------------------------------ what the worker gets

    async def _assign(self) -> None:
        try:
            while not (self._over or self._engine.stopping.is_set()):
                if self._free > 0 and not self._assigned:
                    await self._claim()
                else:
                    self._to_assign.clear()
                    await self._to_assign.wait()
        except Exception as error:  # carried to the stream's own end
            self._failure = error
            self._to_write.set()

    async def _claim(self) -> None:
        """Claim what is ready for the free slots; if nothing is, wait until something may be."""
        engine, queue = self._engine, self._wanted.queue
        most = min(self._free, BATCH)
        await engine.promote_due()
        waiter, looks_again, found = engine.hub.waiting(queue, most, self._wanted.worker), False, False
        try:
            wanted = replace(self._wanted, most=most, slots=self._slots)
            claimed = await up_to_date(
                engine, lambda: self._servicer.attempt(svc.ClaimTasksRequest(), wanted)
            )
            if claimed is not None:
                found = True
                self._take(claimed)
                return
            if not (self._over or engine.stopping.is_set()):
                await self._nudge_or(waiter, most)
            looks_again = self._free > 0 and not self._over
        finally:
            engine.hub.leave(queue, waiter, looks_again=looks_again, found=found)

    async def _nudge_or(self, waiter: asyncio.Future[int], most: int) -> None:
        """Wait until the waiter is woken, or the slots are other than they were."""
        if most != min(self._free, BATCH):
            return
        self._nudged = asyncio.get_running_loop().create_future()
        try:
            either: list[asyncio.Future[Any]] = [waiter, self._nudged]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._nudged = None

    def _take(self, claimed: Claimed) -> None:
        self._free -= claimed.slots
        parts = [claimed.response]
        if len(claimed.response) > MOST_BYTES:
            parts = [part.SerializeToString() for part in _parts(claimed.response)]
        self._assigned.extend(parts)
        self._to_write.set()

    def _look_at_slots(self) -> None:
        self._to_assign.set()
        if self._nudged is not None and not self._nudged.done():
            self._nudged.set_result(None)

    def _stop_assigning(self) -> None:
        self._over = True
        self._look_at_slots()


def _tasks_of(request: svc.WorkRequest) -> list[str]:
    """The tasks that a message is about."""
    match request.WhichOneof("message"):
        case "renew":
            return [claim.task for claim in request.renew.claims]
        case "complete":
            return [end.claim.task for end in request.complete.completions]
        case "progress" | "fail" | "release" | "ask" as said:
            return [getattr(request, said).claim.task]
        case _:
            return []


def _parts(response: bytes) -> Iterator[svc.ClaimTasksResponse]:
    """A response in parts that are not too long, unless a task alone is."""
    part, size = svc.ClaimTasksResponse(), 0
    for task in svc.ClaimTasksResponse.FromString(response).tasks:
        size += task.ByteSize()
        if size > MOST_BYTES and part.tasks:
            yield part
            part, size = svc.ClaimTasksResponse(), task.ByteSize()
        part.tasks.append(task)
    yield part


async def _each(claims: Iterable[svc.ClaimRef], call: Awaitable[Any]) -> bytes:
    """One result per claim, also where the whole call is refused: the stream outlives that."""
    try:
        results: bytes = await call
    except HopperError as error:
        refused = item_error(error)
        return b"".join(
            [work_wire.other_result(svc.ClaimResult(task=claim.task, error=refused)) for claim in claims]
        )
    return results


async def _one(claim: svc.ClaimRef, call: Awaitable[Any]) -> svc.ClaimResult:
    try:
        return svc.ClaimResult(task=claim.task, updated=(await call).task)
    except HopperError as error:
        return svc.ClaimResult(task=claim.task, error=item_error(error))
