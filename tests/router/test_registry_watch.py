"""The registry's copy: whole, gapless, and there when the registry is not. Against a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.registry.v1 import (
    instance_service_pb2,
    instance_service_pb2_grpc,
    project_service_pb2,
    project_service_pb2_grpc,
)
from hopper.registry.v1.instance_pb2 import SCOPE_GLOBAL, SCOPE_PROJECT, Instance
from hopper.registry.v1.project_pb2 import Presence, Project
from hopper_common.database import Signal
from hopper_common.errors import NotFound, ResumeTooOld, StorageFull
from hopper_common.rpc.channel import open_channel
from hopper_router import tables
from hopper_router.directory import Directory
from hopper_router.errors import RegistryUnknown
from hopper_router.model import InstanceState
from hopper_router.registry_client import RegistryClient
from hopper_router.registry_watch import NoCache, RegistryWatch
from hopper_testing.database import temporary_database
from tests.router.neighbours import Neighbour

MILLISECOND = timedelta(milliseconds=1)
A, B, C = "projects/a", "projects/b", "projects/c"
ROOT = "instances/global"


class ProjectNotFound(NotFound):
    reason = "PROJECT_NOT_FOUND"


class InstanceNotFound(NotFound):
    reason = "INSTANCE_NOT_FOUND"


class FakeRegistry:
    """The registry's contract over a dictionary and a list."""

    def __init__(self) -> None:
        self.version = 0
        self.oldest = 1
        self.items: dict[str, Any] = {}
        self.log: list[tuple[int, str, Any]] = []
        self.moved = Signal()
        self.resumed: list[int] = []
        self.opened = Signal()
        self.asked: list[str] = []
        self.asking = Signal()
        self.cuts = Signal()
        self.snapshot_gate = asyncio.Event()
        self.answer_gate = asyncio.Event()
        self.snapshot_gate.set()
        self.answer_gate.set()

    def put(self, item: Any) -> None:
        self.version += 1
        self.items[item.name] = item
        self.log.append((self.version, item.name, item))
        self.moved.fire()

    def remove(self, name: str) -> None:
        self.version += 1
        del self.items[name]
        self.log.append((self.version, name, None))
        self.moved.fire()

    def trim(self) -> None:
        """Forget every change but the newest."""
        self.oldest = self.version
        self.log = self.log[-1:]

    def cut(self) -> None:
        """End every stream."""
        self.cuts.fire()

    async def stream(self, after: int, prefix: str, response: Any) -> AsyncIterator[Any]:
        cuts = self.cuts.count
        if not after:
            after = self.version
            found = [item for name, item in self.items.items() if name.startswith(prefix)]
            for number, item in enumerate(found):
                if number:
                    await self._pass(self.snapshot_gate, cuts)
                if self.cuts.count > cuts:
                    return
                yield response(version=after, changed=item)
            yield response(version=after, snapshot_complete=SnapshotComplete(count=len(found)))
        elif not self.oldest - 1 <= after <= self.version:
            raise ResumeTooOld(oldest=str(self.oldest), asked=str(after))
        while self.cuts.count == cuts:
            moves = self.moved.count
            for version, name, item in [entry for entry in self.log if entry[0] > after]:
                after = version
                if not name.startswith(prefix):
                    continue
                yield (
                    response(version=version, removed=name)
                    if item is None
                    else response(version=version, changed=item)
                )
            await self._first(self.moved.wait(after=moves), self.cuts.wait(after=cuts))

    async def _pass(self, gate: asyncio.Event, cuts: int) -> None:
        await self._first(gate.wait(), self.cuts.wait(after=cuts))

    async def _first(self, *waits: Any) -> None:
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


