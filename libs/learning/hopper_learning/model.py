"""
The model: a pure function of its lessons, in order.

    text ─► features, vector ─► experts ─► mixer ─► probability of each target and of "none of them"
                                   ▲          ▲
                                   └─ lesson ─┘

Every target has a column in the experts' tables; column 0 is "none of them", which is never proposed and takes part
from its first lesson on. The same lessons in the same order give the same numbers, so replicas that read one log agree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np

from hopper_learning.arrays import Doubles, Floats, Indices, log_softmax
from hopper_learning.calibration import Calibration
from hopper_learning.encoder import WIDTH, Encoder
from hopper_learning.errors import SnapshotOfOtherEncoder, UnknownTarget
from hopper_learning.example import Example, look_up
from hopper_learning.experts.linear import Linear, ascent, descent
from hopper_learning.experts.mean import Mean
from hopper_learning.experts.name import Name
from hopper_learning.experts.nb import NaiveBayes
from hopper_learning.experts.ridge import Ridge
from hopper_learning.features import Reading, Text, read
from hopper_learning.mixer import BOUNDS, EXPERTS, Mixer
from hopper_learning.snapshot import State, pack, unpack
from hopper_learning.sources import Sources
from hopper_learning.vocabulary import Vocabulary

NONE: Final = 0
_NONE_FIRST: Final = np.array([NONE], np.intp)
_QUANTUM: Final = 64
_CACHED: Final = 256
_ENCODED: Final = 600


@dataclass(frozen=True, slots=True)
class Target:
    """What tasks are sent to, in its own words."""

    id: str
    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """How much a model may remember, and how it learns."""

    max_words: int = 1 << 16
    max_cells: int = 1 << 23
    """Words times targets: 12 bytes each."""
    least_words: int = 1 << 12
    """Kept however many targets there are."""
    max_marks: int = 1 << 18


@dataclass(frozen=True, slots=True)
class Prediction:
    """
    Every target with its probability, best first.

    The probabilities and `none`, the mass that nothing fits, sum to 1. The first probability is how likely the first
    target is to be right.
    """

    ids: Sequence[str]
    probabilities: Doubles
    none: float

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """All targets, best first."""
        return self.top(len(self.ids))

    def top(self, count: int) -> list[tuple[str, float]]:
        """The best *count* targets."""
        return list(zip(self.ids[:count], self.probabilities[:count].tolist(), strict=True))


class Opinion(NamedTuple):
    """What one expert thought of a target, and how much it was listened to."""

    probability: float
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    Why a target got its probability.

    `words` are the text's words with how far each moved the target, up or down, most first.
    """

    target: str
    probability: float
    experts: Mapping[str, Opinion]
    words: Sequence[tuple[str, float]]


