"""
The two sides of a hand-over, transition by transition, and the desk that both share.

Cases of the catalogue of faults are named by their number; where it has a meaning, each has its twin with the roles
swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from hopper_common.errors import DelegationNotFound, DelegationWrongState
from hopper_federation.delegation import delegatee, delegator
from hopper_federation.delegation.desk import Desk, due_of, note_of
from hopper_federation.delegation.model import (
    GRACE,
    OPEN,
    STOPS_AT,
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
    Offer,
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
from hopper_federation.errors import ResyncNeeded
from tests.federation.sim.memory_store import MemoryDelegations, Tables
from tests.federation.sim.sim_hopper import Ruled

NOW = 5_000.0
LEASE = 900.0
DONE = Result(Outcome.SUCCEEDED, b"done")
GAVE_UP = Result(Outcome.FAILED, b"gave up")
STOPPED = Result(Outcome.CANCELLED, b"stopped")
WORKED_ON = (State.ACCEPTED, State.RUNNING)
BOTH = (False, True)


def out(state: State, *, exclusive: bool = False, **more: object) -> Delegation:
    """A hand-over as who hands over knows it, with the clocks of its state."""
    held = state in (State.ACCEPTED, State.RUNNING, State.CANCELLING)
    was = Delegation(
        id="d1",
        role=Role.OUT,
        peer="b",
        task_uid="a/t1",
        epoch=1,
        state=state,
        lease=LEASE,
        exclusive=exclusive,
        task="t1",
        token=7,
        lease_end=NOW + LEASE + GRACE if held else None,
        start_by=NOW + 10_000,
        close_by=NOW + 20_000,
        sent=1,
        offer=b"offer",
    )
    return replace(was, **more)  # type: ignore[arg-type]


def taken(state: State, *, exclusive: bool = False, **more: object) -> Delegation:
    """A hand-over as who takes over knows it, with the clocks of its state."""
    works = state in WORKED_ON
    was = Delegation(
        id="d1",
        role=Role.IN,
        peer="a",
        task_uid="a/t1",
        epoch=1,
        state=state,
        lease=LEASE,
        exclusive=exclusive,
        task="" if state is State.QUARANTINED else "made",
        lease_end=NOW + LEASE * STOPS_AT if works and not exclusive else None,
        renew_at=NOW + LEASE / 3 if works else None,
        start_by=NOW + 10_000 if state is State.QUARANTINED else None,
        heard=1,
    )
    return replace(was, **more)  # type: ignore[arg-type]


def done(step: Step | None) -> list[object]:
    """What a step asks for: errands by their task, the rest by its kind."""
    assert step is not None
    named = {Errand: lambda each: each.task, Alarm: lambda each: each.kind}
    return [named.get(type(each), type)(each) for each in step.actions]


# ---------------------------------------------------------------- who hands over: what the peer says

HEARD = [
    # is, what comes, what it is then, what is done
    (State.OFFERED, Update(True, 0.5), State.RUNNING, [Task.PROGRESS]),
    (State.OFFERED, Update(False), State.ACCEPTED, [Task.PROGRESS]),
    (State.OFFERED, Decision(True), State.ACCEPTED, []),
    (State.OFFERED, Decision(False, "QUOTA"), State.REJECTED, [Task.RETURN]),
    (State.OFFERED, DONE, State.COMPLETED, [Task.COMPLETE]),
    (State.QUARANTINED, Decision(True), State.ACCEPTED, []),
    (State.QUARANTINED, Decision(False, "PERMISSION_DENIED"), State.REJECTED, [Task.RETURN]),
    (State.QUARANTINED, GAVE_UP, State.FAILED, [Task.FAIL]),
    (State.ACCEPTED, Renewal(), State.ACCEPTED, []),
    (State.ACCEPTED, Update(), State.RUNNING, [Task.PROGRESS]),
    (State.ACCEPTED, Decision(False, "LEASE_LOST"), State.RECLAIMED, [Task.RETURN]),
    (State.RUNNING, Renewal(), State.RUNNING, []),
    (State.RUNNING, Update(False), State.RUNNING, [Task.PROGRESS]),
    (State.RUNNING, Decision(True), State.RUNNING, []),
    (State.RUNNING, DONE, State.COMPLETED, [Task.COMPLETE]),
    (State.RUNNING, GAVE_UP, State.FAILED, [Task.FAIL]),
    (State.RUNNING, STOPPED, State.CANCELLED, [Task.RETURN]),
    (State.CANCELLING, Renewal(), State.CANCELLING, []),
    (State.CANCELLING, Update(), State.CANCELLING, [Task.PROGRESS]),
    (State.CANCELLING, Decision(False, "CANCELLED"), State.CANCELLED, [Task.RETURN]),
    (State.CANCELLING, DONE, State.COMPLETED, [Task.COMPLETE]),
    (State.CANCELLING, STOPPED, State.CANCELLED, [Task.RETURN]),
    (State.COMPLETED, DONE, State.COMPLETED, []),
    (State.COMPLETED, Update(), State.COMPLETED, []),
    (State.COMPLETED, Decision(False), State.COMPLETED, []),
    (State.RECLAIMED, Renewal(), State.RECLAIMED, []),
    (State.RECLAIMED, DONE, State.RECLAIMED, ["late"]),
    (State.RECLAIMED, STOPPED, State.RECLAIMED, []),
    (State.EXPIRED, DONE, State.EXPIRED, ["late"]),
]


@pytest.mark.parametrize(("state", "body", "after", "actions"), HEARD)
def test_what_the_peer_says(state: State, body: Body, after: State, actions: list[object]) -> None:
    was = out(state, result=DONE.sealed if state is State.COMPLETED else b"")

    step = delegator.heard(was, body, 2, NOW)

    assert step.delegation.state is after
    assert done(step) == actions
    assert step.receipt == Receipt("", after)
    assert step.delegation.heard == 2


@pytest.mark.parametrize("body", [Offer(b""), Cancel()])
def test_only_who_hands_over_offers_and_calls_off(body: Body) -> None:
    step = delegator.heard(out(State.RUNNING), body, 2, NOW)

    assert step.receipt is not None
    assert step.receipt.reason == "INVALID_REQUEST"
    assert step.delegation == out(State.RUNNING)


@pytest.mark.parametrize("body", [Decision(True), Update(), Renewal(), DONE, Offer(b"")])
def test_only_who_takes_over_says_how_it_goes(body: Body) -> None:
    step = delegatee.heard(taken(State.RUNNING), body, 2, NOW)

    assert step.receipt is not None
    assert step.receipt.reason == "INVALID_REQUEST"
    assert step.delegation.state is State.RUNNING


@pytest.mark.parametrize("body", [Renewal(), Update(), Decision(True)])
@pytest.mark.parametrize(
    "state", [State.OFFERED, State.QUARANTINED, State.ACCEPTED, State.RUNNING, State.SUSPECT]
)
def test_whoever_says_anything_is_alive(state: State, body: Body) -> None:
    later = NOW + 500

    step = delegator.heard(out(state), body, 2, later)

    assert step.delegation.lease_end == later + LEASE + GRACE


def test_how_far_it_was_is_not_told_after_how_far_it_is() -> None:
    was = out(State.RUNNING, heard=5, fraction=0.9)

    step = delegator.heard(was, Update(True, 0.1), 4, NOW)

    assert step.delegation.fraction == 0.9
    assert done(step) == []
    assert step.receipt == Receipt("", State.RUNNING)


def test_two_results_are_disputed() -> None:
    was = delegator.heard(out(State.RUNNING), DONE, 2, NOW).delegation

    step = delegator.heard(was, Result(Outcome.SUCCEEDED, b"other"), 3, NOW)

    assert step.receipt is not None
    assert step.receipt.reason == "IDEMPOTENCY_CONFLICT"
    assert step.delegation == replace(was, heard=3)
    assert done(step) == ["disputed"]


def test_a_refused_result_is_disputed_there_until_a_person_decides() -> None:
    was = taken(State.COMPLETED, result=b"x", outcome=Outcome.SUCCEEDED)

    step = delegatee.answered(was, DONE, Receipt("m", State.FAILED, "IDEMPOTENCY_CONFLICT"), NOW, NOW)

    assert step.delegation.state is State.DISPUTED
    assert done(step) == ["disputed"]
    for verdict, after in ((Verdict.KEEP, State.COMPLETED), (Verdict.GIVE_UP, State.FAILED)):
        decided = delegatee.resolve(step.delegation, verdict, "seen", NOW)
        assert decided is not None
        assert decided.delegation.state is after


@pytest.mark.parametrize("body", [DONE, GAVE_UP])
def test_what_comes_when_the_task_is_over_here_tells_the_router_nothing(body: Result) -> None:
    was = delegator.cancel(out(State.RUNNING), "no longer", NOW, by_router=True).delegation

    step = delegator.heard(was, body, 2, NOW)

    assert not step.delegation.state.open
    assert step.delegation.late == (body is DONE)
    assert done(step) == []


# ---------------------------------------------------------------- who hands over: what the peer answers

OFFER_ANSWERED = [
    (State.OFFERED, Receipt("", State.ACCEPTED), State.ACCEPTED, []),
    (State.OFFERED, Receipt("", State.QUARANTINED), State.QUARANTINED, []),
    (State.OFFERED, Receipt("", None, "CAPABILITY_DENIED"), State.REJECTED, [Task.RETURN]),
    (State.OFFERED, Receipt("", State.REJECTED), State.REJECTED, [Task.RETURN]),
    (State.OFFERED, Receipt("", State.COMPLETED), State.ACCEPTED, []),
    (State.QUARANTINED, Receipt("", State.ACCEPTED), State.ACCEPTED, []),
    (State.RUNNING, Receipt("", State.QUARANTINED), State.RUNNING, []),
    (State.RUNNING, Receipt("", None, "QUOTA"), State.RUNNING, []),
    (State.CANCELLING, Receipt("", State.ACCEPTED), State.CANCELLING, []),
    (State.CANCELLING, Receipt("", None, "QUOTA"), State.CANCELLED, [Task.RETURN]),
    (State.COMPLETED, Receipt("", State.ACCEPTED), State.COMPLETED, []),
]


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize(("state", "receipt", "after", "actions"), OFFER_ANSWERED)
def test_what_an_offer_is_answered(
    state: State, receipt: Receipt, after: State, actions: list[object], exclusive: bool
) -> None:
    step = delegator.answered(out(state, exclusive=exclusive), Offer(b""), receipt, NOW)

    assert step.delegation.state is after
    assert done(step) == actions


CANCEL_ANSWERED = [
    # what the other side says it is, what it is then: where it may run twice, and where it must not
    (State.CANCELLING, State.CANCELLING, State.CANCELLING),
    (State.RUNNING, State.CANCELLING, State.CANCELLING),
    (State.COMPLETED, State.CANCELLING, State.CANCELLING),
    (State.REJECTED, State.CANCELLED, State.CANCELLED),
    (State.EXPIRED, State.CANCELLED, State.CANCELLED),
    (State.CANCELLED, State.CANCELLED, State.SUSPECT),
    (State.RECLAIMED, State.CANCELLED, State.SUSPECT),
    (State.ORPHANED, State.CANCELLED, State.SUSPECT),
    (None, State.CANCELLED, State.SUSPECT),
]


@pytest.mark.parametrize(("there", "after", "after_exclusive"), CANCEL_ANSWERED)
def test_what_a_cancel_is_answered(there: State | None, after: State, after_exclusive: State) -> None:
    for exclusive, expected in ((False, after), (True, after_exclusive)):
        was = out(State.CANCELLING, exclusive=exclusive)
        step = delegator.answered(was, Cancel(), Receipt("", there), NOW)
        assert step.delegation.state is expected
        assert (Task.RETURN in done(step)) == (expected is State.CANCELLED)
        over = delegator.answered(replace(was, settled=True), Cancel(), Receipt("", there), NOW)
        assert over.delegation.state is after  # the router has ended it: it cannot run twice
        assert done(over) == []


# ---------------------------------------------------------------- who takes over


@pytest.mark.parametrize("quarantined", BOTH)
def test_an_offer_is_taken(quarantined: bool) -> None:
    facts = OfferFacts(b"o", "a/t1", "a", ("a",), LEASE)
    message = Message("m1", "d1", 1, 1, Offer(b"o", facts))

    step = delegatee.offered("a", message, facts, NOW, quarantined=quarantined, rule="r", start_by=NOW + 60)

    expected = State.QUARANTINED if quarantined else State.ACCEPTED
    assert step.delegation.state is expected
    assert step.receipt == Receipt("", expected)
    assert done(step) == ([] if quarantined else [Task.SUBMIT])
    assert due_of(step.delegation) == (NOW + 60 if quarantined else NOW + LEASE / 3)


@pytest.mark.parametrize("exclusive", BOTH)
def test_a_person_decides(exclusive: bool) -> None:
    was = taken(State.QUARANTINED, exclusive=exclusive)

    yes = delegatee.decide(was, NOW, accepted=True, reason="")
    no = delegatee.decide(was, NOW, accepted=False, reason="not ours")

    assert yes is not None
    assert no is not None
    assert (yes.delegation.state, done(yes)) == (State.ACCEPTED, [Decision, Task.SUBMIT])
    assert (yes.delegation.lease_end is None) == exclusive
    assert (no.delegation.state, done(no)) == (State.REJECTED, [Decision])
    assert delegatee.decide(yes.delegation, NOW, accepted=True, reason="") is None


NEWS = [
    (State.ACCEPTED, TaskNews(running=True), State.RUNNING, [Update]),
    (State.RUNNING, TaskNews(running=True), State.RUNNING, []),
    (State.RUNNING, TaskNews(running=True, fraction=0.5), State.RUNNING, [Update]),
    (State.ACCEPTED, TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), State.COMPLETED, [Result]),
    (State.RUNNING, TaskNews(outcome=Outcome.FAILED, sealed=b"x"), State.FAILED, [Result]),
    (State.RUNNING, TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"), State.CANCELLED, [Result]),
    (State.RUNNING, TaskNews(outcome=Outcome.FAILED, unplaced=True), State.REJECTED, [Decision]),
    (State.CANCELLING, TaskNews(running=True), State.CANCELLING, []),
    (State.CANCELLING, TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"), State.CANCELLED, [Result]),
    (State.CANCELLING, TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), State.COMPLETED, [Result]),
    (State.RECLAIMED, TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), State.RECLAIMED, [Result]),
    (State.RECLAIMED, TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"), State.RECLAIMED, []),
    (State.ORPHANED, TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), State.ORPHANED, []),
    (State.COMPLETED, TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), State.COMPLETED, []),
]


@pytest.mark.parametrize(("state", "news", "after", "actions"), NEWS)
def test_what_becomes_of_the_task(state: State, news: TaskNews, after: State, actions: list[object]) -> None:
    step = delegatee.news(taken(state), news, NOW)

    assert step.delegation.state is after
    assert done(step) == actions


@pytest.mark.parametrize(
    ("state", "reason", "after", "actions"),
    [
        (State.ACCEPTED, "", State.REJECTED, [Decision]),
        (State.CANCELLING, "", State.CANCELLED, [Decision]),
        (State.CANCELLING, "LEASE_LOST", State.RECLAIMED, [Decision]),
        (State.ORPHANED, "", State.ORPHANED, []),
    ],
)
def test_the_router_does_not_take_it(state: State, reason: str, after: State, actions: list[object]) -> None:
    step = delegatee.refused(taken(state, reason=reason), "LIMIT", "too many", NOW)

    assert step.delegation.state is after
    assert done(step) == actions


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_nobody_there_can_do_goes_back_once_it_is_called_off_there(exclusive: bool) -> None:
    """Found in review: the call-off was heard of first, and what must not run twice had failed by it."""
    a, b = two()
    offer(a, exclusive=exclusive)
    exchanged(a, b)
    b.desk().submitted("d1", "made")
    b.tables.errands.clear()

    b.desk().unplaced("d1")
    assert b.errands() == [Task.STOP]
    assert b.outbox() == []
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.REJECTED
    assert a.the(Role.OUT).reason == "NO_ELIGIBLE_EXECUTOR"
    assert a.errands() == [Task.RETURN]


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_nobody_there_can_do_any_more_goes_back_unless_it_must_not_run_twice(exclusive: bool) -> None:
    """Found by the nemesis: a third Hopper had begun and was lost; both waited for ever."""
    a, b = two()
    offer(a, exclusive=exclusive)
    exchanged(a, b)
    b.desk().submitted("d1", "made")
    b.desk().news("d1", TaskNews(running=True))
    exchanged(a, b)

    b.desk().unplaced("d1")
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is (State.CANCELLED if exclusive else State.REJECTED)
    assert a.errands() == ([Task.PROGRESS, Task.FAIL] if exclusive else [Task.PROGRESS, Task.RETURN])


def test_what_somebody_there_has_begun_after_all_does_not_go_back_unseen() -> None:
    a, b = two()
    offer(a, exclusive=True)
    exchanged(a, b)
    b.desk().submitted("d1", "made")

    b.desk().unplaced("d1")
    b.desk().news("d1", TaskNews(running=True))
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is State.CANCELLED
    assert a.errands() == [Task.FAIL]


@pytest.mark.parametrize("state", sorted(OPEN | {State.ORPHANED, State.RECLAIMED}))
def test_a_task_that_nobody_wants_any_more_is_stopped_once_it_is_made(state: State) -> None:
    step = delegatee.submitted(taken(state, task=""), "made", NOW)

    assert step.delegation.task == "made"
    assert done(step) == ([] if state in WORKED_ON else [Task.STOP])


# ---------------------------------------------------------------- leases


@pytest.mark.parametrize("body", [Renewal(), Update(), Decision(True)])
def test_a_lease_counts_from_when_it_was_asked_for(body: Body) -> None:
    step = delegatee.answered(taken(State.RUNNING), body, Receipt("", State.RUNNING), NOW + 100, NOW + 400)

    assert step.delegation.lease_end == NOW + 100 + LEASE * STOPS_AT
    assert step.delegation.lease_end < NOW + 100 + LEASE + GRACE  # when it is taken back at the earliest


def test_an_answer_that_comes_late_makes_no_lease_longer() -> None:
    a, b = handed_over()
    b.now = said_at = NOW + LEASE / 3
    b.desk().tick()
    (renewal,) = b.outbox()
    a.now = said_at
    receipt = a.desk().take("b", renewal)  # and the answer is lost

    b.now += LEASE / 2
    assert a.desk().take("b", renewal) == receipt  # it was sent again
    b.desk().answered(renewal.id, receipt, said_at)

    assert (b.the(Role.IN).lease_end or 0) == said_at + LEASE * STOPS_AT
    assert (b.the(Role.IN).lease_end or 0) < (a.the(Role.OUT).lease_end or 0)


@pytest.mark.parametrize("exclusive", BOTH)
def test_a_lease_is_renewed_at_a_third(exclusive: bool) -> None:
    was = taken(State.RUNNING, exclusive=exclusive)
    assert due_of(was) == NOW + LEASE / 3

    step = delegatee.tick(was, NOW + LEASE / 3)

    assert done(step) == [Renewal]
    assert due_of(step.delegation) == NOW + LEASE / 3 * 2


OVER_THERE = [
    Receipt("", State.RECLAIMED),
    Receipt("", State.EXPIRED),
    Receipt("", State.CANCELLED),
    Receipt("", State.COMPLETED),
    Receipt("", None, "DELEGATION_NOT_FOUND"),
    Receipt("", State.RUNNING, "STALE_EPOCH"),
]


@pytest.mark.parametrize("receipt", OVER_THERE)
def test_whoever_hears_that_it_is_over_there_stops(receipt: Receipt) -> None:
    step = delegatee.answered(taken(State.RUNNING), Renewal(), receipt, NOW, NOW)

    assert step.delegation.state is State.RECLAIMED
    assert done(step) == [Task.STOP]
    assert due_of(step.delegation) is None


# ---------------------------------------------------------------- clocks of who hands over


@pytest.mark.parametrize("state", [State.OFFERED, State.QUARANTINED, State.ACCEPTED])
@pytest.mark.parametrize("exclusive", BOTH)
def test_what_is_not_begun_in_time(state: State, exclusive: bool) -> None:
    was = out(state, exclusive=exclusive, lease_end=None, start_by=NOW)

    step = delegator.tick(was, NOW)

    assert step.delegation.state is (State.CANCELLING if exclusive else State.EXPIRED)
    assert done(step) == ([Cancel] if exclusive else [Cancel, Task.RETURN])


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_has_not_ended_in_time(exclusive: bool) -> None:
    step = delegator.tick(out(State.RUNNING, exclusive=exclusive, close_by=NOW), NOW)

    assert step.delegation.state is (State.CANCELLING if exclusive else State.EXPIRED)
    assert done(step) == ([Cancel] if exclusive else [Cancel, Task.RETURN])


COMES_BACK = [
    # why it goes back to the router, and whether it may come to the same peer again
    (lambda was: delegator.tick(replace(was, lease_end=NOW), NOW), True),
    (lambda was: delegator.heard(was, Decision(False, "LEASE_LOST"), 2, NOW), True),
    (lambda was: delegator.noted(was, None, NOW, offer_unanswered=False), True),
    (lambda was: delegator.heard(was, Decision(False, "NO_ELIGIBLE_EXECUTOR"), 2, NOW), False),
    (lambda was: delegator.heard(was, STOPPED, 2, NOW), False),
    (lambda was: delegator.tick(replace(was, close_by=NOW), NOW), False),
    (lambda was: delegator.gone(was, Gone.REVOKED, NOW), False),
]


@pytest.mark.parametrize(("ends", "may_come_again"), COMES_BACK)
def test_what_passes_does_not_keep_a_task_from_the_same_peer(
    ends: Callable[[Delegation], Step], may_come_again: bool
) -> None:
    errands = [each for each in ends(out(State.RUNNING)).actions if isinstance(each, Errand)]

    assert [(each.task, each.may_come_again) for each in errands] == [(Task.RETURN, may_come_again)]


def test_what_has_begun_may_begin_late() -> None:
    assert delegator.tick(out(State.RUNNING, start_by=NOW), NOW).delegation.state is State.RUNNING


def test_nothing_waits_for_ever_for_who_does_not_answer() -> None:
    """Found in review: an exclusive hand-over that was called off waited for its peer for ever."""
    was = delegator.cancel(out(State.RUNNING, exclusive=True), "no", NOW, by_router=False).delegation
    due = due_of(was)
    assert due == NOW + LEASE + GRACE

    unsure = delegator.tick(was, due)
    over = delegator.tick(replace(was, settled=True), due)

    assert (unsure.delegation.state, done(unsure)) == (State.SUSPECT, ["suspect"])
    assert (over.delegation.state, done(over)) == (State.CANCELLED, [])


def test_a_suspect_of_a_peer_that_is_gone_is_called_off_at_once() -> None:
    """Found by seed 15: it waited for ever for the answer of a peer that was gone."""
    suspect = delegator.gone(out(State.RUNNING, exclusive=True), Gone.REVOKED, NOW).delegation
    assert suspect.state is State.SUSPECT

    step = delegator.cancel(suspect, "no longer", NOW, by_router=True)

    assert step.delegation.state is State.CANCELLED
    assert done(step) == []


# ---------------------------------------------------------------- the desk, both sides


@dataclass
class Side:
    """One Hopper's tables and clock."""

    name: str
    peer: str
    tables: Tables = field(default_factory=Tables)
    now: float = NOW
    ruled: Ruled = field(default_factory=lambda: Ruled(True))
    restored_at: float | None = None
    numbers: count[int] = field(default_factory=lambda: count(1))

    def rule_on(self, peer: str, facts: OfferFacts) -> Ruled:
        return self.ruled

    def may_have_been_here(self, facts: OfferFacts) -> bool:
        return self.restored_at is not None and facts.made <= self.restored_at

    def restored(self, copy: Tables) -> None:
        """Its tables are brought back from a copy."""
        self.tables, self.restored_at = copy.copy(), self.now
        self.desk().restored([self.peer])

    def store(self) -> MemoryDelegations:
        return MemoryDelegations(self.tables, self.numbers.__next__, self.name)

    def desk(self) -> Desk:
        return Desk(self.store(), self.now, self, self.name)

    def outbox(self) -> list[Message]:
        return [row.message for row in self.tables.rows_for(self.peer)]

    def errands(self) -> list[Task]:
        return [chore.errand.task for chore in self.tables.errands.values()]

    def the(self, role: Role, delegation: str = "d1") -> Delegation:
        return self.tables.delegations[role, delegation]


