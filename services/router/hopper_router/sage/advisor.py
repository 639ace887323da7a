"""What a Sage is asked, what it answers, as plain values; the port that every Sage fills."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

# What is asked.


@dataclass(frozen=True, slots=True)
class Asked:
    """A task as a Sage may see it. A description is cut to what the contract takes; a payload is never sent."""

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
class Factor:
    """One part of what the router thinks of a candidate."""

    name: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A project, `projects/{project}`, that passed every filter; `confidence` is the router's own, 0 to 1."""

    project: str
    display_name: str = ""
    description: str = ""
    capabilities: Sequence[str] = ()
    confidence: float = 0.0
    factors: Sequence[Factor] = ()


@dataclass(frozen=True, slots=True)
class Precedent:
    """A similar task; `success` says whether `project` was the right place, None: nobody knows."""

    decision: str
    title: str
    project: str
    success: bool | None
    similarity: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What the Sage asked about this task before, and what its requester said."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """
    Where should this task go?

    Attributes:
        decision: Names the question: asked again, the answer is the same. A new question, such as one with one more
            reply, needs a new decision.
        candidates: Each project once, best first; at most 20 are sent.
        precedents: Most similar first; at most 20 are sent.
        replies: Oldest first; the newest 10 are sent.
    """

    decision: str
    instance: str
    task: Asked
    candidates: Sequence[Candidate]
    precedents: Sequence[Precedent] = ()
    replies: Sequence[Reply] = ()


# What is answered. All words are one printable line each.


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost; `money` is in millionths of the currency that the Sage's owner pays in."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """There it should go: one of the candidates. `confidence` is the Sage's own word, 0 to 1, and not calibrated."""

    project: str
    confidence: float
    reason: str
    precedents: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Clarification:
    """This the requester should be asked first."""

    question: str
    reason: str = ""


class Why(enum.Enum):
    """Why a Sage does not choose."""

    UNSURE = "UNSURE"
    NOTHING_FITS = "NOTHING_FITS"
    OUT_OF_TIME = "OUT_OF_TIME"


@dataclass(frozen=True, slots=True)
class Abstention:
    """It does not choose."""

    kind: Why
    reason: str


@dataclass(frozen=True, slots=True)
class Advice:
    """An answer, with its cost by the Sage's own account."""

    answer: Choice | Clarification | Abstention
    cost: Cost


@dataclass(frozen=True, slots=True)
class Ranked:
    """A task's place in an order, and why."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Order:
    """Every task that was asked about, once, first to be done first."""

    ranked: Sequence[Ranked]
    cost: Cost


# What came of it.


class Outcome(enum.Enum):
    """How a task ended, as far as a decision is concerned."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    REROUTED = "REROUTED"


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """
    What came of a decision.

    Attributes:
        final_project: Who had the task in the end or, where somebody said so, should have had it; "": nobody.
        success: Whether that is the right place, where somebody said so.
        revision: Has to grow when more becomes known of a decision; the greatest counts.
        task: For a Sage that was not asked about it.
    """

    decision: str
    outcome: Outcome
    final_project: str = ""
    success: bool | None = None
    duration: timedelta | None = None
    revision: int = 0
    task: Asked | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many outcomes told the Sage something, and for how many it has no use."""

    new: int
    unknown: int


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
    """How well a Sage did, by its own account."""

    decisions: int
    choices: int
    clarifications: int
    abstentions: int
    judged: int
    right: int
    accuracy: float
    calibration_error: float
    bins: Sequence[Bin]
    cost: Cost
    remarks: str


class Capability(enum.Enum):
    """What a Sage may leave out."""

    CLARIFY = "CLARIFY"
    PRIORITIZE = "PRIORITIZE"
    LEARN = "LEARN"
    LANGUAGE_MODEL = "LANGUAGE_MODEL"


@dataclass(frozen=True, slots=True)
class About:
    """Who a Sage is, and what it can do."""

    name: str
    version: str
    description: str
    capabilities: frozenset[Capability]


class SageAdvisor(Protocol):
    """
    Somebody outside who can be asked, and told.

    Every method raises:
        SageUnavailable: It does not answer, or not in time; or failed so often lately that it was not asked.
        SageAnswerInvalid: It answered something that cannot be used.
        SageRefused: It does not take the question; the same one will be refused again.
    """

    async def about(self) -> About:
        """Who it is."""
        ...

    async def decide(self, question: Question, *, within: timedelta) -> Advice:
        """Ask where a task goes; returns, or raises, before *within* is over."""
        ...

    async def prioritize(self, queue: str, tasks: Sequence[Asked], *, within: timedelta) -> Order:
        """
        Ask for an order of tasks of a queue, `projects/{project}` or `instances/{instance}`.

        Args:
            tasks: Each once, in the order they have now. The Sage is asked about the first 200; the rest follow
                them as they are, without a reason.
        """
        ...

    async def record(self, outcomes: Sequence[TaskOutcome]) -> Recorded:
        """Tell what came of decisions. A repeat changes nothing, so after an error all of them can be told again."""
        ...

    async def report(self, start: datetime | None = None, end: datetime | None = None) -> Performance:
        """Ask how well it did with what it was asked from *start* to before *end*."""
        ...
