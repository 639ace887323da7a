"""
The side that takes over, as a state machine: (hand-over, event, now) -> what becomes of it, and what is to be done.

    QUARANTINED ─ a person ─► ACCEPTED ─► RUNNING ── the task ends ──► COMPLETED, FAILED, CANCELLED  (Result)
         └─ no, too late ─► REJECTED, EXPIRED  └── nobody here can ──► REJECTED                      (Decision)
    QUARANTINED ─ Cancel ─► REJECTED: it was never worked on, and whoever hands over may rely on that
    ACCEPTED, RUNNING ─ no answer for 0.9 of the lease ─► CANCELLING ─ the task is stopped ─► RECLAIMED (Decision)
    any open ─ overtaken by a later one, or over there ─► RECLAIMED: the task is stopped
    any open ─ Cancel ─► CANCELLING ─ the task ends ─► however it ended
    any open ─ who handed over is no peer any more ─► ORPHANED: the task is stopped, a person keeps or discards it

That a lease is lost is said once the task is at rest: whoever handed it over begins anew as soon as that is heard.
What must not run twice is never stopped for want of an answer: who handed it over does not take it back either.
Nor is it said to have never begun by who was restored from a copy, and may have begun it since: a person decides there.
"""

from collections.abc import Sequence
from dataclasses import replace

from hopper_federation.delegation.model import (
    ENDED_AS,
    RENEWS_AT,
    STOPS_AT,
    UNREADABLE,
    Action,
    Alarm,
    Appraisal,
    Body,
    Cancel,
    Decision,
    Delegation,
    Errand,
    Gone,
    Message,
    Note,
    OfferFacts,
    Outcome,
    Receipt,
    Renewal,
    Result,
    Role,
    State,
    Step,
    Task,
    TaskNews,
    Update,
    Verdict,
)

_LOST = "LEASE_LOST"
_UNPLACED = "NO_ELIGIBLE_EXECUTOR"
_LET_GO = {_LOST: State.RECLAIMED, _UNPLACED: State.REJECTED}
"""Why this side stops it by itself, and what it is once it is at rest."""

_RESTORED = "it may have been begun here before this Hopper was restored from a copy"

_WORKED_ON = frozenset({State.ACCEPTED, State.RUNNING})
_OVER_THERE = frozenset(
    {State.RECLAIMED, State.EXPIRED, State.CANCELLED, State.REJECTED, State.COMPLETED, State.FAILED}
)


# ---------------------------------------------------------------- offers


def offered(
    peer: str,
    message: Message,
    facts: OfferFacts,
    now: float,
    *,
    quarantined: bool,
    rule: str,
    start_by: float,
    from_copy: bool = False,
) -> Step:
    """
    Take an offer that may come in, or put it before a person.

    Args:
        from_copy: It may have been here before this Hopper was restored from a copy.
    """
    new = Delegation(
        id=message.delegation,
        role=Role.IN,
        peer=peer,
        task_uid=facts.task_uid,
        epoch=message.epoch,
        state=State.QUARANTINED,
        lease=facts.lease,
        exclusive=facts.exclusive,
        rule=rule,
        start_by=start_by,
        heard=message.sequence,
        from_copy=from_copy,
        offer=facts.sealed,
        title=facts.title,
        created=now,
        updated=now,
    )
    if quarantined:
        return Step(new, receipt=Receipt("", State.QUARANTINED))
    return Step(_accepted(new, now), (Errand(Task.SUBMIT),), Receipt("", State.ACCEPTED))


def not_begun_by_this(peer: str, message: Message, now: float) -> Step:
    """
    What is not known here and must not be taken any more: it is called off, or was offered before this Hopper was
    restored from a copy and may not come in now. That it was never worked on is not said: who was restored does not
    know.
    """
    tombstone = Delegation(
        id=message.delegation,
        role=Role.IN,
        peer=peer,
        task_uid="",
        epoch=message.epoch,
        state=State.CANCELLED,
        lease=0,
        heard=message.sequence,
        reason="DELEGATION_NOT_FOUND",
        settled=True,
        created=now,
        updated=now,
    )
    return Step(tombstone, receipt=Receipt("", State.CANCELLED))


def _accepted(was: Delegation, now: float) -> Delegation:
    return _renewed(
        replace(was, state=State.ACCEPTED, start_by=None, renew_at=now + was.lease * RENEWS_AT), now
    )


