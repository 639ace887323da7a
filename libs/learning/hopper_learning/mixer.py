"""
The mixer: how far to believe each expert, by how well its target is known.

Log-linear over the experts' log-probabilities: a weight for each expert and each bucket of how many lessons the target
has had, and a bias for each bucket. Learned on the log loss of what the experts said *before* they saw the truth, which
is what makes its softmax a probability that can be believed.
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
SHIPPED: Final = np.array(
    [
        [0.05, 0.15, 0.20, 0.20, 0.20],  # nb
        [0.05, 0.20, 0.30, 0.40, 0.45],  # linear
        [0.55, 0.50, 0.40, 0.30, 0.20],  # mean
        [0.05, 0.20, 0.25, 0.20, 0.10],  # ridge
        [0.65, 0.40, 0.35, 0.20, 0.15],  # name
    ]
)
"""Where the weights begin: about what they become, on average, on streams of several kinds."""
SEMANTIC: Final = np.array([EXPERTS.index("mean"), EXPERTS.index("name")], np.intp)
"""The experts that go by what targets are called and what they and their tasks mean; the others count words."""

_RATE: Final = 0.08
_START: Final = 1.0


class Mixer:
    """Weights that begin as shipped and are learned from there."""

    def __init__(self) -> None:
        self.weights: Doubles = SHIPPED.copy()
        self.bias: Doubles = np.zeros(BUCKETS)
        self.weight_squares: Doubles = np.full(SHIPPED.shape, _START)
        self.bias_squares: Doubles = np.full(BUCKETS, _START)

    def mix(self, opinions: Doubles, buckets: Indices) -> Doubles:
        """Probabilities from *opinions*, one row of log-probabilities an expert, one column a target."""
        blend = np.einsum("ij,ij->j", opinions, self.weights.take(buckets, axis=1))
        return softmax(blend + self.bias.take(buckets))

    def semantic(self, opinions: Doubles, buckets: Indices) -> Doubles:
        """What the experts of `SEMANTIC` alone add to the mix, as log-probabilities."""
        weights = self.weights.take(SEMANTIC, axis=0).take(buckets, axis=1)
        blend = np.einsum("ij,ij->j", opinions.take(SEMANTIC, axis=0), weights)
        return np.asarray(blend - np.logaddexp.reduce(blend), np.float64)

    def learn(self, opinions: Doubles, buckets: Indices, chances: Doubles, place: int, weight: float) -> None:
        """One step towards the target at *place*, where `mix` said *chances*."""
        slope = chances * weight
        slope[place] -= weight
        belongs = (buckets[:, None] == np.arange(BUCKETS)) * slope[:, None]
        _descend(self.weights, self.weight_squares, np.einsum("ij,jk->ik", opinions, belongs))
        np.maximum(self.weights, 0.0, out=self.weights)  # nobody's word is turned into its opposite
        _descend(self.bias, self.bias_squares, belongs.sum(axis=0))

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "weight_squares": self.weight_squares,
            "bias_squares": self.bias_squares,
        }

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.weights = state["weights"]
        self.bias = state["bias"]
        self.weight_squares = state["weight_squares"]
        self.bias_squares = state["bias_squares"]


def _descend(values: Doubles, squares: Doubles, gradient: Doubles) -> None:
    squares += gradient * gradient
    values -= _RATE * gradient / np.sqrt(squares)