def two() -> tuple[Side, Side]:
    """Who hands over, and who takes over."""
    return Side("a", "b"), Side("b", "a")


def facts_of(
    uid: str = "a/t1", *, path: tuple[str, ...] = ("a",), lease: float = LEASE, exclusive: bool = False
) -> OfferFacts:
    return OfferFacts(uid.encode(), uid, path[0], path, lease, exclusive, made=NOW)


def offer(a: Side, *, delegation: str = "d1", epoch: int = 1, exclusive: bool = False) -> Message:
    """A offers its task; what is in its outbox for that."""
    facts = facts_of(exclusive=exclusive)
    new = out(State.OFFERED, exclusive=exclusive, id=delegation, epoch=epoch, sent=0, created=a.now)
    a.desk().offer(new, Offer(facts.sealed, facts))
    return a.outbox()[-1]


def carry(one: Side, other: Side) -> None:
    """Everything that one has to say is said and answered."""
    for message in one.outbox():
        receipt = other.desk().take(one.name, message)
        one.desk().answered(message.id, receipt, one.now)


def exchanged(a: Side, b: Side) -> None:
    """Both say what they have to say, until neither has more."""
    for _ in range(10):
        carry(a, b)
        carry(b, a)
    assert not a.outbox()
    assert not b.outbox()


