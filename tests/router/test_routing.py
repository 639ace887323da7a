"""Deciding: filters, factors, confidence, ties; and the same answers as a plain implementation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper_router import routing
from hopper_router.candidates import Candidates
from hopper_router.model import Basis, Candidate, Clocks, Decision, Outcome, Project, TaskSpec
from hopper_router.policy_yaml import BUILT_IN, check_policy, load_policy, unknown_projects
from hopper_router.rules import FACTORS, Policy
from hopper_router.words import STOP_WORDS, Text, fold, tokens

CLOCKED = ("deadline", "hours")
"""The factors that are there only where there is a deadline, or somebody is closed."""
BASIS = Basis(projects_version=7, policy="instances/global/policy", policy_version=3)


def project(project_id: str, **facts: Any) -> Project:
    return Project(f"projects/{project_id}", **facts)


def decide(
    task: TaskSpec | str,
    projects: Iterable[Project],
    policy: Policy | str = BUILT_IN,
    *,
    load: Mapping[str, int] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Decision:
    """`routing.decide` with ids instead of names, and a title or a policy's text where that is enough."""
    return routing.decide(
        TaskSpec(task) if isinstance(task, str) else task,
        Candidates.compile(projects),
        load_policy(policy) if isinstance(policy, str) else policy,
        load={f"projects/{name}": count for name, count in (load or {}).items()},
        refused={f"projects/{name}": why for name, why in (refused or {}).items()},
        basis=BASIS,
    )


def ids(candidates: Iterable[Candidate]) -> list[str]:
    return [candidate.project.removeprefix("projects/") for candidate in candidates]


def factor(decision: Decision, project_id: str, name: str) -> float:
    (candidate,) = [c for c in decision.candidates if c.project == f"projects/{project_id}"]
    (value,) = [f.value for f in candidate.factors if f.name == name]
    return value


def evidence(decision: Decision, name: str) -> tuple[str, ...]:
    """What stands behind a factor of the best candidate."""
    (found,) = [f.evidence for f in decision.candidates[0].factors if f.name == name]
    return found


def excluded(decision: Decision) -> dict[str, tuple[list[str], str]]:
    return {
        e.filter: ([name.removeprefix("projects/") for name in e.projects], e.detail)
        for e in decision.exclusions
    }


def rules(*lines: str, more: str = "") -> str:
    """A policy of rules `when -> project, weight, priority`."""
    parsed = [line.split(" -> ") for line in lines]
    body = "".join(
        f"  - {{name: r{i}, when: {when}, then: {{project: {then.split()[0]}, weight: {then.split()[1]}}}, "
        f"priority: {then.split()[2]}}}\n"
        for i, (when, then) in enumerate(parsed)
    )
    return f"{more}\nrules:\n{body}"


# ---------------------------------------------------------------- filters


PAIR = [project("a", capabilities=frozenset({"py"})), project("b", capabilities=frozenset({"py", "gpu"}))]


def test_a_refused_project_is_excluded_under_the_callers_name() -> None:
    decision = decide(
        "t",
        [*PAIR, project("c")],
        refused={"a": "rejected-before", "b": "instance-not-running", "zz": "path"},
    )

    assert excluded(decision) == {"rejected-before": (["a"], ""), "instance-not-running": (["b"], "")}
    assert (decision.project, decision.strategy, decision.eligible_count) == (
        "projects/c",
        "only-candidate",
        1,
    )


def test_a_paused_project_is_excluded() -> None:
    decision = decide("t", [project("a", paused=True), project("b")])

    assert excluded(decision) == {"project-paused": (["a"], "")}
    assert decision.project == "projects/b"


def test_missing_capabilities_are_named_and_counted() -> None:
    decision = decide(TaskSpec("t", required_capabilities=("gpu", "py")), [*PAIR, project("c")])

    assert excluded(decision) == {"capability": (["a", "c"], "missing gpu (2), py (1)")}
    assert decision.project == "projects/b"


def test_a_capability_that_nobody_has_leaves_nobody() -> None:
    decision = decide(TaskSpec("t", required_capabilities=("quantum",)), PAIR)

    assert decision.outcome is Outcome.NO_CANDIDATE
    assert excluded(decision) == {"capability": (["a", "b"], "missing quantum (2)")}
    assert decision.reasoning == "nobody can take it: 2 by capability (missing quantum (2))"
    assert (decision.project, decision.confidence, decision.candidates) == ("", 0.0, ())


def test_labels_must_be_there_with_exactly_that_value() -> None:
    projects = [project("a", labels={"region": "us"}), project("b", labels={"region": "eu"}), project("c")]

    decision = decide(TaskSpec("t", required_labels={"region": "eu"}), projects)

    assert excluded(decision) == {"label": (["a", "c"], "missing region=eu (2)")}
    assert decision.project == "projects/b"


def test_only_projects_that_need_a_live_worker_are_excluded_without_one() -> None:
    projects = [
        project("a", requires_live_worker=True),
        project("b", requires_live_worker=True, live_workers=1),
        project("c"),
    ]

    assert excluded(decide("t", projects)) == {"no-live-worker": (["a"], "")}


