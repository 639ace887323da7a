"""
A task's life, as one table.

Two rules. First, nothing changes a task's state but `move`, and `move` looks the change up in `TABLE`: what is not
there raises `TaskWrongState` and leaves the task alone. Second, every function here is pure: the task as it was, what
happened, and when, give the task as it is; storing it, telling others, and passing an end on to whoever delegated the
task is the engine's work.

    SUBMITTED ─► QUEUED ─► RUNNING ─► SUCCEEDED
        │           │        │  ├───► FAILED
        │           │        │  └───► INPUT_REQUIRED ─► RUNNING
        │           │        └─► QUEUED             (expired, released, or failed and to be tried again)
        │           └─► DELEGATED ─► SUCCEEDED | FAILED | SUBMITTED (returned: decided anew)
        ├─► INPUT_REQUIRED ─► SUBMITTED             (asked where it goes, and decided by the answer)
        └─► REJECTED                                    any open state ─► CANCELLED, and by its clocks ─► FAILED

A claim is a lease with a fencing token. The token only grows; whoever acts on a claim must carry the live one, so a
worker that was away for too long learns that the task went on without it, and changes nothing.

An exclusive task is begun once at most. When that attempt ends otherwise than with success, for whatever reason, the
task fails for good. A claim that never reached its worker is no attempt, and what the federation service has is begun
by nobody here: it says itself whether a peer has.

A lease runs out at its end, to the microsecond: at `lease_end` the worker has lost it, whether or not anybody has
noticed yet.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from hopper_router.errors import StaleToken, TaskClaimed, TaskNotReady, TaskWrongState
from hopper_router.model import (
    FEDERATION,
    MAX_LEASE,
    MIN_LEASE,
    Claim,
    Failure,
    Hold,
    InputRequest,
    Progress,
    Task,
    TaskSpec,
    TaskState,
    Wait,
)


class Event(enum.Enum):
    """Everything that can happen to a task. The values are written to the log, and read by watchers."""

    SUBMIT = "SUBMIT"
    """Taken in. Makes the task; the only event without a state before it."""
    OFFER = "OFFER"
    """Taken in from a delegator, and waiting for somebody here to accept it. Makes the task too."""
    ACCEPT = "ACCEPT"
    """The offer was accepted."""
    DECIDE = "DECIDE"
    """A routing decision was made, whatever its outcome."""
    QUEUE = "QUEUE"
    """Placed with a project or in an instance's queue."""
    REJECT = "REJECT"
    """Refused by policy, or nobody could take it in time."""
    READY = "READY"
    """The last task it depended on has succeeded."""
    BLOCK = "BLOCK"
    """Held back by hand."""
    UNBLOCK = "UNBLOCK"
    """No longer held back."""
    UPDATE = "UPDATE"
    """What is asked for was changed."""
    CLAIM = "CLAIM"
    """A worker took it."""
    PROGRESS = "PROGRESS"
    """Its worker said how far it is."""
    ASK = "ASK"
    """A question was asked: by its worker, who waits, or where it should go."""
    ANSWER = "ANSWER"
    """Its worker's question was answered."""
    COMPLETE = "COMPLETE"
    """Its worker finished it."""
    RETRY = "RETRY"
    """An attempt failed; another will be made."""
    FAIL = "FAIL"
    """An attempt failed, and there will be no other."""
    EXPIRE = "EXPIRE"
    """The lease ran out; another worker may take it."""
    RELEASE = "RELEASE"
    """Its worker gave it back."""
    DELEGATE = "DELEGATE"
    """Handed over."""
    RETURN = "RETURN"
    """Came back from whoever it was handed to."""
    CHILDREN_DONE = "CHILDREN_DONE"
    """What it was handed over or decomposed into succeeded."""
    CHILD_FAILED = "CHILD_FAILED"
    """What it was handed over or decomposed into failed."""
    CANCEL = "CANCEL"
    """Called off."""
    TIME_OUT = "TIME_OUT"
    """One of its clocks ran out."""
    REPLAY = "REPLAY"
    """It was parked, and is tried again from the start."""


