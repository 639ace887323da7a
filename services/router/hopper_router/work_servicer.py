"""`hopper.router.v1.WorkService`: what workers call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import structlog

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import work_service_pb2 as svc
from hopper.router.v1.work_service_pb2_grpc import WorkServiceServicer
from hopper_common.auth.current import current
from hopper_common.auth.model import Kind, Service
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.idempotency import digest_of
from hopper_common.rpc.channel import ACCEPTED
from hopper_common.timestamps import duration_field
from hopper_router import work_wire, working
from hopper_router.convert import failure_from_proto, input_from_proto, item_error, progress_from_proto
from hopper_router.engine import Engine
from hopper_router.holders import Holders
from hopper_router.hot import End, Keep, Left, Repeat, Row, Want
from hopper_router.model import DEFAULT_LEASE, FEDERATION, MAX_LEASE, MIN_LEASE, Task
from hopper_router.servicer import Context, each, lease_of, up_to_date
from hopper_router.store_sql import task_id
from hopper_router.unit import Unit, own_savepoint
from hopper_router.views import FULL, task_view, task_views
from hopper_router.work_stream import WorkStream
from hopper_router.working import ClaimRequest

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Claimed(NamedTuple):
    """A serialized ClaimTasksResponse, and how many slots its tasks take."""

    response: bytes
    slots: int


class WorkServicer(WorkServiceServicer):
    """
    Translates; `working` does the work.

    What passes here most often is answered with bytes: a response that was put together by hand, or a message that is
    serialized already. They go out as they are.
    """

    def __init__(self, engine: Engine, holders: Holders | None = None) -> None:
        self._engine = engine
        self._holders = holders or Holders.of_nobody(engine.db, engine.clock)
        self._beside: set[asyncio.Task[None]] = set()

    async def ClaimTasks(self, request: svc.ClaimTasksRequest, context: Context) -> svc.ClaimTasksResponse:
        most = request.max_tasks or 1
        lease = lease_of(request) or DEFAULT_LEASE
        wanted = ClaimRequest(
            request.queue, request.worker, most, lease, request.worker_slots, _for_peers(request.worker)
        )
        if request.task:
            return await up_to_date(self._engine, lambda: self._claim_one(request, wanted))
        return await up_to_date(self._engine, lambda: self._claim(request, wanted))

    async def _claim_one(
        self, request: svc.ClaimTasksRequest, wanted: ClaimRequest
    ) -> svc.ClaimTasksResponse:
        def effect(unit: Unit) -> svc.ClaimTasksResponse:
            return _assigned(unit, [working.claim_one(unit, request.task, wanted)])

        return await self._engine.mutate("ClaimTasks", request, svc.ClaimTasksResponse, effect)

    async def _claim(self, request: svc.ClaimTasksRequest, wanted: ClaimRequest) -> svc.ClaimTasksResponse:
        claimed = await self._engine.claim(
            wanted.queue,
            lambda: self.attempt(request, wanted),
            wait=duration_field(request, "wait") or timedelta(0),
            empty=Claimed(b"", 0),
            most=wanted.most,
            worker=wanted.worker,
        )
        return cast("svc.ClaimTasksResponse", claimed.response)

    async def attempt(self, request: svc.ClaimTasksRequest, wanted: ClaimRequest) -> Claimed | None:
        """Claim what is ready now; None: nothing is."""
        if wanted.worker == FEDERATION or not self._engine.is_simple(wanted.queue):
            return await self._attempt_by_unit(request, wanted)
        digest = digest_of("ClaimTasks", request) if request.request_id else b""
        lease = max(MIN_LEASE, min(wanted.lease, MAX_LEASE))
        want = Want(
            wanted.column, wanted.queue, wanted.worker, wanted.most, lease, request.request_id, digest
        )
        claimed = await self._engine.hot.claim(want)
        if isinstance(claimed, Repeat):
            return _claimed(await self._engine.told_again("ClaimTasks", claimed, svc.ClaimTasksResponse))
        if isinstance(claimed, Left):
            return await self._attempt_by_unit(request, wanted)
        return Claimed(work_wire.claimed(claimed), len(claimed)) if claimed else None

    async def _attempt_by_unit(self, request: svc.ClaimTasksRequest, wanted: ClaimRequest) -> Claimed | None:
        response = await self._engine.claim_by_unit(
            wanted,
            method="ClaimTasks",
            request=request,
            response_type=svc.ClaimTasksResponse,
            answer=_assigned,
        )
        return None if response is None else _claimed(response)

    async def Work(
        self, request_iterator: AsyncIterator[svc.WorkRequest], context: Context
    ) -> AsyncIterator[svc.WorkResponse]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "open":
            raise InvalidArgument(
                violations=[FieldViolation("open", "must be the first message, and is sent once")]
            )
        # Whoever opened it may say more now; one that is refused must not write, or would not hear why.
        await context.send_initial_metadata(ACCEPTED)
        stream = WorkStream(self, self._engine, first.open, context)
        async with aclosing(stream.run(request_iterator)) as responses:
            async for response in responses:
                yield cast("svc.WorkResponse", response)

    async def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something to its end, even if the caller goes away meanwhile."""
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        await asyncio.shield(task)

    async def give_back(self, tasks: Sequence[pb.Task]) -> None:
        """Release claims that did not reach their worker; what cannot be is left to its lease."""

        def effect(unit: Unit) -> None:
            for task in tasks:
                change = partial(working.undeliver, unit, task.name, task.claim.fencing_token)
                with suppress(HopperError):  # its lease may have run out
                    own_savepoint(unit, change)

        try:
            await self._engine.run(effect)
        except HopperError as error:
            log.warning(
                "claims of a stream that ended were not released", claims=len(tasks), reason=error.reason
            )

    # ------------------------------------------------------------ keeping

    async def RenewClaims(self, request: svc.RenewClaimsRequest, context: Context) -> svc.RenewClaimsResponse:
        lease = lease_of(request) or DEFAULT_LEASE
        bounded = max(MIN_LEASE, min(lease, MAX_LEASE))
        refs = request.claims
        await self._holders.require_own(refs)
        kept = await self._engine.hot.renew(
            [Keep(task_id(ref.task), ref.fencing_token, bounded) for ref in refs]
        )

        def effect(unit: Unit) -> list[svc.ClaimResult]:
            def renew(ref: svc.ClaimRef) -> Task:
                return working.renew(unit, ref.task, ref.fencing_token, lease)

            return [_result(unit, ref, renew) for ref in _left(refs, kept)]

        rest = await self._engine.run(effect) if Left.COLD in kept else []
        return cast("svc.RenewClaimsResponse", _results(refs, kept, work_wire.renewed, rest))

    async def ReportProgress(
        self, request: svc.ReportProgressRequest, context: Context
    ) -> svc.ReportProgressResponse:
        claim, how_far = request.claim, progress_from_proto(request.progress)
        await self._holders.require_own([claim])

        def effect(unit: Unit) -> svc.ReportProgressResponse:
            lease = lease_of(request) or DEFAULT_LEASE
            task = working.progress(unit, claim.task, claim.fencing_token, how_far, lease)
            return svc.ReportProgressResponse(task=task_view(unit, task))

        return await self._engine.run(effect)

    async def RequestInput(
        self, request: svc.RequestInputRequest, context: Context
    ) -> svc.RequestInputResponse:
        claim, question = request.claim, input_from_proto(request.input)
        await self._holders.require_own([claim])

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
        await self._holders.require_own(refs)
        ended = await self._engine.hot.complete(
            [
                End(task_id(ref.task), ref.fencing_token, end.result)
                for ref, end in zip(refs, ends, strict=True)
            ]
        )

        def effect(unit: Unit) -> list[svc.ClaimResult]:
            again = bool(request.request_id)

            def complete(end: svc.Completion) -> svc.ClaimResult:
                def change(ref: svc.ClaimRef) -> Task:
                    return working.complete(unit, ref.task, ref.fencing_token, end.result, again=again)

                return _result(unit, end.claim, change)

            return [complete(end) for end in _left(ends, ended)]

        rest = await self._engine.run(effect) if Left.COLD in ended else []
        return cast("svc.CompleteTasksResponse", _results(refs, ended, work_wire.completed, rest))

    async def FailTask(self, request: svc.FailTaskRequest, context: Context) -> svc.FailTaskResponse:
        claim, failure = request.claim, failure_from_proto(request.failure)
        await self._holders.require_own([claim])

        def effect(unit: Unit) -> svc.FailTaskResponse:
            task = working.fail(unit, claim.task, claim.fencing_token, failure)
            return svc.FailTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("FailTask", request, svc.FailTaskResponse, effect)

    async def ReleaseTask(self, request: svc.ReleaseTaskRequest, context: Context) -> svc.ReleaseTaskResponse:
        claim = request.claim
        await self._holders.require_own([claim])

        def effect(unit: Unit) -> svc.ReleaseTaskResponse:
            give_back = working.undeliver if request.not_begun else working.release
            task = give_back(unit, claim.task, claim.fencing_token)
            return svc.ReleaseTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("ReleaseTask", request, svc.ReleaseTaskResponse, effect)


def _for_peers(worker: str) -> bool:
    """Whether it is the federation service that claims; in one process with this one it comes as the owner."""
    caller = current()
    ours = caller.kind is Kind.OWNER or caller.service is Service.FEDERATION
    return ours and worker == FEDERATION


def _left(items: Sequence[T], done: Sequence[Row | Left]) -> list[T]:
    """The items that the hot path left to a unit."""
    return [item for item, outcome in zip(items, done, strict=True) if outcome is Left.COLD]


def _results(
    refs: Sequence[svc.ClaimRef],
    done: Sequence[Row | Left],
    updated: Callable[[Row], bytes],
    rest: Iterable[svc.ClaimResult],
) -> bytes:
    """One result per claim, in order: of the hot path, or of the unit that was given the rest."""
    others = iter(rest)
    return b"".join(
        [
            work_wire.other_result(next(others))
            if isinstance(row, Left)
            else work_wire.result(ref.task, updated(row))
            for ref, row in zip(refs, done, strict=True)
        ]
    )


def _claimed(response: svc.ClaimTasksResponse) -> Claimed:
    return Claimed(response.SerializeToString(), sum(max(task.spec.slots, 1) for task in response.tasks))


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
