"""
How the tasks of one policy would go, told from the record of another: numpy alone, no randomness but a seed's.

For each task the record has a choice and how it went, 1 well or 0 not; the other policy has a choice of its own. What
that would have come to is

- **known**, where both choose the same, or where feedback names the right place;
- else **modelled**, between two readings: how sure the record is of that choice, and how sure the other policy is; each
  corrected by how far such confidence was off for choices whose outcome is known, per project and bucket, drawn to the
  bucket's and that to everybody's. The first reading is too low for a policy that sees more than the recorded one, the
  second too high for one that only thinks so. Where the outcome of the other choice is known for some tasks that part,
  they draw both to what is true, by the other policy's confidence and by how the recorded choice went.

Decisions are deterministic, so nothing but ties is left to chance: inverse propensity alone would have nothing to say
of tasks that part. Where a tie was broken by hash among k candidates and the other policy has no tie, the recorded
choice had probability p = 1 / k, and the estimate is doubly robust: model + [same] / p * (outcome - model), right if
either the model or the chance is (Dudik, Langford, Li 2011). With p = 1 this is the direct method, with the outcome
itself wherever both agree.

The interval is a percentile bootstrap over tasks. Each sample makes the model anew, takes a place between the two
readings, and draws what is modelled as an outcome: so it holds for tasks like these, and for these.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

BUCKETS: Final = 10
SAMPLES: Final = 500
TAIL: Final = 1.5
"""Percent left out at each end; 2.5 would be right if percentile intervals held as often as they say."""
_TOWARDS_BUCKET: Final = 5.0
_TOWARDS_ALL: Final = 2.0
"""So many imagined tasks draw a share to the one above it."""
_BETWEEN: Final = 0.5
_LEAST_CHANCE: Final = 0.1
"""No recorded choice counts more than ten times."""


class Method(enum.Enum):
    """How the estimate was made."""

    KNOWN = "KNOWN"
    DIRECT = "DIRECT"
    DOUBLY_ROBUST = "DOUBLY_ROBUST"


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """
    Recorded choices, and those of another policy; every array has one entry a task.

    Attributes:
        outcomes: How it went: 1 well, 0 not.
        projects, confidences: Which choice is recorded, as a number from 0, and how sure it was.
        chances: How likely the recorded choice was, above 0 up to 1.
        same: Whether the other policy chooses the same.
        known: How the other choice would have gone, where that is known; else NaN.
        others: The other choice, as a number of the same kind.
        others_recorded: How sure the record is of the other choice; 0 where it says nothing of it.
        others_confidences: How sure the other policy is of its choice.
    """

    outcomes: Doubles
    projects: Indices
    confidences: Doubles
    chances: Doubles
    same: Flags
    known: Doubles
    others: Indices
    others_recorded: Doubles
    others_confidences: Doubles

    def __len__(self) -> int:
        return len(self.outcomes)


class Estimate(NamedTuple):
    """
    How the other policy's tasks would go.

    Attributes:
        value: The share that would go well; with 95 % confidence from `lower` to `upper`.
        recorded: The share that did.
        gain: `value - recorded`, and where it lies.
        modelled: Of how many tasks the outcome had to be modelled.
        expected: Of each task, how likely it would go well.
    """

    value: float
    lower: float
    upper: float
    recorded: float
    gain: float
    gain_lower: float
    gain_upper: float
    modelled: int
    method: Method
    expected: Doubles


def estimate(log: Log, *, seed: int = 0, samples: int = SAMPLES) -> Estimate:
    """
    How the tasks of the other policy would go.

    Args:
        log: At least one task.
        samples: Of the bootstrap.
    """
    if not len(log):
        raise ValueError("there is nothing to estimate from: the log is empty")
    cells = _Cells(log)
    values, expected = cells.values(np.ones(len(log)), _BETWEEN)
    rng = np.random.default_rng(seed)
    found = np.array([cells.sampled(rng) for _ in range(samples)])
    lower, upper = np.percentile(found[:, 0], [TAIL, 100.0 - TAIL])
    gain_lower, gain_upper = np.percentile(found[:, 1], [TAIL, 100.0 - TAIL])
    value, recorded = float(values.mean()), float(log.outcomes.mean())
    value = min(max(value, 0.0), 1.0)
    modelled = int(cells.modelled.sum())
    weighed = bool((cells.modelled & (log.chances < 1.0)).any())
    method = Method.KNOWN if not modelled else Method.DOUBLY_ROBUST if weighed else Method.DIRECT
    return Estimate(
        value,
        min(max(float(lower), 0.0), value),
        max(min(float(upper), 1.0), value),
        recorded,
        value - recorded,
        min(float(gain_lower), value - recorded),
        max(float(gain_upper), value - recorded),
        modelled,
        method,
        expected,
    )


class _Cells:
    """The log in the cells of the model, from which estimates are made for any weights of the tasks."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._chance = np.maximum(log.chances, _LEAST_CHANCE)
        told = ~np.isnan(log.known)
        settled = told | (log.same & (log.chances >= 1.0))
        self._settled = settled
        self._known = np.where(told, log.known, log.outcomes)
        self.modelled: Flags = ~settled
        self._drawn = self.modelled & (log.chances >= 1.0)
        projects = int(max(log.projects.max(), log.others.max())) + 1
        self._recorded = _Reading(
            log.confidences, log.projects, log.outcomes, log.others_recorded, log.others, projects
        )
        self._own = _Reading(
            log.others_confidences, log.others, self._known, log.others_confidences, log.others, projects
        )
        self._agreed = (log.same | told).astype(np.float64)
        self._agreement = float(log.same.mean())
        # What parts, and is known all the same.
        self._parts = told & ~log.same
        self._stratum = _buckets(log.others_confidences) * 2 + (log.outcomes > 0.5)

    def values(self, weights: Doubles, between: float) -> tuple[Doubles, Doubles]:
        """
        What each task is worth, and how likely its other choice is to go well.

        Args:
            weights: How often each task counts.
            between: 0: as the record reads, 1: as the other policy does.
        """
        log = self._log
        recorded, own = self._recorded.read(weights), self._own.read(weights * self._agreed)
        parting = self._corrected((1.0 - between) * recorded + between * own, weights)
        # What is weighed by chance must not depend on how the recorded choice went.
        doubly = recorded + log.same / self._chance * (log.outcomes - recorded)
        weighed = log.chances < 1.0
        values = np.where(self._settled, self._known, np.where(weighed, doubly, parting))
        expected = np.where(self._settled, self._known, np.where(weighed, recorded, parting))
        return values, np.clip(expected, 0.0, 1.0)

    def sampled(self, rng: np.random.Generator) -> tuple[float, float]:
        """The value and the gain of one sample of the bootstrap."""
        count = len(self._log)
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        values, expected = self.values(weights, rng.random())
        values = np.where(self._drawn, rng.random(count) < expected, values)
        # One imagined task more, of which nothing is known: a few that went all alike do not make it certain.
        went = float(rng.random() < 0.5)
        would_go = went if rng.random() < self._agreement else float(rng.random() < 0.5)
        value = (float(weights @ values) + would_go) / (count + 1)
        gain = (float(weights @ (values - self._log.outcomes)) + would_go - went) / (count + 1)
        return value, gain

    def _corrected(self, model: Doubles, weights: Doubles) -> Doubles:
        """The model, drawn to what is known of tasks that part."""
        told = weights * self._parts
        size = 2 * BUCKETS
        count = np.bincount(self._stratum, told, minlength=size)[self._stratum]
        good = np.bincount(self._stratum, told * self._known, minlength=size)[self._stratum]
        corrected: Doubles = (good + _TOWARDS_BUCKET * model) / (count + _TOWARDS_BUCKET)
        return corrected