_S = TaskState
_E = Event


def _table() -> Mapping[tuple[TaskState, Event], TaskState]:
    table: dict[tuple[TaskState, Event], TaskState] = {
        # Deciding. A queued task is decided anew when its spec changes or its project goes away.
        (_S.SUBMITTED, _E.ACCEPT): _S.SUBMITTED,
        (_S.SUBMITTED, _E.DECIDE): _S.SUBMITTED,
        (_S.QUEUED, _E.DECIDE): _S.SUBMITTED,
        # Somebody is asked where it goes, and the answer decides.
        (_S.SUBMITTED, _E.ASK): _S.INPUT_REQUIRED,
        (_S.INPUT_REQUIRED, _E.DECIDE): _S.SUBMITTED,
        (_S.SUBMITTED, _E.QUEUE): _S.QUEUED,
        (_S.SUBMITTED, _E.REJECT): _S.REJECTED,
        # Working.
        (_S.QUEUED, _E.CLAIM): _S.RUNNING,
        (_S.RUNNING, _E.PROGRESS): _S.RUNNING,
        (_S.RUNNING, _E.ASK): _S.INPUT_REQUIRED,
        (_S.INPUT_REQUIRED, _E.ANSWER): _S.RUNNING,
        (_S.RUNNING, _E.COMPLETE): _S.SUCCEEDED,
        (_S.RUNNING, _E.RETRY): _S.QUEUED,
        (_S.RUNNING, _E.FAIL): _S.FAILED,
        (_S.RUNNING, _E.EXPIRE): _S.QUEUED,
        (_S.RUNNING, _E.RELEASE): _S.QUEUED,
        # Handing over.
        (_S.SUBMITTED, _E.DELEGATE): _S.DELEGATED,
        (_S.QUEUED, _E.DELEGATE): _S.DELEGATED,
        (_S.DELEGATED, _E.RETURN): _S.SUBMITTED,
        (_S.DELEGATED, _E.CHILDREN_DONE): _S.SUCCEEDED,
        (_S.DELEGATED, _E.CHILD_FAILED): _S.FAILED,
    }
    # What is parked may be tried again.
    for state in (_S.FAILED, _S.REJECTED):
        table[state, _E.REPLAY] = _S.SUBMITTED
    # What may be changed or held back, and what may get ready, without moving.
    for state in (_S.SUBMITTED, _S.QUEUED):
        for event in (_E.BLOCK, _E.UNBLOCK, _E.UPDATE):
            table[state, event] = state
    for state in (_S.SUBMITTED, _S.QUEUED, _S.DELEGATED):
        table[state, _E.READY] = state
    for state in TaskState:
        if not state.final:
            table[state, _E.CANCEL] = _S.CANCELLED
            table[state, _E.TIME_OUT] = _S.FAILED
    return MappingProxyType(table)


TABLE: Final = _table()
"""(state, what happens) -> state. What is not here cannot happen."""


def move(task: Task, event: Event, now: datetime) -> Task:
    """
    Move a task along the table.

    Raises:
        TaskWrongState: The table has no such move; the error carries the state.
    """
    state = TABLE.get((task.state, event))
    if state is None:
        raise TaskWrongState(
            f"the task is {task.state.value}: {event.value} is not possible",
            task=task.name,
            state=task.state.value,
            event=event.value,
        )
    return replace(task, state=state, update_time=now, finish_time=now if state.final else None)


# ---------------------------------------------------------------- placing


def decide(task: Task, decision: str, now: datetime, *, wait: Wait | None = None) -> Task:
    """A decision was made; with *wait*, it left the task unplaced."""
    if task.state is TaskState.INPUT_REQUIRED and task.claim is not None:  # the question is its worker's
        raise TaskWrongState(
            f"{task.claim.worker} has the task",
            task=task.name,
            state=task.state.value,
            event=Event.DECIDE.value,
        )
    return replace(
        move(task, Event.DECIDE, now),
        decision=decision,
        project="",
        queue_time=None,
        first_start=None,
        wait=wait,
    )


