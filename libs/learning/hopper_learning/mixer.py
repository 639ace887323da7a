"""
The mixer: how far to believe each expert, by how well its target is known and how sure the text lets anyone be.

Log-linear over the experts' log-probabilities: a weight for each expert and each bucket of how many lessons the
target has had, a bias for each bucket, and a sharpness that depends on how much of the text is familiar. Learned on
the log loss of what the experts said *before* they saw the truth, which is what makes its softmax a probability that
can be believed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles, Indices, softmax
from hopper_learning.snapshot import State

EXPERTS: Final = ("nb", "linear", "mean", "ridge", "name")
BOUNDS: Final = np.array([0.5, 2.5, 9.5, 29.5])
"""Lessons of a target that part one bucket from the next: 0, 1-2, 3-9, 10-29, 30 and more."""
BUCKETS: Final = len(BOUNDS) + 1
CONTEXT: Final = 3
"""What the sharpness depends on: a constant, the nearest mean, the share of known words."""

_RATE: Final = 0.02
_START: Final = 1.0


class Mixer:
    """Weights that begin as shipped and are learned from there."""

    def __init__(self, weights: Doubles, bias: Doubles) -> None:
        self.weights = weights.copy()
        self.bias = bias.copy()
        self.sharpness: Doubles = np.zeros(CONTEXT)
        self.weight_squares: Doubles = np.full(weights.shape, _START)
        self.bias_squares: Doubles = np.full(bias.shape, _START)
        self.sharpness_squares: Doubles = np.full(CONTEXT, _START)

    def mix(self, opinions: Doubles, buckets: Indices, context: Doubles) -> Doubles:
        """Probabilities from *opinions*, one row of log-probabilities an expert, one column a target."""
        return softmax(self._blend(opinions, buckets) * self._sharpness(context))

    def learn(self, opinions: Doubles, buckets: Indices, context: Doubles, place: int, weight: float) -> None:
        """One step towards the target at *place* among the columns of *opinions*."""
        blend = self._blend(opinions, buckets)
        sharpness = self._sharpness(context)
        slope = softmax(blend * sharpness)
        slope[place] -= 1.0
        slope *= weight
        by_sharpness = float((slope * blend).sum()) * sharpness * context
        slope *= sharpness
        by_weight = np.zeros_like(self.weights)
        by_bias = np.zeros_like(self.bias)
        for bucket in range(BUCKETS):
            inside = slope * (buckets == bucket)
            by_weight[:, bucket] = (opinions * inside).sum(axis=1)
            by_bias[bucket] = inside.sum()
        _descend(self.weights, self.weight_squares, by_weight, _RATE)
        _descend(self.bias, self.bias_squares, by_bias, _RATE)
        _descend(self.sharpness, self.sharpness_squares, by_sharpness, _RATE)

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "sharpness": self.sharpness,
            "weight_squares": self.weight_squares,
            "bias_squares": self.bias_squares,
            "sharpness_squares": self.sharpness_squares,
        }

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.weights = state["weights"]
        self.bias = state["bias"]
        self.sharpness = state["sharpness"]
        self.weight_squares = state["weight_squares"]
        self.bias_squares = state["bias_squares"]
        self.sharpness_squares = state["sharpness_squares"]

    def _blend(self, opinions: Doubles, buckets: Indices) -> Doubles:
        return np.asarray((opinions * self.weights[:, buckets]).sum(axis=0) + self.bias[buckets], np.float64)

    def _sharpness(self, context: Doubles) -> float:
        return float(np.exp(np.clip((self.sharpness * context).sum(), -2.0, 2.0)))


def _descend(values: Doubles, squares: Doubles, gradient: Doubles, rate: float) -> None:
    squares += gradient * gradient
    values -= rate * gradient / np.sqrt(squares) * 4.0


def shipped() -> tuple[Doubles, Doubles]:
    """The weights and biases a fresh mixer begins with."""
    #                   0    1-2   3-9  10-29  30+
    weights = np.array(
        [
            [0.05, 0.25, 0.35, 0.40, 0.40],  # nb
            [0.05, 0.25, 0.40, 0.50, 0.60],  # linear
            [0.50, 0.50, 0.40, 0.30, 0.20],  # mean
            [0.10, 0.30, 0.30, 0.30, 0.30],  # ridge
            [0.80, 0.60, 0.50, 0.40, 0.30],  # name
        ]
    )
    return weights, np.zeros(BUCKETS)