class Projects(project_service_pb2_grpc.ProjectServiceServicer):
    # Only what the router calls; the others answer UNIMPLEMENTED, by inheritance.
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    async def WatchProjects(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._registry.resumed.append(request.after_version)
        self._registry.opened.fire()
        response = project_service_pb2.WatchProjectsResponse
        async for message in self._registry.stream(request.after_version, "projects/", response):
            yield message

    async def GetProject(self, request: Any, context: Any) -> Any:
        self._registry.asked.append(request.name)
        self._registry.asking.fire()
        found = self._registry.items.get(request.name)
        await self._registry.answer_gate.wait()
        if found is None:
            raise ProjectNotFound(project=request.name)
        return project_service_pb2.GetProjectResponse(project=found)


class Instances(instance_service_pb2_grpc.InstanceServiceServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    async def WatchInstances(self, request: Any, context: Any) -> AsyncIterator[Any]:
        response = instance_service_pb2.WatchInstancesResponse
        async for message in self._registry.stream(request.after_version, "instances/", response):
            yield message

    async def GetInstance(self, request: Any, context: Any) -> Any:
        await self._registry.answer_gate.wait()
        found = self._registry.items.get(request.name)
        if found is None:
            raise InstanceNotFound(instance=request.name)
        return instance_service_pb2.GetInstanceResponse(instance=found)


class MemoryCache:
    def __init__(self, body: bytes | None = None) -> None:
        self.body = body
        self.saves = 0
        self.failures = 0
        self.saved = Signal()

    async def load(self) -> bytes | None:
        return self.body

    async def save(self, body: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageFull
        self.body, self.saves = body, self.saves + 1
        self.saved.fire()


def an_instance(name: str = ROOT, **fields: Any) -> Instance:
    values: dict[str, Any] = {"scope": SCOPE_GLOBAL, "state": Instance.STATE_RUNNING, **fields}
    return Instance(name=name, **values)


@pytest.fixture
async def registry() -> FakeRegistry:
    registry = FakeRegistry()
    registry.put(an_instance())
    registry.put(Project(name=A))
    registry.put(Project(name=B))
    return registry


@pytest.fixture
async def server(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[Neighbour]:
    server = Neighbour(
        tmp_path / "registry.sock",
        (
            project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"],
            Projects(registry),  # type: ignore[abstract]
            project_service_pb2_grpc.add_ProjectServiceServicer_to_server,
        ),
        (
            instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"],
            Instances(registry),  # type: ignore[abstract]
            instance_service_pb2_grpc.add_InstanceServiceServicer_to_server,
        ),
    )
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def watching(server: Neighbour, cache: Any = None, **options: Any) -> AsyncIterator[RegistryWatch]:
    """A watch that runs, with waits short enough for tests, and patience with a machine that is slow to answer."""
    quick = {"first_wait": MILLISECOND, "longest_wait": 20 * MILLISECOND, "save_interval": MILLISECOND}
    patient = {"ask_timeout": timedelta(seconds=60)}
    async with open_channel(server.address) as channel:
        watch = RegistryWatch(channel, cache or NoCache(), **{**quick, **patient, **options})
        async with running(watch):
            yield watch


@asynccontextmanager
async def running(watch: RegistryWatch) -> AsyncIterator[None]:
    """What was kept is loaded, and the streams are followed."""
    await watch.load()
    following = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def until(watch: RegistryWatch, holds: Callable[[Directory], bool]) -> Directory:
    """Wait for a directory of which something holds."""
    async with asyncio.timeout(60):
        seen = watch.changed.count
        while not holds(watch.current):
            seen = await watch.changed.wait(after=seen)
    return watch.current


def complete(directory: Directory) -> bool:
    return directory.complete


def has(name: str) -> Callable[[Directory], bool]:
    return lambda directory: name in directory.projects


# ---------------------------------------------------------------- following


async def test_a_snapshot_is_taken_over(server: Neighbour) -> None:
    async with watching(server) as watch:
        directory = await until(watch, complete)

    assert set(directory.projects) == {A, B}
    assert set(directory.instances) == {ROOT}
    assert (directory.projects_version, directory.instances_version) == (3, 3)
    assert directory.candidates.names == (A, B)


async def test_half_a_snapshot_is_not(server: Neighbour, registry: FakeRegistry) -> None:
    registry.snapshot_gate.clear()
    async with watching(server) as watch:
        directory = await until(watch, lambda directory: bool(directory.instances))
        assert (dict(directory.projects), directory.complete) == ({}, False)

        registry.snapshot_gate.set()
        directory = await until(watch, complete)

    assert set(directory.projects) == {A, B}


async def test_half_a_snapshot_is_forgotten_when_its_stream_is_cut(
    server: Neighbour, registry: FakeRegistry
) -> None:
    registry.snapshot_gate.clear()
    async with watching(server) as watch:
        await until(watch, lambda directory: bool(directory.instances))  # and projects/a was sent, or will be
        registry.remove(A)
        registry.snapshot_gate.set()
        registry.cut()
        directory = await until(watch, lambda directory: complete(directory) and A not in directory.projects)

    assert set(directory.projects) == {B}


async def test_an_empty_registry_is_complete(server: Neighbour, registry: FakeRegistry) -> None:
    registry.items.clear()
    async with watching(server) as watch:
        directory = await until(watch, complete)

    assert (dict(directory.projects), dict(directory.instances)) == ({}, {})


async def test_changes_are_followed(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        registry.put(Project(name=C))
        registry.put(Project(name=B, state=Project.STATE_PAUSED))
        registry.remove(A)
        registry.put(an_instance("instances/p", parent=ROOT, scope=SCOPE_PROJECT, project=B))
        directory = await until(
            watch, lambda directory: A not in directory.projects and len(directory.instances) == 2
        )

    assert set(directory.projects) == {B, C}
    assert directory.projects[B].paused
    assert directory.instance_of_project == {B: "instances/p"}
    assert (directory.projects_version, directory.instances_version) == (6, 7)


async def test_heartbeats_move_the_version_and_nothing_else(
    server: Neighbour, registry: FakeRegistry
) -> None:
    registry.put(Project(name=A, presence=Presence(live_workers=1)))
    async with watching(server) as watch:
        before = await until(watch, complete)
        candidates, changes = before.candidates, watch.changed.count

        registry.put(Project(name=A, presence=Presence(live_workers=5, running=3)))
        registry.put(an_instance(state=Instance.STATE_PAUSED))
        await until(watch, lambda directory: ROOT in directory.halted)
        while registry.resumed[-1] < 5:  # where it resumes tells what it has seen
            opened = registry.opened.count
            registry.cut()
            await registry.opened.wait(after=opened)

        assert registry.resumed[-1] == watch.current.projects_version == 5
        assert watch.changed.count == changes + 1  # the instance's
        assert watch.current.candidates is candidates


async def test_an_instance_of_an_unknown_scope_hides_no_other(
    server: Neighbour, registry: FakeRegistry
) -> None:
    registry.put(Instance(name="instances/odd", parent=ROOT))
    async with watching(server) as watch:
        await until(watch, complete)
        registry.put(Instance(name="instances/odder", parent=ROOT))
        registry.put(an_instance("instances/p", parent=ROOT))
        directory = await until(watch, lambda directory: len(directory.instances) == 2)

    assert set(directory.instances) == {ROOT, "instances/p"}


async def test_a_runs_start_is_remembered(server: Neighbour, registry: FakeRegistry) -> None:
    start, later = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

    def in_state(state: Instance.State.ValueType, time: datetime) -> Instance:
        made = an_instance("instances/o", state=state)
        made.update_time.FromDatetime(time)
        return made

    async with watching(server) as watch:
        await until(watch, complete)
        registry.put(in_state(Instance.STATE_CREATED, start - timedelta(days=1)))
        registry.put(in_state(Instance.STATE_STARTING, start))
        registry.put(in_state(Instance.STATE_RUNNING, start + timedelta(seconds=1)))
        registry.put(in_state(Instance.STATE_STOPPING, later))
        directory = await until(
            watch,
            lambda directory: (
                "instances/o" in directory.instances
                and directory.instances["instances/o"].state is InstanceState.STOPPING
            ),
        )

    assert directory.instances["instances/o"].start_time == start


# ---------------------------------------------------------------- trouble


async def test_a_stream_that_is_cut_goes_on_where_it_was(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        registry.put(Project(name=C))
        await until(watch, has(C))
        registry.cut()
        registry.remove(B)
        registry.put(Project(name="projects/d"))
        directory = await until(watch, has("projects/d"))

    assert set(directory.projects) == {A, C, "projects/d"}
    assert registry.resumed[0] == 0
    assert set(registry.resumed[1:]) == {4}


async def test_a_registry_that_is_down_is_waited_for(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        await server.stop()
        registry.put(Project(name=C))
        assert set(watch.current.projects) == {A, B}  # and it still decides

        await server.start()
        directory = await until(watch, has(C))

    assert set(directory.projects) == {A, B, C}
    assert 3 in registry.resumed


async def test_a_registry_may_come_up_later_than_the_router(
    server: Neighbour, registry: FakeRegistry
) -> None:
    await server.stop()
    async with watching(server, ask_timeout=20 * MILLISECOND) as watch:
        with pytest.raises(RegistryUnknown):
            await watch.refresh_project(A)
        assert not watch.current.complete
        await server.start()
        directory = await until(watch, complete)

    assert set(directory.projects) == {A, B}


async def test_trouble_and_its_end_are_told_to_the_log_once(
    server: Neighbour, registry: FakeRegistry
) -> None:
    with capture_logs() as logs:
        async with watching(server, ask_timeout=MILLISECOND) as watch:
            await until(watch, complete)
            await server.stop()
            for _ in range(20):
                with pytest.raises(RegistryUnknown):
                    await watch.refresh_project(C)  # again and again, as the streams fail
            await server.start()
            registry.put(Project(name=C))
            await until(watch, has(C))

    told = [
        (entry["event"], entry.get("reason")) for entry in logs if entry.get("what") == "registry projects"
    ]
    assert told[0] == ("works", None)
    assert told[1][0] == "trouble, trying again"
    assert told[-1] == ("works", None)
    assert all(one != next_one for one, next_one in pairwise(told))


async def test_whoever_was_away_for_too_long_takes_a_snapshot(
    server: Neighbour, registry: FakeRegistry
) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        await server.stop()
        registry.remove(A)
        registry.put(Project(name=C))
        registry.put(an_instance(state=Instance.STATE_PAUSED))
        registry.trim()
        await server.start()
        directory = await until(watch, lambda directory: has(C)(directory) and ROOT in directory.halted)

    assert set(directory.projects) == {B, C}
    assert registry.resumed[0] == registry.resumed[-1] == 0


async def test_a_registry_restored_from_a_backup_is_taken_as_it_is(
    server: Neighbour, registry: FakeRegistry
) -> None:
    registry.put(Project(name=C))
    async with watching(server) as watch:
        await until(watch, complete)
        await server.stop()
        registry.version = 3
        registry.log = registry.log[:3]
        del registry.items[C]
        await server.start()
        directory = await until(watch, lambda directory: C not in directory.projects)

    assert set(directory.projects) == {A, B}
    assert directory.projects_version == 3


# ---------------------------------------------------------------- a miss


async def test_what_is_known_is_not_asked_for(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)

        assert await watch.refresh_project(A)
    assert registry.asked == []


async def test_what_is_not_known_is_asked_for(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        registry.items[C] = Project(name=C)  # registered, and its event not here yet

        assert await watch.refresh_project(C)
        assert watch.current.candidates.names == (A, B, C)

        assert await watch.refresh_project(C)
        assert registry.asked == [C]


async def test_what_does_not_exist_does_not(server: Neighbour, registry: FakeRegistry) -> None:
    async with watching(server) as watch:
        await until(watch, complete)

        assert not await watch.refresh_project(C)
    assert registry.asked == [C]


async def test_a_registry_that_does_not_answer_says_nothing_about_what_exists(
    server: Neighbour, registry: FakeRegistry
) -> None:
    registry.answer_gate.clear()
    async with watching(server, ask_timeout=timedelta(seconds=1)) as watch:
        await until(watch, complete)

        with pytest.raises(RegistryUnknown, match=C):
            await watch.refresh_project(C)
    assert registry.asked in ([C], [])  # where the time was over before the question was there


async def test_what_was_removed_while_it_was_asked_for_stays_removed(
    server: Neighbour, registry: FakeRegistry
) -> None:
    async with watching(server) as watch:
        await until(watch, complete)
        registry.answer_gate.clear()
        registry.items[C] = Project(name=C)
        asking = asyncio.create_task(watch.refresh_project(C))
        await registry.asking.wait(after=0)
        registry.remove(C)
        registry.put(Project(name="projects/d"))
        await until(watch, has("projects/d"))
        registry.answer_gate.set()

        assert not await asking
        assert C not in watch.current.projects


# ---------------------------------------------------------------- an instance


@asynccontextmanager
async def client_of(
    server: Neighbour, patience: timedelta = timedelta(seconds=60)
) -> AsyncIterator[RegistryClient]:
    """The whole client, which has a copy of everything."""
    async with (
        temporary_database(
            metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
        ) as db,
        open_channel(server.address) as channel,
    ):
        client = RegistryClient(channel, db, ask_timeout=patience)
        async with running(client):
            await until(client, complete)
            yield client


async def test_an_instance_is_as_the_registry_says(server: Neighbour, registry: FakeRegistry) -> None:
    async with client_of(server) as client:
        started = an_instance("instances/p", scope=SCOPE_PROJECT)
        registry.put(an_instance("instances/p", scope=SCOPE_PROJECT, state=Instance.STATE_CREATED))
        registry.put(started)

        assert await client.refresh_instance("instances/p")
        assert client.current.instances["instances/p"].state is InstanceState.RUNNING
        assert not await client.refresh_instance("instances/none")


@pytest.mark.parametrize("how", ["does not answer", "is down", "has not told"])
async def test_nobody_says_that_an_instance_is_none_when_nobody_can(
    server: Neighbour, registry: FakeRegistry, how: str
) -> None:
    async with client_of(server, 50 * MILLISECOND) as client:
        if how == "does not answer":
            registry.answer_gate.clear()
        elif how == "is down":
            await server.stop()
        registry.items["instances/p"] = an_instance(
            "instances/p", scope=SCOPE_PROJECT
        )  # of which no stream tells

        with pytest.raises(RegistryUnknown, match="instances/p"):
            await client.refresh_instance("instances/p")


async def test_when_the_registry_does_not_answer_the_copy_counts(
    server: Neighbour, registry: FakeRegistry
) -> None:
    async with client_of(server, 50 * MILLISECOND) as client:
        registry.answer_gate.clear()

        assert not await client.refresh_instance(ROOT)


# ---------------------------------------------------------------- the cache


async def a_cache_of(server: Neighbour) -> MemoryCache:
    cache = MemoryCache()
    async with watching(server, cache) as watch:
        await until(watch, complete)
        await cache.saved.wait(after=0)
    return cache


async def test_a_router_started_without_the_registry_knows_what_it_knew(server: Neighbour) -> None:
    cache = await a_cache_of(server)
    await server.stop()

    async with watching(server, cache) as watch:
        directory = watch.current

    assert directory.complete
    assert set(directory.projects) == {A, B}
    assert set(directory.instances) == {ROOT}
    assert (directory.projects_version, directory.instances_version) == (3, 3)
    assert directory.candidates.names == (A, B)


async def test_what_was_cached_gives_way_to_the_registry(server: Neighbour, registry: FakeRegistry) -> None:
    cache = await a_cache_of(server)
    registry.remove(A)
    registry.put(Project(name=C))

    async with watching(server, cache) as watch:
        assert A in watch.current.projects
        directory = await until(watch, has(C))

    assert set(directory.projects) == {B, C}
    assert set(registry.resumed) == {0}


async def test_the_cache_ends_up_with_the_latest(server: Neighbour, registry: FakeRegistry) -> None:
    cache = MemoryCache()
    async with watching(server, cache) as watch:
        await until(watch, complete)
        for number in range(20):
            registry.put(Project(name=f"projects/n{number}"))
        await until(watch, has("projects/n19"))
        async with asyncio.timeout(60):
            while cache.body is None or b"projects/n19" not in cache.body:
                await cache.saved.wait(after=cache.saves)


async def test_the_cache_is_not_written_for_each_change(server: Neighbour, registry: FakeRegistry) -> None:
    cache = MemoryCache()
    async with watching(server, cache, save_interval=timedelta(hours=1)) as watch:
        await until(watch, complete)
        await cache.saved.wait(after=0)
        for number in range(5):
            registry.put(Project(name=f"projects/n{number}"))
            await until(watch, has(f"projects/n{number}"))

    assert cache.saves == 1


async def test_half_a_copy_is_not_kept(server: Neighbour, registry: FakeRegistry) -> None:
    registry.snapshot_gate.clear()
    cache = MemoryCache()
    async with watching(server, cache) as watch:
        await until(watch, lambda directory: bool(directory.instances))
        registry.put(an_instance("instances/p"))
        await until(watch, lambda directory: len(directory.instances) == 2)

    assert cache.saves == 0


async def test_a_cache_that_cannot_be_written_is_written_later(server: Neighbour) -> None:
    cache = MemoryCache()
    cache.failures = 2
    async with watching(server, cache) as watch:
        await until(watch, complete)
        async with asyncio.timeout(60):
            await cache.saved.wait(after=0)

    assert cache.failures == 0


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_a_damaged_cache_is_no_cache(body: bytes) -> None:
    async def scenario() -> Directory:
        async with open_channel("unix:/tmp/nobody-listens-here.sock") as channel:
            watch = RegistryWatch(channel, MemoryCache(body))
            await watch.load()
            return watch.current

    with capture_logs() as logs:
        directory = asyncio.run(scenario())

    # A few bytes may happen to be two empty snapshots; anything else is told.
    assert directory.complete != any("damaged" in entry["event"] for entry in logs)
    assert dict(directory.projects) == {}


async def test_a_copy_from_before_is_not_confirmed_until_the_registry_has_told_all_of_it(
    server: Neighbour, registry: FakeRegistry
) -> None:
    cache = await a_cache_of(server)
    await server.stop()

    async with watching(server, cache) as watch:
        assert (watch.current.complete, watch.confirmed) == (True, False)
        registry.put(Project(name=C))
        registry.put(an_instance("instances/p", parent=ROOT, scope=SCOPE_PROJECT, project=B))
        await server.start()
        await until(watch, lambda directory: C in directory.projects and len(directory.instances) == 2)
        assert watch.confirmed


async def test_a_cache_cut_short_is_no_cache(server: Neighbour) -> None:
    cache = await a_cache_of(server)
    await server.stop()
    assert cache.body is not None

    for length in range(len(cache.body)):
        async with open_channel(server.address) as channel:
            watch = RegistryWatch(channel, MemoryCache(cache.body[:length]))
            await watch.load()
            assert (dict(watch.current.projects), watch.current.complete) == ({}, False), length
