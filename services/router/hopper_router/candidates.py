"""
The registered projects, compiled for deciding: made once for every change of the registry, read by every decision.

Nothing that means anything changes after `Candidates.compile`, so that decisions on any thread may share it; what is
derived from the candidates is kept with them, and goes when they do. Projects are held in
the order of their names: the order they came in means nothing. For each capability, label, tag and word there is the
list of the projects that have it, so that a decision touches what the task mentions and no more.

Everything a number can be unknown in (velocity, SLA, cost) is turned into a value from 0 to 1 here; an unknown gets
the median of those that are known, so that saying nothing is neither a virtue nor a fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hopper_router.kept import Kept
from hopper_router.model import Project
from hopper_router.words import STOP_WORDS, Text, fold, tokens

K = TypeVar("K")
IntArray = NDArray[np.intp]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
HashArray = NDArray[np.uint64]

NAME_WEIGHT: Final = 1.0
EXAMPLE_WEIGHT: Final = 0.5
DESCRIPTION_WEIGHT: Final = 0.5
"""How much of a word it is to be in a project's name or id, in an example, in the description; the most counts."""

_DAMPING: Final = 2.0
"""Added below the overlap, in words that only one project knows: one shared word is no certainty."""

Postings = Mapping[str, IntArray]
_Texts = tuple[str, str, str, tuple[str, ...]]
_Profile = Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """
    Projects as columns, one row each in the order of `names`.

    Attributes:
        rows: From a name to its row.
        text: The words of the projects.
        capabilities, tags: Rows that have it; tags are case-folded.
        labels: Rows that have the label with that value.
        folded_tags: Of each row, its tags, case-folded.
        boosted, boosts: Rows that boost the (case-folded) tag; by how much, in the same order.
        capability_counts: How many capabilities each has, at least 1.
        paused, unattended: Takes no tasks; needs a live worker and has none.
        limits: The most open tasks each takes, infinite where there is no limit.
        speed, thrift, promise: Velocity, cost and SLA from 0 to 1, 1 the best.
        limited: Rows that have a limit.
        salts: A stable hash of each name, for breaking ties, x as x ^ x >> 30: see `routing`.
        sieves, plans, kept: What others derive from these candidates and keep for as long as they live.
    """

    projects: tuple[Project, ...]
    names: tuple[str, ...]
    rows: Mapping[str, int]
    text: TextIndex
    capabilities: Postings
    tags: Postings
    folded_tags: Sequence[frozenset[str]]
    labels: Mapping[tuple[str, str], IntArray]
    boosted: Postings
    boosts: Mapping[str, FloatArray]
    capability_counts: FloatArray
    paused: BoolArray
    unattended: BoolArray
    limits: FloatArray
    speed: FloatArray
    thrift: FloatArray
    promise: FloatArray
    limited: IntArray
    salts: HashArray
    sieves: Kept[Any, Any] = field(default_factory=lambda: Kept(64), repr=False)
    plans: Kept[Any, Any] = field(default_factory=lambda: Kept(64), repr=False)
    kept: Kept[str, Any] = field(default_factory=lambda: Kept(64), repr=False)

    @classmethod
    def compile(cls, projects: Iterable[Project], *, previous: Candidates | None = None) -> Self:
        """
        Compile *projects*, whose names must differ.

        Args:
            previous: What was compiled before; texts that have not changed are taken from it, which makes a change of
                presence or load labels cheap.
        """
        ordered = tuple(sorted(projects, key=lambda project: project.name))
        names = tuple(project.name for project in ordered)
        if len(set(names)) != len(names):
            raise ValueError("two projects have the same name")
        folded_tags = [frozenset(map(str.casefold, project.tags)) for project in ordered]
        tags = _postings(folded_tags)
        boosts = _boosts(ordered)
        limits = _column(ordered, lambda project: project.max_open or np.inf)
        return cls(
            projects=ordered,
            names=names,
            rows={name: row for row, name in enumerate(names)},
            text=TextIndex.of(ordered, previous.text if previous else None),
            capabilities=_postings(project.capabilities for project in ordered),
            tags=tags,
            folded_tags=folded_tags,
            labels=_postings(project.labels.items() for project in ordered),
            boosted={tag: np.array(list(by_row), dtype=np.intp) for tag, by_row in boosts.items()},
            boosts={tag: np.array(list(by_row.values())) for tag, by_row in boosts.items()},
            capability_counts=_column(ordered, lambda project: max(len(project.capabilities), 1)),
            paused=_flags(ordered, lambda project: project.paused),
            unattended=_flags(
                ordered, lambda project: project.requires_live_worker and not project.live_workers
            ),
            limits=limits,
            limited=np.flatnonzero(np.isfinite(limits)),
            speed=_speed(_column(ordered, lambda project: project.velocity)),
            thrift=_smallest_is_best(_column(ordered, lambda project: project.cost)),
            promise=_smallest_is_best(
                _column(ordered, lambda project: project.sla.total_seconds() if project.sla else 0)
            ),
            salts=np.array([salt ^ salt >> 30 for salt in map(stable_hash, names)], dtype=np.uint64),
        )

    def __len__(self) -> int:
        return len(self.names)


