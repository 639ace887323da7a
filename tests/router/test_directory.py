"""The router's copy of the registry: what follows from it, and what a change leaves alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_router.directory import EMPTY_DIRECTORY, Directory, run_start
from hopper_router.model import Instance, InstanceState, Project, Scope

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def an_instance(
    name: str, parent: str = "global", *, state: InstanceState = InstanceState.RUNNING, project: str = ""
) -> Instance:
    return Instance(
        name=f"instances/{name}",
        scope=Scope.PROJECT,
        state=state,
        parent=f"instances/{parent}" if name != "global" else "",
        project=f"projects/{project}" if project else "",
    )


def a_tree(*instances: Instance) -> Directory:
    return EMPTY_DIRECTORY.with_instances([an_instance("global"), *instances], 1)


# ---------------------------------------------------------------- what follows from it


def test_an_instance_halts_everything_under_it() -> None:
    directory = a_tree(
        an_instance("a", state=InstanceState.PAUSED),
        an_instance("b", "a"),
        an_instance("c", "b"),
        an_instance("d"),
    )

    assert directory.halted == {"instances/a", "instances/b", "instances/c"}
    assert directory.halted_by("instances/c") == "instances/a"
    assert directory.halted_by("instances/a") == "instances/a"
    assert directory.halted_by("instances/d") == ""


def test_the_nearest_instance_that_halts_is_named() -> None:
    stopped, paused = InstanceState.STOPPED, InstanceState.PAUSED
    directory = a_tree(
        an_instance("a", state=stopped), an_instance("b", "a", state=paused), an_instance("c", "b")
    )

    assert directory.halted_by("instances/c") == "instances/b"


@pytest.mark.parametrize("state", InstanceState)
def test_only_running_runs(state: InstanceState) -> None:
    directory = a_tree(an_instance("a", state=state))

    assert ("instances/a" in directory.halted) == (state is not InstanceState.RUNNING)


def test_an_instance_under_an_unknown_one_does_not_run() -> None:
    directory = a_tree(an_instance("b", "lost"))

    assert directory.halted_by("instances/b") == "instances/lost"


def test_an_unknown_instance_does_not_run() -> None:
    assert a_tree().halted_by("instances/nobody") == "instances/nobody"


def test_a_circle_does_not_run_and_ends() -> None:
    directory = a_tree(an_instance("a", "b"), an_instance("b", "a"))

    assert directory.halted == {"instances/a", "instances/b"}
    assert directory.ancestors("instances/a") == ("instances/b",)


STATES = st.sampled_from([InstanceState.RUNNING, InstanceState.RUNNING, InstanceState.PAUSED])


@given(st.lists(st.tuples(st.integers(0, 30), STATES), min_size=1, max_size=30))
def test_halting_is_what_walking_up_finds(nodes: list[tuple[int, InstanceState]]) -> None:
    # Each node stands under an earlier one, the first under the root.
    instances = [
        an_instance(f"n{number}", f"n{parent % number}" if number else "global", state=state)
        for number, (parent, state) in enumerate(nodes)
    ]
    directory = a_tree(*reversed(instances))

    for instance in instances:
        upwards = [instance.name, *directory.ancestors(instance.name)]
        halting = [name for name in upwards if directory.instances[name].state is not InstanceState.RUNNING]
        assert directory.halted_by(instance.name) == (halting[0] if halting else "")
        assert (instance.name in directory.halted) == bool(halting)


def test_ancestors_come_nearest_first() -> None:
    directory = a_tree(an_instance("a"), an_instance("b", "a"))

    assert directory.ancestors("instances/b") == ("instances/a", "instances/global")
    assert directory.ancestors("instances/global") == ()
    assert directory.ancestors("instances/nobody") == ()


def test_children_come_by_name() -> None:
    directory = a_tree(an_instance("b"), an_instance("a"), an_instance("c", "a"))

    assert directory.children("instances/global") == ("instances/a", "instances/b")
    assert directory.children("instances/b") == ()
    assert directory.children("") == ()


def test_the_project_is_that_of_the_nearest_instance_that_has_one() -> None:
    directory = a_tree(
        an_instance("a", project="p"),
        an_instance("b", "a"),
        an_instance("c", "b", project="q"),
        an_instance("d"),
    )

    assert directory.project_of("instances/b") == "projects/p"
    assert directory.project_of("instances/c") == "projects/q"
    assert directory.project_of("instances/d") == ""
    assert directory.project_of("instances/nobody") == ""


def test_a_terminated_instance_stands_for_no_project() -> None:
    directory = a_tree(
        an_instance("a", project="p", state=InstanceState.TERMINATED),
        an_instance("b", project="p", state=InstanceState.STOPPED),
        an_instance("c", project="q", state=InstanceState.TERMINATED),
    )

    assert directory.instance_of_project == {"projects/p": "instances/b"}


# ---------------------------------------------------------------- what a change leaves alone


def test_a_change_leaves_the_one_before_alone() -> None:
    before = EMPTY_DIRECTORY.with_project(Project("projects/a"), 1)
    after = before.without_project("projects/a", 2).with_project(Project("projects/b"), 3)

    assert list(before.projects) == ["projects/a"]
    assert list(after.projects) == ["projects/b"]
    assert (before.projects_version, after.projects_version) == (1, 3)


def test_candidates_are_compiled_from_the_projects() -> None:
    directory = EMPTY_DIRECTORY.with_projects([Project("projects/b"), Project("projects/a")], 1)

    assert directory.candidates.names == ("projects/a", "projects/b")


def test_an_equal_project_moves_the_version_and_keeps_the_candidates() -> None:
    before = EMPTY_DIRECTORY.with_project(Project("projects/a", live_workers=1), 1)
    compiled = before.candidates

    after = before.with_project(Project("projects/a", live_workers=1), 2)

    assert after.projects_version == 2
    assert after.candidates is compiled
    assert after.same_world(before)


def test_an_equal_snapshot_keeps_the_candidates() -> None:
    before = EMPTY_DIRECTORY.with_projects([Project("projects/a"), Project("projects/b")], 1)
    compiled = before.candidates

    after = before.with_projects([Project("projects/b"), Project("projects/a")], 9)

    assert after.candidates is compiled
    assert after.same_world(before)


def test_a_changed_project_is_compiled_anew() -> None:
    before = EMPTY_DIRECTORY.with_project(Project("projects/a"), 1)
    compiled = before.candidates

    after = before.with_project(Project("projects/a", paused=True), 2)

    assert after.candidates is not compiled
    assert list(after.candidates.paused) == [True]
    assert not after.same_world(before)


def test_a_changed_text_is_compiled_anew() -> None:
    mend, cook = Project("projects/a", description="mends bicycles"), Project("projects/b")
    before = EMPTY_DIRECTORY.with_projects([mend, cook], 1)
    assert "bicycle" in " ".join(before.candidates.text.words)

    after = before.with_project(replace(mend, description="cooks soup"), 2)
    anew = EMPTY_DIRECTORY.with_projects(after.projects.values(), 2)

    assert after.candidates.text.words == anew.candidates.text.words


def test_instances_do_not_touch_the_candidates() -> None:
    before = EMPTY_DIRECTORY.with_project(Project("projects/a"), 1)
    compiled = before.candidates

    after = before.with_instance(an_instance("a"), 5)

    assert after.candidates is compiled
    assert (after.projects_version, after.instances_version) == (1, 5)


def test_an_instance_that_changes_changes_what_follows() -> None:
    before = a_tree(an_instance("a"))
    assert before.halted == frozenset()

    after = before.with_instance(an_instance("a", state=InstanceState.PAUSED), 2)

    assert after.halted == {"instances/a"}
    assert before.halted == frozenset()


def test_an_equal_instance_moves_only_the_version() -> None:
    before = a_tree(an_instance("a"))
    after = before.with_instance(an_instance("a"), 7)

    assert after.same_world(before)
    assert after.instances_version == 7


def test_being_complete_is_a_change() -> None:
    assert EMPTY_DIRECTORY.completed().complete
    assert not EMPTY_DIRECTORY.completed().same_world(EMPTY_DIRECTORY)


def test_what_it_holds_cannot_be_changed_from_outside() -> None:
    given = {"projects/a": Project("projects/a")}
    directory = EMPTY_DIRECTORY.with_projects(given.values(), 1)
    given.clear()

    assert list(directory.projects) == ["projects/a"]
    with pytest.raises(TypeError):
        directory.projects["projects/b"] = Project("projects/b")  # type: ignore[index]


# ---------------------------------------------------------------- runs


def test_a_run_begins_when_an_instance_comes_up() -> None:
    before = an_instance("a", state=InstanceState.CREATED)

    assert run_start(before, InstanceState.STARTING, NOW) == NOW


def test_a_run_goes_on_through_a_pause() -> None:
    running = replace(an_instance("a"), start_time=NOW)

    assert run_start(running, InstanceState.PAUSED, LATER) == NOW
    assert run_start(replace(running, state=InstanceState.PAUSED), InstanceState.RUNNING, LATER) == NOW


def test_a_run_is_remembered_when_it_is_over() -> None:
    stopping = replace(an_instance("a", state=InstanceState.STOPPING), start_time=NOW)

    assert run_start(stopping, InstanceState.STOPPED, LATER) == NOW


def test_an_instance_started_again_begins_another_run() -> None:
    for state in (InstanceState.STOPPED, InstanceState.ERROR):
        before = replace(an_instance("a", state=state), start_time=NOW)

        assert run_start(before, InstanceState.STARTING, LATER) == LATER


def test_a_run_met_under_way_began_at_the_last_change() -> None:
    assert run_start(None, InstanceState.RUNNING, NOW) == NOW
    assert run_start(None, InstanceState.CREATED, NOW) is None