class Part(Protocol):
    """What a snapshot is made of."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Slope(NamedTuple):
    """The gradient of a loss, for each of some columns."""

    columns: Indices
    gradient: Doubles


class Weighed(NamedTuple):
    """
    What a model says of some targets, in their order.

    Attributes:
        chances: Their probabilities.
        none: The mass that nothing fits.
        semantic: What those experts alone say that go by names and meaning, with the weights that they have in the mix,
            as log-probabilities among these targets. What is left of the logarithm of a chance was learned from the
            words of outcomes.
    """

    chances: Doubles
    none: float
    semantic: Doubles


class Said(NamedTuple):
    """What the experts made of a text."""

    opinions: Doubles
    buckets: Indices
    linear: Doubles


class Model:
    """Learns where tasks belong, one lesson at a time."""

    def __init__(self, encoder: Encoder | None = None, settings: Settings | None = None) -> None:
        self.encoder = encoder
        self.settings = settings or Settings()
        self._targets: dict[str, Target] = {}
        self._column: dict[str, int] = {}
        self._id: list[str] = [""]
        self._free: list[int] = []
        self._vocabulary = Vocabulary(self.settings.max_words, self.settings.max_marks)
        self._nb = NaiveBayes()
        self._linear = Linear(2 * WIDTH)
        self._mean = Mean(WIDTH)
        self._ridge = Ridge(WIDTH)
        self._name = Name()
        self._mixer = Mixer()
        self._calibration = Calibration()
        self._sources = Sources()
        self._active: Indices = np.zeros(0, np.intp)
        self._read: OrderedDict[Text, tuple[Reading, Floats | None]] = OrderedDict()

    # --- targets

    @property
    def targets(self) -> Collection[Target]:
        """The targets there are."""
        return self._targets.values()

    def add(self, target: Target) -> None:
        """Add a target, or change what it calls itself; what was learned of it stays."""
        column = self._column.get(target.id)
        if column is None:
            column = self._free.pop(0) if self._free else len(self._id)
            if column == len(self._id):
                self._id.append(target.id)
            else:
                self._id[column] = target.id
            self._column[target.id] = column
            for expert in (self._nb, self._linear, self._mean, self._ridge):
                expert.widen(column + 1)
            self._make_room()
        self._targets[target.id] = target
        self._name_words(column, target)
        if self.encoder is not None:
            said = " ".join((f"{target.name}. {target.description}", *target.examples))
            self._mean.start(column, self.encoder.encode(said[:_ENCODED]))
        self._activate()

    def _name_words(self, column: int, target: Target) -> None:
        self._name.put(
            column, target.name, (target.description, *target.examples, *target.tags, *target.capabilities)
        )

    def remove(self, id: str) -> None:
        """Remove a target and all that was learned of it; a target that is not there is not missed."""
        column = self._column.pop(id, None)
        if column is None:
            return
        del self._targets[id]
        self._id[column] = ""
        self._free = sorted([*self._free, column])
        for expert in (self._nb, self._linear, self._mean, self._ridge, self._name):
            expert.drop(column)
        self._vocabulary.drop_column(column)
        self._activate()

    def _activate(self) -> None:
        columns = sorted(self._column.values())
        none = [NONE] if self._knows_none else []
        self._active = np.array(none + columns, np.intp)

    # --- predicting

    def predict(self, text: Text, among: Collection[str] | None = None) -> Prediction:
        """How likely each target (or each of *among*) is to be right for *text*."""
        active = self._active
        if among is not None:
            kept = {self._column[id] for id in among if id in self._column} | {NONE}
            active = active[[column in kept for column in active.tolist()]]
        if not len(active):
            return Prediction((), np.zeros(0), 0.0)
        chances, _ = self._mixed(text, active)
        none = 0.0
        if active[0] == NONE:
            none, chances, active = float(chances[0]), chances[1:], active[1:]
        order = np.argsort(-chances, kind="stable")
        return Prediction([self._id[column] for column in active[order].tolist()], chances[order], none)

    def columns(self, ids: Iterable[str]) -> Indices:
        """
        Where the targets of those ids are, for `weigh`; -1 for one that is not known.

        A target keeps its column until it is removed, or the model is restored.
        """
        return np.array([self._column.get(id, -1) for id in ids], np.intp)

    def weigh(self, text: Text, columns: Indices) -> Weighed:
        """What `predict` says of the targets in those columns, in their order: for who asks about them often."""
        if not len(columns):
            return Weighed(np.zeros(0), 0.0, np.zeros(0))
        if not self._knows_none:
            chances, said = self._mixed(text, columns)
            return Weighed(chances, 0.0, self._mixer.semantic(said.opinions, said.buckets))
        chances, said = self._mixed(text, np.concatenate([_NONE_FIRST, columns]))
        semantic = self._mixer.semantic(said.opinions[:, 1:], said.buckets[1:])
        return Weighed(chances[1:], float(chances[0]), semantic)

    def _calibrated(self, chances: Doubles, active: Indices) -> Doubles:
        begin = int(active[0] == NONE)
        return self._calibration.calibrate(chances, begin) if len(chances) > begin else chances

    def _mixed(self, text: Text, active: Indices) -> tuple[Doubles, Said]:
        reading, vector = self._reading(text)
        example = look_up(reading, vector, self._vocabulary)
        said = self._ask(example, active)
        return self._calibrated(self._mixer.mix(said.opinions, said.buckets), active), said

    @property
    def _knows_none(self) -> bool:
        return bool(self._nb.documents[NONE] > 0)

    def _reading(self, text: Text) -> tuple[Reading, Floats | None]:
        text = text.cut()
        found = self._read.get(text)
        if found is not None:
            self._read.move_to_end(text)
            return found
        vector = None
        if self.encoder is not None:
            title = self.encoder.encode(text.title)
            body = self.encoder.encode(text.description[:_ENCODED])
            vector = np.concatenate([title, body])
        found = self._read[text] = read(text), vector
        if len(self._read) > _CACHED:
            self._read.popitem(last=False)
        return found

    def _ask(self, example: Example, active: Indices) -> Said:
        columns = len(self._id)
        scores = np.zeros((len(EXPERTS), columns))
        scores[0] = self._nb.scores(example, columns, len(self._vocabulary))
        scores[1] = self._linear.scores(self._linear.inputs(example), columns)
        if example.vector is not None:
            whole = _whole(example.vector)
            scores[2] = self._mean.scores(whole, columns)
            scores[3] = self._ridge.scores(whole, columns)
        scores[4] = self._name.scores(example.reading, columns)
        opinions = log_softmax(scores.take(active, axis=1))
        buckets = np.searchsorted(BOUNDS, self._nb.documents[active])
        return Said(opinions, buckets, scores[1])

    # --- learning

    def trust(self, source: str) -> float:
        """How far lessons of *source* are believed by now, 0 to 1."""
        return self._sources.trust(source)

    def learn(self, text: Text, target: str | None, *, source: str = "", weight: float = 1.0) -> None:
        """
        Learn that *text* belonged to *target*, or to none of the targets.

        Raises:
            UnknownTarget: There is no such target, or no more.
        """
        column = self._column_of(target)
        reading, vector = self._reading(text)
        example = look_up(reading, vector, self._vocabulary)
        active = self._active
        if column == NONE and (not len(active) or active[0] != NONE):
            active = np.concatenate([np.array([NONE], np.intp), active])
        said = self._ask(example, active)
        place = int(np.searchsorted(active, column))
        chances = self._mixer.mix(said.opinions, said.buckets)
        trust = self._sources.trust(source)
        self._sources.record(source, float(chances[place]), len(active))
        weight = _quantised(weight * trust)
        begin = int(active[0] == NONE)
        if len(active) > begin:
            first = begin + int(chances[begin:].argmax())
            self._calibration.learn(float(chances[first]), first == place, weight)
        self._mixer.learn(said.opinions, said.buckets, chances, place, weight)
        gradient = ascent(said.linear, active, column) * weight
        self._observe(reading, vector, column, weight, Slope(active, gradient))
        if column == NONE and self._active[:1].tolist() != [NONE]:
            self._activate()

    def _observe(
        self, reading: Reading, vector: Floats | None, column: int, weight: float, slope: Slope
    ) -> None:
        """Let the experts see a lesson; *slope* is how wrong the regression was about it."""
        words = (*reading.head, *reading.body)
        self._make_room()
        growth = self._vocabulary.observe(dict.fromkeys(words), column, weight)
        self._nb.grow(growth, self._vocabulary.height)
        self._linear.words.reach(self._vocabulary.height, 1)
        example = look_up(reading, vector, self._vocabulary)
        self._nb.learn(example.rows, len(example.marks), column, weight)
        self._linear.learn(self._linear.inputs(example), slope.gradient, slope.columns)
        self._linear.count(reading.pieces)
        if vector is not None:
            whole = _whole(vector)
            self._mean.learn(whole, column, weight)
            self._ridge.learn(whole, column, weight)

    def _make_room(self) -> None:
        """Keep the tables within their cells: as many words as there are targets for."""
        settings = self.settings
        columns = self._nb.counts.shape[1]
        room = max(settings.least_words, settings.max_cells // columns)
        self._vocabulary.max_rows = min(settings.max_words, room)
        kept = self._vocabulary.make_room()
        if kept is not None:
            self._nb.keep(kept)
            self._linear.words.keep(kept)

    def unlearn(self, text: Text, target: str | None, *, weight: float = 1.0) -> None:
        """
        Take back that *text* belonged to *target*, learned with that *weight* by a source that was fully trusted.

        What is a sum (naive Bayes, mean, ridge) forgets the lesson; the regression and the mixer were led by it and by
        all that followed, and only a fold of the log without it can tell where they would be.

        Raises:
            UnknownTarget: There is no such target, or no more.
        """
        column, weight = self._column_of(target), _quantised(weight)
        reading, vector = self._reading(text)
        words = dict.fromkeys((*reading.head, *reading.body))
        rows = look_up(reading, vector, self._vocabulary).rows
        alone = self._vocabulary.forget(words, column, weight)
        self._nb.unlearn(rows, alone, column, weight)
        if vector is not None:
            whole = _whole(vector)
            self._mean.learn(whole, column, -weight)
            self._ridge.learn(whole, column, -weight)
        self._activate()

    def learn_not(self, text: Text, target: str, *, source: str = "", weight: float = 1.0) -> None:
        """
        Learn that *text* did not belong to *target*; where it did belong is not known.

        Raises:
            UnknownTarget: There is no such target, or no more.
        """
        column = self._column_of(target)
        reading, vector = self._reading(text)
        example = look_up(reading, vector, self._vocabulary)
        inputs = self._linear.inputs(example)
        gradient = descent(self._linear.scores(inputs, len(self._id)), self._active, column)
        trust = self._sources.trust(source)
        self._linear.learn(inputs, gradient * _quantised(weight * trust), self._active)

    def explain(self, text: Text, target: str) -> Explanation:
        """
        Why *target* got its probability for *text*.

        Raises:
            UnknownTarget: There is no such target, or no more.
        """
        column = self._column_of(target)
        reading, vector = self._reading(text)
        example = look_up(reading, vector, self._vocabulary)
        said = self._ask(example, self._active)
        place = int(np.searchsorted(self._active, column))
        chances = self._calibrated(self._mixer.mix(said.opinions, said.buckets), self._active)
        weights = self._mixer.weights[:, said.buckets[place]]
        experts = {
            name: Opinion(float(np.exp(opinion)), float(weight))
            for name, opinion, weight in zip(EXPERTS, said.opinions[:, place], weights, strict=True)
        }
        words = self._words_for(example, column, dict(zip(EXPERTS, weights.tolist(), strict=True)))
        return Explanation(target, float(chances[place]), experts, words)

    def _words_for(
        self, example: Example, column: int, weights: dict[str, float]
    ) -> Sequence[tuple[str, float]]:
        """The words that spoke for or against a column, by how much they moved the mix, most first."""
        rows = example.rows
        odds = 2.0 * example.idf * self._nb.odds(rows, len(self._id))[:, column]
        table = self._linear.words.weights[rows]
        linear = example.values * (table[:, column] - table[:, self._active].mean(axis=1))
        moved = (weights["nb"] * odds + weights["linear"] * linear).tolist()
        known = [
            word for word in (*example.reading.head, *example.reading.body) if word in self._vocabulary.rows
        ]
        words: dict[str, float] = {}
        for word, weight in zip(known, moved, strict=True):
            plain = word[2:] if word[1:2] == ":" else word
            words[plain] = words.get(plain, 0.0) + weight
        return sorted(words.items(), key=lambda item: (-abs(item[1]), item[0]))

    # --- keeping

    def snapshot(self) -> bytes:
        """All that was learned; see `hopper_learning.snapshot`."""
        targets = [[self._column[id], asdict(target)] for id, target in self._targets.items()]
        parts = {name: part.state() for name, part in self._parts()}
        return pack(
            {
                "encoder": self._encoder_version,
                "targets": targets,
                "ids": self._id,
                "free": self._free,
                **parts,
            }
        )

    def restore(self, data: bytes) -> None:
        """
        Become the model that was saved; what this one had learned is gone. Left as it was if the bytes are refused.

        Raises:
            SnapshotCorrupt: These are not the bytes that were written.
            SnapshotTooNew: Newer code wrote them.
            SnapshotOfOtherEncoder: It was learned with other vectors, or without, or with.
        """
        state = unpack(data)
        if state["encoder"] != self._encoder_version:
            raise SnapshotOfOtherEncoder
        for name, part in self._parts():
            part.restore(state[name])
        self._id, self._free = state["ids"], state["free"]
        self._targets, self._column = {}, {}
        self._name = Name()
        for column, fields in state["targets"]:
            lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            target = Target(**{**fields, **lists})
            self._targets[target.id] = target
            self._column[target.id] = column
            self._name_words(column, target)
        self._activate()

    @property
    def _encoder_version(self) -> str:
        return self.encoder.version if self.encoder is not None else ""

    def _parts(self) -> Sequence[tuple[str, Part]]:
        return (
            ("vocabulary", self._vocabulary),
            ("nb", self._nb),
            ("linear", self._linear),
            ("mean", self._mean),
            ("ridge", self._ridge),
            ("mixer", self._mixer),
            ("calibration", self._calibration),
            ("sources", self._sources),
        )

    def _column_of(self, target: str | None) -> int:
        if target is None:
            return NONE
        try:
            return self._column[target]
        except KeyError:
            raise UnknownTarget from None


def _whole(vector: Floats) -> Floats:
    """One unit vector of title and description."""
    both = vector[:WIDTH] + vector[WIDTH:]
    length = float(np.sqrt((both * both).sum()))
    return np.asarray(both / np.float32(length) if length > 0 else both, np.float32)


def _quantised(weight: float) -> float:
    """*weight* in sixty-fourths: sums of such are exact, so what is taken back leaves nothing behind."""
    return max(round(min(weight, 4.0) * _QUANTUM), 1) / _QUANTUM
