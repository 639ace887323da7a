"""
Episodes, outcomes, feedback, and the score kept from them.

**An episode** is one decision joined to its outcome. It is written once: a decision that comes again changes
nothing. The outcome is joined by the decision's name, whichever of the two comes first.

**One decision has one outcome**, the first that is reported, with one exception. REROUTED says that a later
decision took over; it is the weaker word, and a real end (the other four) prevails over it in whatever order
the two arrive. `prevails` is that rule; since it does not depend on order, reports may be repeated, delayed
and shuffled, and memory comes out the same.

**Feedback goes up.** What is said about a decision is said, in part, about every decision above it: whoever
handed the task down the wrong way shares in it. `passed_up` says what changes on the way.

**The verdict** on a decision is right or wrong (`verdict`), given by the newest feedback that says either.
The score compares verdicts with the confidence the decisions were made at, over ten bins of confidence:

    bin          [0.0, 0.1)  [0.1, 0.2)  ...  [0.9, 1.0]
    count        n_b, decisions judged whose confidence is in it
    right        r_b, of these
    accuracy     sum r_b / sum n_b
    calibration  sum n_b / n * |mean confidence_b - r_b / n_b|      (expected calibration error, Naeini 2015)
    regret       mean of (confidence if wrong, else 0)

Bins are sums, so a database can make them and nobody has to read every episode to know the score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from hopper_common.errors import FieldViolation, InvalidArgument

BINS = 10
MOST_FEEDBACK = 20  # shown with an episode, newest first
MOST_LEVELS = 32  # that feedback goes up; a hierarchy deeper than this is a mistake


# Episodes.


class Outcome(StrEnum):
    """How a task ended, as far as the decision is concerned."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    REROUTED = "REROUTED"


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """
    What came of a decision.

    Attributes:
        rerouted_to: With REROUTED: the project that the later decision sent the task to; empty: none.
    """

    decision: str
    outcome: Outcome
    finish_time: datetime
    attempts: int = 0
    worker: str = ""
    failure_reason: str = ""
    queue_duration: timedelta | None = None
    run_duration: timedelta | None = None
    rerouted_to: str = ""


class Candidate(NamedTuple):
    """
    One of the places a decision weighed.

    Attributes:
        confidence: From 0 to 1.
        rest: Its score without these factors.
        factors: Those whose weights are learned, with how much it had of each.
    """

    project: str
    confidence: float
    rest: float = 0.0
    factors: tuple[tuple[str, float], ...] = ()


def candidates_of(kept: Iterable[Sequence[Any]]) -> tuple[Candidate, ...]:
    """Candidates as JSON keeps them: a project and a confidence, and the rest where there is any."""
    return tuple([_candidate(*each) for each in kept])


def _candidate(
    project: str, confidence: float, rest: float = 0.0, factors: Iterable[Sequence[Any]] = ()
) -> Candidate:
    return Candidate(project, confidence, rest, tuple([(name, value) for name, value in factors]))


class Match(StrEnum):
    """Whether the task went to the right place."""

    GOOD = "GOOD"
    BAD = "BAD"
    NONE = "NONE"  # nobody here should have had it


@dataclass(frozen=True, slots=True)
class Feedback:
    """
    How a decision turned out, in somebody's words.

    Attributes:
        name: `episodes/{episode}/feedback/{feedback}`; empty until recorded, like `create_time`.
        match: None: not said.
        quality: From 0 to 1. None: not said.
        from_decision: Where it was given, if it came up from there. Empty: on this very decision.
    """

    match: Match | None = None
    better_project: str = ""
    actual_effort: timedelta | None = None
    quality: float | None = None
    rework: bool = False
    blockers: tuple[str, ...] = ()
    comment: str = ""
    author: str = ""
    name: str = ""
    from_decision: str = ""
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """
    One decision, joined to what came of it.

    Attributes:
        parent_decision: The decision one level up that handed the task here; empty at the top.
        project: Where it was sent; empty: nowhere.
        outcome: None: not ended yet, as far as memory knows.
        feedback: Newest first, at most `MOST_FEEDBACK`.
    """

    decision: str
    task: str
    instance: str
    decide_time: datetime
    parent_decision: str = ""
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    project: str = ""
    confidence: float = 0.0
    strategy: str = ""
    candidates: tuple[Candidate, ...] = ()
    outcome: EpisodeOutcome | None = None
    feedback: tuple[Feedback, ...] = ()

    @property
    def name(self) -> str:
        """`episodes/{episode}`; the id is the decision's."""
        return episode_name(self.decision)


def episode_name(decision: str) -> str:
    """The name of the episode of `decisions/{decision}`."""
    return "episodes/" + decision.removeprefix("decisions/")


def feedback_name(decision: str, feedback: str) -> str:
    """The name of a piece of feedback, by its id, on a decision."""
    return f"{episode_name(decision)}/feedback/{feedback}"


def first_of_each(episodes: Iterable[Episode]) -> list[Episode]:
    """The first episode of each decision, in order."""
    first: dict[str, Episode] = {}
    for episode in episodes:
        first.setdefault(episode.decision, episode)
    return list(first.values())