def test_a_full_project_is_excluded() -> None:
    projects = [project("a", max_open=3), project("b", max_open=3), project("c")]

    decision = decide("t", projects, load={"a": 3, "b": 2, "c": 1000})

    assert excluded(decision) == {"capacity": (["a"], "")}


def test_a_pin_excludes_all_others_and_decides() -> None:
    decision = decide(TaskSpec("the a team", project="projects/b"), PAIR)

    assert (decision.outcome, decision.project) == (Outcome.ROUTED, "projects/b")
    assert (decision.strategy, decision.confidence) == ("pin", 1.0)
    assert excluded(decision) == {"pin": (["a"], "the requester wants b")}
    assert ids(decision.candidates) == ["b"]
    assert factor(decision, "b", "workload") == 1.0, "scores are recorded all the same"


def test_a_pin_bypasses_no_filter() -> None:
    decision = decide(TaskSpec("t", project="projects/a"), [project("a", paused=True), project("b")])

    assert (decision.outcome, decision.strategy) == (Outcome.NO_CANDIDATE, "pin")
    assert excluded(decision) == {"project-paused": (["a"], ""), "pin": (["b"], "the requester wants a")}


def test_a_pin_to_a_project_nobody_knows_says_so() -> None:
    decision = decide(TaskSpec("t", project="projects/zz"), PAIR)

    assert decision.outcome is Outcome.NO_CANDIDATE
    assert decision.reasoning == "the requester wants zz, which is not registered"


def test_each_project_counts_for_the_first_filter_that_rules_it_out() -> None:
    bad: dict[str, Any] = {"paused": True, "requires_live_worker": True, "max_open": 1}
    able = {"capabilities": frozenset({"c"}), "labels": {"k": "v"}}
    projects = [
        project("f1", **bad),
        project("f2", **bad),
        project("f3", **bad | {"paused": False}),
        project("f4", **bad | {"paused": False, "capabilities": frozenset({"c"})}),
        project("f5", **bad | able | {"paused": False}),
        project("f6", **able, max_open=1),
        project("f7", **able),
        project("f8", **able),
    ]
    task = TaskSpec("t", required_capabilities=("c",), required_labels={"k": "v"}, project="projects/f8")

    decision = decide(task, projects, load=dict.fromkeys([p.id for p in projects], 1), refused={"f1": "path"})

    assert [(e.filter, e.projects) for e in decision.exclusions] == [
        ("path", ("projects/f1",)),
        ("project-paused", ("projects/f2",)),
        ("capability", ("projects/f3",)),
        ("label", ("projects/f4",)),
        ("no-live-worker", ("projects/f5",)),
        ("capacity", ("projects/f6",)),
        ("pin", ("projects/f7",)),
    ]
    assert decision.project == "projects/f8"


def test_an_exclusion_names_twenty_and_counts_all() -> None:
    decision = decide("t", [project(f"p{i:02}", paused=True) for i in range(30)])

    (exclusion,) = decision.exclusions
    assert (exclusion.count, len(exclusion.projects), exclusion.projects[0]) == (30, 20, "projects/p00")


def test_without_projects_there_is_no_candidate() -> None:
    decision = decide("t", [])

    assert (decision.outcome, decision.reasoning) == (Outcome.NO_CANDIDATE, "no project is registered")
    assert decision.basis == BASIS


def test_two_projects_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Candidates.compile([project("a"), project("a")])


# ---------------------------------------------------------------- factors


def test_rules_add_up_per_project() -> None:
    policy = rules("{keyword: refund} -> a 1.5 0", "{keyword: money} -> a 1 0", "{keyword: money} -> b 2 0")

    decision = decide("refund the money", PAIR, policy)

    assert ids(decision.candidates) == ["a", "b"]
    assert (factor(decision, "a", "rules"), factor(decision, "b", "rules")) == (2.5, 2.0)
    assert evidence(decision, "rules") == ("r0", "r1")


def test_a_rule_can_speak_against_a_project() -> None:
    decision = decide("refund", PAIR, rules("{keyword: refund} -> a -2 0"))

    assert ids(decision.candidates) == ["b", "a"]
    assert factor(decision, "a", "rules") == -2.0


def test_only_fired_rules_of_the_greatest_priority_count() -> None:
    policy = rules("{keyword: refund} -> a 9 1", "{keyword: refund} -> b 1 5", "{keyword: other} -> a 9 9")

    decision = decide("refund", PAIR, policy)

    assert decision.project == "projects/b"
    assert factor(decision, "a", "rules") == 0.0


def test_rules_for_projects_that_cannot_take_the_task_do_not_silence_others() -> None:
    policy = rules("{keyword: refund} -> a 1 9", "{keyword: refund} -> zz 1 9", "{keyword: refund} -> b 1 0")

    decision = decide("refund", [*PAIR, project("c")], policy, refused={"a": "path"})

    assert (decision.project, factor(decision, "b", "rules")) == ("projects/b", 1.0)