def handed_over(*, exclusive: bool = False) -> tuple[Side, Side]:
    """A task that B works on."""
    a, b = two()
    offer(a, exclusive=exclusive)
    carry(a, b)
    b.desk().submitted("d1", "made")
    b.desk().news("d1", TaskNews(running=True))
    exchanged(a, b)
    assert a.the(Role.OUT).state is State.RUNNING
    assert b.the(Role.IN).state is State.RUNNING
    a.tables.errands.clear()
    b.tables.errands.clear()
    return a, b


def test_a_task_crosses_and_comes_back_done() -> None:
    a, b = handed_over()

    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))
    exchanged(a, b)
    a.desk().settled(Role.OUT, "d1")

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.COMPLETED
    assert a.errands() == [Task.COMPLETE]
    assert a.the(Role.OUT).result == b"done"
    assert b.the(Role.IN).settled


def test_a_message_that_comes_again_gets_its_first_answer_and_does_nothing() -> None:
    a, b = two()
    message = offer(a)
    first = b.desk().take("a", message)
    b.desk().news("d1", TaskNews(running=True))
    before = dict(b.tables.delegations)

    again = b.desk().take("a", message)

    assert again == first == Receipt(message.id, State.ACCEPTED)
    assert b.tables.delegations == before
    assert b.errands() == [Task.SUBMIT]