def _renewed(was: Delegation, said_at: float) -> Delegation:
    """The lease counts from when the message was sent that was answered: before whoever answered counts it."""
    return was if was.exclusive else replace(was, lease_end=said_at + was.lease * STOPS_AT)


def decide(was: Delegation, now: float, *, accepted: bool, reason: str) -> Step | None:
    """A person takes what is QUARANTINED, or not; None: it does not wait for that."""
    if was.state is not State.QUARANTINED:
        return None
    was = replace(was, updated=now)
    if accepted:
        return Step(_accepted(was, now), (Decision(True), Errand(Task.SUBMIT)))
    return _declined(was, State.REJECTED, "PERMISSION_DENIED", reason)


def _may_have_begun(was: Delegation) -> bool:
    """It must not run twice, and what became of it between the copy and the restore is not known."""
    return was.exclusive and was.from_copy


def _declined(was: Delegation, state: State, reason: str, detail: str) -> Step:
    """It is not worked on here, and whoever handed it over is told."""
    if _may_have_begun(was):
        said = f"{detail}; " if detail else ""
        state, reason, detail = State.CANCELLED, "DELEGATION_NOT_FOUND", f"{said}{_RESTORED}"
    done = _at_rest(replace(was, state=state, reason=reason, detail=detail))
    return Step(done, (Decision(False, reason, detail),))


def _at_rest(was: Delegation) -> Delegation:
    return replace(was, lease_end=None, renew_at=None, start_by=None)


# ---------------------------------------------------------------- what who handed over says


def heard(was: Delegation, body: Body, sequence: int, now: float) -> Step:
    """What a further message of who handed over comes to, with the receipt it gets."""
    was = replace(was, heard=max(was.heard, sequence), updated=now)
    match body:
        case Cancel(reason=reason):
            return _called_off(was, reason)
        case Appraisal(sealed=sealed):
            return Step(replace(was, appraisal=sealed), (Errand(Task.FEEDBACK),), Receipt("", was.state))
    return Step(was, receipt=Receipt("", was.state, "INVALID_REQUEST", "only who takes over says that"))


def _called_off(was: Delegation, reason: str) -> Step:
    if was.state is State.QUARANTINED:
        done = _at_rest(replace(was, state=State.REJECTED, reason="CANCELLED", detail=reason, settled=True))
        if _may_have_begun(was):
            done = replace(done, state=State.CANCELLED, reason="DELEGATION_NOT_FOUND")
        return Step(done, receipt=Receipt("", done.state))
    if was.state in _WORKED_ON:
        going = replace(was, state=State.CANCELLING, detail=reason)
        return Step(going, (Errand(Task.STOP, "CANCELLED", reason),), Receipt("", State.CANCELLING))
    return Step(was, receipt=Receipt("", was.state))


def answered(was: Delegation, body: Body, receipt: Receipt, sent_at: float, now: float) -> Step:
    """What the receipt for a message of ours comes to."""
    if isinstance(body, Appraisal):
        return Step(was)
    if isinstance(body, Result):
        return _result_answered(replace(was, updated=now), receipt)
    if receipt.reason in UNREADABLE:
        return Step(was)  # of the hand-over it says nothing
    there = receipt.state
    if was.state not in _WORKED_ON:
        return Step(was)
    if not receipt.taken or there is None or there in _OVER_THERE:
        return _overtaken(replace(was, updated=now), receipt.reason or "STALE_EPOCH")
    return Step(_renewed(was, sent_at))


def _result_answered(was: Delegation, receipt: Receipt) -> Step:
    settled = replace(was, settled=True)
    if receipt.taken or receipt.reason in ("STALE_EPOCH", "DELEGATION_NOT_FOUND"):
        return Step(settled)
    disputed = replace(settled, state=State.DISPUTED, reason=receipt.reason, detail=receipt.detail)
    return Step(disputed, (Alarm("disputed", "who handed it over refuses the result"),))


def _overtaken(was: Delegation, reason: str, detail: str = "it is no longer wanted from here") -> Step:
    stopped = _at_rest(replace(was, state=State.RECLAIMED, reason=reason, detail=detail))
    return Step(stopped, (Errand(Task.STOP, reason, detail),))