class _Reading:
    """
    Confidence as a model of outcomes: corrected by how far it was off in each bucket, and for each project there.

    Args:
        confidences, projects, outcomes: Of the choices it is corrected by.
        asked, asked_projects: Confidences of those that it is to speak of.
        count: Of all projects.
    """

    def __init__(
        self,
        confidences: Doubles,
        projects: Indices,
        outcomes: Doubles,
        asked: Doubles,
        asked_projects: Indices,
        count: int,
    ) -> None:
        self._off = outcomes - confidences
        self._bucket = _buckets(confidences)
        self._cell = self._bucket * count + projects
        self._asked = asked
        self._asked_cell = _buckets(asked) * count + asked_projects
        self._count = count

    def read(self, weights: Doubles) -> Doubles:
        """How likely each choice that is asked about is to go well, by choices that count so much."""
        whole = weights.sum()
        overall = float(weights @ self._off / whole) if whole else 0.0
        buckets = self._means(self._bucket, weights, np.full(BUCKETS, overall), _TOWARDS_ALL)
        cells = self._means(self._cell, weights, np.repeat(buckets, self._count), _TOWARDS_BUCKET)
        read: Doubles = np.clip(self._asked + cells[self._asked_cell], 0.0, 1.0)
        return read

    def _means(self, cells: Indices, weights: Doubles, prior: Doubles, strength: float) -> Doubles:
        count = np.bincount(cells, weights, minlength=len(prior))
        off = np.bincount(cells, weights * self._off, minlength=len(prior))
        means: Doubles = (off + strength * prior) / (count + strength)
        return means


def _buckets(confidences: Doubles) -> Indices:
    return np.minimum((confidences * BUCKETS).astype(np.intp), BUCKETS - 1)
