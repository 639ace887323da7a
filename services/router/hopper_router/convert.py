"""
Between the router's nouns and the contract's messages, both directions side by side.

Submitting, claiming and completing pass through here, so messages are filled field by field, in place: no
reflection, no message made only to be copied into another. Two habits of protobuf matter for that. Reading a
sub-message does not make it present, writing to it does, even the default; and a repeated field or a map is an
object that costs more to make than to skip, hence the many `if`s around empty ones.

What the contract calls a default is applied on the way in (`spec_from_proto`) and written out on the way back,
so what is stored keeps its meaning should a default ever change.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.registry.v1 import instance_pb2, project_pb2
from hopper.router.v1 import decision_pb2, delegation_pb2, task_service_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.rpc.errors import code_of
from hopper_common.timestamps import duration_field, from_proto, time_field
from hopper_common.working_hours import WorkingHours, violations
from hopper_common.working_hours_proto import hours_from_proto
from hopper_router.model import (
    DEFAULT_PRIORITY,
    EMPTY,
    Attempt,
    Basis,
    Border,
    Candidate,
    Claim,
    Clocks,
    Decision,
    Delegation,
    DelegationKind,
    DelegationState,
    Exclusion,
    ExecutorType,
    Factor,
    Failure,
    Hold,
    InputRequest,
    Instance,
    InstanceState,
    Opinion,
    Progress,
    Project,
    RateLimit,
    RetryPolicy,
    Scope,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
    WeightOrigin,
    Word,
)
from hopper_router.wire import ORIGIN_NUMBERS, OUTCOME_NUMBERS, decision_wire

BASIC: Final = pb.TASK_VIEW_BASIC
FULL: Final = pb.TASK_VIEW_FULL

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CLAIMED: Final = frozenset({TaskState.RUNNING, TaskState.INPUT_REQUIRED})

K = TypeVar("K")
V = TypeVar("V")


# ---------------------------------------------------------------- enums


def _inverted(table: Mapping[K, V]) -> dict[V, K]:
    return {value: key for key, value in table.items()}


STATE_TO_PROTO: Final = {state: pb.Task.State.Value(f"STATE_{state.name}") for state in TaskState}
STATE_FROM_PROTO: Final = _inverted(STATE_TO_PROTO)
REASON_TO_PROTO: Final = {reason: pb.Wait.Reason.Value(f"REASON_{reason.name}") for reason in WaitReason}
REASON_FROM_PROTO: Final = _inverted(REASON_TO_PROTO)
OUTCOME_TO_PROTO: Final = OUTCOME_NUMBERS
OUTCOME_FROM_PROTO: Final = _inverted(OUTCOME_TO_PROTO)
WORD_FROM_PROTO: Final = {decision_pb2.Opinion.Word.Value(f"WORD_{word.name}"): word for word in Word}
KIND_TO_PROTO: Final = {
    kind: delegation_pb2.Delegation.Kind.Value(f"KIND_{kind.name}") for kind in DelegationKind
}
KIND_FROM_PROTO: Final = _inverted(KIND_TO_PROTO)
DELEGATION_STATE_TO_PROTO: Final = {
    state: delegation_pb2.Delegation.State.Value(f"STATE_{state.name}") for state in DelegationState
}
DELEGATION_STATE_FROM_PROTO: Final = _inverted(DELEGATION_STATE_TO_PROTO)
INSTANCE_STATE_TO_PROTO: Final = {
    state: instance_pb2.Instance.State.Value(f"STATE_{state.name}") for state in InstanceState
}
INSTANCE_STATE_FROM_PROTO: Final = _inverted(INSTANCE_STATE_TO_PROTO)
SCOPE_TO_PROTO: Final = {scope: instance_pb2.Scope.Value(f"SCOPE_{scope.name}") for scope in Scope}
SCOPE_FROM_PROTO: Final = _inverted(SCOPE_TO_PROTO)
EXECUTOR_TO_PROTO: Final = {
    kind: project_pb2.Executor.Type.Value(f"TYPE_{kind.name}") for kind in ExecutorType
}
EXECUTOR_FROM_PROTO: Final = _inverted(EXECUTOR_TO_PROTO)


def state_from_proto(state: pb.Task.State.ValueType, *, field: str = "state") -> TaskState:
    """The state of a request's number; InvalidArgument on *field* where there is none of that number."""
    return _known(STATE_FROM_PROTO, state, field)


