"""
Naive Bayes: how much oftener each word came with a target than without it.

Only sums, so lessons can be taken back.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles, Floats, Indices, compacted, grown
from hopper_learning.example import Example
from hopper_learning.snapshot import Sparse, State
from hopper_learning.vocabulary import Growth

_ALPHA: Final = 0.1
_PRIOR: Final = 0.3
_SHARPNESS: Final = 2.0


class NaiveBayes:
    """Counts of (word, target); log-odds of the words, weighted by how telling each is."""

    def __init__(self) -> None:
        self.counts: Floats = np.zeros((1024, 8), np.float32)
        self.totals: Doubles = np.zeros(8)
        self.documents: Doubles = np.zeros(8)

    def widen(self, columns: int) -> None:
        """Make room for *columns* targets."""
        self.counts = grown(self.counts, (1, columns))
        self.totals = grown(self.totals, (columns,))
        self.documents = grown(self.documents, (columns,))

    def scores(self, example: Example, columns: int, words: int) -> Doubles:
        """Log-odds for each of the first *columns* targets; *words* is the size of the vocabulary."""
        return self.priors(columns) + _SHARPNESS * self.evidence(example, columns, words)

    def priors(self, columns: int) -> Doubles:
        """What is known before the first word is read."""
        return np.log(self.documents[:columns] + _PRIOR)

    def evidence(self, example: Example, columns: int, words: int) -> Doubles:
        """The weighted sum of the words' log-odds."""
        totals = self.totals[:columns]
        base = np.log(totals.sum() - totals + _ALPHA * (words + 1)) - np.log(totals + _ALPHA * (words + 1))
        weight = float(example.idf.sum()) + len(example.marks) * example.mark_idf
        score = base * weight
        if len(example.rows):
            score += np.einsum("i,ij->j", example.idf, self.odds(example.rows, columns))
        if example.marks:
            once = example.mark_idf * math.log((1 + _ALPHA) / _ALPHA)
            score -= once * len(example.marks)
            for mark in example.marks:
                score[mark.column] += 2 * once * min(mark.weight, 1.0)
        return np.asarray(score, np.float64)

    def odds(self, rows: Indices, columns: int) -> Floats:
        """Log-odds of each of *rows* for each target, before the targets' sizes are considered."""
        with_it = self.counts.take(rows, axis=0)[:, :columns]
        without = with_it.sum(axis=1, keepdims=True) - with_it
        return np.asarray(np.log((with_it + np.float32(_ALPHA)) / (without + np.float32(_ALPHA))), np.float32)

    def grow(self, growth: Growth, height: int) -> None:
        """Follow the vocabulary: words that got rows, marks that were forgotten."""
        self.counts = grown(self.counts, (height, 1))
        for mark in growth.lost:
            self.totals[mark.column] -= mark.weight
        for row, mark in growth.promoted:
            self.counts[row, mark.column] += mark.weight

    def keep(self, rows: Indices) -> None:
        """Forget all words but those of *rows*."""
        whole = self.counts.sum(axis=0, dtype=np.float64)
        self.counts = compacted(self.counts, rows)
        self.totals -= whole - self.counts.sum(axis=0, dtype=np.float64)

    def learn(self, rows: Indices, marked: int, column: int, weight: float) -> None:
        """Count a lesson: its *rows*, and *marked* words that have none yet."""
        self.counts[rows, column] += np.float32(weight)
        self.totals[column] += weight * (len(rows) + marked)
        self.documents[column] += weight

    def unlearn(self, rows: Indices, marked: int, column: int, weight: float) -> None:
        """Take a lesson back: its *rows*, and *marked* words that were seen in it alone."""
        had = self.counts[rows, column]
        left = np.maximum(had - np.float32(weight), 0)
        self.counts[rows, column] = left
        self.totals[column] -= float((had - left).sum(dtype=np.float64)) + weight * marked
        self.documents[column] = max(self.documents[column] - weight, 0.0)

    def drop(self, column: int) -> None:
        """Forget a target."""
        self.counts[:, column] = 0
        self.totals[column] = 0
        self.documents[column] = 0

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"counts": Sparse(self.counts, 0.0), "totals": self.totals, "documents": self.documents}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.counts = state["counts"]
        self.totals = state["totals"]
        self.documents = state["documents"]
