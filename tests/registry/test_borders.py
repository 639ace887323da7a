"""Borders: what may leave for a peer, as its project says; and who may say so."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.common.v1.options_pb2 import TRUST_LEVEL_TRUSTED, TRUST_LEVEL_VERIFIED
from hopper.registry.v1.instance_pb2 import SCOPE_FEDERATED, Instance, InstanceConfig
from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest, StartInstanceRequest
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_pb2 import Border, Executor, Project, Worker
from hopper.registry.v1.project_service_pb2 import (
    GetProjectRequest,
    HeartbeatRequest,
    RegisterProjectRequest,
    UpdateProjectRequest,
    WatchProjectsRequest,
)
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper_common.identity.store import IdentityStore
from hopper_common.identity.tls import open_secure_channel
from hopper_testing.clock import ManualClock
from tests.channels import separate_channel
from tests.registry.harness import RunningRegistry, refusal, violations
from tests.registry.test_access import add, make_key, role

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceAsyncStub

CODE = grpc.StatusCode
BORDER = Border(policy='[[rule]]\nname = "a"', level=TRUST_LEVEL_TRUSTED, peer="b" * 32)
PEER = Executor(type=Executor.TYPE_PEER, requires_live_worker=True)
BOB = "projects/peer-bob"


def registration(project_id: str = "peer-bob", **fields: Any) -> RegisterProjectRequest:
    project = Project(**{"executor": PEER, "border": BORDER, **fields})
    return RegisterProjectRequest(project_id=project_id, project=project)


def change(*paths: str, **fields: Any) -> UpdateProjectRequest:
    return UpdateProjectRequest(project=Project(name=BOB, **fields), update_mask=FieldMask(paths=paths))


async def kept(registry: RunningRegistry) -> Project:
    return (await registry.projects.GetProject(GetProjectRequest(name=BOB))).project


# ---------------------------------------------------------------- what is kept


async def test_a_border_is_kept_as_it_is_told_to_watchers_and_outlives_a_restart(
    registry: RunningRegistry,
) -> None:
    made = (await registry.projects.RegisterProject(registration())).project
    assert (made.border, made.executor) == (BORDER, PEER)
    await registry.restart()
    assert (await kept(registry)).border == BORDER
    watch = registry.projects.WatchProjects(WatchProjectsRequest())
    assert (await anext(aiter(watch))).changed.border == BORDER
    watch.cancel()


async def test_a_border_changes_whole_or_in_part_and_goes(registry: RunningRegistry) -> None:
    before = (await registry.projects.RegisterProject(registration())).project
    raised = change("border.level", border=Border(level=TRUST_LEVEL_VERIFIED))
    after = (await registry.projects.UpdateProject(raised)).project
    assert (after.border.level, after.border.policy) == (TRUST_LEVEL_VERIFIED, BORDER.policy)
    assert after.etag != before.etag
    cleared = (await registry.projects.UpdateProject(change("border"))).project
    assert not cleared.HasField("border")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"border": Border()}, ("project.border.level", "project.border.peer")),
        ({"border": Border(peer="b", level=77)}, ("project.border.level",)),  # type: ignore[arg-type]
        ({"executor": Executor()}, ("project.executor.type",)),
        ({"executor": Executor(type=Executor.TYPE_PERSON)}, ("project.executor.type",)),
    ],
    ids=str,
)
async def test_a_border_that_is_not_whole_is_refused(
    registry: RunningRegistry, fields: dict[str, Any], wrong: tuple[str, ...]
) -> None:
    assert set(await violations(registry.projects.RegisterProject(registration(**fields)))) == set(wrong)
    await registry.projects.RegisterProject(registration())
    assert set(await violations(registry.projects.UpdateProject(change(*fields, **fields)))) == set(wrong)
    assert (await kept(registry)).border == BORDER


# ---------------------------------------------------------------- who says so


@pytest.fixture
async def open_registry(tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    """With a port for people, and a socket for other services."""
    clock = ManualClock(datetime.now(UTC))  # certificates are looked at by the time of day
    running = RunningRegistry(
        tmp_path / "hopper",
        clock,
        str(tmp_path / "registry.db"),
        listen="127.0.0.1:0",
        services_listen="sockets",
    )
    await running.start()
    yield running
    await running.close()


async def service(registry: RunningRegistry, name: str) -> grpc.aio.Channel:
    identity = IdentityStore.open(registry.settings.identity_path, registry.clock)
    address = f"unix:{registry.settings.services_socket_path('registry')}"
    return await registry.keep(open_secure_channel(address, identity, "registry", path=f"/svc/{name}"))


async def test_the_federation_service_keeps_a_peers_place(open_registry: RunningRegistry) -> None:
    """All of it: the project with its border, the instance that stands for it, and the heartbeats."""
    channel = await service(open_registry, "federation")
    projects: ProjectServiceAsyncStub = ProjectServiceStub(channel)
    instances: Any = InstanceServiceStub(channel)
    await projects.RegisterProject(registration())
    other = Border(peer=BORDER.peer, level=TRUST_LEVEL_VERIFIED)
    assert (await projects.UpdateProject(change("border", border=other))).project.border == other
    standing = Instance(
        scope=SCOPE_FEDERATED, parent="instances/global", project=BOB, config=InstanceConfig(peer=BORDER.peer)
    )
    await instances.CreateInstance(CreateInstanceRequest(instance_id="peer-bob", instance=standing))
    await instances.StartInstance(StartInstanceRequest(name="instances/peer-bob"))
    await projects.Heartbeat(HeartbeatRequest(worker=Worker(name=f"{BOB}/workers/federation", slots=3)))
    assert (await kept(open_registry)).presence.slots == 3


async def test_no_other_service_sets_a_border(open_registry: RunningRegistry) -> None:
    gateway: ProjectServiceAsyncStub = ProjectServiceStub(await service(open_registry, "gateway"))
    await assert_may_not_set_a_border(open_registry, gateway, ())


async def test_no_admin_sets_a_border_by_hand(open_registry: RunningRegistry) -> None:
    """The policy is where its owner says so, and signs for it."""
    await add(open_registry, bindings=[role("ADMIN")])
    key = (await make_key(open_registry)).secret
    port = next(address for address in open_registry.addresses if address.startswith("127.0.0.1:"))
    ada: ProjectServiceAsyncStub = ProjectServiceStub(await open_registry.keep(separate_channel(port)))
    await assert_may_not_set_a_border(open_registry, ada, (("authorization", f"Bearer {key}"),))


async def assert_may_not_set_a_border(
    registry: RunningRegistry, caller: "ProjectServiceAsyncStub", metadata: Any
) -> None:
    rule = "a border is the federation service's to set"
    denied = (CODE.PERMISSION_DENIED, "PERMISSION_DENIED")
    await refusal(caller.RegisterProject(registration(), metadata=metadata), *denied, rule=rule)
    await registry.projects.RegisterProject(registration())
    wider = change("border.level", border=Border(level=TRUST_LEVEL_VERIFIED))
    for request in (wider, change("border")):
        await refusal(caller.UpdateProject(request, metadata=metadata), *denied, rule=rule)
    assert (await kept(registry)).border == BORDER
    # The rest of it is theirs, also where it is sent back as it was read.
    priced = await kept(registry)
    priced.cost_per_task = 2.5
    answer = await caller.UpdateProject(UpdateProjectRequest(project=priced), metadata=metadata)
    assert (answer.project.cost_per_task, answer.project.border) == (2.5, BORDER)
