"""
The registered projects, compiled for deciding: made once for every change of the registry, read by every decision.

Nothing in here changes after `Candidates.compile`, so that decisions on any thread may share it. Projects are held in
the order of their names: the order they came in means nothing. For each capability, label, tag and word there is the
list of the projects that have it, so that a decision touches what the task mentions and no more.

Everything a number can be unknown in (velocity, SLA, cost) is turned into a value from 0 to 1 here; an unknown gets
the median of those that are known, so that saying nothing is neither a virtue nor a fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hopper_router.model import Project
from hopper_router.words import STOP_WORDS, fold, tokens

K = TypeVar("K")
IntArray = NDArray[np.intp]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
HashArray = NDArray[np.uint64]

NAME_WEIGHT: Final = 1.0
EXAMPLE_WEIGHT: Final = 0.5
DESCRIPTION_WEIGHT: Final = 0.5
"""How much of a word it is to be in a project's name or id, in an example, in the description; the most counts."""

_TITLE_COUNTS: Final = 2.0
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
        boosted, boosts: Rows that boost the (case-folded) tag; by how much, in the same order.
        capability_counts: How many capabilities each has, at least 1.
        paused, unattended: Takes no tasks; needs a live worker and has none.
        limits: The most open tasks each takes, infinite where there is no limit.
        speed, thrift, promise: Velocity, cost and SLA from 0 to 1, 1 the best.
        salts: A stable hash of each name, for breaking ties.
    """

    projects: tuple[Project, ...]
    names: tuple[str, ...]
    rows: Mapping[str, int]
    text: TextIndex
    capabilities: Postings
    tags: Postings
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
    salts: HashArray

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
        boosts = _boosts(ordered)
        return cls(
            projects=ordered,
            names=names,
            rows={name: row for row, name in enumerate(names)},
            text=TextIndex.of(ordered, previous.text if previous else None),
            capabilities=_postings(project.capabilities for project in ordered),
            tags=_postings({tag.casefold() for tag in project.tags} for project in ordered),
            labels=_postings(project.labels.items() for project in ordered),
            boosted={tag: np.array(list(by_row), dtype=np.intp) for tag, by_row in boosts.items()},
            boosts={tag: np.array(list(by_row.values())) for tag, by_row in boosts.items()},
            capability_counts=_column(ordered, lambda project: max(len(project.capabilities), 1)),
            paused=_flags(ordered, lambda project: project.paused),
            unattended=_flags(
                ordered, lambda project: project.requires_live_worker and not project.live_workers
            ),
            limits=_column(ordered, lambda project: project.max_open or np.inf),
            speed=_speed(_column(ordered, lambda project: project.velocity)),
            thrift=_smallest_is_best(_column(ordered, lambda project: project.cost)),
            promise=_smallest_is_best(
                _column(ordered, lambda project: project.sla.total_seconds() if project.sla else 0)
            ),
            salts=np.array([stable_hash(name) for name in names], dtype=np.uint64),
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

    `owners[starts[i] : starts[i] + counts[i]]` are the rows that have word i, `weights` what it weighs there: its idf
    times the weight of the place it stands in. The idf of a word is 1 if one project has it and 0 if all do.
    """

    texts: tuple[_Texts, ...]
    profiles: tuple[_Profile, ...]
    ids: Mapping[str, int]
    words: frozenset[str]
    idf: FloatArray
    starts: IntArray
    counts: IntArray
    owners: IntArray
    weights: FloatArray

    @classmethod
    def of(cls, projects: Sequence[Project], previous: TextIndex | None = None) -> TextIndex:
        """Index *projects*; with the same texts in the same order it is *previous* itself."""
        texts = tuple((p.id, p.display_name, p.description, p.examples) for p in projects)
        if previous is not None and previous.texts == texts:
            return previous
        known = dict(zip(previous.texts, previous.profiles, strict=True)) if previous else {}
        profiles = tuple(known.get(text) or _profile(*text) for text in texts)

        ids: dict[str, int] = {}
        entries = [
            (ids.setdefault(w, len(ids)), row, x) for row, p in enumerate(profiles) for w, x in p.items()
        ]
        word, owner, weight = zip(*entries, strict=True) if entries else ((), (), ())
        word_ids = np.array(word, dtype=np.intp)
        counts = np.bincount(word_ids, minlength=len(ids)).astype(np.intp)
        order = np.argsort(word_ids, kind="stable")
        idf = np.log(len(texts) / counts) / np.log(max(len(texts), 2))
        return cls(
            texts=texts,
            profiles=profiles,
            ids=ids,
            words=frozenset(ids),
            idf=idf,
            starts=np.cumsum(counts) - counts,
            counts=counts,
            owners=np.array(owner, dtype=np.intp)[order],
            weights=(np.array(weight, dtype=np.float64) * idf[word_ids])[order],
        )

    def overlap(self, title: Collection[str], description: Collection[str]) -> FloatArray | None:
        """
        How much of a task's (folded) words each project shares, from 0 to 1; None: nobody shares any.

        The weight of the shared words over that of all words that any project knows, title words counting twice.
        """
        counts = dict.fromkeys(self.words.intersection(description), 1.0)
        for word in self.words.intersection(title):
            counts[word] = counts.get(word, 0.0) + _TITLE_COUNTS
        if not counts:
            return None
        # In the order of the index: sums of floats depend on it, and sets have none.
        words = sorted((self.ids[word], times) for word, times in counts.items())
        ids = np.array([word for word, _ in words], dtype=np.intp)
        times = np.array([times for _, times in words])
        lengths = self.counts[ids]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1]) + np.repeat(self.starts[ids] - (ends - lengths), lengths)
        weights = self.weights[at] * np.repeat(times, lengths)
        shared = np.bincount(self.owners[at], weights=weights, minlength=len(self.texts))
        return np.asarray(shared / (_DAMPING + times @ self.idf[ids]))

    def shared_words(self, row: int, words: Set[str]) -> list[str]:
        """Those of *words* that a project has, what says most first."""
        profile = self.profiles[row]
        shared = sorted(profile.keys() & words)
        said = self.idf[[self.ids[word] for word in shared]] * [profile[word] for word in shared]
        return [shared[i] for i in (-said).argsort(kind="stable").tolist()]


def topical(words: Iterable[str]) -> dict[str, str]:
    """The words that may say something about a topic, as they are compared, each with how it was first written."""
    found: dict[str, str] = {}
    for word in words:
        if word not in STOP_WORDS:
            found.setdefault(fold(word), word)
    return found


def _profile(project_id: str, display_name: str, description: str, examples: Sequence[str]) -> _Profile:
    profile = dict.fromkeys(topical(tokens(description)), DESCRIPTION_WEIGHT)
    profile.update(dict.fromkeys(topical(tokens(" \n ".join(examples))), EXAMPLE_WEIGHT))
    profile.update(dict.fromkeys(topical(tokens(f"{project_id} {display_name}")), NAME_WEIGHT))
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