def holders(postings: Mapping[K, IntArray], key: K) -> IntArray:
    """The rows that have *key*; none if nobody does."""
    return postings.get(key, _NOBODY)


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process and release."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest())


# ---------------------------------------------------------------- words


@dataclass(frozen=True, slots=True, eq=False)
class TextIndex:
    """
    Which words the projects' names, descriptions and examples have, and what each says about a project.

    A word leads to its *run*: the bytes of pairs of floats, one object and one piece of memory for each word, because
    what a decision costs is mostly the memory that it touches. The pairs of a run are, for n projects:

    - (n, idf of the word): 1 if one project has the word and 0 if all do;
    - (n + 1, number of the word), so that no two runs are equal;
    - (row, weight) for each project that has it: its idf times the weight of the place it stands in.

    Idfs are multiples of 2**-32, so that sums are exact, whatever their order: sets of words have none.

    Attributes:
        words: The words with their numbers.
        runs: The run of a word, from any way a task may write it; stop words have none.
    """

    texts: tuple[_Texts, ...]
    profiles: tuple[_Profile, ...]
    words: Mapping[str, int]
    idf: Sequence[float]
    runs: Mapping[str, bytes]
    _ranks: dict[int, dict[bytes, tuple[int, str, str]]]
    """By row, worked out for those that are recorded: its words by their runs, each with its place, what says most
    first, and the two ways that tasks may write it."""

    @classmethod
    def of(cls, projects: Sequence[Project], previous: TextIndex | None = None) -> TextIndex:
        """Index *projects*; with the same texts in the same order it is *previous* itself."""
        texts = tuple((p.id, p.display_name, p.description, p.examples) for p in projects)
        if previous is not None and previous.texts == texts:
            return previous
        known = dict(zip(previous.texts, previous.profiles, strict=True)) if previous else {}
        profiles = tuple(known.get(text) or _profile(*text) for text in texts)

        words: dict[str, int] = {}
        postings: list[list[tuple[int, float]]] = []
        for row, profile in enumerate(profiles):
            for word, weight in profile.items():
                number = words.setdefault(word, len(words))
                if number == len(postings):
                    postings.append([])
                postings[number].append((row, weight))
        idf = [_idf(len(posting), len(texts)) for posting in postings]
        runs = {
            form: run
            for word, run in zip(words, _runs(len(texts), postings, idf), strict=True)
            for form in _spellings(word)
            if form
        }
        return cls(texts, profiles, words, idf, runs, {})

    def overlap(self, text: Text) -> Overlap | None:
        """What a task's title and description share with the projects; None: nobody shares any word."""
        runs = self.runs
        described, named = runs.keys() & text.head, runs.keys() & text.title
        if not (described or named):
            return None
        head, title = set(map(runs.__getitem__, described)), set(map(runs.__getitem__, named))
        # The title counts twice.
        pairs = np.frombuffer(b"".join([*head, *title, *title]))
        size = len(self.texts)
        sums = np.bincount(pairs[::2].astype(np.intp), pairs[1::2], size + 2)
        share: FloatArray = np.multiply(sums[:size], 1.0 / (_DAMPING + sums.item(size)))
        head |= title
        described |= named
        return Overlap(share, len(pairs) // 2, head, described)

    def shared_words(self, row: int, overlap: Overlap, text: Text, most: int) -> tuple[str, ...]:
        """The words that a project shares with a task, as the task writes them, what says most first."""
        ranks = self._ranks.get(row)
        if ranks is None:
            ranks = self._ranks[row] = self._rank(row)
        shared = ranks.keys() & overlap.words
        if not shared:
            return ()
        found = []
        for _, singular, plural in sorted(map(ranks.__getitem__, shared))[:most]:
            if plural not in overlap.spellings:
                found.append(singular)
            else:
                found.append(text.first_of(singular, plural) if singular in overlap.spellings else plural)
        return tuple(found)

    def _rank(self, row: int) -> dict[bytes, tuple[int, str, str]]:
        profile = self.profiles[row]
        said = {word: self.idf[self.words[word]] * weight for word, weight in profile.items()}
        ranked = sorted(profile, key=lambda word: (-said[word], word))
        spellings = [_spellings(word) for word in ranked]
        return {
            self.runs[singular or plural]: (place, singular, plural)
            for place, (singular, plural) in enumerate(spellings)
        }


class Overlap(NamedTuple):
    """
    What a task shares with the projects.

    Attributes:
        share: For each project the weight of the shared words over that of all the task's words that any project
            knows, from 0 to 1; title words count twice.
        size: How many words projects share with it, all together; a little more.
        words: The runs of the task's words that any project knows.
        spellings: The same words, in every way the task writes them.
    """

    share: FloatArray
    size: int
    words: Set[bytes]
    spellings: Set[str]


def _idf(owners: int, size: int) -> float:
    return round(math.log(size / owners) / math.log(max(size, 2)) * _EXACTLY) / _EXACTLY


def _runs(
    size: int, postings: Iterable[Sequence[tuple[int, float]]], idfs: Iterable[float]
) -> Iterator[bytes]:
    for number, (posting, idf) in enumerate(zip(postings, idfs, strict=True)):
        pairs = [(size, idf), (size + 1, number), *((row, weight * idf) for row, weight in posting)]
        yield np.array(pairs, dtype=np.float64).tobytes()


_EXACTLY: Final = 2.0**32


def _spellings(word: str) -> tuple[str, str]:
    """The two ways to write a folded word, singular and plural; "" for one that is another word."""
    plural = f"{word}s"
    return word if _topic(word) == word else "", plural if _topic(plural) == word else ""


def _topic(word: str) -> str:
    """A word as it is compared; "" if it says nothing about a topic."""
    return "" if word in STOP_WORDS else fold(word)


def _topical(text: str) -> Iterator[str]:
    """The words that may say something about a topic, as they are compared."""
    return filter(None, map(_topic, tokens(text)))


def _profile(project_id: str, display_name: str, description: str, examples: Sequence[str]) -> _Profile:
    profile = dict.fromkeys(_topical(description), DESCRIPTION_WEIGHT)
    profile.update(dict.fromkeys(_topical(" \n ".join(examples)), EXAMPLE_WEIGHT))
    profile.update(dict.fromkeys(_topical(f"{project_id} {display_name}"), NAME_WEIGHT))
    return profile


# ---------------------------------------------------------------- columns

_NOBODY: Final = np.zeros(0, dtype=np.intp)


def _postings(keys_by_row: Iterable[Iterable[K]]) -> dict[K, IntArray]:
    rows: dict[K, list[int]] = {}
    for row, keys in enumerate(keys_by_row):
        for key in keys:
            rows.setdefault(key, []).append(row)
    return {key: np.array(found, dtype=np.intp) for key, found in rows.items()}


def _boosts(projects: Sequence[Project]) -> dict[str, dict[int, float]]:
    """By case-folded tag: the rows that boost it, in order, and by how much."""
    found: dict[str, dict[int, float]] = {}
    for row, project in enumerate(projects):
        for tag, boost in sorted(project.boosts.items()):
            by_row = found.setdefault(tag.casefold(), {})
            by_row[row] = by_row.get(row, 0.0) + boost
    return found


def _column(projects: Sequence[Project], of: Callable[[Project], float]) -> FloatArray:
    return np.array([of(project) for project in projects], dtype=np.float64)


def _flags(projects: Sequence[Project], of: Callable[[Project], bool]) -> BoolArray:
    return np.array([bool(of(project)) for project in projects], dtype=np.bool_)


def _speed(velocity: FloatArray) -> FloatArray:
    """v / (v + median): 0.5 for the median and for those that have not said."""
    known = velocity > 0
    if not known.any():
        return np.full(len(velocity), 0.5)
    median = float(np.median(velocity[known]))
    return np.asarray(np.where(known, velocity / (velocity + median), 0.5))


def _smallest_is_best(values: FloatArray) -> FloatArray:
    """smallest / value: 1 for the best, 0.5 for twice as much."""
    known = values > 0
    if not known.any():
        return np.full(len(values), 0.5)
    best = values[known].min()
    scaled = best / np.where(known, values, best)
    return np.asarray(np.where(known, scaled, np.median(scaled[known])))
