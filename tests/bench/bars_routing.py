"""Deciding: how long one decision takes, without a server around it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import numpy as np

from hopper_router.convert import spec_from_proto
from hopper_router.filters import sieve
from hopper_router.learned import Learned
from hopper_router.load import Load, column_of
from hopper_router.model import Basis, Decision, Lesson, Project, TaskSpec, Truth
from hopper_router.policy_yaml import load_policy
from hopper_router.routing import Candidates, Question, decide
from hopper_router.words import Text as Words
from tests.bench import message
from tests.bench.bar import Result, at_most, bar, quantiles
from tests.bench.rig import Rig

BLOCKS, EACH = 10, 50
ALL: Final = (BLOCKS + 1) * EACH
KNOWN: Final = 100
"""So many texts are known."""
ORIGINAL_US: Final = 31_590.0
SEMANTIC_ROUTER_US: Final = 2_568.0
_RECORDED: Final = "the other side is a recorded figure of PERFORMANCE.md, of a quiet machine of this kind"

_WORDS = [f"{a}{b}" for a in ("log", "pay", "user", "ship", "mail", "auth", "cart", "tax") for b in range(40)]


def world(projects: int) -> tuple[Candidates, str]:
    """That many projects, and two keyword rules for each."""
    chance = random.Random(7)
    made = [
        Project(
            name=f"projects/p{number}",
            description=" ".join(chance.sample(_WORDS, 12)),
            capabilities=frozenset(chance.sample(("py", "js", "sql", "ops"), 2)),
            tags=frozenset(chance.sample(_WORDS, 3)),
        )
        for number in range(projects)
    ]
    rules = [
        f"  - name: r{number}-{part}\n    when: {{keyword: [{', '.join(chance.sample(_WORDS, 3))}]}}\n"
        f"    then: {{project: p{number}, weight: {chance.uniform(0.5, 2):.2f}}}"
        for number in range(projects)
        for part in range(2)
    ]
    return Candidates.compile(made), "rules:\n" + "\n".join(rules) + "\n"


def task(chance: random.Random) -> TaskSpec:
    """A title of nine words and a description of about 800 characters."""
    return TaskSpec(
        title=" ".join(chance.sample(_WORDS, 9)),
        description=" ".join(chance.choices(_WORDS, k=130)),
        tags=tuple(chance.sample(_WORDS, 3)),
    )


@bar
async def rules_decision(_: Rig) -> Sequence[Result]:
    """B13, B15: a rules decision among 1,000 projects with 2,000 rules, whole record included; and among 10."""
    sides = _measured(
        {
            "1000 projects": _by_rules(1000),
            "10 projects": _by_rules(10),
            "numpy, 1000 x 256": _numpy_best(1000),
        }
    )
    many, few, floor = (side["p50_us"] for side in sides.values())
    tail = sides["1000 projects"]["p99_us"] / 1e3
    return [
        Result("rules decision, 1,000 projects, p99", round(tail, 3), "ms", "< 10 ms", tail < 10, sides),
        at_most(12, 8).judge("B13 rules decision, 1,000 projects / numpy best", many / floor, sides),
        at_most(12, 8).judge("B15 rules decision, 1,000 / 10 projects", many / few, sides),
        at_most(1 / 100, 1 / 300).judge(
            "B15 rules decision, 1,000 projects / the original's", many / ORIGINAL_US, sides, note=_RECORDED
        ),
    ]


@bar
async def learned_decision(_: Rig) -> Sequence[Result]:
    """B13, B14: a decision by all factors, what was learned among them, among 1,000 projects."""
    world = await _Learned.taught()
    shipped = _shipped_encoder()
    sides = _measured(
        {
            "known text": world.known(),
            "scored, known text": world.scored(),
            "new text": world.new(),
            "wordllama, as shipped": lambda number: shipped(world.text(number)),
            "numpy, 1000 x 256": _numpy_best(1000),
        }
    )
    known, scored, new, embed, floor = (side["p50_us"] for side in sides.values())
    return [
        at_most(3, 2).judge("B13 scoring 1,000 projects by all factors / numpy best", scored / floor, sides),
        at_most(12, 8).judge("B13 decision by all factors, known text / numpy best", known / floor, sides),
        at_most(1.4, 1.2).judge(
            "B14 decision, new text / (embed + numpy best)", new / (embed + floor), sides
        ),
        at_most(0.15, 0.10).judge(
            "B14 decision, new text / semantic-router at 1,000",
            new / SEMANTIC_ROUTER_US,
            sides,
            note=_RECORDED,
        ),
    ]


Timed = Callable[[int], object]


def _measured(sides: Mapping[str, Timed]) -> dict[str, dict[str, float]]:
    """Processor time of each, in interleaved blocks: each finds its own data at hand. The first is to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(BLOCKS + 1):
        for name, run in sides.items():
            for number in range(block * EACH, (block + 1) * EACH):
                begin = time.thread_time()
                run(number)
                if block:
                    taken[name].append(time.thread_time() - begin)
    return {
        name: {key.replace("_ms", "_us"): round(1e3 * value, 1) for key, value in quantiles(some).items()}
        for name, some in taken.items()
    }