def test_another_message_under_the_same_id_is_refused() -> None:
    a, b = two()
    message = offer(a)
    b.desk().take("a", message)

    answer = b.desk().take("a", replace(message, digest=b"other"))

    assert answer.reason == "IDEMPOTENCY_CONFLICT"


def test_a_refusal_that_may_pass_is_asked_for_again() -> None:
    a, b = two()
    b.ruled = Ruled(False, reason="QUOTA", retry_after=60.0)
    message = offer(a)

    carry(a, b)
    assert a.the(Role.OUT).state is State.OFFERED
    assert not a.store().batch("b", a.now + 59, 10)
    assert [row.message for row in a.store().batch("b", a.now + 60, 10)] == [message]
    b.ruled = Ruled(True)
    carry(a, b)

    assert a.the(Role.OUT).state is State.ACCEPTED


@pytest.mark.parametrize(
    ("exclusive", "after", "done"), [(False, State.CANCELLED, [Task.RETURN]), (True, State.SUSPECT, [])]
)
def test_what_is_put_off_there_can_be_called_off(exclusive: bool, after: State, done: list[Task]) -> None:
    a, b = two()
    b.ruled = Ruled(False, reason="QUOTA", retry_after=2 * LEASE)
    put_off = offer(a, exclusive=exclusive)
    carry(a, b)
    a.desk().cancel("d1", "no longer wanted", by_router=False)

    (row,) = a.store().batch("b", a.now, 10)
    assert isinstance(row.message.body, Cancel)
    a.desk().answered(row.message.id, b.desk().take("a", row.message), a.now)

    assert a.the(Role.OUT).state is after
    assert a.the(Role.OUT).reason != "LEASE_LOST"
    assert a.errands() == done
    b.ruled = Ruled(True)
    assert b.desk().take("a", put_off).state is State.CANCELLED
    assert b.errands() == []


def test_a_message_of_another_epoch_changes_nothing() -> None:
    a, b = handed_over()
    before = a.the(Role.OUT), b.the(Role.IN)

    for side, peer, body in ((a, "b", DONE), (b, "a", Cancel())):
        for epoch in (0, 2):
            answer = side.desk().take(peer, Message(f"x{epoch}", "d1", epoch, 9, body, b""))
            assert answer.reason == "STALE_EPOCH"

    assert (a.the(Role.OUT), b.the(Role.IN)) == before


@pytest.mark.parametrize("body", [DONE, Update(), Renewal(), Decision(False), Cancel(), Appraisal(b"")])
def test_nobody_speaks_of_what_is_with_another(body: Body) -> None:
    a, b = handed_over()
    before = a.the(Role.OUT), b.the(Role.IN)

    for side in (b,) if isinstance(body, Cancel) else (a, b):
        answer = side.desk().take("c", Message("x", "d1", 1, 9, body, b""))
        assert answer.reason == "DELEGATION_NOT_FOUND"
        assert answer.state is None  # not even that there is one

    assert (a.the(Role.OUT), b.the(Role.IN)) == before