def kind_from_proto(kind: delegation_pb2.Delegation.Kind.ValueType, *, field: str = "kind") -> DelegationKind:
    """The kind of a request's number; InvalidArgument on *field* where there is none of that number."""
    return _known(KIND_FROM_PROTO, kind, field)


def _known(table: Mapping[K, V], number: K, field: str) -> V:
    try:
        return table[number]
    except KeyError:
        violation = FieldViolation(field, f"{number} is none of {sorted(map(str, table))}")
        raise InvalidArgument(violations=[violation]) from None


# ---------------------------------------------------------------- time


def _put_time(out: Timestamp, time: datetime) -> None:
    since = time - _EPOCH
    out.seconds = since.days * 86_400 + since.seconds
    out.nanos = since.microseconds * 1000


def _put_length(out: Duration, length: timedelta) -> None:
    if length.days < 0:  # seconds and nanos of a Duration have the same sign
        _put_length(out, -length)
        out.seconds, out.nanos = -out.seconds, -out.nanos
        return
    out.seconds = length.days * 86_400 + length.seconds
    out.nanos = length.microseconds * 1000


# ---------------------------------------------------------------- specs


def spec_from_proto(spec: pb.TaskSpec) -> TaskSpec:
    """
    What was asked for, with the contract's defaults where nothing was said.

    Raises:
        InvalidArgument: A time outside the years 1 to 9999.
    """
    tags, capabilities, dependencies = spec.tags, spec.required_capabilities, spec.dependencies
    required_labels, labels = spec.required_labels, spec.labels
    return TaskSpec(
        title=spec.title,
        description=spec.description,
        # A slice is a list: quicker to make a tuple of than what protobuf has; the same goes for maps below.
        tags=tuple(tags[:]) if tags else (),
        required_capabilities=tuple(capabilities[:]) if capabilities else (),
        required_labels={key: required_labels[key] for key in required_labels} if required_labels else EMPTY,
        priority=spec.priority if spec.HasField("priority") else DEFAULT_PRIORITY,
        project=spec.project,
        requester=spec.requester or "anonymous",
        dependencies=tuple(dependencies[:]) if dependencies else (),
        payload=spec.payload,
        clocks=_clocks_from_proto(spec.clocks) if spec.HasField("clocks") else _NO_CLOCKS,
        retry=_retry_from_proto(spec.retry) if spec.HasField("retry") else _DEFAULT_RETRY,
        estimated_effort=duration_field(spec, "estimated_effort"),
        before_event=duration_field(spec, "before_event"),
        labels={key: labels[key] for key in labels} if labels else EMPTY,
        fairness_key=spec.fairness_key,
        fairness_weight=max(spec.fairness_weight, 0.01) if spec.fairness_weight else 1.0,
        concurrency_key=spec.concurrency_key,
        slots=spec.slots or 1,
        exclusive=spec.exclusive,
    )


def spec_to_proto(spec: TaskSpec) -> pb.TaskSpec:
    """The same as a message, with its defaults written out."""
    out = pb.TaskSpec()
    _put_spec(out, spec, full=True)
    return out


def spec_from_bytes(body: bytes) -> TaskSpec:
    """A spec that `spec_to_bytes` wrote."""
    spec = spec_from_proto(pb.TaskSpec.FromString(body))
    object.__setattr__(spec, "wire", body)
    return spec


def spec_to_bytes(spec: TaskSpec) -> bytes:
    """A spec as the store keeps it: the serialized message, with its defaults written out; made once."""
    if not spec.wire:
        object.__setattr__(spec, "wire", spec_to_proto(spec).SerializeToString())
    return spec.wire


