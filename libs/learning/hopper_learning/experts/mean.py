"""A running mean vector for each target, begun with the vector of its name and description."""

from __future__ import annotations

from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles, Floats, grown
from hopper_learning.snapshot import State

_SHARPNESS: Final = 15.0


class Mean:
    """Cosine to the sum of a target's vectors; only sums, so lessons can be taken back."""

    def __init__(self, width: int) -> None:
        self.sums: Floats = np.zeros((8, width), np.float32)
        self.starts: Floats = np.zeros((8, width), np.float32)
        # What follows from these two, kept because a lesson changes one target of a thousand.
        self._whole: Floats = np.zeros((8, width), np.float32)
        self._lengths: Floats = np.zeros(8, np.float32)

    def widen(self, columns: int) -> None:
        """Make room for *columns* targets."""
        self.sums = grown(self.sums, (columns, 0))
        self.starts = grown(self.starts, (columns, 0))
        self._whole = grown(self._whole, (columns, 0))
        self._lengths = grown(self._lengths, (columns,))

    def start(self, column: int, vector: Floats) -> None:
        """Give a target the vector of its own words, in place of an earlier one."""
        self.starts[column] = vector
        self._follow(slice(column, column + 1))

    def cosines(self, vector: Floats, columns: int) -> Doubles:
        """How near each of the first *columns* targets is, -1 to 1."""
        nearness = np.einsum("ij,j->i", self._whole[:columns], vector)
        return np.asarray(nearness / np.maximum(self._lengths[:columns], np.float32(1e-9)), np.float64)

    def scores(self, vector: Floats, columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        return _SHARPNESS * self.cosines(vector, columns)

    def learn(self, vector: Floats, column: int, weight: float) -> None:
        """Add a lesson; a negative weight takes one back."""
        self.sums[column] += np.float32(weight) * vector
        self._follow(slice(column, column + 1))

    def drop(self, column: int) -> None:
        """Forget a target."""
        self.sums[column] = 0
        self.starts[column] = 0
        self._follow(slice(column, column + 1))

    def _follow(self, changed: slice) -> None:
        whole = self.sums[changed] + self.starts[changed]
        self._whole[changed] = whole
        self._lengths[changed] = np.sqrt(np.einsum("ij,ij->i", whole, whole))

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"sums": self.sums, "starts": self.starts}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.sums = state["sums"]
        self.starts = state["starts"]
        self._whole = np.empty_like(self.sums)
        self._lengths = np.empty(len(self.sums), np.float32)
        self._follow(slice(None))
