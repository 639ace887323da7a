"""
Who is how busy, as deciding wants it: one number for each project, kept up to date one change at a time.

A decision among a thousand projects changes the load of one. So nothing is built anew for the next decision: `Load.add`
changes one number, and what was derived from the numbers (`scoring.Standing`) catches up with the rows that changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from hopper_router.candidates import Candidates, FloatArray
from hopper_router.kept import Kept

_MOST_CHANGES: Final = 10_000
_MOST_STANDINGS: Final = 64


class Load:
    """
    Open tasks by project name; who is missing has none.

    For one thread at a time: whoever decides on another takes a `copy`.
    """

    __slots__ = ("_column", "_counts")

    def __init__(self, counts: Mapping[str, int] = MappingProxyType({})) -> None:
        self._counts = dict(counts)
        self._column: LoadColumn | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Open tasks by project name; changes with every `add`."""
        return self._counts

    def add(self, project: str, step: int = 1) -> None:
        """Count *step* more open tasks, or fewer."""
        count = self._counts.get(project, 0) + step
        self._counts[project] = count
        if self._column is not None:
            self._column.put(project, count)

    def copy(self) -> Load:
        """The same counts, to be changed without changing these."""
        return Load(self._counts)

    def column(self, candidates: Candidates) -> LoadColumn:
        """The counts as a column of *candidates*: the same object until the candidates are others."""
        if self._column is None or self._column.candidates is not candidates:
            self._column = LoadColumn(candidates, self._counts)
        return self._column


class LoadColumn:
    """
    Open tasks of each row of one set of candidates.

    Attributes:
        open: The counts.
        full: The rows that have as many as they take, or more.
        changed: The rows of all changes so far, in order: who has seen n of them catches up with `changed[n:]`.
        standings: What `scoring` derives from the counts; forgotten together with `changed` when that grows long.
    """

    __slots__ = ("candidates", "changed", "full", "open", "standings")

    def __init__(self, candidates: Candidates, counts: Mapping[str, int]) -> None:
        self.candidates = candidates
        self.open: FloatArray = np.zeros(len(candidates))
        for name, count in counts.items():
            row = candidates.rows.get(name)
            if row is not None:
                self.open[row] = count
        limited = candidates.limited
        self.full: frozenset[int] = frozenset(
            limited[self.open[limited] >= candidates.limits[limited]].tolist() if limited.size else ()
        )
        self.changed: list[int] = []
        self.standings: Kept[Any, Any] = Kept(_MOST_STANDINGS)

    def put(self, project: str, count: int) -> None:
        """Note a project's count."""
        row = self.candidates.rows.get(project)
        if row is None:
            return
        self.open[row] = count
        if (count >= self.candidates.limits[row]) != (row in self.full):
            self.full = self.full ^ {row}
        if len(self.changed) >= _MOST_CHANGES:
            self.changed.clear()
            self.standings.clear()
        self.changed.append(row)


def column_of(load: Load | Mapping[str, int], candidates: Candidates) -> LoadColumn:
    """The column of a load in either form; that of no load at all is kept with the candidates."""
    if isinstance(load, Load):
        return load.column(candidates)
    if load:
        return LoadColumn(candidates, load)
    idle: LoadColumn = candidates.kept.get("idle", lambda: LoadColumn(candidates, {}))
    return idle