def _put_spec(out: pb.TaskSpec, spec: TaskSpec, *, full: bool) -> None:
    if full and spec.wire:
        out.MergeFromString(spec.wire)
        return
    out.title = spec.title
    out.priority = spec.priority
    out.requester = spec.requester
    if spec.project:
        out.project = spec.project
    if full:
        out.description = spec.description
        out.payload = spec.payload
    _put_lists(out, spec)
    _put_clocks(out.clocks, spec.clocks)
    _put_retry(out.retry, spec.retry)
    if spec.estimated_effort is not None:
        _put_length(out.estimated_effort, spec.estimated_effort)
    if spec.before_event is not None:
        _put_length(out.before_event, spec.before_event)
    if spec.fairness_key:
        out.fairness_key = spec.fairness_key
    if spec.fairness_weight != 1.0:
        out.fairness_weight = spec.fairness_weight
    if spec.concurrency_key:
        out.concurrency_key = spec.concurrency_key
    if spec.slots != 1:
        out.slots = spec.slots
    out.exclusive = spec.exclusive


def _put_lists(out: pb.TaskSpec, spec: TaskSpec) -> None:
    if spec.tags:
        out.tags.extend(spec.tags)
    if spec.required_capabilities:
        out.required_capabilities.extend(spec.required_capabilities)
    if spec.required_labels:
        out.required_labels.update(spec.required_labels)
    if spec.dependencies:
        out.dependencies.extend(spec.dependencies)
    if spec.labels:
        out.labels.update(spec.labels)


_NO_CLOCKS: Final = Clocks()


def _clocks_from_proto(clocks: pb.Clocks) -> Clocks:
    return Clocks(
        start_after=time_field(clocks, "start_after"),
        start_by=time_field(clocks, "start_by"),
        run_for=duration_field(clocks, "run_for"),
        finish_by=time_field(clocks, "finish_by"),
        heartbeat=duration_field(clocks, "heartbeat"),
    )


def _put_clocks(out: pb.Clocks, clocks: Clocks) -> None:
    if clocks.start_after is not None:
        _put_time(out.start_after, clocks.start_after)
    if clocks.start_by is not None:
        _put_time(out.start_by, clocks.start_by)
    if clocks.run_for is not None:
        _put_length(out.run_for, clocks.run_for)
    if clocks.finish_by is not None:
        _put_time(out.finish_by, clocks.finish_by)
    if clocks.heartbeat is not None:
        _put_length(out.heartbeat, clocks.heartbeat)


_DEFAULT_RETRY: Final = RetryPolicy()


def _retry_from_proto(retry: pb.RetryPolicy) -> RetryPolicy:
    first_backoff = duration_field(retry, "first_backoff")
    max_backoff = duration_field(retry, "max_backoff")
    return RetryPolicy(
        max_attempts=retry.max_attempts or _DEFAULT_RETRY.max_attempts,
        first_backoff=_DEFAULT_RETRY.first_backoff if first_backoff is None else first_backoff,
        # A factor below 1 would make each back-off shorter; the contract's range starts at 1.
        factor=max(retry.factor, 1.0) if retry.factor else _DEFAULT_RETRY.factor,
        max_backoff=_DEFAULT_RETRY.max_backoff if max_backoff is None else max_backoff,
        non_retryable_reasons=frozenset(retry.non_retryable_reasons),
    )


def _put_retry(out: pb.RetryPolicy, retry: RetryPolicy) -> None:
    out.max_attempts = retry.max_attempts
    _put_length(out.first_backoff, retry.first_backoff)
    out.factor = retry.factor
    _put_length(out.max_backoff, retry.max_backoff)
    if retry.non_retryable_reasons:
        # Sorted, so that the same policy is the same bytes.
        out.non_retryable_reasons.extend(sorted(retry.non_retryable_reasons))


# ---------------------------------------------------------------- tasks


