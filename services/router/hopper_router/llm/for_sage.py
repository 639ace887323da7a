"""The router's client for LLMs as the reference Sage's model: the entry point `hopper.sage.language_models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hopper_common.clock import SystemClock
from hopper_common.errors import HopperError
from hopper_router.llm.advisor import Advisor, Choice, Example, Question
from hopper_router.llm.opening import open_advisor
from hopper_router.llm.settings import LlmSettings
from hopper_sage import model as sage
from hopper_sage.ports import LanguageModel, ModelAdvice, ModelFailed

_SHARE: Final = 0.8
"""Of the time the Sage has, so that it can still answer for itself when the model does not."""


def language_model() -> LanguageModel:
    """
    The LLM that the settings describe.

    Raises:
        LlmNotConfigured: They do not; see `open_advisor`.
    """
    settings = LlmSettings()
    return SageModel(open_advisor(settings, SystemClock()), settings.model)


class SageModel:
    """`hopper_sage.ports.LanguageModel` over an advisor. Lives as long as its process, and so does its connection."""

    def __init__(self, advisor: Advisor, name: str) -> None:
        self._advisor = advisor
        self._name = name

    @property
    def name(self) -> str:
        """Which model, for people."""
        return self._name

    async def advise(self, question: sage.Question, past: Sequence[sage.Remembered]) -> ModelAdvice:
        """See `LanguageModel`; what went well before is shown as examples."""
        try:
            advice = await self._advisor.advise(_asked(question), timeout=question.within * _SHARE)
        except HopperError as error:
            raise ModelFailed(error.reason) from error
        cost = sage.Cost(1, advice.cost.input_tokens, advice.cost.output_tokens, advice.cost.money)
        return ModelAdvice(advice.project or "", advice.confidence, advice.reason, cost=cost)


def _asked(question: sage.Question) -> Question:
    task = question.task
    replies = [f"Asked: {reply.question}\nAnswered: {reply.answer}" for reply in question.replies]
    return Question(
        title=task.title,
        description="\n\n".join([*replies, task.description]),
        tags=tuple(task.tags),
        shortlist=tuple(
            Choice(
                candidate.project,
                candidate.display_name,
                candidate.description,
                tuple(candidate.capabilities),
                candidate.confidence,
            )
            for candidate in question.candidates
        ),
        examples=tuple(Example(past.title, past.project) for past in question.precedents if past.success),
    )
