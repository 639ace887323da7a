"""The words that a text shares with a target's name, description, tags and examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles
from hopper_learning.features import Reading, fold, words

_NAME: Final = 1.0
_DESCRIPTION: Final = 0.4
_SHARPNESS: Final = 4.0
_STOP_WORDS: Final = (
    "a an and are as at be by for from has have here how i if in into is it its me my no not of on or our please so "
    "that the their them this to was we what when where which who why will with you your"
)
_STOP: Final = frozenset(_STOP_WORDS.split())


class Name:
    """An index from word to the targets that call themselves so."""

    def __init__(self) -> None:
        self._words: dict[int, dict[str, float]] = {}
        self._runs: dict[str, bytes] | None = None

    def put(self, column: int, name: str, rest: Iterable[str]) -> None:
        """Say what a target calls itself."""
        weights: dict[str, float] = {}
        for text in rest:
            for word in _plain(text):
                weights[word] = _DESCRIPTION
        for word in _plain(name):
            weights[word] = _NAME
        self._words[column] = weights
        self._runs = None

    def drop(self, column: int) -> None:
        """Forget a target."""
        self._words.pop(column, None)
        self._runs = None

    def scores(self, reading: Reading, columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        runs = self._runs or self._rebuilt()
        title = runs.keys() & reading.title_stems
        found = runs.keys() & reading.stems
        if not found:
            return np.zeros(columns)
        # A word of the title counts twice.
        pairs = np.frombuffer(b"".join(map(runs.__getitem__, (*sorted(found), *sorted(title)))))
        return np.asarray(np.bincount(pairs[::2].astype(np.intp), pairs[1::2], columns) * _SHARPNESS)

    def _rebuilt(self) -> dict[str, bytes]:
        """
        The index: of each word the columns that have it, each with its weight, as one run of pairs of floats.

        Made when it is asked for, because targets come in hundreds.
        """
        holders = Counter(word for weights in self._words.values() for word in weights)
        index: dict[str, list[tuple[int, float]]] = {}
        for column in sorted(self._words):
            weights = self._words[column]
            telling = {word: math.log(1 + len(self._words) / holders[word]) for word in weights}
            length = math.sqrt(sum(telling[word] * weight for word, weight in weights.items())) or 1.0
            for word, weight in weights.items():
                index.setdefault(word, []).append((column, weight * telling[word] / length))
        self._runs = {word: np.array(pairs, np.float64).tobytes() for word, pairs in index.items()}
        return self._runs


def _plain(text: str) -> Sequence[str]:
    whole, parts = words(text)
    return [fold(word) for word in (*whole, *parts) if word not in _STOP]