def task_to_proto(
    task: Task, *, view: pb.TaskView.ValueType, wait: Wait | None, show_token: bool = False
) -> pb.Task:
    """
    A task as callers see it.

    Args:
        view: `FULL`; anything else is `BASIC`, without description, payload and result.
        wait: Why it is not running, as waiting.py derives it; None in RUNNING and in final states.
        show_token: Whether the claim shows its fencing token: only to the claimant.
    """
    out = pb.Task()
    _put_task(out, task, view=view, wait=wait)
    if show_token and task.claim is not None and out.HasField("claim"):
        out.claim.fencing_token = task.claim.token
    return out


def _put_task(out: pb.Task, task: Task, *, view: pb.TaskView.ValueType, wait: Wait | None) -> None:
    full = view == FULL
    out.name = task.name
    _put_spec(out.spec, task.spec, full=full)
    out.state = STATE_TO_PROTO[task.state]
    out.generation = task.generation
    out.project = task.project
    out.decision = task.decision
    out.attempt = task.attempt
    out.delegation = task.delegation
    out.etag = task.etag
    if full:
        out.result = task.result
    _put_times(out, task)
    _put_parts(out, task, wait)


def _put_times(out: pb.Task, task: Task) -> None:
    _put_time(out.create_time, task.create_time)
    _put_time(out.update_time, task.update_time)
    if task.finish_time is not None:
        _put_time(out.finish_time, task.finish_time)


def _put_parts(out: pb.Task, task: Task, wait: Wait | None) -> None:
    if wait is not None:
        _put_wait(out.wait, wait)
    if task.claim is not None and task.state in _CLAIMED:
        _put_claim(out.claim, task.claim)
    _put_live(out, task.failure, task.progress, task.input, task.hold)


def live_to_proto(
    failure: Failure | None = None,
    progress: Progress | None = None,
    input: InputRequest | None = None,
    hold: Hold | None = None,
) -> pb.Task:
    """A message that has nothing of a task but these."""
    out = pb.Task()
    _put_live(out, failure, progress, input, hold)
    return out


def _put_live(
    out: pb.Task,
    failure: Failure | None,
    progress: Progress | None,
    asked: InputRequest | None,
    hold: Hold | None,
) -> None:
    if failure is not None:
        _put_failure(out.failure, failure)
    if progress is not None:
        _put_progress(out.progress, progress)
    if asked is not None:
        _put_input(out.input, asked)
    if hold is not None:
        _put_hold(out.hold, hold)


def _put_claim(out: pb.Claim, claim: Claim) -> None:
    out.worker = claim.worker
    if claim.lease_end is not None:
        _put_time(out.lease_expire_time, claim.lease_end)
    _put_time(out.start_time, claim.start)


def wait_from_proto(wait: pb.Wait) -> Wait | None:
    """Why a task is not running; None for a reason this version does not know, or none."""
    reason = REASON_FROM_PROTO.get(wait.reason)
    if reason is None:
        return None
    until = time_field(wait, "until")
    return Wait(reason, tuple(wait.on), until, wait.message, dict(wait.exclusions))


def wait_to_proto(wait: Wait) -> pb.Wait:
    """The same as a message."""
    out = pb.Wait()
    _put_wait(out, wait)
    return out


def _put_wait(out: pb.Wait, wait: Wait) -> None:
    out.reason = REASON_TO_PROTO[wait.reason]
    if wait.on:
        out.on.extend(wait.on)
    if wait.until is not None:
        _put_time(out.until, wait.until)
    out.message = wait.message
    if wait.exclusions:
        out.exclusions.update(wait.exclusions)


def failure_from_proto(failure: pb.Failure) -> Failure:
    """How an attempt failed."""
    return Failure(failure.reason, failure.message, failure.permanent)


def failure_to_proto(failure: Failure) -> pb.Failure:
    """The same as a message."""
    out = pb.Failure()
    _put_failure(out, failure)
    return out


def _put_failure(out: pb.Failure, failure: Failure) -> None:
    out.reason = failure.reason
    out.message = failure.message
    out.permanent = failure.permanent


