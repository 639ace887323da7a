"""
The side that hands over, as a state machine: (hand-over, event, now) -> what becomes of it, and what is to be done.

                    ┌──────────── Decision(no), refused ────────────► REJECTED ─┐
    OFFERED ─► QUARANTINED ─► ACCEPTED ─► RUNNING ── Result ──► COMPLETED, FAILED │
       └─ start_by, close_by ─────┴──────────┴──────────────────► EXPIRED ───────┤ back to the router
                                  └──────────┴─ lease_end ──────► RECLAIMED ─────┘
                                                    exclusive ──► SUSPECT ── Renewal ──► RUNNING, or a person
    any open ── cancel ──► CANCELLING ── Result, confirmed, lease_end ──► CANCELLED, or however it ended

The first end wins. What comes later is kept, and never applied. A hand-over that is exclusive goes back to the router
only once the peer has said that it never ran it, or a person has: what was begun and then called off has failed.
"""

from dataclasses import replace

from hopper_federation.delegation.model import (
    ENDED_AS,
    GRACE,
    HELD,
    Action,
    Alarm,
    Appraisal,
    Body,
    Cancel,
    Decision,
    Delegation,
    Errand,
    Gone,
    Note,
    Offer,
    Outcome,
    Receipt,
    Renewal,
    Result,
    State,
    Step,
    Task,
    Update,
    Verdict,
)

_NOT_BEGUN = frozenset({State.OFFERED, State.QUARANTINED})
_STOPPED_THERE = frozenset({State.CANCELLED, State.REJECTED, State.RECLAIMED, State.EXPIRED, State.ORPHANED})
"""States of who took over in which it does not work on it, and has nothing to say about its end."""

_NEVER_BEGAN = frozenset({State.REJECTED, State.EXPIRED})
"""Those of them in which it has never worked on it."""

_HAS_HAD_IT = frozenset({"STALE_EPOCH", "DUPLICATE_TASK"})
"""Why an offer is refused by who has had the task already, though this Hopper knows of no such hand-over."""

_BEGUN_AND_LEFT = frozenset({"LEASE_LOST", "STALE_EPOCH", "PEER_REVOKED", "DELEGATION_NOT_FOUND"})
"""Reasons for which who took over stops what it may have begun."""

_HALF_DONE = "it was stopped there, perhaps half done"

_GONE = "PEER_REVOKED"
"""Nobody is there any more who could be told, or asked."""


# ---------------------------------------------------------------- what the peer says


def heard(was: Delegation, body: Body, sequence: int, now: float) -> Step:
    """What a message of who took over comes to, with the receipt it gets."""
    after = replace(was, heard=max(was.heard, sequence), updated=now)
    match body:
        case Result():
            return _ended(after, body)
        case Appraisal(sealed=sealed):
            return _taken(replace(after, appraisal=sealed), Errand(Task.FEEDBACK))
        case Offer() | Cancel():
            return Step(
                was, receipt=Receipt("", was.state, "INVALID_REQUEST", "only who hands over says that")
            )
    outdated = isinstance(body, Update) and sequence < was.heard
    return _heard_of(after, body, now) if was.state.open and not outdated else _taken(after)


def _heard_of(was: Delegation, body: Decision | Update | Renewal, now: float) -> Step:
    match body:
        case Update(running=running, fraction=fraction, message=message):
            going = _goes_on(was, State.RUNNING if running else State.ACCEPTED, now)
            return _taken(replace(going, fraction=fraction), Errand(Task.PROGRESS, "", message, fraction))
        case Decision(accepted=False):
            return _declined(was, body)
    return _taken(_goes_on(was, State.ACCEPTED, now))


def _taken(delegation: Delegation, *actions: Action) -> Step:
    return Step(delegation, actions, Receipt("", delegation.state))


