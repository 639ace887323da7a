"""Between the contract's messages and the model."""

from collections.abc import Sequence

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper_common.timestamps import duration_field, from_proto, time_field
from hopper_sage.model import (
    Abstention,
    Advised,
    Candidate,
    Choice,
    Clarification,
    Cost,
    Outcome,
    Performance,
    Precedent,
    Question,
    Ranked,
    Reply,
    Task,
    Told,
    Why,
)
from hopper_sage.ports import About

_OUTCOMES = {advice_pb2.TaskOutcome.Outcome.Value(f"OUTCOME_{outcome.value}"): outcome for outcome in Outcome}
_KINDS = {why: advice_pb2.Abstention.Kind.Value(f"KIND_{why.value}") for why in Why}


# Inwards.


def question_from_proto(request: sage_service_pb2.DecideRoutingRequest) -> Question:
    return Question(
        decision=request.decision,
        instance=request.instance,
        task=task_from_proto(request.task),
        candidates=[_candidate(one) for one in request.candidates],
        precedents=[_precedent(one) for one in request.precedents],
        replies=[Reply(one.question, one.answer) for one in request.replies],
        within=from_proto(request.answer_within),
    )


def task_from_proto(task: advice_pb2.SageTask) -> Task:
    return Task(
        name=task.name,
        title=task.title,
        description=task.description,
        tags=tuple(task.tags),
        required_capabilities=tuple(task.required_capabilities),
        requester=task.requester,
        priority=task.priority if task.HasField("priority") else 50,
        finish_by=time_field(task, "finish_by"),
        estimated_effort=duration_field(task, "estimated_effort"),
        create_time=time_field(task, "create_time"),
    )


def _candidate(one: advice_pb2.SageCandidate) -> Candidate:
    return Candidate(
        project=one.project,
        display_name=one.display_name,
        description=one.description,
        capabilities=tuple(one.capabilities),
        confidence=one.confidence,
    )


def _precedent(one: advice_pb2.SagePrecedent) -> Precedent:
    return Precedent(
        decision=one.decision,
        title=one.title,
        project=one.project,
        success=one.success if one.HasField("success") else None,
        similarity=one.similarity,
    )


def told_from_proto(one: advice_pb2.TaskOutcome) -> Told:
    return Told(
        decision=one.decision,
        outcome=_OUTCOMES[one.outcome],
        final_project=one.final_project,
        success=one.success if one.HasField("success") else None,
        duration=duration_field(one, "duration"),
        revision=one.revision,
        task=task_from_proto(one.task) if one.HasField("task") else None,
    )


# Outwards.


def advised_to_proto(advised: Advised) -> sage_service_pb2.DecideRoutingResponse:
    response = sage_service_pb2.DecideRoutingResponse(cost=cost_to_proto(advised.cost))
    match advised.answer:
        case Choice() as choice:
            response.choice.CopyFrom(
                advice_pb2.Choice(
                    project=choice.project,
                    confidence=choice.confidence,
                    reason=choice.reason,
                    precedents=choice.precedents,
                )
            )
        case Clarification() as asked:
            response.clarification.CopyFrom(
                advice_pb2.Clarification(question=asked.question, reason=asked.reason)
            )
        case Abstention() as none:
            response.abstention.CopyFrom(advice_pb2.Abstention(kind=_KINDS[none.kind], reason=none.reason))
    return response


def cost_to_proto(cost: Cost) -> advice_pb2.SageCost:
    return advice_pb2.SageCost(
        model_calls=cost.model_calls,
        input_tokens=cost.input_tokens,
        output_tokens=cost.output_tokens,
        money_micros=cost.money,
    )


def order_to_proto(order: Sequence[Ranked], cost: Cost) -> sage_service_pb2.PrioritizeQueueResponse:
    return sage_service_pb2.PrioritizeQueueResponse(
        order=[advice_pb2.RankedTask(task=one.task, reason=one.reason) for one in order],
        cost=cost_to_proto(cost),
    )


def performance_to_proto(seen: Performance, remarks: str) -> advice_pb2.SagePerformance:
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
                lower=bin_.lower,
                upper=bin_.upper,
                count=bin_.count,
                mean_confidence=bin_.mean_confidence,
                accuracy=bin_.accuracy,
            )
            for bin_ in seen.bins
        ],
        cost=cost_to_proto(seen.cost),
        remarks=remarks,
    )


def about_to_proto(about: About) -> advice_pb2.Sage:
    capabilities = {
        advice_pb2.Sage.CAPABILITY_CLARIFY: about.clarifies,
        advice_pb2.Sage.CAPABILITY_PRIORITIZE: about.prioritizes,
        advice_pb2.Sage.CAPABILITY_LEARN: about.learns,
        advice_pb2.Sage.CAPABILITY_LANGUAGE_MODEL: about.language_model,
    }
    return advice_pb2.Sage(
        name=about.name,
        version=about.version,
        description=about.description,
        capabilities=[capability for capability, has in capabilities.items() if has],
    )
