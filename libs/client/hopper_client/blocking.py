"""The client for threads, scripts and notebooks: the same as `AsyncHopper`, without asyncio."""

import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest
from hopper.federation.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from hopper.federation.v1.delegation_pb2 import Artifact
from hopper.federation.v1.delegation_service_pb2_grpc import RemoteDelegationServiceStub
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.memory.v1.working_service_pb2_grpc import WorkingMemoryServiceStub
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_service_pb2 import WatchInstancesResponse
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_service_pb2 import WatchProjectsResponse
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper.router.v1.queue_service_pb2_grpc import QueueServiceStub
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from hopper.router.v1.task_pb2 import TaskSpec
from hopper.router.v1.task_service_pb2 import (
    SubmitStreamResponse,
    SubmitTaskResponse,
    SubmitTasksItem,
    SubmitTasksResult,
    WatchTasksResponse,
)
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import requests, submitting
from hopper_client.address import default_address
from hopper_client.artifacts import Download, Progress, Source, Target, Upload, nowhere
from hopper_client.channels import open_blocking
from hopper_client.policy import DEFAULT_TIMEOUT
from hopper_client.requests import ROOT, TaskFields
from hopper_client.submitting import Item
from hopper_client.watch import resumed_blocking
from hopper_common.errors import HopperError


class Hopper:
    """
    A connection to a Hopper, for code that blocks.

    It may be shared by threads, and used where an event loop runs (which it then holds up). It knows nothing
    of asyncio. Arguments, attributes and errors are those of `AsyncHopper`. A stub's `.future()` is done when
    it returns: retries happen in the calling thread.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        key_file: Path | None = None,
    ) -> None:
        self.address = address or default_address()
        self._channel = open_blocking(self.address, timeout, key_file)
        self.projects = ProjectServiceStub(self._channel)
        self.instances = InstanceServiceStub(self._channel)
        self.access = AccessServiceStub(self._channel)
        self.tasks = TaskServiceStub(self._channel)
        self.routing = RoutingServiceStub(self._channel)
        self.work = WorkServiceStub(self._channel)
        self.delegations = DelegationServiceStub(self._channel)
        self.schedules = ScheduleServiceStub(self._channel)
        self.queues = QueueServiceStub(self._channel)
        self.working_memory = WorkingMemoryServiceStub(self._channel)
        self.episodes = EpisodicMemoryServiceStub(self._channel)
        self.feedback = FeedbackServiceStub(self._channel)
        self.peers = PeerAdminServiceStub(self._channel)
        self.remote_delegations = RemoteDelegationServiceStub(self._channel)
        self.artifacts = ArtifactServiceStub(self._channel)
        self.audit = AuditServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Calls that are under way in other threads fail as `Unreachable`."""
        self._channel.close()

    def submit(
        self,
        title: str,
        *,
        instance: str = ROOT,
        request_id: str = "",
        allow_duplicate: bool = False,
        **fields: Unpack[TaskFields],
    ) -> SubmitTaskResponse:
        """Ask for something to be done: see `AsyncHopper.submit`."""
        request = requests.submit_request(
            title, instance, request_id, fields, allow_duplicate=allow_duplicate
        )
        return self.tasks.SubmitTask(request)

    def submit_many(
        self, items: Iterable[Item], *, instance: str = ROOT
    ) -> Generator[SubmitStreamResponse, None, None]:
        """
        Ask for many things on one stream: see `AsyncHopper.submit_many`.

        Items are taken in the caller's thread; between two of them come the answers that are there by then.
        """
        return submitting.submit_all_blocking(self, items, instance)

    def submit_batch(
        self, items: Iterable[str | TaskSpec | SubmitTasksItem], *, instance: str = ROOT
    ) -> list[SubmitTasksResult]:
        """Ask for any number of things that are at hand: see `AsyncHopper.submit_batch`."""
        batches = submitting.Batches(items, instance)
        while (request := batches.next()) is not None:
            batches.results += self.tasks.SubmitTasks(request, timeout=submitting.BATCH_TIMEOUT).results
        return batches.results

    def put_artifact(
        self,
        task: str,
        source: Source,
        *,
        name: str = "",
        media_type: str = "",
        progress: Progress = nowhere,
    ) -> Artifact:
        """Put a file beside a task: see `AsyncHopper.put_artifact`."""
        upload = Upload(task, source, name, media_type, progress)
        while True:
            try:
                return self.artifacts.PutArtifact(upload.requests()).artifact
            except HopperError as error:
                time.sleep(upload.attempts.pause_after(error))

    def get_artifact(self, task: str, name: str, target: Target, *, progress: Progress = nowhere) -> Artifact:
        """Fetch a file that is beside a task: see `AsyncHopper.get_artifact`."""
        listed = self.artifacts.ListArtifacts(ListArtifactsRequest(task=task))
        with Download(listed, task, name, target, progress) as download:
            while True:
                try:
                    for answer in self.artifacts.GetArtifact(download.request()):
                        download.take(answer.data)
                    return download.finish()
                except HopperError as error:
                    time.sleep(download.attempts.pause_after(error))

    def resolve_task(self, text: str) -> str:
        """The full name of the task that a person means: see `AsyncHopper.resolve_task`."""
        if requests.is_task_name(text):
            return text
        return requests.only_task(text, self.tasks.ListTasks(requests.suffix_request(text)))

    def watch_tasks(
        self, *, instance: str = "", project: str = "", task: str = "", after_generation: int = 0
    ) -> Generator[WatchTasksResponse, None, None]:
        """Follow tasks: see `AsyncHopper.watch_tasks`. Closing the generator ends the call."""
        watch = requests.task_watch(
            instance=instance, project=project, task=task, after_generation=after_generation
        )
        return resumed_blocking(self.tasks.WatchTasks, watch)

    def watch_projects(self, *, after_version: int = 0) -> Generator[WatchProjectsResponse, None, None]:
        """Follow the projects, in the manner of `watch_tasks`."""
        return resumed_blocking(self.projects.WatchProjects, requests.project_watch(after_version))

    def watch_instances(self, *, after_version: int = 0) -> Generator[WatchInstancesResponse, None, None]:
        """Follow the instances, in the manner of `watch_tasks`."""
        return resumed_blocking(self.instances.WatchInstances, requests.instance_watch(after_version))
