"""A policy as its owner writes it."""

import contextlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.border import grant_toml
from hopper_common.border.grant_toml import read_grant
from hopper_common.border.grants import Direction, Effect, Grant, Rate, Rule
from hopper_common.border.levels import Level
from hopper_common.errors import PolicyInvalid

LEAST = 'name = "a"\neffect = "allow"\ndirection = "in"\n'


def wrong(text: str) -> list[str]:
    with pytest.raises(PolicyInvalid) as caught:
        read_grant(dedent(text))
    assert caught.value.metadata["errors"] == str(len(caught.value.violations))
    return [violation.description for violation in caught.value.violations]


def test_the_form_in_the_documentation_is_read() -> None:
    documented = grant_toml.__doc__ or ""
    form = dedent(documented.split("::\n", 1)[1].split("An unknown key", 1)[0])
    (rule,) = read_grant(form).rules
    assert rule == Rule(
        "reviews",
        Effect.ALLOW,
        frozenset({Direction.IN}),
        capabilities=("docs.*",),
        labels=("work",),
        rate=Rate(60, timedelta(hours=1)),
        expires=datetime(2027, 1, 1, tzinfo=UTC),
    )


def test_the_defaults_in_the_documentation_are_the_defaults() -> None:
    (rule,) = read_grant(f"[[rule]]\n{LEAST}").rules
    assert rule == Rule("a", Effect.ALLOW, frozenset({Direction.IN}))


def test_everything_may_be_left_out() -> None:
    assert read_grant("") == Grant(())


def test_every_value() -> None:
    grant = read_grant(
        dedent("""
        level = "verified"
        sensitive = ["private", "hr.*"]
        [[rule]]
        name = "no keys"
        effect = "deny"
        direction = "both"
        labels = ["secret.*"]
        [[rule]]
        name = "research"
        effect = "allow"
        direction = "out"
        capabilities = []
        max_priority = 0
        max_bytes = 7
        in_flight = 0
        rate = "3 / second"
        transit = ["abcdefghijklmnopqrstuvwxyz234567"]
        exclusive = true
        redact = ["description", "tags.*", "labels.customer", "labels.hr.pay.*", "feedback"]
        ask = true
        expires = 2027-01-01T01:00:00+01:00
        """)
    )
    deny, allow = grant.rules
    assert (grant.level, grant.sensitive) == (Level.VERIFIED, ("private", "hr.*"))
    assert deny == Rule("no keys", Effect.DENY, frozenset(Direction), labels=("secret.*",))
    assert allow == Rule(
        "research",
        Effect.ALLOW,
        frozenset({Direction.OUT}),
        max_priority=0,
        max_bytes=7,
        in_flight=0,
        rate=Rate(3, timedelta(seconds=1)),
        transit=frozenset({"abcdefghijklmnopqrstuvwxyz234567"}),
        exclusive=True,
        redact=("description", "tags.*", "labels.customer", "labels.hr.pay.*", "feedback"),
        ask=True,
        expires=datetime(2027, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("text", "size"), [('"1 KiB"', 1024), ('"2MiB"', 2 << 20), ('"1 GiB"', 1 << 30), ("0", 0)]
)
def test_sizes(text: str, size: int) -> None:
    (rule,) = read_grant(f"[[rule]]\n{LEAST}max_bytes = {text}").rules
    assert rule.max_bytes == size


@pytest.mark.parametrize(
    "field", ["title", "priority", "labels", "tags.", "labels.*.x", "labels.a*", "x.labels.a"]
)
def test_what_cannot_be_kept_back(field: str) -> None:
    """Without a title nobody knows what to do, and without the rest nobody knows how."""
    text = f'[[rule]]\nname = "a"\neffect = "allow"\ndirection = "out"\nredact = ["{field}"]'
    assert "is none of description" in wrong(text)[0]


def test_nothing_is_kept_back_of_what_comes_in() -> None:
    text = f'[[rule]]\n{LEAST}redact = ["payload"]'
    assert wrong(text) == ["rule 1, line 1, redact: is for what leaves: the direction must be out or both"]


def test_anybodys_work_may_pass_through() -> None:
    (rule,) = read_grant(f'[[rule]]\n{LEAST}transit = "any"').rules
    assert rule.transit is None


@pytest.mark.parametrize(
    "line",
    [
        "capabilities = 'docs'",
        'capabilities = ["do*s"]',
        'capabilities = ["*"]',
        'capabilities = [""]',
        'capabilities = ["a b"]',
        'capabilities = [".*"]',
        'capabilities = ["a..b"]',
        "capabilities = [1]",
        "max_priority = 101",
        "max_priority = true",
        "max_priority = 1.5",
        'max_bytes = "1 MB"',
        "max_bytes = -1",
        "max_bytes = true",
        "in_flight = -1",
        'rate = "60"',
        'rate = "0/hour"',
        "rate = 60",
        'transit = "some"',
        'transit = ["peers/bob"]',
        'exclusive = "yes"',
        "ask = 1",
        "expires = 2027-01-01T00:00:00",
        'expires = "2027-01-01"',
    ],
)
def test_values_that_are_none(line: str) -> None:
    (problem,) = wrong(f"[[rule]]\n{LEAST}{line}")
    assert problem.startswith(f"rule 1, line 1, {line.split(maxsplit=1)[0]}: ")


def test_errors_say_where() -> None:
    assert wrong("""
        level = "known"
        colour = "red"
        [[rule]]
        name = "a"
        effect = "allow"
        direction = "in"
        max_prioritty = 3
        [[rule]]
        effect = "perhaps"
        direction = "in"
        """) == [
        "level: must be one of trusted, verified",
        f"rule 1, line 4: has no key 'max_prioritty'; there are {', '.join(sorted(grant_toml._KEYS))}",
        "rule 2, line 9: lacks name",
        "rule 2, line 9, effect: must be one of allow, deny",
        "the policy: has no key 'colour'; there are level, rule, sensitive",
    ]


def test_a_name_is_taken_once() -> None:
    assert wrong(f"[[rule]]\n{LEAST}[[rule]]\n{LEAST}") == ["rule 2, line 5: another rule has the name 'a'"]


def test_a_deny_rule_has_no_limits_and_names_something() -> None:
    problems = wrong(f"[[rule]]\n{LEAST.replace('allow', 'deny')}in_flight = 3")
    assert [problem.split(": ")[1] for problem in problems] == [
        "a deny rule has no in_flight",
        "a deny rule names capabilities or labels",
    ]


@pytest.mark.parametrize(
    "text", ["rule = 3", "[rule]\nname = 'a'", "rule = [1]", "level = ", "a = " + "[" * 50_000, "x" * 70_000]
)
def test_what_is_no_policy(text: str) -> None:
    assert wrong(text)


def test_there_is_an_end_to_it() -> None:
    rules = "".join(
        f"[[rule]]\n{LEAST.replace('a', f'a{number}', 1)}" for number in range(grant_toml.MOST_RULES + 1)
    )
    assert wrong(rules) == ["rule: there are 501, and at most 500 may be"]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(PolicyInvalid):
        read_grant(text)


def test_the_policies_of_the_readme_load() -> None:
    readme = Path(__file__).parents[3] / "services" / "federation" / "README.md"
    found = re.findall(r"```toml\n(.*?)```", readme.read_text(), re.DOTALL)
    names = {rule.name for text in found for rule in read_grant(text).rules}
    assert {"documents to work", "customers stay"} <= names
