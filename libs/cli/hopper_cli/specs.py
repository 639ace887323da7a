"""A task's specification from what was typed, for new tasks and for changes to present ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.field_mask_pb2 import FieldMask

from hopper.router.v1.task_pb2 import TaskSpec
from hopper_cli import inputs
from hopper_cli.names import project_name
from hopper_cli.times import parse_duration, parse_time
from hopper_common.timestamps import to_proto


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """What was typed; None and empty mean: not said. `after` are tasks, `payload` is a file."""

    title: str | None = None
    description: str | None = None
    tags: Sequence[str] = ()
    no_tags: Sequence[str] = ()
    needs: Sequence[str] = ()
    no_needs: Sequence[str] = ()
    labels: Sequence[str] = ()
    project: str | None = None
    requester: str | None = None
    priority: str | None = None
    after: Sequence[str] = ()
    effort: str | None = None
    due: str | None = None
    start_after: str | None = None
    payload: str | None = None
    retry: int | None = None
    exclusive: bool = False


def new_spec(options: SpecOptions, resolve: Callable[[str], str], now: datetime) -> TaskSpec:
    """
    The specification of a new task.

    Args:
        resolve: The full name of a task, from what was typed.
        now: The zone is that of times which name none.
    """
    spec = TaskSpec()
    apply(options, spec, resolve, now)
    return spec


def apply(options: SpecOptions, spec: TaskSpec, resolve: Callable[[str], str], now: datetime) -> FieldMask:
    """
    Change a specification to what was typed.

    Returns:
        The paths that were changed, as `UpdateTask` takes them.
    """
    paths = [*_texts(options, spec), *_lists(options, spec, resolve), *_times(options, spec, now)]
    return FieldMask(paths=[f"spec.{path}" for path in paths])


def _texts(options: SpecOptions, spec: TaskSpec) -> list[str]:
    changed = []
    if options.title is not None:
        spec.title = options.title
        changed.append("title")
    if options.description is not None:
        spec.description = inputs.read_text(options.description)
        changed.append("description")
    if options.project is not None:
        spec.project = project_name(options.project) if options.project else ""
        changed.append("project")
    if options.requester is not None:
        spec.requester = options.requester
        changed.append("requester")
    if options.priority is not None:
        spec.priority = inputs.parse_priority(options.priority)
        changed.append("priority")
    if options.payload is not None:
        spec.payload = inputs.read_bytes(options.payload)
        changed.append("payload")
    if options.exclusive:
        spec.exclusive = True
        changed.append("exclusive")
    return changed


def _lists(options: SpecOptions, spec: TaskSpec, resolve: Callable[[str], str]) -> list[str]:
    changed = []
    if options.tags or options.no_tags:
        spec.tags[:] = inputs.changed(spec.tags, options.tags, options.no_tags)
        changed.append("tags")
    if options.needs or options.no_needs:
        spec.required_capabilities[:] = inputs.changed(
            spec.required_capabilities, options.needs, options.no_needs
        )
        changed.append("required_capabilities")
    if options.labels:
        spec.labels.update(inputs.parse_pairs(options.labels, "--label"))
        changed.append("labels")
    if options.after:
        spec.dependencies[:] = inputs.changed(spec.dependencies, map(resolve, options.after), ())
        changed.append("dependencies")
    return changed


def _times(options: SpecOptions, spec: TaskSpec, now: datetime) -> list[str]:
    changed = []
    if options.effort is not None:
        spec.estimated_effort.CopyFrom(to_proto(parse_duration(options.effort)))
        changed.append("estimated_effort")
    if options.due is not None:
        spec.clocks.finish_by.CopyFrom(to_proto(parse_time(options.due, now=now)))
        changed.append("clocks.finish_by")
    if options.start_after is not None:
        start = parse_time(options.start_after, now=now, end_of_day=False)
        spec.clocks.start_after.CopyFrom(to_proto(start))
        changed.append("clocks.start_after")
    if options.retry is not None:
        spec.retry.max_attempts = options.retry + 1  # the contract counts the first one, too
        changed.append("retry.max_attempts")
    return changed
