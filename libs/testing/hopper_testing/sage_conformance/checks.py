"""
The checks: one promise of the contract each.

They only go by what the contract says. How good a Sage's advice is they do not judge, with two exceptions: a question
with one candidate of which the router is all but sure has to get a choice, because nothing else of a Sage that never
chooses could be checked; and one that says it learns has to have learned after it was told the same thing six times.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper_common.timestamps import to_proto
from hopper_testing.sage_conformance import asking
from hopper_testing.sage_conformance.checking import (
    Broken,
    Check,
    NotApplicable,
    answered,
    hold,
    keeps_limits,
    printable,
    refused,
)
from hopper_testing.sage_conformance.stage import TIMEOUT, Sage

CHECKS: Final[list[Check]] = []

_INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
_UNKNOWN_FIELD: Final = b"\xc2\x3e\x00"  # number 1000, empty
_Run = Callable[[Sage], Awaitable[None]]


def _check(promise: str) -> Callable[[_Run], _Run]:
    def keep(run: _Run) -> _Run:
        CHECKS.append(Check(run.__name__, promise, run))
        return run

    return keep


# Answers.


@_check("it says who it is")
async def identity(sage: Sage) -> None:
    about = await sage.about()
    keeps_limits(sage_service_pb2.GetSageResponse(sage=about), "GetSage")
    printable(about.description, "the description")
    hold(len(set(about.capabilities)) == len(about.capabilities), "a capability is named twice")
    hold(advice_pb2.Sage.CAPABILITY_UNSPECIFIED not in about.capabilities, "a capability is left unspecified")


@_check("an easy question gets a choice")
async def easy_choice(sage: Sage) -> None:
    await _choice(sage)


@_check("it chooses from the shortlist only, and every answer keeps to its form and limits")
async def well_formed(sage: Sage) -> None:
    may_ask = await sage.can(advice_pb2.Sage.CAPABILITY_CLARIFY)
    for request in asking.varied():
        _check_answer(request, await sage.decide(request), may_ask=may_ask)


@_check("tasks that give orders, or break terminals, are answered as any other")
async def hostile_tasks(sage: Sage) -> None:
    may_ask = await sage.can(advice_pb2.Sage.CAPABILITY_CLARIFY)
    for request in asking.hostile():
        _check_answer(request, await sage.decide(request), may_ask=may_ask)


@_check("it asks one printable question at a time, and none after ten replies")
async def clarifications(sage: Sage) -> None:
    if not await sage.can(advice_pb2.Sage.CAPABILITY_CLARIFY):
        raise NotApplicable("it never asks back")
    request = asking.torn()
    for _ in range(11):
        response = await sage.decide(request)
        _check_answer(request, response, may_ask=len(request.replies) < 10)
        if response.WhichOneof("answer") != "clarification":
            return
        request.decision = asking.new_decision()
        request.replies.add(question=response.clarification.question, answer="I cannot tell")
    raise Broken("it asked again after ten replies")


@_check("it answers within the time it is given, also several at once")
async def in_time(sage: Sage) -> None:
    within = timedelta(seconds=1)

    async def ask() -> float:
        request = asking.easy(within=within)
        start = time.monotonic()
        await answered(
            sage.stub.DecideRouting(request, timeout=TIMEOUT), "DecideRouting with a second to answer"
        )
        return time.monotonic() - start

    for _ in range(3):  # a machine that stands still for a moment makes any Sage late, but not each time
        slowest = max(await asyncio.gather(*(ask() for _ in range(8))))
        if slowest <= within.total_seconds():
            return
    raise Broken(f"it had a second to answer, and took {slowest:.2f} s")


# The same again.


@_check("the same question gets the first answer again, however long it may take this time")
async def same_answer(sage: Sage) -> None:
    for request in (asking.easy(), asking.torn()):
        first = await sage.decide(request)
        hold(await sage.decide(request) == first, "the same question got another answer")
        request.answer_within.CopyFrom(to_proto(asking.WITHIN / 2))
        hold(
            await sage.decide(request) == first,
            "the same question with another answer_within got another answer",
        )


@_check("a question that is asked several times at once gets one answer")
async def same_answer_at_once(sage: Sage) -> None:
    request = asking.easy()
    answers = await asyncio.gather(*(sage.decide(request) for _ in range(8)))
    hold(all(answer == answers[0] for answer in answers), "one question, asked at once, got several answers")
    before = await sage.report()
    await sage.decide(request)
    hold((await sage.report()).decisions == before.decisions, "a question that came again was counted again")


@_check("another question about a decision is refused")
async def other_question(sage: Sage) -> None:
    request = asking.easy()
    await sage.decide(request)
    request.task.title = "Something else entirely"
    await refused(
        sage.stub.DecideRouting(request, timeout=TIMEOUT),
        "a decision with another question",
        grpc.StatusCode.ALREADY_EXISTS,
    )


# Orders.


@_check("an order has every task of the queue once")
async def permutation(sage: Sage) -> None:
    if not await sage.can(advice_pb2.Sage.CAPABILITY_PRIORITIZE):
        await refused(
            sage.stub.PrioritizeQueue(asking.queue(asking.waiting(2)), timeout=TIMEOUT),
            "PrioritizeQueue without the capability PRIORITIZE",
            grpc.StatusCode.UNIMPLEMENTED,
        )
        raise NotApplicable("it puts no queues in order")
    for count in (1, 2, 40, 200):
        tasks = asking.waiting(count)
        call = sage.stub.PrioritizeQueue(asking.queue(tasks), timeout=asking.WITHIN.total_seconds())
        response = await answered(call, f"PrioritizeQueue of {count}")
        keeps_limits(response, f"PrioritizeQueue of {count}")
        names = [one.task for one in response.order]
        hold(
            sorted(names) == sorted(task.name for task in tasks),
            f"the order of {count} tasks is not of these, once each",
        )
        for one in response.order:
            printable(one.reason, "the reason for a place")


# Outcomes.


@_check("an outcome that is told again changes nothing, and the greatest revision counts")
async def outcomes_once(sage: Sage) -> None:
    decision, project = await _choice(sage)
    told = asking.outcome(decision, project, revision=5)
    hold(
        (await sage.record(told, told)).new_outcomes == 1,
        "an outcome that came twice was new twice, or never",
    )
    report = await sage.report()
    for revision in (5, 4, 0):
        again = asking.outcome(decision, asking.OPS, revision=revision)
        hold((await sage.record(again)).new_outcomes == 0, f"revision {revision} was new after revision 5")
    hold(await sage.report() == report, "an outcome that was not new changed the report")
    later = asking.outcome(decision, asking.OPS, success=True, revision=6)
    hold((await sage.record(later)).new_outcomes == 1, "revision 6 was not new after revision 5")
    hold(
        (await sage.report()).right == report.right - 1,
        "a choice that turned out wrong later still counts as right",
    )


@_check("outcomes of decisions it was not asked about are taken, and said to be unknown or new")
async def unknown_outcomes(sage: Sage) -> None:
    stranger = asking.outcome(asking.new_decision(), asking.WEB)
    response = await sage.record(stranger)
    hold(
        (response.new_outcomes, response.unknown_decisions) == (0, 1),
        "an outcome of a strange decision is not unknown",
    )
    stranger.decision = asking.new_decision()
    stranger.task.CopyFrom(asking.task("A task that it was not asked about"))
    response = await sage.record(stranger)
    hold(
        response.new_outcomes + response.unknown_decisions == 1,
        "an outcome is neither new nor unknown, or both",
    )
    hold((await sage.record(stranger)).new_outcomes == 0, "the outcome of a strange decision was new twice")


@_check("outcomes are recorded all or none")
async def all_or_none(sage: Sage) -> None:
    decision, project = await _choice(sage)
    good, bad = asking.outcome(decision, project), asking.outcome("decisions/", project)
    request = sage_service_pb2.RecordOutcomeRequest(outcomes=[good, bad])
    await refused(
        sage.stub.RecordOutcome(request, timeout=TIMEOUT), "an outcome without a decision", _INVALID
    )
    hold((await sage.record(good)).new_outcomes == 1, "a request that was refused was recorded in part")


@_check("its report counts what it answered, and judges it by the outcomes it was told")
async def report(sage: Sage) -> None:
    before = await sage.report()
    chosen = [await _choice(sage) for _ in range(5)]
    how = advice_pb2.TaskOutcome
    await sage.record(
        asking.outcome(*chosen[0]),
        asking.outcome(chosen[1][0], asking.OPS, success=True),
        asking.outcome(*chosen[2], how=how.OUTCOME_FAILED),
        asking.outcome(*chosen[3], how=how.OUTCOME_CANCELLED),
    )
    after = await sage.report()
    keeps_limits(sage_service_pb2.ReportPerformanceResponse(performance=after), "ReportPerformance")
    printable(after.remarks, "the remarks")
    more = {
        name: getattr(after, name) - getattr(before, name)
        for name in ("decisions", "choices", "judged", "right")
    }
    wanted = {"decisions": 5, "choices": 5, "judged": 3, "right": 1}
    hold(more == wanted, f"five choices, one right, two wrong, two not judged, changed the report by {more}")
    _check_report(after)


@_check("its report is of the time that is asked for")
async def report_of_a_time(sage: Sage) -> None:
    await _choice(sage)
    for start, end in ((0, 1), (32_503_680_000, 0)):
        request = sage_service_pb2.ReportPerformanceRequest(start_time=Timestamp(seconds=start))
        if end:
            request.end_time.seconds = end
        response = await answered(sage.stub.ReportPerformance(request, timeout=TIMEOUT), "ReportPerformance")
        hold(
            response.performance.decisions == 0,
            "decisions in the report of a time in which it was asked nothing",
        )
    backwards = sage_service_pb2.ReportPerformanceRequest(
        start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=1)
    )
    await refused(
        sage.stub.ReportPerformance(backwards, timeout=TIMEOUT), "a time that ends before it begins", _INVALID
    )


@_check("it learns from outcomes, if it says so")
async def learning(sage: Sage) -> None:
    if not await sage.can(advice_pb2.Sage.CAPABILITY_LEARN):
        raise NotApplicable("it does not learn")
    word = asking.new_decision()[-8:]

    def ask() -> sage_service_pb2.DecideRoutingRequest:
        task = asking.task(f"The {word} gadget rattles", "It did so yesterday as well.")
        return asking.question(task, [asking.candidate(asking.WEB, 0.4), asking.candidate(asking.OPS, 0.4)])

    for _ in range(6):
        request = ask()
        await sage.decide(request)
        await sage.record(asking.outcome(request.decision, asking.OPS, success=True))
    response = await sage.decide(ask())
    hold(
        response.choice.project == asking.OPS,
        "told six times where such a task belongs, it does not send the seventh there",
    )


# Refusals.


@_check("requests with fields it does not know are refused, and nothing of them is kept")
async def unknown_fields(sage: Sage) -> None:
    request = asking.easy()
    nested = request.SerializeToString() + _field(3, request.task.SerializeToString() + _UNKNOWN_FIELD)
    told = sage_service_pb2.RecordOutcomeRequest(outcomes=[asking.outcome(request.decision, asking.WEB)])
    for method, content in (
        ("GetSage", b""),
        ("DecideRouting", request.SerializeToString()),
        ("RecordOutcome", told.SerializeToString()),
        ("ReportPerformance", b""),
    ):
        await refused(
            sage.send(method, content + _UNKNOWN_FIELD), f"{method} with an unknown field", _INVALID
        )
    await refused(sage.send("DecideRouting", nested), "a task with an unknown field", _INVALID)
    hold((await sage.record(*told.outcomes)).unknown_decisions == 1, "a question that was refused was kept")


@_check("requests that break the limits are refused, and nothing of them is kept")
async def limits(sage: Sage) -> None:
    for what, request in _beyond_limits():
        await refused(sage.stub.DecideRouting(request, timeout=TIMEOUT), what, _INVALID)
    broken = asking.easy().SerializeToString().replace(b"all about", b"all \xff\xfe\xfd\xfc\xfb")
    await refused(sage.send("DecideRouting", broken), "text that is not UTF-8", _INVALID)
    large = sage_service_pb2.RecordOutcomeRequest(
        outcomes=[asking.outcome(asking.new_decision(), asking.WEB)] * 501
    )
    await refused(sage.stub.RecordOutcome(large, timeout=TIMEOUT), "501 outcomes", _INVALID)
    empty = sage_service_pb2.RecordOutcomeRequest()
    await refused(sage.stub.RecordOutcome(empty, timeout=TIMEOUT), "no outcomes", _INVALID)
    if await sage.can(advice_pb2.Sage.CAPABILITY_PRIORITIZE):
        await _check_queue_limits(sage)


@_check("a request larger than its method takes is refused, and it goes on")
async def too_large(sage: Sage) -> None:
    request = asking.easy()
    request.task.description = "x" * (600 * 1024)
    await refused(
        sage.stub.DecideRouting(request, timeout=TIMEOUT),
        "a question of 600 KiB",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        _INVALID,
    )
    await sage.about()


# Memory.


@_check("a restart keeps its answers, its outcomes and its report")
async def restart(sage: Sage) -> None:
    await _remembers(sage, kill=False)


@_check("kill -9 loses nothing that it acknowledged, in the middle of being asked and told")
async def killed(sage: Sage) -> None:
    await _remembers(sage, kill=True)
    answers: dict[
        str, tuple[sage_service_pb2.DecideRoutingRequest, sage_service_pb2.DecideRoutingResponse]
    ] = {}
    told: list[advice_pb2.TaskOutcome] = []

    async def go_on() -> None:
        while True:
            request = asking.easy()
            response = await sage.stub.DecideRouting(request, timeout=TIMEOUT)
            answers[request.decision] = (request, response)
            one = asking.outcome(request.decision, response.choice.project or asking.WEB)
            await sage.stub.RecordOutcome(
                sage_service_pb2.RecordOutcomeRequest(outcomes=[one]), timeout=TIMEOUT
            )
            told.append(one)

    asking_all = [asyncio.create_task(go_on()) for _ in range(4)]
    while len(told) < 20 and not any(task.done() for task in asking_all):
        await asyncio.wait(asking_all, timeout=0.01)
    await sage.restart(kill=True)
    for task in asking_all:
        task.cancel()
    await asyncio.gather(*asking_all, return_exceptions=True)
    hold(len(told) >= 20, "it stopped answering before it was killed")
    for one in told:
        hold(
            (await sage.record(one)).new_outcomes == 0,
            "an outcome that was acknowledged is gone after kill -9",
        )
    for request, response in answers.values():
        hold(await sage.decide(request) == response, "an answer that was given is another after kill -9")


# What checks share.


async def _choice(sage: Sage) -> tuple[str, str]:
    """Ask an easy question; returns the decision and the project chosen."""
    request = asking.easy()
    response = await sage.decide(request)
    hold(
        response.WhichOneof("answer") == "choice",
        f"a question with one candidate at {request.candidates[0].confidence} got no choice, but: {response}",
    )
    return request.decision, response.choice.project


def _check_answer(
    request: sage_service_pb2.DecideRoutingRequest,
    response: sage_service_pb2.DecideRoutingResponse,
    *,
    may_ask: bool,
) -> None:
    what = f"the answer about {request.task.title[:40]!r}"
    keeps_limits(response, what)
    match response.WhichOneof("answer"):
        case "choice":
            projects = {one.project for one in request.candidates}
            hold(
                response.choice.project in projects,
                f"{what}: {response.choice.project} is not on the shortlist",
            )
            printable(response.choice.reason, f"{what}: its reason")
        case "clarification":
            hold(may_ask, f"{what}: it asks back, and may not")
            hold(response.clarification.question.strip(), f"{what}: it asks back without a question")
            printable(response.clarification.question, f"{what}: its question")
            printable(response.clarification.reason, f"{what}: its reason")
        case "abstention":
            hold(
                response.abstention.kind != advice_pb2.Abstention.KIND_UNSPECIFIED,
                f"{what}: no kind of abstention",
            )
            printable(response.abstention.reason, f"{what}: its reason")
        case _:
            raise Broken(f"{what}: there is no answer in it")


def _check_report(seen: advice_pb2.SagePerformance) -> None:
    kinds = seen.choices + seen.clarifications + seen.abstentions
    hold(seen.decisions == kinds, "choices, clarifications and abstentions are not all decisions")
    hold(math.isclose(seen.accuracy, seen.right / seen.judged), "accuracy is not right / judged")
    hold(sum(bin_.count for bin_ in seen.bins) == seen.judged, "the bins do not hold all judged choices")
    for bin_ in seen.bins:
        hold(math.isclose(bin_.upper - bin_.lower, 0.1), "a bin is not a tenth wide")
        hold(
            bin_.lower - 1e-9 <= bin_.mean_confidence <= bin_.upper + 1e-9,
            "a bin's mean confidence is not in it",
        )
    apart = sum(bin_.count * abs(bin_.mean_confidence - bin_.accuracy) for bin_ in seen.bins) / seen.judged
    hold(
        math.isclose(seen.calibration_error, apart, abs_tol=1e-6),
        "the calibration error is not that of the bins",
    )


async def _check_queue_limits(sage: Sage) -> None:
    tasks = asking.waiting(2)
    for what, request in (
        ("an empty queue", asking.queue([])),
        ("201 tasks", asking.queue(asking.waiting(201))),
        ("one task twice", asking.queue([tasks[0], tasks[0]])),
        ("a queue without a name", sage_service_pb2.PrioritizeQueueRequest(tasks=tasks)),
    ):
        await refused(sage.stub.PrioritizeQueue(request, timeout=TIMEOUT), what, _INVALID)


def _beyond_limits() -> Iterator[tuple[str, sage_service_pb2.DecideRoutingRequest]]:
    changes: dict[str, Callable[[sage_service_pb2.DecideRoutingRequest], object]] = {
        "no decision": lambda request: request.ClearField("decision"),
        "a decision's name that is none": lambda request: setattr(request, "decision", "decisions/No Name"),
        "no instance": lambda request: request.ClearField("instance"),
        "no task": lambda request: request.ClearField("task"),
        "a task without a title": lambda request: request.task.ClearField("title"),
        "a title of 301 bytes": lambda request: setattr(request.task, "title", "x" * 301),
        "a description of 4,001 bytes": lambda request: setattr(
            request.task, "description", "é" * 2000 + "x"
        ),
        "a tag with a space": lambda request: request.task.tags.append("two words"),
        "a text with a NUL": lambda request: setattr(request.task, "description", "a\0b"),
        "a priority of 101": lambda request: setattr(request.task, "priority", 101),
        "no candidates": lambda request: request.ClearField("candidates"),
        "21 candidates": lambda request: request.candidates.extend(
            asking.candidate(f"projects/p{n}", 0.01) for n in range(20)
        ),
        "a candidate twice": lambda request: request.candidates.append(request.candidates[0]),
        "a confidence of 1.5": lambda request: setattr(request.candidates[0], "confidence", 1.5),
        "a confidence that is no number": lambda request: setattr(
            request.candidates[0], "confidence", math.nan
        ),
        "no time to answer": lambda request: request.ClearField("answer_within"),
        "a millisecond to answer": lambda request: request.answer_within.FromMilliseconds(1),
        "an hour to answer": lambda request: request.answer_within.FromSeconds(3600),
        "11 replies": lambda request: [request.replies.add(question="Why?", answer="So.") for _ in range(11)],
    }
    for what, change in changes.items():
        request = asking.easy()
        change(request)
        yield what, request


async def _remembers(sage: Sage, *, kill: bool) -> None:
    request = asking.easy()
    first = await sage.decide(request)
    told = asking.outcome(request.decision, first.choice.project or asking.WEB)
    await sage.record(told)
    before = await sage.report()
    await sage.restart(kill=kill)
    hold(
        await sage.decide(request) == first, "a question that was answered got another answer after a restart"
    )
    hold((await sage.record(told)).new_outcomes == 0, "an outcome was new again after a restart")
    after = await sage.report()
    hold(
        (after.decisions, after.right) == (before.decisions, before.right),
        "its report is another after a restart",
    )


def _field(number: int, content: bytes) -> bytes:
    """A field with a length, as the wire has it; a message that comes twice is merged."""
    length, size = [], len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content
