"""
Both sides of a hand-over over a channel that loses, repeats and reorders whatever is said: hypothesis
looks for an order of events that breaks a promise, and makes it short.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hopper_federation.delegation.desk import due_of
from hopper_federation.delegation.model import (
    OPEN,
    Gone,
    Message,
    Offer,
    Outcome,
    Receipt,
    Role,
    State,
    Task,
    TaskNews,
    Verdict,
)
from tests.federation.sim.sim_hopper import Ruled
from tests.federation.test_delegation_core import LEASE, Side, compared, facts_of, out, two

IDS = ("d1", "d2")
_LAST = frozenset({Task.COMPLETE, Task.FAIL, Task.RETURN})


class TwoSides(RuleBasedStateMachine):
    """A hands over two tasks to B, one of which must not run twice, while anything happens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = two()
        self.flying: list[tuple[Side, Message]] = []
        self.replies: list[tuple[Side, Message, Receipt]] = []
        self.begun: Counter[str] = Counter()
        self.running: set[str] = set()
        self.ended: dict[str, State] = {}
        self.last: Counter[str] = Counter()
        self.parted = False

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    @initialize(quarantined=st.booleans())
    def offers(self, quarantined: bool) -> None:
        self.b.ruled = Ruled(True, quarantined=quarantined)
        for delegation in IDS:
            facts = facts_of(f"a/{delegation}", exclusive=delegation == "d2")
            new = out(
                State.OFFERED,
                exclusive=facts.exclusive,
                id=delegation,
                task=f"t{delegation}",
                task_uid=facts.task_uid,
                sent=0,
            )
            self.a.desk().offer(new, Offer(facts.sealed, facts))

    # The channel: what is said may be lost by never being chosen, and comes again by being chosen again.

    @rule(of_a=st.booleans(), data=st.data())
    def says(self, of_a: bool, data: st.DataObject) -> None:
        side = self.a if of_a else self.b
        if side.outbox():
            message = data.draw(st.sampled_from(side.outbox()))
            self.flying.append((side, message))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), again=st.booleans())
    def arrives(self, data: st.DataObject, again: bool) -> None:
        at = data.draw(st.integers(0, len(self.flying) - 1))
        side, message = self.flying[at] if again else self.flying.pop(at)
        receipt = self.other(side).desk().take(side.name, message)
        self.replies.append((side, message, receipt))

    @precondition(lambda self: self.replies)
    @rule(data=st.data(), again=st.booleans())
    def is_answered(self, data: st.DataObject, again: bool) -> None:
        at = data.draw(st.integers(0, len(self.replies) - 1))
        side, message, receipt = self.replies[at] if again else self.replies.pop(at)
        if not self.parted:
            side.desk().answered(message.id, receipt, side.now - LEASE)

    @rule(swapped=st.booleans())
    def compares_notes(self, swapped: bool) -> None:
        if not self.parted and not self.flying and not self.replies:
            compared(*((self.b, self.a) if swapped else (self.a, self.b)))

    # At home.

    @rule(of_a=st.booleans())
    def an_errand(self, of_a: bool) -> None:
        side = self.a if of_a else self.b
        for chore in list(side.tables.errands.values())[:1]:
            del side.tables.errands[chore.position]
            self._carried_out(side, chore.errand.task, chore.delegation)

    def _carried_out(self, side: Side, task: Task, delegation: str) -> None:
        if task is Task.SUBMIT:
            self.begun[delegation] += 1
            self.running.add(delegation)
            side.desk().submitted(delegation, f"made of {delegation}")
        elif task is Task.STOP and delegation in self.running:
            self.running.discard(delegation)
            side.desk().news(delegation, TaskNews(outcome=Outcome.CANCELLED, sealed=b"stopped"))
        elif task in _LAST:
            self.last[delegation] += 1
            if task is Task.RETURN and delegation == "d2":
                assert not self.begun["d2"], "what must not run twice goes back although it has begun"
            side.desk().settled(Role.OUT, delegation)

    @rule(delegation=st.sampled_from(IDS), outcome=st.sampled_from([None, *Outcome]))
    def goes_on(self, delegation: str, outcome: Outcome | None) -> None:
        if delegation in self.running:
            if outcome is not None:
                self.running.discard(delegation)
            news = TaskNews(running=outcome is None, outcome=outcome, sealed=b"ended" if outcome else b"")
            self.b.desk().news(delegation, news)

    @rule(delegation=st.sampled_from(IDS), by_router=st.booleans())
    def is_called_off(self, delegation: str, by_router: bool) -> None:
        self.a.desk().cancel(delegation, "no", by_router=by_router)

    @rule(delegation=st.sampled_from(IDS), accepted=st.booleans())
    def a_person_decides(self, delegation: str, accepted: bool) -> None:
        there = self.b.tables.delegations.get((Role.IN, delegation))
        if there is not None and there.state is State.QUARANTINED:
            self.b.desk().decide(delegation, accepted)
        if self.a.the(Role.OUT, delegation).state is State.SUSPECT:
            self.a.desk().resolve(Role.OUT, delegation, Verdict.GIVE_UP)

    @rule(of_a=st.booleans(), seconds=st.sampled_from([1.0, LEASE / 3, LEASE, 3 * LEASE]))
    def time_passes(self, of_a: bool, seconds: float) -> None:
        side = self.a if of_a else self.b
        side.now += seconds
        side.desk().tick()

    @rule(of_a=st.booleans())
    def restarts(self, of_a: bool) -> None:
        side = self.a if of_a else self.b
        side.desk().restarted([side.peer])

    @rule(seldom=st.integers(0, 9))
    def part(self, seldom: int) -> None:
        if seldom == 0 and not self.parted:
            self.parted = True
            self.a.desk().peer_gone("b", Gone.REVOKED)
            self.b.desk().peer_gone("a", Gone.REVOKED_BY_PEER)
            self.flying.clear()
            for side in (self.a, self.b):
                side.store().give_up(side.peer)

    # What always holds.

    @invariant()
    def the_first_end_wins(self) -> None:
        for side, role in ((self.a, Role.OUT), (self.b, Role.IN)):
            for delegation in IDS:
                each = side.tables.delegations.get((role, delegation))
                if each is not None and each.state not in OPEN and each.state is not State.ORPHANED:
                    assert self.ended.setdefault(f"{role} {delegation}", each.state) is each.state

    @invariant()
    def the_router_is_told_once(self) -> None:
        waiting = Counter(
            chore.delegation for chore in self.a.tables.errands.values() if chore.errand.task in _LAST
        )
        for delegation in IDS:
            assert self.last[delegation] + waiting[delegation] <= 1
            assert self.begun[delegation] <= 1

    def teardown(self) -> None:
        """Once everything arrives, and people and clocks have had their time, both sides are at rest."""
        if (Role.OUT, "d1") not in self.a.tables.delegations:
            return
        for _ in range(12):
            if self._rest():
                return
        raise AssertionError(f"it never comes to rest: {self.a.tables} {self.b.tables}")

    def _rest(self) -> bool:
        for side in (self.a, self.b):
            for _ in range(20):
                self.an_errand(side is self.a)
            for message in [] if self.parted else side.outbox():
                receipt = self.other(side).desk().take(side.name, message)
                side.desk().answered(message.id, receipt, side.now)
        for delegation in IDS:
            self.a_person_decides(delegation, False)
        rows = [
            each
            for side in (self.a, self.b)
            for each in side.tables.delegations.values()
            if each.state.open or (each.role is Role.OUT and not each.settled)
        ]
        for delegation in sorted(self.running):
            self.goes_on(delegation, Outcome.SUCCEEDED)
        for side in (self.a, self.b):
            clocks = [due for each in side.tables.delegations.values() if (due := due_of(each)) is not None]
            side.now = max(side.now, min(clocks, default=side.now))
            side.desk().tick()
        return not rows and not self.a.tables.errands and not self.running


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_it_finds_a_result_that_is_applied_twice() -> None:
    """The machine sees what it is there to see."""
    machine = TwoSides()
    machine.offers(False)
    machine.last["d1"] = 2
    try:
        machine.the_router_is_told_once()
    except AssertionError:
        return
    raise AssertionError("it does not see it")
