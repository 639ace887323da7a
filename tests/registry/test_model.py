from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hopper_common.errors import EtagMismatch, InvalidArgument
from hopper_registry.errors import InstanceParentInvalid, InstanceWrongState
from hopper_registry.model import (
    ARCHIVE_LIMIT,
    LIFECYCLE,
    ROOT,
    SCOPE_PARENTS,
    Instance,
    InstanceConfig,
    InstanceSpec,
    Project,
    ProjectSpec,
    RunSummary,
    Scope,
    State,
    Verb,
    Worker,
    check_etag,
    check_parent_scope,
    check_spec,
    etag_of,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)

# The diagram in instance.proto, written once more in another form.
LEGAL = """
    CREATED    START->STARTING TERMINATE->TERMINATED
    STARTING   RUN->RUNNING STOP->STOPPING FAIL->ERROR
    RUNNING    PAUSE->PAUSED STOP->STOPPING FAIL->ERROR
    PAUSED     RESUME->RUNNING STOP->STOPPING FAIL->ERROR
    STOPPING   FINISH->STOPPED FAIL->ERROR
    STOPPED    START->STARTING TERMINATE->TERMINATED
    ERROR      START->STARTING STOP->STOPPING TERMINATE->TERMINATED
    TERMINATED
"""
MOVES = {
    (State(line.split()[0]), Verb(move.split("->")[0])): State(move.split("->")[1])
    for line in LEGAL.strip().splitlines()
    for move in line.split()[1:]
}
ALL_MOVES = [(state, verb) for state in State for verb in Verb]

# The comments of the scopes in instance.proto.
UNDER = {
    Scope.GLOBAL: "",
    Scope.PROJECT: "GLOBAL",
    Scope.ORCHESTRATION: "PROJECT EVENT",
    Scope.PERSONAL: "GLOBAL FAMILY",
    Scope.FAMILY: "GLOBAL",
    Scope.EVENT: "GLOBAL PROJECT PERSONAL FAMILY",
    Scope.FEDERATED: "GLOBAL",
}


def an_instance(state: State = State.RUNNING, name: str = "instances/run", **spec: str) -> Instance:
    return Instance(
        name=name,
        spec=InstanceSpec(scope=Scope.ORCHESTRATION, parent="instances/team", display_name="run", **spec),  # type: ignore[arg-type]
        revision=1,
        create_time=NOW,
        update_time=NOW,
        state=state,
        state_reason="as before",
    )


@pytest.mark.parametrize(("state", "verb"), [move for move in ALL_MOVES if move in MOVES])
def test_a_legal_move_leads_where_the_contract_says(state: State, verb: Verb) -> None:
    before = an_instance(state)
    after = before.moved(verb, LATER, "because")
    assert (after.state, after.state_reason) == (MOVES[state, verb], "because")
    assert (after.revision, after.update_time, after.create_time) == (2, LATER, NOW)
    assert before.can(verb)


@pytest.mark.parametrize(("state", "verb"), [move for move in ALL_MOVES if move not in MOVES])
def test_an_illegal_move_is_refused_and_says_from_where_to_where(state: State, verb: Verb) -> None:
    before = an_instance(state)
    with pytest.raises(InstanceWrongState) as refused:
        before.moved(verb, LATER)
    assert refused.value.metadata == {"instance": "instances/run", "state": state, "verb": verb}
    assert not before.can(verb)
    assert before == an_instance(state)


def test_the_table_has_the_contracts_moves_and_no_other() -> None:
    assert LIFECYCLE == MOVES
    assert not [verb for verb in Verb if (State.TERMINATED, verb) in LIFECYCLE]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", [Verb.STOP, Verb.TERMINATE])
def test_the_root_is_never_stopped_or_terminated(state: State, verb: Verb) -> None:
    with pytest.raises(InstanceWrongState, match="the root") as refused:
        an_instance(state, name=ROOT).moved(verb, LATER)
    assert refused.value.metadata == {"instance": ROOT, "state": state, "verb": verb}


def test_the_root_can_be_paused() -> None:
    assert an_instance(name=ROOT).moved(Verb.PAUSE, LATER).state is State.PAUSED


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("parent", [*Scope, None])
def test_a_scope_stands_only_under_the_parents_of_the_contract(scope: Scope, parent: Scope | None) -> None:
    allowed = UNDER[scope].split()
    if parent in allowed:
        check_parent_scope(scope, parent)
        return
    with pytest.raises(InstanceParentInvalid) as refused:
        check_parent_scope(scope, parent)
    assert refused.value.metadata == {
        "scope": scope,
        "parent_scope": parent or "",
        "allowed": ", ".join(sorted(allowed)),
    }


