"""
Tasks that look like the same work: how alike two tasks are, and an index that finds the likest of many.

    title, description, tags ─► read ─► Reading ─► Index.find ─► the likest open tasks, how alike, and the words why

How alike two tasks are is a number from 0 to 1, and the same whichever is asked about:

    titles        2 x what both say / what each says          (Dice; every word counts by how rare it is)
    order         up to a tenth less where the words of the titles stand in another order
    descriptions  the same measure; 0.3 of the whole where both tasks have one

A word that few tasks have says more (inverse document frequency); a word with a digit in it counts twice: it is an
error code, an issue's key or a version more often than not, and two tasks that differ in nothing else are two tasks.
Tags count little. Word endings, stop words, capitals and punctuation count nothing.

The index is inverted: from a word of a title to the tasks that have it. Two titles that are alike share most of their
weight, so whoever has none of the rarest words cannot be alike enough, and is never looked at. Where all words of a
title are common, so that too many would have to be looked at, only titles of exactly the same words are found.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain, islice, pairwise
from typing import Final, NamedTuple

from hopper_router.words import STOP_WORDS, fold, tokens

MOST_FOUND: Final = 5
MOST_OPEN: Final = 200_000
"""Tasks that an index remembers; then the oldest are forgotten."""

_REST_SHARE: Final = 0.3
_ORDER_SHARE: Final = 0.1
_CODE: Final = 2.0
_TAG: Final = 0.3
_REST_WORDS: Final = 100
_REST_CHARACTERS: Final = 800
_TITLE_WORDS: Final = 40
_MOST_TAGS: Final = 16
_PRIOR: Final = 10
"""So many tasks are thought to be there before the first, or a word's rarity would mean nothing among a few."""
_MOST_SCANNED: Final = 500
_MOST_SAME: Final = 20
_MOST_COMPARED: Final = 20
_MOST_REASONS: Final = 10
_NEARLY: Final = 1.0 - 1e-9
"""Weights that are added up in another order do not come to quite the same."""
_DIGIT: Final = re.compile(r"\d")


class Reading(NamedTuple):
    """
    What of a task is compared.

    Attributes:
        title: Its words in order, each once.
        tags: As they are, in small letters.
        rest: Words of the beginning of the description.
    """

    title: tuple[str, ...]
    tags: tuple[str, ...]
    rest: frozenset[str]


class Found(NamedTuple):
    """A task that is alike: its key, how alike (0 to 1), and the words that both have, the weightiest first."""

    key: str
    score: float
    shared: tuple[str, ...]


def read(title: str, description: str = "", tags: Iterable[str] = ()) -> Reading:
    """Read a task."""
    words = tokens(title)[:_TITLE_WORDS]
    telling = [fold(word) for word in words if word not in STOP_WORDS]
    return Reading(
        tuple(dict.fromkeys(telling or words or title.casefold().split())),
        tuple(dict.fromkeys([tag.casefold() for tag in islice(tags, _MOST_TAGS)])),
        frozenset(tokens(description[:_REST_CHARACTERS])[:_REST_WORDS]) - STOP_WORDS,
    )


@dataclass(slots=True, eq=False)
class _Entry:
    """
    A task of the index; words are numbers.

    Attributes:
        head: The words of the title in order, then the tags.
        words: How many of them are words.
    """

    key: str
    head: tuple[int, ...]
    words: int
    rest: array[int]


class Part(NamedTuple):
    """The words of a text that some task has, by weight; and what all of its words weigh."""

    weights: Mapping[int, float]
    sum: float


_NOTHING: Final = Part({}, 0.0)


class _Asked(NamedTuple):
    """What is looked for: a title's words in order, with -1 for those that no task has; title and tags; the rest."""

    order: tuple[int, ...]
    head: Part
    rest: Part


_Entries = _Entry | dict[_Entry, None]
"""Entries in the order in which they came; most words have but one, which needs no collection."""


