"""`hopper.router.v1.WorkService`: what workers call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from hopper.router.v1 import work_service_pb2 as svc
from hopper.router.v1.work_service_pb2_grpc import WorkServiceServicer
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.idempotency import digest_of
from hopper_common.timestamps import duration_field
from hopper_router import working
from hopper_router.convert import failure_from_proto, input_from_proto, item_error, progress_from_proto
from hopper_router.engine import Engine
from hopper_router.hot import End, Keep, Left, Repeat, Want
from hopper_router.model import DEFAULT_LEASE, MAX_LEASE, MIN_LEASE, Task
from hopper_router.servicer import Context, each, lease_of, up_to_date
from hopper_router.store_sql import task_id
from hopper_router.unit import Unit, own_savepoint
from hopper_router.views import BASIC, FULL, task_view, task_views
from hopper_router.working import ClaimRequest

_STREAM_POLL: Final = timedelta(seconds=20)
_STREAM_BATCH: Final = 100
T = TypeVar("T")


_Changed = svc.ReportProgressResponse | svc.FailTaskResponse | svc.ReleaseTaskResponse


class WorkServicer(WorkServiceServicer):
    """Translates; `working` does the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def stopping(self) -> bool:
        """Whether the process is about to end: nothing more is handed out."""
        return self._engine.stopping.is_set()

    async def ClaimTasks(self, request: svc.ClaimTasksRequest, context: Context) -> svc.ClaimTasksResponse:
        return await self.claim(request, give_up=None)

    async def claim(
        self, request: svc.ClaimTasksRequest, *, give_up: asyncio.Event | None
    ) -> svc.ClaimTasksResponse:
        """ClaimTasks, whose wait ends early when *give_up* is set."""
        most = request.max_tasks or 1
        wanted = ClaimRequest(request.queue, request.worker, most, lease_of(request) or DEFAULT_LEASE)
        if request.task:
            return await up_to_date(self._engine, lambda: self._claim_one(request, wanted))
        return await up_to_date(self._engine, lambda: self._claim(request, wanted, give_up))

    async def _claim_one(
        self, request: svc.ClaimTasksRequest, wanted: ClaimRequest
    ) -> svc.ClaimTasksResponse:
        def effect(unit: Unit) -> svc.ClaimTasksResponse:
            return _assigned(unit, [working.claim_one(unit, request.task, wanted)])

        return await self._engine.mutate("ClaimTasks", request, svc.ClaimTasksResponse, effect)

    async def _claim(
        self, request: svc.ClaimTasksRequest, wanted: ClaimRequest, give_up: asyncio.Event | None
    ) -> svc.ClaimTasksResponse:
        return await self._engine.claim(
            wanted.queue,
            lambda: self._attempt(request, wanted),
            wait=duration_field(request, "wait") or timedelta(0),
            empty=svc.ClaimTasksResponse(),
            give_up=give_up,
        )

    async def _attempt(
        self, request: svc.ClaimTasksRequest, wanted: ClaimRequest
    ) -> svc.ClaimTasksResponse | None:
        """Claim what is ready now; None: nothing is."""
        if not self._engine.is_simple(wanted.queue):
            return await self._engine.claim_by_unit(
                wanted,
                method="ClaimTasks",
                request=request,
                response_type=svc.ClaimTasksResponse,
                answer=_assigned,
            )
        digest = digest_of("ClaimTasks", request) if request.request_id else b""
        lease = max(MIN_LEASE, min(wanted.lease, MAX_LEASE))
        want = Want(
            wanted.column, wanted.queue, wanted.worker, wanted.most, lease, request.request_id, digest
        )
        claimed = await self._engine.hot.claim(want)
        if isinstance(claimed, Repeat):
            return await self._engine.told_again("ClaimTasks", claimed, svc.ClaimTasksResponse)
        view = self._engine.view
        tasks = [view(task, FULL, show_token=True) for task in claimed]
        return svc.ClaimTasksResponse(tasks=tasks) if tasks else None

    async def Work(
        self, request_iterator: AsyncIterator[svc.WorkRequest], context: Context
    ) -> AsyncIterator[svc.WorkResponse]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "open":
            raise InvalidArgument(
                violations=[FieldViolation("open", "must be the first message, and is sent once")]
            )
        stream = _WorkStream(self, first.open, context)
        async for response in stream.run(request_iterator):
            yield response

    # ------------------------------------------------------------ keeping

    async def RenewClaims(self, request: svc.RenewClaimsRequest, context: Context) -> svc.RenewClaimsResponse:
        lease = lease_of(request) or DEFAULT_LEASE
        bounded = max(MIN_LEASE, min(lease, MAX_LEASE))
        refs = request.claims
        kept = await self._engine.hot.renew(
            [Keep(task_id(ref.task), ref.fencing_token, bounded) for ref in refs]
        )

        def effect(unit: Unit) -> list[svc.ClaimResult]:
            def renew(ref: svc.ClaimRef) -> Task:
                return working.renew(unit, ref.task, ref.fencing_token, lease)

            return [_result(unit, ref, renew) for ref in _left(refs, kept)]

        rest = await self._engine.run(effect) if Left.COLD in kept else []
        return svc.RenewClaimsResponse(results=self._merged(refs, kept, rest))

    def _merged(
        self,
        refs: Sequence[svc.ClaimRef],
        done: Sequence[Task | Left],
        rest: Iterable[svc.ClaimResult],
    ) -> list[svc.ClaimResult]:
        """One result per claim, in order: of the hot path, or of the unit that was given the rest."""
        others, view = iter(rest), self._engine.view
        return [
            next(others)
            if isinstance(task, Left)
            else svc.ClaimResult(task=ref.task, updated=view(task, BASIC))
            for ref, task in zip(refs, done, strict=True)
        ]

    async def ReportProgress(
        self, request: svc.ReportProgressRequest, context: Context
    ) -> svc.ReportProgressResponse:
        claim, how_far = request.claim, progress_from_proto(request.progress)

        def effect(unit: Unit) -> svc.ReportProgressResponse:
            lease = lease_of(request) or DEFAULT_LEASE
            task = working.progress(unit, claim.task, claim.fencing_token, how_far, lease)
            return svc.ReportProgressResponse(task=task_view(unit, task))

        return await self._engine.run(effect)

    async def RequestInput(
        self, request: svc.RequestInputRequest, context: Context
    ) -> svc.RequestInputResponse:
        claim, question = request.claim, input_from_proto(request.input)

        def effect(unit: Unit) -> svc.RequestInputResponse:
            task = working.ask(unit, claim.task, claim.fencing_token, question)
            return svc.RequestInputResponse(task=task_view(unit, task))

        return await self._engine.mutate("RequestInput", request, svc.RequestInputResponse, effect)

    # ------------------------------------------------------------ ending

    async def CompleteTasks(
        self, request: svc.CompleteTasksRequest, context: Context
    ) -> svc.CompleteTasksResponse:
        ends = request.completions
        refs = [end.claim for end in ends]
        ended = await self._engine.hot.complete(
            [End(task_id(end.claim.task), end.claim.fencing_token, end.result) for end in ends]
        )

        def effect(unit: Unit) -> list[svc.ClaimResult]:
            again = bool(request.request_id)

            def complete(end: svc.Completion) -> svc.ClaimResult:
                def change(ref: svc.ClaimRef) -> Task:
                    return working.complete(unit, ref.task, ref.fencing_token, end.result, again=again)

                return _result(unit, end.claim, change)

            return [complete(end) for end in _left(ends, ended)]

        rest = await self._engine.run(effect) if Left.COLD in ended else []
        return svc.CompleteTasksResponse(results=self._merged(refs, ended, rest))

    async def FailTask(self, request: svc.FailTaskRequest, context: Context) -> svc.FailTaskResponse:
        claim, failure = request.claim, failure_from_proto(request.failure)

        def effect(unit: Unit) -> svc.FailTaskResponse:
            task = working.fail(unit, claim.task, claim.fencing_token, failure)
            return svc.FailTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("FailTask", request, svc.FailTaskResponse, effect)

    async def ReleaseTask(self, request: svc.ReleaseTaskRequest, context: Context) -> svc.ReleaseTaskResponse:
        claim = request.claim

        def effect(unit: Unit) -> svc.ReleaseTaskResponse:
            task = working.release(unit, claim.task, claim.fencing_token)
            return svc.ReleaseTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("ReleaseTask", request, svc.ReleaseTaskResponse, effect)


