"""
Softmax regression on words, pieces of words and vector together, by AdaGrad: one sparse step a lesson.

What naive Bayes cannot do: what comes together is not counted twice. A new target is a column of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hopper_learning.arrays import Doubles, Floats, Indices, compacted, grown, scale, softmax
from hopper_learning.example import Example
from hopper_learning.pieces import ROWS, Pieces
from hopper_learning.snapshot import Sparse, State

_RATE: Final = 1.0
_BIAS_RATE: Final = 0.3
_START: Final = np.float32(0.1)
_SMALL: Final = 1e-3
_BODY: Final = 0.7
_VECTOR: Final = np.float32(0.7)


class Table:
    """Weights of (row, target), with the sums of their squared gradients."""

    def __init__(self, height: int) -> None:
        self.weights: Floats = np.zeros((height, 8), np.float32)
        self.squares: Floats = np.zeros((height, 8), np.float32)

    def reach(self, rows: int, columns: int) -> None:
        """Make room for *rows* and *columns*."""
        self.weights = grown(self.weights, (rows, columns))
        self.squares = grown(self.squares, (rows, columns))

    def keep(self, rows: Indices) -> None:
        """Forget all rows but these, which become the first."""
        self.weights = compacted(self.weights, rows)
        self.squares = compacted(self.squares, rows)

    def scores(self, rows: Indices, values: Floats, columns: int) -> Floats:
        """The weighted sum of some rows."""
        # Whole rows first: `take` of a part of each would copy the whole table to begin with.
        found = self.weights if len(rows) == len(self.weights) else self.weights.take(rows, axis=0)
        return np.asarray(np.einsum("i,ij->j", values, found[:, :columns]), np.float32)

    def step(self, rows: Indices, values: Floats, slope: Floats, columns: Indices) -> None:
        """Move some rows against *slope*, given for each of *columns*."""
        change = values[:, None] * slope
        cells = rows[:, None] * self.weights.shape[1] + columns
        squares = self.squares.reshape(-1).take(cells) + change * change
        self.squares.reshape(-1)[cells] = squares
        self.weights.reshape(-1)[cells] -= np.float32(_RATE) * change / np.sqrt(squares + _START)

    def drop(self, column: int) -> None:
        """Forget a target."""
        self.weights[:, column] = 0
        self.squares[:, column] = 0

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"weights": Sparse(self.weights, 0.0), "squares": Sparse(self.squares, 0.0)}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.weights, self.squares = state["weights"], state["squares"]


class Input(NamedTuple):
    """Rows of a table, and how much each counts."""

    table: Table
    rows: Indices
    values: Floats


class Linear:
    """Three tables under one softmax."""

    def __init__(self, width: int) -> None:
        self.words = Table(1024)
        self.pieces = Table(ROWS)
        self.vector = Table(width)
        self.bias: Doubles = np.zeros(8)
        self.bias_squares: Doubles = np.ones(8)
        self.piece_frequency: Floats = np.zeros(ROWS, np.float32)
        self.lessons = 0
        self._all = np.arange(width)

    def widen(self, columns: int) -> None:
        """Make room for *columns* targets."""
        for table in self._tables():
            table.reach(1, columns)
        self.bias = grown(self.bias, (columns,))
        self.bias_squares = grown(self.bias_squares, (columns,), 1.0)

    def inputs(self, example: Example) -> Sequence[Input]:
        """What a text puts in: words, pieces and vector, each brought to a length."""
        pieces = example.reading.pieces
        given = [
            Input(self.words, example.rows, example.values),
            Input(self.pieces, pieces.rows, self._weigh(pieces)),
        ]
        if example.vector is not None:
            given.append(Input(self.vector, self._all, example.vector * _VECTOR))
        return [each for each in given if len(each.rows)]

    def scores(self, inputs: Sequence[Input], columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        score = self.bias[:columns].copy()
        for table, rows, values in inputs:
            score += table.scores(rows, values, columns)
        return score

    def learn(self, inputs: Sequence[Input], gradient: Doubles, columns: Indices) -> None:
        """One step against *gradient*, given for each of *columns*."""
        matter = np.abs(gradient) > _SMALL
        columns, gradient = columns[matter], gradient[matter]
        if not len(columns):
            return
        self.bias_squares[columns] += gradient * gradient
        self.bias[columns] -= _RATE * _BIAS_RATE * gradient / np.sqrt(self.bias_squares[columns])
        slope = gradient.astype(np.float32)
        for table, rows, values in inputs:
            table.step(rows, values, slope, columns)

    def count(self, pieces: Pieces) -> None:
        """Note that a lesson had these pieces."""
        self.piece_frequency[pieces.rows] += 1
        self.lessons += 1

    def _weigh(self, pieces: Pieces) -> Floats:
        """How much each piece counts: by how telling it is, the title's to length 1, the description's to 0.7."""
        idf = np.log((self.lessons + 2) / (self.piece_frequency.take(pieces.rows) + 1))
        values = np.maximum(idf, 0.05).astype(np.float32)
        scale(values[: pieces.title], 1.0)
        scale(values[pieces.title :], _BODY)
        return values

    def drop(self, column: int) -> None:
        """Forget a target."""
        for table in self._tables():
            table.drop(column)
        self.bias[column] = 0
        self.bias_squares[column] = 1

    def _tables(self) -> Sequence[Table]:
        return (self.words, self.pieces, self.vector)

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {
            "tables": [table.state() for table in self._tables()],
            "bias": self.bias,
            "bias_squares": self.bias_squares,
            "piece_frequency": self.piece_frequency,
            "lessons": self.lessons,
        }

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        for table, kept in zip(self._tables(), state["tables"], strict=True):
            table.restore(kept)
        self.bias, self.bias_squares = state["bias"], state["bias_squares"]
        self.piece_frequency, self.lessons = state["piece_frequency"], state["lessons"]


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
