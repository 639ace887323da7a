"""
Who is how busy, as deciding wants it: one number for each project, kept up to date one change at a time.

A decision among a thousand projects changes the load of one. So nothing is built anew for the next decision: a change
changes one number, and what was derived from the numbers (`scoring.Standing`) catches up with the rows that changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from hopper_router.candidates import Candidates, FloatArray
from hopper_router.kept import Kept

_MOST_CHANGES: Final = 10_000
_MOST_STANDINGS: Final = 64


class Load(MutableMapping[str, int]):
    """
    Open tasks by project name; who is missing has none, and may be counted up all the same (`load[name] += 1`).

    Threads may decide by the same load and change it, one after the other: `add` and `routing.decide` see to that.
    """

    __slots__ = ("_column", "_counts", "_lock")

    def __init__(self, counts: Mapping[str, int] = MappingProxyType({})) -> None:
        self._counts = dict(counts)
        self._column: LoadColumn | None = None
        self._lock = threading.RLock()

    def __getitem__(self, project: str) -> int:
        return self._counts.get(project, 0)

    def __setitem__(self, project: str, count: int) -> None:
        with self._lock:
            self._put(project, count)

    def __delitem__(self, project: str) -> None:
        with self._lock:
            self[project] = 0
            del self._counts[project]

    def __contains__(self, project: object) -> bool:
        return project in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, project: str, step: int = 1) -> None:
        """Count *step* more open tasks, or fewer."""
        with self._lock:
            self._put(project, self._counts.get(project, 0) + step)

    def _put(self, project: str, count: int) -> None:
        self._counts[project] = count
        if self._column is not None:
            self._column.put(project, count)

    def copy(self) -> Load:
        """The same counts, to be changed without changing these."""
        with self._lock:
            copy = Load(self._counts)
            if self._column is not None:
                copy._column = self._column.copy(copy._lock)
        return copy

    def column(self, candidates: Candidates) -> LoadColumn:
        """The counts as a column of *candidates*: the same object until the candidates are others."""
        with self._lock:
            if self._column is None or self._column.candidates is not candidates:
                self._column = LoadColumn.of(candidates, self._counts, self._lock)
            return self._column


class LoadColumn:
    """
    Open tasks of each row of one set of candidates.

    Attributes:
        lock: To be held by who decides, so that what it looks at does not change meanwhile.
        open: The counts.
        full: The rows that have as many as they take, or more.
        changed: The rows of all changes so far, in order: who has seen n of them catches up with `changed[n:]`.
        standings: What `scoring` derives from the counts; forgotten together with `changed` when that grows long.
    """

    __slots__ = ("candidates", "changed", "full", "lock", "open", "standings")

    def __init__(
        self, candidates: Candidates, counts: FloatArray, full: frozenset[int], lock: threading.RLock
    ) -> None:
        self.candidates = candidates
        self.lock = lock
        self.open = counts
        self.full = full
        self.changed: list[int] = []
        self.standings: Kept[Any, Any] = Kept(_MOST_STANDINGS)

    @classmethod
    def of(cls, candidates: Candidates, counts: Mapping[str, int], lock: threading.RLock) -> LoadColumn:
        """Build the column. Most projects have no open tasks, and are not looked at."""
        column = np.zeros(len(candidates))
        for name, count in counts.items():
            row = candidates.rows.get(name)
            if row is not None:
                column[row] = count
        limited = candidates.limited
        full = limited[column[limited] >= candidates.limits[limited]].tolist() if limited.size else ()
        return cls(candidates, column, frozenset(full), lock)

    def copy(self, lock: threading.RLock) -> LoadColumn:
        """The same counts, to be changed without changing these."""
        return LoadColumn(self.candidates, self.open.copy(), self.full, lock)

    def put(self, project: str, count: int) -> None:
        """Note a project's count."""
        row = self.candidates.rows.get(project)
        if row is None:
            return
        self.open[row] = count
        if (count >= self.candidates.limits.item(row)) != (row in self.full):
            self.full = self.full ^ {row}
        if len(self.changed) >= _MOST_CHANGES:
            self.changed.clear()
            self.standings.clear()
        self.changed.append(row)


def column_of(load: Mapping[str, int], candidates: Candidates) -> LoadColumn:
    """A load as a column; a plain mapping is made into one for this once, but that of no load is kept."""
    if isinstance(load, Load):
        return load.column(candidates)
    if load:
        return LoadColumn.of(candidates, load, threading.RLock())
    idle: LoadColumn = candidates.kept.get("idle", lambda: LoadColumn.of(candidates, {}, threading.RLock()))
    return idle
