"""
Whose turn it is: among tasks of equal priority in a queue, requesters get turns by their weights.

Start-time fair queueing (Goyal, Vin, Cheng 1996). Turns are taken among equals: each priority of a queue is a lane of
its own, with a virtual time: the rank of the task it served last. A task's rank is where its key has come to, or the
lane's time if that is later; then the key moves on by one turn, `TURN * slots / weight`. Claims take the greatest
priority first, and in its lane the smallest rank. So

* a key that floods gets ranks far into the virtual future, and one that comes after it with a single task is served
  almost at once, however deep the flood;
* two keys that both have work waiting share by their weights;
* nobody is punished for what was served long ago: a key that was idle starts at the lane's time.

A rank is given once and stored with the task, so claiming is one index scan. What is here is small and soft: it is
made anew from the waiting tasks when the process starts, and replicas tell each other how far their lanes have come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

TURN: Final = 1_000_000
_MOST_KEYS: Final = 100_000


def lane(queue: str, priority: int) -> str:
    """The lane of a queue in which tasks of that priority take turns; statements make the same."""
    return f"{queue}@{priority}"


class Turns:
    """How far each lane, and each key in it, has come."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._next: dict[tuple[str, str], int] = {}

    def take(self, lane: str, key: str, weight: float, slots: int = 1) -> int:
        """The rank of a task of *key* that joins *lane* now."""
        rank = max(self._served.get(lane, 0), self._next.get((lane, key), 0))
        self._next[lane, key] = rank + int(TURN * slots / weight)
        if len(self._next) > _MOST_KEYS:
            self._forget()
        return rank

    def served(self, lane: str, rank: int) -> None:
        """A task of that rank was claimed."""
        if rank > self._served.get(lane, 0):
            self._served[lane] = rank

    def restore(self, waiting: Iterable[tuple[str, str, int, int]]) -> None:
        """Start from what waits: lane, key, smallest and greatest rank."""
        lowest: dict[str, int] = {}
        for lane, key, first, last in waiting:
            lowest[lane] = min(first, lowest.get(lane, first))
            self._next[lane, key] = max(last + TURN, self._next.get((lane, key), 0))
        for lane, rank in lowest.items():
            self.served(lane, rank)

    @property
    def progress(self) -> dict[str, int]:
        """How far each lane has come."""
        return dict(self._served)

    def _forget(self) -> None:
        """Drop the keys that the virtual time of their lane has overtaken: they start there anyway."""
        self._next = {
            (lane, key): rank for (lane, key), rank in self._next.items() if rank > self._served.get(lane, 0)
        }
