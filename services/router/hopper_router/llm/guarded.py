"""An advisor that is asked within a budget, and left alone for a while when it does not answer."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_router.breaker import FAILURES, Breaker, Resting
from hopper_router.llm.advisor import Advice, Advisor, Question
from hopper_router.llm.budget import Budget, Limits
from hopper_router.llm.errors import LlmAnswerInvalid, LlmUnavailable

_log = structlog.get_logger(__name__)


class GuardedAdvisor:
    """
    One advisor for all instances; each spends from its own budget, and all share the breaker.

    Args:
        failures: So many in a row, and it is left alone for a while.
    """

    def __init__(self, advisor: Advisor, budget: Budget, clock: Clock, *, failures: int = FAILURES) -> None:
        self._advisor = advisor
        self._budget = budget
        self._breaker = Breaker("llm", clock, LlmUnavailable, LlmAnswerInvalid, failures=failures)

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
        # Whoever cancels this leaves the reservation as it is: nobody knows what the call will have cost.
        try:
            with self._breaker.call():
                advice = await self._advisor.advise(question, timeout=timeout)
        except Resting as resting:
            await self._given_back(self._budget.release(reservation), instance)
            raise _left_alone(resting) from None
        except (LlmUnavailable, LlmAnswerInvalid) as error:
            await self._given_back(self._budget.settle(reservation, error.cost.money), instance)
            raise
        await self._given_back(self._budget.settle(reservation, advice.cost.money), instance)
        return advice

    async def _given_back(self, change: Awaitable[None], instance: str) -> None:
        try:
            await change
        except HopperError as error:
            # What was answered counts for more, and what stays reserved only makes the day's budget smaller.
            _log.warning("a budget could not be settled", instance=instance, reason=error.reason)


def _left_alone(resting: Resting) -> LlmUnavailable:
    error = LlmUnavailable("the LLM failed several times in a row and is left alone", cause="resting")
    error.retry_after = resting.rest
    return error
