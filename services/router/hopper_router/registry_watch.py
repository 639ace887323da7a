"""
Keeps the router's copy of the registry fresh.

    registry ─ WatchProjects ──► projects  ─┐
             ─ WatchInstances ─► instances ─┴─► current: Directory ─► whoever decides
                                                    │ changed
                                                    └─► cache, for a start without the registry

Each stream begins with a snapshot, which is taken over only when it is whole, and goes on with changes. A stream
that breaks is opened again after the last version that was seen; the registry sends what came since, or says that
it no longer knows (RESUME_TOO_OLD), and then a new snapshot is taken over the old copy. In between, the router
decides on what it knows.

A router that starts while the registry is down begins with what its predecessor had: the cache is the messages
of both streams, as they would have come. It still asks for a snapshot as soon as it can, for the cache says
nothing about which registry its versions belong to.
"""

import asyncio
import io
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar

import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.registry.v1.instance_pb2 import Instance as InstanceMessage
from hopper.registry.v1.instance_service_pb2 import WatchInstancesRequest, WatchInstancesResponse
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_pb2 import Project as ProjectMessage
from hopper.registry.v1.project_service_pb2 import (
    GetProjectRequest,
    WatchProjectsRequest,
    WatchProjectsResponse,
)
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper_common.database import Signal
from hopper_common.errors import HopperError, InvalidArgument, NotFound, ResumeTooOld
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import time_field
from hopper_router.backoff import Backoff
from hopper_router.convert import instance_from_registry, project_from_registry
from hopper_router.directory import EMPTY_DIRECTORY, Directory, run_start
from hopper_router.errors import RegistryUnknown
from hopper_router.model import Instance

_log = structlog.get_logger(__name__)

M = TypeVar("M")
T = TypeVar("T")


class Cache(Protocol):
    """Where the last copy is kept between two runs of the router."""

    async def load(self) -> bytes | None:
        """What was saved last; None if nothing ever was."""
        ...

    async def save(self, body: bytes) -> None:
        """Keep this, in place of what is there. Raises HopperError when it cannot."""
        ...


class NoCache:
    """A cache that keeps nothing."""

    async def load(self) -> bytes | None:
        """Nothing."""
        return None

    async def save(self, body: bytes) -> None:
        """Forget it."""