def queue(task: Task, project: str, now: datetime) -> Task:
    """Place a task with a project, or, with none, in its instance's own queue."""
    return replace(move(task, Event.QUEUE, now), project=project, queue_time=now, wait=None)


def reject(task: Task, failure: Failure, now: datetime) -> Task:
    """Refuse a task that was never placed."""
    return replace(move(task, Event.REJECT, now), failure=failure, wait=None)


def accept(task: Task, now: datetime) -> Task:
    """Take an offered task."""
    return replace(move(task, Event.ACCEPT, now), offered=False)


def ready(task: Task, now: datetime) -> Task:
    """One of the tasks it depended on has succeeded: the last, if no blockers remain."""
    return _not_ready_before(replace(move(task, Event.READY, now), blockers=task.blockers - 1), now)


def _not_ready_before(task: Task, now: datetime) -> Task:
    """A task that nothing keeps back any more gets ready now, not when it was made."""
    return task if task.blockers or task.hold else replace(task, ready_time=max(task.ready_time, now))


def block(task: Task, hold: Hold, now: datetime) -> Task:
    """Hold a task back; a second hold replaces the first."""
    return replace(move(task, Event.BLOCK, now), hold=hold)


def unblock(task: Task, now: datetime) -> Task:
    """Let a task go on."""
    return _not_ready_before(replace(move(task, Event.UNBLOCK, now), hold=None), now)


def update(task: Task, spec: TaskSpec, now: datetime) -> Task:
    """Change what is asked for."""
    moved = move(task, Event.UPDATE, now)
    # What is later than its schedule said is a back-off, and no change of the spec cuts that short.
    backing_off = task.ready_time if task.ready_time > first_ready(task.spec, task) else task.create_time
    ready_time = max(first_ready(spec, task), backing_off)
    return replace(moved, spec=spec, spec_version=task.spec_version + 1, ready_time=ready_time)


def first_ready(spec: TaskSpec, task: Task) -> datetime:
    """When a task that has not run yet may start: its schedule, or at once."""
    return max(spec.clocks.start_after or task.create_time, task.create_time)


def ask_where(task: Task, question: InputRequest, now: datetime) -> Task:
    """Ask where an undecided task goes; it waits for the answer, and nobody has it."""
    return replace(move(task, Event.ASK, now), input=question, claim=None, wait=None)


# ---------------------------------------------------------------- working


def claim(task: Task, worker: str, lease: timedelta, now: datetime) -> Task:
    """
    Give one worker the exclusive right to a task.

    Args:
        lease: How long it holds; cut to what the task's heartbeat clock and the limits allow.

    Raises:
        TaskClaimed: Somebody has it; the error says who and until when.
        TaskNotReady: It waits for something.
        TaskWrongState: It is finished or not placed.
    """
    if task.claim is not None and task.state in (TaskState.RUNNING, TaskState.INPUT_REQUIRED):
        raise TaskClaimed(
            f"{task.claim.worker} has the task",
            task=task.name,
            holder=task.claim.worker,
            lease_expire_time=_stamp(task.claim.lease_end),
        )
    now = _not_before(task, now)
    moved = move(task, Event.CLAIM, now)
    if not claimable(task, now):
        raise TaskNotReady(task=task.name, wait=_not_ready(task, now))
    granted = bounded_lease(task.spec, lease)
    token = task.token + 1
    return replace(
        moved,
        token=token,
        attempt=_begun(task, worker) + 1,
        first_start=task.first_start or now,
        claim=Claim(worker=worker, token=token, lease=granted, lease_end=now + granted, start=now),
        progress=None,
        wait=None,
    )


def _begun(task: Task, worker: str) -> int:
    """How many attempts were begun before; one that the federation service adopts again is the same one."""
    return task.failures if worker == FEDERATION else task.attempt


def _stamp(time: datetime | None) -> str:
    """A time as JSON has it."""
    return time.isoformat().replace("+00:00", "Z") if time else ""