def _left(items: Sequence[T], done: Sequence[Task | Left]) -> list[T]:
    """The items that the hot path left to a unit."""
    return [item for item, outcome in zip(items, done, strict=True) if isinstance(outcome, Left)]


def _assigned(unit: Unit, tasks: list[Task]) -> svc.ClaimTasksResponse:
    return svc.ClaimTasksResponse(tasks=task_views(unit, tasks, FULL, show_token=True))


def _result(unit: Unit, ref: svc.ClaimRef, change: Callable[[svc.ClaimRef], Task]) -> svc.ClaimResult:
    """What became of one claim of a batch; a refusal of it leaves the others alone."""

    def refused(_: svc.ClaimRef, error: HopperError) -> svc.ClaimResult:
        return svc.ClaimResult(task=ref.task, error=item_error(error))

    def changed(ref: svc.ClaimRef) -> svc.ClaimResult:
        task = own_savepoint(unit, lambda: change(ref))
        return svc.ClaimResult(task=ref.task, updated=task_view(unit, task))

    return each([ref], changed, refused)[0]


class _WorkStream:
    """One worker's stream: what it says is answered in order, and beside that its free slots are kept filled."""

    def __init__(self, servicer: WorkServicer, opened: svc.WorkOpen, context: Context) -> None:
        self._servicer = servicer
        self._opened = opened
        self._context = context
        self._free = 0
        self._slots_changed = asyncio.Event()
        self._out: asyncio.Queue[svc.WorkResponse | Exception | None] = asyncio.Queue(maxsize=16)

    async def run(self, requests: AsyncIterator[svc.WorkRequest]) -> AsyncIterator[svc.WorkResponse]:
        """Serve the stream until the worker closes its side, or something fails."""
        tasks = [asyncio.ensure_future(self._listen(requests)), asyncio.ensure_future(self._assign())]
        try:
            while True:
                response = await self._out.get()
                if response is None:
                    return
                if isinstance(response, Exception):
                    raise response
                yield response
        finally:
            for task in tasks:
                task.cancel()

    async def _listen(self, requests: AsyncIterator[svc.WorkRequest]) -> None:
        try:
            async for request in requests:
                answer = await self._answer(request)
                if answer is not None:
                    await self._out.put(svc.WorkResponse(answer=answer))
            await self._out.put(None)
        except Exception as error:  # carried to the stream's own end, which answers it like any other call's
            await self._out.put(error)

    async def _answer(self, request: svc.WorkRequest) -> svc.WorkAnswer | None:
        said = request.WhichOneof("message")
        if said == "slots":
            self._free = request.slots.free
            self._slots_changed.set()
            return None
        return await self._ended_or_kept(request, said or "")

    async def _ended_or_kept(self, request: svc.WorkRequest, said: str) -> svc.WorkAnswer:
        service, context = self._servicer, self._context
        if said == "renew":
            return svc.WorkAnswer(results=(await service.RenewClaims(request.renew, context)).results)
        if said == "complete":
            return svc.WorkAnswer(results=(await service.CompleteTasks(request.complete, context)).results)
        change: Callable[[], Awaitable[_Changed]]
        match said:
            case "progress":
                name, change = (
                    request.progress.claim.task,
                    partial(service.ReportProgress, request.progress, context),
                )
            case "fail":
                name, change = request.fail.claim.task, partial(service.FailTask, request.fail, context)
            case "release":
                name, change = (
                    request.release.claim.task,
                    partial(service.ReleaseTask, request.release, context),
                )
            case _:
                problem = "must be slots, or end or renew claims"
                raise InvalidArgument(violations=[FieldViolation("message", problem)])
        try:
            return svc.WorkAnswer(results=[svc.ClaimResult(task=name, updated=(await change()).task)])
        except HopperError as error:
            return svc.WorkAnswer(results=[svc.ClaimResult(task=name, error=item_error(error))])

    async def _assign(self) -> None:
        try:
            while not self._servicer.stopping:
                self._slots_changed.clear()
                most = min(self._free, _STREAM_BATCH)
                if most <= 0:
                    await self._slots_changed.wait()
                    continue
                claimed = await self._servicer.claim(self._wanted(most), give_up=self._slots_changed)
                if claimed.tasks:
                    self._free -= len(claimed.tasks)
                    await self._out.put(svc.WorkResponse(assigned=claimed))
        except Exception as error:  # as in _listen
            await self._out.put(error)

    def _wanted(self, most: int) -> svc.ClaimTasksRequest:
        request = svc.ClaimTasksRequest(queue=self._opened.queue, worker=self._opened.worker, max_tasks=most)
        request.wait.FromTimedelta(_STREAM_POLL)
        if self._opened.HasField("lease_duration"):
            request.lease_duration.CopyFrom(self._opened.lease_duration)
        return request