def attempt_to_proto(attempt: Attempt) -> pb.Attempt:
    """An attempt that failed."""
    out = pb.Attempt(attempt=attempt.attempt, worker=attempt.worker)
    if attempt.start is not None:
        _put_time(out.start_time, attempt.start)
    _put_time(out.end_time, attempt.end)
    _put_failure(out.failure, attempt.failure)
    return out


def progress_from_proto(progress: pb.Progress) -> Progress:
    """How far a worker is."""
    return Progress(progress.fraction, progress.message)


def progress_to_proto(progress: Progress) -> pb.Progress:
    """The same as a message."""
    out = pb.Progress()
    _put_progress(out, progress)
    return out


def _put_progress(out: pb.Progress, progress: Progress) -> None:
    out.fraction = progress.fraction
    out.message = progress.message


def input_from_proto(request: pb.InputRequest) -> InputRequest:
    """A question, and its answer where it has one."""
    # `from` is a keyword of Python, but a fine name for a field.
    by = time_field(request, "answer_by")
    return InputRequest(request.question, getattr(request, "from"), request.answer, request.answered_by, by)


def input_to_proto(request: InputRequest) -> pb.InputRequest:
    """The same as a message."""
    out = pb.InputRequest()
    _put_input(out, request)
    return out


def _put_input(out: pb.InputRequest, request: InputRequest) -> None:
    out.question = request.question
    setattr(out, "from", request.from_)
    out.answer = request.answer
    out.answered_by = request.answered_by
    if request.answer_by is not None:
        _put_time(out.answer_by, request.answer_by)


def hold_from_proto(hold: pb.Hold) -> Hold:
    """Who holds a task back, and why."""
    return Hold(hold.by, hold.reason)


def hold_to_proto(hold: Hold) -> pb.Hold:
    """The same as a message."""
    out = pb.Hold()
    _put_hold(out, hold)
    return out


def _put_hold(out: pb.Hold, hold: Hold) -> None:
    out.by = hold.by
    out.reason = hold.reason


# ---------------------------------------------------------------- events


def event_from_bytes(body: bytes, generation: int) -> task_service_pb2.TaskEvent:
    """
    An event of the log.

    Args:
        generation: The event's version in the log, which it could not know when it was written.
    """
    event = task_service_pb2.TaskEvent.FromString(body)
    event.task.generation = generation
    return event


def event_to_bytes(
    kind: str, from_state: TaskState | None, task: Task, wait: Wait | None, *, from_project: str = ""
) -> bytes:
    """
    One change as the log keeps it: a serialized TaskEvent with the task after it, in BASIC view.

    Args:
        kind: The name of the transition.
        from_state: The state before; None: there was no task.
        from_project: The project before; "": none.
    """
    event = task_service_pb2.TaskEvent(kind=kind, from_project=from_project)
    if from_state is not None:
        event.from_state = STATE_TO_PROTO[from_state]
    _put_task(event.task, task, view=BASIC, wait=wait)
    return event.SerializeToString()


# ---------------------------------------------------------------- decisions


def decision_from_proto(decision: decision_pb2.Decision) -> Decision:
    """Where a task goes, and why."""
    return Decision(
        outcome=_known(OUTCOME_FROM_PROTO, decision.outcome, "outcome"),
        project=decision.project,
        confidence=decision.confidence,
        strategy=decision.strategy,
        reasoning=decision.reasoning,
        candidates=tuple(candidate_from_proto(candidate) for candidate in decision.candidates),
        exclusions=tuple(_exclusion_from_proto(exclusion) for exclusion in decision.exclusions),
        eligible_count=decision.eligible_count,
        basis=_basis_from_proto(decision.basis),
        name=decision.name,
        task=decision.task,
        instance=decision.instance,
        elapsed=from_proto(decision.elapsed),
        create_time=time_field(decision, "create_time"),
        opinions=tuple(_opinion_from_proto(opinion) for opinion in decision.opinions),
    )


