"""A budget is never exceeded, whoever asks at the same time and whatever fails in between."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hopper_common.errors import StorageUnavailable
from hopper_router.llm.advisor import Advice, Choice, Cost, Question
from hopper_router.llm.budget import (
    Budget,
    Limits,
    MemoryBudgetStore,
    Reservation,
    Spent,
    release,
    reserve,
    settle,
)
from hopper_router.llm.errors import BudgetExhausted, LlmAnswerInvalid, LlmUnavailable
from hopper_router.llm.guarded import GuardedAdvisor
from hopper_testing.clock import ManualClock

ROOT = "instances/global"
QUESTION = Question("a task", shortlist=(Choice("projects/ops"),))
LATE = datetime(2026, 1, 1, 23, 59, 50, tzinfo=UTC)


async def spent(store: MemoryBudgetStore, day: date, instance: str = ROOT) -> Spent:
    return await store.change(instance, day, lambda account: account)


# ---------------------------------------------------------------- the core


def test_what_is_reserved_counts_as_spent_until_it_is_settled() -> None:
    limits = Limits(calls=3, money=100)
    one = reserve(Spent(), limits, 60)
    with pytest.raises(BudgetExhausted) as caught:
        reserve(one, limits, 41)
    assert caught.value.metadata["limit"] == "money"
    assert reserve(settle(one, 60, 10), limits, 90) == Spent(2, 100)
    assert release(one, 60) == Spent()


def test_calls_have_a_limit_of_their_own() -> None:
    with pytest.raises(BudgetExhausted) as caught:
        reserve(Spent(3, 0), Limits(calls=3), 0)
    assert caught.value.metadata["limit"] == "calls"
    assert reserve(Spent(10**9, 10**9), Limits(), 10**9).calls == 10**9 + 1


def test_a_budget_of_nothing_lets_nobody_ask() -> None:
    for limits in (Limits(calls=0), Limits(money=0)):
        with pytest.raises(BudgetExhausted):
            reserve(Spent(), limits, 1)


class Spending(RuleBasedStateMachine):
    """Questions that overlap in any way, over midnights, of two instances."""

    asked = Bundle("asked")
    limits = Limits(calls=6, money=100)

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(LATE)
        self.store = MemoryBudgetStore()
        self.budget = Budget(self.store, self.clock)
        self.paid: Counter[tuple[str, date]] = Counter()
        self.calls: Counter[tuple[str, date]] = Counter()

    @rule(target=asked, instance=st.sampled_from([ROOT, "instances/shop"]), money=st.integers(0, 60))
    def ask(self, instance: str, money: int) -> Reservation | None:
        try:
            made = asyncio.run(self.budget.reserve(instance, self.limits, money))
        except BudgetExhausted:
            return None
        self.calls[instance, made.day] += 1
        return made

    @rule(made=consumes(asked), part=st.floats(0, 1))
    def answer(self, made: Reservation | None, part: float) -> None:
        if made is not None:
            money = int(made.money * part)
            self.paid[made.instance, made.day] += money
            asyncio.run(self.budget.settle(made, money))

    @rule(made=consumes(asked))
    def lose(self, made: Reservation | None) -> None:
        """The process dies, after the model was paid."""
        if made is not None:
            self.paid[made.instance, made.day] += made.money

    @rule(made=consumes(asked))
    def leave(self, made: Reservation | None) -> None:
        if made is not None:
            self.calls[made.instance, made.day] -= 1
            asyncio.run(self.budget.release(made))

    @rule(seconds=st.sampled_from([1, 20, 86_400]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    @invariant()
    def never_exceeded(self) -> None:
        for where, money in self.paid.items():
            account = asyncio.run(spent(self.store, where[1], where[0]))
            assert money <= account.money <= 100
        for where, calls in self.calls.items():
            assert calls == asyncio.run(spent(self.store, where[1], where[0])).calls <= 6


Spending.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSpending = Spending.TestCase


# ---------------------------------------------------------------- days


async def test_a_day_is_one_of_utc_and_an_exhausted_budget_says_when_the_next_begins() -> None:
    clock = ManualClock(LATE.astimezone(timezone(timedelta(hours=5))))
    budget = Budget(MemoryBudgetStore(), clock)
    limits = Limits(calls=1)
    await budget.reserve(ROOT, limits, 0)
    with pytest.raises(BudgetExhausted) as caught:
        await budget.reserve(ROOT, limits, 0)
    assert caught.value.retry_after == timedelta(seconds=10)
    assert caught.value.metadata == {"instance": ROOT, "limit": "calls"}
    clock.advance(timedelta(seconds=10))
    assert (await budget.reserve(ROOT, limits, 0)).day == date(2026, 1, 2)


async def test_what_was_asked_before_midnight_settles_with_that_day() -> None:
    clock, store = ManualClock(LATE), MemoryBudgetStore()
    budget = Budget(store, clock)
    made = await budget.reserve(ROOT, Limits(money=50), 50)
    clock.advance(timedelta(hours=1))
    await budget.settle(made, 20)
    assert await spent(store, date(2026, 1, 1)) == Spent(1, 20)
    assert await spent(store, date(2026, 1, 2)) == Spent()


# ---------------------------------------------------------------- together


@dataclass
class Scripted:
    """An advisor of our own that does what it is told."""

    worst: int
    does: Callable[[], Advice]
    asked: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def worst_case(self, question: Question) -> Cost:
        return Cost(money=self.worst)

    async def advise(self, question: Question, *, timeout: timedelta | None = None) -> Advice:
        self.asked += 1
        await self.go.wait()
        return self.does()


def costs(money: int) -> Advice:
    return Advice("projects/ops", 0.8, cost=Cost(money=money))


def guarded(
    advisor: Scripted, clock: ManualClock, *, failures: int = 5
) -> tuple[GuardedAdvisor, MemoryBudgetStore]:
    store = MemoryBudgetStore()
    return GuardedAdvisor(advisor, Budget(store, clock), clock, failures=failures), store


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 400), st.integers(0, 30))
def test_however_many_ask_at_once_the_budget_holds(prices: list[int], money: int, calls: int) -> None:
    async def scenario() -> None:
        clock = ManualClock(LATE)
        left = iter(prices)
        advisor = Scripted(worst=40, does=lambda: costs(next(left)))
        asking, store = guarded(advisor, clock)
        limits = Limits(calls=calls, money=money)
        tasks = [asyncio.create_task(asking.advise(QUESTION, instance=ROOT, limits=limits)) for _ in prices]
        await asyncio.sleep(0)
        reserved = await spent(store, LATE.date())
        assert reserved.money <= money
        advisor.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        answered = [result for result in results if isinstance(result, Advice)]
        assert all(isinstance(result, Advice | BudgetExhausted) for result in results)
        assert len(answered) == advisor.asked == min(len(prices), calls, money // 40)
        paid = sum(advice.cost.money for advice in answered)
        assert await spent(store, LATE.date()) == Spent(len(answered), paid)

    asyncio.run(scenario())


async def test_a_failure_settles_with_what_it_may_have_cost() -> None:
    clock = ManualClock(LATE)

    def fail() -> Advice:
        error = LlmAnswerInvalid(host="h", problem="p")
        error.cost = Cost(money=7)
        raise error

    advisor = Scripted(worst=40, does=fail)
    advisor.go.set()
    asking, store = guarded(advisor, clock)
    with pytest.raises(LlmAnswerInvalid):
        await asking.advise(QUESTION, instance=ROOT, limits=Limits(money=40))
    assert await spent(store, LATE.date()) == Spent(1, 7)


async def test_who_cancels_leaves_the_worst_case_counted() -> None:
    advisor = Scripted(worst=40, does=lambda: costs(1))
    asking, store = guarded(advisor, ManualClock(LATE))
    task = asyncio.create_task(asking.advise(QUESTION, instance=ROOT, limits=Limits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (advisor.asked, await spent(store, LATE.date())) == (1, Spent(1, 40))


async def test_one_that_fails_again_and_again_is_left_alone_at_no_cost() -> None:
    clock = ManualClock(LATE)

    def fail() -> Advice:
        raise LlmUnavailable(host="h", cause="timeout")

    advisor = Scripted(worst=40, does=fail)
    advisor.go.set()
    asking, store = guarded(advisor, clock, failures=2)
    for _ in range(2):
        with pytest.raises(LlmUnavailable):
            await asking.advise(QUESTION, instance=ROOT, limits=Limits())
    with pytest.raises(LlmUnavailable) as caught:
        await asking.advise(QUESTION, instance=ROOT, limits=Limits())
    assert (caught.value.metadata["cause"], caught.value.retry_after) == ("resting", timedelta(seconds=1))
    assert (advisor.asked, await spent(store, LATE.date())) == (2, Spent(2, 0))
    clock.advance(timedelta(seconds=1))
    advisor.does = lambda: costs(3)
    assert (await asking.advise(QUESTION, instance=ROOT, limits=Limits())).project == "projects/ops"


class _Failing(MemoryBudgetStore):
    """Takes reservations, and fails whoever wants to give back."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    async def change(self, instance: str, day: date, change: Callable[[Spent], Spent]) -> Spent:
        self.changes += 1
        if self.changes > 1:
            raise StorageUnavailable(service="router")
        return await super().change(instance, day, change)


async def test_an_answer_is_not_lost_because_it_cannot_be_settled() -> None:
    clock = ManualClock(LATE)
    advisor = Scripted(worst=40, does=lambda: costs(3))
    advisor.go.set()
    asking = GuardedAdvisor(advisor, Budget(_Failing(), clock), clock)
    assert (await asking.advise(QUESTION, instance=ROOT, limits=Limits())).cost.money == 3
