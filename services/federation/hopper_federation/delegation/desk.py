"""
All hand-overs of a Hopper, within one transaction: what comes in is done once, what goes out is kept until it is
answered, and what is to be done at the router is written down beside the change that asks for it.

    peer ── Message ──► take ──┐                            ┌──► outbox ──► peer
    peer ── Receipt ─► answered├─► delegator, delegatee ────┼──► errands ─► router
    router, people, clock ─────┘      (one hand-over)       └──► alarms ──► people

Pure over a `DelegationStore`: the same code runs on a database and in the simulator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hopper_common.errors import DelegationNotFound, DelegationWrongState
from hopper_federation.delegation import delegatee, delegator
from hopper_federation.delegation.model import (
    REPLACED,
    Action,
    Alarm,
    Appraisal,
    Body,
    Cancel,
    Delegation,
    Errand,
    Gone,
    Message,
    Note,
    Offer,
    OfferFacts,
    Receipt,
    Renewal,
    Role,
    State,
    Step,
    TaskNews,
    Verdict,
)
from hopper_federation.delegation.ports import BorderControl, DelegationStore, Ruling
from hopper_federation.errors import ResyncNeeded

START_SECONDS: Final = 7 * 86_400.0
_FROM_DELEGATOR: Final = (Offer, Cancel)
_MOST_SAID: Final = 1 << 53
"""Sequences stay below what a database holds, whatever a peer says that it has heard."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm, and what it is about."""

    peer: str
    delegation: str
    alarm: Alarm