def _opinion_from_proto(opinion: decision_pb2.Opinion) -> Opinion:
    return Opinion(
        stage=opinion.stage,
        word=_known(WORD_FROM_PROTO, opinion.word, "word"),
        project=opinion.project,
        confidence=opinion.confidence,
        threshold=opinion.threshold,
        reason=opinion.reason,
        answer=opinion.answer,
        model=opinion.model,
        input_tokens=opinion.input_tokens,
        output_tokens=opinion.output_tokens,
        money=opinion.money_micros,
        elapsed=from_proto(opinion.elapsed),
        stated=opinion.stated_confidence,
        tags=tuple(opinion.suggested_tags),
        effort=duration_field(opinion, "suggested_effort"),
    )


def decision_to_proto(decision: Decision) -> decision_pb2.Decision:
    """The same as a message."""
    return decision_pb2.Decision.FromString(decision_wire(decision))


def decision_from_bytes(body: bytes) -> Decision:
    """A decision that `decision_to_bytes` wrote."""
    return decision_from_proto(decision_pb2.Decision.FromString(body))


def decision_to_bytes(decision: Decision) -> bytes:
    """A decision as the store keeps it: the serialized message."""
    return decision_wire(decision)


def candidate_from_proto(candidate: decision_pb2.Candidate) -> Candidate:
    """A project that could have the task."""
    return Candidate(
        candidate.project,
        candidate.score,
        candidate.confidence,
        tuple(_factor_from_proto(factor) for factor in candidate.factors),
    )


def candidate_to_proto(candidate: Candidate) -> decision_pb2.Candidate:
    """The same as a message."""
    out = decision_pb2.Candidate()
    _put_candidate(out, candidate)
    return out


def _put_candidate(out: decision_pb2.Candidate, candidate: Candidate) -> None:
    out.project = candidate.project
    out.score = candidate.score
    out.confidence = candidate.confidence
    if candidate.factors:
        _put_factors(out, candidate.factors)


def _factor_from_proto(factor: decision_pb2.Factor) -> Factor:
    evidence = factor.evidence
    return Factor(
        factor.name,
        factor.value,
        factor.weight,
        tuple(evidence) if evidence else (),
        _ORIGINS.get(factor.weight_origin, WeightOrigin.SHIPPED),
        factor.weight_lessons,
    )


_ORIGINS: Final = {number: origin for origin, number in ORIGIN_NUMBERS.items()}


def _put_factors(out: decision_pb2.Candidate, factors: Iterable[Factor]) -> None:
    add = out.factors.add
    for factor in factors:
        made = add()
        made.name = factor.name
        made.value = factor.value
        made.weight = factor.weight
        if factor.evidence:
            made.evidence.extend(factor.evidence)
        if factor.origin is not WeightOrigin.SHIPPED:
            made.weight_origin = ORIGIN_NUMBERS[factor.origin]
            made.weight_lessons = factor.lessons


def _exclusion_from_proto(exclusion: decision_pb2.Exclusion) -> Exclusion:
    return Exclusion(exclusion.filter, exclusion.count, tuple(exclusion.projects), exclusion.detail)


def _basis_from_proto(basis: decision_pb2.Basis) -> Basis:
    return Basis(basis.projects_version, basis.instances_version, basis.policy, basis.policy_version)


# ---------------------------------------------------------------- delegations


def delegation_to_proto(delegation: Delegation) -> delegation_pb2.Delegation:
    """One hand-over. Its depth is the router's own matter."""
    out = delegation_pb2.Delegation(
        name=delegation.name,
        kind=KIND_TO_PROTO[delegation.kind],
        state=DELEGATION_STATE_TO_PROTO[delegation.state],
        task=delegation.task,
        child_tasks=delegation.child_tasks,
        from_instance=delegation.from_instance,
        to_instance=delegation.to_instance,
        path=delegation.path,
        reason=delegation.reason,
    )
    if delegation.offer_end is not None:
        _put_time(out.offer_expire_time, delegation.offer_end)
    _put_time(out.create_time, delegation.create_time)
    _put_time(out.update_time, delegation.update_time)
    return out