def test_shared_tags_speak_for_a_project_in_any_case() -> None:
    projects = [
        project("a", tags=frozenset({"Billing"})),
        project("b", tags=frozenset({"billing", "urgent"})),
    ]

    decision = decide(TaskSpec("t", tags=("BILLING", "urgent", "type:Bug")), projects)

    assert [factor(decision, p, "tags") for p in "ab"] == [0.5, 1.0], "tags that no project has do not count"
    assert evidence(decision, "tags") == ("BILLING", "urgent")


def test_a_specialist_comes_before_a_generalist() -> None:
    decision = decide(TaskSpec("t", required_capabilities=("py",)), PAIR)

    assert decision.project == "projects/a"
    assert [factor(decision, p, "capability") for p in "ab"] == [1.0, 0.5]
    assert evidence(decision, "capability") == ("py",)


def test_shared_words_speak_for_a_project() -> None:
    projects = [
        project("a", display_name="Payments", description="Invoices and refunds"),
        project("b", display_name="Shipping", description="Parcels", examples=("Where is the parcel?",)),
    ]

    decision = decide(TaskSpec("Refund of an invoice", description="The Payment was late."), projects)

    assert decision.project == "projects/a"
    assert decision.strategy == "rules"
    assert set(evidence(decision, "text")) == {"refund", "invoice", "payment"}
    assert 0 < factor(decision, "a", "text") <= 1
    assert factor(decision, "b", "text") == 0
    assert decide("parcel", projects).project == "projects/b"
    assert decide("shipping", projects).project == "projects/b"


def test_a_word_of_the_title_counts_twice_one_of_the_description() -> None:
    projects = [project("a", display_name="apples"), project("b", display_name="pears")]

    decision = decide(TaskSpec("apples", description="pears"), projects)

    assert factor(decision, "a", "text") == pytest.approx(2 * factor(decision, "b", "text"))


def test_a_word_that_all_projects_have_says_nothing() -> None:
    projects = [project("a", description="server apples"), project("b", description="server pears")]

    assert decide("server", projects).strategy == "default"


def test_text_far_down_the_description_is_not_compared() -> None:
    projects = [project("a", description="apples"), project("b", description="pears")]

    assert decide(TaskSpec("t", description="x " * 750 + "apples"), projects).strategy == "default"


def test_the_less_loaded_of_two_equal_experts_wins() -> None:
    twins = [project("a", description="apples"), project("b", description="apples"), project("c")]

    assert decide("apples", twins, load={"a": 3, "b": 2}).project == "projects/b"
    assert decide("apples", twins, load={"a": 2, "b": 3}).project == "projects/a"


def test_load_is_measured_against_capacity_or_else_against_the_busiest() -> None:
    projects = [project("a", max_open=4), project("b"), project("c"), project("d", max_open=1000)]

    decision = decide("t", projects, load={"a": 1, "b": 20, "c": 5, "d": 500})

    assert [factor(decision, p, "workload") for p in "abcd"] == [0.75, 0.0, 0.75, 0.5]
    assert factor(decide("t", projects, load={"b": 1}), "b", "workload") == 0.9, "one task is no full house"


def test_speed_counts_more_when_it_is_urgent() -> None:
    projects = [project("slow", velocity=1), project("fast", velocity=3), project("new")]
    deadline = Clocks(finish_by=datetime(2030, 1, 1, tzinfo=UTC))

    lead = {
        name: factor(decision, "fast", "velocity") - factor(decision, "slow", "velocity")
        for name, decision in {
            "calm": decide("t", projects),
            "important": decide(TaskSpec("t", priority=100), projects),
            "deadline": decide(TaskSpec("t", clocks=deadline), projects),
        }.items()
    }

    assert 0 < lead["calm"] < lead["deadline"] < lead["important"]
    assert factor(decide("t", projects), "new", "velocity") == 0.5


def test_cost_and_sla_prefer_the_smallest_and_hold_nothing_against_the_silent() -> None:
    day = timedelta(days=1)
    projects = [
        project("a", cost=1, sla=4 * day),
        project("b", cost=2, sla=day),
        project("c", cost=4),
        project("d"),
    ]

    decision = decide("t", projects)

    assert [factor(decision, p, "cost") for p in "abcd"] == [1.0, 0.5, 0.25, 0.5]
    assert [factor(decision, p, "sla") for p in "abcd"] == [0.25, 1.0, 0.625, 0.625]


def test_boosts_add_up_for_the_tasks_tags() -> None:
    projects = [project("a", boosts={"vip": 2.0, "Late": 0.5}), project("b", boosts={"vip": -1.0})]

    decision = decide(TaskSpec("t", tags=("VIP", "late")), projects)

    assert [factor(decision, p, "boost") for p in "ab"] == [2.5, -1.0]
    assert evidence(decision, "boost") == ("VIP", "late")


