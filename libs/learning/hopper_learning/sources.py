"""
How far each source of lessons is believed: all alike at first, then by how often it says what could be true.

A lesson is plausible if its target had a fair chance before it was learned. Nearly all honest lessons are, also those
of somebody who speaks up only when the router was wrong: what was right then stood second or third. Lessons of
somebody who lies are mostly not. Each source's share is compared with everybody's, so that a young model, wrong about
all, blames none.
"""

from __future__ import annotations

from typing import Final

from hopper_learning.snapshot import State

_FAIR: Final = 0.02
_UNIFORM: Final = 0.5
_PRIOR: Final = 5.0
_FADE: Final = 0.99
_KEPT: Final = 4096
_DISTRUSTED, _TRUSTED = 0.25, 0.5
FLOOR: Final = 0.02
"""The least trust: who was distrusted must still be able to show that it tells the truth."""


class Sources:
    """Trust by source, `FLOOR` to 1; of at most 4,096 sources, those heard last."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}
        self.everybody = [1.0, 1.0]

    def trust(self, source: str) -> float:
        """How much a lesson of *source* counts."""
        plausible, said = self.seen.get(source, (0.0, 0.0))
        usual = self.everybody[0] / self.everybody[1]
        share = (plausible + _PRIOR) / (said * usual + _PRIOR)
        return min(1.0, max(FLOOR, (share - _DISTRUSTED) / (_TRUSTED - _DISTRUSTED)))

    def record(self, source: str, chance: float, targets: int) -> None:
        """Note that *source* gave a lesson whose target, one of *targets*, had had *chance*."""
        plausible = float(chance >= min(_FAIR, _UNIFORM / targets))
        for sums in (self._sums(source), self.everybody):
            sums[0] = sums[0] * _FADE + plausible
            sums[1] = sums[1] * _FADE + 1.0

    def _sums(self, source: str) -> list[float]:
        """The sums of *source*, now the one heard last."""
        sums = self.seen.pop(source, None) or [0.0, 0.0]
        self.seen[source] = sums
        if len(self.seen) > _KEPT:
            del self.seen[next(iter(self.seen))]
        return sums

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        return {"seen": list(self.seen.items()), "everybody": self.everybody}

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        self.seen = dict(state["seen"])
        self.everybody = state["everybody"]