def claimable(task: Task, now: datetime) -> bool:
    """Whether nothing about the task itself keeps a worker from it."""
    return (
        task.state is TaskState.QUEUED
        and not task.blockers
        and task.hold is None
        and task.ready_time <= _not_before(task, now)
    )


def _not_before(task: Task, now: datetime) -> datetime:
    """
    *now*, or when the task was last changed, if that is later.

    Another process may have changed it, by a clock some milliseconds ahead: a task it has just made ready is ready.
    """
    return max(now, task.update_time)


def _not_ready(task: Task, now: datetime) -> str:
    if task.blockers:
        return "DEPENDENCY"
    if task.hold is not None:
        return "PERSON"
    if task.ready_time > now:
        return "BACKOFF" if task.failures else "SCHEDULE"
    return ""


def bounded_lease(spec: TaskSpec, lease: timedelta) -> timedelta:
    """The lease a worker gets when it asks for that one."""
    return max(MIN_LEASE, min(lease, spec.clocks.heartbeat or MAX_LEASE, MAX_LEASE))


def held(task: Task, token: int, now: datetime) -> Claim:
    """
    Return the live claim of that token.

    Raises:
        StaleToken: There is none any more; the error says what became of the task.
    """
    live = task.claim
    lost = (
        live is None
        or task.state not in (TaskState.RUNNING, TaskState.INPUT_REQUIRED)
        or live.token != token
        or (live.lease_end is not None and live.lease_end <= now)
    )
    if live is None or lost:
        facts = {"task": task.name, "state": task.state.value}
        if (
            live is not None
            and live.token != token
            and task.state in (TaskState.RUNNING, TaskState.INPUT_REQUIRED)
        ):
            facts["holder"] = live.worker
        raise StaleToken(**facts)
    return live


def renew(task: Task, token: int, lease: timedelta | None, now: datetime) -> Task:
    """Extend a lease from now; never shortens it. While a question is open there is nothing to extend."""
    live = held(task, token, now)
    if live.lease_end is None:
        return task
    granted = bounded_lease(task.spec, lease or live.lease)
    return replace(task, claim=replace(live, lease=granted, lease_end=max(live.lease_end, now + granted)))


def progress(task: Task, token: int, how_far: Progress, lease: timedelta | None, now: datetime) -> Task:
    """Say how far a worker is, and extend its lease."""
    renewed = renew(task, token, lease, now)
    return replace(move(renewed, Event.PROGRESS, now), progress=how_far)


def ask(task: Task, token: int, question: InputRequest, now: datetime) -> Task:
    """Wait for an answer with the claim kept and its lease stopped."""
    live = held(task, token, now)
    return replace(move(task, Event.ASK, now), input=question, claim=replace(live, lease_end=None))


def answer(task: Task, text: str, by: str, now: datetime) -> Task:
    """Answer a question; the worker goes on with a fresh lease, or loses the task when it runs out."""
    moved = move(task, Event.ANSWER, now)
    if task.input is None or task.claim is None:  # The table allows ANSWER only after ASK, which sets both.
        raise TaskWrongState(task=task.name, state=task.state.value, event=Event.ANSWER.value)
    return replace(
        moved,
        input=replace(task.input, answer=text, answered_by=by),
        claim=replace(task.claim, lease_end=now + task.claim.lease),
    )


def complete(task: Task, token: int, result: bytes, now: datetime) -> Task:
    """End a claim with success."""
    held(task, token, now)
    return replace(move(task, Event.COMPLETE, now), result=result, failure=None, progress=None)


def fail(task: Task, token: int, failure: Failure, now: datetime) -> tuple[Task, Event]:
    """End a claim with a failure: tried again after its back-off, or given up, as the retry policy says."""
    held(task, token, now)
    return failed_attempt(task, failure, now)


