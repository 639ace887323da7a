"""
Which word has which row.

Three words in four are seen once and never again, so a word gets a row in the experts' tables with its second
sighting only; until then it is a `Mark`: the column it was seen for. Both kinds are bounded: marks are forgotten oldest
first, rows those not seen for the longest, an eighth at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hopper_learning.arrays import Floats, Indices, grown
from hopper_learning.snapshot import State


class Mark(NamedTuple):
    """A word's only sighting so far: for which column, with which weight."""

    column: int
    weight: float


class Growth(NamedTuple):
    """What one lesson changed: words that got rows, and marks that were forgotten to make room."""

    promoted: Sequence[tuple[int, Mark]]
    lost: Sequence[Mark]


class Vocabulary:
    """The words seen so far; at most *max_rows* with a row, at most *max_marks* without."""

    def __init__(self, max_rows: int, max_marks: int) -> None:
        self.max_rows, self.max_marks = max_rows, max_marks
        self.rows: dict[str, int] = {}
        self.marks: dict[str, Mark] = {}
        self.frequency: Floats = np.zeros(1024, np.float32)
        """In how many lessons each row's word was seen."""
        self.last_seen: NDArray[np.int64] = np.zeros(1024, np.int64)
        self.lessons = 0
        self._shared: dict[Mark, Mark] = {}

    def __len__(self) -> int:
        return len(self.rows) + len(self.marks)

    @property
    def height(self) -> int:
        """How many rows are in use: the first so many."""
        return len(self.rows)

    def find(self, words: Sequence[str]) -> tuple[list[int], list[Mark]]:
        """The rows and marks of those of *words* that are known, in order."""
        found = list(map(self.rows.get, words))
        if None not in found:
            return cast("list[int]", found), []
        # Who has a row has no mark.
        marks = [mark for mark in map(self.marks.get, words) if mark is not None]
        return [row for row in found if row is not None], marks

    def idf(self, rows: list[int]) -> Floats:
        """How telling each row's word is: the logarithm of lessons over lessons with the word."""
        return np.maximum(np.log((self.lessons + 2) / (self.frequency.take(rows) + 1)), np.float32(0.05))

    @property
    def idf_of_marks(self) -> float:
        """How telling a word seen once is."""
        return max(math.log((self.lessons + 2) / 2), 0.05)

    def observe(self, words: Iterable[str], column: int, weight: float) -> Growth:
        """Count one lesson's *words*, each given once."""
        self.lessons += 1
        here = Mark(column, weight)
        here = self._shared.setdefault(here, here)
        promoted: list[tuple[int, Mark]] = []
        words = list(words)
        found = list(map(self.rows.get, words))
        seen = [row for row in found if row is not None]
        new = [word for word, row in zip(words, found, strict=True) if row is None]
        for word in new:
            mark = self.marks.pop(word, None)
            if mark is None:
                self.marks[word] = here
            elif (row := self._row_for(word)) is not None:
                promoted.append((row, mark))
                seen.append(row)
            else:  # no room within this lesson: it stays a mark
                self.marks[word] = mark
        self.frequency[seen] += 1
        self.last_seen[seen] = self.lessons
        lost = [self.marks.pop(next(iter(self.marks))) for _ in range(len(self.marks) - self.max_marks)]
        return Growth(promoted, lost)

    def forget(self, words: Iterable[str], column: int, weight: float) -> int:
        """
        Take back one lesson's *words*.

        Returns:
            How many of them had been seen in that lesson alone, as far as can be told; they are known no more.
        """
        self.lessons = max(self.lessons - 1, 0)
        mark = Mark(column, weight)
        alone = 0
        for word in words:
            row = self.rows.get(word)
            if row is not None:
                self.frequency[row] = max(self.frequency[row] - 1, 0)
            elif self.marks.get(word) == mark:
                del self.marks[word]
                alone += 1
        return alone

    def make_room(self) -> Indices | None:
        """
        Forget an eighth of the rows if there is no room for more, those not seen for the longest.

        Returns:
            The rows that are kept, in order, if any were forgotten: the first of them is row 0 from now on.
        """
        if self.height < self.max_rows:
            return None
        order = np.argsort(-self.last_seen[: self.height], kind="stable")
        kept = np.sort(order[: self.max_rows - max(1, self.max_rows // 8)])
        new_row = {row: place for place, row in enumerate(kept.tolist())}
        self.rows = {word: new_row[row] for word, row in self.rows.items() if row in new_row}
        self.frequency = self.frequency[kept]
        self.last_seen = self.last_seen[kept]
        return kept

    def drop_column(self, column: int) -> None:
        """Forget the marks of a column that is gone."""
        for word in [word for word, mark in self.marks.items() if mark.column == column]:
            del self.marks[word]

    def state(self) -> State:
        """All there is to know, for a snapshot."""
        kinds = {mark: place for place, mark in enumerate(dict.fromkeys(self.marks.values()))}
        return {
            "rows": list(self.rows),
            "row_of": np.array(list(self.rows.values()), np.int64),
            "marks": list(self.marks),
            "mark_of": np.array([kinds[mark] for mark in self.marks.values()], np.int64),
            "kinds": list(kinds),
            "frequency": self.frequency,
            "last_seen": self.last_seen,
            "lessons": self.lessons,
        }

    def restore(self, state: State) -> None:
        """Go on from *state*."""
        kinds = [Mark(int(column), float(weight)) for column, weight in state["kinds"]]
        self._shared = {kind: kind for kind in kinds}
        self.rows = dict(zip(state["rows"], state["row_of"].tolist(), strict=True))
        self.marks = dict(
            zip(state["marks"], (kinds[place] for place in state["mark_of"].tolist()), strict=True)
        )
        self.frequency, self.last_seen = state["frequency"], state["last_seen"]
        self.lessons = state["lessons"]

    def _row_for(self, word: str) -> int | None:
        row = len(self.rows)
        if row >= self.max_rows:
            return None
        self.frequency = grown(self.frequency, (row + 1,))
        self.last_seen = grown(self.last_seen, (row + 1,))
        self.rows[word] = row
        self.frequency[row] = 1
        return row
