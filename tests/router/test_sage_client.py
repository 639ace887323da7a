"""The router's client of a Sage: what it sends, what it believes, and what it makes of trouble."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hopper.sage.v1 import advice_pb2, sage_service_pb2, sage_service_pb2_grpc
from hopper_common.rpc.limits import check_limits
from hopper_router.sage.advisor import (
    Abstention,
    Asked,
    Candidate,
    Capability,
    Choice,
    Clarification,
    Cost,
    Factor,
    Outcome,
    Precedent,
    Question,
    Reply,
    SageAdvisor,
    TaskOutcome,
    Why,
)
from hopper_router.sage.client import MOST_ANSWER_BYTES, SageClient, open_sage_channel
from hopper_router.sage.convert import question_to_proto
from hopper_router.sage.errors import SageAnswerInvalid, SageRefused, SageUnavailable
from hopper_testing.clock import ManualClock
from hopper_testing.processes import temporary_directory
from tests.sage.harness import serving, serving_bare

WEB, API = "projects/web", "projects/api"
WITHIN = timedelta(seconds=60)
"""Long enough for any machine: who is to be late is given less."""
NOW = datetime(2026, 6, 1, tzinfo=UTC)

Respond = Callable[[Any, Any], Any]


class Stranger(sage_service_pb2_grpc.SageServiceServicer):
    """Answers everything with what the test says, and remembers what it was sent."""

    def __init__(self) -> None:
        self.respond: Respond = lambda request, context: None
        self.seen: list[Any] = []

    async def _any(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        answer = self.respond(request, context)
        return await answer if asyncio.iscoroutine(answer) else answer

    GetSage = DecideRouting = PrioritizeQueue = RecordOutcome = ReportPerformance = _any


@pytest.fixture
def directory() -> Any:
    with temporary_directory() as path:
        yield path


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def stranger() -> Stranger:
    return Stranger()


@pytest.fixture
async def client(
    stack: AsyncExitStack, directory: Path, stranger: Stranger, clock: ManualClock
) -> SageClient:
    """A client of the stranger."""
    address = await stack.enter_async_context(serving_bare(directory, stranger))
    return SageClient(await stack.enter_async_context(open_sage_channel(address)), clock)


@pytest.fixture
async def reference(stack: AsyncExitStack, directory: Path, clock: ManualClock) -> SageClient:
    """A client of the reference Sage."""
    address = await stack.enter_async_context(serving(directory))
    return SageClient(await stack.enter_async_context(open_sage_channel(address)), clock)


def asked(name: str = "t1", title: str = "Fix the login page", **more: Any) -> Asked:
    return Asked(f"instances/global/tasks/{name}", title, **more)


def question(decision: str = "d1", confidence: float = 0.9) -> Question:
    candidates = [Candidate(WEB, "Web", "the shop", confidence=confidence), Candidate(API, confidence=0.05)]
    return Question(f"decisions/{decision}", "instances/global", asked(), candidates)


def choice(project: str = WEB, confidence: float = 0.9, reason: str = "so", **more: Any) -> Any:
    made = advice_pb2.Choice(project=project, confidence=confidence, reason=reason, **more)
    return sage_service_pb2.DecideRoutingResponse(choice=made)


# With the reference Sage: the whole way.


async def test_it_is_the_port(reference: SageClient) -> None:
    advisor: SageAdvisor = reference
    about = await advisor.about()
    assert about.name == "reference"
    assert about.capabilities == {Capability.CLARIFY, Capability.PRIORITIZE, Capability.LEARN}


async def test_asked_told_and_reported(reference: SageClient) -> None:
    advice = await reference.decide(question(), within=WITHIN)
    assert isinstance(advice.answer, Choice)
    assert advice.answer.project == WEB
    told = TaskOutcome("decisions/d1", Outcome.SUCCEEDED, WEB, duration=timedelta(minutes=5))
    assert (await reference.record([told])).new == 1
    assert (await reference.record([told])).new == 0
    assert (await reference.record([TaskOutcome("decisions/d9", Outcome.FAILED, WEB)])).unknown == 1
    seen = await reference.report()
    assert (seen.decisions, seen.judged, seen.right, seen.accuracy) == (1, 1, 1, 1.0)
    assert (await reference.report(NOW - timedelta(days=9000), NOW - timedelta(days=8999))).decisions == 0


async def test_a_reply_is_a_new_question(reference: SageClient) -> None:
    candidates = [Candidate(WEB, confidence=0.4), Candidate(API, confidence=0.4)]
    torn = Question("decisions/d1", "instances/global", asked(title="It rattles"), candidates)
    advice = await reference.decide(torn, within=WITHIN)
    assert isinstance(advice.answer, Clarification)
    replies = [Reply(advice.answer.question, "the API"), Reply("Really?", "Yes")]
    again = Question("decisions/d2", torn.instance, torn.task, torn.candidates, replies=replies)
    settled = await reference.decide(again, within=WITHIN)
    assert isinstance(settled.answer, Abstention)
    assert settled.answer.kind is Why.UNSURE


async def test_an_order_of_more_tasks_than_a_sage_takes(reference: SageClient) -> None:
    tasks = [asked(f"t{n}", priority=n % 100) for n in range(230)]
    order = await reference.prioritize("projects/web", tasks, within=WITHIN)
    names = [one.task for one in order.ranked]
    assert sorted(names) == sorted(task.name for task in tasks)
    assert names[200:] == [task.name for task in tasks[200:]]
    assert [one.reason for one in order.ranked[200:]] == [""] * 30


async def test_many_outcomes_are_told_in_several_calls(reference: SageClient) -> None:
    task = asked(description="x" * 9000, tags=[f"{'t' * 90}{n}" for n in range(64)])
    told = [TaskOutcome(f"decisions/d{n}", Outcome.SUCCEEDED, WEB, task=task) for n in range(700)]
    assert (await reference.record(told)).new == 700


async def test_the_same_decision_with_another_question_is_refused(reference: SageClient) -> None:
    await reference.decide(question(), within=WITHIN)
    with pytest.raises(SageRefused) as caught:
        await reference.decide(question(confidence=0.8), within=WITHIN)
    assert dict(caught.value.metadata) == {
        "method": "DecideRouting",
        "code": "ALREADY_EXISTS",
        "refusal": "IDEMPOTENCY_CONFLICT",
    }


# What it sends.


def test_what_is_too_much_is_cut_to_what_the_contract_takes() -> None:
    big = Question(
        "decisions/d1",
        "instances/global",
        asked(
            description="é" * 9000,
            priority=0,
            finish_by=NOW,
            estimated_effort=timedelta(hours=1),
            requester="ann",
        ),
        [
            Candidate(f"projects/p{n}", "n" * 300, "d" * 5000, ("python",), 0.1, [Factor("text", -0.5, 2.0)])
            for n in range(30)
        ],
        precedents=[Precedent(f"decisions/p{n}", "t" * 400, WEB, n % 2 == 0 or None, 0.5) for n in range(30)],
        replies=[Reply(f"question {n}" + "q" * 2000, "a" * 5000) for n in range(15)],
    )
    sent = question_to_proto(big)
    sent.answer_within.FromSeconds(1)
    check_limits(sent)
    assert sent.ByteSize() < 512 * 1024
    assert [one.project for one in sent.candidates] == [f"projects/p{n}" for n in range(20)]
    assert sent.replies[-1].question.startswith("question 14")
    assert sent.task.HasField("priority")
    assert [one.HasField("success") for one in sent.precedents[:2]] == [True, False]
    assert len(sent.task.description.encode()) == 4000


async def test_a_sage_has_as_long_as_the_router(client: SageClient, stranger: Stranger) -> None:
    left: list[float] = []

    def respond(request: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        return choice()

    stranger.respond = respond
    await client.decide(question(), within=timedelta(seconds=7))
    assert stranger.seen[0].answer_within.ToTimedelta() == timedelta(seconds=7)
    assert 0 < left[0] < 8  # of a deadline, gRPC sends a little more than is left


# What it believes.


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (choice("projects/admin"), "a project that is not on the shortlist"),
        (choice(""), "a project that is not on the shortlist"),
        (choice(confidence=1.01), "a confidence that is no number from 0 to 1"),
        (choice(confidence=-0.01), "a confidence that is no number from 0 to 1"),
        (choice(confidence=math.nan), "a confidence that is no number from 0 to 1"),
        (choice(confidence=math.inf), "a confidence that is no number from 0 to 1"),
        (sage_service_pb2.DecideRoutingResponse(), "no answer that this router knows"),
        (
            sage_service_pb2.DecideRoutingResponse(
                clarification=advice_pb2.Clarification(question=" \n\u200b")
            ),
            "a clarification without a question",
        ),
        (
            sage_service_pb2.DecideRoutingResponse(
                choice=choice().choice, cost=advice_pb2.SageCost(money_micros=-1)
            ),
            "a cost below nothing",
        ),
    ],
)
async def test_what_is_no_answer(client: SageClient, stranger: Stranger, response: Any, problem: str) -> None:
    stranger.respond = lambda request, context: response
    with pytest.raises(SageAnswerInvalid) as caught:
        await client.decide(question(), within=WITHIN)
    assert dict(caught.value.metadata) == {"method": "DecideRouting", "problem": problem}


async def test_a_candidate_that_was_not_sent_is_not_on_the_shortlist(
    client: SageClient, stranger: Stranger
) -> None:
    candidates = [Candidate(f"projects/p{n}", confidence=0.04) for n in range(21)]
    stranger.respond = lambda request, context: choice("projects/p20")
    with pytest.raises(SageAnswerInvalid):
        await client.decide(Question("decisions/d1", "instances/global", asked(), candidates), within=WITHIN)


async def test_words_are_cut_and_cleaned_and_spoil_no_choice(client: SageClient, stranger: Stranger) -> None:
    words = "\x1b[31mfine\u202e\nbecause " + "x" * 5000
    precedents = ["decisions/a", "decisions/Not A Name", *(f"decisions/b{n}" for n in range(20))]
    stranger.respond = lambda request, context: choice(reason=words, precedents=precedents)
    answer = (await client.decide(question(), within=WITHIN)).answer
    assert isinstance(answer, Choice)
    assert answer.reason.startswith("[31mfine because xxx")
    assert answer.reason.isprintable()
    assert len(answer.reason.encode()) <= 1000
    assert answer.precedents == ["decisions/a", *(f"decisions/b{n}" for n in range(9))]


async def test_a_question_back_is_cut_and_cleaned(client: SageClient, stranger: Stranger) -> None:
    asked_back = advice_pb2.Clarification(question="Which\r\npage?" + "!" * 5000, reason="\x07")
    stranger.respond = lambda request, context: sage_service_pb2.DecideRoutingResponse(
        clarification=asked_back
    )
    answer = (await client.decide(question(), within=WITHIN)).answer
    assert isinstance(answer, Clarification)
    assert answer.question.startswith("Which page?!!!")
    assert len(answer.question.encode()) <= 1000
    assert answer.reason == ""


async def test_a_newer_sage_is_understood_as_far_as_it_can_be(client: SageClient, stranger: Stranger) -> None:
    newer = advice_pb2.Abstention(reason="the stars are not right")
    newer.kind = 99  # type: ignore[assignment]
    stranger.respond = lambda request, context: sage_service_pb2.DecideRoutingResponse(abstention=newer)
    assert (await client.decide(question(), within=WITHIN)).answer == Abstention(Why.UNSURE, newer.reason)
    sage = advice_pb2.Sage(name="new", version="9")
    sage.capabilities.extend([1, 99])  # type: ignore[list-item]
    stranger.respond = lambda request, context: sage_service_pb2.GetSageResponse(sage=sage)
    assert (await client.about()).capabilities == {Capability.CLARIFY}


@pytest.mark.parametrize("names", [["t1"], ["t1", "t1"], ["t1", "t2", "t2"], ["t1", "t3"], []])
async def test_an_order_is_of_these_tasks_once_each(
    client: SageClient, stranger: Stranger, names: list[str]
) -> None:
    order = [advice_pb2.RankedTask(task=f"instances/global/tasks/{name}") for name in names]
    stranger.respond = lambda request, context: sage_service_pb2.PrioritizeQueueResponse(order=order)
    with pytest.raises(SageAnswerInvalid):
        await client.prioritize("projects/web", [asked("t1"), asked("t2")], within=WITHIN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decisions": 3, "choices": 2},
        {"decisions": 1, "choices": 1, "judged": 2},
        {"decisions": 1, "choices": 1, "judged": 1},  # and no bin holds it
        {"accuracy": 1.5},
        {"calibration_error": math.nan},
        {"decisions": -1, "choices": -1},
    ],
)
async def test_a_report_that_contradicts_itself_is_no_report(
    client: SageClient, stranger: Stranger, wrong: dict[str, Any]
) -> None:
    seen = advice_pb2.SagePerformance(**wrong)
    stranger.respond = lambda request, context: sage_service_pb2.ReportPerformanceResponse(performance=seen)
    with pytest.raises(SageAnswerInvalid):
        await client.report()


async def test_a_sage_without_a_name_is_none(client: SageClient, stranger: Stranger) -> None:
    stranger.respond = lambda request, context: sage_service_pb2.GetSageResponse()
    with pytest.raises(SageAnswerInvalid):
        await client.about()


async def test_costs_come_with_advice(client: SageClient, stranger: Stranger) -> None:
    response = choice()
    response.cost.CopyFrom(
        advice_pb2.SageCost(model_calls=1, input_tokens=2, output_tokens=3, money_micros=4)
    )
    stranger.respond = lambda request, context: response
    assert (await client.decide(question(), within=WITHIN)).cost == Cost(1, 2, 3, 4)


# What it makes of trouble.


def aborting(code: grpc.StatusCode, details: str = "secret of a task") -> Respond:
    async def respond(request: Any, context: Any) -> None:
        await context.abort(code, details)

    return respond


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, SageUnavailable),
        (grpc.StatusCode.INTERNAL, SageUnavailable),
        (grpc.StatusCode.UNKNOWN, SageUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, SageUnavailable),
        (grpc.StatusCode.ABORTED, SageUnavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, SageRefused),
        (grpc.StatusCode.UNIMPLEMENTED, SageRefused),
        (grpc.StatusCode.PERMISSION_DENIED, SageRefused),
    ],
)
async def test_trouble_is_typed_and_quotes_nobody(
    client: SageClient, stranger: Stranger, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    stranger.respond = aborting(code)
    with pytest.raises(kind) as caught:
        await client.decide(question(), within=WITHIN)
    assert "secret" not in str(caught.value)


async def test_a_sage_that_takes_too_long_is_not_waited_for(client: SageClient, stranger: Stranger) -> None:
    async def never(request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    stranger.respond = never
    with pytest.raises(SageUnavailable) as caught:
        await client.decide(question(), within=timedelta(milliseconds=50))
    assert caught.value.metadata["cause"] == "too-slow"


async def test_with_no_time_left_nobody_is_asked(client: SageClient, stranger: Stranger) -> None:
    with pytest.raises(SageUnavailable) as caught:
        await client.decide(question(), within=timedelta(milliseconds=9))
    assert caught.value.metadata["cause"] == "no-time"
    assert stranger.seen == []


async def test_an_answer_larger_than_any_is_not_read(client: SageClient, stranger: Stranger) -> None:
    stranger.respond = lambda request, context: choice(reason="x" * (MOST_ANSWER_BYTES + 1))
    with pytest.raises(SageUnavailable):
        await client.decide(question(), within=WITHIN)


async def test_a_sage_that_fails_again_and_again_is_left_alone_for_longer_and_longer(
    client: SageClient, stranger: Stranger, clock: ManualClock
) -> None:
    stranger.respond = aborting(grpc.StatusCode.UNAVAILABLE)
    for rest in (1, 2, 4):
        while True:
            with pytest.raises(SageUnavailable) as caught:
                await client.decide(question(), within=WITHIN)
            if caught.value.metadata["cause"] == "resting":
                break
        assert caught.value.retry_after == timedelta(seconds=rest)
        clock.advance(timedelta(seconds=rest))
    assert len(stranger.seen) == 5  # three at first, then one after each rest but the last
    stranger.respond = lambda request, context: choice()
    for _ in range(2):
        await client.decide(question(), within=WITHIN)
    assert len(stranger.seen) == 7


async def test_after_a_rest_one_call_finds_out(
    client: SageClient, stranger: Stranger, clock: ManualClock
) -> None:
    stranger.respond = lambda request, context: choice("projects/admin")
    for _ in range(3):
        with pytest.raises(SageAnswerInvalid):
            await client.decide(question(), within=WITHIN)
    clock.advance(timedelta(seconds=1))
    here, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(request: Any, context: Any) -> Any:
        here.set()
        await go_on.wait()
        return choice()

    stranger.respond = slowly
    trying = asyncio.create_task(client.decide(question(), within=WITHIN))
    await here.wait()
    with pytest.raises(SageUnavailable):
        await client.decide(question(), within=WITHIN)
    go_on.set()
    await trying
    await client.decide(question(), within=WITHIN)


async def test_a_call_that_was_given_up_does_not_keep_others_out(
    client: SageClient, stranger: Stranger, clock: ManualClock
) -> None:
    stranger.respond = aborting(grpc.StatusCode.UNAVAILABLE)
    for _ in range(3):
        with pytest.raises(SageUnavailable):
            await client.about()
    clock.advance(timedelta(seconds=1))
    here = asyncio.Event()

    async def never(request: Any, context: Any) -> None:
        here.set()
        await asyncio.Event().wait()

    stranger.respond = never
    trying = asyncio.create_task(client.decide(question(), within=WITHIN))
    await here.wait()
    trying.cancel()
    await asyncio.wait([trying])
    stranger.respond = lambda request, context: choice()
    await client.decide(question(), within=WITHIN)


async def test_refusals_do_not_count_as_failures(client: SageClient, stranger: Stranger) -> None:
    stranger.respond = aborting(grpc.StatusCode.INVALID_ARGUMENT)
    for _ in range(10):
        with pytest.raises(SageRefused):
            await client.decide(question(), within=WITHIN)
    assert len(stranger.seen) == 10


async def test_nobody_there(directory: Path, clock: ManualClock) -> None:
    async with open_sage_channel(f"unix:{directory / 'nobody.sock'}") as channel:
        with pytest.raises(SageUnavailable) as caught:
            await SageClient(channel, clock).decide(question(), within=WITHIN)
    assert caught.value.metadata["cause"] == "unavailable"
    assert caught.value.retry_after == timedelta(seconds=1)
