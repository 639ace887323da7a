"""
Least squares from vector to target, solved exactly after every lesson (Sherman and Morrison).

Where a mean asks which target is near, this asks along which directions targets differ: the directions that all texts
share no longer count. It needs few lessons, and cannot overshoot.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles, Floats, grown
from hopper_learning.snapshot import State

_SHARPNESS: Final = 10.0
_RIDGE: Final = 1.0
_SMALLEST: Final = 0.1  # what is taken back was there: only what never was could come near


class Ridge:
    """The inverse of the vectors' second moments, and the sum of each target's vectors."""

    def __init__(self, width: int) -> None:
        self.inverse: Doubles = np.eye(width) / _RIDGE
        self.sums: Doubles = np.zeros((width, 8))
        self._change: Doubles = np.empty((width, width))  # made once: half a megabyte is dear to ask for
        self._last: tuple[Floats, Doubles] | None = None  # a lesson follows the scores of the same vector

    def widen(self, columns: int) -> None:
        """Make room for *columns* targets."""
        self.sums = grown(self.sums, (0, columns))

    def scores(self, vector: Floats, columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        return np.asarray(
            _SHARPNESS * np.einsum("i,ij->j", self._direction(vector), self.sums[:, :columns]), np.float64
        )

    def learn(self, vector: Floats, column: int, weight: float) -> None:
        """Add a lesson; a negative weight takes one back."""
        direction = self._direction(vector)
        scale = weight / max(1.0 + weight * float((direction * vector).sum()), _SMALLEST)
        self.inverse -= np.einsum("i,j->ij", direction * scale, direction, out=self._change)
        self._last = None
        self.sums[:, column] += weight * vector

    def _direction(self, vector: Floats) -> Doubles:
        last = self._last
        if last is not None and np.array_equal(last[0], vector):
            return last[1]
        direction = np.asarray(np.einsum("ij,j->i", self.inverse, vector.astype(np.float64)), np.float64)
        self._last = vector, direction
        return direction

    def drop(self, column: int) -> None:
        """Forget a target."""
        self.sums[:, column] = 0

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"inverse": self.inverse, "sums": self.sums}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.inverse = state["inverse"]
        self.sums = state["sums"]
        self._last = None
