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
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, TypeVar, cast

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
        boosted, boosts: Rows that boost the (case-folded) tag; by how much, in the same order.
        capability_counts: How many capabilities each has, at least 1.
        paused, unattended: Takes no tasks; needs a live worker and has none.
        limits: The most open tasks each takes, infinite where there is no limit.
        speed, thrift, promise: Velocity, cost and SLA from 0 to 1, 1 the best.
        limited: Rows that have a limit.
        salts: A stable hash of each name, for breaking ties.
        sieves, plans, kept: What others derive from these candidates and keep for as long as they live.
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
        boosts = _boosts(ordered)
        limits = _column(ordered, lambda project: project.max_open or np.inf)
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
            limits=limits,
            limited=np.flatnonzero(np.isfinite(limits)),
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

    Words are numbered. For word i, `owners[i]` are the rows that have it and `weights[i]` what it weighs there: its idf
    times the weight of the place it stands in; both as the bytes of an array, because bytes are put together quicker
    than anything else. The idf of a word is 1 if one project has it and 0 if all do.

    Attributes:
        forms: From a word as tasks write it, plurals included, to its number; stop words have none.
        spellings: The words, by number, in all forms that `forms` has.
    """

    texts: tuple[_Texts, ...]
    profiles: tuple[_Profile, ...]
    ids: Mapping[str, int]
    forms: Mapping[str, int]
    spellings: Sequence[tuple[str, ...]]
    idf: Sequence[float]
    owners: Sequence[bytes]
    weights: Sequence[bytes]
    _ranked: dict[int, tuple[int, ...]]
    """By row, the words of a project, what says most first; worked out for those that are recorded."""

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
        spellings = [tuple(_spellings(word)) for word in ids]
        return cls(
            texts=texts,
            profiles=profiles,
            ids=ids,
            forms={form: i for i, forms in enumerate(spellings) for form in forms},
            spellings=spellings,
            idf=idf.tolist(),
            owners=_runs(np.array(owner, dtype=np.intp)[order], counts),
            weights=_runs((np.array(weight, dtype=np.float64) * idf[word_ids])[order], counts),
            _ranked={},
        )

    @property
    def words(self) -> Set[str]:
        """All the words, as they are compared."""
        return self.ids.keys()

    def overlap(self, text: Text) -> Overlap | None:
        """What a task's title and description share with the projects; None: nobody shares any word."""
        title = dict.fromkeys(map(self.forms.get, text.title))
        head = dict.fromkeys(map(self.forms.get, text.head))
        title.pop(None, None)
        head.pop(None, None)
        # In the order of the text, because sums of floats depend on it, and sets have none; the title counts twice.
        words = cast("list[int]", [*head, *title, *title])
        if not words:
            return None
        owners = np.frombuffer(b"".join([self.owners[word] for word in words]), dtype=np.intp)
        weights = np.frombuffer(b"".join([self.weights[word] for word in words]))
        known = sum([self.idf[word] for word in words])
        share: FloatArray = np.bincount(owners, weights, len(self.texts)) / (_DAMPING + known)
        return Overlap(share, frozenset(words))

    def shared_words(self, row: int, overlap: Overlap, text: Text, most: int) -> tuple[str, ...]:
        """The words that a project shares with a task, as the task writes them, what says most first."""
        ranked = self._ranked.get(row)
        if ranked is None:
            ranked = self._ranked[row] = self._rank(row)
        shared = [word for word in ranked if word in overlap.words]
        return tuple([text.as_written(self.spellings[word]) for word in shared[:most]])

    def _rank(self, row: int) -> tuple[int, ...]:
        profile = self.profiles[row]
        ranked = sorted(profile, key=lambda word: (-self.idf[self.ids[word]] * profile[word], word))
        return tuple(self.ids[word] for word in ranked)


class Overlap(NamedTuple):
    """
    What a task shares with the projects.

    Attributes:
        share: For each project the weight of the shared words over that of all the task's words that any project
            knows, from 0 to 1; title words count twice.
        words: The numbers of the task's words that any project knows.
    """

    share: FloatArray
    words: frozenset[int]


def _spellings(word: str) -> Iterator[str]:
    """The ways to write a folded word."""
    for form in (word, f"{word}s"):
        if fold(form) == word and form not in STOP_WORDS:
            yield form


def _runs(values: NDArray[Any], counts: IntArray) -> list[bytes]:
    """An array cut into pieces of those lengths, as bytes."""
    raw = values.tobytes()
    ends = (np.cumsum(counts) * values.itemsize).tolist()
    return [raw[start:end] for start, end in itertools.pairwise([0, *ends])]


def _topical(text: str) -> Iterator[str]:
    """The words that may say something about a topic, as they are compared."""
    return (fold(word) for word in tokens(text) if word not in STOP_WORDS)


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
