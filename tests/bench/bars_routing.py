"""Deciding: how long one decision takes, without a server around it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from hopper_router.model import Basis, Project, TaskSpec
from hopper_router.policy_yaml import load_policy
from hopper_router.routing import Candidates, decide
from tests.bench.bar import Result, bar, quantiles
from tests.bench.rig import Rig

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


def _timed(projects: int, decisions: int) -> list[float]:
    candidates, source = world(projects)
    policy = load_policy(source)
    chance = random.Random(11)
    taken: list[float] = []
    for number in range(decisions + 20):
        spec = task(chance)
        start = time.perf_counter()
        decide(spec, candidates, policy, load={}, refused={}, basis=Basis())
        if number >= 20:  # the first ones warm caches
            taken.append(time.perf_counter() - start)
    return taken


@bar
async def rules_decision(_: Rig) -> Sequence[Result]:
    """A rules decision among 1,000 projects with 2,000 rules, whole record included; and among 10."""
    many, few = quantiles(_timed(1000, 1000)), quantiles(_timed(10, 1000))
    ratio = many["p50_ms"] / few["p50_ms"]
    sides = {"1000 projects": many, "10 projects": few}
    return [
        Result(
            "rules decision, 1,000 projects, p99", many["p99_ms"], "ms", "< 10 ms", many["p99_ms"] < 10, sides
        ),
        Result(
            "rules decision, 1,000 against 10 projects", round(ratio, 2), "x", "<= 12", ratio <= 12, sides
        ),
    ]