def test_what_is_no_longer_wanted_before_it_came_is_not_taken() -> None:
    a, b = two()
    message = offer(a)
    cancel = Message("m9", "d1", 1, 2, Cancel(), b"")

    assert b.desk().take("a", cancel) == Receipt("m9", State.CANCELLED)
    answer = b.desk().take("a", message)

    assert answer.state is State.CANCELLED
    assert b.errands() == []


def test_a_task_that_is_claimed_again_keeps_its_hand_over() -> None:
    a, _ = handed_over()

    adopted = a.desk().claimed("t1", 8)

    assert adopted is not None
    assert (adopted.id, adopted.token, adopted.state) == ("d1", 8, State.RUNNING)
    a.desk().settled(Role.OUT, "d1")
    assert a.desk().claimed("t1", 9) is None
    assert a.desk().claimed("t2", 9) is None


def test_a_peer_that_is_away_for_weeks_finds_one_renewal_of_what_must_not_run_twice() -> None:
    """Found in review: there was one more with each third of a lease."""
    _, b = handed_over(exclusive=True)

    for _ in range(50):
        b.now += LEASE
        b.desk().tick()
        b.store().failed_to_send([message.id for message in b.outbox()])

    assert [type(message.body) for message in b.outbox()] == [Renewal]
    assert b.the(Role.IN).state is State.RUNNING


def test_how_well_it_went_is_told_either_way() -> None:
    a, b = handed_over()
    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))
    exchanged(a, b)
    a.tables.errands.clear()

    a.desk().appraise(Role.OUT, "d1", Appraisal(b"good"))
    b.desk().appraise(Role.IN, "d1", Appraisal(b"clear"))
    exchanged(a, b)

    assert b.the(Role.IN).appraisal == b"good"
    assert a.the(Role.OUT).appraisal == b"clear"
    assert a.errands() == b.errands() == [Task.FEEDBACK]


def test_a_person_decides_only_what_waits_for_one() -> None:
    a, b = handed_over()

    with pytest.raises(DelegationWrongState):
        b.desk().decide("d1", True)
    with pytest.raises(DelegationWrongState):
        a.desk().resolve(Role.OUT, "d1", Verdict.RETRY)
    with pytest.raises(DelegationNotFound):
        a.desk().cancel("d2", "", by_router=False)


# ---------------------------------------------------------------- F36, F37: longer apart than the lease


def test_f36_apart_for_longer_than_the_lease_while_it_is_finished() -> None:
    a, b = handed_over()

    b.now = b.the(Role.IN).lease_end or 0
    b.desk().tick()
    assert b.the(Role.IN).state is State.CANCELLING
    assert b.errands() == [Task.STOP]
    assert Decision not in [type(message.body) for message in b.outbox()]  # before it has stopped
    a.now = a.the(Role.OUT).lease_end or 0
    assert b.now < a.now
    a.desk().tick()
    assert a.the(Role.OUT).state is State.RECLAIMED
    assert a.errands() == [Task.RETURN]
    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))  # it was quicker than the stop
    exchanged(a, b)

    kept = a.the(Role.OUT)
    assert (kept.state, kept.late, kept.result) == (State.RECLAIMED, True, b"done")
    assert a.errands() == [Task.RETURN]  # and nothing is applied
    assert b.the(Role.IN).settled


def test_f36_a_lost_lease_is_said_once_the_work_has_stopped() -> None:
    """Found by seed 3049: it was said before, and somebody else began while the work went on."""
    a, b = handed_over()
    b.now = b.the(Role.IN).lease_end or 0
    b.desk().tick()
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))

    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.RECLAIMED
    assert a.errands() == [Task.RETURN]


def test_f36_swapped_who_handed_over_was_away_and_takes_the_result() -> None:
    a, b = handed_over()
    a.now += 10 * LEASE

    a.desk().restarted(["b"])
    a.desk().tick()
    assert a.the(Role.OUT).state is State.RUNNING
    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is State.COMPLETED
    assert a.errands() == [Task.COMPLETE]


def test_f37_what_must_not_run_twice_is_not_taken_back() -> None:
    a, b = handed_over(exclusive=True)

    a.now = b.now = NOW + 3 * LEASE
    a.desk().tick()
    b.desk().tick()

    assert a.the(Role.OUT).state is State.SUSPECT
    assert a.errands() == []
    assert b.the(Role.IN).state is State.RUNNING  # and is not stopped either
    assert Task.STOP not in b.errands()
    exchanged(a, b)  # it is back
    assert a.the(Role.OUT).state is State.RUNNING


@pytest.mark.parametrize(("verdict", "errand"), [(Verdict.RETRY, Task.RETURN), (Verdict.GIVE_UP, Task.FAIL)])
def test_f37_a_person_decides_what_is_suspect(verdict: Verdict, errand: Task) -> None:
    a, b = handed_over(exclusive=True)
    a.now = NOW + 3 * LEASE
    a.desk().tick()

    a.desk().resolve(Role.OUT, "d1", verdict, "seen")
    carry(a, b)

    assert not a.the(Role.OUT).state.open
    assert a.errands() == [errand]
    assert b.errands() == [Task.STOP]


@pytest.mark.parametrize("there", [State.CANCELLED, None])
def test_f37_what_is_suspect_is_told_once_though_it_is_called_off(there: State | None) -> None:
    suspect = delegator.tick(out(State.RUNNING, exclusive=True, lease_end=NOW), NOW)
    assert done(suspect) == ["suspect"]

    called_off = delegator.cancel(suspect.delegation, "no", NOW, by_router=False).delegation
    if there is None:
        again = delegator.tick(called_off, NOW + LEASE + GRACE)
    else:
        again = delegator.answered(called_off, Cancel(), Receipt("", there), NOW)

    assert (again.delegation.state, done(again)) == (State.SUSPECT, [])
    anew = delegator.heard(again.delegation, Renewal(), 2, NOW).delegation
    assert done(delegator.tick(anew, NOW + 2 * LEASE)) == ["suspect"]


def test_f37_swapped_what_was_called_off_half_done_there_has_failed() -> None:
    """Found in review: it went back to the router, and ran again."""
    a, b = handed_over(exclusive=True)

    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))  # by their own people
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.CANCELLED
    assert a.errands() == [Task.FAIL]


# ---------------------------------------------------------------- F39: called off


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize("by_router", BOTH)
def test_f39_a_call_off_and_a_result_cross(exclusive: bool, by_router: bool) -> None:
    a, b = handed_over(exclusive=exclusive)

    a.desk().cancel("d1", "no", by_router=by_router)
    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.COMPLETED
    assert a.errands() == ([] if by_router else [Task.COMPLETE])
    assert a.the(Role.OUT).late == by_router


def test_f39_the_call_off_comes_first() -> None:
    a, b = handed_over()

    a.desk().cancel("d1", "no", by_router=True)
    a.desk().cancel("d1", "no", by_router=True)
    carry(a, b)
    assert b.errands() == [Task.STOP]
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.CANCELLED
    assert a.errands() == []


def test_f39_swapped_their_people_call_it_off() -> None:
    a, b = handed_over()

    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))
    a.desk().cancel("d1", "no", by_router=False)
    exchanged(a, b)

    assert a.the(Role.OUT).state is b.the(Role.IN).state is State.CANCELLED
    assert a.errands() == [Task.RETURN]


@pytest.mark.parametrize("exclusive", BOTH)
def test_f39_what_waits_for_a_person_is_called_off(exclusive: bool) -> None:
    a, b = two()
    b.ruled = Ruled(True, quarantined=True)
    offer(a, exclusive=exclusive)
    carry(a, b)
    assert a.the(Role.OUT).state is State.QUARANTINED

    a.desk().cancel("d1", "no", by_router=False)
    exchanged(a, b)

    assert a.the(Role.OUT).state is State.CANCELLED
    assert b.the(Role.IN).state is State.REJECTED
    assert a.errands() == [Task.RETURN]
    assert b.errands() == []


