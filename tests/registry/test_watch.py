"""The streams: snapshots, deltas, reconnects."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing

from hopper.registry.v1 import instance_pb2 as ipb
from hopper.registry.v1 import instance_service_pb2 as isvc
from hopper.registry.v1.instance_pb2 import Instance
from hopper.registry.v1.project_pb2 import Presence, Project, Worker
from hopper.registry.v1.project_service_pb2 import (
    HeartbeatRequest,
    ListProjectsRequest,
    RegisterProjectRequest,
    UnregisterProjectRequest,
    UpdateProjectRequest,
    WatchProjectsRequest,
    WatchProjectsResponse,
)
from hopper_common.rpc.errors import from_rpc_error
from tests.registry.harness import RunningRegistry, refusal

CODE = grpc.StatusCode


async def register(registry: RunningRegistry, project_id: str = "web", **fields: Any) -> Project:
    request = RegisterProjectRequest(project_id=project_id, project=Project(**fields))
    return (await registry.projects.RegisterProject(request)).project


async def update(registry: RunningRegistry, project_id: str = "web", **fields: Any) -> Project:
    project = Project(name=f"projects/{project_id}", **fields)
    return (await registry.projects.UpdateProject(UpdateProjectRequest(project=project))).project


async def beat(registry: RunningRegistry, worker: str = "w1", **fields: Any) -> None:
    proto = Worker(name=f"projects/web/workers/{worker}", **fields)
    await registry.projects.Heartbeat(HeartbeatRequest(worker=proto))


@asynccontextmanager
async def watching(
    registry: RunningRegistry, after: int = 0
) -> AsyncIterator[AsyncIterator[WatchProjectsResponse]]:
    """The messages of one stream; cancelled at the end."""
    call = registry.projects.WatchProjects(WatchProjectsRequest(after_version=after))
    try:
        yield aiter(call)
    finally:
        call.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the server's log has no event to wait for
            await asyncio.sleep(0.005)


async def snapshot(stream: AsyncIterator[WatchProjectsResponse]) -> tuple[int, dict[str, Project]]:
    """Its version and projects; fails if it is not one."""
    projects: dict[str, Project] = {}
    versions = set()
    async for message in stream:
        versions.add(message.version)
        if message.HasField("snapshot_complete"):
            break
        projects[message.changed.name] = message.changed
    assert message.snapshot_complete.count == len(projects)
    (version,) = versions
    return version, projects


async def listed(registry: RunningRegistry) -> dict[str, Project]:
    answer = await registry.projects.ListProjects(ListProjectsRequest(page_size=1000))
    assert not answer.next_page_token
    return {project.name: project for project in answer.projects}


async def test_a_watch_begins_with_everything_and_goes_on_with_changes(registry: RunningRegistry) -> None:
    for project_id in ("b", "a"):
        await register(registry, project_id)
    async with watching(registry) as stream:
        version, projects = await snapshot(stream)
        assert projects == await listed(registry)

        changed = await update(registry, "a", tags=["x"])
        message = await anext(stream)
        assert (message.version, message.changed) == (version + 1, changed)

        await registry.projects.UnregisterProject(UnregisterProjectRequest(name="projects/a"))
        message = await anext(stream)
        assert (message.version, message.removed) == (version + 2, "projects/a")


async def test_an_empty_snapshot_is_complete_and_can_be_resumed(registry: RunningRegistry) -> None:
    async with watching(registry) as stream:
        version, projects = await snapshot(stream)
    assert projects == {}
    assert version > 0  # 0 would mean another snapshot
    stored = await register(registry)
    async with watching(registry, version) as stream:
        message = await anext(stream)
        assert (message.version, message.changed) == (version + 1, stored)


async def test_each_delta_is_the_project_as_it_was_then(registry: RunningRegistry) -> None:
    async with watching(registry) as stream:
        version, _ = await snapshot(stream)
    stored = [await register(registry, tags=["0"])]
    stored += [await update(registry, tags=[str(number)]) for number in range(1, 5)]
    async with watching(registry, version) as stream:
        assert [(await anext(stream)).changed for _ in stored] == stored


async def test_a_version_that_never_was_is_refused(registry: RunningRegistry) -> None:
    async with watching(registry) as stream:
        version, _ = await snapshot(stream)
    asked = str(version + 1)

    async def resume() -> None:
        async with watching(registry, version + 1) as stream:
            await anext(stream)

    await refusal(resume(), CODE.OUT_OF_RANGE, "RESUME_TOO_OLD", asked=asked, oldest="1")


async def test_an_update_that_changes_nothing_is_not_told(registry: RunningRegistry) -> None:
    await register(registry, tags=["x"])
    async with watching(registry) as stream:
        version, _ = await snapshot(stream)
        await update(registry, tags=["x"])
        await update(registry, tags=["y"])
        message = await anext(stream)
        assert (message.version, list(message.changed.tags)) == (version + 1, ["y"])


async def test_heartbeats_are_told_only_when_they_say_something_new(registry: RunningRegistry) -> None:
    project = await register(registry)
    async with watching(registry) as stream:
        version, _ = await snapshot(stream)

        async def told(**presence: int) -> None:
            """The next change is exactly this, and nothing came before it."""
            nonlocal version
            message = await anext(stream)
            version += 1
            project.presence.CopyFrom(Presence(**presence))
            assert (message.version, message.changed) == (version, project)

        async def repeat(**fields: Any) -> None:
            for _ in range(5):
                registry.clock.advance(timedelta(seconds=1))
                await beat(registry, **fields)

        await repeat(slots=2)
        await told(live_workers=1, slots=2)
        await repeat(slots=2, running=1)
        await told(live_workers=1, slots=2, running=1)
        await repeat(slots=3, running=1)
        await told(live_workers=1, slots=3, running=1)
        await repeat(slots=3, running=1, labels={"battery": "low"})
        await told(live_workers=1, slots=3, running=1)

        registry.clock.advance(timedelta(seconds=30))
        await told()  # it went silent
        await repeat(slots=3, running=1, labels={"battery": "low"})
        await told(live_workers=1, slots=3, running=1)


class Watcher:
    """Keeps a copy of the projects, over a connection that breaks all the time."""

    def __init__(self, registry: RunningRegistry) -> None:
        self.projects: dict[str, Project] = {}
        self.versions: list[int] = []
        self.connections = 0
        self._registry = registry
        self._version = 0

    async def follow(self, until: Callable[[int], bool], *, patience: Callable[[], int]) -> None:
        """Watch until a version is reached, reconnecting after as many deltas as *patience* says."""
        while not until(self._version):
            self.connections += 1
            async with watching(self._registry, self._version) as stream:
                if not self._version:
                    self._version, self.projects = await snapshot(stream)
                for _ in range(patience()):
                    if until(self._version):
                        return
                    self._apply(await anext(stream))

    def _apply(self, message: WatchProjectsResponse) -> None:
        self._version = message.version
        self.versions.append(message.version)
        if message.HasField("changed"):
            self.projects[message.changed.name] = message.changed
        else:
            del self.projects[message.removed]


async def test_reconnecting_watchers_see_every_change_once_while_others_write(
    registry: RunningRegistry,
) -> None:
    seed = random.Random(7)
    for number in range(4):
        await register(registry, f"p{number}")
    done = asyncio.Event()
    last = 0

    async def write(writer: int) -> None:
        project_id = f"w{writer}"
        for number in range(40):
            await register(registry, project_id, tags=[str(number)])
            await update(registry, f"p{writer % 4}", description=f"{writer} {number}")
            # An instance in between takes a version that project watchers never see.
            await registry.instances.CreateInstance(
                isvc.CreateInstanceRequest(
                    instance_id=f"{project_id}-{number}",
                    instance=Instance(scope=ipb.SCOPE_EVENT, parent="instances/global"),
                )
            )
            if number < 39:
                name = f"projects/{project_id}"
                await registry.projects.UnregisterProject(UnregisterProjectRequest(name=name))

    def reached(version: int) -> bool:
        return done.is_set() and version >= last

    steady, restless = Watcher(registry), Watcher(registry)
    async with asyncio.timeout(500), asyncio.TaskGroup() as group:
        group.create_task(steady.follow(reached, patience=lambda: 1_000_000))
        group.create_task(restless.follow(reached, patience=lambda: seed.randrange(1, 12)))
        await eventually(lambda: bool(steady.projects and restless.projects))
        async with asyncio.TaskGroup() as writers:
            for writer in range(4):
                writers.create_task(write(writer))
        # A last change, which ends both when they see it.
        end = await register(registry, "end")
        async with watching(registry) as stream:
            last, _ = await snapshot(stream)
        done.set()
        await update(registry, "end", tags=["ended"])

    assert end.name in steady.projects
    assert len(steady.versions) >= 4 * (40 + 40 + 39) + 1
    assert steady.versions == sorted(set(steady.versions))
    # They began at different versions; from where both were there, they saw the same.
    begin = max(steady.versions[0], restless.versions[0])
    assert [v for v in restless.versions if v >= begin] == [v for v in steady.versions if v >= begin]
    assert restless.connections > 10
    assert steady.projects == restless.projects == await listed(registry)


async def test_a_cancelled_watch_ends_cleanly(registry: RunningRegistry) -> None:
    with structlog.testing.capture_logs() as logs:
        async with watching(registry) as stream:
            await snapshot(stream)
        await eventually(lambda: any(entry.get("code") == "CANCELLED" for entry in logs))
    assert not [entry for entry in logs if entry["log_level"] in ("warning", "error")]
    stored = await register(registry)
    assert await listed(registry) == {stored.name: stored}


async def test_a_stop_ends_watches_which_resume_after_it_without_a_gap(registry: RunningRegistry) -> None:
    async with watching(registry) as stream:
        version, _ = await snapshot(stream)
        first = await register(registry, "a")
        second = await register(registry, "b")
        assert (await anext(stream)).changed == first
        assert (await anext(stream)).changed == second
        stopping = asyncio.create_task(registry.stop())
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(stream)
        assert from_rpc_error(ended.value).reason == "SHUTTING_DOWN"
        await stopping
    await registry.start()
    async with watching(registry, version + 1) as stream:
        message = await anext(stream)
        assert (message.version, message.changed) == (version + 2, second)


# Instances.


async def test_instances_are_watched_alike(registry: RunningRegistry) -> None:
    calls = registry.instances
    call = calls.WatchInstances(isvc.WatchInstancesRequest())
    stream = aiter(call)
    root, complete = await anext(stream), await anext(stream)
    assert root.changed.name == "instances/global"
    assert complete.snapshot_complete.count == 1
    assert root.version == complete.version

    await register(registry)
    event = Instance(scope=ipb.SCOPE_EVENT, parent="instances/global")
    created = await calls.CreateInstance(isvc.CreateInstanceRequest(instance_id="fair", instance=event))
    message = await anext(stream)
    # The project took the version between.
    assert (message.version, message.changed) == (complete.version + 2, created.instance)

    started = await calls.StartInstance(isvc.StartInstanceRequest(name="instances/fair"))
    starting, running = await anext(stream), await anext(stream)
    assert starting.changed.state == Instance.STATE_STARTING
    assert running.changed == started.instance
    assert [starting.version, running.version] == [message.version + 1, message.version + 2]
    call.cancel()

    resumed = calls.WatchInstances(isvc.WatchInstancesRequest(after_version=starting.version))
    assert await anext(aiter(resumed)) == running
    resumed.cancel()


async def test_a_stop_is_told_children_first(registry: RunningRegistry) -> None:
    calls = registry.instances
    parents = {"fair": "instances/global", "run-1": "instances/fair", "run-2": "instances/fair"}
    for instance_id, above in parents.items():
        scope = ipb.SCOPE_EVENT if instance_id == "fair" else ipb.SCOPE_ORCHESTRATION
        instance = Instance(scope=scope, parent=above)
        await calls.CreateInstance(isvc.CreateInstanceRequest(instance_id=instance_id, instance=instance))
        await calls.StartInstance(isvc.StartInstanceRequest(name=f"instances/{instance_id}"))
    call = calls.WatchInstances(isvc.WatchInstancesRequest())
    stream = aiter(call)
    while not (await anext(stream)).HasField("snapshot_complete"):
        pass
    await calls.StopInstance(isvc.StopInstanceRequest(name="instances/fair"))
    told = [(await anext(stream)).changed for _ in parents]
    assert {instance.state for instance in told} == {Instance.STATE_STOPPING}
    assert told[-1].name == "instances/fair"
    assert {instance.name for instance in told[:2]} == {"instances/run-1", "instances/run-2"}

    # A run's end and its archive come together.
    await calls.ReportInstance(
        isvc.ReportInstanceRequest(name="instances/run-1", state=Instance.STATE_STOPPED)
    )
    run = await anext(stream)
    parent = await anext(stream)
    assert (run.changed.name, run.changed.state) == ("instances/run-1", Instance.STATE_STOPPED)
    assert [summary.instance for summary in parent.changed.archive] == ["instances/run-1"]
    call.cancel()
