"""Two registries on one PostgreSQL database are one registry."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from hopper.registry.v1.access_service_pb2 import BootstrapAdminRequest
from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import GetProjectRequest, RegisterProjectRequest
from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from tests.registry.harness import RunningRegistry
from tests.registry.test_access import add, make_key, revoke
from tests.registry.test_access_watch import change, snapshot
from tests.registry.test_access_watch import watching as watching_access
from tests.registry.test_watch import beat, register, watching

REQUEST_ID = "6f1c3b0e-8f7e-4a59-9a54-0d1d3c1b2a11"

Replicas = tuple[RunningRegistry, RunningRegistry]


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    """Started at once, on a database that has nothing in it yet."""
    url = postgres_server().create_database()
    clock = ManualClock()
    first, second = (RunningRegistry(tmp_path / name, clock, url) for name in ("first", "second"))
    await asyncio.gather(first.start(), second.start())
    yield first, second
    await first.close()
    await second.close()


async def test_what_one_is_told_the_other_knows(replicas: Replicas) -> None:
    first, second = replicas
    request = RegisterProjectRequest(project_id="a", project=Project(), request_id=REQUEST_ID)
    registered = await first.projects.RegisterProject(request)
    assert await second.projects.RegisterProject(request) == registered  # the first answer, from the other
    found = await second.projects.GetProject(GetProjectRequest(name="projects/a"))
    assert found.project == registered.project
    roots = [
        await registry.instances.GetInstance(GetInstanceRequest(name="instances/global"))
        for registry in replicas
    ]
    assert roots[0] == roots[1]


async def test_of_many_who_take_a_name_at_both_one_gets_it(replicas: Replicas) -> None:
    request = RegisterProjectRequest(project_id="a", project=Project())
    calls = [registry.projects.RegisterProject(request) for _ in range(10) for registry in replicas]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(refused) == 19
    assert {error.code() for error in refused} == {grpc.StatusCode.ALREADY_EXISTS}


async def test_who_watches_one_sees_what_happens_at_the_other(replicas: Replicas) -> None:
    first, second = replicas
    async with watching(second) as responses, asyncio.timeout(60):
        assert (await anext(responses)).HasField("snapshot_complete")
        await register(first)
        assert (await anext(responses)).changed.name == "projects/web"
        await beat(first)
        assert (await anext(responses)).changed.presence.live_workers == 1


async def test_of_two_first_admins_one_is_made(replicas: Replicas) -> None:
    calls = [
        registry.access.BootstrapAdmin(BootstrapAdminRequest(principal_id=f"admin-{number}"))
        for number, registry in enumerate(replicas)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_what_one_revokes_the_other_tells(replicas: Replicas) -> None:
    first, second = replicas
    await add(first)
    key = (await make_key(first)).key
    async with watching_access(second) as stream:
        known = [message.key.key for message in await snapshot(stream) if message.HasField("key")]
        assert known == [key]
        revoked = await revoke(first, key.name)
        assert (await change(stream)).key.key == revoked