# ---------------------------------------------------------------- F40: loops, copies, earlier and later ones


def _answer(
    b: Side, facts: OfferFacts, *, peer: str = "a", delegation: str = "d9", epoch: int = 1
) -> Receipt:
    body = Offer(facts.sealed, facts)
    return b.desk().take(peer, Message(f"m{delegation}{epoch}", delegation, epoch, 1, body, b"x"))


@pytest.mark.parametrize("path", [("b", "a"), ("a", "b", "c"), ("b",)])
def test_f40_what_has_been_here_is_not_taken(path: tuple[str, ...]) -> None:
    _, b = two()

    assert _answer(b, facts_of(path=path)).reason == "DELEGATION_LOOP"
    assert not b.tables.delegations


def test_f40_a_task_that_is_here_comes_by_no_other_way() -> None:
    _, b = handed_over()

    assert _answer(b, facts_of(path=("a", "c")), peer="c").reason == "DUPLICATE_TASK"

    b.desk().news("d1", TaskNews(outcome=Outcome.FAILED, sealed=b"x"))
    assert _answer(b, facts_of(path=("a", "c")), peer="c", delegation="d8").state is State.ACCEPTED


def test_f40_a_later_hand_over_overtakes_an_earlier_one() -> None:
    _, b = handed_over()

    assert _answer(b, facts_of(), epoch=2).state is State.ACCEPTED

    assert b.the(Role.IN).state is State.RECLAIMED
    assert b.errands() == [Task.STOP, Task.SUBMIT]
    assert _answer(b, facts_of(), delegation="d7", epoch=1).reason == "STALE_EPOCH"


def test_f40_an_offer_that_came_too_late_is_not_taken() -> None:
    _, b = two()

    assert _answer(b, replace(facts_of(), expired=True)).reason == "DEADLINE_EXCEEDED"


def test_an_id_that_is_taken_is_not_taken_again() -> None:
    a, b = handed_over()
    before = b.the(Role.IN)

    assert _answer(b, facts_of("a/t2"), delegation="d1").state is State.RUNNING
    assert _answer(b, facts_of("c/t2", path=("c",)), peer="c", delegation="d1").state is None
    assert b.the(Role.IN) == before
    for peer in ("b", "c"):  # nor what this Hopper calls one of its own
        answer = _answer(a, facts_of(f"{peer}/t1", path=(peer,)), peer=peer, delegation="d1")
        assert (answer.state, answer.reason) == (None, "INVALID_REQUEST")
    assert [*a.tables.delegations.values()] == [a.the(Role.OUT)]


# ---------------------------------------------------------------- F23, F24: revoked


@pytest.mark.parametrize("why", sorted(Gone))
@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize("state", sorted(OPEN))
def test_f23_what_is_with_a_peer_that_is_gone(state: State, exclusive: bool, why: Gone) -> None:
    step = delegator.gone(out(state, exclusive=exclusive), why, NOW)

    if exclusive:
        told = [] if state is State.SUSPECT else ["suspect"]
        assert (step.delegation.state, done(step)) == (State.SUSPECT, told)
    else:
        expected = State.CANCELLED if state is State.CANCELLING else State.RECLAIMED
        assert (step.delegation.state, done(step)) == (expected, [Task.RETURN])
    assert due_of(replace(step.delegation, close_by=None)) is None


@pytest.mark.parametrize("why", sorted(Gone))
@pytest.mark.parametrize("state", sorted(OPEN - {State.OFFERED, State.SUSPECT}))
def test_f23_swapped_what_came_from_a_peer_that_is_gone(state: State, why: Gone) -> None:
    step = delegatee.gone(taken(state), why, NOW)

    if state is State.QUARANTINED:
        assert (step.delegation.state, done(step)) == (State.REJECTED, [])
    else:
        assert (step.delegation.state, done(step)) == (State.ORPHANED, [Task.STOP, "orphaned"])
    assert due_of(step.delegation) is None


@pytest.mark.parametrize("exclusive", BOTH)
def test_f24_revoked_while_apart_both_come_to_an_end_alone(exclusive: bool) -> None:
    a, b = handed_over(exclusive=exclusive)

    a.desk().peer_gone("b", Gone.REVOKED)
    b.desk().peer_gone("a", Gone.REVOKED_BY_PEER)

    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.RECLAIMED)
    assert b.the(Role.IN).state is State.ORPHANED
    assert b.errands() == [Task.STOP]
    if exclusive:
        a.desk().resolve(Role.OUT, "d1", Verdict.GIVE_UP)
        assert a.outbox() == []  # nobody is there who could be told
    b.desk().resolve(Role.IN, "d1", Verdict.DISCARD)
    assert not a.the(Role.OUT).state.open
    assert b.the(Role.IN).state is State.CANCELLED


@pytest.mark.parametrize("exclusive", BOTH)
def test_f24_that_a_peer_is_gone_is_news_once(exclusive: bool) -> None:
    """Found by the nemesis: of what was suspect it was written into the audit log every five seconds, for ever."""
    a, b = handed_over(exclusive=exclusive)
    assert [a.desk().peer_gone("b", Gone.REVOKED), b.desk().peer_gone("a", Gone.REVOKED_BY_PEER)] == [1, 1]
    suspect = a.the(Role.OUT)

    a.now += 10

    assert [a.desk().peer_gone("b", Gone.REVOKED), b.desk().peer_gone("a", Gone.REVOKED_BY_PEER)] == [0, 0]
    assert a.the(Role.OUT) == suspect


@pytest.mark.parametrize("exclusive", BOTH)
def test_f24_a_person_cannot_call_off_what_may_have_run_at_who_is_gone(exclusive: bool) -> None:
    """Found in review: it went back to the router, and could have run again."""
    a, _ = handed_over(exclusive=exclusive)
    a.desk().peer_gone("b", Gone.COMPROMISED)
    a.tables.errands.clear()

    a.desk().cancel("d1", "no", by_router=False)

    assert a.errands() == []
    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.RECLAIMED)


def test_f24_what_is_kept_of_an_orphan_is_made_anew() -> None:
    _, b = handed_over()
    b.desk().peer_gone("a", Gone.REVOKED)
    b.tables.errands.clear()

    b.desk().resolve(Role.IN, "d1", Verdict.KEEP)

    assert [(chore.errand.task, chore.errand.reason) for chore in b.tables.errands.values()] == [
        (Task.SUBMIT, "KEEP")
    ]


# ---------------------------------------------------------------- F50, F51: clocks, sleep, restarts


@pytest.mark.parametrize("step_by", [-34_560_000.0, -600.0, -30.0, 30.0])
def test_f50_a_clock_that_was_set_shortens_no_lease_and_makes_none_longer(step_by: float) -> None:
    a, b = handed_over()

    for side in (a, b):
        side.now = NOW + step_by
        side.desk().restarted([side.peer])
        side.desk().tick()

    assert a.the(Role.OUT).state is State.RUNNING
    assert a.the(Role.OUT).lease_end == a.now + LEASE + GRACE
    assert (b.the(Role.IN).lease_end or 0) <= b.now + LEASE * STOPS_AT
    assert [type(message.body) for message in b.outbox()] == [Renewal]  # and asks at once


def test_f50_swapped_a_clock_that_was_set_forward_stops_the_work_and_takes_nothing_back_early() -> None:
    a, b = handed_over()

    for side in (a, b):
        side.now = NOW + 34_560_000.0
        side.desk().restarted([side.peer])
        side.desk().tick()

    assert a.the(Role.OUT).state is State.EXPIRED  # after its month, and not for want of a lease
    assert b.the(Role.IN).state is State.CANCELLING