def prevails(outcome: Outcome, over: Outcome | None) -> bool:
    """Whether a report of *outcome* changes a decision whose outcome so far is *over* (None: none yet)."""
    return over is None or (over is Outcome.REROUTED and outcome is not Outcome.REROUTED)


def prevailing(outcomes: Iterable[EpisodeOutcome]) -> list[EpisodeOutcome]:
    """One outcome for each decision: what is left of reports that came in this order."""
    left: dict[str, EpisodeOutcome] = {}
    for report in outcomes:
        known = left.get(report.decision)
        if prevails(report.outcome, known.outcome if known else None):
            left[report.decision] = report
    return list(left.values())


# Feedback.


def check_feedback(feedback: Feedback) -> None:
    """
    Refuse feedback that contradicts itself.

    Raises:
        InvalidArgument: It names a better project without saying that the match was bad.
    """
    if feedback.better_project and feedback.match is not Match.BAD:
        raise InvalidArgument(
            violations=[FieldViolation("feedback.better_project", "must be empty unless match is MATCH_BAD")]
        )


def passed_up(
    feedback: Feedback, *, given_on: str, project: str, candidates: Sequence[Candidate]
) -> Feedback:
    """
    What feedback on a decision says about one above it.

    GOOD and BAD hold for both. NONE, "nobody here should have had it", is BAD above: it should not have been
    sent here. A better project is kept where the decision above could have chosen it and did not: it is among
    its candidates, and not its own choice. Elsewhere it would blame a decision for not choosing what it could
    not see, or what it did choose. Everything else is about the work, and the same on every level.

    Args:
        given_on: The decision the feedback was given on.
        project: Where the decision above sent the task.
        candidates: What the decision above weighed.
    """
    better = feedback.better_project
    could_choose = better != project and any(better == candidate.project for candidate in candidates)
    return replace(
        feedback,
        match=Match.BAD if feedback.match is Match.NONE else feedback.match,
        better_project=better if could_choose else "",
        from_decision=given_on,
    )


def verdict(match: Match | None, *, project: str) -> bool | None:
    """
    Whether a decision for *project* was right, by what feedback says of it; None: it does not say.

    That nobody should have had the task makes it wrong to send it anywhere, and right to send it nowhere.
    """
    if match is None:
        return None
    return not project if match is Match.NONE else match is Match.GOOD


# The score.


@dataclass(frozen=True, slots=True)
class Bin:
    """
    Judged decisions of about the same confidence, in sums.

    Attributes:
        index: From 0; the bin begins at `index / BINS`.
        confidence: Sum of the confidence of all.
        misplaced: Sum of the confidence of those that were wrong.
    """

    index: int
    count: int = 0
    right: int = 0
    confidence: float = 0.0
    misplaced: float = 0.0

    @property
    def lower(self) -> float:
        return self.index / BINS

    @property
    def upper(self) -> float:
        return (self.index + 1) / BINS

    @property
    def mean_confidence(self) -> float:
        """0 in an empty bin."""
        return self.confidence / self.count if self.count else 0.0

    @property
    def accuracy(self) -> float:
        """0 in an empty bin."""
        return self.right / self.count if self.count else 0.0


def bin_of(confidence: float) -> int:
    """The index of the bin of a confidence from 0 to 1; 1 is in the last."""
    return min(int(confidence * BINS), BINS - 1)


def bins_of(judged: Iterable[tuple[float, bool]]) -> tuple[Bin, ...]:
    """The ten bins of judged decisions, given as (confidence, whether it was right)."""
    bins = [Bin(index) for index in range(BINS)]
    for confidence, right in judged:
        old = bins[bin_of(confidence)]
        bins[old.index] = Bin(
            old.index,
            old.count + 1,
            old.right + right,
            old.confidence + confidence,
            old.misplaced + (0.0 if right else confidence),
        )
    return tuple(bins)


@dataclass(frozen=True, slots=True)
class Stats:
    """How good decisions were. `bins` has all ten, in order."""

    decisions: int
    with_outcome: int
    succeeded: int
    bins: Sequence[Bin]

    @property
    def judged(self) -> int:
        return sum(bin.count for bin in self.bins)

    @property
    def right(self) -> int:
        return sum(bin.right for bin in self.bins)

    @property
    def accuracy(self) -> float:
        """The share of judged decisions that was right; 0 when nothing was judged."""
        return self.right / self.judged if self.judged else 0.0

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over the bins, from 0 to 1; 0 when nothing was judged."""
        gaps = (bin.count * abs(bin.mean_confidence - bin.accuracy) for bin in self.bins)
        return sum(gaps) / self.judged if self.judged else 0.0

    @property
    def regret(self) -> float:
        """The mean confidence wrongly placed, from 0 to 1; 0 when nothing was judged."""
        return sum(bin.misplaced for bin in self.bins) / self.judged if self.judged else 0.0


# Working memory.


@dataclass(frozen=True, slots=True)
class Context:
    """
    Facts under a key, for a while.

    Attributes:
        value: As encoded by whoever put it; memory does not look inside.
    """

    key: str
    value: bytes
    time_to_live: timedelta
    expire_time: datetime