def test_weights_scale_factors() -> None:
    projects = [project("a", description="apples"), project("b", tags=frozenset({"t"}))]
    task = TaskSpec("apples", tags=("t",))

    assert decide(task, projects, "weights: {text: 0}").project == "projects/b"
    assert decide(task, projects, "weights: {tags: 0}").project == "projects/a"


# ---------------------------------------------------------------- choosing


def test_a_lone_candidate_has_all_the_confidence() -> None:
    decision = decide("t", [project("a")], "threshold: 1.0\non_unsure: ask")

    assert (decision.outcome, decision.strategy, decision.confidence) == (
        Outcome.ROUTED,
        "only-candidate",
        1.0,
    )


def test_without_evidence_the_default_project_gets_the_task_with_honest_confidence() -> None:
    projects = [project(f"p{i}") for i in range(20)]

    decision = decide("t", projects, "default_project: p19\nthreshold: 0.5\non_unsure: ask", load={"p19": 5})

    assert (decision.outcome, decision.project, decision.strategy) == (
        Outcome.ROUTED,
        "projects/p19",
        "default",
    )
    assert decision.confidence < 0.06
    assert ids(decision.candidates)[-1] == "p19", "recorded, though it is not among the best"
    assert len(decision.candidates) == routing.MAX_RECORDED
    assert decision.reasoning == "nothing speaks for anybody, and such tasks go to p19"


def test_without_evidence_and_default_the_best_placed_gets_it() -> None:
    decision = decide(
        "t", [project("a"), project("b"), project("c")], "default_project: d", load={"a": 2, "c": 1}
    )

    assert (decision.project, decision.strategy) == ("projects/b", "default")
    assert decision.confidence == pytest.approx(1 / 3, abs=0.1)
    assert decision.reasoning == "nothing speaks for anybody; of 3 that can take it, b is best placed"


def test_evidence_beats_the_default_project() -> None:
    projects = [project("a", description="apples"), project("inbox")]

    assert decide("apples", projects, "default_project: inbox").project == "projects/a"


@pytest.mark.parametrize(
    ("on_unsure", "outcome", "chosen"),
    [("route", Outcome.ROUTED, "projects/a"), ("ask", Outcome.UNSURE, ""), ("reject", Outcome.REJECTED, "")],
)
def test_below_the_threshold_the_policy_says_what_happens(
    on_unsure: str, outcome: Outcome, chosen: str
) -> None:
    policy = rules(
        "{keyword: refund} -> a 1 0",
        "{keyword: refund} -> b 0.95 0",
        more=f"threshold: 0.9\non_unsure: {on_unsure}",
    )

    decision = decide("refund", PAIR, policy)

    assert (decision.outcome, decision.project) == (outcome, chosen)
    assert decision.confidence == decision.candidates[0].confidence < 0.9
    assert "is less than the 0.90 that the policy asks for" in decision.reasoning
    assert decide("refund", PAIR, policy.replace("0.9\n", "0.5\n")).outcome is Outcome.ROUTED


def test_the_reasoning_names_what_speaks_and_the_runner_up() -> None:
    projects = [project("pay", description="refunds", tags=frozenset({"billing"})), project("ship")]

    decision = decide(
        TaskSpec("A refund", tags=("billing",)), projects, rules("{keyword: refund} -> pay 1 0")
    )

    share, other = (candidate.confidence for candidate in decision.candidates)
    assert decision.reasoning == (
        f"the rule r0, the tag billing and the word refund speak for pay, {share:.2f} against {other:.2f} for ship"
    )


def test_the_reasoning_holds_no_text_that_did_not_match() -> None:
    projects = [project("pay", description="refunds"), project("ship")]

    decision = decide(TaskSpec("Refund Mallory", description="secret 1234"), projects)

    told = decision.reasoning + repr(decision.candidates)
    assert "refund" in told
    assert not {"mallory", "secret", "1234"} & set(tokens(told))


def test_confidence_follows_the_documented_formula() -> None:
    policy = rules("{keyword: refund} -> a 0.3 0", "{keyword: refund} -> b 0.1 0")
    projects = [project("a"), project("b"), project("c")]

    decision = decide("refund", projects, policy)

    masses = [1 / 3 + math.expm1(0.3 / 0.15), 1 / 3 + math.expm1(0.1 / 0.15), 1 / 3]
    assert [c.confidence for c in decision.candidates] == pytest.approx(
        [mass / sum(masses) for mass in masses]
    )


def test_a_clear_rule_is_as_sure_among_a_thousand_as_among_ten() -> None:
    for count in (10, 1000):
        decision = decide(
            "refund", [project(f"p{i}") for i in range(count)], rules("{keyword: refund} -> p7 1 0")
        )
        assert decision.confidence > 0.99


def test_enormous_scores_do_not_overflow() -> None:
    policy = rules(*(f"{{keyword: refund}} -> {'ab'[i % 2]} 10 0" for i in range(100)))

    decision = decide("refund", PAIR, policy)

    assert [c.confidence for c in decision.candidates] == pytest.approx([0.5, 0.5])


