"""Loads that are kept up to date decide as those that are built anew; and what is kept changes no decision."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper_router import routing
from hopper_router.candidates import Candidates
from hopper_router.load import Load
from hopper_router.model import Basis, Candidate, Clocks, Decision, TaskSpec
from hopper_router.policy_yaml import BUILT_IN
from hopper_router.rules import FACTORS, Policy
from hopper_router.words import STOP_WORDS, fold, tokens
from tests.router.test_routing import CLOCKED, Plainly, random_policy, random_projects, random_tasks

SEEDS = st.integers(0, 2**32)
LATER = datetime(2030, 1, 1, tzinfo=UTC)


def variants(rng: random.Random, count: int) -> list[TaskSpec]:
    """Tasks that also differ in what they require, and in how urgent they are."""
    return [
        dataclasses.replace(
            task,
            clocks=rng.choice([Clocks(), Clocks(), Clocks(finish_by=LATER)]),
            description=task.description + rng.choice(["", " über naïve Straße", " C++ x", " word" * 400]),
        )
        for task in random_tasks(rng, count)
    ]


# ---------------------------------------------------------------- load


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 30))
def test_a_load_that_is_kept_decides_as_one_that_is_built_anew(seed: int, size: int) -> None:
    rng = random.Random(seed)
    projects = random_projects(rng, size)
    policy = random_policy(rng, 10, size)
    tasks = variants(rng, 5)
    candidates, kept, counts = Candidates.compile(projects), Load(), Counter[str]()
    for _ in range(30):
        for _ in range(rng.choice([0, 1, 1, 1, 40])):
            name = f"projects/p{rng.randrange(size + 1)}"  # the last is not registered
            step = rng.choice([1, 1, 1, 25, -1 if counts[name] else 1, -counts[name]])
            counts[name] += step
            kept.add(name, step)
            if not rng.randrange(10):
                kept = kept.copy()
        task, refused = rng.choice(tasks), rng.choice([{}, {"projects/p0": "path"}])

        fresh, fast = (
            routing.decide(task, on, policy, load=load, refused=refused, basis=Basis())
            for on, load in ((Candidates.compile(projects), dict(counts)), (candidates, kept))
        )

        assert fast == fresh
        assert all(kept[name] == count for name, count in counts.items())


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_a_load_follows_other_candidates(seed: int) -> None:
    rng = random.Random(seed)
    projects = random_projects(rng, 6)
    counts = {p.name: rng.randint(0, 20) for p in projects}
    load, task = Load(counts), random_tasks(rng, 1)[0]
    for some in (projects, projects[1:], projects[:3], projects):
        candidates = Candidates.compile(some)

        fresh, fast = (
            routing.decide(task, candidates, BUILT_IN, load=given, refused={}, basis=Basis())
            for given in (counts, load)
        )

        assert fast == fresh


def test_a_copy_of_a_load_is_its_own() -> None:
    load = Load({"projects/a": 1})
    copy = load.copy()
    copy.add("projects/a")
    load["projects/b"] += 2

    assert (dict(load), dict(copy)) == (
        {"projects/a": 1, "projects/b": 2},
        {"projects/a": 2},
    )


def test_threads_may_share_a_load() -> None:
    projects = random_projects(random.Random(3), 20)
    candidates, load = Candidates.compile(projects), Load()
    tasks = random_tasks(random.Random(4), 10)

    def decide_and_count(_: int) -> None:
        for task in tasks * 10:
            decision = routing.decide(task, candidates, BUILT_IN, load=load, refused={}, basis=Basis())
            for candidate in decision.candidates:
                parts = sum(factor.value * factor.weight for factor in candidate.factors)
                assert candidate.score == pytest.approx(parts, abs=1e-8)
            load.add(decision.project or "projects/p0")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(decide_and_count, range(4)))
    assert sum(load.values()) == 4 * 10 * len(tasks)


# ---------------------------------------------------------------- the whole record, plainly


class Recorded(Plainly):
    """The record of a decision as the documentation tells it."""

    def shared_words(self, name: str) -> tuple[str, ...]:
        (mine,) = [self.words_of(p) for p in self.projects if p.name == name]
        owners = {word: sum(word in words for words in self.words) for word in mine}
        written: dict[str, str] = {}
        for word in [*tokens(self.task.title), *tokens(self.task.description[:1_500])]:
            if word not in STOP_WORDS:
                written.setdefault(fold(word), word)
        shared = [word for word in mine if word in written]
        size = len(self.projects)
        weigh = {word: mine[word] * _idf(size, owners[word]) for word in shared}
        shared.sort(key=lambda word: (-round(weigh[word], 9), word))
        return tuple(written[word] for word in shared[:10])

    def check(self, candidate: Candidate) -> None:
        values = {f.name: f.value for f in candidate.factors}
        assert values == pytest.approx(self.made_of[candidate.project], abs=1e-8)
        evidence = {f.name: f.evidence for f in candidate.factors}
        (project,) = [p for p in self.projects if p.name == candidate.project]
        own_tags = {tag.casefold() for tag in project.tags}
        load = self.load.get(project.name, 0)
        assert evidence["text"] == self.shared_words(project.name)
        assert evidence["tags"] == tuple(t for t in dict.fromkeys(self.task.tags) if t.casefold() in own_tags)
        assert evidence["rules"] == tuple(r.name for r in self.rules if r.project == project.name)[:10]
        assert evidence["capability"] == tuple(dict.fromkeys(self.task.required_capabilities))
        assert evidence["workload"] == (
            f"{load} open of {project.max_open}" if project.max_open else f"{load} open",
        )
        assert bool(evidence["velocity"]) == (project.velocity > 0)
        assert bool(evidence["cost"]) == (project.cost > 0)
        assert bool(evidence["sla"]) == (project.sla is not None)


def _idf(size: int, owners: int) -> float:
    return math.log(size / owners) / math.log(max(size, 2))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(2, 25))
def test_every_line_of_a_record_is_that_of_a_plain_implementation(seed: int, size: int) -> None:
    rng = random.Random(seed)
    projects = random_projects(rng, size)
    policy = random_policy(rng, 30, size)
    load = {p.name: rng.randint(0, 25) for p in projects if rng.random() < 0.5}
    (task,) = random_tasks(rng, 1)
    plain = Recorded(task, projects, policy, load, {})
    outcome, strategy = plain.decide()

    decision = routing.decide(
        task, Candidates.compile(projects), policy, load=load, refused={}, basis=Basis()
    )

    assert (decision.outcome, decision.strategy) == (outcome, strategy)
    for candidate in decision.candidates:
        assert candidate.confidence == pytest.approx(plain.shares[candidate.project], abs=1e-7)
        assert candidate.score == pytest.approx(plain.scores[candidate.project], abs=2e-9)
        assert [factor.name for factor in candidate.factors] == [
            name for name in FACTORS if name not in CLOCKED
        ]
        plain.check(candidate)
    best = sorted(plain.scores.values(), reverse=True)[: len(decision.candidates)]
    if strategy != "default":
        assert [c.score for c in decision.candidates] == pytest.approx(best, abs=2e-9)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_what_other_tasks_left_behind_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    projects = random_projects(rng, 12)
    policies: list[Policy] = [BUILT_IN, random_policy(rng, 10, 12), random_policy(rng, 10, 12)]
    tasks = variants(rng, 4)
    used = Candidates.compile(projects)
    for _ in range(20):
        task, policy = rng.choice(tasks), rng.choice(policies)
        load = {p.name: rng.randint(0, 20) for p in projects if rng.random() < 0.3}

        again, first = (
            routing.decide(task, on, policy, load=load, refused={}, basis=Basis())
            for on in (used, Candidates.compile(projects))
        )

        assert again == first


# ---------------------------------------------------------------- processes


def decisions(seed: int) -> list[Decision]:
    """Some decisions, the same ones for the same seed."""
    rng = random.Random(seed)
    projects = random_projects(rng, 40)
    candidates, policy = Candidates.compile(projects), random_policy(rng, 60, 40)
    return [
        routing.decide(task, candidates, policy, load={"projects/p3": 4}, refused={}, basis=Basis())
        for task in variants(rng, 20)
    ]


def test_every_process_decides_to_the_last_bit_alike() -> None:
    code = "from tests.router.test_load import decisions; print(repr(decisions(5)))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }

    assert said == {repr(decisions(5)) + "\n"}