def _goes_on(was: Delegation, at_least: State, now: float) -> Delegation:
    """Whoever took it over is alive: its lease begins anew."""
    if was.state is State.CANCELLING:
        return was
    alive = replace(was, lease_end=now + was.lease + GRACE)
    match was.state:
        case State.SUSPECT:
            return replace(alive, state=State.RUNNING, reason="", detail="")
        case State.RUNNING:
            return alive
    return replace(alive, state=at_least)


def _declined(was: Delegation, said: Decision) -> Step:
    """It is not taken, or no longer: whoever took it over does not work on it."""
    if said.reason in _BEGUN_AND_LEFT and _may_not_run_twice(was):
        unsure = _unsure(was, said.reason, said.detail)
        return _taken(unsure.delegation, *unsure.actions)
    if was.state is State.CANCELLING:
        done, *actions = _cancelled(was)
        return _taken(done, *actions)
    state = State.RECLAIMED if said.reason == "LEASE_LOST" else State.REJECTED
    back, *actions = _back(was, state, said.reason, said.detail)
    return _taken(back, *actions)


def _ended(was: Delegation, result: Result) -> Step:
    if was.state.open:
        done = replace(
            was,
            state=ENDED_AS[result.outcome],
            outcome=result.outcome,
            result=result.sealed,
            lease_end=None,
            late=was.settled and result.outcome is Outcome.SUCCEEDED,
        )
        return _taken(done, *(() if was.settled else (_errand_for(done),)))
    if was.result == result.sealed:
        return _taken(was)
    if was.result:
        refused = Receipt("", was.state, "IDEMPOTENCY_CONFLICT", "another result has come already")
        return Step(was, (Alarm("disputed", "two results for one hand-over"),), refused)
    if result.outcome is Outcome.CANCELLED:
        return _taken(was)  # it was told to stop, and has
    late = replace(was, outcome=result.outcome, result=result.sealed, late=True)
    return _taken(late, Alarm("late", "a result came after the task had been taken back"))


def _errand_for(done: Delegation) -> Errand:
    match done.outcome:
        case Outcome.SUCCEEDED:
            return Errand(Task.COMPLETE)
        case Outcome.FAILED:
            return Errand(Task.FAIL)
    if done.exclusive:
        return Errand(
            Task.FAIL, "CANCELLED", "called off there, perhaps half done, and it must not run twice"
        )
    return Errand(Task.RETURN, "CANCELLED", "called off there")


# ---------------------------------------------------------------- what the peer answers


def answered(was: Delegation, body: Body, receipt: Receipt, now: float) -> Step:
    """What the receipt for a message of ours comes to."""
    if isinstance(body, Cancel):
        confirmed = receipt.state is None or receipt.state in _STOPPED_THERE
        if was.state is not State.CANCELLING or not confirmed:
            return Step(was)
        return _stopped_there(replace(was, updated=now), receipt.state)
    if isinstance(body, Appraisal) or not was.state.open:
        return Step(was)
    return _offer_answered(replace(was, updated=now), receipt, now)


def _offer_answered(was: Delegation, receipt: Receipt, now: float) -> Step:
    if not receipt.taken or receipt.state in _STOPPED_THERE:
        return _offered_in_vain(was, receipt)
    if was.state not in _NOT_BEGUN:
        return Step(was)  # what it has said since counts
    if receipt.state is State.QUARANTINED:
        return Step(replace(was, state=State.QUARANTINED))
    return Step(_goes_on(was, State.ACCEPTED, now))


def _offered_in_vain(was: Delegation, receipt: Receipt) -> Step:
    refused = None if receipt.reason in _HAS_HAD_IT else State.REJECTED
    there = receipt.state if receipt.taken else refused
    if was.state is State.CANCELLING:
        return _stopped_there(was, there)
    if was.state not in _NOT_BEGUN:
        return Step(was)  # as above
    if there not in _NEVER_BEGAN and _may_not_run_twice(was):
        return _unsure(was, receipt.reason or "CANCELLED", receipt.detail or _HALF_DONE)
    done, *actions = _back(was, State.REJECTED, receipt.reason or "REJECTED", receipt.detail)
    return Step(done, tuple(actions))