def test_full_ties_are_spread_over_projects_by_title_and_always_the_same_way() -> None:
    projects = [project(f"p{i}") for i in range(5)]

    chosen = [decide(f"task {i}", projects).project for i in range(50)]

    assert len(set(chosen)) == 5
    assert chosen == [decide(f"task {i}", projects).project for i in range(50)]
    assert chosen[:3] == ["projects/p4", "projects/p1", "projects/p0"], "in every process and release"


# ---------------------------------------------------------------- why not


def test_why_not_names_the_filter_and_what_is_missing() -> None:
    projects = [
        project("refused"),
        project("paused", paused=True),
        project("unable", capabilities=frozenset({"a"})),
        project("elsewhere", capabilities=frozenset("ab"), labels={"k": "w"}),
        project("alone", capabilities=frozenset("ab"), labels={"k": "v"}, requires_live_worker=True),
        project("full", capabilities=frozenset("ab"), labels={"k": "v"}, max_open=2),
        project("other", capabilities=frozenset("ab"), labels={"k": "v"}),
        project("pinned", capabilities=frozenset("ab"), labels={"k": "v"}),
    ]
    task = TaskSpec(
        "t", required_capabilities=("a", "b"), required_labels={"k": "v"}, project="projects/pinned"
    )

    def ask(project_id: str) -> tuple[str, str]:
        answer = routing.why_not(
            task,
            Candidates.compile(projects),
            BUILT_IN,
            f"projects/{project_id}",
            load={"projects/full": 3},
            refused={"projects/refused": "path"},
        )
        assert (answer.candidate, answer.rank) == (None, 0)
        return answer.filter, answer.detail

    assert {p: ask(p) for p in [*(p.id for p in projects[:-1]), "zz"]} == {
        "refused": ("path", ""),
        "paused": ("project-paused", "it is paused"),
        "unable": ("capability", "missing b"),
        "elsewhere": ("label", "missing k=v"),
        "alone": ("no-live-worker", "it needs a live worker and has none"),
        "full": ("capacity", "3 open tasks, and it takes 2"),
        "other": ("pin", "the requester wants pinned"),
        "zz": ("not-registered", "projects/zz is not registered"),
    }


def test_why_not_ranks_and_scores_beyond_the_record() -> None:
    compiled = Candidates.compile([project(f"p{i:02}", max_open=100) for i in range(30)])
    load = {f"projects/p{i:02}": i for i in range(30)}

    answer = routing.why_not(TaskSpec("t"), compiled, BUILT_IN, "projects/p25", load=load, refused={})

    assert (answer.filter, answer.rank) == ("", 26)
    assert answer.candidate is not None
    assert answer.candidate.factors[FACTORS.index("workload")].value == 0.75


def test_ranks_break_ties_as_the_record_does() -> None:
    projects = [project(f"p{i}") for i in range(6)]
    compiled = Candidates.compile(projects)

    recorded = [c.project for c in decide("t", projects, load={"p1": 3}).candidates]
    ranks = {
        p.name: routing.why_not(
            TaskSpec("t"), compiled, BUILT_IN, p.name, load={"projects/p1": 3}, refused={}
        ).rank
        for p in projects
    }

    assert sorted(ranks, key=ranks.__getitem__)[: len(recorded)] == recorded
    assert sorted(ranks.values()) == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- compiling


def test_recompiling_with_what_was_compiled_before_changes_nothing() -> None:
    projects = random_projects(random.Random(1), 40)
    changed = [dataclasses.replace(projects[0], description="quite new words"), *projects[2:], project("zz")]
    presence = [dataclasses.replace(p, live_workers=3) for p in projects]
    before = Candidates.compile(projects)

    assert Candidates.compile(presence, previous=before).text is before.text
    for after in (changed, presence):
        for task in random_tasks(random.Random(2), 10):
            fresh, reused = (
                routing.decide(task, c, BUILT_IN, load={}, refused={}, basis=BASIS)
                for c in (Candidates.compile(after), Candidates.compile(after, previous=before))
            )
            assert fresh == reused


# ---------------------------------------------------------------- a plain implementation to compare with

VOCABULARY = [
    a + b + c for a, b, c in itertools.product("bdfkm", ("aro", "ilu", "eno", "uta"), ("n", "x", "z"))
]


def random_projects(rng: random.Random, count: int) -> list[Project]:
    def words(most: int) -> str:
        return " ".join(rng.choices(VOCABULARY, k=rng.randint(0, most)))

    return [
        project(
            f"p{i}",
            display_name=words(2),
            description=words(12),
            examples=tuple(words(4) for _ in range(rng.randint(0, 2))),
            capabilities=frozenset(rng.sample(["c1", "c2", "c3"], rng.randint(0, 3))),
            tags=frozenset(rng.sample(["T1", "t2", "t3"], rng.randint(0, 2))),
            labels=rng.choice([{}, {"k": "v"}, {"k": "w"}]),
            velocity=rng.choice([0.0, 1.0, 2.5]),
            sla=rng.choice([None, timedelta(hours=1), timedelta(days=2)]),
            max_open=rng.choice([0, 0, 3, 20]),
            cost=rng.choice([0.0, 1.0, 3.0]),
            requires_live_worker=rng.random() < 0.2,
            live_workers=rng.randint(0, 1),
            boosts=rng.choice([{}, {"t1": 0.5}, {"T2": -0.5, "t2": 1.0}]),
            paused=rng.random() < 0.1,
        )
        for i in range(count)
    ]


