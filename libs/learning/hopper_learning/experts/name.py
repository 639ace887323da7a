"""The words that a text shares with a target's name, description, tags and examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from hopper_learning.arrays import Doubles
from hopper_learning.features import Reading, words

_NAME: Final = 1.0
_DESCRIPTION: Final = 0.4
_TITLE: Final = 2.0
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
        self._index: dict[str, list[tuple[int, float]]] | None = None

    def put(self, column: int, name: str, rest: Iterable[str]) -> None:
        """Say what a target calls itself."""
        weights: dict[str, float] = {}
        for text in rest:
            for word in _plain(text):
                weights[word] = _DESCRIPTION
        for word in _plain(name):
            weights[word] = _NAME
        self._words[column] = weights
        self._index = None

    def drop(self, column: int) -> None:
        """Forget a target."""
        self._words.pop(column, None)
        self._index = None

    def scores(self, reading: Reading, columns: int) -> Doubles:
        """One score for each of the first *columns* targets."""
        index = self._index or self._rebuilt()
        score = np.zeros(columns)
        title = {_fold(word) for word in reading.title_words}
        for word in sorted(title.union(_fold(word) for word in reading.body_words) & index.keys()):
            factor = _TITLE if word in title else 1.0
            for column, weight in index[word]:
                score[column] += factor * weight
        return score * _SHARPNESS

    def _rebuilt(self) -> dict[str, list[tuple[int, float]]]:
        """The index; made when it is asked for, because targets come in hundreds."""
        holders = Counter(word for weights in self._words.values() for word in weights)
        index: dict[str, list[tuple[int, float]]] = {}
        for column in sorted(self._words):
            weights = self._words[column]
            telling = {word: math.log(1 + len(self._words) / holders[word]) for word in weights}
            length = math.sqrt(sum(telling[word] * weight for word, weight in weights.items())) or 1.0
            for word, weight in weights.items():
                index.setdefault(word, []).append((column, weight * telling[word] / length))
        self._index = index
        return index


def _plain(text: str) -> Sequence[str]:
    whole, parts = words(text)
    return [_fold(word) for word in (*whole, *parts) if word not in _STOP]


def _fold(word: str) -> str:
    """*word* without its commonest English endings, so that `invoices` meets `invoice`."""
    if len(word) > 4:
        for ending in ("ies", "ing", "es", "ed", "s"):
            if word.endswith(ending) and len(word) - len(ending) > 3:
                return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 4 else word
