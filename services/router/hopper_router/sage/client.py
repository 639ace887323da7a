"""A Sage over gRPC: `advisor.SageAdvisor`."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, TypeVar

import grpc
import grpc.aio

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper.sage.v1.sage_service_pb2_grpc import SageServiceStub
from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_common.rpc.address import check_address
from hopper_common.rpc.channel import OPTIONS
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import to_proto
from hopper_router.breaker import Breaker, Resting
from hopper_router.sage import convert
from hopper_router.sage.advisor import (
    About,
    Advice,
    Asked,
    Order,
    Performance,
    Question,
    Ranked,
    Recorded,
    TaskOutcome,
)
from hopper_router.sage.answers import (
    checked_about,
    checked_advice,
    checked_order,
    checked_performance,
)
from hopper_router.sage.errors import SageAnswerInvalid, SageRefused, SageUnavailable

T = TypeVar("T")

LEAST_WITHIN: Final = timedelta(milliseconds=10)
MOST_WITHIN: Final = timedelta(minutes=10)
MOST_TASKS: Final = 200
MOST_OUTCOMES: Final = 500
MOST_REQUEST_BYTES: Final = 3 * 1024 * 1024
MOST_ANSWER_BYTES: Final = 1024 * 1024
"""Nothing that a Sage may say is longer; more is not even read."""

_QUEUE_TEXT: Final = 1_000
_TIMEOUT: Final = 10.0

# It answered, and the same question would be answered the same.
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def open_sage_channel(address: str) -> grpc.aio.Channel:
    """
    Open a channel to a Sage, which reads no more than a Sage may say. It connects with its first call.

    Raises:
        AddressRefused: Malformed, or not of this machine.
    """
    options = [(name, value) for name, value in OPTIONS if name != "grpc.max_receive_message_length"]
    options.append(("grpc.max_receive_message_length", MOST_ANSWER_BYTES))
    return grpc.aio.insecure_channel(check_address(address), options=options)


class SageClient:
    """
    A Sage that is asked over a channel; `advisor.SageAdvisor`.

    Args:
        channel: Of `open_sage_channel`. Whoever opened it closes it.
        clock: For how long a Sage that fails is left alone.
    """

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._sage = SageServiceStub(channel)
        self._breaker = Breaker("sage", clock, SageUnavailable, SageAnswerInvalid)

    @contextmanager
    def _call(self, method: str) -> Iterator[None]:
        try:
            with self._breaker.call():
                yield
        except Resting as resting:
            error = SageUnavailable(
                "the Sage failed several times in a row and is left alone", method=method, cause="resting"
            )
            error.retry_after = resting.rest
            raise error from None

    async def about(self) -> About:
        """See `SageAdvisor.about`."""
        with self._call("GetSage"):
            call = self._sage.GetSage(sage_service_pb2.GetSageRequest(), timeout=_TIMEOUT)
            response = await _answer("GetSage", call)
            return checked_about(convert.about_from_proto(response.sage))

    async def decide(self, question: Question, *, within: timedelta) -> Advice:
        """See `SageAdvisor.decide`."""
        method = "DecideRouting"
        request = convert.question_to_proto(question)
        request.answer_within.CopyFrom(to_proto(_bounded(within, method)))
        with self._call(method):
            call = self._sage.DecideRouting(request, timeout=within.total_seconds())
            advice = convert.advice_from_proto(await _answer(method, call))
            if advice is None:
                problem = "no answer that this router knows"
                raise SageAnswerInvalid(f"the Sage gave {problem}", method=method, problem=problem)
            return checked_advice(advice, question, len(request.candidates))

    async def prioritize(self, queue: str, tasks: Sequence[Asked], *, within: timedelta) -> Order:
        """See `SageAdvisor.prioritize`."""
        method = "PrioritizeQueue"
        asked, rest = tasks[:MOST_TASKS], tasks[MOST_TASKS:]
        request = sage_service_pb2.PrioritizeQueueRequest(
            queue=queue,
            tasks=[convert.task_to_proto(task, most_text=_QUEUE_TEXT) for task in asked],
            answer_within=to_proto(_bounded(within, method)),
        )
        with self._call(method):
            call = self._sage.PrioritizeQueue(request, timeout=within.total_seconds())
            order = checked_order(convert.order_from_proto(await _answer(method, call)), asked)
        return Order([*order.ranked, *(Ranked(task.name, "") for task in rest)], order.cost)

    async def record(self, outcomes: Sequence[TaskOutcome]) -> Recorded:
        """See `SageAdvisor.record`."""
        method, new, unknown = "RecordOutcome", 0, 0
        for request in _requests(outcomes):
            with self._call(method):
                response = await _answer(method, self._sage.RecordOutcome(request, timeout=_TIMEOUT))
            new += response.new_outcomes
            unknown += response.unknown_decisions
        return Recorded(new, unknown)

    async def report(self, start: datetime | None = None, end: datetime | None = None) -> Performance:
        """See `SageAdvisor.report`."""
        method = "ReportPerformance"
        request = sage_service_pb2.ReportPerformanceRequest(
            start_time=to_proto(start), end_time=to_proto(end)
        )
        with self._call(method):
            response = await _answer(method, self._sage.ReportPerformance(request, timeout=_TIMEOUT))
            return checked_performance(convert.performance_from_proto(response.performance))


def _bounded(within: timedelta, method: str) -> timedelta:
    if within < LEAST_WITHIN:
        raise SageUnavailable("there is no time left to ask the Sage", method=method, cause="no-time")
    return min(within, MOST_WITHIN)


def _requests(outcomes: Sequence[TaskOutcome]) -> Iterator[sage_service_pb2.RecordOutcomeRequest]:
    """As few requests as hold them all."""
    batch: list[advice_pb2.TaskOutcome] = []
    size = 0
    for outcome in map(convert.outcome_to_proto, outcomes):
        bytes_ = outcome.ByteSize() + 8  # its length and number, at most
        if batch and (len(batch) == MOST_OUTCOMES or size + bytes_ > MOST_REQUEST_BYTES):
            yield sage_service_pb2.RecordOutcomeRequest(outcomes=batch)
            batch, size = [], 0
        batch.append(outcome)
        size += bytes_
    if batch:
        yield sage_service_pb2.RecordOutcomeRequest(outcomes=batch)


async def _answer(method: str, call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _trouble(method, error.code(), from_rpc_error(error)) from error


def _trouble(method: str, code: grpc.StatusCode, error: HopperError) -> HopperError:
    # What the Sage says about it is a stranger's text: only its code and its reason, which are words of ours, go on.
    if code in _REFUSALS:
        return SageRefused(
            f"the Sage refused {method}: {code.name}, {error.reason}",
            method=method,
            code=code.name,
            refusal=error.reason,
        )
    cause = "too-slow" if code is grpc.StatusCode.DEADLINE_EXCEEDED else code.name.lower()
    trouble = SageUnavailable(f"the Sage did not answer {method}: {cause}", method=method, cause=cause)
    trouble.retry_after = error.retry_after or trouble.retry_after
    return trouble
