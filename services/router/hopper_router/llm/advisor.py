"""What is asked of an advisor, and what it answers, as plain values; the port that every advisor fills."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol


class Ask(enum.Enum):
    """What an advisor may say besides a project of the shortlist, its confidence and its reason."""

    NOTHING_FITS = "NOTHING_FITS"
    TAGS = "TAGS"
    EFFORT = "EFFORT"
    SUBTASKS = "SUBTASKS"


@dataclass(frozen=True, slots=True)
class Choice:
    """A project that may have the task; `confidence` is that of whoever made the shortlist, from 0 to 1."""

    id: str
    name: str = ""
    description: str = ""
    capabilities: tuple[str, ...] = ()
    confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """A similar task, and the project (its id) where it was right."""

    title: str
    project: str


@dataclass(frozen=True, slots=True)
class Question:
    """A task, who could have it, and what may be answered. Best choices first; closest examples first."""

    title: str
    description: str = ""
    tags: tuple[str, ...] = ()
    shortlist: tuple[Choice, ...] = ()
    examples: tuple[Example, ...] = ()
    allowed: frozenset[Ask] = frozenset({Ask.NOTHING_FITS})


@dataclass(frozen=True, slots=True)
class Cost:
    """What asking took: tokens, and money in millionths of the currency in which the prices are."""

    input_tokens: int = 0
    output_tokens: int = 0
    money: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.money + other.money,
        )


FREE: Final = Cost()


@dataclass(frozen=True, slots=True)
class Subtask:
    """One part of a task; `after` has the positions of those that must be done first, as the advisor said."""

    title: str
    description: str = ""
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """
    What an advisor thinks; `project` is an id of the shortlist, or None: nothing fits, or it cannot tell.

    `confidence` is the advisor's own word, from 0 to 1, and not calibrated. `cost` includes attempts that failed.
    """

    project: str | None
    confidence: float
    reason: str = ""
    tags: tuple[str, ...] = ()
    effort: timedelta | None = None
    subtasks: tuple[Subtask, ...] = ()
    cost: Cost = FREE
    model: str = ""


class Advisor(Protocol):
    """Somebody who can be asked where a task goes."""

    def worst_case(self, question: Question) -> Cost:
        """The most that asking this can cost, attempts that fail included."""
        ...

    async def advise(self, question: Question, *, timeout: timedelta | None = None) -> Advice:
        """
        Ask.

        Args:
            timeout: For all of it, attempts and pauses included. Default: the advisor's own.

        Raises:
            LlmUnavailable: It does not answer in time, or refuses to; the error says what that may have cost.
            LlmAnswerInvalid: It answered something that cannot be used; likewise.
        """
        ...
