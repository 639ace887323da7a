"""
The methods of a Sage, around its mind.

The service keeps the contract so that a mind need not: the first answer again, the time, the form of answers, and that
nothing is said before it is in the journal. A question is thought about once, however often it is asked meanwhile; and
to its end, also when its caller has gone, so that the answer is there when the caller comes again.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import grpc.aio
import structlog
from google.protobuf.message import Message

from hopper.sage.v1 import sage_service_pb2, sage_service_pb2_grpc
from hopper_common.clock import Clock
from hopper_common.errors import Internal
from hopper_common.rpc.errors import MethodNotOffered
from hopper_common.text import one_line
from hopper_common.timestamps import from_proto, time_field
from hopper_sage import convert
from hopper_sage.errors import NamedTwice, QuestionConflict, TimeReversed
from hopper_sage.model import (
    MOST_PRECEDENTS,
    MOST_RANK_REASON_BYTES,
    MOST_REASON_BYTES,
    MOST_REMARKS_BYTES,
    Abstention,
    Advised,
    Answer,
    Choice,
    Clarification,
    Question,
    Ranked,
    Remembered,
    Task,
    Why,
    performance,
)
from hopper_sage.ports import Journal, Mind

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"

PAST: Final = 20
"""Past tasks that a mind is shown with a question."""
PAST_OF_EACH: Final = 3
"""Past tasks that a mind is shown with each task of a queue."""
_THINKING: Final = 0.75
"""The share of the time there is that a mind may use; the rest is for looking up, writing down and the way."""


class MindWrong(Internal):
    """The Sage's mind gave an answer that the contract does not allow."""