def test_f51_whoever_slept_stops_before_it_does_anything_else() -> None:
    a, b = handed_over()
    b.now += 600 + LEASE

    b.desk().tick()

    assert b.errands() == [Task.STOP]
    assert b.outbox() == []  # it asks for no renewal of what it has lost
    a.now = b.now
    a.desk().tick()
    assert a.the(Role.OUT).state is State.RECLAIMED


def test_f51_swapped_whoever_handed_over_slept_and_finds_the_answer_waiting() -> None:
    a, b = handed_over()
    b.now += LEASE / 3
    b.desk().tick()
    a.now += 600 + LEASE

    carry(b, a)  # it came meanwhile
    a.desk().tick()

    assert a.the(Role.OUT).state is State.RUNNING


# ---------------------------------------------------------------- comparing notes


def compared(one: Side, other: Side) -> None:
    """One names what it has open, and both do what follows from it."""
    notes = one.desk().notes(other.name)
    answers = [(note.delegation, other.desk().noted(one.name, note)) for note in notes]
    named = {delegation for delegation, _ in answers}
    more = [note for note in other.desk().notes(one.name) if note.delegation not in named]
    for delegation, answer in answers:
        if answer is None:
            one.desk().unknown_there(other.name, delegation)
    for note in [*(answer for _, answer in answers if answer is not None), *more]:
        one.desk().noted(other.name, note)


@pytest.mark.parametrize("swapped", BOTH)
def test_a_lost_result_is_told_again(swapped: bool) -> None:
    a, b = handed_over()
    b.desk().news("d1", TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"done"))
    b.store().give_up("a")

    compared(*((b, a) if swapped else (a, b)))
    exchanged(a, b)

    assert a.the(Role.OUT).state is State.COMPLETED


@pytest.mark.parametrize("exclusive", BOTH)
def test_who_was_restored_cannot_say_that_it_never_began(exclusive: bool) -> None:
    """Found by seed 301334: a call-off of what it knew nothing of sent it back, to run again."""
    a, b = handed_over(exclusive=exclusive)
    b.tables = Tables()

    a.desk().cancel("d1", "no", by_router=False)
    carry(a, b)

    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.CANCELLED)
    assert a.errands() == ([] if exclusive else [Task.RETURN])


def _unplaced(b: Side) -> None:
    b.desk().unplaced("d1")
    b.desk().news("d1", TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"))


SAYS_NO = [
    # as it is in the copy, and why it is not taken, or no longer
    (State.QUARANTINED, lambda b: b.desk().decide("d1", False, "not ours")),
    (State.QUARANTINED, lambda b: Desk(b.store(), NOW + 30 * 86_400).tick()),
    (State.ACCEPTED, lambda b: b.desk().refused("d1", "LIMIT")),
    (State.ACCEPTED, _unplaced),
    (State.ACCEPTED, lambda b: b.desk().news("d1", TaskNews(outcome=Outcome.FAILED, unplaced=True))),
]


@pytest.mark.parametrize("from_copy", BOTH)
@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize(("state", "says_no"), SAYS_NO)
def test_who_was_restored_does_not_say_that_it_never_began_what_is_in_the_copy(
    state: State, says_no: Callable[[Side], object], exclusive: bool, from_copy: bool
) -> None:
    """Found by seed 536881: a person discarded what had been accepted, and had run, after the copy was made."""
    a, b = two()
    b.ruled = Ruled(True, quarantined=state is State.QUARANTINED)
    offer(a, exclusive=exclusive)
    carry(a, b)
    if from_copy:
        b.restored(b.tables)

    says_no(b)
    exchanged(a, b)

    unsure = exclusive and from_copy
    assert a.errands() == ([] if unsure else [Task.RETURN])
    assert (a.the(Role.OUT).state is State.SUSPECT) == unsure
    assert (b.the(Role.IN).state is State.CANCELLED) == unsure


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize("lost", BOTH)
def test_who_was_restored_is_told_to_call_off_what_waits_for_a_person_in_the_copy(
    lost: bool, exclusive: bool
) -> None:
    """Found by seed 621622: the receipt was lost, and a comparison of notes said less than that."""
    a, b = two()
    b.ruled = Ruled(True, quarantined=True)
    offer(a, exclusive=exclusive)
    carry(a, b)
    b.restored(b.tables)

    a.desk().cancel("d1", "no", by_router=False)
    if lost:
        b.desk().take("a", a.outbox()[-1])
        compared(b, a)
        compared(a, b)
        carry(b, a)
    exchanged(a, b)

    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.CANCELLED)
    assert a.errands() == ([] if exclusive else [Task.RETURN])


@pytest.mark.parametrize("exclusive", BOTH)
def test_who_was_restored_begins_nothing_before_it_has_heard_that_it_is_still_wanted(exclusive: bool) -> None:
    """It had said no after the copy was made, whoever handed it over had it done elsewhere, and here it began then."""
    a, b = two()
    b.ruled = Ruled(True, quarantined=True)
    offer(a, exclusive=exclusive)
    carry(a, b)
    b.restored(b.tables)
    assert b.the(Role.IN).may_be_begun == (not exclusive)

    if exclusive:
        with pytest.raises(ResyncNeeded):
            b.desk().decide("d1", True)
    compared(b, a)
    assert b.the(Role.IN).may_be_begun
    b.desk().decide("d1", True)

    assert b.errands() == [Task.SUBMIT]


@pytest.mark.parametrize("made", ["", "made"])
def test_what_is_called_off_and_over_there_does_not_wait_to_be_confirmed(made: str) -> None:
    """Found by a world of old copies: it was to be made a task first, for which nobody asked any more."""
    was = taken(State.CANCELLING, exclusive=True, from_copy=True, unconfirmed=True, task=made)

    step = delegatee.noted(was, Note("d1", 1, State.CANCELLED, 1, handed_over=True), NOW, unanswered=[])

    assert step.delegation.state is (State.CANCELLING if made else State.RECLAIMED)
    assert done(step) == ([] if made else [Task.STOP])


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_waits_for_a_person_in_a_copy_may_have_been_begun_for_who_is_gone(exclusive: bool) -> None:
    a, b = two()
    b.ruled = Ruled(True, quarantined=True)
    message = offer(a, exclusive=exclusive)
    b.desk().take("a", message)
    b.restored(b.tables)
    b.desk().peer_gone("a", Gone.REVOKED)

    again = b.desk().take("a", replace(message, id="m9"))

    a.desk().answered(message.id, again, NOW)
    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.REJECTED)


REFUSED_ANEW = [
    # the ruling when the offer comes again after the restore, and who has it then
    (Ruled(False, reason="CAPABILITY_DENIED"), False),
    (Ruled(False, reason="QUOTA"), False),
    (Ruled(True), True),
]


@pytest.mark.parametrize("late", BOTH)
@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize(("ruled", "has_it"), REFUSED_ANEW)
def test_who_was_restored_does_not_say_that_it_never_began_what_is_offered_again(
    ruled: Ruled, has_it: bool, exclusive: bool, late: bool
) -> None:
    """The receipt was lost, and so was what it was about."""
    a, b = two()
    message = offer(a, exclusive=exclusive)
    b.desk().take("a", message)
    b.restored(Tables())
    b.ruled, b.restored_at = ruled, NOW - 1 if late else NOW

    carry(a, b)
    again = b.desk().take("a", message)

    unsure = exclusive and not late and not has_it
    expected = State.SUSPECT if unsure else State.ACCEPTED if has_it else State.REJECTED
    assert a.the(Role.OUT).state is expected
    assert again.state is (State.CANCELLED if unsure else State.ACCEPTED if has_it else None)
    assert b.errands() == ([Task.SUBMIT] if has_it else [])


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_is_offered_again_after_a_restore_and_waits_for_a_person_may_have_been_begun(
    exclusive: bool,
) -> None:
    a, b = two()
    message = offer(a, exclusive=exclusive)
    b.desk().take("a", message)
    b.restored(Tables())
    b.ruled = Ruled(True, quarantined=True)
    carry(a, b)

    b.desk().decide("d1", False, "not ours")
    exchanged(a, b)

    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.REJECTED)