class Desk:
    """
    Lives as long as one transaction.

    Args:
        now: Seconds of the steady clock.
        own_install: This Hopper's install id.
    """

    def __init__(
        self, store: DelegationStore, now: float, border: BorderControl | None = None, own_install: str = ""
    ) -> None:
        self._store = store
        self._now = now
        self._border = border
        self._own = own_install
        self.alarms: list[Raised] = []

    # ---------------------------------------------------------------- handing over

    def offer(self, new: Delegation, body: Offer) -> Delegation:
        """Offer a task to a peer."""
        return self._put(Step(replace(new, offer=body.sealed), (body,)))

    def doubt(self, new: Delegation) -> Delegation:
        """
        A task that must not run twice may have been handed over before this Hopper was restored from a copy: a person
        decides.
        """
        detail = "it may have been handed over before this Hopper was restored from a copy"
        doubted = replace(new, state=State.SUSPECT, reason="DELEGATION_NOT_FOUND", detail=detail, offer=b"")
        return self._put(Step(doubted, (Alarm("suspect", detail),)))

    def claimed(self, task: str, token: int) -> Delegation | None:
        """
        The hand-over that a task belongs to which was claimed again, if the router is still to be told how it ends.

        A claim is made again where this Hopper was away for longer than its lease; nobody else can have had the task.
        """
        was = self._store.of_task(task)
        if was is None or was.role is not Role.OUT or was.settled:
            return None
        return self._put(Step(replace(was, token=token, updated=self._now)))

    def cancel(self, delegation: str, reason: str, *, by_router: bool) -> Delegation:
        """It is no longer wanted; *by_router*: its task is over there already."""
        was = self._of(Role.OUT, delegation)
        return self._put(delegator.cancel(was, reason, self._now, by_router=by_router))

    # ---------------------------------------------------------------- taking over

    def submitted(self, delegation: str, task: str) -> Delegation:
        """The router has made a task of it."""
        return self._put(delegatee.submitted(self._of(Role.IN, delegation), task, self._now))

    def refused(self, delegation: str, reason: str, detail: str = "") -> Delegation:
        """The router does not take it."""
        return self._put(delegatee.refused(self._of(Role.IN, delegation), reason, detail, self._now))

    def unplaced(self, delegation: str) -> Delegation:
        """Nobody here can do it: it goes back once it is called off here."""
        return self._put(delegatee.unplaced(self._of(Role.IN, delegation), self._now))

    def decide(self, delegation: str, accepted: bool, reason: str = "") -> Delegation:
        """
        A person takes a quarantined offer, or does not.

        Raises:
            DelegationNotFound, DelegationWrongState.
            ResyncNeeded: It cannot be taken before notes were compared with who handed it over.
        """
        was = self._of(Role.IN, delegation)
        if accepted and not was.may_be_begun:
            raise ResyncNeeded(peer=was.peer)
        return self._put(
            _wanted(was, delegatee.decide(was, self._now, accepted=accepted, reason=reason), "a decision")
        )

    def news(self, delegation: str, news: TaskNews) -> Delegation:
        """What became of the task here that was made of it."""
        return self._put(delegatee.news(self._of(Role.IN, delegation), news, self._now))

    # ---------------------------------------------------------------- messages

    def take(self, peer: str, message: Message) -> Receipt:
        """
        Do what a message of a peer says, once.

        Returns:
            The receipt. One that may help to be asked for again later is not remembered, nor one to what may be said
            twice as well as once.
        """
        before = self._store.answer_of(peer, message.id)
        if before is not None:
            digest, receipt = before
            if digest == message.digest:
                return receipt
            return Receipt(message.id, receipt.state, "IDEMPOTENCY_CONFLICT", "another message had this id")
        receipt = replace(self._do(peer, message), message=message.id)
        if receipt.retry_after is None and not isinstance(message.body, REPLACED):
            self._store.keep_answer(peer, message.digest, receipt, self._now)
        return receipt

    def _do(self, peer: str, message: Message) -> Receipt:
        from_delegator = isinstance(message.body, _FROM_DELEGATOR)
        role = Role.IN if from_delegator else Role.OUT
        if isinstance(message.body, Appraisal) and self._store.delegation(Role.IN, message.delegation):
            role = Role.IN
        was = self._store.delegation(role, message.delegation)
        if was is not None and not _is_with(was, peer):
            return _unknown()  # another's: not even that there is one is told
        if isinstance(message.body, Offer):
            return self._take_offer(peer, message, message.body, was)
        if was is None:
            if not isinstance(message.body, Cancel):
                return _unknown()
            return self._receipt(delegatee.not_begun_by_this(peer, message, self._now))
        if message.epoch != was.epoch:
            return Receipt("", was.state, "STALE_EPOCH", f"the hand-over has epoch {was.epoch}")
        side = delegatee.heard if role is Role.IN else delegator.heard
        return self._receipt(side(was, message.body, message.sequence, self._now))

    def _take_offer(self, peer: str, message: Message, offer: Offer, was: Delegation | None) -> Receipt:
        if was is not None:
            return Receipt("", was.state)
        if self._store.delegation(Role.OUT, message.delegation) is not None:
            return Receipt("", None, "INVALID_REQUEST", "a hand-over of this Hopper's own has this id")
        facts, border = offer.facts, self._border
        if facts is None or border is None:
            raise RuntimeError("an offer was not verified before it came to the desk")
        from_copy = facts.exclusive and border.may_have_been_here(facts)
        ruling = self._ruling(border, peer, message, facts)
        if isinstance(ruling, Receipt):
            if from_copy and ruling.retry_after is None:
                return self._receipt(delegatee.not_begun_by_this(peer, message, self._now))
            return ruling
        self._overtake(peer, message, facts)
        step = delegatee.offered(
            peer,
            message,
            facts,
            self._now,
            quarantined=ruling.quarantined,
            rule=ruling.rule,
            start_by=self._now + (facts.schedule_to_start or START_SECONDS),
            from_copy=from_copy,
        )
        return self._receipt(step)

    def _ruling(
        self, border: BorderControl, peer: str, message: Message, facts: OfferFacts
    ) -> Ruling | Receipt:
        """What lets an offer in; or its refusal."""
        refusal = self._refusal(peer, message, facts)
        if refusal is not None:
            return refusal
        ruling = border.rule_on(peer, facts)
        if ruling.allowed:
            return ruling
        return Receipt("", None, ruling.reason, ruling.detail, ruling.retry_after)

    def _refusal(self, peer: str, message: Message, facts: OfferFacts) -> Receipt | None:
        """Why an offer cannot be taken, whatever the policy says."""
        if facts.expired:
            return Receipt("", None, "DEADLINE_EXCEEDED", "it was to be taken earlier")
        if self._own in facts.path or self._own == facts.origin:
            return Receipt("", None, "DELEGATION_LOOP", "the task has been here")
        for other in self._store.of_task_uid(facts.task_uid):
            if other.role is Role.OUT:
                continue
            if other.peer == peer and other.epoch >= message.epoch:
                return Receipt("", None, "STALE_EPOCH", f"epoch {other.epoch} has come already")
            if other.peer != peer and other.state.open:
                return Receipt("", None, "DUPLICATE_TASK", "the task has come from another Hopper")
        return None

    def _overtake(self, peer: str, message: Message, facts: OfferFacts) -> None:
        for other in self._store.of_task_uid(facts.task_uid):
            if other.role is Role.IN and other.peer == peer and other.state.open:
                self._put(delegatee.overtaken(other, self._now))

    def answered(self, message: str, receipt: Receipt, sent_at: float) -> None:
        """
        A peer has answered a message.

        Args:
            sent_at: No later than when it was sent first: the answer may be to that.
        """
        if receipt.retry_after is not None:
            self._store.postpone(message, self._now + receipt.retry_after)
            return
        sent = self._store.forget_message(message)
        if sent is None:
            return
        was = self._of(sent.role, sent.delegation)
        if was.role is Role.OUT:
            self._put(delegator.answered(was, sent.body, receipt, self._now))
        else:
            self._put(delegatee.answered(was, sent.body, receipt, sent_at, self._now))

    # ---------------------------------------------------------------- everything else

    def settled(self, role: Role, delegation: str) -> Delegation:
        """The router has been told how it ended."""
        return self._put(Step(replace(self._of(role, delegation), settled=True, updated=self._now)))

    def appraise(self, role: Role, delegation: str, appraisal: Appraisal) -> Delegation:
        """Tell the other side how well it went."""
        was = replace(self._of(role, delegation), updated=self._now)
        return self._put(Step(was, (appraisal,)))

    def resolve(self, role: Role, delegation: str, verdict: Verdict, reason: str = "") -> Delegation:
        """
        A person says what becomes of it.

        Raises:
            DelegationNotFound, DelegationWrongState.
        """
        was = self._of(role, delegation)
        side = delegator.resolve if role is Role.OUT else delegatee.resolve
        return self._put(_wanted(was, side(was, verdict, reason, self._now), verdict.value))

    def tick(self, limit: int = 500) -> int:
        """Do what clocks ask for that have run out. Returns for how many hand-overs."""
        due = self._store.due(self._now, limit)
        for was in due:
            side = delegator.tick if was.role is Role.OUT else delegatee.tick
            self._put(side(was, self._now))
        return len(due)

    def peer_gone(self, peer: str, why: Gone) -> int:
        """A peer is none any more. Returns of how many hand-overs that is news: it is said again and again."""
        return self._each_open(
            peer,
            lambda was: (delegator.gone if was.role is Role.OUT else delegatee.gone)(was, why, self._now),
        )

    def restarted(self, peers: Sequence[str]) -> None:
        """This Hopper was away: its leases are looked at before anything else."""
        for peer in peers:
            self._each_open(
                peer,
                lambda was: Step(
                    (delegator.restarted if was.role is Role.OUT else delegatee.restarted)(was, self._now)
                ),
            )

    def restored(self, peers: Sequence[str]) -> None:
        """This Hopper was restored from a copy: what has become since of what it had taken over, it does not know."""
        for peer in peers:
            self._each_open(
                peer,
                lambda was: Step(delegatee.restored(was) if was.role is Role.IN else was),
            )

    def _each_open(self, peer: str, what: Callable[[Delegation], Step]) -> int:
        """Returns how many that has changed."""
        steps = [(was, what(was)) for was in self._store.open_of(peer)]
        changed = [step for was, step in steps if step != Step(was)]
        for step in changed:
            self._put(step)
        return len(changed)

    # ---------------------------------------------------------------- comparing notes

    def notes(self, peer: str) -> list[Note]:
        """What this Hopper knows of the hand-overs with a peer that are open, by id."""
        return [note_of(each) for each in self._store.open_of(peer)]

    def noted(self, peer: str, note: Note) -> Note | None:
        """
        What a peer knows of a hand-over.

        Returns:
            What this Hopper knows of it; None: nothing.
        """
        was = self._store.delegation(Role.IN if note.handed_over else Role.OUT, note.delegation)
        if was is None or not _is_with(was, peer):
            return None
        return note_of(self._compare(was, note))

    def unknown_there(self, peer: str, delegation: str) -> None:
        """A peer has never heard of a hand-over that was named to it."""
        for role in Role:
            was = self._store.delegation(role, delegation)
            if was is not None and _is_with(was, peer):
                self._compare(was, None)

    def _compare(self, was: Delegation, note: Note | None) -> Delegation:
        unanswered = self._store.unanswered(was)
        if note is not None:
            # Who was restored from a copy has forgotten some of what it has said.
            was = replace(was, sent=max(was.sent, min(note.heard, _MOST_SAID)))
        if was.role is Role.OUT:
            waits = Offer in unanswered
            return self._put(delegator.noted(was, note, self._now, offer_unanswered=waits))
        return self._put(delegatee.noted(was, note, self._now, unanswered=unanswered))

    # ---------------------------------------------------------------- carrying out

    def _of(self, role: Role, delegation: str) -> Delegation:
        found = self._store.delegation(role, delegation)
        if found is None:
            raise DelegationNotFound(delegation=delegation)
        return found

    def _receipt(self, step: Step) -> Receipt:
        self._put(step)
        if step.receipt is None:
            raise RuntimeError("a message has come to nothing that could be answered")
        return step.receipt

    def _put(self, step: Step) -> Delegation:
        """Write down a step: the hand-over, and what is to be said and done."""
        is_ = step.delegation
        for action in step.actions:
            is_ = self._act(is_, action)
        self._store.save(is_)
        return is_

    def _act(self, about: Delegation, action: Action) -> Delegation:
        if isinstance(action, Errand):
            self._store.errand(about, action)
            return about
        if isinstance(action, Alarm):
            self.alarms.append(Raised(about.peer, about.id, action))
            return about
        return self._send(about, action)

    def _send(self, about: Delegation, body: Body) -> Delegation:
        if about.exclusive and isinstance(body, Renewal) and Renewal in self._store.unanswered(about):
            return about  # no lease of its own depends on it, and a peer may be away for weeks
        following = replace(about, sent=about.sent + 1)
        self._store.send(following, body, self._now)
        return following


def note_of(delegation: Delegation) -> Note:
    """What is told of a hand-over to its other side."""
    return Note(
        delegation.id, delegation.epoch, delegation.state, delegation.heard, delegation.role is Role.OUT
    )


def due_of(delegation: Delegation) -> float | None:
    """When a clock of the hand-over runs out first: what a store finds it by."""
    if delegation.role is Role.OUT:
        return delegator.next_due(delegation)
    return delegatee.next_due(delegation)


def _is_with(delegation: Delegation, peer: str) -> bool:
    """Whether the peer may say anything about it: it is its own, and was ever offered to it."""
    return delegation.peer == peer and (delegation.role is Role.IN or bool(delegation.offer))


def _unknown() -> Receipt:
    return Receipt("", None, "DELEGATION_NOT_FOUND", "there is no such hand-over")


def _wanted(was: Delegation, step: Step | None, what: str) -> Step:
    if step is None:
        raise DelegationWrongState(
            f"the hand-over is {was.state} and does not wait for {what}",
            delegation=was.id,
            state=was.state.value,
        )
    return step
