"""
How much each factor of a decision should count, learned from how decisions went.

    what the chosen had over the others, factor by factor ─► how likely it goes well ─► how it went
                                                   ▲                                      │
                                                   └────────── a small step ◄─────────────┘

A decision goes well with a chance whose log-odds are a sum: how often decisions go well at all, how far the chosen was
ahead in everything that is not learned here, and, for each factor, its weight times what the chosen had of it over the
mean of the candidates. Weights are learned on the log loss of that. So a factor gains weight if decisions went better
where the chosen had more of it, and not because the chosen had more of it: that is what its weight has brought about.

What keeps it from harm: weights begin as shipped and are drawn back there; they stay between 0 and a greatest value;
no lesson moves one by more than `MOST_STEP` of that, and no source, however often it speaks, by more than
`MOST_OF_A_SOURCE`. The same lessons in the same order give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from hopper_learning.errors import SnapshotCorrupt
from hopper_learning.snapshot import State

MOST_STEP: Final = 0.01
MOST_OF_A_SOURCE: Final = 0.25
"""Of the greatest value."""

_RATE: Final = 0.03
_DRAW: Final = 0.002
_USUAL: Final = 1.0
"""Log-odds of a good end, before anything is known: three in four."""
_FAR: Final = 5.0
_MOST_APART: Final = 4.0
_SOURCES_KEPT: Final = 1024
_HOLD: Final = ("usual", "ahead")
_STEP: Final = 0.02
_DIGITS: Final = 4


class Range(NamedTuple):
    """Where a weight begins, and the most it may become; the least is 0."""

    shipped: float
    most: float


class Weight(NamedTuple):
    """A weight as it is used, and how many lessons it was learned from; 0: it is the shipped one."""

    value: float
    lessons: int


class Advantage(NamedTuple):
    """
    What the chosen candidate had over the mean of all.

    Attributes:
        factors: Of each factor that is learned; who is missing made no difference.
        ahead: Of everything else, in log-odds.
    """

    factors: Mapping[str, float]
    ahead: float


class FactorWeights:
    """
    The weights of some factors.

    Args:
        ranges: Of each factor that is learned.
        unit: A score that is greater by so much makes a candidate e times as likely.
    """

    def __init__(self, ranges: Mapping[str, Range], unit: float) -> None:
        self._ranges = dict(ranges)
        self._unit = unit
        self._values = {name: range_.shipped / range_.most for name, range_ in ranges.items()}
        self._squares = dict.fromkeys((*ranges, *_HOLD), 1.0)
        self._hold = {"usual": _USUAL, "ahead": 0.0}
        self._lessons = dict.fromkeys(ranges, 0)
        self._moved: dict[str, dict[str, float]] = {}

    @property
    def weights(self) -> Mapping[str, Weight]:
        """What to decide by, in steps, so that it stays the same over some lessons; of the lessons, the first digit."""
        return {
            name: Weight(_stepped(value, self._ranges[name]), _first_digit(self._lessons[name]))
            for name, value in self._values.items()
        }

    def expected(self, advantage: Advantage) -> float:
        """How likely a decision goes well."""
        odds = self._hold["usual"] + self._hold["ahead"] * _ahead(advantage)
        for name, slope in self._slopes(advantage).items():
            odds += self._values[name] * slope
        return 1.0 / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))

    def learn(self, advantage: Advantage, *, well: bool, source: str = "", weight: float = 1.0) -> None:
        """
        Learn how a decision went.

        Args:
            well: Late is not well.
            weight: How much the lesson counts, 0 to 1.
        """
        error = (self.expected(advantage) - well) * min(max(weight, 0.0), 1.0)
        moved = self._moved_by(source)
        for name, slope in self._slopes(advantage).items():
            range_, value = self._ranges[name], self._values[name]
            gradient = error * slope + _DRAW * (value - range_.shipped / range_.most)
            step = min(max(self._step(name, gradient), -MOST_STEP), MOST_STEP)
            before = moved.get(name, 0.0)
            wanted = min(max(before + step, -MOST_OF_A_SOURCE), MOST_OF_A_SOURCE) - before
            self._values[name] = min(max(value + wanted, 0.0), 1.0)
            moved[name] = before + (self._values[name] - value)
            self._lessons[name] += 1
        self._hold["usual"] += self._step("usual", error)
        self._hold["ahead"] += self._step("ahead", error * _ahead(advantage))

    def _slopes(self, advantage: Advantage) -> dict[str, float]:
        """How far each factor moves the log-odds, were its weight the greatest; those that do, in a fixed order."""
        return {
            name: min(max(apart, -_MOST_APART), _MOST_APART) * range_.most / self._unit
            for name, range_ in self._ranges.items()
            if (apart := advantage.factors.get(name, 0.0)) and math.isfinite(apart)
        }

    def _step(self, name: str, gradient: float) -> float:
        self._squares[name] += gradient * gradient
        return -_RATE * gradient / math.sqrt(self._squares[name])

    def _moved_by(self, source: str) -> dict[str, float]:
        """How far a source has moved each weight, now the one heard last."""
        moved = self._moved.pop(source, {})
        self._moved[source] = moved
        if len(self._moved) > _SOURCES_KEPT:
            del self._moved[next(iter(self._moved))]
        return moved

    def state(self) -> State:
        """All there is to know, as JSON has it."""
        return {
            "values": dict(self._values),
            "squares": dict(self._squares),
            "hold": dict(self._hold),
            "lessons": dict(self._lessons),
            "moved": [[source, dict(moved)] for source, moved in self._moved.items()],
        }

    def restore(self, state: State) -> None:
        """
        Go on from *state*; factors that it does not know begin as shipped, others are forgotten.

        Raises:
            SnapshotCorrupt: It is none; nothing is changed.
        """
        try:
            values = self._known(self._values, state["values"])
            squares = self._known(self._squares, state["squares"])
            hold = self._known(self._hold, state["hold"])
            lessons = {name: int(state["lessons"].get(name, 0)) for name in self._lessons}
            moved = {
                str(source): {name: float(far[name]) for name in self._values if name in far}
                for source, far in state["moved"]
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SnapshotCorrupt from None
        if not all(map(math.isfinite, (*values.values(), *squares.values(), *hold.values()))):
            raise SnapshotCorrupt
        self._values = {name: min(max(value, 0.0), 1.0) for name, value in values.items()}
        self._squares = {name: max(value, 1.0) for name, value in squares.items()}
        self._hold, self._lessons, self._moved = hold, lessons, moved

    @staticmethod
    def _known(mine: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
        return {name: float(theirs.get(name, value)) for name, value in mine.items()}


def _stepped(value: float, range_: Range) -> float:
    """A weight, by so many whole steps greater or less than the shipped one."""
    steps = round((value - range_.shipped / range_.most) / _STEP)
    return round(min(max(range_.shipped + steps * _STEP * range_.most, 0.0), range_.most), _DIGITS)


def _first_digit(count: int) -> int:
    scale = int(10 ** (len(str(count)) - 1))
    return count // scale * scale


def _ahead(advantage: Advantage) -> float:
    """Between -1 and 1: who is sure already is not made surer by being far ahead."""
    return min(max(advantage.ahead, -_FAR), _FAR) / _FAR if not math.isnan(advantage.ahead) else 0.0
