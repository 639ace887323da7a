"""
From what the mixer says of the first target to how often the first target is right.

Experts that agree have mostly read the same words, so a log-linear mixer is too sure of itself, the more the younger it
is. Two numbers set that right: the log-odds of the first target are stretched and shifted (Platt), learned on every
lesson from what was said before it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles
from hopper_learning.snapshot import State

_STRETCH: Final = 0.9
_RATE: Final = 0.1
_LEAST: Final = 1e-6


class Calibration:
    """Stretch and shift of the first target's log-odds."""

    def __init__(self) -> None:
        self.stretch, self.shift = _STRETCH, 0.0
        self.stretch_squares = self.shift_squares = 1.0

    def calibrate(self, chances: Doubles, begin: int) -> Doubles:
        """*chances* with that of the likeliest target, from place *begin* on, set right, and the rest in proportion."""
        first = begin + int(chances[begin:].argmax())
        chance = float(chances[first])
        rest = 1.0 - chance
        if rest < _LEAST:
            return chances
        others = chances.copy()
        others[first] = 0.0
        second = float(others[begin:].max())
        # The first stays the first.
        right = max(self._right(chance), (1.0 + _LEAST) * second / (rest + second))
        calibrated = others * ((1.0 - right) / rest)
        calibrated[first] = right
        return np.asarray(calibrated, np.float64)

    def learn(self, chance: float, right: bool, weight: float) -> None:
        """Note whether the first target, of which the mixer had said *chance*, was right."""
        odds = _log_odds(chance)
        error = (self._right(chance) - right) * weight
        self.stretch_squares += (error * odds) ** 2
        self.stretch -= _RATE * error * odds / math.sqrt(self.stretch_squares)
        self.shift_squares += error**2
        self.shift -= _RATE * error / math.sqrt(self.shift_squares)

    def _right(self, chance: float) -> float:
        return 1.0 / (1.0 + math.exp(-(max(self.stretch, 0.1) * _log_odds(chance) + self.shift)))

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"line": [self.stretch, self.shift], "squares": [self.stretch_squares, self.shift_squares]}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.stretch, self.shift = state["line"]
        self.stretch_squares, self.shift_squares = state["squares"]


def _log_odds(chance: float) -> float:
    chance = min(max(chance, _LEAST), 1.0 - _LEAST)
    return math.log(chance / (1.0 - chance))
