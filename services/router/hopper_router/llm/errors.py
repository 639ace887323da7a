"""What can go wrong in asking a model. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from __future__ import annotations

from datetime import timedelta

from hopper_common.errors import ResourceExhausted, Unavailable, WrongState
from hopper_router.llm.advisor import FREE, Cost


class LlmNotConfigured(WrongState):
    """No LLM is set up here: set HOPPER_LLM_URL and HOPPER_LLM_MODEL."""

    reason = "LLM_NOT_CONFIGURED"


class LlmUnavailable(Unavailable):
    """
    The LLM does not answer, or refuses to.

    Attributes:
        cost: What asking may have cost all the same; never too little.
    """

    reason = "LLM_UNAVAILABLE"
    retry_after: timedelta | None = timedelta(seconds=1)
    cost: Cost = FREE


class LlmAnswerInvalid(Unavailable):
    """
    The LLM answered something that cannot be used.

    Attributes:
        cost: What the answer cost; never too little.
    """

    reason = "LLM_ANSWER_INVALID"
    cost: Cost = FREE


class BudgetExhausted(ResourceExhausted):
    """The instance has used up what it may spend today."""

    reason = "BUDGET_EXHAUSTED"
    retry_after: timedelta | None = timedelta(hours=1)
