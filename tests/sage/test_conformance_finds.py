"""The suite finds what it is there to find: Sages that each break one promise fail the check of that promise."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper_common.clock import SystemClock
from hopper_common.ids import new_id
from hopper_sage.mind import ReferenceMind
from hopper_sage.servicer import Context, SageServicer
from hopper_testing.sage_conformance import CHECKS, Broken, Running, Sage
from tests.sage.harness import InProcess, MakeServicer, opened_journal, serving, serving_bare

CHECK = {check.name: check for check in CHECKS}

Decide = sage_service_pb2.DecideRoutingRequest
Decided = sage_service_pb2.DecideRoutingResponse


class ChoosesAnything(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        response = await super().DecideRouting(request, context)
        if response.WhichOneof("answer") == "choice":
            response.choice.project = "projects/admin"
        return response


class NeverChooses(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        kind = advice_pb2.Abstention.KIND_UNSURE
        return Decided(abstention=advice_pb2.Abstention(kind=kind, reason="who knows"))


class SaysWhatItIsTold(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        response = await super().DecideRouting(request, context)
        response.choice.project = request.candidates[0].project
        response.choice.reason = f"because of {request.task.title} {request.task.description[:100]}"
        return response


class TalksTooLong(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        response = await super().DecideRouting(request, context)
        response.choice.reason = "so " * 400
        return response


class AsksForEver(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        return Decided(clarification=advice_pb2.Clarification(question="And?"))


class Slow(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        await asyncio.sleep(request.answer_within.ToTimedelta().total_seconds() + 0.05)
        return await super().DecideRouting(request, context)


class ChangesItsMind(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        response = await super().DecideRouting(request, context)
        response.choice.reason = new_id(SystemClock().now())
        return response


class TakesAnyQuestion(SageServicer):
    async def DecideRouting(self, request: Decide, context: Context) -> Decided:
        fresh = Decide()
        fresh.CopyFrom(request)
        fresh.decision = f"decisions/{new_id(SystemClock().now())}"
        return await super().DecideRouting(fresh, context)


class LosesOne(SageServicer):
    async def PrioritizeQueue(
        self, request: sage_service_pb2.PrioritizeQueueRequest, context: Context
    ) -> sage_service_pb2.PrioritizeQueueResponse:
        response = await super().PrioritizeQueue(request, context)
        response.order[-1].CopyFrom(response.order[0])
        return response


class CountsRepeats(SageServicer):
    async def RecordOutcome(
        self, request: sage_service_pb2.RecordOutcomeRequest, context: Context
    ) -> sage_service_pb2.RecordOutcomeResponse:
        response = await super().RecordOutcome(request, context)
        response.new_outcomes = len(request.outcomes)
        return response


class KnowsEverybody(SageServicer):
    async def RecordOutcome(
        self, request: sage_service_pb2.RecordOutcomeRequest, context: Context
    ) -> sage_service_pb2.RecordOutcomeResponse:
        response = await super().RecordOutcome(request, context)
        response.unknown_decisions = 0
        return response


class Boasts(SageServicer):
    async def ReportPerformance(
        self, request: sage_service_pb2.ReportPerformanceRequest, context: Context
    ) -> sage_service_pb2.ReportPerformanceResponse:
        response = await super().ReportPerformance(request, context)
        response.performance.right = response.performance.judged
        return response


class IgnoresTheTime(SageServicer):
    async def ReportPerformance(
        self, request: sage_service_pb2.ReportPerformanceRequest, context: Context
    ) -> sage_service_pb2.ReportPerformanceResponse:
        return await super().ReportPerformance(sage_service_pb2.ReportPerformanceRequest(), context)


class LearnsNothing(SageServicer):
    async def RecordOutcome(
        self, request: sage_service_pb2.RecordOutcomeRequest, context: Context
    ) -> sage_service_pb2.RecordOutcomeResponse:
        return sage_service_pb2.RecordOutcomeResponse(new_outcomes=1)


WRONG: list[tuple[MakeServicer, str, str]] = [
    (ChoosesAnything, "well_formed", "not on the shortlist"),
    (NeverChooses, "easy_choice", "got no choice"),
    (SaysWhatItIsTold, "hostile_tasks", "not one line of printable text"),
    (TalksTooLong, "well_formed", "reason"),
    (AsksForEver, "clarifications", "may not"),
    (Slow, "in_time", "took"),
    (ChangesItsMind, "same_answer", "another answer"),
    (ChangesItsMind, "same_answer_at_once", "several answers"),
    (TakesAnyQuestion, "same_answer_at_once", "counted again"),
    (TakesAnyQuestion, "other_question", "answered instead of refused"),
    (LosesOne, "permutation", "once each"),
    (CountsRepeats, "outcomes_once", "came twice"),
    (KnowsEverybody, "unknown_outcomes", "not unknown"),
    (Boasts, "report", "changed the report by"),
    (IgnoresTheTime, "report_of_a_time", "asked nothing"),
    (LearnsNothing, "learning", "told six times"),
]


@pytest.mark.parametrize(
    ("make", "check", "complaint"), WRONG, ids=lambda value: getattr(value, "__name__", "")
)
async def test_a_wrong_sage_is_found(directory: Path, make: MakeServicer, check: str, complaint: str) -> None:
    async with serving(directory, make=make) as address, Sage.connected(Running(address)) as sage:
        with pytest.raises(Broken, match=complaint):
            await CHECK[check].run(sage)


@pytest.mark.parametrize("check", ["unknown_fields", "limits", "all_or_none"])
async def test_a_sage_that_checks_nothing_is_found(directory: Path, check: str) -> None:
    async with opened_journal(directory) as journal:
        servicer = SageServicer(ReferenceMind("1"), journal, SystemClock())
        async with serving_bare(directory, servicer) as address, Sage.connected(Running(address)) as sage:
            with pytest.raises(Broken, match="instead of"):
                await CHECK[check].run(sage)
        await servicer.close()


@pytest.mark.parametrize("check", ["restart", "killed"])
async def test_a_sage_that_forgets_is_found(directory: Path, check: str) -> None:
    async def forgetful() -> AsyncIterator[str]:
        (directory / "sage.db").unlink(missing_ok=True)
        async with serving(directory) as address:
            yield address

    stage = InProcess(f"unix:{directory / 'sage.sock'}", forgetful)
    await stage.start()
    try:
        async with Sage.connected(stage) as sage:
            with pytest.raises(Broken, match="after a restart"):
                await CHECK[check].run(sage)
    finally:
        await stage.close()


def test_every_check_is_shown_to_find_something() -> None:
    shown: set[Any] = {check for _, check, _ in WRONG} | {
        "unknown_fields",
        "limits",
        "all_or_none",
        "restart",
        "killed",
    }
    # A Sage without a name cannot be built here, and one that takes requests of any size would be gRPC's defect.
    assert {check.name for check in CHECKS} - shown == {"identity", "too_large"}
