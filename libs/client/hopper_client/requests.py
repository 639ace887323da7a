"""What the async and the blocking client say in the same words: requests, and what to make of the answers."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

from hopper.registry.v1.instance_service_pb2 import WatchInstancesRequest, WatchInstancesResponse
from hopper.registry.v1.project_service_pb2 import WatchProjectsRequest, WatchProjectsResponse
from hopper.router.v1.task_pb2 import TaskSpec
from hopper.router.v1.task_service_pb2 import (
    ListTasksRequest,
    ListTasksResponse,
    SubmitTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from hopper_client.errors import AmbiguousTask, TaskNotFound
from hopper_client.watch import Watch
from hopper_common.errors import FieldViolation, InvalidArgument

ROOT = "instances/global"
SHORTEST_SUFFIX = 4
_MOST_CANDIDATES = 10


class TaskFields(TypedDict, total=False):
    """
    The usual fields of a `hopper.router.v1.TaskSpec`, which says more about each. The rest (clocks, retry
    policy, ...) is reached with `tasks.SubmitTask`.
    """

    description: str
    tags: Iterable[str]
    project: str
    priority: int | None
    required_capabilities: Iterable[str]
    dependencies: Iterable[str]
    payload: bytes
    requester: str
    labels: Mapping[str, str] | None
    exclusive: bool


def submit_request(
    title: str, instance: str, request_id: str, fields: TaskFields, *, allow_duplicate: bool = False
) -> SubmitTaskRequest:
    """The request of `submit`; fields that are None or missing stay unset."""
    given = {name: value for name, value in fields.items() if value is not None}
    spec = TaskSpec(title=title, **given)  # type: ignore[arg-type]  # checked where TaskFields is filled
    return SubmitTaskRequest(
        parent=instance, spec=spec, request_id=request_id, allow_duplicate=allow_duplicate
    )


def is_task_name(text: str) -> bool:
    """Whether *text* looks like `instances/{instance}/tasks/{task}`."""
    parts = text.split("/")
    return len(parts) == 4 and parts[0] == "instances" and parts[2] == "tasks" and all(parts)


def suffix_request(text: str) -> ListTasksRequest:
    """
    The request that finds the tasks whose id ends in *text*.

    Raises:
        InvalidArgument: Too short to mean one task.
    """
    suffix = text.strip().lower()
    if len(suffix) < SHORTEST_SUFFIX:
        wrong = f"{suffix!r} is too short: write at least {SHORTEST_SUFFIX} characters of the id's end"
        raise InvalidArgument(violations=[FieldViolation("task", wrong)])
    return ListTasksRequest(id_suffix=suffix, page_size=_MOST_CANDIDATES)


def only_task(text: str, found: ListTasksResponse) -> str:
    """
    The name of the one task that was found.

    Raises:
        TaskNotFound: None was.
        AmbiguousTask: Several were; the error lists up to ten.
    """
    names = [task.name for task in found.tasks]
    if not names:
        raise TaskNotFound(f"no task ends in {text.strip()!r}: see `hopper list`", task=text.strip())
    if len(names) > 1:
        raise AmbiguousTask(text.strip(), names)
    return names[0]


def task_watch(
    *, instance: str, project: str, task: str, after_generation: int
) -> Watch[WatchTasksRequest, WatchTasksResponse]:
    """The books of a WatchTasks."""
    request = WatchTasksRequest(
        parent=instance, project=project, task=task, after_generation=after_generation
    )
    return Watch(request, "generation", WatchTasksResponse)


def project_watch(after_version: int) -> Watch[WatchProjectsRequest, WatchProjectsResponse]:
    """The books of a WatchProjects."""
    return Watch(WatchProjectsRequest(after_version=after_version), "version", WatchProjectsResponse)


def instance_watch(after_version: int) -> Watch[WatchInstancesRequest, WatchInstancesResponse]:
    """The books of a WatchInstances."""
    return Watch(WatchInstancesRequest(after_version=after_version), "version", WatchInstancesResponse)
