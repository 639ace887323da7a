"""Small made-up streams of tasks: each target has words of its own, and all share the rest."""

import hashlib
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hopper_learning import Model, Settings, Target, Text
from hopper_learning.encoder import WIDTH, Vector

COMMON: Final = [f"common{number}" for number in range(80)]


class Lesson(NamedTuple):
    text: Text
    target: str


class HashEncoder:
    """A real encoder without meaning: a fixed random vector for each word, added up."""

    version = "hash-1"

    def encode(self, text: str) -> Vector:
        total = np.zeros(WIDTH, np.float32)
        for word in text.casefold().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            total += np.random.default_rng(seed).standard_normal(WIDTH, np.float32)
        length = float(np.sqrt((total * total).sum()))
        return total / np.float32(length) if length else total


def target(number: int) -> Target:
    return Target(f"projects/p{number}", f"Project{number}", f"all about area{number}")


def stream(length: int, *, targets: int = 6, seed: int = 0, own_words: int = 25) -> list[Lesson]:
    """*length* tasks whose titles hold two of their target's own words among three that say nothing."""
    rng = random.Random(seed)
    lessons = []
    for _ in range(length):
        number = rng.randrange(targets)
        own = [f"word{number}x{rng.randrange(own_words)}" for _ in range(3)]
        title = [*own[:2], *rng.sample(COMMON, 3)]
        rng.shuffle(title)
        description = " ".join([own[2], *rng.sample(COMMON, 8)])
        lessons.append(Lesson(Text(" ".join(title), description, ("type:Bug",)), f"projects/p{number}"))
    return lessons


def model(targets: int = 6, *, encoder: bool = True, settings: Settings | None = None) -> Model:
    """A model that knows *targets* targets and has had no lesson."""
    fresh = Model(HashEncoder() if encoder else None, settings)
    for number in range(targets):
        fresh.add(target(number))
    return fresh


def taught(lessons: Sequence[Lesson], **options: bool | int) -> Model:
    """A model that has had *lessons*."""
    student = model(**options)  # type: ignore[arg-type]
    for text, right in lessons:
        student.learn(text, right)
    return student


def correct(student: Model, lessons: Sequence[Lesson]) -> float:
    """The share of *lessons* whose target comes first."""
    return sum(student.predict(text).ids[0] == right for text, right in lessons) / len(lessons)
