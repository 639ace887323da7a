"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast

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
from hopper_client.channels import open_async
from hopper_client.policy import DEFAULT_TIMEOUT
from hopper_client.requests import ROOT, TaskFields
from hopper_client.submitting import Item
from hopper_client.watch import resumed
from hopper_common.errors import HopperError

T = TypeVar("T")


class AsyncHopper:
    """
    A connection to a Hopper, for asyncio.

    Make it inside the running event loop and share it: it is one channel, which connects with its first call
    and again after a loss. The attributes are the generated stubs: `await hopper.tasks.GetTask(request)`.
    Every call has a deadline, mutations carry a `request_id`, what can be repeated safely is tried again, and
    what fails raises a `HopperError` (see `hopper_client.policy`).

    Args:
        address: `unix:/path` or a loopback `host:port`. Default: `default_address()`.
        timeout: Seconds a call may take, all its attempts together, unless it is given a `timeout=` of its
            own. A long poll has at least its wait and 5 s, a watch has no end.
        key_file: Where the key is that is shown there, if it is no Unix socket. Default: `hopper_client.credentials`.

    Raises:
        AddressRefused: The address is malformed, or not of this machine.
        Unauthenticated: The key or the roots cannot be used.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        key_file: Path | None = None,
    ) -> None:
        self.address = address or default_address()
        self._channel = open_async(self.address, timeout, key_file)
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel. Calls that are under way are cancelled."""
        await self._channel.close()

    async def submit(
        self,
        title: str,
        *,
        instance: str = ROOT,
        request_id: str = "",
        allow_duplicate: bool = False,
        **fields: Unpack[TaskFields],
    ) -> SubmitTaskResponse:
        """
        Ask for something to be done.

        Args:
            title: One line.
            instance: Where it is taken in; the root sends it wherever it belongs.
            request_id: A UUID of the caller's, where the same request may come from elsewhere again.
            allow_duplicate: Take it in even where the policy refuses what looks like the same work as an open task.
            fields: description, tags, project (a pin), priority, required_capabilities, dependencies (task
                names), payload, requester, labels, exclusive (it is begun once at most).

        Returns:
            The task, the decision where it goes with its reasons, and, where the policy asks for it, open tasks
            that look like the same work.
        """
        request = requests.submit_request(
            title, instance, request_id, fields, allow_duplicate=allow_duplicate
        )
        return await self.tasks.SubmitTask(request)

    def submit_many(
        self, items: Iterable[Item] | AsyncIterable[Item], *, instance: str = ROOT
    ) -> AsyncGenerator[SubmitStreamResponse, None]:
        """
        Ask for many things on one stream, at half the cost of a call each and with up to 256 under way.

        Each counts once, also over lost connections and restarts. Items are taken as there is room for them, and may
        come from anywhere, for as long as they like.

        Args:
            items: Titles, `TaskSpec`s, or `SubmitStreamRequest`s, which may name an instance and a `request_id`.
            instance: Where they are taken in.

        Returns:
            One answer per item, in order, each when its task is durable: `task` in BASIC view, or `error`
            (`raise from_item(answer.error)`). Close the generator, or exhaust it.

        Raises:
            HopperError: While it is iterated: no Hopper has answered yet.
        """
        return submitting.submit_all(self, items, instance)

    async def submit_batch(
        self, items: Iterable[str | TaskSpec | SubmitTasksItem], *, instance: str = ROOT
    ) -> list[SubmitTasksResult]:
        """
        Ask for any number of things that are at hand, in as few calls as that takes.

        Args:
            items: Titles, `TaskSpec`s, or `SubmitTasksItem`s, whose `after` are positions among all of them.
            instance: Where they are taken in.

        Returns:
            One result per item, in order: `task` in BASIC view, or `error`.

        Raises:
            HopperError: A call failed; what earlier ones took in stays.
        """
        batches = submitting.Batches(items, instance)
        while (request := batches.next()) is not None:
            batches.results += (
                await self.tasks.SubmitTasks(request, timeout=submitting.BATCH_TIMEOUT)
            ).results
        return batches.results

    async def put_artifact(
        self,
        task: str,
        source: Source,
        *,
        name: str = "",
        media_type: str = "",
        progress: Progress = nowhere,
    ) -> Artifact:
        """
        Put a file beside a task, before the task ends. The same again changes nothing.

        Args:
            source: A path, or bytes.
            name: What it is called there. Default: the file's name.
            media_type: What kind it is. Default: what the name suggests.
            progress: Told how many bytes have gone, of how many.

        Returns:
            It, as it is kept: durable.

        Raises:
            HopperError: The name, or the file, is not taken; the task is over; there is no room.
            OSError: The file cannot be read.
        """
        upload = await asyncio.to_thread(Upload, task, source, name, media_type, progress)
        while True:
            try:
                return (await self.artifacts.PutArtifact(_off_loop(upload.requests()))).artifact
            except HopperError as error:
                await asyncio.sleep(upload.attempts.pause_after(error))

    async def get_artifact(
        self, task: str, name: str, target: Target, *, progress: Progress = nowhere
    ) -> Artifact:
        """
        Fetch a file that is beside a task, or that came with what the task was handed to. A lost connection is gone
        on with.

        Args:
            target: A path, where it is only once it is whole and its SHA-256 is right; or an open file.
            progress: Told how many bytes have come, of how many.

        Raises:
            ArtifactNotFound: There is none of that name.
            ArtifactDamaged: What came is not what it should be.
            HopperError: It has not come from the peer yet (PEER_UNREACHABLE).
            OSError: The file cannot be written.
        """
        listed = await self.artifacts.ListArtifacts(ListArtifactsRequest(task=task))
        with Download(listed, task, name, target, progress) as download:
            while True:
                try:
                    async for answer in self.artifacts.GetArtifact(download.request()):
                        await asyncio.to_thread(download.take, answer.data)
                    return await asyncio.to_thread(download.finish)
                except HopperError as error:
                    await asyncio.sleep(download.attempts.pause_after(error))

    async def resolve_task(self, text: str) -> str:
        """
        The full name of the task that a person means.

        Args:
            text: A full name, which is returned as it is; or the end of an id, at least 4 characters.

        Raises:
            TaskNotFound: No task's id ends like that.
            AmbiguousTask: Several do; `candidates` has their names.
            InvalidArgument: Too short.
        """
        if requests.is_task_name(text):
            return text
        return requests.only_task(text, await self.tasks.ListTasks(requests.suffix_request(text)))

    def watch_tasks(
        self, *, instance: str = "", project: str = "", task: str = "", after_generation: int = 0
    ) -> AsyncGenerator[WatchTasksResponse, None]:
        """
        Follow tasks: those that are open, then `snapshot_complete`, then every change, without a gap or a
        repeat, also over lost connections and restarts (see `hopper_client.watch`).

        Args:
            instance: Only tasks of this instance.
            project: Only tasks routed to this project.
            task: Only this task.
            after_generation: Go on after this generation, without a snapshot.

        Raises:
            HopperError: While it is iterated; only such that waiting does not help.
        """
        watch = requests.task_watch(
            instance=instance, project=project, task=task, after_generation=after_generation
        )
        return resumed(self.tasks.WatchTasks, watch)

    def watch_projects(self, *, after_version: int = 0) -> AsyncGenerator[WatchProjectsResponse, None]:
        """Follow the projects, in the manner of `watch_tasks`."""
        return resumed(self.projects.WatchProjects, requests.project_watch(after_version))

    def watch_instances(self, *, after_version: int = 0) -> AsyncGenerator[WatchInstancesResponse, None]:
        """Follow the instances, in the manner of `watch_tasks`."""
        return resumed(self.instances.WatchInstances, requests.instance_watch(after_version))


async def _off_loop(items: Iterator[T]) -> AsyncGenerator[T, None]:
    """The items of something that blocks, taken in a thread."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield cast("T", item)
