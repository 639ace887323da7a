"""How far each source of lessons is believed: all alike at first, then by how it agrees with what others taught."""

from __future__ import annotations

from typing import Final

from hopper_learning.snapshot import State

_PRIOR: Final = 10.0
_CAP: Final = 4096
_FADE: Final = 0.995
_FLOOR: Final = 0.02


class Sources:
    """
    Reliability by source, 0.02 to 1.

    A lesson's target had some probability before the lesson. If the model is calibrated, an honest source's lessons
    have, on average, the probability that the model gives to its own draws; a source that lies has much less. The
    ratio of the two is measured for each source and compared with everybody's, so that a young model, wrong about
    all, blames none.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}
        self.everybody = [1.0, 1.0]

    def trust(self, source: str) -> float:
        """How much a lesson of *source* counts."""
        got, expected = self.seen.get(source, (0.0, 0.0))
        usual = self.everybody[0] / self.everybody[1]
        ratio = (got + _PRIOR * usual) / ((expected + _PRIOR) * usual)
        return min(1.0, max(_FLOOR, (ratio - 0.3) / 0.4))

    def record(self, source: str, got: float, expected: float) -> None:
        """Note that a lesson's target had probability *got* where the model's own draws have *expected*."""
        sums = self.seen.pop(source, None) or [0.0, 0.0]
        self.seen[source] = [sums[0] * _FADE + got, sums[1] * _FADE + expected]
        self.everybody = [self.everybody[0] * 0.999 + got, self.everybody[1] * 0.999 + expected]
        if len(self.seen) > _CAP:
            del self.seen[next(iter(self.seen))]

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"seen": list(self.seen.items()), "everybody": self.everybody}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.seen = dict(state["seen"])
        self.everybody = state["everybody"]
