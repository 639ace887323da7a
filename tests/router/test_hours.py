"""Working hours as a factor: who works now has what is urgent, and what can wait goes where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper.router.v1 import decision_pb2 as pb
from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2
from hopper_common.working_hours import opens_in, parse
from hopper_router import routing
from hopper_router.candidates import Candidates
from hopper_router.convert import decision_from_bytes, decision_to_bytes
from hopper_router.counterfactual import Kind, Known, counterfactuals
from hopper_router.hours import AtWork, Roster
from hopper_router.learned import Learned
from hopper_router.model import Basis, Clocks, Decision, Factor, Project, Task, TaskSpec, TaskState
from hopper_router.policy_yaml import BUILT_IN, load_policy
from hopper_router.replay import Recorded, Rehearsal
from hopper_router.rules import Policy
from hopper_router.weighing import fresh_weights, weighed
from tests.router.harness import ROOT, Router

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
NOON = MONDAY + 12 * HOUR

OFFICES = {
    "berlin": parse("mon-fri 09:00-17:00 Europe/Berlin"),
    "new-york": parse("mon-fri 09:00-17:00 America/New_York"),
    "tokyo": parse("mon-fri 09:00-17:00 Asia/Tokyo"),
}


def desk(name: str, hours: str = "") -> Project:
    return Project(f"projects/{name}", display_name="Desk", working_hours=parse(hours) if hours else None)


OPEN = desk("open")
EVENING = desk("evening", "mon-sun 16:00-20:00")
WEEKEND = desk("weekend", "sat 12:00-18:00")
DESKS = (OPEN, EVENING, WEEKEND)


def decide(
    spec: TaskSpec,
    projects: Iterable[Project] = DESKS,
    policy: Policy = BUILT_IN,
    now: datetime | None = NOON,
) -> Decision:
    return routing.decide(
        spec, Candidates.compile(projects), policy, load={}, refused={}, basis=Basis(), now=now
    )


def hours_of(decision: Decision) -> dict[str, Factor]:
    """The factor by project id."""
    return {
        candidate.project.removeprefix("projects/"): factor
        for candidate in decision.candidates
        for factor in candidate.factors
        if factor.name == "hours"
    }


def values(decision: Decision) -> dict[str, float]:
    return {name: round(factor.value, 3) for name, factor in hours_of(decision).items()}


def task(*, priority: int = 50, **clocks: datetime) -> TaskSpec:
    return TaskSpec("anything", priority=priority, clocks=Clocks(**clocks))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the factor


@pytest.mark.parametrize(
    ("spec", "evening", "weekend"),
    [
        (task(), 0.993, 0.981),  # it barely matters
        (task(priority=0), 0.993, 0.981),
        (task(priority=75), 0.833, 0.531),
        (task(priority=100), 0.667, 0.062),
        (task(finish_by=NOON + 2 * HOUR), 0.0, 0.0),
        (task(start_by=NOON + 5 * HOUR), 0.2, 0.0),
        (task(finish_by=NOON + 10 * DAY), 0.983, 0.5),
        (task(finish_by=NOON + 10 * DAY, priority=100), 0.667, 0.062),
        (task(start_by=NOON + 5 * HOUR, finish_by=NOON + DAY), 0.2, 0.0),
        (replace(task(finish_by=NOON + 8 * HOUR), estimated_effort=3 * HOUR), 0.2, 0.0),
        (replace(task(start_by=NOON + 5 * HOUR), estimated_effort=3 * HOUR), 0.2, 0.0),
        (task(finish_by=NOON - HOUR), 0.667, 0.062),  # it is late: the sooner the better
        (replace(task(finish_by=NOON + HOUR), estimated_effort=2 * HOUR), 0.667, 0.062),
        (task(start_after=NOON + 3 * HOUR, start_by=NOON + 5 * HOUR), 0.5, 0.0),
    ],
)
def test_it_falls_with_how_long_the_task_would_wait(spec: TaskSpec, evening: float, weekend: float) -> None:
    assert values(decide(spec)) == {"open": 1.0, "evening": evening, "weekend": weekend}


def test_a_task_due_in_two_hours_goes_to_who_works_and_one_without_hurry_where_it_belongs() -> None:
    policy = "rules: [{name: late, when: {keyword: anything}, then: {project: evening, weight: 0.5}}]"
    projects = (OPEN, EVENING)
    for spec, expected in (
        (task(finish_by=NOON + 2 * HOUR), "projects/open"),
        (task(), "projects/evening"),
    ):
        decision = decide(spec, projects, load_policy(policy))
        assert decision.project == expected
    assert decide(task(), projects).project == "projects/open"  # of two equals


def test_the_record_says_why() -> None:
    said = {name: factor.evidence for name, factor in hours_of(decide(task())).items()}
    assert said == {"open": ("works now",), "evening": ("opens in 4 h",), "weekend": ("opens in 5 days",)}
    due = hours_of(decide(task(finish_by=NOON + 2 * HOUR)))
    assert due["evening"].evidence == ("opens in 4 h, to be begun in 2 h",)
    late = hours_of(decide(task(finish_by=NOON - HOUR)))
    assert late["evening"].evidence == ("opens in 4 h, late already",)
    then = hours_of(decide(task(start_after=NOON + 5 * HOUR)))
    assert then["evening"].evidence == ("works then",)
    assert then["weekend"].evidence == ("opens 4.79 days later",)


@pytest.mark.parametrize(
    ("projects", "now"),
    [
        ((OPEN, desk("b")), NOON),  # nobody has hours
        ((OPEN, EVENING), NOON + 5 * HOUR),  # all work
        (DESKS, None),  # nobody knows the time
    ],
)
def test_where_it_says_nothing_it_is_left_out(projects: tuple[Project, ...], now: datetime | None) -> None:
    decision = decide(task(), projects, now=now)
    assert not hours_of(decision)
    without = decide(task(), [replace(each, working_hours=None) for each in projects], now=now)
    assert decision == without


def test_who_is_closed_and_ruled_out_is_nobodys_concern() -> None:
    busy = replace(EVENING, paused=True)
    assert not hours_of(decide(task(), (OPEN, desk("b"), busy)))


@pytest.mark.parametrize(
    "spec",
    [
        task(start_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        task(finish_by=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        replace(task(finish_by=NOON + HOUR), estimated_effort=timedelta(days=3_650_000)),
    ],
)
def test_any_time_is_decided_about(spec: TaskSpec) -> None:
    assert decide(spec).project
    assert bool(hours_of(decide(spec))) == (spec.clocks.start_after is None)


def test_nobody_works_and_the_first_to_open_has_it() -> None:
    decision = decide(task(priority=100), (EVENING, WEEKEND))
    assert decision.project == EVENING.name
    assert values(decision) == {"evening": 0.667, "weekend": 0.062}


SPANS = st.tuples(st.sampled_from(["mon", "tue-thu", "sat-sun"]), st.integers(0, 23), st.integers(0, 59)).map(
    lambda span: f"{span[0]} {span[1]:02}:{span[2]:02}-24:00"
)
HOURS = st.builds(
    lambda span, zone: f"{span} {zone}", SPANS, st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"])
)
INSTANTS = st.integers(0, 7 * 86_400 * 1000).map(lambda millis: MONDAY + timedelta(milliseconds=millis))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.just(""), HOURS), min_size=1, max_size=8),
    st.lists(INSTANTS, min_size=1, max_size=5),
)
def test_what_was_looked_up_in_a_minute_holds_in_all_of_it(
    written: list[str], instants: list[datetime]
) -> None:
    projects = [desk(f"p{number}", each) for number, each in enumerate(written)]
    candidates = Candidates.compile(projects)
    eligible = np.arange(0, len(projects), 2)
    for instant in instants:
        for moment in (instant, instant.replace(second=0), instant.replace(second=59, microsecond=999_999)):
            hours = [projects[row].working_hours for row in eligible]
            expected = [opens_in(each, moment).total_seconds() if each else 0.0 for each in hours]
            found = Roster.of(candidates).waits(eligible, moment)
            assert (found is None) == (not any(expected))
            assert found is None or found.tolist() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 100),
    st.one_of(st.none(), st.timedeltas(-DAY, 30 * DAY)),
    st.lists(HOURS, min_size=1, max_size=6),
    INSTANTS,
)
def test_who_opens_sooner_never_has_less_and_who_works_has_all(
    priority: int, due: timedelta | None, hours: list[str], now: datetime
) -> None:
    candidates = Candidates.compile(desk(f"p{number}", each) for number, each in enumerate(hours))
    spec = task(priority=priority) if due is None else task(priority=priority, finish_by=now + due)
    found = AtWork.of(spec, candidates, np.arange(len(hours)), now)
    if found is None:
        return
    pairs = sorted(zip(found.waits.tolist(), found.share.tolist(), strict=True))
    shares = [share for _, share in pairs]
    assert shares == sorted(shares, reverse=True)
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert all((share == 1.0) == (wait == 0.0) for wait, share in pairs)


# ---------------------------------------------------------------- told, replayed, learned


def test_what_would_have_changed_it_is_told_from_the_record() -> None:
    policy = load_policy(
        "rules: [{name: late, when: {keyword: anything}, then: {project: evening, weight: 0.5}}]"
    )
    spec = task(finish_by=NOON + 2 * HOUR)
    decision = decide(spec, (OPEN, EVENING), policy)
    (weight,) = [
        each
        for each in counterfactuals(decision_from_bytes(decision_to_bytes(decision)), spec, Known())
        if each.kind is Kind.WEIGHT and each.what == "hours"
    ]
    assert (weight.project, weight.value) == (EVENING.name, 0.9)
    assert 0.4 < weight.needed < 0.6
    lighter = replace(policy.weights, hours=weight.needed - 0.001)
    assert decide(spec, (OPEN, EVENING), policy.weighing(lighter)).project == EVENING.name


def test_no_weight_below_nothing_is_told_of() -> None:
    """With another weight the two would be equal at best."""
    spec = task(finish_by=NOON + 2 * HOUR)
    told = counterfactuals(decide(spec, (OPEN, EVENING)), spec, Known())
    assert not [each for each in told if each.kind is Kind.WEIGHT]


def recorded(decision: Decision, spec: TaskSpec, when: datetime) -> Recorded:
    decision = replace(decision, name="decisions/d", task=f"{ROOT}/tasks/t", instance=ROOT, create_time=when)
    made = Task(f"{ROOT}/tasks/t", ROOT, spec, TaskState.SUCCEEDED, when, when, when)
    return Recorded(decision, made, {})


def test_a_replay_decides_by_the_hours_of_that_time_also_about_what_was_recorded_without() -> None:
    spec = task(priority=100)
    candidates = Candidates.compile((EVENING, WEEKEND))
    for when, expected in ((NOON, EVENING.name), (MONDAY + 5 * DAY + 13 * HOUR, WEEKEND.name)):
        new = decide(spec, (EVENING, WEEKEND), now=when)
        old = decide(spec, (EVENING, WEEKEND), now=None)
        assert new.project == expected
        assert "hours" not in {factor.name for each in old.candidates for factor in each.factors}
        for each in (new, decision_from_bytes(decision_to_bytes(old))):
            (again,) = Rehearsal(BUILT_IN, candidates, Learned(lambda: None)).decide(
                [recorded(each, spec, when)], {}
            )
            assert again.project == expected


def test_its_weight_is_learned_where_it_stands_in_the_record_of_all() -> None:
    assert fresh_weights().weights["hours"].value == BUILT_IN.weights.hours
    candidates = decide(task(priority=100)).candidates
    judged = [replace(each, factors=(*each.factors, Factor("learned", 0.1, 2.0))) for each in candidates]
    assert {name for each in weighed(judged) for name, _ in each.factors} == {"hours"}
    older = [judged[0], replace(judged[1], factors=tuple(f for f in judged[1].factors if f.name != "hours"))]
    assert weighed(older) == []


# ---------------------------------------------------------------- follow the sun


@pytest.mark.parametrize("strategy", ["learned", "rules"])
async def test_urgent_work_follows_the_sun(router: Router, strategy: str) -> None:
    """Three offices of equal skill; what is due in two hours goes to who works, and at night to who opens first."""
    policy = pb.Policy(name=f"{ROOT}/policy", source=f"strategy: {strategy}")
    await router.routing.UpdatePolicy(routing_svc.UpdatePolicyRequest(policy=policy))
    for name, hours in OFFICES.items():
        router.registry.project(name, display_name="Support", description="helps", working_hours=hours)
    router.clock.advance(MONDAY + 7 * DAY - router.clock.now())
    # A Monday in January, UTC: Tokyo works from 00:00 to 08:00, Berlin to 16:00, New York from 14:00 to 22:00.
    for hour, who in (
        (0, {"tokyo"}),
        (7, {"tokyo"}),
        (8, {"berlin"}),
        (13, {"berlin"}),
        (14, {"berlin", "new-york"}),
        (16, {"new-york"}),
        (21, {"new-york"}),
        (23, {"tokyo"}),
    ):
        router.clock.advance(MONDAY + 7 * DAY + hour * HOUR - router.clock.now())
        clocks = task_pb2.Clocks()
        clocks.finish_by.FromDatetime(router.clock.now() + 2 * HOUR)
        for number in range(3):
            made = await router.submit(f"help customer {number} at {hour}", clocks=clocks)
            assert made.project.removeprefix("projects/") in who
    decision = await router.routing.GetDecision(routing_svc.GetDecisionRequest(name=made.decision))
    (tokyo,) = [each for each in decision.decision.candidates if each.project == "projects/tokyo"]
    (line,) = [factor for factor in tokyo.factors if factor.name == "hours"]
    assert (line.value, list(line.evidence)) == (0.5, ["opens in 1 h, to be begun in 2 h"])