# ---------------------------------------------------------------- what happens here


def cancel(was: Delegation, reason: str, now: float, *, by_router: bool) -> Step:
    """
    It is no longer wanted.

    Args:
        by_router: The task is over at the router already, which needs to hear nothing more.
    """
    if not was.state.open:
        return Step(replace(was, settled=was.settled or by_router))
    was = replace(was, settled=was.settled or by_router, updated=now)
    if was.state is State.CANCELLING:
        return Step(was)
    if was.reason == _GONE:
        if _may_not_run_twice(was):
            return Step(was)  # nobody can confirm it: it goes on waiting for a person
        done, *actions = _cancelled(replace(was, detail=reason))
        return Step(done, tuple(actions))
    return _calling_off(was, reason, now)


def _calling_off(was: Delegation, reason: str, now: float) -> Step:
    going = replace(was, state=State.CANCELLING, detail=reason, lease_end=now + was.lease + GRACE)
    return Step(going, (Cancel(reason),))


def tick(was: Delegation, now: float) -> Step:
    """What its clocks ask for, if one has run out."""
    if not was.state.open:
        return Step(was)
    if _over(was.lease_end, now):
        return _unheard(replace(was, updated=now))
    if was.state in _NOT_BEGUN | {State.ACCEPTED} and _over(was.start_by, now):
        return _too_late(replace(was, start_by=None, updated=now), "it was not begun in time", now)
    if was.state not in {State.SUSPECT, State.CANCELLING} and _over(was.close_by, now):
        return _too_late(replace(was, close_by=None, updated=now), "it has not ended in time", now)
    return Step(was)


def next_due(was: Delegation) -> float | None:
    """When `tick` has something to do, at the earliest."""
    clocks = [was.lease_end]
    if was.state in _NOT_BEGUN | {State.ACCEPTED}:
        clocks.append(was.start_by)
    if was.state not in {State.SUSPECT, State.CANCELLING}:
        clocks.append(was.close_by)
    return min((clock for clock in clocks if clock is not None), default=None) if was.state.open else None


def _over(clock: float | None, now: float) -> bool:
    return clock is not None and now >= clock


def _unheard(was: Delegation) -> Step:
    """Its lease has run out: whoever took it over has stopped by now, unless it must not."""
    if _may_not_run_twice(was):
        return _unsure(was, "LEASE_LOST", "nothing is heard of who took it over")
    if was.state is State.CANCELLING:
        done, *actions = _cancelled(was)
        return Step(done, tuple(actions))
    back, *actions = _back(was, State.RECLAIMED, "LEASE_LOST", "nothing was heard of who took it over")
    return Step(back, (Cancel("the lease ran out"), *actions))


def _too_late(was: Delegation, why: str, now: float) -> Step:
    if was.exclusive:
        return _calling_off(was, why, now)
    back, *actions = _back(was, State.EXPIRED, "DEADLINE_EXCEEDED", why)
    return Step(back, (Cancel(why), *actions))


def _may_not_run_twice(was: Delegation) -> bool:
    """Whether giving it back to the router might let it run a second time."""
    return was.exclusive and not was.settled


def _stopped_there(was: Delegation, there: State | None) -> Step:
    """It was to be called off, and is not worked on any more."""
    if there not in _NEVER_BEGAN and _may_not_run_twice(was):
        return _unsure(was, "CANCELLED", _HALF_DONE)
    done, *actions = _cancelled(was)
    return Step(done, tuple(actions))


def _unsure(was: Delegation, reason: str, detail: str) -> Step:
    unsure = replace(was, state=State.SUSPECT, lease_end=None, reason=reason, detail=detail)
    # What is open has a reason once it was suspect, though it was called off since: a person knows of it.
    known = was.state is State.SUSPECT or was.reason
    return Step(unsure, () if known else (Alarm("suspect", detail),))