def random_tasks(rng: random.Random, count: int) -> list[TaskSpec]:
    return [
        TaskSpec(
            " ".join(rng.choices(VOCABULARY, k=rng.randint(1, 8))),
            description=" ".join(rng.choices([*VOCABULARY, "the", "of"], k=rng.randint(0, 60))),
            tags=tuple(rng.sample(["t1", "T2", "t4"], rng.randint(0, 2))),
            required_capabilities=tuple(rng.sample(["c1", "c2"], rng.choice([0, 0, 1, 2]))),
            required_labels=rng.choice([{}, {}, {"k": "v"}]),
            priority=rng.choice([0, 50, 90]),
            project=rng.choice(["", "", "", "projects/p1"]),
        )
        for _ in range(count)
    ]


def random_policy(rng: random.Random, rule_count: int, project_count: int) -> Policy:
    conditions = [
        "{{keyword: {0}}}",
        "{{keyword: [{0} {1}, {2}]}}",
        "{{all: [{{keyword: {0}}}, {{not: {{keyword: {1}}}}}]}}",
    ]
    lines = [
        f"{rng.choice(conditions).format(*rng.choices(VOCABULARY, k=3))} -> "
        f"p{rng.randrange(project_count)} {rng.choice([1, 0.5, -1])} {rng.choice([0, 0, 0, 1])}"
        for _ in range(rule_count)
    ]
    return load_policy(rules(*lines, more="threshold: 0.3\non_unsure: ask\ndefault_project: p0"))


class Plainly:
    """The decision as the documentation tells it, one project after the other, with dictionaries and loops."""

    def __init__(
        self,
        task: TaskSpec,
        projects: Sequence[Project],
        policy: Policy,
        load: Mapping[str, int],
        refused: Mapping[str, str],
    ) -> None:
        self.task, self.projects, self.policy, self.load = task, projects, policy, load
        self.excluded = {p.name: why for p in projects if (why := self.ruled_out(p, refused))}
        self.eligible = [p for p in projects if p.name not in self.excluded]
        fired = policy.fired(
            Text.of(task.title, task.description),
            tags=task.tags,
            capabilities=task.required_capabilities,
            priority=task.priority,
        )
        able = [rule for rule in fired if rule.project in {p.name for p in self.eligible}]
        self.rules = [rule for rule in able if rule.priority == max(r.priority for r in able)]
        self.tags = {tag.casefold() for tag in task.tags}
        self.words = [self.words_of(p) for p in projects]

    def ruled_out(self, p: Project, refused: Mapping[str, str]) -> str:
        task = self.task
        reasons = [
            (p.name in refused, refused.get(p.name, "")),
            (p.paused, "project-paused"),
            (not set(task.required_capabilities) <= p.capabilities, "capability"),
            (any(p.labels.get(k) != v for k, v in task.required_labels.items()), "label"),
            (p.requires_live_worker and not p.live_workers, "no-live-worker"),
            (bool(p.max_open) and self.load.get(p.name, 0) >= p.max_open, "capacity"),
            (bool(task.project) and p.name != task.project, "pin"),
        ]
        return next((name for holds, name in reasons if holds), "")

    @staticmethod
    def words_of(p: Project) -> dict[str, float]:
        weights: dict[str, float] = {}
        texts = [
            (p.description, 0.5),
            *((example, 0.5) for example in p.examples),
            (p.display_name, 1.0),
            (p.id, 1.0),
        ]
        for text, weight in texts:
            for word in tokens(text):
                if word not in STOP_WORDS:
                    weights[fold(word)] = max(weights.get(fold(word), 0.0), weight)
        return weights

    def text(self, p: Project) -> float:
        title = {fold(word) for word in tokens(self.task.title)}
        description = {fold(word) for word in tokens(self.task.description)}
        n, shared, known = len(self.projects), 0.0, 0.0
        mine = self.words_of(p)
        for word in title | description:
            owners = sum(word in words for words in self.words)
            if owners and word not in STOP_WORDS:
                idf = math.log(n / owners) / math.log(n)
                times = 2 * (word in title) + (word in description)
                known += times * idf
                shared += times * idf * mine.get(word, 0.0)
        return shared / (2 + known)

    def workload(self, p: Project) -> float:
        loads = [self.load.get(other.name, 0) for other in self.eligible if not other.max_open]
        return max(0.0, 1 - self.load.get(p.name, 0) / (p.max_open or max([10, *loads])))

    def smallest(self, mine: float, values: list[float]) -> float:
        known = [value for value in values if value > 0]
        if not known:
            return 0.5
        return min(known) / mine if mine > 0 else median(min(known) / value for value in known)

    def factors(self, p: Project) -> dict[str, float]:
        known_tags = self.tags & {tag.casefold() for other in self.projects for tag in other.tags}
        velocities = [other.velocity for other in self.projects if other.velocity > 0]
        speed = p.velocity / (p.velocity + median(velocities)) if p.velocity else 0.5
        urgency = max(0.25, (self.task.priority - 50) / 50)
        required = set(self.task.required_capabilities)
        return {
            "rules": sum(rule.weight for rule in self.rules if rule.project == p.name),
            "tags": len(known_tags & {t.casefold() for t in p.tags}) / len(known_tags) if known_tags else 0.0,
            "capability": len(required) / len(p.capabilities) if required else 0.0,
            "text": self.text(p),
            "workload": self.workload(p),
            "velocity": 0.5 + (speed - 0.5) * urgency,
            "cost": self.smallest(p.cost, [other.cost for other in self.projects]),
            "sla": self.smallest(
                p.sla.total_seconds() if p.sla else 0.0,
                [other.sla.total_seconds() for other in self.projects if other.sla],
            ),
            "boost": sum(boost for tag, boost in p.boosts.items() if tag.casefold() in self.tags),
        }

    def decide(self) -> tuple[Outcome, str]:
        """The outcome and the strategy."""
        weights = dataclasses.asdict(self.policy.weights)
        self.made_of = {p.name: self.factors(p) for p in self.eligible}
        parts = {
            name: {f: weights[f] * v for f, v in values.items()} for name, values in self.made_of.items()
        }
        self.scores = {name: round(sum(part.values()), 9) for name, part in parts.items()}
        if not self.eligible:
            return Outcome.NO_CANDIDATE, "pin" if self.task.project else "rules"
        evidence = ("rules", "tags", "capability", "text", "boost")
        grounds = {name: sum(part[f] for f in evidence) for name, part in parts.items()}
        base = max(sum(v for f, v in part.items() if f not in evidence) for part in parts.values())
        leads = {name: (score - base) / 0.15 for name, score in self.scores.items()}
        n = len(leads)
        masses = {name: math.exp(x) / n if x < 0 else 1 / n + math.expm1(x) for name, x in leads.items()}
        self.shares = {name: mass / sum(masses.values()) for name, mass in masses.items()}
        if self.task.project:
            return Outcome.ROUTED, "pin"
        if n == 1:
            return Outcome.ROUTED, "only-candidate"
        if max(grounds.values()) < 0.05:
            return Outcome.ROUTED if self.policy.default_project in self.scores else self.dared(), "default"
        return self.dared(), "rules"

    def dared(self) -> Outcome:
        return Outcome.ROUTED if max(self.shares.values()) >= self.policy.threshold else Outcome.UNSURE