def _by_rules(projects: int) -> Timed:
    candidates, source = world(projects)
    policy = load_policy(source)
    chance = random.Random(11)
    specs = [task(chance) for _ in range(ALL)]
    return lambda number: decide(specs[number], candidates, policy, load={}, refused={}, basis=Basis())


def _numpy_best(projects: int) -> Timed:
    vectors = np.random.default_rng(7).standard_normal((projects, 256)).astype(np.float32)
    return lambda number: int((vectors @ vectors[number % projects]).argmax())


def _shipped_encoder() -> Callable[[str], object]:
    import wordllama  # type: ignore[import-untyped]  # slow, and of no use to the other bars

    folder = Path(wordllama.__file__).parent
    encoder = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda text: encoder.embed([text], norm=True)


class _Learned:
    """A thousand projects, and a lesson for each fifth of them."""

    def __init__(self, learned: Learned) -> None:
        projects = [
            Project(
                f"projects/p{number}",
                description=message.project(number).description,
                tags=frozenset(message.project(number).tags),
            )
            for number in range(message.PROJECTS)
        ]
        self._candidates = Candidates.compile(projects)
        self._learned = learned
        self._load = Load()
        self._policy = load_policy("strategy: learned")
        self._strategies = learned.strategies(message.ROOT)
        self._specs = [spec_from_proto(message.spec(topic)) for topic in range(message.PROJECTS)]

    @classmethod
    async def taught(cls) -> _Learned:
        """Ready to decide."""
        learned = Learned()
        await learned.wake()
        made = cls(learned)
        learned.projects = lambda: made._candidates
        learned.apply([_lesson(topic, made._specs[topic]) for topic in range(0, message.PROJECTS, 5)])
        for number in range(KNOWN):
            made._decide(made._specs[number])
        return made

    def known(self) -> Timed:
        return lambda number: self._decide(self._specs[number % KNOWN])

    def new(self) -> Timed:
        specs = [
            replace(spec, description=f"{spec.description} new{number}")
            for number, spec in enumerate(islice(cycle(self._specs), ALL))
        ]
        return lambda number: self._decide(specs[number])

    def scored(self) -> Timed:
        """Without the record."""
        column = column_of(self._load, self._candidates)
        questions = [
            Question(spec, Words.of(spec.title, spec.description), self._candidates, self._policy, column)
            for spec in self._specs[:KNOWN]
        ]
        left = sieve(self._specs[0], self._candidates, {}, column)
        strategy = self._strategies["learned"]
        return lambda number: strategy.judge(questions[number % KNOWN], left)

    def text(self, number: int) -> str:
        spec = self._specs[number % message.PROJECTS]
        return f"{spec.title} {spec.description} new{number}"

    def _decide(self, spec: TaskSpec) -> Decision:
        return decide(
            spec,
            self._candidates,
            self._policy,
            load=self._load,
            refused={},
            basis=Basis(),
            strategies=self._strategies,
        )


def _lesson(topic: int, spec: TaskSpec) -> Lesson:
    return Lesson(
        position=topic + 1,
        instance=message.ROOT,
        decision=f"decisions/{topic}",
        title=spec.title,
        description=spec.description,
        tags=spec.tags,
        truth=Truth.RIGHT,
        project=f"projects/p{topic}",
        source="bench",
        weight=1.0,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