def gone(was: Delegation, why: Gone, now: float) -> Step:
    """Who took it over is no peer any more."""
    if not was.state.open or (was.state is State.SUSPECT and was.reason == _GONE):
        return Step(was)
    was = replace(was, updated=now)
    detail = "it has revoked this Hopper" if why is Gone.REVOKED_BY_PEER else "the peer is revoked"
    if _may_not_run_twice(was):
        return _unsure(was, _GONE, detail)
    if was.state is State.CANCELLING:
        done, *actions = _cancelled(was)
    else:
        done, *actions = _back(was, State.RECLAIMED, _GONE, detail)
    return Step(done, tuple(actions))


def resolve(was: Delegation, verdict: Verdict, reason: str, now: float) -> Step | None:
    """What a person says of one that is SUSPECT; None: that is not what it waits for."""
    if was.state is not State.SUSPECT:
        return None
    was = replace(was, updated=now)
    told = () if was.reason == _GONE else (Cancel(reason),)
    if verdict is Verdict.RETRY:
        back, *actions = _back(was, State.RECLAIMED, was.reason, reason)
        return Step(back, (*told, *actions))
    if verdict is Verdict.GIVE_UP:
        failed = replace(was, state=State.FAILED, outcome=Outcome.FAILED, detail=reason)
        return Step(failed, (*told, Errand(Task.FAIL, was.reason, reason)))
    return None


def restarted(was: Delegation, now: float) -> Delegation:
    """
    This Hopper was away, and cannot know for how long nothing was heard: every lease begins anew, and is no longer than
    that: the clock may have been set back meanwhile.
    """
    if was.lease_end is None:
        return was
    return replace(was, lease_end=now + was.lease + GRACE)


# ---------------------------------------------------------------- comparing notes


def noted(was: Delegation, note: Note | None, now: float, *, offer_unanswered: bool) -> Step:
    """
    What the peer knows of it.

    Args:
        note: None: it has never heard of it.
        offer_unanswered: The offer is still to be answered, so that the peer need not know of it.
    """
    if note is None:
        return _unknown_there(was, now) if was.state.open and not offer_unanswered else Step(was)
    if not was.state.open:
        return Step(was, (Cancel("it is over here"),) if note.state.open else ())
    if was.state is State.CANCELLING:
        return Step(was, (Cancel(was.detail),) if note.state.open else ())
    if note.state in HELD and was.state in _NOT_BEGUN:
        return Step(_goes_on(was, State.ACCEPTED, now))
    return Step(was)


def _unknown_there(was: Delegation, now: float) -> Step:
    was = replace(was, updated=now)
    detail = "who took it over knows nothing of it any more"
    if _may_not_run_twice(was):
        return _unsure(was, "DELEGATION_NOT_FOUND", detail)
    if was.state is State.CANCELLING:
        done, *actions = _cancelled(was)
        return Step(done, tuple(actions))
    back, *actions = _back(was, State.RECLAIMED, "DELEGATION_NOT_FOUND", detail)
    return Step(back, tuple(actions))


# ---------------------------------------------------------------- ends


def _back(was: Delegation, state: State, reason: str, detail: str) -> tuple[Delegation, *tuple[Action, ...]]:
    """It goes back to the router, which decides anew: without this peer, unless what kept it passes."""
    done = replace(was, state=state, reason=reason, detail=detail, lease_end=None)
    return (done,) if was.settled else (done, Errand(Task.RETURN, reason, detail))


def _cancelled(was: Delegation) -> tuple[Delegation, *tuple[Action, ...]]:
    done = replace(was, state=State.CANCELLED, outcome=Outcome.CANCELLED, lease_end=None)
    return (done,) if was.settled else (done, Errand(Task.RETURN, "CANCELLED", was.detail))