@pytest.mark.parametrize(
    ("projects", "rule_count", "tasks"),
    [(2, 4, 60), (3, 10, 60), (30, 50, 60), pytest.param(1000, 500, 3, id="thousand")],
)
def test_decisions_are_those_of_a_plain_implementation(projects: int, rule_count: int, tasks: int) -> None:
    rng = random.Random(projects)
    registered = random_projects(rng, projects)
    compiled = Candidates.compile(registered)
    policy = random_policy(rng, rule_count, projects)
    outcomes = set()
    for task in random_tasks(rng, tasks):
        load = {p.name: rng.randint(0, 30) for p in registered if rng.random() < 0.5}
        refused = {p.name: rng.choice(["path", "federation"]) for p in registered if rng.random() < 0.1}
        plain = Plainly(task, registered, policy, load, refused)
        outcome, strategy = plain.decide()

        decision = routing.decide(task, compiled, policy, load=load, refused=refused, basis=BASIS)

        assert (decision.outcome, decision.strategy) == (outcome, strategy)
        assert decision.eligible_count == len(plain.eligible)
        counts = {e.filter: e.count for e in decision.exclusions}
        assert counts == {
            why: list(plain.excluded.values()).count(why) for why in set(plain.excluded.values())
        }
        best = sorted(plain.scores.values(), reverse=True)[: routing.MAX_RECORDED]
        if strategy != "default":
            assert [c.score for c in decision.candidates] == pytest.approx(best, abs=2e-9)
        for candidate in decision.candidates:
            assert candidate.confidence == pytest.approx(plain.shares[candidate.project], abs=1e-6)
            values = {f.name: f.value for f in candidate.factors}
            assert values == pytest.approx(plain.made_of[candidate.project])
        outcomes.add(outcome)
    assert len(outcomes) > 1 or tasks < 10, "the tasks are too much alike to prove anything"


# ---------------------------------------------------------------- properties

SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, routing.MAX_RECORDED)  # all of them are recorded


def world(seed: int, size: int) -> tuple[TaskSpec, list[Project], Policy, dict[str, int], dict[str, str]]:
    rng = random.Random(seed)
    projects = random_projects(rng, size)
    policy = random_policy(rng, 20, size)
    load = {p.name: rng.randint(0, 25) for p in projects}
    refused = {p.name: "path" for p in projects if rng.random() < 0.1}
    return random_tasks(rng, 1)[0], projects, policy, load, refused


