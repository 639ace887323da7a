"""
What a Sage is asked, what it answers, and how it is judged; as plain values.

A task, in here, is what routing may know of one. Where it *belongs* is known from its outcome: with the project that
had it in the end if that was a success, and not there if it was none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

BINS: Final = 10
MOST_REASON_BYTES: Final = 1_000
MOST_RANK_REASON_BYTES: Final = 300
MOST_REMARKS_BYTES: Final = 4_000
MOST_PRECEDENTS: Final = 10

# What is asked.


@dataclass(frozen=True, slots=True)
class Task:
    """
    A task.

    Attributes:
        priority: 0 to 100; the greater, the more it matters.
        estimated_effort: How long the work is thought to take.
    """

    name: str
    title: str
    description: str = ""
    tags: Sequence[str] = ()
    required_capabilities: Sequence[str] = ()
    requester: str = ""
    priority: int = 50
    finish_by: datetime | None = None
    estimated_effort: timedelta | None = None
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A project that may have the task, and how sure the router is of it by itself, 0 to 1."""

    project: str
    display_name: str = ""
    description: str = ""
    capabilities: Sequence[str] = ()
    confidence: float = 0.0

    @property
    def called(self) -> str:
        """What people call it."""
        return self.display_name or self.project.removeprefix("projects/")


@dataclass(frozen=True, slots=True)
class Precedent:
    """A task of the past as Hopper remembers it; `success` says whether `project` was the right place."""

    decision: str
    title: str
    project: str
    success: bool | None
    similarity: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What the Sage asked before, and what the requester said."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """
    Where should this task go?

    Attributes:
        candidates: Each project once, best first as far as the router can tell.
        within: How long the Sage may think.
    """

    decision: str
    instance: str
    task: Task
    candidates: Sequence[Candidate]
    precedents: Sequence[Precedent] = ()
    replies: Sequence[Reply] = ()
    within: timedelta = timedelta(seconds=10)


# What is answered.


@dataclass(frozen=True, slots=True)
class Choice:
    """There it should go; `precedents` are the decisions of the past that mattered most."""

    project: str
    confidence: float
    reason: str
    precedents: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Clarification:
    """This the requester should be asked first."""

    question: str
    reason: str = ""


class Why(Enum):
    """Why a Sage does not choose."""

    UNSURE = "UNSURE"
    NOTHING_FITS = "NOTHING_FITS"
    OUT_OF_TIME = "OUT_OF_TIME"


@dataclass(frozen=True, slots=True)
class Abstention:
    """It does not choose."""

    kind: Why
    reason: str


Answer = Choice | Clarification | Abstention


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost; `money` is in millionths of the currency its owner pays in."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.model_calls + other.model_calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.money + other.money,
        )


@dataclass(frozen=True, slots=True)
class Advised:
    """An answer with its cost."""

    answer: Answer
    cost: Cost = Cost()


@dataclass(frozen=True, slots=True)
class Ranked:
    """A task's place in an order, and why."""

    task: str
    reason: str


# What came of it.


class Outcome(Enum):
    """How a task ended, as far as a decision is concerned."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    REROUTED = "REROUTED"


@dataclass(frozen=True, slots=True)
class Told:
    """
    What a Sage was told of a decision.

    Attributes:
        final_project: Who had the task in the end, or should have had it; "": nobody.
        success: Whether that is the right place, where somebody said so.
        revision: Of several the greatest counts, of equals the first.
        task: The task itself, for a Sage that was not asked about it.
    """

    decision: str
    outcome: Outcome
    final_project: str = ""
    success: bool | None = None
    duration: timedelta | None = None
    revision: int = 0
    task: Task | None = None


def was_success(told: Told) -> bool | None:
    """Whether a task was in the right place in the end; None: nobody knows."""
    if told.success is not None or not told.final_project:
        return told.success
    return {Outcome.SUCCEEDED: True, Outcome.FAILED: False}.get(told.outcome)


def was_right(chosen: str, told: Told) -> bool | None:
    """Whether a choice was right; None: nobody knows."""
    success = was_success(told)
    if chosen == told.final_project:
        return success
    return False if success else None


@dataclass(frozen=True, slots=True)
class Remembered:
    """
    A task of the past of which the outcome is known, as the journal finds it again.

    Attributes:
        belongs: The project it belonged to; "": nobody's; None: not known.
        not_with: Projects that are known to have been wrong.
        similarity: How like the task in question, 0 to 1.
    """

    decision: str
    belongs: str | None
    not_with: frozenset[str]
    duration: timedelta | None
    similarity: float


@dataclass(frozen=True, slots=True)
class Consulted:
    """One question that was answered, and what is known of it today."""

    answer: Answer
    cost: Cost
    told: Told | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Judged choices of about the same confidence."""

    lower: float
    upper: float
    count: int
    mean_confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Performance:
    """How well a Sage did."""

    choices: int = 0
    clarifications: int = 0
    abstentions: int = 0
    judged: int = 0
    right: int = 0
    bins: Sequence[Bin] = ()
    cost: Cost = field(default_factory=Cost)

    @property
    def decisions(self) -> int:
        """Questions answered."""
        return self.choices + self.clarifications + self.abstentions

    @property
    def accuracy(self) -> float:
        """The share of judged choices that was right; 0 when nothing was judged."""
        return self.right / self.judged if self.judged else 0.0

    @property
    def calibration_error(self) -> float:
        """How far confidence and accuracy lie apart over the bins, weighted."""
        apart = sum(bin_.count * abs(bin_.mean_confidence - bin_.accuracy) for bin_ in self.bins)
        return min(1.0, apart / self.judged) if self.judged else 0.0


def performance(consulted: Iterable[Consulted]) -> Performance:
    """Judge a Sage by what it was asked and what is known of it."""
    counts: dict[type, int] = {}
    judged: list[tuple[float, bool]] = []
    cost = Cost()
    for one in consulted:
        counts[type(one.answer)] = counts.get(type(one.answer), 0) + 1
        cost += one.cost
        if isinstance(one.answer, Choice) and one.told is not None:
            right = was_right(one.answer.project, one.told)
            if right is not None:
                judged.append((one.answer.confidence, right))
    return Performance(
        choices=counts.get(Choice, 0),
        clarifications=counts.get(Clarification, 0),
        abstentions=counts.get(Abstention, 0),
        judged=len(judged),
        right=sum(right for _, right in judged),
        bins=_bins(judged),
        cost=cost,
    )


def _bins(judged: Sequence[tuple[float, bool]]) -> list[Bin]:
    members: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in judged:
        members.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right))
    return [
        Bin(
            lower=index / BINS,
            upper=(index + 1) / BINS,
            count=len(inside),
            mean_confidence=sum(confidence for confidence, _ in inside) / len(inside),
            accuracy=sum(right for _, right in inside) / len(inside),
        )
        for index, inside in sorted(members.items())
    ]
