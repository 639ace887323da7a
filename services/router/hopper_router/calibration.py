"""
What the word of an adviser has proved to be worth: from how sure it says it is to how often it is right. Pure.

An LLM that says 0.9 may be right nine times in ten, or five; thresholds mean what they say only if somebody looks. For
each model, p = sigmoid(slope * logit(stated) + shift) is fitted to what became of its choices (Platt scaling), most
likely under a prior that takes it at its word: slope 1 and shift 0, with the spreads below. So the first outcomes move
little, some dozens move as far as they speak, and a model that says the same number each time is corrected too.
Feedback counts 1, a task that succeeded where it went a half, as in learning; nothing else counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from hopper_router.replay import Verdict

OF_FEEDBACK: Final = 1.0
OF_AN_END: Final = 0.5
SLOPE_SPREAD: Final = 0.25
SHIFT_SPREAD: Final = 0.5
LEAST_SLOPE: Final = 0.05
"""Surer is never taken for less sure."""
_EDGE: Final = 0.005
"""Nobody is taken to be surer than this leaves; a logit has to be finite."""
_STEPS: Final = 25


class Given(NamedTuple):
    """
    What an adviser chose for a task.

    Attributes:
        stage: `llm` or `sage`.
        stated: How sure it said it was.
        decision: The last decision about the task that its choice went into.
        decided: Where that sent the task; "": nowhere.
    """

    stage: str
    model: str
    project: str
    stated: float
    decision: str
    decided: str


class Proof(NamedTuple):
    """Whether an adviser that said it was so sure was right, and how much that counts."""

    stated: float
    right: bool
    weight: float


class Scale(NamedTuple):
    """What one model's word is worth; one that nothing is known of is taken at its word."""

    slope: float = 1.0
    shift: float = 0.0

    def of(self, stated: float) -> float:
        """How likely it is right."""
        if self == TAKEN_AT_ITS_WORD:
            return stated
        return _sigmoid(self.slope * _logit(stated) + self.shift)


TAKEN_AT_ITS_WORD: Final = Scale()


def proof(given: Given, verdict: Verdict) -> Proof | None:
    """What a verdict on a decision says of a choice that went into it; None: nothing."""
    agreed = given.project == given.decided
    if verdict.right is None:
        return Proof(given.stated, agreed, OF_AN_END) if verdict.well and given.decided else None
    if verdict.nobody:
        return Proof(given.stated, False, OF_FEEDBACK)
    belongs = given.decided if verdict.right else verdict.project
    if belongs:
        return Proof(given.stated, given.project == belongs, OF_FEEDBACK)
    return Proof(given.stated, False, OF_FEEDBACK) if agreed else None


def scales(given: Iterable[Given], verdicts: Mapping[str, Verdict]) -> dict[tuple[str, str], Scale]:
    """What the word of each is worth, by stage and model."""
    proofs: dict[tuple[str, str], list[Proof]] = defaultdict(list)
    for one in given:
        verdict = verdicts.get(one.decision)
        said = proof(one, verdict) if verdict is not None else None
        if said is not None:
            proofs[one.stage, one.model].append(said)
    return {who: fitted(them) for who, them in proofs.items()}


def fitted(proofs: Iterable[Proof]) -> Scale:
    """The scale that they speak for, starting from its word."""
    them = list(proofs)
    if not them:
        return TAKEN_AT_ITS_WORD
    x = np.array([[_logit(one.stated), 1.0] for one in them])
    right = np.array([one.right for one in them], dtype=float)
    weight = np.array([one.weight for one in them])
    prior, precision = np.array([1.0, 0.0]), np.diag([SLOPE_SPREAD**-2, SHIFT_SPREAD**-2])
    at = prior.copy()
    for _ in range(_STEPS):  # Newton's: the objective is strictly convex, for the prior is
        p = 1 / (1 + np.exp(-(x @ at)))
        slope = x.T @ (weight * (p - right)) + precision @ (at - prior)
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + precision
        step = np.linalg.solve(curve, slope)
        at = at - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-9))
        if float(np.abs(step).max()) < 1e-6:
            break
    return Scale(max(float(at[0]), LEAST_SLOPE), float(at[1]))


def _logit(share: float) -> float:
    inside = min(max(share, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
