"""Files that people write: parts of a task, projects."""

from datetime import UTC, datetime, timedelta

import pytest

from hopper.registry.v1.project_pb2 import Executor, RateLimit
from hopper_cli.parts import read_parts
from hopper_cli.problems import UsageProblem
from hopper_cli.project_specs import read_projects
from hopper_common.timestamps import from_proto
from hopper_common.working_hours import parse
from hopper_common.working_hours_proto import hours_from_proto

NOW = datetime(2026, 3, 6, 12, tzinfo=UTC)


def test_parts_name_each_other_by_id_or_position() -> None:
    """Ids are for people, positions for programs."""
    parts = read_parts(
        """
        - {id: design, title: design it}
        - {title: build it, after: design, tags: [x], needs: java, priority: high, effort: 2h, retry: 2}
        - {title: ship it, after: [0, 1], due: 17:00, description: all of it, labels: {a: b}, project: moodle}
        """,
        "parts.yaml",
        NOW,
    )
    assert [list(part.after) for part in parts] == [[], [0], [0, 1]]
    build, ship = parts[1].spec, parts[2].spec
    assert (build.priority, list(build.required_capabilities), build.retry.max_attempts) == (75, ["java"], 3)
    assert from_proto(build.estimated_effort) == timedelta(hours=2)
    assert from_proto(ship.clocks.finish_by) == NOW.replace(hour=17)
    assert (ship.description, dict(ship.labels), ship.project) == ("all of it", {"a": "b"}, "projects/moodle")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no list of parts"),
        ("title: x", "is no list of parts"),
        ("- x", "part 0 is no mapping"),
        ("- description: x", "part 0 has no title"),
        ("- {title: x, colour: red}", "part 0 has colour"),
        ("- {title: x, after: [y]}", "after names 'y'"),
        ("- {title: x, after: [3]}", "after names '3'"),
        ("- {title: x, retry: often}", "retry is no number"),
        ("- {title: x, tags: {a: b}}", "tags is no list"),
        ("- {title: x, labels: [a]}", "labels is no mapping"),
        ("- {title: x, id: a}\n- {title: y, id: a}", "another part has the id 'a'"),
        ("- {title: x, id: '1'}\n- {title: y}", "another part has the id '1'"),
        ("- {title: x, priority: asap}", "part 0: .*priority"),
        ("- title: [", "f:1:11"),
    ],
)
def test_a_wrong_part_is_named(text: str, complaint: str) -> None:
    """With the part, or the line where it is no YAML at all."""
    with pytest.raises(UsageProblem, match=complaint) as caught:
        read_parts(text, "f", NOW)
    assert "f" in caught.value.message


def test_words_stay_words() -> None:
    """YAML would make false of `no` and 1020 of 17:00."""
    (part,) = read_parts("- {title: no, due: 17:00, tags: [1.0, yes]}", "f", NOW)
    assert (part.spec.title, list(part.spec.tags)) == ("no", ["1.0", "yes"])


def rate(limit: RateLimit) -> tuple[int, timedelta]:
    return limit.count, from_proto(limit.period)


def test_projects() -> None:
    """A list, or a list under `projects`, as the demo's."""
    entry = (
        "id: a, capabilities: [x], sla: 2d, max_running: 3, executor: agent, requires_live_worker: true, "
        "max_running_per_key: 2, start_rate: 100/min, start_rate_per_key: 5/30s, "
        "working_hours: 'mon tue 9-17 Asia/Tokyo'"
    )
    for text in (f"- {{{entry}}}", f"projects:\n  - {{{entry}}}"):
        ((project_id, project),) = read_projects(text, "f")
        assert project_id == "a"
        assert (list(project.capabilities), project.capacity.max_running) == (["x"], 3)
        assert project.capacity.max_running_per_key == 2
        assert rate(project.capacity.start_rate) == (100, timedelta(minutes=1))
        assert rate(project.capacity.start_rate_per_key) == (5, timedelta(seconds=30))
        assert from_proto(project.sla) == timedelta(days=2)
        assert hours_from_proto(project) == parse("mon-tue 09:00-17:00 Asia/Tokyo")
        assert project.executor == Executor(type=Executor.TYPE_AGENT, requires_live_worker=True)


def test_hours_without_a_zone_are_those_of_who_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    ((_, project),) = read_projects("- {id: a, working_hours: mon 9-17}", "f")
    assert hours_from_proto(project) == parse("mon 09:00-17:00 Asia/Tokyo")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "no list of projects"),
        ("- {}", "project 1 has no id"),
        ("- {id: a}\n- {id: b, speed: 3}", "project 2 has speed"),
        ("- {id: a, executor: robot}", "project 1: .*robot"),
        ("- {id: a, working_hours: noon}", "project 1: 'noon' are no working hours: .* days and hours"),
        ("- {id: a, start_rate: 5}", "project 1: '5' is no rate"),
        ("- {id: a, velocity_per_day: fast}", "velocity_per_day is no number"),
        ("- {id: a, requires_live_worker: maybe}", "true or false"),
    ],
)
def test_a_wrong_project_is_named(text: str, complaint: str) -> None:
    """With its number, from 1, as people count."""
    with pytest.raises(UsageProblem, match=complaint):
        read_projects(text, "f")
