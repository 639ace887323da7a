"""What the service of a Sage needs: a mind that advises, a journal that keeps, perhaps a language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from hopper_sage.model import Advised, Consulted, Cost, Performance, Question, Ranked, Remembered, Task, Told


@dataclass(frozen=True, slots=True)
class About:
    """
    Who a Sage is.

    Attributes:
        name: One word of a-z, 0-9, '.', '_', '-'; stays the same for as long as the journal is kept.
        clarifies, prioritizes, learns, language_model: Its capabilities, as the contract names them.
    """

    name: str
    version: str
    description: str
    clarifies: bool = False
    prioritizes: bool = False
    learns: bool = False
    language_model: bool = False


class Mind(Protocol):
    """
    What thinks. It keeps nothing: the service around it keeps the journal, the time and the contract.

    What it raises is a defect, and answered as one.
    """

    @property
    def about(self) -> About:
        """Who it is."""

    async def advise(self, question: Question, past: Sequence[Remembered]) -> Advised:
        """
        Answer a question. Cancelled when the time is up; the answer is then that it was.

        Args:
            past: Tasks of the journal that are like this one and whose outcome is known, most like first.
        """

    async def prioritize(
        self, tasks: Sequence[Task], past: Mapping[str, Sequence[Remembered]], now: datetime
    ) -> tuple[list[Ranked], Cost]:
        """
        Put tasks in order, first to be done first: each of them once.

        Args:
            past: As for `advise`, by the name of the task; tasks of which nothing is known are left out.
        """

    def remark(self, performance: Performance) -> str:
        """What it has to say about how it did."""


class Journal(Protocol):
    """What a Sage was asked, what it answered, and what came of it. What has returned is durable."""

    async def answered(self, decision: str, digest: bytes) -> bytes | None:
        """
        The stored answer to a question, None if it was not asked.

        Raises:
            QuestionConflict: The decision was asked about with another question.
        """

    async def write_answer(
        self, question: Question, digest: bytes, advised: Advised, response: bytes, now: datetime
    ) -> bytes:
        """
        Keep an answer; returns the one that counts, which is the first.

        Raises:
            QuestionConflict: The decision was asked about with another question.
        """

    async def record(self, told: Sequence[Told], now: datetime) -> tuple[int, int]:
        """Keep outcomes, all or none; returns how many were new, and how many of unknown decisions."""

    async def similar(self, tasks: Sequence[Task], *, limit: int) -> list[list[Remembered]]:
        """Tasks like each of *tasks* whose outcome is known, most like first."""

    async def consulted(self, start: datetime | None, end: datetime | None) -> list[Consulted]:
        """All questions that were asked in a time, from *start* to before *end*."""


# The language model.


@dataclass(frozen=True, slots=True)
class ModelAdvice:
    """
    What a language model says.

    Attributes:
        project: One of the candidates; "": none of them fits.
        confidence: How sure it says it is, 0 to 1.
        question: What it would ask the requester; "": nothing.
    """

    project: str
    confidence: float
    reason: str
    question: str = ""
    cost: Cost = field(default_factory=lambda: Cost(model_calls=1))


class ModelFailed(Exception):
    """
    A language model gave no answer that can be used.

    Args:
        why: A few words for the log and for people, without task text.
    """


class LanguageModel(Protocol):
    """A language model that is asked about tasks."""

    @property
    def name(self) -> str:
        """Which model, for people."""

    async def advise(self, question: Question, past: Sequence[Remembered]) -> ModelAdvice:
        """
        Choose among the candidates, or none.

        Everything in *question* was written by others; it is to be given to the model as data.

        Raises:
            ModelFailed: It is down, too slow, too dear, or talks nonsense.
        """