def overtaken(was: Delegation, now: float) -> Step:
    """Who handed it over has done so again, under a later epoch."""
    if was.state is State.QUARANTINED:
        return Step(_at_rest(replace(was, state=State.RECLAIMED, reason="STALE_EPOCH", updated=now)))
    return _overtaken(replace(was, updated=now), "STALE_EPOCH", "a later hand-over has overtaken it")


# ---------------------------------------------------------------- what happens here


def submitted(was: Delegation, task: str, now: float) -> Step:
    """A task was made of it."""
    made = replace(was, task=task, updated=now)
    if was.state in _WORKED_ON:
        return Step(made)
    return Step(made, (Errand(Task.STOP, was.reason or "CANCELLED", was.detail),))


def refused(was: Delegation, reason: str, detail: str, now: float) -> Step:
    """The router here does not take it."""
    was = replace(was, updated=now)
    if was.state in _WORKED_ON:
        return _declined(was, State.REJECTED, reason, detail)
    if was.state is State.CANCELLING:
        if was.reason in _LET_GO:
            return _let_go(was)
        return _declined(was, State.CANCELLED, "CANCELLED", was.detail)
    return Step(was)


def _let_go(was: Delegation) -> Step:
    return _declined(was, _LET_GO[was.reason], was.reason, was.detail)


def unplaced(was: Delegation, now: float) -> Step:
    """
    Nobody here can do it, or no longer: a third Hopper that had begun was lost. It is called off first, for what goes
    back must not begin here any more.
    """
    if was.state is not State.ACCEPTED and (was.state is not State.RUNNING or was.exclusive):
        return Step(was)
    detail = "nobody there could take it"
    going = replace(was, state=State.CANCELLING, reason=_UNPLACED, detail=detail, updated=now)
    return Step(_at_rest(going), (Errand(Task.STOP, _UNPLACED, detail),))


def news(was: Delegation, news: TaskNews, now: float) -> Step:
    """What became of the task that was made of it."""
    was = replace(was, updated=now)
    if news.outcome is None:
        if news.running and was.reason == _UNPLACED and was.state is State.CANCELLING:
            return Step(replace(was, reason=""))  # somebody has begun after all: how it ends counts
        return _progressed(was, news) if was.state in _WORKED_ON else Step(was)
    if was.state in _WORKED_ON | {State.CANCELLING}:
        return _ended(was, news, news.outcome)
    if was.state is State.RECLAIMED and not was.result and not news.unplaced:
        # It had ended before it could be stopped. Who handed it over keeps that, and does not apply it.
        if news.outcome is Outcome.CANCELLED:
            return Step(replace(was, settled=True))
        return Step(
            replace(was, outcome=news.outcome, result=news.sealed), (Result(news.outcome, news.sealed),)
        )
    return Step(was)


def _progressed(was: Delegation, news: TaskNews) -> Step:
    state = State.RUNNING if news.running else was.state
    if state is was.state and news.fraction == was.fraction and not news.message:
        return Step(was)
    going = replace(was, state=state, fraction=news.fraction)
    return Step(going, (Update(state is State.RUNNING, news.fraction, news.message),))


def _ended(was: Delegation, news: TaskNews, outcome: Outcome) -> Step:
    if was.reason in _LET_GO and (news.unplaced or outcome is Outcome.CANCELLED):
        return _let_go(was)
    if news.unplaced and was.state is not State.CANCELLING:
        return _declined(was, State.REJECTED, _UNPLACED, "nobody there could take it")
    done = _at_rest(replace(was, state=ENDED_AS[outcome], outcome=outcome, result=news.sealed))
    return Step(done, (Result(outcome, news.sealed),))


def tick(was: Delegation, now: float) -> Step:
    """What its clocks ask for, if one has run out."""
    if was.state is State.QUARANTINED and was.start_by is not None and now >= was.start_by:
        return _declined(
            replace(was, updated=now), State.EXPIRED, "DEADLINE_EXCEEDED", "nobody has looked at it in time"
        )
    if was.state not in _WORKED_ON:
        return Step(was)
    if was.lease_end is not None and now >= was.lease_end:
        detail = "nothing is heard of who handed it over"
        going = replace(was, state=State.CANCELLING, reason=_LOST, detail=detail, updated=now)
        return Step(_at_rest(going), (Errand(Task.STOP, _LOST, detail),))
    if was.renew_at is not None and now >= was.renew_at:
        return Step(replace(was, renew_at=now + was.lease * RENEWS_AT), (Renewal(),))
    return Step(was)


