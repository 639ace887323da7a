"""What the service does around a mind, whatever the mind does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper.sage.v1.sage_service_pb2_grpc import SageServiceStub
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_sage.mind import ReferenceMind
from hopper_sage.model import (
    Advised,
    Answer,
    Choice,
    Clarification,
    Cost,
    Performance,
    Question,
    Ranked,
    Remembered,
    Task,
)
from hopper_sage.ports import About, Mind, ModelAdvice, ModelFailed
from hopper_testing.clock import ManualClock
from hopper_testing.sage_conformance import asking
from tests.sage.harness import serving

if TYPE_CHECKING:
    from hopper.sage.v1.sage_service_pb2_grpc import SageServiceAsyncStub


class Scripted:
    """A mind that says what it is told to, when it is told to; `ports.Mind`."""

    def __init__(self, answer: Answer | Exception, *, at_once: bool = True) -> None:
        self.about = About("scripted", "1", "Says what it is told to.", clarifies=True)
        self.answer = answer
        self.asked: list[Question] = []
        self.past: Sequence[Remembered] = ()
        self.go_on = asyncio.Event()
        self.thinking = asyncio.Event()
        if at_once:
            self.go_on.set()

    async def advise(self, question: Question, past: Sequence[Remembered]) -> Advised:
        self.asked.append(question)
        self.past = past
        self.thinking.set()
        await self.go_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return Advised(self.answer, Cost(money=7))

    async def prioritize(
        self, tasks: Sequence[Task], past: Mapping[str, Sequence[Remembered]], now: datetime
    ) -> tuple[list[Ranked], Cost]:
        return [Ranked(tasks[0].name, "")] * len(tasks), Cost()

    def remark(self, performance: Performance) -> str:
        return "two\nlines"


@asynccontextmanager
async def asked_of(directory: Path, mind: Mind) -> AsyncIterator["SageServiceAsyncStub"]:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(directory, mind=mind, clock=ManualClock()))
        yield SageServiceStub(await stack.enter_async_context(open_channel(address)))


async def refusal(call: Awaitable[Any]) -> HopperError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def easy_choice(request: sage_service_pb2.DecideRoutingRequest, reason: str = "so") -> Choice:
    return Choice(request.candidates[0].project, 0.9, reason)


async def test_a_question_is_thought_about_once_however_often_it_is_asked(directory: Path) -> None:
    request = asking.easy()
    mind = Scripted(easy_choice(request), at_once=False)
    async with asked_of(directory, mind) as sage:
        calls = [asyncio.ensure_future(sage.DecideRouting(request)) for _ in range(5)]
        await mind.thinking.wait()
        mind.go_on.set()
        answers = await asyncio.gather(*calls)
    assert len(mind.asked) == 1
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].cost.money_micros == 7


async def test_another_question_about_a_decision_that_is_being_thought_about_is_a_conflict(
    directory: Path,
) -> None:
    request = asking.easy()
    mind = Scripted(easy_choice(request), at_once=False)
    async with asked_of(directory, mind) as sage:
        first = asyncio.ensure_future(sage.DecideRouting(request))
        await mind.thinking.wait()
        request.task.title = "Something else"
        error = await refusal(sage.DecideRouting(request))
        assert error.reason == "IDEMPOTENCY_CONFLICT"
        mind.go_on.set()
        assert (await first).choice.reason == "so"


async def test_an_answer_is_kept_although_nobody_waited_for_it(directory: Path) -> None:
    request = asking.easy()
    mind = Scripted(easy_choice(request), at_once=False)
    async with asked_of(directory, mind) as sage:
        gone = asyncio.ensure_future(sage.DecideRouting(request))
        await mind.thinking.wait()
        gone.cancel()
        await asyncio.wait([gone])
        mind.go_on.set()
        assert (await sage.DecideRouting(request)).choice.reason == "so"
    assert len(mind.asked) == 1


async def test_a_mind_that_takes_too_long_abstains(directory: Path) -> None:
    request = asking.easy(within=timedelta(milliseconds=100))
    mind = Scripted(easy_choice(request), at_once=False)
    async with asked_of(directory, mind) as sage:
        response = await sage.DecideRouting(request)
        assert response.abstention.kind == advice_pb2.Abstention.KIND_OUT_OF_TIME
        mind.go_on.set()
        assert await sage.DecideRouting(request) == response


@pytest.mark.parametrize(
    "answer",
    [
        Choice("projects/admin", 0.9, "because it said so"),
        Choice("", 1.5, "too sure"),
        Choice("", float("nan"), "no number"),
        Clarification("\n\u200b"),
        KeyError("a defect"),
    ],
    ids=["elsewhere", "too-sure", "no-number", "no-question", "defect"],
)
async def test_what_the_contract_does_not_allow_is_a_defect_and_not_kept(
    directory: Path, answer: Answer | Exception
) -> None:
    request = asking.easy()
    if isinstance(answer, Choice) and not answer.project:
        answer = Choice(request.candidates[0].project, answer.confidence, answer.reason)
    mind = Scripted(answer)
    async with asked_of(directory, mind) as sage:
        error = await refusal(sage.DecideRouting(request))
        assert error.reason == "INTERNAL"
        assert request.task.title not in error.message
        mind.answer = easy_choice(request)
        assert (await sage.DecideRouting(request)).choice.reason == "so"


async def test_words_are_made_fit_to_be_shown(directory: Path) -> None:
    request = asking.easy()
    async with asked_of(directory, Scripted(easy_choice(request, "a\x1b[2J\n" + "é" * 2000))) as sage:
        reason = (await sage.DecideRouting(request)).choice.reason
        assert reason.startswith("a[2J é")
        assert len(reason.encode()) <= 1000
        report = await sage.ReportPerformance(sage_service_pb2.ReportPerformanceRequest())
        assert report.performance.remarks == "two lines"


async def test_a_mind_sees_past_tasks_but_not_this_one(directory: Path) -> None:
    first = asking.easy()
    mind = Scripted(easy_choice(first))
    async with asked_of(directory, mind) as sage:
        await sage.DecideRouting(first)
        own = asking.outcome(first.decision, first.candidates[0].project)
        await sage.RecordOutcome(sage_service_pb2.RecordOutcomeRequest(outcomes=[own]))
        second = asking.question(first.task, first.candidates)
        told_early = asking.outcome(second.decision, asking.WEB)
        told_early.task.CopyFrom(second.task)
        await sage.RecordOutcome(sage_service_pb2.RecordOutcomeRequest(outcomes=[told_early]))
        await sage.DecideRouting(second)
    assert [one.decision for one in mind.past] == [first.decision]


async def test_a_queue_is_put_in_order_only_by_who_can(directory: Path) -> None:
    mind = Scripted(Clarification("?"))
    async with asked_of(directory, mind) as sage:
        request = asking.queue(asking.waiting(3))
        assert (await refusal(sage.PrioritizeQueue(request))).reason == "METHOD_NOT_OFFERED"
        mind.about = About("scripted", "1", "", prioritizes=True)
        assert (await refusal(sage.PrioritizeQueue(request))).reason == "INTERNAL"


async def test_refusals_name_the_field(directory: Path) -> None:
    async with asked_of(directory, ReferenceMind("1")) as sage:
        request = asking.easy()
        request.candidates.append(request.candidates[0])
        error = await refusal(sage.DecideRouting(request))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["candidates[1].project"]


# The reference mind with a language model.


class Model:
    """A language model that says what it is told to; `ports.LanguageModel`."""

    name = "a model"

    def __init__(self, says: ModelAdvice | Exception | None) -> None:
        self.says = says

    async def advise(self, question: Question, past: Sequence[Remembered]) -> ModelAdvice:
        if self.says is None:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        assert self.says is not None
        return self.says


def undecided(within: timedelta = asking.WITHIN) -> sage_service_pb2.DecideRoutingRequest:
    candidates = [asking.candidate(asking.WEB, 0.55), asking.candidate(asking.OPS, 0.4)]
    return asking.question(asking.task("It rattles"), candidates, within=within)


async def test_a_language_model_is_asked_and_paid_for(directory: Path) -> None:
    says = ModelAdvice(asking.OPS, 0.9, "machines rattle", cost=Cost(1, 500, 40, 1200))
    async with asked_of(directory, ReferenceMind("1", Model(says))) as sage:
        about = (await sage.GetSage(sage_service_pb2.GetSageRequest())).sage
        assert advice_pb2.Sage.CAPABILITY_LANGUAGE_MODEL in about.capabilities
        response = await sage.DecideRouting(undecided())
        assert response.choice.project == asking.OPS
        assert "machines rattle" in response.choice.reason
        report = await sage.ReportPerformance(sage_service_pb2.ReportPerformanceRequest())
    cost = report.performance.cost
    assert (cost.model_calls, cost.input_tokens, cost.output_tokens, cost.money_micros) == (1, 500, 40, 1200)


@pytest.mark.parametrize(
    "says",
    [
        ModelFailed("down"),
        None,
        ModelAdvice("projects/admin", 1.0, "it said so"),
        ModelAdvice(asking.OPS, 7.0, "very sure"),
        ModelAdvice(asking.OPS, float("nan"), "who knows"),
    ],
    ids=["down", "hangs", "elsewhere", "too-sure", "no-number"],
)
async def test_without_its_language_model_the_journal_answers(
    directory: Path, says: ModelAdvice | Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 20 s, one that hangs gets 0.3: what is left is enough also on a machine that stands still for a while.
    monkeypatch.setattr("hopper_sage.mind._MODEL_SHARE", 0.02)
    request = undecided(timedelta(seconds=20))
    async with asked_of(directory, ReferenceMind("1", Model(says))) as sage:
        assert (await sage.DecideRouting(request)).choice.project == asking.WEB
