"""Between the port's values and the contract's messages; what is too long for the contract is cut."""

from __future__ import annotations

from typing import Final

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper_common.timestamps import to_proto
from hopper_router.sage.advisor import (
    About,
    Abstention,
    Advice,
    Asked,
    Bin,
    Candidate,
    Capability,
    Choice,
    Clarification,
    Cost,
    Order,
    Performance,
    Precedent,
    Question,
    Ranked,
    TaskOutcome,
    Why,
)

MOST_CANDIDATES: Final = 20
MOST_PRECEDENTS: Final = 20
MOST_REPLIES: Final = 10
MOST_TEXT: Final = 4_000
MOST_TITLE: Final = 300
MOST_QUESTION: Final = 1_000

_KINDS: Final = {advice_pb2.Abstention.Kind.Value(f"KIND_{why.value}"): why for why in Why}
_CAPABILITIES: Final = {
    advice_pb2.Sage.Capability.Value(f"CAPABILITY_{capability.value}"): capability
    for capability in Capability
}


# Outwards.


def question_to_proto(question: Question) -> sage_service_pb2.DecideRoutingRequest:
    """The question, but for how long there is to answer it."""
    return sage_service_pb2.DecideRoutingRequest(
        decision=question.decision,
        instance=question.instance,
        task=task_to_proto(question.task),
        candidates=[_candidate(one) for one in question.candidates[:MOST_CANDIDATES]],
        precedents=[_precedent(one) for one in question.precedents[:MOST_PRECEDENTS]],
        replies=[
            advice_pb2.SageReply(
                question=_beginning(one.question, MOST_QUESTION), answer=_beginning(one.answer, MOST_TEXT)
            )
            for one in question.replies[-MOST_REPLIES:]
        ],
    )


def task_to_proto(task: Asked, *, most_text: int = MOST_TEXT) -> advice_pb2.SageTask:
    """A task, with as much of its description."""
    return advice_pb2.SageTask(
        name=task.name,
        title=_beginning(task.title, MOST_TITLE),
        description=_beginning(task.description, most_text),
        tags=task.tags,
        required_capabilities=task.required_capabilities,
        requester=task.requester,
        priority=task.priority,
        finish_by=to_proto(task.finish_by),
        estimated_effort=to_proto(task.estimated_effort),
        create_time=to_proto(task.create_time),
    )


def _candidate(one: Candidate) -> advice_pb2.SageCandidate:
    return advice_pb2.SageCandidate(
        project=one.project,
        display_name=_beginning(one.display_name, 200),
        description=_beginning(one.description, MOST_TEXT),
        capabilities=one.capabilities[:64],
        confidence=one.confidence,
        factors=[
            advice_pb2.SageFactor(name=factor.name, value=factor.value, weight=factor.weight)
            for factor in one.factors[:20]
        ],
    )


def _precedent(one: Precedent) -> advice_pb2.SagePrecedent:
    return advice_pb2.SagePrecedent(
        decision=one.decision,
        title=_beginning(one.title, MOST_TITLE),
        project=one.project,
        success=one.success,
        similarity=one.similarity,
    )


def outcome_to_proto(one: TaskOutcome) -> advice_pb2.TaskOutcome:
    """An outcome."""
    return advice_pb2.TaskOutcome(
        decision=one.decision,
        outcome=advice_pb2.TaskOutcome.Outcome.Value(f"OUTCOME_{one.outcome.value}"),
        final_project=one.final_project,
        success=one.success,
        duration=to_proto(one.duration),
        revision=one.revision,
        task=None if one.task is None else task_to_proto(one.task),
    )


def _beginning(text: str, most: int) -> str:
    """As much of a text as fits into *most* bytes, whole characters only."""
    if len(text) * 4 <= most:
        return text
    return text[:most].encode()[:most].decode(errors="ignore")


# Inwards, as it comes: `answers` says what of it can be used.


def advice_from_proto(response: sage_service_pb2.DecideRoutingResponse) -> Advice | None:
    """The advice; None: there is none in it, or of a kind that this router does not know."""
    cost = cost_from_proto(response.cost)
    match response.WhichOneof("answer"):
        case "choice":
            choice = response.choice
            return Advice(
                Choice(choice.project, choice.confidence, choice.reason, tuple(choice.precedents)), cost
            )
        case "clarification":
            return Advice(Clarification(response.clarification.question, response.clarification.reason), cost)
        case "abstention":
            # A reason of a newer contract is a reason too.
            kind = _KINDS.get(response.abstention.kind, Why.UNSURE)
            return Advice(Abstention(kind, response.abstention.reason), cost)
        case _:
            return None


def order_from_proto(response: sage_service_pb2.PrioritizeQueueResponse) -> Order:
    """The order."""
    return Order([Ranked(one.task, one.reason) for one in response.order], cost_from_proto(response.cost))


def cost_from_proto(cost: advice_pb2.SageCost) -> Cost:
    """The cost."""
    return Cost(cost.model_calls, cost.input_tokens, cost.output_tokens, cost.money_micros)


def performance_from_proto(seen: advice_pb2.SagePerformance) -> Performance:
    """The report."""
    return Performance(
        decisions=seen.decisions,
        choices=seen.choices,
        clarifications=seen.clarifications,
        abstentions=seen.abstentions,
        judged=seen.judged,
        right=seen.right,
        accuracy=seen.accuracy,
        calibration_error=seen.calibration_error,
        bins=[Bin(one.lower, one.upper, one.count, one.mean_confidence, one.accuracy) for one in seen.bins],
        cost=cost_from_proto(seen.cost),
        remarks=seen.remarks,
    )


def performance_to_proto(seen: Performance) -> advice_pb2.SagePerformance:
    """The same, for those who asked the router."""
    cost = seen.cost
    return advice_pb2.SagePerformance(
        decisions=seen.decisions,
        choices=seen.choices,
        clarifications=seen.clarifications,
        abstentions=seen.abstentions,
        judged=seen.judged,
        right=seen.right,
        accuracy=seen.accuracy,
        calibration_error=seen.calibration_error,
        bins=[
            advice_pb2.SageCalibrationBin(
                lower=one.lower,
                upper=one.upper,
                count=one.count,
                mean_confidence=one.mean_confidence,
                accuracy=one.accuracy,
            )
            for one in seen.bins
        ],
        cost=advice_pb2.SageCost(
            model_calls=cost.model_calls,
            input_tokens=cost.input_tokens,
            output_tokens=cost.output_tokens,
            money_micros=cost.money,
        ),
        remarks=seen.remarks,
    )


def about_to_proto(about: About) -> advice_pb2.Sage:
    """The same, for those who asked the router."""
    capabilities = sorted(
        number for number, capability in _CAPABILITIES.items() if capability in about.capabilities
    )
    return advice_pb2.Sage(
        name=about.name, version=about.version, description=about.description, capabilities=capabilities
    )


def about_from_proto(sage: advice_pb2.Sage) -> About:
    """Who it is; capabilities of a newer contract are left out."""
    known = (_CAPABILITIES.get(capability) for capability in sage.capabilities)
    return About(
        sage.name, sage.version, sage.description, frozenset(one for one in known if one is not None)
    )