# ---------------------------------------------------------------- the registry's nouns


def project_from_registry(project: project_pb2.Project) -> Project:
    """
    A project as far as routing cares.

    Routing asks only whether there is a live worker, so `live_workers` is 0 or 1: heartbeats that change
    nothing else yield an equal value.
    """
    return Project(
        name=project.name,
        display_name=project.display_name,
        description=project.description,
        capabilities=frozenset(project.capabilities),
        tags=frozenset(project.tags),
        labels=dict(project.labels),
        examples=tuple(project.examples),
        velocity=project.velocity_per_day,
        sla=duration_field(project, "sla"),
        max_running=project.capacity.max_running,
        max_open=project.capacity.max_open,
        max_running_per_key=project.capacity.max_running_per_key,
        start_rate=_rate_limit(project.capacity, "start_rate"),
        start_rate_per_key=_rate_limit(project.capacity, "start_rate_per_key"),
        cost=project.cost_per_task,
        # Unspecified means WORKERS, and so does a kind that only a newer registry knows.
        executor=EXECUTOR_FROM_PROTO.get(project.executor.type, ExecutorType.WORKERS),
        requires_live_worker=project.executor.requires_live_worker,
        boosts=dict(project.priority_boosts),
        working_hours=_hours_of(project),
        paused=project.state == project_pb2.Project.STATE_PAUSED,
        live_workers=min(1, project.presence.live_workers),
        border=_border(project) if project.HasField("border") else None,
    )


def _border(project: project_pb2.Project) -> Border:
    border = project.border
    return Border(border.peer, border.policy, border.level)


def _hours_of(project: project_pb2.Project) -> WorkingHours | None:
    hours = hours_from_proto(project)
    # A time zone that only a newer registry knows: better no hours than no decisions.
    return None if hours is None or any(violations(hours, "")) else hours


def _rate_limit(capacity: project_pb2.Capacity, field: str) -> RateLimit | None:
    limit: project_pb2.RateLimit = getattr(capacity, field)
    # A count of 0 is no limit that a registry lets in: better none than one that stops everything.
    if not capacity.HasField(field) or limit.count < 1:  # type: ignore[arg-type]  # one of two names
        return None
    return RateLimit(limit.count, duration_field(limit, "period") or _RATE_PERIOD)


def instance_from_registry(instance: instance_pb2.Instance) -> Instance:
    """
    An instance as far as the router cares, with the contract's defaults where nothing was said.

    Its `start_time` is None: the registry does not say it; `directory.run_start` works it out.

    Raises:
        InvalidArgument: A scope this version does not know; it cannot know what such an instance does.
    """
    config = instance.config
    complex_effort = duration_field(config, "complex_effort")
    offer_timeout = duration_field(config, "offer_timeout")
    return Instance(
        name=instance.name,
        scope=_known(SCOPE_FROM_PROTO, instance.scope, "scope"),
        # What is in a state that only a newer registry knows is not RUNNING, which is all that matters here.
        state=INSTANCE_STATE_FROM_PROTO.get(instance.state, InstanceState.ERROR),
        parent=instance.parent,
        project=instance.project,
        max_workers=config.max_workers,
        complex_effort=_COMPLEX_EFFORT if complex_effort is None else complex_effort,
        members=frozenset(config.members),
        event_time=time_field(config, "event_time"),
        manual_accept=config.manual_accept,
        offer_timeout=_OFFER_TIMEOUT if offer_timeout is None else offer_timeout,
    )


_RATE_PERIOD: Final = timedelta(seconds=1)
_COMPLEX_EFFORT: Final = timedelta(hours=4)
_OFFER_TIMEOUT: Final = timedelta(hours=24)


# ---------------------------------------------------------------- errors


def item_error(error: HopperError) -> pb.ItemError:
    """Why one item of a batch was refused, with what the whole call would have been refused with."""
    code, _ = code_of(error).value
    return pb.ItemError(code=code, reason=error.reason, message=error.message, metadata=dict(error.metadata))
