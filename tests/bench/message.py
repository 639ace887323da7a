"""The task that everybody is loaded with: 1,017 bytes as a request, and of 1,000 projects one is right for it."""

from __future__ import annotations

from functools import cache
from typing import Final

from hopper.registry.v1 import project_pb2
from hopper.router.v1 import task_pb2, task_service_pb2

ROOT: Final = "instances/global"
PROJECTS: Final = 1000
HOT: Final = 7
"""The topic of all tasks that one worker is to do."""
QUEUE: Final = f"projects/p{HOT}"

_DESCRIPTION: Final = " ".join(f"word{number % 97}" for number in range(115)) + " and still more"


def project(number: int) -> project_pb2.Project:
    """A project with a topic of its own."""
    return project_pb2.Project(description=f"topic{number} and topic{number + 1}", tags=[f"tag{number}"])


def spec(topic: int) -> task_pb2.TaskSpec:
    """A task for the project of that topic: title, about 800 characters of description, 6 tags, 6 labels."""
    return task_pb2.TaskSpec(
        title=f"topic{topic} and topic{topic + 1} report, please",
        description=_DESCRIPTION,
        tags=[f"tag{topic}", "kind:report", "from:customer", "area:web", "lang:en", "tier:gold"],
        labels={f"key{part}": "value" for part in range(6)},
    )


def submit(number: int) -> task_service_pb2.SubmitTaskRequest:
    """The same, spread over all projects."""
    return _submit(number % PROJECTS)


def submit_new(number: int, word: str) -> task_service_pb2.SubmitTaskRequest:
    """The same with one word more, which makes it another text."""
    request = task_service_pb2.SubmitTaskRequest()
    request.CopyFrom(submit(number))
    request.spec.description += f" {word}"
    return request


@cache
def _submit(topic: int) -> task_service_pb2.SubmitTaskRequest:
    return task_service_pb2.SubmitTaskRequest(parent=ROOT, spec=spec(topic))


def submit_stream(number: int) -> task_service_pb2.SubmitStreamRequest:
    """The same, on a stream."""
    return _submit_stream(number % PROJECTS)


@cache
def _submit_stream(topic: int) -> task_service_pb2.SubmitStreamRequest:
    return task_service_pb2.SubmitStreamRequest(parent=ROOT, spec=spec(topic))


@cache
def batch(count: int, *, topic: int | None = None) -> task_service_pb2.SubmitTasksRequest:
    """Many in one call: of one topic, or spread over all projects."""
    items = [
        task_service_pb2.SubmitTasksItem(spec=spec(number % PROJECTS if topic is None else topic))
        for number in range(count)
    ]
    return task_service_pb2.SubmitTasksRequest(parent=ROOT, items=items)
