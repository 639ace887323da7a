"""Calls as a test makes them: plain stubs without retries, and the few requests that every scenario needs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import grpc

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.episodic_service_pb2 import GetProjectHistoryRequest
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.registry.v1.access_service_pb2 import BootstrapAdminRequest
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import GetProjectRequest, RegisterProjectRequest
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1.decision_pb2 import Decision
from hopper.router.v1.routing_service_pb2 import ListDecisionsRequest
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.task_pb2 import RetryPolicy, Task, TaskSpec, TaskView
from hopper.router.v1.task_service_pb2 import ListTasksRequest, SubmitTaskRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub

T = TypeVar("T")

ROOT = "instances/global"
CREW = "projects/crew"
EVERY_STATE = [state for state in Task.State.values() if state != Task.STATE_UNSPECIFIED]


class Stubs(NamedTuple):
    """Plain stubs: every call is one attempt."""

    tasks: TaskServiceStub
    work: WorkServiceStub
    routing: RoutingServiceStub
    projects: ProjectServiceStub
    episodes: EpisodicMemoryServiceStub


@contextmanager
def connected(address: str) -> Iterator[Stubs]:
    """Stubs on a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Stubs(
            TaskServiceStub(channel),
            WorkServiceStub(channel),
            RoutingServiceStub(channel),
            ProjectServiceStub(channel),
            EpisodicMemoryServiceStub(channel),
        )


def first_admin(address: str) -> str:
    """Make the first admin of a Hopper, on its owner's socket; returns their key."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return AccessServiceStub(channel).BootstrapAdmin(BootstrapAdminRequest(), timeout=60).secret


def register_crew(stubs: Stubs) -> None:
    """A project that takes everything."""
    request = RegisterProjectRequest(project_id="crew", project=Project(description="does everything"))
    stubs.projects.RegisterProject(request, timeout=60)
    stubs.projects.GetProject(GetProjectRequest(name=CREW), timeout=60)


def submit_request(title: str, request_id: str = "") -> SubmitTaskRequest:
    """A task for the crew that may fail as often as it likes, and is ready again at once."""
    retry = RetryPolicy(max_attempts=1000)
    retry.first_backoff.FromTimedelta(timedelta(0))
    spec = TaskSpec(title=title, project=CREW, retry=retry)
    return SubmitTaskRequest(parent=ROOT, spec=spec, request_id=request_id)


def claim_request(
    worker: str, most: int = 1, *, lease: float = 3600, wait: float = 0, request_id: str = "", task: str = ""
) -> ClaimTasksRequest:
    """Work for one of the crew, for longer than any test takes unless it says otherwise."""
    request = ClaimTasksRequest(queue=CREW, worker=worker, max_tasks=most, request_id=request_id, task=task)
    request.lease_duration.FromTimedelta(timedelta(seconds=lease))
    request.wait.FromTimedelta(timedelta(seconds=wait))
    return request


def all_tasks(stubs: Stubs) -> list[Task]:
    """Every task, of every state, in FULL view."""
    request = ListTasksRequest(page_size=1000, states=EVERY_STATE, view=TaskView.TASK_VIEW_FULL)
    found: list[Task] = []
    while True:
        page = stubs.tasks.ListTasks(request, timeout=60)
        found += page.tasks
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def all_decisions(stubs: Stubs) -> list[Decision]:
    """Every decision."""
    request = ListDecisionsRequest(page_size=1000)
    found: list[Decision] = []
    while True:
        page = stubs.routing.ListDecisions(request, timeout=60)
        found += page.decisions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def crew_episodes(stubs: Stubs) -> list[Episode]:
    """Every episode of a task that was sent to the crew."""
    request = GetProjectHistoryRequest(project=CREW, page_size=1000)
    found: list[Episode] = []
    while True:
        page = stubs.episodes.GetProjectHistory(request, timeout=60)
        found += page.episodes
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def eventually(look: Callable[[], T], expected: Callable[[T], bool], *, within: float = 60.0) -> T:
    """Look again and again until what is seen is as expected; what is seen last, when it never was."""
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if expected(seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.02)