def failed_attempt(task: Task, failure: Failure, now: datetime) -> tuple[Task, Event]:
    """What an attempt that failed, for whatever reason, makes of a running task."""
    failures = task.failures + 1
    retry = task.spec.retry
    hopeless = failure.permanent or failure.reason in retry.non_retryable_reasons or task.spec.exclusive
    if hopeless or failures >= retry.max_attempts:
        return replace(move(task, Event.FAIL, now), failures=failures, failure=failure), Event.FAIL
    again = move(task, Event.RETRY, now)
    ready_time = now + retry.backoff(failures)
    return replace(
        again,
        failures=failures,
        failure=failure,
        ready_time=ready_time,
        claim=None,
        progress=None,
    ), Event.RETRY


def release(task: Task, token: int, now: datetime) -> Task:
    """Give a claim back unfinished; the attempt does not count."""
    held(task, token, now)
    return replace(
        move(task, Event.RELEASE, now),
        claim=None,
        progress=None,
        attempt=task.attempt - 1,
        ready_time=now,
    )


def give_back(task: Task, token: int, now: datetime) -> tuple[Task, Event]:
    """What a worker that gives its claim back makes of a task: an exclusive one has been begun, and fails for good."""
    if repeatable(task):
        return release(task, token, now), Event.RELEASE
    held(task, token, now)
    return failed_attempt(task, Failure("RELEASED", "given back, and must not be begun twice"), now)


def repeatable(task: Task) -> bool:
    """Whether somebody may begin a task that may have been begun: one that is exclusive, only if nobody has."""
    by_peers = task.claim is not None and task.claim.worker == FEDERATION
    return not task.spec.exclusive or not task.attempt or by_peers


def require_repeatable(task: Task, event: str) -> None:
    """
    Refuse what would let somebody else begin an exclusive task that has been begun.

    Raises:
        TaskWrongState.
    """
    if not repeatable(task):
        raise TaskWrongState(
            "it has been begun, and must not be begun twice",
            task=task.name,
            state=task.state.value,
            event=event,
        )


# ---------------------------------------------------------------- handing over, and ends


def delegate(task: Task, now: datetime) -> Task:
    """Hand a task over."""
    return replace(move(task, Event.DELEGATE, now), wait=None)


def returned(task: Task, now: datetime) -> Task:
    """Take a task back, to be decided anew."""
    return replace(move(task, Event.RETURN, now), project="", queue_time=None)


def children_done(task: Task, result: bytes, now: datetime) -> Task:
    """What it was handed over or decomposed into succeeded."""
    return replace(move(task, Event.CHILDREN_DONE, now), result=result, failure=None)


def child_failed(task: Task, failure: Failure, now: datetime) -> Task:
    """What it was handed over or decomposed into failed."""
    return replace(move(task, Event.CHILD_FAILED, now), failure=failure)


def cancel(task: Task, reason: str, now: datetime) -> Task:
    """Call a task off, whoever has it."""
    return replace(
        move(task, Event.CANCEL, now), failure=Failure("CANCELLED", reason) if reason else task.failure
    )


def replay(task: Task, now: datetime) -> Task:
    """
    Try a parked task again, as if it had just come: attempts are counted anew, deadlines that have passed do not count.

    Raises:
        TaskWrongState: It is not parked, or whoever delegated it has been told of its end.
    """
    if task.delegation:
        raise TaskWrongState(
            "the task was handed over, and its end has been passed on: replay the delegator's",
            task=task.name,
            state=task.state.value,
            event=Event.REPLAY.value,
        )
    clocks = task.spec.clocks
    still = replace(
        clocks,
        start_by=clocks.start_by if clocks.start_by and clocks.start_by > now else None,
        finish_by=clocks.finish_by if clocks.finish_by and clocks.finish_by > now else None,
    )
    return replace(
        move(task, Event.REPLAY, now),
        spec=replace(task.spec, clocks=still),
        project="",
        claim=None,
        attempt=0,
        failures=0,
        failure=None,
        progress=None,
        input=None,
        queue_time=None,
        first_start=None,
        ready_time=now,
        wait=None,
    )


# ---------------------------------------------------------------- clocks


