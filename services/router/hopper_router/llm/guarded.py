"""An advisor that is asked within a budget, and left alone for a while when it does not answer."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_router.llm.advisor import Advice, Advisor, Question
from hopper_router.llm.budget import Breaker, Budget, Limits
from hopper_router.llm.errors import LlmAnswerInvalid, LlmUnavailable

_log = structlog.get_logger(__name__)


class GuardedAdvisor:
    """One advisor for all instances; each spends from its own budget, and all share the breaker."""

    def __init__(self, advisor: Advisor, budget: Budget, breaker: Breaker, clock: Clock) -> None:
        self._advisor = advisor
        self._budget = budget
        self._breaker = breaker
        self._clock = clock

    async def advise(
        self, question: Question, *, instance: str, limits: Limits, timeout: timedelta | None = None
    ) -> Advice:
        """
        Ask, for an instance that may spend so much a day.

        Raises:
            BudgetExhausted: What is left of the day does not cover the worst case; nobody was asked.
            LlmUnavailable: As the advisor says; or it failed so often lately that it was not asked.
            LlmAnswerInvalid: As the advisor says.
        """
        worst = self._advisor.worst_case(question).money
        reservation = await self._budget.reserve(instance, limits, worst)
        if not self._breaker.admit(self._clock.monotonic()):
            await self._given_back(self._budget.release(reservation), instance)
            raise self._left_alone()
        # Whoever cancels this leaves the reservation as it is: nobody knows what the call will have cost.
        try:
            advice = await self._advisor.advise(question, timeout=timeout)
        except (LlmUnavailable, LlmAnswerInvalid) as error:
            self._breaker.failed(self._clock.monotonic())
            await self._given_back(self._budget.settle(reservation, error.cost.money), instance)
            raise
        self._breaker.succeeded()
        await self._given_back(self._budget.settle(reservation, advice.cost.money), instance)
        return advice

    def _left_alone(self) -> LlmUnavailable:
        error = LlmUnavailable("the LLM failed several times in a row and is left alone", cause="breaker")
        error.retry_after = self._breaker.wait(self._clock.monotonic())
        return error

    async def _given_back(self, change: Awaitable[None], instance: str) -> None:
        try:
            await change
        except HopperError as error:
            # What was answered counts for more, and what stays reserved only makes the day's budget smaller.
            _log.warning("a budget could not be settled", instance=instance, reason=error.reason)