class Index:
    """
    The open tasks of one instance, by the words of their titles. From one thread only.

    Args:
        limit: How many it remembers; the oldest are forgotten.
    """

    def __init__(self, limit: int = MOST_OPEN) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._by_word: dict[int, _Entries] = {}
        self._by_title: dict[int, _Entries] = {}
        self._vocabulary = _Vocabulary()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    # ------------------------------------------------------------ changing

    def add(self, key: str, reading: Reading) -> None:
        """Remember a task, or what it says now."""
        self.remove(key)
        take = self._vocabulary.take
        words = take(reading.title)
        head = (*words, *take(map(_tag, reading.tags)))
        entry = _Entry(key, head, len(words), array("I", take(reading.rest)))
        self._entries[key] = entry
        for word in head:
            _put(self._by_word, word, entry)
        _put(self._by_title, hash(frozenset(words)), entry)
        self._vocabulary.tasks = len(self._entries)
        while len(self._entries) > self._limit:
            self.forget_oldest()

    def remove(self, key: str) -> bool:
        """Forget a task; whether it was known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        for word in entry.head:
            _drop(self._by_word, word, entry)
        _drop(self._by_title, hash(frozenset(entry.head[: entry.words])), entry)
        self._vocabulary.give_back(chain(entry.head, entry.rest))
        self._vocabulary.tasks = len(self._entries)
        return True

    def rename(self, key: str, new: str) -> None:
        """Know a task by another key; if there is one of that key already, forget the first."""
        if new in self._entries:
            self.remove(key)
        elif key in self._entries:
            entry = self._entries.pop(key)
            entry.key = new
            self._entries[new] = entry

    def forget_oldest(self) -> None:
        """Forget the task that was added first, if there is any."""
        if self._entries:
            self.remove(next(iter(self._entries)))

    # ------------------------------------------------------------ looking

    def find(self, reading: Reading, least: float, most: int = MOST_FOUND) -> list[Found]:
        """The *most* tasks that are likest, of those that are at least so alike (0.5 to 1); the likest first."""
        asked = self._ask(reading)
        # With titles less alike than that, not even the same description would do.
        alike = self._alike_titles(asked, (least - _REST_SHARE) / (1.0 - _REST_SHARE) * _NEARLY)
        if not alike:
            return []
        asked = asked._replace(rest=self._vocabulary.weigh(reading.rest))
        found = [(self._whole(asked, entry, titles), entry) for entry, titles in alike]
        found = [one for one in found if one[0] >= least]
        found.sort(key=lambda one: -one[0])  # stable: of equals, as they were found
        return [Found(entry.key, score, self._shared(asked, entry)) for score, entry in found[:most]]

    def compare(self, reading: Reading, key: str) -> Found:
        """
        How alike a task and a known one are.

        Raises:
            KeyError: It is not known.
        """
        entry = self._entries[key]
        asked = self._ask(reading)._replace(rest=self._vocabulary.weigh(reading.rest))
        score = self._whole(asked, entry, self._titles(asked, entry))
        return Found(key, score, self._shared(asked, entry))

    def _ask(self, reading: Reading) -> _Asked:
        """Without the rest, which is read only if somebody has a title that is alike."""
        number = self._vocabulary.number
        head = self._vocabulary.weigh([*reading.title, *map(_tag, reading.tags)])
        return _Asked(tuple([number(word) for word in reading.title]), head, _NOTHING)

    def _alike_titles(self, asked: _Asked, least: float) -> list[tuple[_Entry, float]]:
        """The tasks whose titles are at least so alike, and how alike those are."""
        # 2 x shared / (ours + theirs) >= least, and they say no less than what is shared.
        need = least / (2.0 - least) * asked.head.sum * _NEARLY
        candidates = self._candidates(asked, need)
        likely = nlargest(_MOST_COMPARED, candidates, key=candidates.__getitem__)
        alike = [(entry, self._titles(asked, entry)) for entry in likely]
        return [one for one in alike if one[1] >= least]

    def _candidates(self, asked: _Asked, need: float) -> dict[_Entry, float]:
        """Those who may share so much weight with what is asked about, and what they are known to share."""
        by_rarity = sorted(
            [(weight, self._by_word.get(number)) for number, weight in asked.head.weights.items()],
            key=lambda one: _count(one[1]),
        )
        left = sum(asked.head.weights.values())
        shared: dict[_Entry, float] = {}
        scanned = 0
        for position, (weight, entries) in enumerate(by_rarity):
            scanned += _count(entries)
            if left < need or scanned > _MOST_SCANNED:  # who has none of the words so far cannot get there
                found = _who_can(shared, by_rarity[position:], left, need)
                return (
                    found
                    if left < need
                    else {**found, **dict.fromkeys(self._same_words(asked), asked.head.sum)}
                )
            more = dict.fromkeys(_each(entries), weight)
            for entry in shared.keys() & more.keys():
                more[entry] += shared[entry]
            shared |= more
            left -= weight
        return _who_can(shared, (), left, need)

    def _same_words(self, asked: _Asked) -> Iterable[_Entry]:
        """The newest tasks whose titles have exactly the same words."""
        same = _each(self._by_title.get(hash(frozenset(asked.order))))
        return islice(reversed(same), _MOST_SAME)

    # ------------------------------------------------------------ comparing

    def _titles(self, asked: _Asked, entry: _Entry) -> float:
        words = self._vocabulary.likeness(asked.head, entry.head)
        return words * (1.0 - _ORDER_SHARE * (1.0 - _order(asked.order, entry.head[: entry.words])))

    def _whole(self, asked: _Asked, entry: _Entry, titles: float) -> float:
        if not asked.rest.sum or not entry.rest:
            return titles
        return titles + _REST_SHARE * (self._vocabulary.likeness(asked.rest, entry.rest) - titles)

    def _shared(self, asked: _Asked, entry: _Entry) -> tuple[str, ...]:
        """The words that both have: of the titles, then of the descriptions, the weightiest first."""
        spelled = self._vocabulary.spelled
        words = [*_weightiest(asked.head, entry.head), *_weightiest(asked.rest, entry.rest)]
        return tuple(islice(dict.fromkeys(map(spelled, words)), _MOST_REASONS))


def _who_can(
    shared: dict[_Entry, float], others: Sequence[tuple[float, _Entries | None]], left: float, need: float
) -> dict[_Entry, float]:
    """Of those who share so much by some words, who gets to what is needed with the *others*, which weigh *left*."""
    for weight, entries in others:
        shared = {entry: has for entry, has in shared.items() if has + left >= need}
        for entry in shared.keys() & _each(entries).keys():
            shared[entry] += weight
        left -= weight
    return {entry: has for entry, has in shared.items() if has >= need}


def _order(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """How many of the neighbours in two rows are neighbours in both, 0 to 1."""
    if ours == theirs:
        return 1.0
    our_pairs, their_pairs = set(pairwise(ours)), set(pairwise(theirs))
    count = len(our_pairs) + len(their_pairs)
    return 2.0 * len(our_pairs & their_pairs) / count if count else 1.0


def _weightiest(ours: Part, theirs: Iterable[int]) -> list[int]:
    """The words that both have."""
    weights = ours.weights
    return sorted((word for word in theirs if word in weights), key=lambda word: -weights[word])


# ---------------------------------------------------------------- one entry, or many


def _put(among: dict[int, _Entries], key: int, entry: _Entry) -> None:
    there = among.get(key)
    if there is None:
        among[key] = entry
    elif isinstance(there, dict):
        there[entry] = None
    else:
        among[key] = {there: None, entry: None}


def _drop(among: dict[int, _Entries], key: int, entry: _Entry) -> None:
    there = among[key]
    if isinstance(there, dict):
        del there[entry]
    if there is entry or not there:
        del among[key]


def _each(entries: _Entries | None) -> dict[_Entry, None]:
    if isinstance(entries, dict):
        return entries
    return {} if entries is None else {entries: None}


def _count(entries: _Entries | None) -> int:
    if isinstance(entries, dict):
        return len(entries)
    return 0 if entries is None else 1


# ---------------------------------------------------------------- words


UNKNOWN: Final = -1


class _Vocabulary:
    """
    The words that tasks have, as numbers: how often each is used, and what that makes it weigh.

    Attributes:
        tasks: How many there are.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: list[str] = []
        self._uses: list[int] = []
        self._factors: list[float] = []
        self._free: list[int] = []
        self.tasks = 0

    def take(self, words: Iterable[str]) -> list[int]:
        """The numbers of words that one more task has."""
        numbers, uses = self._numbers, self._uses
        taken: list[int] = []
        for word in words:
            number = numbers.get(word)
            if number is None:
                number = self._new(word)
            uses[number] += 1
            taken.append(number)
        return taken

    def _new(self, word: str) -> int:
        if self._free:
            number = self._free.pop()
            self._words[number], self._factors[number] = word, _factor(word)
        else:
            number = len(self._words)
            self._words.append(word)
            self._factors.append(_factor(word))
            self._uses.append(0)
        self._numbers[word] = number
        return number

    def give_back(self, numbers: Iterable[int]) -> None:
        """One task less has those words."""
        uses = self._uses
        for number in numbers:
            uses[number] -= 1
            if not uses[number]:
                del self._numbers[self._words[number]]
                self._words[number] = ""
                self._free.append(number)

    def number(self, word: str) -> int:
        """The number of a word, or `UNKNOWN`."""
        return self._numbers.get(word, UNKNOWN)

    def spelled(self, number: int) -> str:
        """The word of a number."""
        return self._words[number]

    def weigh(self, words: Iterable[str]) -> Part:
        """The words of a text: each weighs the more, the fewer tasks have it."""
        numbers, uses, factors, log1p = self._numbers, self._uses, self._factors, math.log1p
        tasks = self.tasks + _PRIOR
        weights: dict[int, float] = {}
        total = 0.0
        for word in words:
            number = numbers.get(word)
            if number is None:
                total += _factor(word) * log1p(tasks)
            else:
                weights[number] = weight = factors[number] * log1p(tasks / (uses[number] + 1))
                total += weight
        return Part(weights, total)

    def likeness(self, ours: Part, theirs: Iterable[int]) -> float:
        """Twice what both say, of what each says, 0 to 1."""
        uses, factors, log1p = self._uses, self._factors, math.log1p
        tasks = self.tasks + _PRIOR
        weights = ours.weights
        shared = others = 0.0
        for number in theirs:
            weight = weights.get(number)
            if weight is None:
                others += factors[number] * log1p(tasks / (uses[number] + 1))
            else:
                shared += weight
        both = ours.sum + others + shared
        # Added up in another order, the same words may come to a little more.
        return min(2.0 * shared / both, 1.0) if both else 0.0


def _tag(tag: str) -> str:
    return f"#{tag}"  # which no word begins with


def _factor(word: str) -> float:
    if word[0] == "#":
        return _TAG
    return _CODE if not word.isalpha() and _DIGIT.search(word) else 1.0