@pytest.mark.parametrize("exclusive", BOTH)
def test_what_may_not_be_taken_yet_after_a_restore_is_taken_later(exclusive: bool) -> None:
    a, b = two()
    b.restored(Tables())
    b.ruled = Ruled(False, reason="QUOTA", retry_after=60.0)
    offer(a, exclusive=exclusive)
    carry(a, b)
    assert a.the(Role.OUT).state is State.OFFERED

    b.ruled = Ruled(True)
    carry(a, b)

    assert a.the(Role.OUT).state is State.ACCEPTED


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize("reason", ["DUPLICATE_TASK", "STALE_EPOCH"])
@pytest.mark.parametrize("state", [State.OFFERED, State.CANCELLING])
def test_who_has_had_the_task_has_not_said_that_it_never_began(
    state: State, reason: str, exclusive: bool
) -> None:
    """Who hands over was restored, and knows nothing of an earlier hand-over."""
    step = delegator.answered(out(state, exclusive=exclusive), Offer(b""), Receipt("", None, reason), NOW)

    over = State.CANCELLED if state is State.CANCELLING else State.REJECTED
    assert step.delegation.state is (State.SUSPECT if exclusive else over)
    assert (Task.RETURN in done(step)) == (not exclusive)


IN_THE_COPY = (State.OFFERED, State.QUARANTINED, State.ACCEPTED, State.RUNNING)
BECAME = [
    # how it has ended, and what the router is told of it: where it may run twice, and where not
    (TaskNews(outcome=Outcome.SUCCEEDED, sealed=b"x"), Task.COMPLETE, Task.COMPLETE),
    (TaskNews(outcome=Outcome.FAILED, sealed=b"x"), Task.FAIL, Task.FAIL),
    (TaskNews(outcome=Outcome.CANCELLED, sealed=b"x"), Task.RETURN, Task.FAIL),
    (TaskNews(outcome=Outcome.FAILED, unplaced=True), Task.RETURN, Task.RETURN),
]


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize(("became", "errand", "errand_exclusive"), BECAME)
@pytest.mark.parametrize("state", IN_THE_COPY)
def test_who_handed_over_and_was_restored_hears_what_has_become_of_it(
    state: State, became: TaskNews, errand: Task, errand_exclusive: Task, exclusive: bool
) -> None:
    a, b = two()
    offer(a, exclusive=exclusive)
    copy = a.tables.copy()
    carry(a, b)
    b.desk().submitted("d1", "made")
    b.desk().news("d1", became)
    exchanged(a, b)
    if state is not State.OFFERED:
        copy.outbox = {}
        copy.delegations[Role.OUT, "d1"] = replace(out(state, exclusive=exclusive), created=NOW)
    a.restored(copy)

    compared(a, b)
    exchanged(a, b)
    compared(a, b)
    exchanged(a, b)

    assert a.errands() == [errand_exclusive if exclusive else errand]
    assert not a.the(Role.OUT).state.open


@pytest.mark.parametrize("exclusive", BOTH)
@pytest.mark.parametrize("swapped", BOTH)
def test_who_was_restored_knows_nothing_of_what_it_took_over(exclusive: bool, swapped: bool) -> None:
    a, b = handed_over(exclusive=exclusive)
    b.tables = Tables()

    if swapped:
        compared(b, a)
        compared(a, b)
    else:
        compared(a, b)

    assert a.the(Role.OUT).state is (State.SUSPECT if exclusive else State.RECLAIMED)
    assert a.errands() == ([] if exclusive else [Task.RETURN])


@pytest.mark.parametrize("swapped", BOTH)
def test_who_was_restored_knows_nothing_of_what_it_handed_over(swapped: bool) -> None:
    a, b = handed_over()
    a.tables = Tables()

    if swapped:
        compared(a, b)
        compared(b, a)
    else:
        compared(b, a)

    assert b.the(Role.IN).state is State.ORPHANED
    assert b.the(Role.IN).reason == "DELEGATION_NOT_FOUND"
    assert b.errands() == [Task.STOP]


def test_an_offer_that_is_under_way_need_not_be_known() -> None:
    a, b = two()
    offer(a)

    compared(a, b)

    assert a.the(Role.OUT).state is State.OFFERED


def test_what_is_over_at_who_handed_over_is_stopped() -> None:
    a, b = handed_over()
    a.desk().cancel("d1", "no", by_router=True)
    a.store().give_up("b")
    a.tables.delegations[Role.OUT, "d1"] = replace(a.the(Role.OUT), state=State.CANCELLED)

    b.desk().noted("a", note_of(a.the(Role.OUT)))

    assert b.the(Role.IN).state is State.RECLAIMED
    assert b.errands() == [Task.STOP]


def test_what_was_never_offered_has_no_result() -> None:
    """Found by a world of old copies and a liar: there is no offer that a result could be checked against."""
    a, b = two()
    a.desk().doubt(out(State.OFFERED, exclusive=True, sent=0))
    doubted = a.the(Role.OUT)

    receipt = a.desk().take("b", Message("m1", "d1", 1, 1, DONE, b"x"))
    compared(a, b)
    a.desk().noted("b", Note("d1", 1, State.RUNNING, 1, handed_over=False))

    assert (receipt.state, receipt.reason) == (None, "DELEGATION_NOT_FOUND")
    assert a.the(Role.OUT) == doubted
    assert a.errands() == []


@pytest.mark.parametrize(("verdict", "errand"), [(Verdict.RETRY, Task.RETURN), (Verdict.GIVE_UP, Task.FAIL)])
def test_what_may_have_left_before_an_old_copy_waits_for_a_person(verdict: Verdict, errand: Task) -> None:
    a, b = two()

    a.desk().doubt(out(State.OFFERED, exclusive=True, sent=0))

    assert a.the(Role.OUT).state is State.SUSPECT
    assert a.outbox() == []
    assert a.desk().claimed("t1", 8) is not None
    a.desk().resolve(Role.OUT, "d1", verdict, "seen")
    exchanged(a, b)
    assert a.errands() == [errand]
    assert b.errands() == []


def test_numbers_go_on_after_an_old_copy() -> None:
    """Found by seed 9: they were given again, and how far the task was went unheard."""
    a, b = handed_over()
    copy = b.tables.copy()
    for fraction in (0.2, 0.4, 0.6):
        b.desk().news("d1", TaskNews(running=True, fraction=fraction))
        exchanged(a, b)
    b.tables = copy

    compared(b, a)
    b.desk().news("d1", TaskNews(running=True, fraction=0.8))
    exchanged(a, b)

    assert a.the(Role.OUT).fraction == 0.8


def test_a_lie_about_what_was_heard_spoils_no_numbers() -> None:
    a, _ = handed_over()

    for heard in (1 << 62, (1 << 63) - 1):
        a.desk().noted("b", Note("d1", 1, State.RUNNING, heard, handed_over=False))
    a.desk().cancel("d1", "no", by_router=True)

    assert a.outbox()[-1].sequence <= (1 << 53) + 10