def wake_time(task: Task) -> datetime | None:
    """When the next of a task's clocks runs out; None: none runs."""
    if task.state.final:
        return None
    clocks = task.spec.clocks
    times = [clocks.finish_by]
    if task.state in (TaskState.SUBMITTED, TaskState.QUEUED) and not task.attempt:
        times.append(clocks.start_by)
    if task.claim is not None and task.state is TaskState.RUNNING:
        times.append(task.claim.lease_end)
        run_for = watched_run(task)
        times.append(task.claim.start + run_for if run_for else None)
    if asks_where(task) and task.input is not None:
        times.append(task.input.answer_by)
    return min((time for time in times if time is not None), default=None)


def watched_run(task: Task) -> timedelta | None:
    """How long the attempt may take, as far as it is watched here: what a peer works on, the peer watches."""
    return None if task.claim is not None and task.claim.worker == FEDERATION else task.spec.clocks.run_for


def on_time(task: Task, now: datetime) -> tuple[Task, Event] | None:
    """What the clocks that have run out by now make of a task; None: none has."""
    clocks = task.spec.clocks
    if task.state.final:
        return None
    if clocks.finish_by is not None and clocks.finish_by <= now:
        return _timed_out(task, Failure("DEADLINE", "not finished by its deadline"), now)
    waits = task.state in (TaskState.SUBMITTED, TaskState.QUEUED) and not task.attempt
    if waits and clocks.start_by is not None and clocks.start_by <= now:
        return _never_started(task, now)
    if task.state is TaskState.RUNNING and task.claim is not None:
        return _claim_on_time(task, task.claim, now)
    return None


def asks_where(task: Task) -> bool:
    """Whether somebody has been asked where a task goes, or what its requester means."""
    return task.state is TaskState.INPUT_REQUIRED and task.claim is None


def unanswered(task: Task, now: datetime) -> bool:
    """Whether the time for an answer to such a question is over."""
    by = task.input.answer_by if task.input is not None else None
    return asks_where(task) and by is not None and by <= now


def _timed_out(task: Task, failure: Failure, now: datetime) -> tuple[Task, Event]:
    return replace(move(task, Event.TIME_OUT, now), failure=failure, wait=None), Event.TIME_OUT


def _never_started(task: Task, now: datetime) -> tuple[Task, Event]:
    if task.state is TaskState.SUBMITTED:
        return reject(
            task, Failure("NO_ELIGIBLE_EXECUTOR", "nobody could take it in time"), now
        ), Event.REJECT
    return _timed_out(task, Failure("START_TIMEOUT", "no worker claimed it in time"), now)


def _claim_on_time(task: Task, live: Claim, now: datetime) -> tuple[Task, Event] | None:
    run_for = watched_run(task)
    if run_for is not None and live.start + run_for <= now:
        return failed_attempt(task, Failure("RUN_TIMEOUT", "the attempt took too long"), now)
    if live.lease_end is not None and live.lease_end <= now:
        return _unheard(task, now) if live.worker == FEDERATION else _expired(task, now)
    return None


def _unheard(task: Task, now: datetime) -> tuple[Task, Event]:
    """The federation service was away: it takes the task up again, and the peer may be at it all the while."""
    expired = move(task, Event.EXPIRE, now)
    return replace(expired, claim=None, progress=None, ready_time=now), Event.EXPIRE


def _expired(task: Task, now: datetime) -> tuple[Task, Event]:
    """A lease that ran out is a failed attempt without a back-off: the worker is gone, the task is not to blame."""
    failure = Failure("LEASE_EXPIRED", "its worker was not heard from in time")
    failures = task.failures + 1
    if failures >= task.spec.retry.max_attempts or task.spec.exclusive:
        return replace(move(task, Event.FAIL, now), failures=failures, failure=failure), Event.FAIL
    expired = move(task, Event.EXPIRE, now)
    return replace(
        expired, failures=failures, failure=failure, claim=None, progress=None, ready_time=now
    ), Event.EXPIRE