class RegistryWatch:
    """
    The registry's projects and instances, as they are now or were last known.

    Call `load` before serving, and let `run` run.

    Args:
        channel: To the registry.
        cache: Where the last copy is kept.
        first_wait: How long to wait before a broken stream is opened again; doubled each time.
        longest_wait: The most it is doubled to.
        save_interval: The cache is written at most this often.
        ask_timeout: How long the registry may take to answer a question.

    Attributes:
        current: The directory. Replaced, never changed: read it once, from any thread.
        changed: Fires after `current` was replaced, when something that routing reads has changed.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: Cache,
        *,
        first_wait: timedelta = timedelta(milliseconds=100),
        longest_wait: timedelta = timedelta(seconds=5),
        save_interval: timedelta = timedelta(seconds=1),
        ask_timeout: timedelta = timedelta(seconds=1),
    ) -> None:
        self.current: Directory = EMPTY_DIRECTORY
        self.changed = Signal()
        self._registry = ProjectServiceStub(channel)
        self._projects = _Feed("projects", WatchProjectsResponse, _watch_projects(channel), _apply_projects)
        self._instances = _Feed(
            "instances", WatchInstancesResponse, _watch_instances(channel), _apply_instances
        )
        self._cache = cache
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self._save_interval = save_interval
        self._ask_timeout = ask_timeout
        self._removals = 0

    @property
    def confirmed(self) -> bool:
        """Whether the registry itself has told all of it, and not only a copy that may be older than the tasks."""
        return self._projects.whole and self._instances.whole

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._projects))
            group.create_task(self._follow(self._instances))
            group.create_task(self._keep())

    # The streams.

    async def _follow(self, feed: "_Feed") -> NoReturn:
        backoff = self._backoff(f"registry {feed.what}")
        while True:
            reason = await self._follow_once(feed, backoff)
            if reason == ResumeTooOld.reason and feed.version:
                feed.version = 0
            else:
                await asyncio.sleep(backoff.failed(reason))

    async def _follow_once(self, feed: "_Feed", backoff: Backoff) -> str:
        """Follow a stream to its end; returns why it ended."""
        # A stream on which nothing changes is silent; one that lasts is one that works.
        lasts = asyncio.get_running_loop().call_later(self._longest_wait.total_seconds(), backoff.worked)
        try:
            async for message in feed.open():
                backoff.worked()
                self._take(feed, message)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason
        finally:
            lasts.cancel()
        return "STREAM_ENDED"

    def _take(self, feed: "_Feed", message: Any) -> None:
        step = feed.take(message)
        if step is None:
            return
        self._removals += step.everything or bool(step.removed)
        directory = feed.apply(self.current, step)
        self._publish(directory.completed() if self.confirmed else directory)

    def _publish(self, directory: Directory) -> None:
        before, self.current = self.current, directory
        if not directory.same_world(before):
            self.changed.fire()

    def _backoff(self, what: str) -> Backoff:
        return Backoff(what, first=self._first_wait, longest=self._longest_wait)

    # A miss.

    async def refresh_project(self, name: str) -> bool:
        """
        Whether there is such a project.

        One that is not known here is asked for once, so that a task may follow its project's registration at
        once.

        Raises:
            RegistryUnknown: It is not known here, and the registry does not answer: nobody can say.
        """
        if name in self.current.projects:
            return True
        found, removals = None, -1
        # An answer is void if projects were removed while it was on its way: nothing would remove this one again.
        while removals != self._removals:
            removals = self._removals
            found = await self._ask(name)
        # What came by the stream meanwhile is newer.
        if found is not None and name not in self.current.projects:
            self._projects.put(found)
            step = Step(self.current.projects_version, changed=(found,))
            self._publish(_apply_projects(self.current, step))
        return name in self.current.projects

    async def _ask(self, name: str) -> ProjectMessage | None:
        try:
            request = GetProjectRequest(name=name)
            # A registry that is back is seen at once, whatever the pause between two attempts to connect is by now.
            answer = await self._registry.GetProject(
                request, timeout=self._ask_timeout.total_seconds(), wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, NotFound):
                return None
            _log.warning("the registry could not be asked for a project", reason=failure.reason)
            raise RegistryUnknown(
                f"the registry does not answer, so that nobody can say whether there is {name}",
                service="registry",
            ) from error
        return answer.project

    # The cache.

    async def load(self) -> None:
        """Begin with what the cache has. What cannot be read is told to the log, and ignored."""
        body = await self._cache.load()
        if body is None:
            return
        try:
            directory = self._replayed(io.BytesIO(body))
        except (DecodeError, ValueError, OverflowError) as error:  # what parsing raises on broken lengths
            _log.warning("the cached copy of the registry is damaged, going without it", error=str(error))
            directory = EMPTY_DIRECTORY
        self._publish(directory)
        for feed in (self._projects, self._instances):
            feed.version, feed.whole = 0, False  # the registry itself has not been heard yet

    def _replayed(self, stream: io.BytesIO) -> Directory:
        directory = EMPTY_DIRECTORY
        for feed in (self._projects, self._instances):
            feed.begin()
            step = None
            while step is None:
                message = parse_length_prefixed(feed.response, stream)
                if message is None:
                    raise DecodeError("it ends too early")
                step = feed.take(message)
            directory = feed.apply(directory, step)
        return directory.completed()

    async def _keep(self) -> NoReturn:
        backoff = self._backoff("registry cache")
        seen = self.changed.count
        while True:
            seen = await self.changed.wait(after=seen)
            if not self.current.complete:
                continue  # half a copy would say that the other half does not exist
            while not await self._save(backoff):
                seen = self.changed.count
            await asyncio.sleep(self._save_interval.total_seconds())

    async def _save(self, backoff: Backoff) -> bool:
        stream = io.BytesIO()
        for feed in (self._projects, self._instances):
            for message in feed.recorded():
                serialize_length_prefixed(message, stream)
        try:
            await self._cache.save(stream.getvalue())
        except HopperError as error:
            await asyncio.sleep(backoff.failed(error.reason))
            return False
        backoff.worked()
        return True


@dataclass(frozen=True, slots=True)
class Step:
    """
    What one message of a stream adds up to.

    Attributes:
        version: The registry's version after it.
        everything: What is not in `changed` does not exist.
        changed: Project or Instance messages that are new or changed.
        removed: The name of what is gone; "": nothing.
    """

    version: int
    everything: bool = False
    changed: tuple[Any, ...] = ()
    removed: str = ""


class _Feed:
    """
    One stream, where it stands, and what came of it so far.

    Messages are `Any` here: those of the two streams are generated alike, but no type says so.

    Attributes:
        version: Where to resume; 0: with a snapshot.
        whole: A snapshot was taken over.
    """

    def __init__(
        self,
        what: str,
        response: type[Any],
        watch: Callable[[int], AsyncIterable[Any]],
        apply: Callable[[Directory, Step], Directory],
    ) -> None:
        self.what = what
        self.response = response
        self.apply = apply
        self.version = 0
        self.whole = False
        self._watch = watch
        self._items: dict[str, Any] = {}
        self._snapshot: dict[str, Any] | None = None

    def open(self) -> AsyncIterable[Any]:
        """The stream, from where we are."""
        self.begin()
        return self._watch(self.version)

    def begin(self) -> None:
        """A stream begins: without a version with a snapshot, and then half of an earlier one is void."""
        self._snapshot = None if self.version else {}

    def take(self, message: Any) -> Step | None:
        """What a message adds up to; None in the middle of a snapshot."""
        event = message.WhichOneof("event")
        if self._snapshot is not None:
            return self._buffer(self._snapshot, event, message)
        self.version = message.version
        if event == "changed":
            self.put(message.changed)
            return Step(message.version, changed=(message.changed,))
        if event == "removed":
            self._items.pop(message.removed, None)
            return Step(message.version, removed=message.removed)
        return Step(message.version)  # something that only a newer registry knows

    def _buffer(self, snapshot: dict[str, Any], event: str | None, message: Any) -> Step | None:
        if event == "changed":
            snapshot[message.changed.name] = message.changed
        if event != "snapshot_complete":
            return None
        self._items, self._snapshot = snapshot, None
        self.version, self.whole = message.version, True
        return Step(message.version, everything=True, changed=tuple(snapshot.values()))

    def put(self, item: Any) -> None:
        """One is new or changed."""
        self._items[item.name] = item

    def recorded(self) -> Iterator[Any]:
        """A stream that leads to here."""
        for item in self._items.values():
            yield self.response(version=self.version, changed=item)
        complete = SnapshotComplete(count=len(self._items))
        yield self.response(version=self.version, snapshot_complete=complete)


# The two streams.


def _watch_projects(channel: grpc.aio.Channel) -> Callable[[int], AsyncIterable[WatchProjectsResponse]]:
    stub = ProjectServiceStub(channel)
    return lambda after: stub.WatchProjects(WatchProjectsRequest(after_version=after))


def _watch_instances(channel: grpc.aio.Channel) -> Callable[[int], AsyncIterable[WatchInstancesResponse]]:
    stub = InstanceServiceStub(channel)
    return lambda after: stub.WatchInstances(WatchInstancesRequest(after_version=after))


def _apply_projects(directory: Directory, step: Step) -> Directory:
    projects = _readable(project_from_registry, step.changed)
    if step.everything:
        return directory.with_projects(projects, step.version)
    if step.removed:
        return directory.without_project(step.removed, step.version)
    for project in projects:
        directory = directory.with_project(project, step.version)
    return replace(directory, projects_version=step.version)


def _apply_instances(directory: Directory, step: Step) -> Directory:
    def read(message: InstanceMessage) -> Instance:
        made = instance_from_registry(message)
        before = directory.instances.get(made.name)
        return replace(made, start_time=run_start(before, made.state, time_field(message, "update_time")))

    instances = list(_readable(read, step.changed))
    if step.everything:
        return directory.with_instances(instances, step.version)
    for instance in instances:
        directory = directory.with_instance(instance, step.version)
    return replace(directory, instances_version=step.version)


def _readable(read: Callable[[M], T], messages: Iterable[M]) -> Iterator[T]:
    """Those that this version of the router understands; of the others the log is told."""
    for message in messages:
        try:
            yield read(message)
        except InvalidArgument as error:
            name = getattr(message, "name", "")
            _log.warning("the registry has something unknown to this router", name=name, error=error.message)
