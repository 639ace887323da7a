"""
What decisions teach of how much each factor should count, where what was learned takes part in deciding. Pure.

    decision's candidates ─► weighed ─► episode ─► memory ─► Lesson ─► advantage ─► `hopper_learning.FactorWeights`

Only these factors have weights that are learned. Rules stand in front by what the policy says; words, names and meaning
are weighed by the model itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from hopper_learning.factor_weights import Advantage, FactorWeights, Range
from hopper_router.model import Lesson, Truth, Weighed

SHARPNESS: Final = 0.15
"""A lead of this much in the score makes a candidate e times as likely."""
RANGES: Final[Mapping[str, Range]] = MappingProxyType(
    {
        "tags": Range(0.0, 0.3),
        "capability": Range(0.0, 0.3),
        "workload": Range(0.015, 0.3),
        "velocity": Range(0.005, 0.15),
        "cost": Range(0.005, 0.15),
        "sla": Range(0.005, 0.15),
        "boost": Range(1.0, 2.0),
        "deadline": Range(0.9, 1.8),
        "hours": Range(0.9, 1.8),
    }
)
"""
Beside what was learned, circumstances order at first only those who are about equally likely, and tags and
capabilities, which it was learned from, do not count again; a deadline that cannot be kept outweighs most, and so do
closed doors where something is urgent.
"""


class _Factor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def weight(self) -> float: ...


class _Candidate(Protocol):
    @property
    def project(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def factors(self) -> Collection[_Factor]: ...


def fresh_weights() -> FactorWeights:
    """The weights before anything was learned."""
    return FactorWeights(RANGES, SHARPNESS)


def weighed(candidates: Sequence[_Candidate]) -> list[Weighed]:
    """
    What a decision's candidates had of the factors whose weights are learned, where they differ in them.

    Args:
        candidates: As they are recorded, in our words or the contract's.

    Returns:
        In the same order; nothing, if there is nothing to learn of it.
    """
    if len(candidates) < 2 or not any(factor.name == "learned" for factor in candidates[0].factors):  # two
        return []
    rows = [{factor.name: factor for factor in candidate.factors} for candidate in candidates]
    telling = [
        name
        for name in RANGES
        if all(name in row for row in rows) and len({row[name].value for row in rows}) > 1
    ]
    if not telling:
        return []
    return [
        Weighed(
            candidate.project,
            candidate.score - sum(row[name].value * row[name].weight for name in telling),
            tuple([(name, row[name].value) for name in telling]),
        )
        for candidate, row in zip(candidates, rows, strict=True)
    ]


def advantage(lesson: Lesson) -> Advantage | None:
    """What the one that a lesson's task was sent to had over the others; None: there is nothing to compare."""
    chosen = next((each for each in lesson.candidates if each.project == lesson.sent_to), None)
    if chosen is None or len(lesson.candidates) < 2:  # two
        return None
    count = len(lesson.candidates)
    means = dict.fromkeys(RANGES, 0.0)
    for each in lesson.candidates:
        for name, value in each.factors:
            if name in means:
                means[name] += value / count
    ahead = chosen.rest - max(each.rest for each in lesson.candidates if each is not chosen)
    apart = {name: value - means[name] for name, value in chosen.factors if name in means}
    return Advantage(apart, ahead / SHARPNESS)


def went_well(lesson: Lesson) -> bool | None:
    """Whether the decision that a lesson is about went well; None: it does not say."""
    match lesson.truth:
        case Truth.RIGHT:
            return lesson.project == lesson.sent_to
        case Truth.WRONG | Truth.LATE | Truth.FAILED:
            return False
        case Truth.NONE:
            return None
