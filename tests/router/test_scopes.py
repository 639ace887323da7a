"""Each scope's one decision, and where hand-overs may go."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hopper_router.model import Clocks, DelegationKind, Instance, InstanceState, Scope, TaskSpec
from hopper_router.scopes import (
    SCOPES,
    Choose,
    HandOver,
    Keep,
    Surroundings,
    delegation_allowed,
    is_complex,
    may_claim,
    planned,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SIMPLE, COMPLEX = TaskSpec("t", estimated_effort=HOUR), TaskSpec("t", estimated_effort=4 * HOUR)


def instance(id_: str, scope: Scope, parent: str = "", **fields: Any) -> Instance:
    state = fields.pop("state", InstanceState.RUNNING)
    return Instance(f"instances/{id_}", scope, state, f"instances/{parent}" if parent else "", **fields)


def around(
    *children: Instance, visited: Any = (), load: Any = None, project: str = "projects/web"
) -> Surroundings:
    counts = load or {}
    return Surroundings(project, children, frozenset(visited), lambda name: counts.get(name, 0))


def test_every_scope_has_a_rule() -> None:
    assert set(SCOPES) == set(Scope)


@pytest.mark.parametrize("spec", [SIMPLE, COMPLEX])
def test_global_chooses_whatever_comes(spec: TaskSpec) -> None:
    assert SCOPES[Scope.GLOBAL].place(spec, instance("global", Scope.GLOBAL), around()) == Choose()


@pytest.mark.parametrize("scope", [Scope.ORCHESTRATION, Scope.PERSONAL, Scope.FAMILY, Scope.EVENT])
@pytest.mark.parametrize("project", ["projects/web", ""])
def test_queues_keep_whatever_comes(scope: Scope, project: str) -> None:
    run = instance("run", Scope.ORCHESTRATION, "q")
    placed = SCOPES[scope].place(COMPLEX, instance("q", scope), around(run, project=project))
    assert isinstance(placed, Keep)
    assert placed.project == project


def test_what_is_for_a_peer_is_queued_for_the_federation_service() -> None:
    placed = SCOPES[Scope.FEDERATED].place(SIMPLE, instance("peer", Scope.FEDERATED), around())
    assert placed == Keep(around().project, "the federation service hands it to the peer")


@pytest.mark.parametrize(
    ("effort", "complex_"),
    [
        (None, False),
        (timedelta(0), False),
        (4 * HOUR - timedelta(microseconds=1), False),
        (4 * HOUR, True),
        (99 * HOUR, True),
    ],
)
def test_what_is_complex(effort: timedelta | None, complex_: bool) -> None:
    assert is_complex(TaskSpec("t", estimated_effort=effort), 4 * HOUR) is complex_


def test_a_project_keeps_the_simple_and_hands_the_complex_to_the_least_busy_run() -> None:
    web = instance("web", Scope.PROJECT)
    runs = [instance(f"run{n}", Scope.ORCHESTRATION, "web") for n in range(3)]
    place = SCOPES[Scope.PROJECT].place
    assert isinstance(place(SIMPLE, web, around(*runs)), Keep)
    busy = {"instances/run0": 2, "instances/run1": 1, "instances/run2": 1}
    placed = place(COMPLEX, web, around(*runs, load=busy))
    assert isinstance(placed, HandOver)
    assert placed.instance == "instances/run1"  # of two equally busy the first by name
    assert "4:00:00" in placed.reason


@pytest.mark.parametrize(
    "child",
    [
        instance("run", Scope.EVENT, "web"),
        *(
            instance("run", Scope.ORCHESTRATION, "web", state=s)
            for s in InstanceState
            if s is not InstanceState.RUNNING
        ),
    ],
)
def test_a_project_keeps_the_complex_where_no_run_could_take_it(child: Instance) -> None:
    placed = SCOPES[Scope.PROJECT].place(COMPLEX, instance("web", Scope.PROJECT), around(child))
    assert isinstance(placed, Keep)
    assert "complex" in placed.reason


def test_a_run_that_had_the_work_does_not_get_it_again() -> None:
    web, runs = (
        instance("web", Scope.PROJECT),
        [instance(f"run{n}", Scope.ORCHESTRATION, "web") for n in range(2)],
    )
    place = SCOPES[Scope.PROJECT].place
    placed = place(COMPLEX, web, around(*runs, visited={"instances/run0"}))
    assert isinstance(placed, HandOver)
    assert placed.instance == "instances/run1"
    assert isinstance(place(COMPLEX, web, around(*runs, visited={run.name for run in runs})), Keep)


@pytest.mark.parametrize("scope", list(Scope))
def test_only_events_plan_back_from_a_date(scope: Scope) -> None:
    spec = TaskSpec("t", before_event=HOUR, clocks=Clocks(finish_by=NOW, run_for=HOUR))
    place = instance("x", scope, event_time=NOW + 10 * HOUR)
    finish = NOW + 9 * HOUR if scope is Scope.EVENT else NOW
    assert planned(spec, place).clocks == Clocks(finish_by=finish, run_for=HOUR)


def test_without_a_date_or_a_distance_nothing_is_planned() -> None:
    event = instance("x", Scope.EVENT, event_time=NOW)
    assert planned(SIMPLE, event) is SIMPLE
    spec = TaskSpec("t", before_event=HOUR)
    assert planned(spec, instance("x", Scope.EVENT)) is spec


def test_who_may_claim() -> None:
    assert may_claim("anyone", instance("x", Scope.PERSONAL))
    home = instance("x", Scope.FAMILY, members=frozenset({"ann"}))
    assert may_claim("ann", home)
    assert not may_claim("Ann", home)


TREE = {
    node.name: node
    for node in (
        instance("global", Scope.GLOBAL),
        instance("web", Scope.PROJECT, "global"),
        instance("app", Scope.PROJECT, "global"),
        instance("run", Scope.ORCHESTRATION, "web"),
        instance("jog", Scope.ORCHESTRATION, "web"),
    )
}
ALLOWED = {
    DelegationKind.ROUTE: {("global", "web"), ("global", "app"), ("web", "run"), ("web", "jog")},
    DelegationKind.ESCALATE: {("web", "global"), ("app", "global"), ("run", "web"), ("jog", "web")},
    DelegationKind.REASSIGN: {("web", "app"), ("app", "web"), ("run", "jog"), ("jog", "run")},
}
ALLOWED[DelegationKind.DECOMPOSE] = ALLOWED[DelegationKind.ROUTE] | {
    (name, name) for name in ("global", "web", "app", "run", "jog")
}


@pytest.mark.parametrize("kind", list(DelegationKind))
def test_every_hand_over_between_any_two_instances(kind: DelegationKind) -> None:
    found = {
        (source.name.removeprefix("instances/"), target.name.removeprefix("instances/"))
        for source in TREE.values()
        for target in TREE.values()
        if delegation_allowed(kind, source, target, parent_of=lambda name: TREE[name].parent)
    }
    assert found == ALLOWED[kind]
