"""What a person can do about a task that nobody takes."""

import pytest

from hopper.registry.v1.project_pb2 import Executor, Project
from hopper.router.v1.decision_pb2 import Decision, Exclusion
from hopper_cli.stuck import what_to_do

TASK = "instances/global/tasks/01m832czxxffqaz3cbask4xfj6"
PROJECTS = {
    "projects/web": Project(name="projects/web"),
    "projects/peer-bob": Project(
        name="projects/peer-bob", display_name="bob", executor=Executor(type=Executor.TYPE_PEER)
    ),
}


def advice(*exclusions: Exclusion) -> list[str]:
    return what_to_do(Decision(exclusions=exclusions), TASK, PROJECTS.get)


@pytest.mark.parametrize(
    ("filter_", "project", "typed"),
    [
        ("no-live-worker", "web", "hopper work --queue web"),
        ("no-live-worker", "peer-bob", "hopper doctor bob"),
        ("project-paused", "web", "hopper project resume web"),
        ("border", "peer-bob", "hopper policy explain bob 4xfj6"),
        ("rejected-before", "peer-bob", "hopper delegate 4xfj6 --to peer-bob"),
        ("rejected-before", "web", "hopper delegations 4xfj6"),
    ],
)
def test_each_obstacle_has_the_command_that_helps(filter_: str, project: str, typed: str) -> None:
    (line,) = advice(Exclusion(filter=filter_, count=1, projects=[f"projects/{project}"]))
    assert typed.replace("4xfj6", TASK[-6:]) in line


def test_what_nobody_can_help_with_and_who_is_gone_say_nothing() -> None:
    assert advice(Exclusion(filter="pin", count=1, projects=["projects/web"])) == []
    assert advice(Exclusion(filter="border", count=1, projects=["projects/gone"])) == []


def test_nothing_is_said_twice() -> None:
    twice = Exclusion(filter="no-live-worker", count=1, projects=["projects/web"])
    assert len(advice(twice, twice)) == 1
