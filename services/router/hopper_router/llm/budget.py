"""
What an instance may spend on advice in a day.

**Reserve, then settle.** Before asking, the worst that it can cost is taken from the day's budget; afterwards what was
not used is given back. So a budget is never exceeded, however many ask at once; and a process that dies in between, a
call that is cancelled or a store that fails leaves the budget too small, and never too large. A day is one of UTC, and
an answer that comes after midnight settles with the day on which it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Protocol

from hopper_common.clock import Clock
from hopper_router.llm.errors import BudgetExhausted


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent in a day: questions, and millionths of the currency of the prices. None: no limit."""

    calls: int | None = None
    money: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent of a day's budget, or is reserved."""

    calls: int = 0
    money: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """What may be spent on one question."""

    instance: str
    day: date
    money: int


class BudgetStore(Protocol):
    """Where it is kept what each instance spent on each day."""

    async def change(self, instance: str, day: date, change: Callable[[Spent], Spent]) -> Spent:
        """
        Put what *change* makes of the day's account in its place, durably, and return it.

        Nobody else's change comes between; *change* may be called again where a transaction is. What it raises leaves
        the account as it is and goes to the caller. A day of which nothing is known has nothing spent.
        """
        ...


class MemoryBudgetStore:
    """A `BudgetStore` that forgets when the process ends. It keeps every day that it was asked for."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, date], Spent] = {}

    async def change(self, instance: str, day: date, change: Callable[[Spent], Spent]) -> Spent:
        """See `BudgetStore`."""
        changed = change(self._spent.get((instance, day), Spent()))
        self._spent[instance, day] = changed
        return changed


def reserve(spent: Spent, limits: Limits, money: int) -> Spent:
    """
    Take one call and so much *money* from what is left.

    Raises:
        BudgetExhausted: That would be more than *limits* allow; `limit` in its metadata says which.
    """
    after = Spent(spent.calls + 1, spent.money + money)
    if limits.calls is not None and after.calls > limits.calls:
        raise BudgetExhausted("the calls of today's budget are used up", limit="calls")
    if limits.money is not None and after.money > limits.money:
        raise BudgetExhausted("what is left of today's budget does not cover this call", limit="money")
    return after


def settle(spent: Spent, reserved: int, money: int) -> Spent:
    """Give back what of the *reserved* money was not spent; the call stays counted."""
    return replace(spent, money=spent.money - reserved + money)


def release(spent: Spent, reserved: int) -> Spent:
    """Give back all of it: nobody was asked."""
    return Spent(spent.calls - 1, spent.money - reserved)


class Budget:
    """The budgets of all instances."""

    def __init__(self, store: BudgetStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def reserve(self, instance: str, limits: Limits, money: int) -> Reservation:
        """
        Reserve one question that costs no more than *money*.

        Raises:
            BudgetExhausted: There is not so much left; it says when there will be.
        """
        now = self._clock.now().astimezone(UTC)
        try:
            await self._store.change(instance, now.date(), lambda spent: reserve(spent, limits, money))
        except BudgetExhausted as error:
            exhausted = BudgetExhausted(error.message, instance=instance, **error.metadata)
            exhausted.retry_after = _until_midnight(now)
            raise exhausted from None
        return Reservation(instance, now.date(), money)

    async def settle(self, reservation: Reservation, money: int) -> None:
        """Say what the question has really cost."""
        await self._store.change(
            reservation.instance, reservation.day, lambda spent: settle(spent, reservation.money, money)
        )

    async def release(self, reservation: Reservation) -> None:
        """Say that the question was not asked."""
        await self._store.change(
            reservation.instance, reservation.day, lambda spent: release(spent, reservation.money)
        )


def _until_midnight(now: datetime) -> timedelta:
    return datetime.combine(now.date() + timedelta(days=1), time(), UTC) - now
