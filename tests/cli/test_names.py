import pytest

from hopper_cli.names import instance_name, instance_of, path_of, project_name, queue_names, short
from hopper_cli.problems import UsageProblem

TASK = "instances/global/tasks/01m832czxxffqaz3cbask4xfj6"


def test_a_task_is_known_by_the_end_of_its_id() -> None:
    """The end is random, the beginning is the time: tasks of one hour begin alike."""
    assert short(TASK) == "k4xfj6"
    assert instance_of(TASK) == "instances/global"


@pytest.mark.parametrize("text", ["mesos", "projects/mesos", " mesos "])
def test_a_bare_id_is_a_project(text: str) -> None:
    """People type the id; the full name is the same."""
    assert project_name(text) == "projects/mesos"


@pytest.mark.parametrize("text", ["", "instances/x", "a/b"])
def test_what_is_no_project_is_refused(text: str) -> None:
    """A name of something else is a mistake, not an id with a slash in it."""
    with pytest.raises(UsageProblem):
        project_name(text)


def test_instances_likewise() -> None:
    """The same for the other collection."""
    assert instance_name("global") == instance_name("instances/global") == "instances/global"


def test_a_queue_is_a_project_before_it_is_an_instance() -> None:
    """A full name leaves no choice."""
    assert queue_names("jane") == ("projects/jane", "instances/jane")
    assert queue_names("instances/jane") == ("instances/jane",)
    assert queue_names("projects/jane") == ("projects/jane",)


def test_a_path_is_read_from_left_to_right() -> None:
    """Oldest first."""
    assert path_of(["instances/global", "instances/team"]) == "global → team"