def test_every_scope_has_its_row() -> None:
    assert SCOPE_PARENTS.keys() == set(Scope)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (InstanceSpec(Scope.PROJECT), ["instance.parent", "instance.project"]),
        (InstanceSpec(Scope.PROJECT, ROOT), ["instance.project"]),
        (InstanceSpec(Scope.ORCHESTRATION, ROOT, project="projects/a"), ["instance.project"]),
        (InstanceSpec(Scope.GLOBAL, project="projects/a"), ["instance.project"]),
        (InstanceSpec(Scope.PERSONAL, ROOT), ["instance.config.members"]),
        (
            InstanceSpec(Scope.PERSONAL, ROOT, config=InstanceConfig(members=("ann", "bo"))),
            ["instance.config.members"],
        ),
        (InstanceSpec(Scope.FAMILY, ROOT), ["instance.config.members"]),
    ],
)
def test_a_spec_that_breaks_its_scopes_rules_is_refused_by_field(
    spec: InstanceSpec, fields: list[str]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_spec(spec)
    assert [violation.field for violation in refused.value.violations] == fields


@pytest.mark.parametrize(
    "spec",
    [
        InstanceSpec(Scope.GLOBAL),
        InstanceSpec(Scope.PROJECT, ROOT, project="projects/a"),
        InstanceSpec(Scope.ORCHESTRATION, "instances/team"),
        InstanceSpec(Scope.PERSONAL, ROOT, config=InstanceConfig(members=("ann",))),
        InstanceSpec(Scope.FAMILY, ROOT, config=InstanceConfig(members=("ann", "bo")), project="projects/a"),
        InstanceSpec(Scope.EVENT, ROOT, project="projects/a"),
        InstanceSpec(Scope.FEDERATED, ROOT, project="projects/a"),
    ],
)
def test_a_spec_that_keeps_its_scopes_rules_passes(spec: InstanceSpec) -> None:
    check_spec(spec)


def test_an_archive_holds_the_newest_runs() -> None:
    parent = an_instance()
    for number in range(ARCHIVE_LIMIT + 5):
        parent = parent.archived(RunSummary(instance=f"instances/run-{number}"), LATER)
    assert len(parent.archive) == ARCHIVE_LIMIT
    assert parent.archive[0].instance == f"instances/run-{ARCHIVE_LIMIT + 4}"
    assert parent.archive[-1].instance == "instances/run-5"
    assert parent.revision == ARCHIVE_LIMIT + 6


def test_an_etag_differs_by_revision_name_and_life() -> None:
    etags = {
        etag_of("projects/a", NOW, 1),
        etag_of("projects/a", NOW, 2),
        etag_of("projects/b", NOW, 1),
        etag_of("projects/a", LATER, 1),
    }
    assert len(etags) == 4
    assert etag_of("projects/a", NOW, 1) in etags


def test_an_update_that_changes_nothing_keeps_the_etag() -> None:
    project = Project("projects/a", ProjectSpec(display_name="a"), 1, NOW, NOW)
    assert project.updated(ProjectSpec(), LATER) is project
    changed = project.updated(ProjectSpec(tags=("x",)), LATER)
    assert changed.etag != project.etag
    assert (changed.spec.display_name, changed.update_time) == ("a", LATER)


def test_an_update_must_keep_the_rules_of_the_scope() -> None:
    with pytest.raises(InvalidArgument):
        an_instance().updated(replace(an_instance().spec, project="projects/a"), LATER)


def test_an_etag_is_checked_only_if_given() -> None:
    check_etag(an_instance(), "")
    check_etag(an_instance(), an_instance().etag)
    with pytest.raises(EtagMismatch) as refused:
        check_etag(an_instance(), "0123")
    assert refused.value.metadata == {"resource": "instances/run", "etag": an_instance().etag}


def test_a_worker_knows_its_project_and_its_next_heartbeat() -> None:
    worker = Worker("projects/a/workers/w@host", time_to_live=timedelta(seconds=12))
    assert (worker.project, worker.next_heartbeat) == ("projects/a", timedelta(seconds=4))
