"""Projects from what was typed, and from files such as the demo's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hopper.registry.v1.project_pb2 import Capacity, Executor, Project, RateLimit
from hopper_cli import inputs
from hopper_cli.problems import UsageProblem
from hopper_cli.times import parse_duration
from hopper_cli.yamls import Entry, load
from hopper_common import working_hours
from hopper_common.timestamps import to_proto
from hopper_common.working_hours import WorkingHours
from hopper_common.working_hours_proto import hours_to_proto

EXECUTORS: Final = ("workers", "agent", "person", "peer")
_KNOWN: Final = frozenset(
    {
        "id",
        "display_name",
        "description",
        "capabilities",
        "tags",
        "labels",
        "examples",
        "velocity_per_day",
        "sla",
        "max_running",
        "max_open",
        "max_running_per_key",
        "start_rate",
        "start_rate_per_key",
        "working_hours",
        "cost_per_task",
        "executor",
        "requires_live_worker",
    }
)


@dataclass(frozen=True, slots=True)
class ProjectOptions:
    """What was typed; None and empty mean: not said."""

    display_name: str | None = None
    description: str | None = None
    can: Sequence[str] = ()
    cannot: Sequence[str] = ()
    tags: Sequence[str] = ()
    no_tags: Sequence[str] = ()
    labels: Sequence[str] = ()
    examples: Sequence[str] = ()
    no_examples: Sequence[str] = ()
    boosts: Sequence[str] = ()
    velocity: float | None = None
    sla: str | None = None
    max_running: int | None = None
    max_open: int | None = None
    max_per_key: int | None = None
    start_rate: str | None = None
    start_rate_per_key: str | None = None
    hours: str | None = None
    cost: float | None = None
    executor: str | None = None
    requires_live_worker: bool | None = None


def apply(options: ProjectOptions, project: Project) -> list[str]:
    """
    Change a project to what was typed.

    Returns:
        The paths that were changed, as `UpdateProject` takes them.
    """
    return [
        *_words(options, project),
        *_lists(options, project),
        *_numbers(options, project),
        *_hours(options, project),
        *_capacity(options, project.capacity),
    ]


def _words(options: ProjectOptions, project: Project) -> list[str]:
    changed = []
    if options.display_name is not None:
        project.display_name = options.display_name
        changed.append("display_name")
    if options.description is not None:
        project.description = inputs.read_text(options.description)
        changed.append("description")
    if options.executor is not None:
        project.executor.type = executor_type(options.executor)
        changed.append("executor.type")
    if options.requires_live_worker is not None:
        project.executor.requires_live_worker = options.requires_live_worker
        changed.append("executor.requires_live_worker")
    return changed


def executor_type(text: str) -> "Executor.Type.ValueType":
    """The kind of executor that a word means."""
    if text.lower() not in EXECUTORS:
        raise UsageProblem(f"{text!r} is no executor", remedy=f"one of: {', '.join(EXECUTORS)}")
    return Executor.Type.Value(f"TYPE_{text.upper()}")


def _lists(options: ProjectOptions, project: Project) -> list[str]:
    changed = []
    for field, present, add, remove in (
        ("capabilities", project.capabilities, options.can, options.cannot),
        ("tags", project.tags, options.tags, options.no_tags),
        ("examples", project.examples, options.examples, options.no_examples),
    ):
        if add or remove:
            present[:] = inputs.changed(present, add, remove)
            changed.append(field)
    if options.labels:
        project.labels.update(inputs.parse_pairs(options.labels, "--label"))
        changed.append("labels")
    if options.boosts:
        project.priority_boosts.update(inputs.parse_boosts(options.boosts))
        changed.append("priority_boosts")
    return changed


def _numbers(options: ProjectOptions, project: Project) -> list[str]:
    changed = []
    if options.velocity is not None:
        project.velocity_per_day = options.velocity
        changed.append("velocity_per_day")
    if options.cost is not None:
        project.cost_per_task = options.cost
        changed.append("cost_per_task")
    if options.sla is not None:
        project.sla.CopyFrom(to_proto(parse_duration(options.sla)))
        changed.append("sla")
    return changed


def _hours(options: ProjectOptions, project: Project) -> list[str]:
    if options.hours is None:
        return []
    project.ClearField("working_hours")
    project.MergeFrom(Project(working_hours=hours_to_proto(_parse_hours(options.hours))))
    return ["working_hours"]


def _parse_hours(text: str) -> WorkingHours | None:
    """
    The working hours of `mon-fri 09:00-17:00 Europe/Berlin`, without a zone those of this machine; None for `none`.

    Raises:
        UsageProblem: They are none.
    """
    if text.strip().lower() == "none":
        return None
    try:
        return working_hours.parse(text, time_zone=inputs.local_zone())
    except working_hours.HoursInvalid as error:
        remedy = "write them like 'mon-fri 09:00-17:00 Europe/Berlin', or none"
        raise UsageProblem(f"{text!r} are no working hours: {error}", remedy=remedy) from None


def _capacity(options: ProjectOptions, capacity: Capacity) -> list[str]:
    changed = []
    if options.max_running is not None:
        capacity.max_running = options.max_running
        changed.append("capacity.max_running")
    if options.max_open is not None:
        capacity.max_open = options.max_open
        changed.append("capacity.max_open")
    if options.max_per_key is not None:
        capacity.max_running_per_key = options.max_per_key
        changed.append("capacity.max_running_per_key")
    if options.start_rate is not None:
        _set_rate(capacity, "start_rate", options.start_rate)
        changed.append("capacity.start_rate")
    if options.start_rate_per_key is not None:
        _set_rate(capacity, "start_rate_per_key", options.start_rate_per_key)
        changed.append("capacity.start_rate_per_key")
    return changed


def _set_rate(capacity: Capacity, field: Literal["start_rate", "start_rate_per_key"], text: str) -> None:
    limit = inputs.parse_rate(text)
    if limit is None:
        capacity.ClearField(field)
    else:
        rate: RateLimit = getattr(capacity, field)
        rate.CopyFrom(RateLimit(count=limit[0], period=to_proto(limit[1])))


def read_projects(text: str, file: str) -> list[tuple[str, Project]]:
    """
    Ids and projects from a YAML file: a list, or a list under `projects`.

    Raises:
        UsageProblem: Says which entry, and what is wrong with it.
    """
    content = load(text, file)
    if isinstance(content, dict) and set(content) == {"projects"}:
        content = content["projects"]
    if not isinstance(content, list) or not content:
        raise UsageProblem(f"{file} is no list of projects", remedy="write it like `- id: moodle`")
    return [
        _project(Entry(entry, f"{file}: project {number}", _KNOWN)) for number, entry in enumerate(content, 1)
    ]


def _project(entry: Entry) -> tuple[str, Project]:
    project_id = entry.text("id")
    if not project_id:
        raise UsageProblem(f"{entry.at} has no id")
    project = Project(labels=entry.pairs("labels"))
    options = ProjectOptions(
        display_name=entry.text("display_name"),
        can=entry.texts("capabilities"),
        tags=entry.texts("tags"),
        examples=entry.texts("examples"),
        velocity=entry.number("velocity_per_day"),
        sla=entry.text("sla"),
        max_running=_whole(entry, "max_running"),
        max_open=_whole(entry, "max_open"),
        max_per_key=_whole(entry, "max_running_per_key"),
        start_rate=entry.text("start_rate"),
        start_rate_per_key=entry.text("start_rate_per_key"),
        hours=entry.text("working_hours"),
        cost=entry.number("cost_per_task"),
        executor=entry.text("executor"),
        requires_live_worker=entry.flag("requires_live_worker") or None,
    )
    with entry.named():
        apply(options, project)
    project.description = (entry.text("description") or "").strip()
    return project_id, project


def _whole(entry: Entry, name: str) -> int | None:
    value = entry.number(name)
    return None if value is None else int(value)