def next_due(was: Delegation) -> float | None:
    """When `tick` has something to do, at the earliest."""
    if was.state is State.QUARANTINED:
        return was.start_by
    if was.state not in _WORKED_ON:
        return None
    return min((clock for clock in (was.lease_end, was.renew_at) if clock is not None), default=None)


def gone(was: Delegation, why: Gone, now: float) -> Step:
    """Who handed it over is no peer any more."""
    detail = "it has revoked this Hopper" if why is Gone.REVOKED_BY_PEER else "who handed it over is revoked"
    return _left_alone(was, "PEER_REVOKED", detail, now)


def _left_alone(was: Delegation, reason: str, detail: str, now: float) -> Step:
    was = _at_rest(replace(was, settled=True, updated=now))
    if was.state is State.QUARANTINED:
        state = State.CANCELLED if _may_have_begun(was) else State.REJECTED
        return Step(replace(was, state=state, reason=reason, detail=detail))
    if not was.state.open:
        return Step(was)
    orphan = replace(was, state=State.ORPHANED, reason=reason, detail=detail)
    return Step(orphan, (Errand(Task.STOP, reason, detail), Alarm("orphaned", detail)))


def restarted(was: Delegation, now: float) -> Delegation:
    """
    This Hopper was away. Its leases run on, and are renewed at once; none runs for longer than one that has just begun:
    the clock may have been set back meanwhile.
    """
    if was.state not in _WORKED_ON:
        return was
    lease_end = None if was.lease_end is None else min(was.lease_end, now + was.lease * STOPS_AT)
    return replace(was, lease_end=lease_end, renew_at=now)


def restored(was: Delegation) -> Delegation:
    """This Hopper was restored from a copy, in which this is."""
    return replace(was, from_copy=True, unconfirmed=True)


def resolve(was: Delegation, verdict: Verdict, reason: str, now: float) -> Step | None:
    """What a person says of one that is ORPHANED or DISPUTED; None: that is not what it waits for."""
    was = replace(was, updated=now, detail=reason or was.detail)
    match was.state, verdict:
        case State.ORPHANED, Verdict.KEEP:
            # Its own from now on: made anew, because what was made of it has been stopped.
            return Step(replace(was, state=State.CANCELLED), (Errand(Task.SUBMIT, "KEEP", reason),))
        case State.ORPHANED, Verdict.DISCARD:
            return Step(replace(was, state=State.CANCELLED))
        case State.DISPUTED, Verdict.KEEP | Verdict.GIVE_UP:
            done = was.outcome is Outcome.SUCCEEDED and verdict is Verdict.KEEP
            return Step(replace(was, state=State.COMPLETED if done else State.FAILED))
    return None


# ---------------------------------------------------------------- comparing notes


def noted(was: Delegation, note: Note | None, now: float, *, unanswered: Sequence[type[Body]]) -> Step:
    """
    What who handed it over knows of it.

    Args:
        note: None: it has never heard of it.
        unanswered: What is in the outbox about it.
    """
    if note is None:
        if not was.state.open:
            return Step(was)
        return _left_alone(
            was, "DELEGATION_NOT_FOUND", "who handed it over knows nothing of it any more", now
        )
    if not note.state.open:
        waits = was.state is State.CANCELLING and not was.task and not was.may_be_begun
        stops = waits or was.state in _WORKED_ON | {State.QUARANTINED}
        return overtaken(was, now) if stops else Step(was)
    was = replace(was, unconfirmed=False)
    missing = _missing(was, note)
    return Step(was, () if missing is None or type(missing) in unanswered else (missing,))


def _missing(was: Delegation, note: Note) -> Action | None:
    """What who handed it over should have heard."""
    if was.result and was.outcome is not None:
        return Result(was.outcome, was.result)
    if was.state in _WORKED_ON and note.state in (State.OFFERED, State.QUARANTINED):
        return Decision(True)
    if not was.state.open and was.state is not State.ORPHANED:
        return Decision(False, was.reason or "CANCELLED", was.detail)
    return None