@given(SEEDS, SIZES)
def test_an_ineligible_project_is_never_chosen(seed: int, size: int) -> None:
    task, projects, policy, load, refused = world(seed, size)
    plain = Plainly(task, projects, policy, load, refused)

    decision = routing.decide(
        task, Candidates.compile(projects), policy, load=load, refused=refused, basis=BASIS
    )

    assert decision.project not in plain.excluded
    assert not {c.project for c in decision.candidates} & plain.excluded.keys()
    assert decision.eligible_count + sum(e.count for e in decision.exclusions) == size


@given(SEEDS, SIZES)
def test_candidates_are_sorted_and_their_confidence_sums_to_one(seed: int, size: int) -> None:
    task, projects, policy, load, refused = world(seed, size)

    decision = routing.decide(
        task, Candidates.compile(projects), policy, load=load, refused=refused, basis=BASIS
    )

    scores = [c.score for c in decision.candidates]
    shares = [c.confidence for c in decision.candidates]
    assert scores == sorted(scores, reverse=True)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0 if scores else 0.0)
    for candidate in decision.candidates:
        assert candidate.score == pytest.approx(sum(f.value * f.weight for f in candidate.factors), abs=1e-8)
        assert [f.name for f in candidate.factors] == [name for name in FACTORS if name not in CLOCKED]


@given(SEEDS, SIZES, st.data())
def test_more_load_never_raises_a_rank(seed: int, size: int, data: st.DataObject) -> None:
    task, projects, policy, load, refused = world(seed, size)
    compiled = Candidates.compile(projects)
    name = data.draw(st.sampled_from([p.name for p in projects]))
    more = {**load, name: load[name] + data.draw(st.integers(1, 30))}

    before, after = (
        routing.why_not(task, compiled, policy, name, load=counts, refused=refused) for counts in (load, more)
    )

    if after.rank:
        assert 1 <= before.rank <= after.rank


@given(SEEDS, SIZES)
def test_an_eligible_pin_always_wins(seed: int, size: int) -> None:
    task, projects, policy, load, refused = world(seed, size)
    for wanted in projects:
        pinned = dataclasses.replace(task, project=wanted.name)
        plain = Plainly(pinned, projects, policy, load, refused)

        decision = routing.decide(
            pinned, Candidates.compile(projects), policy, load=load, refused=refused, basis=BASIS
        )

        if wanted.name in plain.excluded:
            assert (decision.outcome, decision.project) == (Outcome.NO_CANDIDATE, "")
        else:
            assert (decision.outcome, decision.project, decision.confidence) == (
                Outcome.ROUTED,
                wanted.name,
                1.0,
            )


@given(SEEDS, SIZES, st.randoms(use_true_random=False))
def test_the_order_of_projects_changes_nothing(seed: int, size: int, rng: random.Random) -> None:
    task, projects, policy, load, refused = world(seed, size)
    shuffled = rng.sample(projects, len(projects))

    one, other = (
        routing.decide(
            task,
            Candidates.compile(order),
            policy,
            load={p.name: load[p.name] for p in order},
            refused={p.name: refused[p.name] for p in order if p.name in refused},
            basis=BASIS,
        )
        for order in (projects, shuffled)
    )

    assert one == other


@settings(max_examples=50)
@given(st.text(max_size=80), st.text(max_size=200), st.lists(st.text(max_size=10), max_size=5))
def test_no_text_breaks_a_decision(title: str, description: str, tags: list[str]) -> None:
    task = TaskSpec(title, description=description, tags=tuple(tags))
    projects = [project("a", description=description, tags=frozenset(tags)), project("b", display_name=title)]

    assert decide(task, projects).outcome is Outcome.ROUTED


# ---------------------------------------------------------------- the demo

DEMO = Path(__file__).parents[2] / "libs/cli/hopper_cli/demo_data"


def test_the_demo_routes_its_own_tasks() -> None:
    described = yaml.safe_load((DEMO / "projects.yaml").read_text())["projects"]
    projects = [
        project(
            p["id"],
            display_name=p["display_name"],
            description=p["description"],
            capabilities=frozenset(p["capabilities"]),
            tags=frozenset(p["tags"]),
            examples=tuple(p["examples"]),
        )
        for p in described
    ]
    policy, errors, warnings = check_policy((DEMO / "rules.yaml").read_text())
    assert policy is not None
    assert not errors
    assert not warnings
    assert not unknown_projects(policy, {p.name for p in projects})

    compiled = Candidates.compile(projects)
    tasks = [json.loads(line) for line in (DEMO / "sample.jsonl").read_text().splitlines()]
    right = 0
    for task in tasks:
        spec = TaskSpec(task["title"], description=task["description"], tags=tuple(task["tags"]))
        decision = routing.decide(spec, compiled, policy, load={}, refused={}, basis=BASIS)
        right += decision.project == f"projects/{task['target']}"

    assert len(tasks) == 130
    assert right / len(tasks) > 0.9
