"""Policies: what loads, what does not and where, what fires."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.errors import FieldViolation, PolicyInvalid
from hopper_router.policy_yaml import (
    BUILT_IN,
    BUILT_IN_SOURCE,
    MAX_PROBLEMS,
    MAX_RULES,
    PolicyProblem,
    check_policy,
    load_policy,
    unknown_projects,
)
from hopper_router.rules import (
    AllOf,
    AnyOf,
    Condition,
    Has,
    Kind,
    Not,
    OnUnsure,
    Policy,
    PriorityRange,
    Rule,
    Weights,
)
from hopper_router.words import Text

WHOLE = """\
strategy: rules
threshold: 0.25
on_unsure: ask
default_project: inbox
weights: {text: 0.4, cost: 0}
rules:
  - name: payments
    when:
      all:
        - keyword: [invoice, refund, "credit card"]
        - any: [{tag: Billing}, {capability: payments}]
        - not: {keyword: test}
        - priority: {at_least: 70}
    then: {project: payments, weight: 2.0}
    priority: 10
    enabled: true
  - name: nobody
    when: {tag: x}
    then: {project: projects/nobody}
"""


def fired(
    policy: Policy,
    title: str,
    description: str = "",
    *,
    tags: Sequence[str] = (),
    priority: int = 50,
    **more: str,
) -> list[str]:
    capabilities = [more["capability"]] if more else []
    rules = policy.fired(Text.of(title, description), tags=tags, capabilities=capabilities, priority=priority)
    return [rule.name for rule in rules]


def one_rule(when: str) -> Policy:
    return load_policy(f"rules:\n  - name: r\n    when: {when}\n    then: {{project: p}}\n")


def problems(source: str) -> list[PolicyProblem]:
    policy, errors, _ = check_policy(source)
    assert policy is None
    return list(errors)


# ---------------------------------------------------------------- what loads


def test_the_whole_form_becomes_values() -> None:
    policy = load_policy(WHOLE)

    assert policy == Policy(
        strategy="rules",
        threshold=0.25,
        on_unsure=OnUnsure.ASK,
        default_project="projects/inbox",
        weights=Weights(text=0.4, cost=0.0),
        rules=(
            Rule(
                name="payments",
                when=AllOf(
                    (
                        Has(Kind.KEYWORD, ("invoice", "refund", "credit card")),
                        AnyOf((Has(Kind.TAG, ("billing",)), Has(Kind.CAPABILITY, ("payments",)))),
                        Not(Has(Kind.KEYWORD, ("test",))),
                        PriorityRange(at_least=70),
                    )
                ),
                project="projects/payments",
                weight=2.0,
                priority=10,
            ),
            Rule(name="nobody", when=Has(Kind.TAG, ("x",)), project="projects/nobody"),
        ),
    )
    assert policy.rules[0].place == (7, 11)


def test_everything_but_the_rules_own_keys_has_a_default() -> None:
    assert load_policy("{}") == Policy() == BUILT_IN


def test_the_built_in_source_spells_out_the_defaults() -> None:
    given_weights = dict(re.findall(r"^  (\w+): ([\d.]+)", BUILT_IN_SOURCE, flags=re.MULTILINE))

    assert {name: float(value) for name, value in given_weights.items()} == dataclasses.asdict(Weights())


def test_policies_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BUILT_IN.threshold = 1.0  # type: ignore[misc]


# ---------------------------------------------------------------- what fires


@pytest.mark.parametrize(
    ("when", "title", "fires"),
    [
        ("{keyword: refund}", "Refund, please", True),
        ("{keyword: refund}", "refunded", False),
        ("{keyword: [invoice, refund]}", "an INVOICE", True),
        ("{keyword: credit card}", "my credit  card", True),
        ("{keyword: credit card}", "credit of the card", False),
        ("{keyword: credit-card}", "my credit card", True),
        ("{keyword: card}", "my credit card", True),
        ("{keyword: c++}", "in C++", True),
        ("{keyword: c}", "in C++", False),
        ("{keyword: 404}", "answers 404", True),
        ("{not: {keyword: refund}}", "hello", True),
        ("{not: {keyword: refund}}", "refund", False),
        ("{all: [{keyword: a1}, {keyword: b1}]}", "b1 a1", True),
        ("{all: [{keyword: a1}, {keyword: b1}]}", "a1", False),
        ("{any: [{keyword: a1}, {keyword: b1}]}", "b1", True),
        ("{any: [{keyword: a1}, {not: {keyword: b1}}]}", "c1", True),
        ("{keyword: a1, not: {keyword: b1}}", "a1", True),
        ("{keyword: a1, not: {keyword: b1}}", "a1 b1", False),
    ],
)
def test_conditions_on_words(when: str, title: str, fires: bool) -> None:
    assert bool(fired(one_rule(when), title)) is fires
    assert bool(fired(one_rule(when), "", title)) is fires, "in the description as well"


def test_tags_match_in_any_case_and_capabilities_exactly() -> None:
    assert fired(one_rule("{tag: [type:bug, x]}"), "t", tags=["Type:Bug"])
    assert not fired(one_rule("{tag: bug}"), "t", tags=["Type:Bug"])
    assert fired(one_rule("{capability: Pay}"), "t", capability="Pay")
    assert not fired(one_rule("{capability: pay}"), "t", capability="Pay")


@pytest.mark.parametrize(
    ("when", "first", "last"),
    [
        ("{priority: {at_least: 70}}", 70, 100),
        ("{priority: {at_most: 30}}", 0, 30),
        ("{priority: {at_least: 40, at_most: 60}}", 40, 60),
    ],
)
def test_priority_bounds_are_included(when: str, first: int, last: int) -> None:
    policy = one_rule(when)

    assert [p for p in range(101) if fired(policy, "t", priority=p)] == list(range(first, last + 1))


def test_a_disabled_rule_does_not_fire() -> None:
    assert fired(load_policy(WHOLE), "t", tags=["x"]) == ["nobody"]
    assert not fired(load_policy(WHOLE + "    enabled: false\n"), "t", tags=["x"])


WORDS = ("red", "green", "blue", "red green", "green blue red")
LEAVES = st.builds(Has, st.just(Kind.KEYWORD), st.lists(st.sampled_from(WORDS), min_size=1).map(tuple))
TAGS = st.builds(Has, st.just(Kind.TAG), st.lists(st.sampled_from(["t", "u"]), min_size=1).map(tuple))
PRIORITIES = st.builds(PriorityRange, st.integers(0, 100), st.integers(0, 100))
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    LEAVES | TAGS | PRIORITIES,
    lambda inner: (
        st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(Not, inner)
    ),
    max_leaves=8,
)


def plainly(condition: Condition, text: str, tags: list[str], priority: int) -> bool:
    """What the condition says, with no index."""
    match condition:
        case Has(kind, values) if kind is Kind.KEYWORD:
            return any(re.search(rf"\b{value}\b", text) for value in values)
        case Has(_, values):
            return any(value in tags for value in values)
        case PriorityRange(at_least, at_most):
            return at_least <= priority <= at_most
        case AllOf(parts):
            return all(plainly(part, text, tags, priority) for part in parts)
        case AnyOf(parts):
            return any(plainly(part, text, tags, priority) for part in parts)
        case Not(part):
            return not plainly(part, text, tags, priority)


@given(
    st.lists(CONDITIONS, max_size=6),
    st.lists(st.sampled_from(["red", "green", "blue", "grey"]), max_size=6),
    st.lists(st.sampled_from(["t", "u", "v"]), max_size=2),
    st.integers(0, 100),
)
def test_the_index_never_changes_what_fires(
    conditions: list[Condition], words: list[str], tags: list[str], priority: int
) -> None:
    policy = Policy(rules=tuple(Rule(f"r{i}", when, "projects/p") for i, when in enumerate(conditions)))
    text = " ".join(words)

    expected = [f"r{i}" for i, when in enumerate(conditions) if plainly(when, text, tags, priority)]

    assert fired(policy, text, tags=tags, priority=priority) == expected


# ---------------------------------------------------------------- what does not load, and where


def rule(body: str) -> str:
    """A policy whose only rule starts in line 2 at column 5; *body* is its lines."""
    return "rules:\n  - " + "\n    ".join(body.splitlines()) + "\n"


GOOD = "name: r\nwhen: {tag: x}\nthen: {project: p}\n"


@pytest.mark.parametrize(
    ("source", "where", "message"),
    [
        ("", "1:1", "the policy is empty"),
        ("# nothing\n", "1:1", "the policy is empty"),
        ("~", "1:1", "the policy is empty"),
        ("- a", "1:1", "must be a mapping of strategy, threshold, .*, not a list"),
        ("a: [", "2:1", "not YAML: .*"),
        ("a: 'x", "1:6", "not YAML: .*end of stream"),
        ("\ta: 1", "1:1", "not YAML: .*"),
        ("a: 1\nb: \x07", "2:4", r"the character U\+0007 is not allowed in YAML: remove it"),
        ("a: \ud800", "1:4", r"the character U\+D800 is not allowed"),
        ("a: &x 1", "1:4", r"anchors \(&\) and aliases \(\*\) are not allowed: write it out"),
        ("rules: !!python/object:os.system []", "1:8", r"YAML tags \(.*\) are not allowed"),
        ("threshold: 0\n---\nthreshold: 1", "2:1", "a policy is one YAML document"),
        ("[" * 5000, "1:81", "nested too deep"),
        ("strategy: learnt", "1:11 strategy", "unknown strategy 'learnt' .did you mean 'learned'"),
        ("strategy: 1", "1:11 strategy", "must be text, not an integer: put it in quotes"),
        (
            "stratgy: rules",
            "1:1 stratgy",
            r"unknown key 'stratgy' \(did you mean 'strategy'\?\); known are strategy",
        ),
        ("? [a]\n: 1", "1:3", "unknown key ''"),
        (
            "threshold: 0\nthreshold: 1",
            "2:1 threshold",
            "'threshold' is there twice: YAML would drop the first",
        ),
        ("threshold: 1.1", "1:12 threshold", r"must be from 0 to 1, not 1\.1"),
        ("threshold: high", "1:12 threshold", "must be a number from 0 to 1, not text"),
        ("threshold: .nan", "1:12 threshold", "must be a number from 0 to 1"),
        ("threshold: true", "1:12 threshold", "must be a number from 0 to 1, not true or false"),
        (
            "on_unsure: aks",
            "1:12 on_unsure",
            r"unknown on_unsure 'aks' \(did you mean 'ask'\?\): .*ask or reject",
        ),
        ("default_project: In Box", "1:18 default_project", "must be a project's id: lower-case letters"),
        ("default_project: [a]", "1:18 default_project", "must be text, not a list"),
        ("weights: 1", "1:10 weights", "must be a mapping of rules, tags, .*, not an integer"),
        ("weights: {txt: 1}", "1:11 weights.txt", r"unknown key 'txt' \(did you mean 'text'\?\)"),
        ("weights: {text: -1}", "1:17 weights.text", "must be from 0 to 10, not -1"),
        ("weights: {text: 1, text: 2}", "1:20 weights.text", "'text' is there twice"),
        ("rules: {}", "1:8 rules", "must be a list of rules, .*, not a mapping"),
        ("rules: [a]", "1:9 rules[0]", "must be a mapping of name, when, then, .*, not text"),
        (rule("name: r\nwhen: {tag: x}"), "2:5 rules[0].then", "'then' is missing"),
        (rule("name: r\nthen: {project: p}"), "2:5 rules[0].when", "'when' is missing"),
        (rule("when: {tag: x}\nthen: {project: p}"), "2:5 rules[0].name", "'name' is missing"),
        (rule(GOOD + "prio: 1"), "5:5 rules[0].prio", r"unknown key 'prio' \(did you mean 'priority'\?\)"),
        (rule(GOOD + "priority: 1.5"), "5:15 rules[0].priority", "must be an integer from .*, not a number"),
        (rule(GOOD + "priority: 9999999"), "5:15 rules[0].priority", "must be from -1000000 to 1000000"),
        (rule(GOOD + "enabled: 1"), "5:14 rules[0].enabled", "must be true or false, not an integer"),
        (rule(GOOD.replace("name: r", "name: ''")), "2:11 rules[0].name", "must be one line of 1 to 100"),
        (
            rule(GOOD.replace("project: p", "project: p, wait: 1")),
            "4:24 rules[0].then.wait",
            r"unknown key 'wait' \(did you mean 'weight'\?\)",
        ),
        (rule(GOOD.replace("project: p", "weight: 1")), "4:11 rules[0].then.project", "'project' is missing"),
        (
            rule(GOOD.replace("then: {project: p}", "then: p")),
            "4:11 rules[0].then",
            "must be a mapping of project",
        ),
        (
            rule(GOOD.replace("p}", "p, weight: 11}")),
            "4:32 rules[0].then.weight",
            "must be from -10 to 10, not 11",
        ),
        (
            rule(GOOD.replace("{tag: x}", "{}")),
            "3:11 rules[0].when",
            "the condition is empty: give one of keyword",
        ),
        (
            rule(GOOD.replace("{tag: x}", "refund")),
            "3:11 rules[0].when",
            "must be a mapping of keyword, .*, not text",
        ),
        (rule(GOOD.replace("tag: x", "tagg: x")), "3:12 rules[0].when.tagg", r"\(did you mean 'tag'\?\)"),
        (
            rule(GOOD.replace("tag: x", "tag: a b")),
            "3:17 rules[0].when.tag",
            "a tag is one word without spaces",
        ),
        (
            rule(GOOD.replace("tag: x", "tag: []")),
            "3:17 rules[0].when.tag",
            "the list is empty: give at least one tag",
        ),
        (
            rule(GOOD.replace("tag: x", "keyword: '+'")),
            "3:21 rules[0].when.keyword",
            "a keyword needs a letter",
        ),
        (
            rule(GOOD.replace("tag: x", "keyword: [ok, no]")),
            "3:26 rules[0].when.keyword[1]",
            "must be text, not true or false: put it in quotes",
        ),
        (
            rule(GOOD.replace("tag: x", "keyword: {}")),
            "3:21 rules[0].when.keyword",
            "must be text, not a mapping",
        ),
        (
            rule(GOOD.replace("tag: x", "priority: {}")),
            "3:22 rules[0].when.priority",
            "give at_least, at_most or both",
        ),
        (
            rule(GOOD.replace("tag: x", "priority: {at_least: 101}")),
            "3:33 rules[0].when.priority.at_least",
            "must be from 0 to 100, not 101",
        ),
        (
            rule(GOOD.replace("tag: x", "priority: {at_most: '5'}")),
            "3:32 rules[0].when.priority.at_most",
            "must be an integer from 0 to 100, not text",
        ),
        (rule(GOOD.replace("tag: x", "all: []")), "3:17 rules[0].when.all", "give at least one condition"),
        (
            rule(GOOD.replace("tag: x", "any: {tag: x}")),
            "3:17 rules[0].when.any",
            "must be a list of conditions",
        ),
        (
            rule(GOOD.replace("tag: x", "all: [{tag: y}, {any: [{not: {}}]}]")),
            "3:41 rules[0].when.all[1].any[0].not",
            "the condition is empty",
        ),
        (
            rule(GOOD) + "  - " + "\n    ".join(GOOD.splitlines()),
            "5:11 rules[1].name",
            "line 2 has a rule 'r' already",
        ),
    ],
)
def test_every_error_has_its_place(source: str, where: str, message: str) -> None:
    ((line, column, path, said),) = problems(source)

    assert f"{line}:{column} {path}".strip() == where
    assert re.search(message, said), said


def test_all_errors_are_told_at_once_in_the_order_of_the_file() -> None:
    source = (
        "threshold: 2\non_unsure: never\n"
        + rule("name: a\nwhen: {tagg: x}\nthen: {project: B}")
        + "strtegy: x\n"
    )

    assert [(line, path) for line, _, path, _ in problems(source)] == [
        (1, "threshold"),
        (2, "on_unsure"),
        (5, "rules[0].when.tagg"),
        (6, "rules[0].then.project"),
        (7, "strtegy"),
    ]


def test_a_policy_that_does_not_load_says_why_line_by_line() -> None:
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(rule(GOOD.replace("tag: x", "keyword: '+'")))

    assert caught.value.reason == "POLICY_INVALID"
    assert caught.value.violations == (
        FieldViolation("rules[0].when.keyword", "line 3, column 21: a keyword needs a letter or digit"),
    )


def test_no_more_than_a_hundred_errors_are_told() -> None:
    assert len(problems("rules:\n" + "  - {}\n" * 500)) == MAX_PROBLEMS


def test_too_many_rules_are_refused() -> None:
    source = "rules:\n" + "  - {name: r, when: {tag: x}, then: {project: p}}\n" * (MAX_RULES + 1)

    assert problems(source) == [(MAX_RULES + 2, 5, "rules", "10001 rules: at most 10000 are allowed")]


def nested(depth: int) -> str:
    return "{not: " * (depth - 1) + "{tag: x}" + "}" * (depth - 1)


def test_conditions_nest_twenty_deep_and_no_deeper() -> None:
    assert one_rule(nested(20)).rules

    (problem,) = problems(rule(GOOD.replace("{tag: x}", nested(21))))
    assert problem[:3] == (3, 11 + 20 * 6, "rules[0].when" + ".not" * 20)
    assert problem[3] == "nested too deep: conditions may nest at most 20 deep"


@given(st.text(alphabet=st.sampled_from("rulesnamewht:{}[]-\n \"'&*!|>#?,0.~\x00\ud800é"), max_size=60))
def test_no_text_breaks_the_reader(source: str) -> None:
    policy, errors, _ = check_policy(source)

    assert (policy is None) is bool(errors)
    assert all(error.line >= 1 and error.column >= 1 and error.message for error in errors)


@given(st.integers(0, len(WHOLE)), st.integers(0, 40))
def test_no_hole_in_a_policy_breaks_the_reader(start: int, length: int) -> None:
    policy, errors, _ = check_policy(WHOLE[:start] + WHOLE[start + length :])

    assert (policy is None) is bool(errors)


# ---------------------------------------------------------------- what loads but is surely not meant


@pytest.mark.parametrize(
    ("when", "never"),
    [
        ("{keyword: a1, not: {keyword: a1}}", True),
        ("{keyword: [a1, b1], not: {keyword: a1}}", False),
        ("{keyword: credit card, not: {keyword: card}}", True),
        ("{keyword: card, not: {keyword: credit card}}", False),
        ("{all: [{tag: x}, {all: [{not: {tag: [y, X]}}]}]}", True),
        ("{tag: x, not: {keyword: x}}", False),
        ("{priority: {at_least: 60, at_most: 40}}", True),
        ("{all: [{priority: {at_least: 60}}, {priority: {at_most: 40}}]}", True),
        ("{all: [{priority: {at_least: 40}}, {priority: {at_most: 60}}]}", False),
        ("{any: [{priority: {at_least: 60, at_most: 40}}, {tag: x}]}", False),
        ("{any: [{priority: {at_least: 60, at_most: 40}}, {tag: x, not: {tag: x}}]}", True),
        ("{not: {priority: {at_least: 0}}}", True),
    ],
)
def test_rules_that_can_never_fire_are_warned_about(when: str, never: bool) -> None:
    _, _, warnings = check_policy(rule(GOOD.replace("{tag: x}", when)))

    expected = (2, 11, "rules[0].when", "the rule 'r' can never fire: its condition contradicts itself")
    assert [tuple(warning) for warning in warnings] == ([expected] if never else [])


def test_disabled_and_weightless_rules_are_warned_about() -> None:
    source = "rules:\n  - {name: a, when: {tag: x}, then: {project: p}, enabled: false}\n"
    source += "  - {name: b, when: {tag: x}, then: {project: p, weight: 0}}\n"

    assert [tuple(warning) for warning in check_policy(source)[2]] == [
        (2, 12, "rules[0].enabled", "the rule 'a' is disabled"),
        (3, 12, "rules[1].then.weight", "the rule 'b' changes nothing: its weight is 0"),
    ]


def test_projects_that_are_not_registered_are_warned_about() -> None:
    warnings = unknown_projects(load_policy(WHOLE), {"projects/payments"})

    assert [tuple(warning) for warning in warnings] == [
        (4, 18, "default_project", "projects/inbox is not registered: register it, or correct the id"),
        (
            19,
            21,
            "rules[1].then.project",
            "projects/nobody is not registered: register it, or correct the id",
        ),
    ]
    assert not unknown_projects(
        load_policy(WHOLE), {f"projects/{p}" for p in ("payments", "inbox", "nobody")}
    )
