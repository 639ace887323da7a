"""
Softmax regression on words and vector, by AdaGrad: one sparse step a lesson.

What naive Bayes cannot do: words that come together are not counted twice. A new target is a column of zeros.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles, Floats, Indices, compacted, grown, softmax
from hopper_learning.snapshot import Sparse, State

_RATE: Final = 1.0
_START: Final = 0.1
_BIAS_RATE: Final = 0.3
_VECTOR: Final = 2.0
_SMALL: Final = 1e-4


class Linear:
    """Weights of (word, target) and (vector, target), each with its sum of squared gradients."""

    def __init__(self, width: int) -> None:
        self.weights: Floats = np.zeros((1024, 8), np.float32)
        self.squares: Floats = np.full((1024, 8), _START, np.float32)
        self.dense: Floats = np.zeros((width, 8), np.float32)
        self.dense_squares: Floats = np.full((width, 8), _START, np.float32)
        self.bias: Doubles = np.zeros(8)
        self.bias_squares: Doubles = np.ones(8)

    def widen(self, columns: int) -> None:
        """Make room for *columns* targets."""
        self.weights = grown(self.weights, (1, columns))
        self.squares = grown(self.squares, (1, columns), _START)
        self.dense = grown(self.dense, (0, columns))
        self.dense_squares = grown(self.dense_squares, (0, columns), _START)
        self.bias = grown(self.bias, (columns,))
        self.bias_squares = grown(self.bias_squares, (columns,), 1.0)

    def heighten(self, rows: int) -> None:
        """Make room for *rows* words."""
        self.weights = grown(self.weights, (rows, 1))
        self.squares = grown(self.squares, (rows, 1), _START)

    def keep(self, rows: Indices) -> None:
        """Forget all words but those of *rows*."""
        self.weights = compacted(self.weights, rows)
        self.squares = compacted(self.squares, rows, _START)

    def scores(self, rows: Indices, values: Floats, vector: Floats | None, columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        score = self.bias[:columns].copy()
        if len(rows):
            score += np.einsum("i,ij->j", values, self.weights[:, :columns].take(rows, axis=0))
        if vector is not None:
            score += np.einsum("i,ij->j", vector * np.float32(_VECTOR), self.dense[:, :columns])
        return score

    def learn(
        self, rows: Indices, values: Floats, vector: Floats | None, gradient: Doubles, columns: Indices
    ) -> None:
        """One step against *gradient*, given for each of *columns*."""
        matter = np.abs(gradient) > _SMALL
        columns, gradient = columns[matter], gradient[matter]
        if not len(columns):
            return
        self.bias_squares[columns] += gradient * gradient
        self.bias[columns] -= _RATE * _BIAS_RATE * gradient / np.sqrt(self.bias_squares[columns])
        slope = gradient.astype(np.float32)
        if len(rows):
            cells = np.ix_(rows, columns)
            _step(self.weights, self.squares, cells, values, slope)
        if vector is not None:
            _step(self.dense, self.dense_squares, (slice(None), columns), vector * np.float32(_VECTOR), slope)

    def drop(self, column: int) -> None:
        """Forget a target."""
        self.weights[:, column] = 0
        self.squares[:, column] = _START
        self.dense[:, column] = 0
        self.dense_squares[:, column] = _START
        self.bias[column] = 0
        self.bias_squares[column] = 1

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {
            "weights": Sparse(self.weights, 0.0),
            "squares": Sparse(self.squares, _START),
            "dense": Sparse(self.dense, 0.0),
            "dense_squares": Sparse(self.dense_squares, _START),
            "bias": self.bias,
            "bias_squares": self.bias_squares,
        }

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.weights = state["weights"]
        self.squares = state["squares"]
        self.dense = state["dense"]
        self.dense_squares = state["dense_squares"]
        self.bias = state["bias"]
        self.bias_squares = state["bias_squares"]


def _step(weights: Floats, squares: Floats, cells: tuple[object, ...], values: Floats, slope: Floats) -> None:
    change = values[:, None] * slope
    sums = squares[cells] + change * change  # type: ignore[index]
    squares[cells] = sums  # type: ignore[index]
    weights[cells] -= np.float32(_RATE) * change / np.sqrt(sums)  # type: ignore[index]


def ascent(scores: Doubles, active: Indices, column: int) -> Doubles:
    """The gradient of the log loss of *column* among *active*."""
    gradient = softmax(scores[active])
    gradient[active == column] -= 1.0
    return gradient


def descent(scores: Doubles, active: Indices, column: int) -> Doubles:
    """The gradient of the loss of *not* being *column* among *active*."""
    chances = softmax(scores[active])
    here = active == column
    chance = min(float(chances[here].sum()), 0.999)
    gradient = -chance * chances / (1 - chance)
    gradient[here] = chance
    return gradient
