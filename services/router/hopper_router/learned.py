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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

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
from hopper_router.candidates import Candidates
from hopper_router.filters import Sieve, id_of
from hopper_router.model import Lesson, Project, TaskSpec, Truth
from hopper_router.scoring import STRATEGIES, LearnedStrategy, Shares, Strategy

_log = structlog.get_logger("hopper.router")

_LENGTH_BYTES: Final = 8


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
    """

    snapshot_format = "hopper-router/1"

    def __init__(self, encoder: Callable[[], Encoder | None] = installed_encoder) -> None:
        self.wanted = asyncio.Event()
        self._load = encoder
        self._encoder: Encoder | None = None
        self._awake = False
        self._waking = asyncio.Lock()
        self._saving = False
        self._models: dict[str, Model] = {}
        self._known: dict[str, Candidates] = {}
        self._strategies: dict[str, Mapping[str, Strategy]] = {}
        self._lock = threading.Lock()

    async def wake(self) -> None:
        """Load what deciding by what was learned takes, once."""
        async with self._waking:
            if not self._awake:
                self._encoder = await asyncio.to_thread(self._load)
                self._awake = True
                self.wanted.set()

    def strategies(self, instance: str) -> Mapping[str, Strategy]:
        """The ways to judge for the decisions of an instance."""
        found = self._strategies.get(instance)
        if found is None:
            found = {**STRATEGIES, "learned": LearnedStrategy(_Mind(self, instance))}
            self._strategies[instance] = found
        return found

    def shares(self, instance: str, task: TaskSpec, candidates: Candidates, sieve: Sieve) -> Shares | None:
        """See `scoring.Mind`."""
        if not self._awake:
            return None
        with self._lock:
            model = self._model(instance)
            if not self._saving:
                self._acquaint(instance, model, candidates)
            among = None if sieve.everybody else [candidates.names[row] for row in sieve.eligible.tolist()]
            found = model.predict(Text(task.title, task.description, task.tags), among)
        by_row = np.zeros(len(candidates))
        rows = candidates.rows
        for name, share in zip(found.ids, found.probabilities.tolist(), strict=True):
            row = rows.get(name)
            if row is not None:  # a project that is gone, or not heard of yet
                by_row[row] = share
        shares = by_row if sieve.everybody else by_row[sieve.eligible]
        whole = float(shares.sum())
        if whole <= 0.0:
            return None
        return Shares(shares / whole, found.none)

    def explain(self, instance: str, task: TaskSpec, project: str) -> Explanation | None:
        """Why a project gets its share of a task, as it is known now; None: nothing is known of it."""
        if not self._awake:
            return None
        with self._lock:
            model = self._models.get(instance)
            if model is None:
                return None
            try:
                return model.explain(Text(task.title, task.description, task.tags), project)
            except UnknownTarget:
                return None

    def _model(self, instance: str) -> Model:
        model = self._models.get(instance)
        if model is None:
            model = self._models[instance] = Model(self._encoder)
        return model

    def _acquaint(self, instance: str, model: Model, candidates: Candidates) -> None:
        """Let a model know the projects as they call themselves now, and forget those that are gone."""
        before = self._known.get(instance)
        if before is not None and before.text is candidates.text:
            return
        self._known[instance] = candidates
        known = {target.id: target for target in model.targets}
        for project in candidates.projects:
            target = _target(project)
            if known.get(project.name) != target:
                model.add(target)
        for name in before.names if before is not None else ():
            if name not in candidates.rows:
                model.remove(name)

    # ------------------------------------------------------------ learning

    def apply(self, lessons: Sequence[Lesson]) -> None:
        """Learn, in order."""
        with self._lock:
            for lesson in lessons:
                self._learn(self._model(lesson.instance), lesson)

    def _learn(self, model: Model, lesson: Lesson) -> None:
        text = Text(lesson.title, lesson.description, lesson.tags)
        if lesson.truth is Truth.NONE:
            model.learn(text, None, source=lesson.source, weight=lesson.weight)
            return
        if all(target.id != lesson.project for target in model.targets):
            model.add(Target(lesson.project, id_of(lesson.project)))  # the registry may tell more of it later
        teach = model.learn if lesson.truth is Truth.RIGHT else model.learn_not
        teach(text, lesson.project, source=lesson.source, weight=lesson.weight)

    def forget(self) -> None:
        """Know nothing any more."""
        with self._lock:
            self._models.clear()
            self._known.clear()

    # ------------------------------------------------------------ keeping

    def snapshot(self) -> bytes:
        """All models: the length of a list of names and lengths, that list, and their own snapshots one by one."""
        with self._quiet():
            parts = {instance: model.snapshot() for instance, model in sorted(self._models.items())}
        head = json.dumps([[instance, len(part)] for instance, part in parts.items()]).encode()
        return b"".join([len(head).to_bytes(_LENGTH_BYTES), head, *parts.values()])

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
        models: dict[str, Model] = {}
        try:
            for instance, part in _parts(snapshot):
                models[instance] = Model(self._encoder)
                models[instance].restore(part)
        except (LearningError, ValueError, KeyError, TypeError) as error:
            _log.warning("what was learned is learned anew", position=position, reason=type(error).__name__)
            return False
        with self._lock:
            self._models = models
            self._known = {}
        return True


class _Mind:
    """`scoring.Mind` of one instance."""

    def __init__(self, learned: Learned, instance: str) -> None:
        self._learned = learned
        self._instance = instance

    def shares(self, task: TaskSpec, candidates: Candidates, sieve: Sieve) -> Shares | None:
        return self._learned.shares(self._instance, task, candidates, sieve)


def _target(project: Project) -> Target:
    return Target(
        id=project.name,
        name=project.display_name or project.id,
        description=project.description,
        examples=project.examples,
        tags=tuple(sorted(project.tags)),
        capabilities=tuple(sorted(project.capabilities)),
    )


def _parts(snapshot: bytes) -> Iterator[tuple[str, bytes]]:
    begin = _LENGTH_BYTES + int.from_bytes(snapshot[:_LENGTH_BYTES])
    for instance, length in json.loads(snapshot[_LENGTH_BYTES:begin]):
        part = snapshot[begin : begin + length]
        begin += length
        yield instance, part
