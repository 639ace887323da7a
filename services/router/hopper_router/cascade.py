"""
Who is asked next where a task goes, and when asking is over. Pure: what was said so far gives the next step.

    rules ─► learned ─► llm ─► sage ─► person
      └─────────┴────────┴──────┴────────┴──► the first whose confidence reaches its threshold decides

Stages that judge in memory (`rules`, `learned`) speak at once, in every decision anew. The others are asked, which
takes time and may cost: what they said is an `Opinion`, is recorded with the decision, and goes into the next one. A
stage that is down, too slow, out of budget or answers what cannot be used has FAILED, and the next one is asked. When
all have spoken and none was sure enough, the best of what was said stands, and the policy's `on_unsure` says what
becomes of it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from hopper_router.model import Opinion, Word


class Suggestion(enum.Enum):
    """What an LLM may be asked for besides a place; the values are what policies call them."""

    TAGS = "tags"
    EFFORT = "effort"
    SUBTASKS = "subtasks"
    """Not with every question: only when somebody wants a task decomposed."""


class Use(enum.Enum):
    """Who may be asked; the values are what policies and records call them."""

    RULES = "rules"
    LEARNED = "learned"
    LLM = "llm"
    SAGE = "sage"
    PERSON = "person"

    @property
    def local(self) -> bool:
        """Whether it judges in memory, at once."""
        return self in (Use.RULES, Use.LEARNED)


MOST_CLARIFICATIONS: Final = 3
"""So often a Sage may ask the requester about one task; after that it has to choose or to abstain."""
DEADLINE: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Stage:
    """
    One who is asked.

    Attributes:
        threshold: How sure it has to be for its word to count, 0 to 1.
        deadline: How long an answer may take; of no meaning for those who judge in memory, and for people.
        calls_per_day: How often it may be asked in a day. None: as often as need be.
        money_per_day: What it may cost in a day, in millionths. None: whatever it costs.
        address: Where a Sage is; "": where the operator says.
        desk: Whose question it is: an instance; "": anybody's.
        suggest: What an LLM is asked for besides.
        prioritize: Whether a Sage orders the queues of the instance.
    """

    use: Use
    threshold: float = 0.5
    deadline: timedelta = DEADLINE
    calls_per_day: int | None = None
    money_per_day: int | None = None
    address: str = ""
    desk: str = ""
    suggest: frozenset[Suggestion] = frozenset()
    prioritize: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """Somebody was sure enough."""

    opinion: Opinion


@dataclass(frozen=True, slots=True)
class Consult:
    """That one is to be asked."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class Await:
    """The requester has been asked, and has not answered yet."""

    question: Opinion


@dataclass(frozen=True, slots=True)
class Exhausted:
    """
    Nobody is left to be asked.

    Attributes:
        best: The choice that came nearest to what was asked of it; None: nobody chose.
        nobody: Who said last that nothing fits, if that was the last word; a person's is an order.
    """

    best: Opinion | None
    nobody: Opinion | None


Step = Decided | Consult | Await | Exhausted


def following(stages: Sequence[Stage], said: Sequence[Opinion]) -> Step:
    """
    What is to be done after *said*, oldest first.

    The last who is sure enough decides: who was asked later knew what the others had said.
    """
    for opinion in reversed(said):
        if opinion.word is Word.CHOICE and opinion.confidence >= opinion.threshold:
            return Decided(opinion)
        if opinion.word is Word.NOTHING_FITS and opinion.stage == Use.PERSON.value:
            return Exhausted(None, opinion)
    if said and said[-1].word is Word.ASKED and not said[-1].answer:
        return Await(said[-1])
    spoken = {opinion.stage for opinion in said if opinion.word is not Word.ASKED}
    for stage in stages:
        if stage.use.value not in spoken:
            return Consult(stage)
    nobody = said[-1] if said and said[-1].word is Word.NOTHING_FITS else None
    return Exhausted(best(said), nobody)


def best(said: Sequence[Opinion]) -> Opinion | None:
    """The choice that came nearest to its own threshold, which is how much the policy trusts who made it."""
    choices = [opinion for opinion in said if opinion.word is Word.CHOICE]
    return max(reversed(choices), key=_nearness, default=None)


def _nearness(opinion: Opinion) -> float:
    return opinion.confidence / opinion.threshold if opinion.threshold else float("inf")


def asked_before(said: Sequence[Opinion]) -> int:
    """How often the requester has been asked."""
    return sum(opinion.word is Word.ASKED for opinion in said)
