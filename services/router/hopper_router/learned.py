"""
What this router has learned of where tasks belong: a model for every instance that decides, taught by memory's lessons.

    lessons.LessonWatch ─► apply, restore, snapshot ─► Model of each instance ─► shares ─► scoring.LearnedStrategy

The models themselves are `hopper_learning`'s. They are loaded when a policy first asks for them: who decides by rules
alone pays for nothing. Until they are, who asks is told that nothing is known, and decides by rules.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import structlog

from hopper_learning import (
    Encoder,
    EncoderMissing,
    Explanation,
    LearningError,
    Model,
    Target,
    Text,
    UnknownTarget,
    WordLlamaEncoder,
)
from hopper_learning.factor_weights import Weight
from hopper_router.candidates import BoolArray, Candidates, FloatArray, IntArray
from hopper_router.filters import Sieve, id_of
from hopper_router.kept import Kept
from hopper_router.model import Lesson, Project, TaskSpec, Truth
from hopper_router.scoring import LEAST, STRATEGIES, LearnedStrategy, Shares, Strategy
from hopper_router.weighing import advantage, fresh_weights, went_well

_log = structlog.get_logger("hopper.router")

_LENGTH_BYTES: Final = 8
_TITLE_BYTES: Final = 300
_DESCRIPTION_BYTES: Final = 4000
"""What memory keeps of a text: lessons are about so much of it, so questions are too."""
_PATIENCE: Final = 3.0
_KEPT_NUMBERS: Final = 1 << 21
_MOST_KEPT: Final = 4096
"""How many shares, and of how many texts, are kept until something is learned."""


_MOST_STRANGERS: Final = 64
"""Of how many projects that nobody has registered is anything learned: feedback may name any."""


def installed_encoder() -> Encoder | None:
    """The encoder that is installed; None: the extra `learned` is not, and words alone have to do."""
    try:
        return WordLlamaEncoder()
    except EncoderMissing as error:
        _log.warning("learning goes by words alone", reason=str(error))
        return None


class Learned:
    """
    The models of one router; see the module's text. Implements `lessons.Learner`.

    Decisions may be made on any thread; lessons are learned on the event loop.

    Args:
        encoder: Loads the encoder, in a thread; may take a second.

    Attributes:
        wanted: Set once a policy asks for what was learned.
        projects: Where to ask which projects there are now; None: nobody has said.
        catch_up: Waits until everything is learned that there is to learn.
    """

    snapshot_format = "hopper-router/1"

    def __init__(self, encoder: Callable[[], Encoder | None] = installed_encoder) -> None:
        self.wanted = asyncio.Event()
        self._load = encoder
        self._encoder: Encoder | None = None
        self._awake = False
        self._waking = asyncio.Lock()
        self._saving = False
        self.projects: Callable[[], Candidates | None] = lambda: None
        self.catch_up: Callable[[], Awaitable[None]] | None = None
        self._minds: dict[str, _Mind] = {}
        self._strategies: dict[str, Mapping[str, Strategy]] = {}
        self._lock = threading.Lock()

    async def wake(self) -> None:
        """Load what deciding by what was learned takes, once."""
        async with self._waking:
            if not self._awake:
                self._encoder = await asyncio.to_thread(self._load)
                self._awake = True
                self.wanted.set()

    async def ready(self) -> None:
        """Wait, not for long, until what was taught before it was asked for is learned."""
        if self.catch_up is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.catch_up()

    def novice(self) -> Learned:
        """One that has learned nothing yet, with the same encoder."""
        return Learned(lambda: self._encoder if self._awake else self._load())

    def strategies(self, instance: str) -> Mapping[str, Strategy]:
        """The ways to judge for the decisions of an instance."""
        found = self._strategies.get(instance)
        if found is None:
            found = {**STRATEGIES, "learned": LearnedStrategy(_Asked(self, instance))}
            self._strategies[instance] = found
        return found

    def shares(self, instance: str, task: TaskSpec, candidates: Candidates, sieve: Sieve) -> Shares | None:
        """See `scoring.Mind`."""
        if not self._awake:
            return None
        with self._lock:
            return self._mind(instance).shares(task, candidates, sieve, may_change=not self._saving)

    def weights(self, instance: str) -> Mapping[str, Weight]:
        """See `scoring.Mind`."""
        with self._lock:
            return self._mind(instance).weights

    def explain(self, instance: str, task: TaskSpec, project: str) -> Explanation | None:
        """Why a project gets its share of a task, as it is known now; None: nothing is known of it."""
        if not self._awake:
            return None
        with self._lock:
            mind = self._minds.get(instance)
            if mind is None:
                return None
            try:
                return mind.model.explain(_text(task.title, task.description, task.tags), project)
            except UnknownTarget:
                return None

    def _mind(self, instance: str) -> _Mind:
        mind = self._minds.get(instance)
        if mind is None:
            mind = self._minds[instance] = _Mind(Model(self._encoder))
        return mind

    # ------------------------------------------------------------ learning

    def apply(self, lessons: Sequence[Lesson]) -> None:
        """Learn, in order."""
        candidates = self.projects()
        with self._lock:
            for lesson in lessons:
                mind = self._mind(lesson.instance)
                # Routers learn alike only if they know the same projects while they do.
                if candidates is not None:
                    mind.acquaint(candidates)
                mind.learn(lesson)

    def forget(self) -> None:
        """Know nothing any more."""
        with self._lock:
            self._minds.clear()

    # ------------------------------------------------------------ keeping

    def snapshot(self) -> bytes:
        """All models: the length of a list; that list of names, lengths and weights; their own snapshots one by one."""
        with self._quiet():
            parts = [
                (instance, mind.model.snapshot(), mind.factors.state())
                for instance, mind in sorted(self._minds.items())
            ]
        head = json.dumps([[instance, len(part), factors] for instance, part, factors in parts]).encode()
        return b"".join([len(head).to_bytes(_LENGTH_BYTES), head, *(part for _, part, _ in parts)])

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """While a snapshot is made in its thread, decisions change no model."""
        with self._lock:
            self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def restore(self, snapshot: bytes, position: int) -> bool:
        """See `lessons.Learner`."""
        minds: dict[str, _Mind] = {}
        try:
            for instance, part, factors in _parts(snapshot):
                minds[instance] = mind = _Mind(Model(self._encoder))
                mind.model.restore(part)
                if factors:
                    mind.factors.restore(factors)
                    mind.weights = mind.factors.weights
        except (LearningError, ValueError, KeyError, TypeError) as error:
            _log.warning("what was learned is learned anew", position=position, reason=type(error).__name__)
            return False
        with self._lock:
            self._minds = minds
        return True


class _Asked:
    """`scoring.Mind` of one instance."""

    def __init__(self, learned: Learned, instance: str) -> None:
        self._learned = learned
        self._instance = instance

    def shares(self, task: TaskSpec, candidates: Candidates, sieve: Sieve) -> Shares | None:
        return self._learned.shares(self._instance, task, candidates, sieve)

    def weights(self) -> Mapping[str, Weight]:
        return self._learned.weights(self._instance)


class _Mind:
    """
    What one instance has learned: its model, and where the projects of today are in it.

    Until something is learned, the same text gets the same answer, and is not asked about again.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.factors = fresh_weights()
        self.weights = self.factors.weights
        self._candidates: Candidates | None = None
        self._strangers = 0
        self._columns: IntArray = _NOWHERE
        self._answers: Kept[tuple[Text, Sieve], Shares | None] = Kept(_MOST_KEPT)

    def shares(
        self, task: TaskSpec, candidates: Candidates, sieve: Sieve, *, may_change: bool
    ) -> Shares | None:
        """See `scoring.Mind`; unless it *may_change*, projects that are not known yet have no share."""
        text = _text(task.title, task.description, task.tags)
        if may_change:
            self.acquaint(candidates)
        if candidates is not self._candidates:
            return self._weigh(text, self.model.columns(candidates.names), sieve)
        return self._answers.get((text, sieve), lambda: self._weigh(text, self._columns, sieve))

    def _weigh(self, text: Text, columns: IntArray, sieve: Sieve) -> Shares | None:
        asked = columns if sieve.everybody else columns[sieve.eligible]
        known = asked >= 0
        everybody = bool(known.all())
        chances, none, semantic = self.model.weigh(text, asked if everybody else asked[known])
        whole = float(chances.sum())
        if whole <= 0.0:
            return None
        chances /= whole
        if everybody:
            return Shares(chances, none, semantic)
        return Shares(_spread(chances, known), none, _spread(semantic, known, LEAST))

    def acquaint(self, candidates: Candidates) -> None:
        """Let the model know the projects as they call themselves now, and forget those that are gone."""
        before = self._candidates
        if before is candidates:
            return
        self._candidates = candidates
        known = {target.id: target for target in self.model.targets}
        for project in _changed(before, candidates):
            target = _target(project)
            if known.get(project.name) != target:
                self.model.add(target)
        strangers = [target.id for target in self.model.targets if target.id not in candidates.rows]
        left = before.rows.keys() if before is not None else set()
        for name in strangers if len(strangers) >= _MOST_STRANGERS else left & set(strangers):
            self.model.remove(name)
        self._strangers = len(self.model.targets) - len(candidates)
        self._columns = self.model.columns(candidates.names)
        self._answers = Kept(min(_MOST_KEPT, _KEPT_NUMBERS // max(len(candidates), 1)))

    def learn(self, lesson: Lesson) -> None:
        """Learn one lesson."""
        self._weigh_anew(lesson)
        if lesson.truth is Truth.FAILED:
            return
        self._answers.clear()
        text = _text(lesson.title, lesson.description, lesson.tags)
        if lesson.truth is Truth.NONE:
            self.model.learn(text, None, source=lesson.source, weight=lesson.weight)
            return
        if self.model.columns((lesson.project,))[0] < 0:
            if self._candidates is not None and self._strangers >= _MOST_STRANGERS:
                return
            # The registry may tell more of it later. If it is gone, it is never asked about.
            self.model.add(Target(lesson.project, id_of(lesson.project)))
            self._strangers += 1
        teach = self.model.learn_not if lesson.truth is Truth.WRONG else self.model.learn
        teach(text, lesson.project, source=lesson.source, weight=lesson.weight)

    def _weigh_anew(self, lesson: Lesson) -> None:
        """Learn how much the factors should have counted."""
        well, ahead = went_well(lesson), advantage(lesson)
        if well is None or ahead is None:
            return
        weight = lesson.weight * self.model.trust(lesson.source)
        self.factors.learn(ahead, well=well, source=lesson.source, weight=weight)
        self.weights = self.factors.weights


_NOWHERE: Final = np.zeros(0, np.intp)


def _spread(shares: FloatArray, among: BoolArray, rest: float = 0.0) -> FloatArray:
    spread = np.full(len(among), rest)
    spread[among] = shares
    return spread


def _changed(before: Candidates | None, now: Candidates) -> Iterator[Project]:
    """The projects that may be others than before."""
    if before is None:
        yield from now.projects
        return
    for project in now.projects:
        row = before.rows.get(project.name)
        if row is None or before.projects[row] is not project:
            yield project


def _text(title: str, description: str, tags: Collection[str]) -> Text:
    return Text(_cut(title, _TITLE_BYTES), _cut(description, _DESCRIPTION_BYTES), tuple(tags))


def _cut(text: str, most: int) -> str:
    """The beginning of a text, at most that many bytes of it."""
    if len(text) * 4 <= most or (len(text) <= most and text.isascii()):
        return text
    return text.encode(errors="replace")[:most].decode(errors="ignore")


def _target(project: Project) -> Target:
    return Target(
        id=project.name,
        name=project.display_name or project.id,
        description=project.description,
        examples=project.examples,
        tags=tuple(sorted(project.tags)),
        capabilities=tuple(sorted(project.capabilities)),
    )


def _parts(snapshot: bytes) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Names, models and weights; snapshots of before weights were learned have none."""
    begin = _LENGTH_BYTES + int.from_bytes(snapshot[:_LENGTH_BYTES])
    for instance, length, *factors in json.loads(snapshot[_LENGTH_BYTES:begin]):
        part = snapshot[begin : begin + length]
        begin += length
        yield instance, part, factors[0] if factors else {}
