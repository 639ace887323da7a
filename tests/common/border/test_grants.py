"""What may cross, by whose word: ceilings, rules, limits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.border.grants import (
    PENDING_OF_KNOWN,
    Crossing,
    Direction,
    Effect,
    Grant,
    Rate,
    Rule,
    Ruling,
    Usage,
    decide,
    differences,
    kept_back,
)
from hopper_common.border.levels import Level

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
IN, OUT = Direction.IN, Direction.OUT
DOCS = Rule("docs", Effect.ALLOW, frozenset({IN}), capabilities=("docs.*", "html"))
UNUSED = Usage()
WORK = Crossing(IN, capabilities=("docs.review",))


def ruled(crossing: Crossing, *rules: Rule, level: Level = Level.TRUSTED, usage: Usage = UNUSED) -> Ruling:
    return decide(Grant(rules), level, crossing, usage, NOW)


def refused(ruling: Ruling) -> tuple[str, str]:
    assert not ruling.allowed
    return ruling.rule, ruling.reason


# Ceilings.


@pytest.mark.parametrize("level", [Level.UNTRUSTED, Level.BLOCKED])
@pytest.mark.parametrize("direction", list(Direction))
def test_nothing_crosses_below_known_whatever_the_policy(level: Level, direction: Direction) -> None:
    everything = Rule("all", Effect.ALLOW, frozenset(Direction))
    ruling = ruled(Crossing(direction, by_hand=True), everything, level=level)
    assert refused(ruling) == (f"ceiling of level {level}", "TRUST_LEVEL_TOO_LOW")


def test_what_a_known_peer_offers_waits_for_a_person() -> None:
    ruling = decide(None, Level.KNOWN, WORK, Usage(pending=PENDING_OF_KNOWN - 1), NOW)
    assert (ruling.allowed, ruling.quarantined) == (True, True)


def test_a_known_peer_has_no_more_than_ten_waiting() -> None:
    ruling = decide(None, Level.KNOWN, WORK, Usage(pending=PENDING_OF_KNOWN), NOW)
    assert refused(ruling) == ("ceiling of level KNOWN", "QUOTA")
    assert ruling.retry_after is not None


def test_only_a_person_sends_work_to_a_known_peer() -> None:
    work = Crossing(OUT)
    assert refused(decide(None, Level.KNOWN, work, Usage(), NOW))[1] == "TRUST_LEVEL_TOO_LOW"
    assert decide(None, Level.KNOWN, replace(work, by_hand=True), Usage(), NOW).allowed


@pytest.mark.parametrize("direction", list(Direction))
def test_without_a_policy_nothing_crosses(direction: Direction) -> None:
    ruling = decide(None, Level.VERIFIED, Crossing(direction, by_hand=True), Usage(), NOW)
    assert refused(ruling) == ("no policy", "CAPABILITY_DENIED")


def test_a_policy_for_verified_peers_does_not_hold_for_trusted_ones() -> None:
    ruling = decide(Grant((DOCS,), level=Level.VERIFIED), Level.TRUSTED, WORK, Usage(), NOW)
    assert refused(ruling) == ("ceiling of level TRUSTED", "TRUST_LEVEL_TOO_LOW")


# Rules.


def test_the_first_rule_that_fits_is_cited() -> None:
    ruling = ruled(WORK, replace(DOCS, name="other", capabilities=("c",)), DOCS, replace(DOCS, name="later"))
    assert (ruling.allowed, ruling.rule, ruling.quarantined) == (True, "docs", False)
    assert ruling.steps[1:] == ("allow other: capability docs.review", "allow docs: fits")


def test_each_direction_is_granted_by_itself() -> None:
    ruling = ruled(replace(WORK, direction=OUT), DOCS)
    assert refused(ruling) == ("default deny", "CAPABILITY_DENIED")


@pytest.mark.parametrize("named", ["docs", "docsx", "docs.", "xdocs.a", "htm", "html.a", "HTML", "docs*"])
def test_names_are_compared_exactly_or_below_a_dot(named: str) -> None:
    assert refused(ruled(Crossing(IN, capabilities=(named,)), DOCS)) == ("docs", "CAPABILITY_DENIED")


@pytest.mark.parametrize("named", ["html", "docs.a", "docs.a.b", "docs.*"])
def test_names_that_are_covered(named: str) -> None:
    assert ruled(Crossing(IN, capabilities=(named,)), DOCS).allowed


def test_every_capability_must_be_covered() -> None:
    ruling = ruled(Crossing(IN, capabilities=("html", "deploy")), DOCS)
    assert refused(ruling) == ("docs", "CAPABILITY_DENIED")
    assert ruling.detail == "capability deploy"


def test_work_that_names_no_capability_needs_a_rule_for_that() -> None:
    assert refused(ruled(Crossing(IN), DOCS))[1] == "CAPABILITY_DENIED"
    assert ruled(Crossing(IN), replace(DOCS, capabilities=())).allowed


def test_deny_wins_wherever_it_stands() -> None:
    deny = Rule("no secrets", Effect.DENY, frozenset({IN}), labels=("secret.*",))
    work = replace(WORK, labels=("secret.keys",))
    for rules in ((deny, DOCS), (DOCS, deny)):
        assert refused(ruled(work, *rules)) == ("no secrets", "LABEL_DENIED")
        assert ruled(WORK, *rules).allowed


def test_a_denied_capability() -> None:
    deny = Rule("no review", Effect.DENY, frozenset({IN}), capabilities=("docs.review",))
    assert refused(ruled(WORK, DOCS, deny)) == ("no review", "CAPABILITY_DENIED")
    assert ruled(Crossing(IN, capabilities=("docs.write",)), DOCS, deny).allowed


def test_labels_are_free_until_a_rule_lists_them() -> None:
    work = replace(WORK, labels=("work", "other"))
    assert ruled(work, DOCS).allowed
    assert refused(ruled(work, replace(DOCS, labels=("work",)))) == ("docs", "LABEL_DENIED")
    assert refused(ruled(work, replace(DOCS, labels=()))) == ("docs", "LABEL_DENIED")


def test_a_sensitive_label_needs_a_verified_peer_and_a_rule_that_names_it() -> None:
    work = replace(WORK, labels=("private",))
    naming = replace(DOCS, labels=("private",))
    sensitive = ("private",)
    for rule, level, allowed in [
        (DOCS, Level.TRUSTED, False),
        (DOCS, Level.VERIFIED, False),
        (naming, Level.TRUSTED, False),
        (naming, Level.VERIFIED, True),
    ]:
        ruling = decide(Grant((rule,), sensitive=sensitive), level, work, Usage(), NOW)
        assert (ruling.allowed, ruling.reason) == (allowed, "" if allowed else "LABEL_DENIED")


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        ({"priority": 51}, {"max_priority": 50}, "QUOTA"),
        ({"bytes": 11}, {"max_bytes": 10}, "QUOTA"),
        ({"exclusive": True}, {}, "CAPABILITY_DENIED"),
        ({"origin": "c" * 32}, {}, "CAPABILITY_DENIED"),
        ({"origin": "c" * 32}, {"transit": frozenset({"d" * 32})}, "CAPABILITY_DENIED"),
    ],
)
def test_what_a_rule_limits(changes: dict[str, Any], limits: dict[str, Any], reason: str) -> None:
    assert refused(ruled(replace(WORK, **changes), replace(DOCS, **limits))) == ("docs", reason)


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"priority": 50}, {"max_priority": 50}),
        ({"bytes": 10}, {"max_bytes": 10}),
        ({"exclusive": True}, {"exclusive": True}),
        ({"origin": "c" * 32}, {"transit": None}),
        ({"origin": "c" * 32}, {"transit": frozenset({"c" * 32})}),
    ],
)
def test_what_a_rule_lets_through(changes: dict[str, Any], limits: dict[str, Any]) -> None:
    assert ruled(replace(WORK, **changes), replace(DOCS, **limits)).allowed


def test_what_does_not_leave_is_said_of_what_leaves_alone() -> None:
    rule = Rule("all", Effect.ALLOW, frozenset(Direction), redact=("description", "labels.*"))
    assert ruled(Crossing(OUT), rule).steps[-1] == "allow all: fits, without description, labels.*"
    assert ruled(Crossing(IN), rule).steps[-1] == "allow all: fits"


@pytest.mark.parametrize(
    ("redact", "field", "kept"),
    [
        (("description",), "description", True),
        (("description",), "payload", False),
        (("labels.*",), "labels.customer", True),
        (("labels.*",), "tags.customer", False),
        (("labels.hr.*",), "labels.hr.pay", True),
        (("labels.hr.*",), "labels.hr", False),
        (("labels.hr",), "labels.hr.pay", False),
    ],
)
def test_names_of_fields_are_compared_as_names_of_labels_are(
    redact: tuple[str, ...], field: str, kept: bool
) -> None:
    assert kept_back(redact, field) == kept


def test_a_rule_ends_at_its_time() -> None:
    assert refused(ruled(WORK, replace(DOCS, expires=NOW))) == ("docs", "CAPABILITY_DENIED")
    assert ruled(WORK, replace(DOCS, expires=NOW + timedelta(microseconds=1))).allowed
    deny = Rule("not today", Effect.DENY, frozenset({IN}), capabilities=("docs.review",), expires=NOW)
    assert ruled(WORK, DOCS, deny).allowed


def test_a_person_is_asked_where_the_rule_says_so() -> None:
    assert ruled(WORK, replace(DOCS, ask=True)).quarantined


def test_what_is_open_counts_by_rule() -> None:
    rule = replace(DOCS, in_flight=2)
    assert ruled(WORK, rule, usage=Usage(in_flight={"docs": 1, "other": 9})).allowed
    ruling = ruled(WORK, rule, usage=Usage(in_flight={"docs": 2}))
    assert refused(ruling) == ("docs", "QUOTA")
    assert ruling.retry_after == timedelta(minutes=1)


def test_a_rate_says_when_it_is_free_again() -> None:
    rule = replace(DOCS, rate=Rate(2, timedelta(minutes=1)))
    times = [NOW - timedelta(seconds=seconds) for seconds in (90, 40, 10)]
    ruling = ruled(WORK, rule, usage=Usage(recent={"docs": times}))
    assert refused(ruling) == ("docs", "QUOTA")
    assert ruling.retry_after == timedelta(seconds=20)
    assert ruled(WORK, rule, usage=Usage(recent={"docs": times[:2]})).allowed


def test_the_refusal_cited_is_of_the_rule_that_came_closest() -> None:
    near = replace(DOCS, name="near", max_priority=10)
    ruling = ruled(WORK, replace(DOCS, name="far", capabilities=("c",)), near)
    assert refused(ruling) == ("near", "QUOTA")


_RULES = st.lists(
    st.builds(
        Rule,
        st.text("abc", min_size=1, max_size=3),
        st.sampled_from(Effect),
        st.frozensets(st.sampled_from(Direction), min_size=1),
        capabilities=st.lists(st.sampled_from(["a", "b", "a.*"]), max_size=2).map(tuple),
        labels=st.none() | st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
        max_priority=st.integers(0, 100),
    ),
    max_size=5,
).map(tuple)
_CROSSINGS = st.builds(
    Crossing,
    st.sampled_from(Direction),
    st.lists(st.sampled_from(["a", "b", "a.c", "d"]), max_size=2).map(tuple),
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=2).map(tuple),
    st.integers(0, 100),
)


@given(_RULES, _CROSSINGS, st.sampled_from([Level.TRUSTED, Level.VERIFIED]))
def test_taking_an_allow_rule_away_or_adding_a_deny_rule_never_lets_more_through(
    rules: tuple[Rule, ...], crossing: Crossing, level: Level
) -> None:
    before = decide(Grant(rules), level, crossing, Usage(), NOW).allowed
    for index, rule in enumerate(rules):
        if rule.effect is Effect.ALLOW:
            fewer = (*rules[:index], *rules[index + 1 :])
            assert decide(Grant(fewer), level, crossing, Usage(), NOW).allowed <= before
    deny = Rule("deny", Effect.DENY, frozenset(Direction), capabilities=("a", "d"), labels=("z",))
    assert decide(Grant((*rules, deny)), level, crossing, Usage(), NOW).allowed <= before


@given(_RULES, _CROSSINGS, st.sampled_from(Level))
def test_every_refusal_says_why_and_every_ruling_what_decided(
    rules: tuple[Rule, ...], crossing: Crossing, level: Level
) -> None:
    ruling = decide(Grant(rules), level, crossing, Usage(), NOW)
    assert ruling.rule
    assert ruling.steps
    assert bool(ruling.reason) is not ruling.allowed


def test_differences_for_people() -> None:
    before = Grant((DOCS, replace(DOCS, name="gone")))
    after = Grant((replace(DOCS, in_flight=5), replace(DOCS, name="new")), level=Level.VERIFIED)
    lines = differences(before, after)
    assert [line.split(":")[0] for line in lines] == ["- gone", "- docs", "+ docs", "+ new", "  level"]
    assert lines[2].endswith("<= 5 open")
    assert lines[-1] == "  level: TRUSTED -> VERIFIED"
    assert differences(after, after) == []
    assert [line.split(":")[0] for line in differences(None, before)] == ["+ docs", "+ gone"]
    assert differences(Grant((DOCS, after.rules[1])), Grant((after.rules[1], DOCS))) == [
        "  the order of the rules"
    ]
    assert [line[0] for line in differences(None, before)][:2] == ["+", "+"]


@pytest.mark.parametrize(
    ("named", "label", "covered"),
    [
        ("customer", "customer=acme", True),
        ("customer", "customer", True),
        ("customer=acme", "customer=acme", True),
        ("customer=acme", "customer=other", False),
        ("customer", "customers=acme", False),
        ("org.*", "org.unit=a", True),
        ("org", "org.unit=a", False),
    ],
)
def test_a_label_is_named_by_its_key_or_whole(named: str, label: str, covered: bool) -> None:
    denying = Rule("no", Effect.DENY, frozenset({Direction.IN}), labels=(named,))
    allowing = Rule("yes", Effect.ALLOW, frozenset({Direction.IN}))
    crossing = Crossing(Direction.IN, labels=(label,))
    ruling = decide(Grant((denying, allowing)), Level.TRUSTED, crossing, Usage(), NOW)
    assert ruling.allowed is not covered
