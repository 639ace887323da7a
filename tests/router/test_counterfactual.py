"""What would have changed a decision: each change that is named is made, and the decision is made once more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from hopper_router import routing
from hopper_router.counterfactual import Counterfactual, Kind, Known, counterfactuals
from hopper_router.model import Basis, Candidate, Decision, Factor, Outcome, Project, TaskSpec
from hopper_router.policy_yaml import load_policy
from hopper_router.routing import Candidates
from hopper_router.rules import Policy

WEB = Project(
    "projects/web", display_name="Web", description="pages and forms", tags=frozenset({"ui", "shop"})
)
OPS = Project(
    "projects/ops", display_name="Operations", description="servers", tags=frozenset({"linux", "deploy"})
)
BUILT_IN = load_policy("strategy: rules")


def decide(
    task: TaskSpec,
    projects: Iterable[Project] = (WEB, OPS),
    policy: Policy = BUILT_IN,
    load: Mapping[str, int] | None = None,
) -> Decision:
    return routing.decide(
        task, Candidates.compile(projects), policy, load=load or {}, refused={}, basis=Basis()
    )  # fmt: skip


def changes(
    decision: Decision, task: TaskSpec, projects: Iterable[Project] = (WEB, OPS), **known: Any
) -> dict[tuple[Kind, str], Counterfactual]:
    candidates = Candidates.compile(projects)
    second = next((c.project for c in decision.candidates if c.project != decision.project), "")
    known.setdefault("tags", candidates.folded_tags[candidates.rows[second]] if second else ())
    known.setdefault("tags_of_any", len(candidates.tags.keys() & {tag.casefold() for tag in task.tags}))
    found = counterfactuals(decision, task, Known(**known))
    assert all(change.message for change in found)
    return {(change.kind, change.what): change for change in found}


def rules(*said: tuple[str, str, float]) -> Policy:
    lines = [
        f"{{name: {name}, when: {{keyword: fence}}, then: {{project: {project}, weight: {weight}}}}}"
        for name, project, weight in said
    ]
    return load_policy(f"strategy: rules\nrules: [{', '.join(lines)}]")


def test_without_the_tag_or_with_another_one() -> None:
    task = TaskSpec(title="mend it", tags=("ui",))
    decision = decide(task)
    assert decision.project == WEB.name
    found = changes(decision, task)
    assert (Kind.TAG, "ui") not in found  # without it nothing speaks for anybody: a tie at most
    two = TaskSpec(title="servers", tags=("ui",))
    decision = decide(two)
    assert decision.project == WEB.name
    found = changes(decision, two)
    assert found[Kind.TAG, "ui"].project == OPS.name
    assert decide(replace(two, tags=())).project == OPS.name
    added = found[Kind.TAG, "deploy"]
    assert added.recomputed
    assert decide(replace(two, tags=("ui", "deploy"))).project == OPS.name


def test_without_the_words_that_it_shares() -> None:
    task = TaskSpec(title="pages and forms", tags=("linux",))
    decision = decide(task, policy=load_policy("strategy: rules\nweights: {text: 4.0}"))
    assert decision.project == WEB.name
    found = changes(decision, task)
    (words,) = [change for (kind, _), change in found.items() if kind is Kind.WORD]
    assert words.message.startswith("without the words ")
    assert decide(TaskSpec(title="x", tags=("linux",))).project == OPS.name


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (rules(("a", "web", 1.0)), "a"),
        (rules(("a", "web", 0.5), ("b", "web", 0.5)), "a, b"),
        (rules(("a", "web", 1.0), ("c", "ops", 0.5)), "a"),
        (rules(("c", "ops", -1.0)), "c"),
    ],
)
def test_without_the_rules_that_decided(policy: Policy, named: str) -> None:
    task = TaskSpec(title="servers by the fence")
    decision = decide(task, policy=policy)
    assert decision.project == WEB.name
    assert changes(decision, task)[Kind.RULE, named].project == OPS.name
    left = tuple(rule for rule in policy.rules if rule.name not in named)
    assert decide(task, policy=replace(policy, rules=left)).project == OPS.name


def test_a_rule_for_the_second_has_to_outweigh_the_lead() -> None:
    task = TaskSpec(title="pages by the fence")
    decision = decide(task)
    needed = changes(decision, task)[Kind.RULE, "ops"].needed
    assert needed > 0
    assert decide(task, policy=rules(("r", "ops", needed + 0.001))).project == OPS.name
    assert decide(task, policy=rules(("r", "ops", needed - 0.001))).project == WEB.name


@pytest.mark.parametrize("limit", [0, 40])
def test_so_busy_or_so_idle(limit: int) -> None:
    """Named to the task: with one open task less of a change, nothing would have changed."""
    projects = [replace(project, tags=frozenset(), max_open=limit) for project in (WEB, OPS)]
    policy = load_policy("strategy: rules\nweights: {text: 0.05}")
    task = TaskSpec(title="pages")
    load = {WEB.name: 3, OPS.name: 9}
    decision = decide(task, projects, policy, load)
    assert decision.project == WEB.name
    found = changes(decision, task, projects)
    busier = found[Kind.LOAD, "web"]
    assert (busier.value, "or more at web" in busier.message) == (3, True)
    for extra, wins in ((0, OPS.name), (-1, WEB.name)):
        with_more = load | {WEB.name: int(busier.needed) + extra}
        assert decide(task, projects, policy, with_more).project == wins
    idler = found.get((Kind.LOAD, "ops"))
    if idler is not None:
        for extra, wins in ((0, OPS.name), (1, WEB.name)):
            with_fewer = load | {OPS.name: int(idler.needed) + extra}
            assert decide(task, projects, policy, with_fewer).project == wins


def test_with_another_weight() -> None:
    task = TaskSpec(title="servers", tags=("ui",))
    decision = decide(task)
    found = changes(decision, task)
    for name in ("tags", "text"):
        needed, value = found[Kind.WEIGHT, name].needed, found[Kind.WEIGHT, name].value
        for beyond, wins in ((0.01, OPS.name), (-0.01, WEB.name)):
            step = beyond if needed > value else -beyond
            policy = load_policy(f"strategy: rules\nweights: {{{name}: {needed + step}}}")
            assert decide(task, policy=policy).project == wins
    assert (Kind.WEIGHT, "workload") not in found  # in which the two do not differ


def test_with_another_threshold() -> None:
    task = TaskSpec(title="pages")
    sure = changes(decide(task), task)[Kind.THRESHOLD, "threshold"]
    strict = f"strategy: rules\nthreshold: {sure.needed + 0.001}\non_unsure: ask"
    unsure = decide(task, policy=load_policy(strict))
    assert unsure.outcome is Outcome.UNSURE
    lenient = changes(unsure, task)[Kind.THRESHOLD, "threshold"]
    assert lenient.project == WEB.name
    policy = load_policy(f"strategy: rules\nthreshold: {lenient.needed}\non_unsure: ask")
    assert decide(task, policy=policy).project == WEB.name


def test_somebody_else_could_have_had_it() -> None:
    able = replace(OPS, capabilities=frozenset({"html"}), paused=True)
    task = TaskSpec(title="x", required_capabilities=("html",))
    decision = decide(task, (WEB, able))
    assert decision.outcome is Outcome.NO_CANDIDATE
    found = changes(decision, task, (WEB, able), tags=())
    assert found[Kind.FILTER, "project-paused"].project == OPS.name
    pinned = decide(TaskSpec(title="x", project=WEB.name))
    assert (Kind.PIN, "web") in changes(pinned, task)


def test_words_by_what_was_learned() -> None:
    """A word that moved the first further ahead than it is."""

    def candidate(name: str, score: float) -> Candidate:
        return Candidate(f"projects/{name}", score, 0.5, (Factor("learned", score / 2.0, 2.0, ("50%",)),))

    decision = Decision(
        Outcome.ROUTED, "projects/a", 0.6, "learned", candidates=(candidate("a", 1.3), candidate("b", 1.0))
    )
    moved = {"projects/a": {"zebra": 3.0, "where": 1.9}, "projects/b": {"zebra": 0.5, "lion": 9.0}}
    found = counterfactuals(decision, TaskSpec(title="where is the zebra"), Known(moved=moved))
    words = [change for change in found if change.kind is Kind.WORD]
    assert [(change.what, change.project, change.recomputed) for change in words] == [
        ("zebra", "projects/b", True)
    ]
    assert all(
        change.kind is not Kind.WEIGHT for change in found
    )  # nobody sets the weight of what was learned


def test_a_tie_and_a_lone_candidate_and_nobody() -> None:
    twins = [Project(f"projects/{name}") for name in ("a", "b")]
    task = TaskSpec(title="x")
    tie = changes(decide(task, twins), task, twins)
    assert tie[Kind.LOAD, decide(task, twins).project.removeprefix("projects/")].needed == 1
    alone = decide(task, (WEB,))
    assert changes(alone, task, (WEB,)) == {}
    assert changes(decide(task, ()), task, ()) == {}
