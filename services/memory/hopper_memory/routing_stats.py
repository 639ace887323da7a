"""
How good decisions were, and when: the score of `model`, parted by time, by strategy, and by what was taken for what.

Sums again, so that a database can make them; see `score_sql`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from hopper_memory.model import Outcome, Stats


@dataclass(frozen=True, slots=True)
class Score:
    """
    How some decisions turned out, in sums.

    Attributes:
        confidence: Sum of the confidence of those that were judged.
    """

    decisions: int = 0
    with_outcome: int = 0
    succeeded: int = 0
    judged: int = 0
    right: int = 0
    confidence: float = 0.0

    @property
    def accuracy(self) -> float:
        """The share of those judged that was right; 0 when nothing was judged."""
        return self.right / self.judged if self.judged else 0.0

    @property
    def mean_confidence(self) -> float:
        """Of those judged; 0 when nothing was."""
        return self.confidence / self.judged if self.judged else 0.0


class Period(NamedTuple):
    """The decisions from *start* until before *end*."""

    start: datetime
    end: datetime
    score: Score


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many tasks were sent to one place and belonged in another; "": to nobody."""

    chosen: str
    right: str
    count: int


@dataclass(frozen=True, slots=True)
class RoutingStats:
    """
    Decisions of some days.

    Attributes:
        periods: All of the same length, the oldest first; none where there are no decisions.
        strategies: What decided, the most frequent first.
        confusions: The most frequent first, as many as were asked for.
        confused: All of them: mistakes for which it is known where the task belonged.
    """

    total: Stats
    periods: Sequence[Period] = ()
    strategies: Sequence[tuple[str, Score]] = ()
    confusions: Sequence[Confusion] = ()
    confused: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What is known of how a decision turned out.

    Attributes:
        right: None: nobody said.
        project: Where the task belonged; "": not known, or nowhere.
        nobody: It belonged to nobody.
        outcome: None: it has not ended.
    """

    decision: str
    right: bool | None = None
    project: str = ""
    nobody: bool = False
    outcome: Outcome | None = None
