"""The mind of the reference Sage: what the journal knows, and what a language model says where there is one."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog

from hopper_common.text import one_line
from hopper_sage.judging import judge
from hopper_sage.model import (
    MOST_REMARKS_BYTES,
    Advised,
    Cost,
    Performance,
    Question,
    Ranked,
    Remembered,
    Task,
)
from hopper_sage.ordering import in_order
from hopper_sage.ports import About, LanguageModel, ModelAdvice, ModelFailed

log = structlog.get_logger(__name__)

_MODEL_SHARE: Final = 0.8
"""Of the time there is, what a language model may take: the journal's answer has to be given in the rest."""
_FEW: Final = 20
_NOTABLE: Final = 0.05


class ReferenceMind:
    """
    Advises from the journal; `ports.Mind`.

    Args:
        model: Asked about every question. When it fails, the journal answers alone.
    """

    def __init__(self, version: str, model: LanguageModel | None = None) -> None:
        self._model = model
        with_model = "" if model is None else f", and asks {one_line(model.name, most_bytes=100)}"
        self._about = About(
            name="reference",
            version=version,
            description=f"Goes by what tasks like it came to, as its journal has it{with_model}.",
            clarifies=True,
            prioritizes=True,
            learns=True,
            language_model=model is not None,
        )

    @property
    def about(self) -> About:
        return self._about

    async def advise(self, question: Question, past: Sequence[Remembered]) -> Advised:
        advice = None if self._model is None else await self._ask(self._model, question, past)
        cost = Cost() if advice is None else advice.cost
        return Advised(judge(question, past, advice), cost)

    async def _ask(
        self, model: LanguageModel, question: Question, past: Sequence[Remembered]
    ) -> ModelAdvice | None:
        try:
            async with asyncio.timeout(question.within.total_seconds() * _MODEL_SHARE):
                advice = await model.advise(question, past)
        except ModelFailed as error:
            log.warning("the language model failed", model=model.name, why=str(error))
            return None
        except TimeoutError:
            log.warning("the language model took too long", model=model.name)
            return None
        if not 0 <= advice.confidence <= 1:
            log.warning("the language model is sure of no number from 0 to 1", model=model.name)
            return None
        if advice.project and advice.project not in {one.project for one in question.candidates}:
            log.warning("the language model named no candidate", model=model.name)
            return None
        return advice

    async def prioritize(
        self, tasks: Sequence[Task], past: Mapping[str, Sequence[Remembered]], now: datetime
    ) -> tuple[list[Ranked], Cost]:
        return in_order(tasks, past, now), Cost()

    def remark(self, performance: Performance) -> str:
        return one_line(" ".join(_remarks(performance)), most_bytes=MOST_REMARKS_BYTES)


def _remarks(seen: Performance) -> list[str]:
    if not seen.decisions:
        return ["Nobody asked me anything."]
    said = [
        f"I was asked {seen.decisions} times, chose {seen.choices} times, asked back {seen.clarifications} times and "
        f"abstained {seen.abstentions} times."
    ]
    if not seen.judged:
        return [*said, "What came of it I was not told."]
    said.append(
        f"Of {seen.judged} choices that I know the end of, {seen.right} were right ({seen.accuracy:.0%})."
    )
    confidence = sum(bin_.count * bin_.mean_confidence for bin_ in seen.bins) / seen.judged
    if seen.judged < _FEW:
        said.append("That is too few to say whether I was as sure as I should be.")
    elif confidence - seen.accuracy > _NOTABLE:
        said.append(f"I was too sure of myself: {confidence:.0%} on average.")
    elif seen.accuracy - confidence > _NOTABLE:
        said.append(f"I could have been surer: I was {confidence:.0%} sure on average.")
    else:
        said.append(f"I was about as sure as I should be: {confidence:.0%} on average.")
    return said