class SageServicer(sage_service_pb2_grpc.SageServiceServicer):
    """A Sage with a mind and a journal."""

    def __init__(self, mind: Mind, journal: Journal, clock: Clock) -> None:
        self._mind = mind
        self._journal = journal
        self._clock = clock
        self._thinking: dict[str, tuple[bytes, asyncio.Task[bytes]]] = {}

    async def GetSage(
        self, request: sage_service_pb2.GetSageRequest, context: Context
    ) -> sage_service_pb2.GetSageResponse:
        return sage_service_pb2.GetSageResponse(sage=convert.about_to_proto(self._mind.about))

    async def DecideRouting(
        self, request: sage_service_pb2.DecideRoutingRequest, context: Context
    ) -> sage_service_pb2.DecideRoutingResponse:
        _refuse_twice("candidates[{}].project", [one.project for one in request.candidates])
        digest = _digest(request)
        response = await self._journal.answered(request.decision, digest)
        if response is None:
            response = await self._think(convert.question_from_proto(request), digest)
        return sage_service_pb2.DecideRoutingResponse.FromString(response)

    async def PrioritizeQueue(
        self, request: sage_service_pb2.PrioritizeQueueRequest, context: Context
    ) -> sage_service_pb2.PrioritizeQueueResponse:
        if not self._mind.about.prioritizes:
            raise MethodNotOffered("this Sage puts no queues in order", method="PrioritizeQueue")
        _refuse_twice("tasks[{}].name", [task.name for task in request.tasks])
        tasks = [convert.task_from_proto(task) for task in request.tasks]
        seconds = from_proto(request.answer_within).total_seconds()
        past = await self._past_of_each(tasks, seconds / 2)
        order, cost = await self._mind.prioritize(tasks, past, self._clock.now())
        return convert.order_to_proto(_checked_order(order, tasks), cost)

    async def RecordOutcome(
        self, request: sage_service_pb2.RecordOutcomeRequest, context: Context
    ) -> sage_service_pb2.RecordOutcomeResponse:
        told = [convert.told_from_proto(one) for one in request.outcomes]
        new, unknown = await self._journal.record(told, self._clock.now())
        return sage_service_pb2.RecordOutcomeResponse(new_outcomes=new, unknown_decisions=unknown)

    async def ReportPerformance(
        self, request: sage_service_pb2.ReportPerformanceRequest, context: Context
    ) -> sage_service_pb2.ReportPerformanceResponse:
        start, end = time_field(request, "start_time"), time_field(request, "end_time")
        if start is not None and end is not None and end < start:
            raise TimeReversed
        seen = performance(await self._journal.consulted(start, end))
        remarks = one_line(self._mind.remark(seen), most_bytes=MOST_REMARKS_BYTES)
        return sage_service_pb2.ReportPerformanceResponse(
            performance=convert.performance_to_proto(seen, remarks)
        )

    async def close(self) -> None:
        """Let go of what is being thought about; nobody is waiting for it any more."""
        tasks = [task for _, task in self._thinking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Thinking.

    async def _think(self, question: Question, digest: bytes) -> bytes:
        under_way = self._thinking.get(question.decision)
        if under_way is None:
            task = asyncio.create_task(self._answer(question, digest))
            self._thinking[question.decision] = (digest, task)
            task.add_done_callback(lambda done: self._thought(question.decision, done))
        else:
            asked, task = under_way
            if asked != digest:
                raise QuestionConflict(request_id=question.decision, method="DecideRouting")
        return await asyncio.shield(task)

    def _thought(self, decision: str, done: asyncio.Task[bytes]) -> None:
        del self._thinking[decision]
        if not done.cancelled() and done.exception() is not None:  # whoever asked may have gone
            log.warning("a question got no answer", decision=decision, error=type(done.exception()).__name__)

    async def _answer(self, question: Question, digest: bytes) -> bytes:
        advised = await self._advise(question)
        response = convert.advised_to_proto(advised).SerializeToString(deterministic=True)
        return await self._journal.write_answer(question, digest, advised, response, self._clock.now())

    async def _advise(self, question: Question) -> Advised:
        question = replace(question, within=_THINKING * question.within)
        try:
            async with asyncio.timeout(question.within.total_seconds()):
                asked = _with_replies(question)
                (past,) = await self._journal.similar([asked], limit=PAST)
                others = [one for one in past if one.decision != question.decision]
                advised = await self._mind.advise(question, others)
        except TimeoutError:
            return Advised(
                Abstention(Why.OUT_OF_TIME, "thinking it over would have taken longer than there was")
            )
        return Advised(_checked(advised.answer, question), advised.cost)

    async def _past_of_each(
        self, tasks: Sequence[Task], seconds: float
    ) -> Mapping[str, Sequence[Remembered]]:
        try:
            async with asyncio.timeout(seconds):
                found = await self._journal.similar(tasks, limit=PAST_OF_EACH)
        except TimeoutError:  # an order from what the tasks say themselves is better than none
            log.warning("the journal is too slow to help with a queue", tasks=len(tasks))
            return {}
        return {task.name: past for task, past in zip(tasks, found, strict=True) if past}


def _digest(request: sage_service_pb2.DecideRoutingRequest) -> bytes:
    """What a decision's name stands for: the question, and not how long there is to answer it."""
    question = sage_service_pb2.DecideRoutingRequest()
    question.CopyFrom(request)
    question.ClearField("answer_within")
    return hashlib.sha256(question.SerializeToString(deterministic=True)).digest()


def _refuse_twice(path: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise NamedTwice(path.format(index))
        seen.add(name)


def _with_replies(question: Question) -> Task:
    """The task with what its requester answered, to be searched by."""
    said = [reply.answer for reply in question.replies]
    task = question.task
    return Task(task.name, " ".join([task.title, *said]), task.description, task.tags)


# What the contract allows a mind to say.


def _checked(answer: Answer, question: Question) -> Answer:
    match answer:
        case Choice():
            if answer.project not in {one.project for one in question.candidates}:
                raise MindWrong("the mind chose what is not on the shortlist")
            if not 0 <= answer.confidence <= 1:
                raise MindWrong("the mind is sure of no number from 0 to 1")
            precedents = tuple(answer.precedents)[:MOST_PRECEDENTS]
            return Choice(answer.project, answer.confidence, _said(answer.reason), precedents)
        case Clarification():
            if not _line(answer.question):
                raise MindWrong("the mind asks back without a question")
            return Clarification(_line(answer.question), _line(answer.reason))
        case Abstention():
            return Abstention(answer.kind, _said(answer.reason))


def _line(words: str) -> str:
    return one_line(words, most_bytes=MOST_REASON_BYTES)


def _said(reason: str) -> str:
    return _line(reason) or "no reason was given"


def _checked_order(order: Sequence[Ranked], tasks: Sequence[Task]) -> list[Ranked]:
    if sorted(one.task for one in order) != sorted(task.name for task in tasks):
        raise MindWrong("the mind's order is not of the tasks that were asked about, each once")
    return [Ranked(one.task, one_line(one.reason, most_bytes=MOST_RANK_REASON_BYTES)) for one in order]
