"""Files beside tasks, through the SDK, with a whole Hopper: its router, its guard, its disk."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from hopper.common.v1.options_pb2 import Role
from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import instance_pb2, principal_pb2
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest, StartInstanceRequest
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest
from hopper.router.v1.task_service_pb2 import CancelTaskRequest
from hopper_client import (
    ArtifactNotFound,
    AsyncHopper,
    Hopper,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    WrongState,
)
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.e2e.calls import ROOT, first_admin

MIB = 1 << 20
SOON = 60.0


@pytest.fixture(scope="module")
def process() -> Iterator[HopperProcess]:
    with (
        temporary_directory() as directory,
        HopperProcess(
            directory / "data",
            listen="127.0.0.1:0",
            environment={"HOPPER_ARTIFACT_FILE_BYTES": str(4 * MIB)},
        ) as started,
    ):
        yield started


@pytest.fixture
def hopper(process: HopperProcess) -> Iterator[Hopper]:
    with Hopper(process.address, timeout=SOON) as connected:
        yield connected


@pytest.fixture(scope="module")
def places(process: HopperProcess) -> None:
    """Instances a and b."""
    with Hopper(process.address, timeout=SOON) as hopper:
        for name in ("a", "b"):
            config = instance_pb2.InstanceConfig(members=["ann"])
            made = instance_pb2.Instance(scope=instance_pb2.SCOPE_PERSONAL, parent=ROOT, config=config)
            hopper.instances.CreateInstance(CreateInstanceRequest(instance_id=name, instance=made))
            hopper.instances.StartInstance(StartInstanceRequest(name=f"instances/{name}"))


def new_task(hopper: Hopper, instance: str = ROOT) -> str:
    return hopper.submit("with files", instance=instance, allow_duplicate=True).task.name


def test_what_is_put_is_got(hopper: Hopper, tmp_path: Path) -> None:
    task, content = new_task(hopper), os.urandom(3 * MIB + 7)
    (tmp_path / "report.pdf").write_bytes(content)
    seen: list[tuple[int, int]] = []
    kept = hopper.put_artifact(
        task, tmp_path / "report.pdf", progress=lambda done, total: seen.append((done, total))
    )
    assert (kept.name, kept.size, kept.media_type) == ("report.pdf", len(content), "application/pdf")
    assert seen[-1] == (len(content), len(content))
    hopper.put_artifact(task, b"short", name="note.txt")
    target, opened = tmp_path / "got.pdf", io.BytesIO()
    seen.clear()
    hopper.get_artifact(task, "report.pdf", target, progress=lambda done, total: seen.append((done, total)))
    hopper.get_artifact(task, "note.txt", opened)
    assert (target.read_bytes(), opened.getvalue()) == (content, b"short")
    assert len(seen) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got.pdf", "report.pdf"]
    with pytest.raises(ArtifactNotFound):
        hopper.get_artifact(task, "nothing", target)
    with pytest.raises(NotFound):
        hopper.put_artifact(f"{ROOT}/tasks/nowhere", b"x", name="x")


async def test_and_by_those_who_await_it(process: HopperProcess, hopper: Hopper, tmp_path: Path) -> None:
    task, content = new_task(hopper), os.urandom(2 * MIB + 1)
    async with AsyncHopper(process.address, timeout=SOON) as client:
        await client.put_artifact(task, content, name="a.bin")
        got = io.BytesIO()
        artifact = await client.get_artifact(task, "a.bin", got)
        assert (got.getvalue(), artifact.size) == (content, len(content))
        for refused, error in (
            (client.put_artifact(task, bytes(5 * MIB), name="large"), ResourceExhausted),
            (client.put_artifact(f"{ROOT}/tasks/nowhere", bytes(3 * MIB), name="x"), NotFound),
            (client.get_artifact(task, "nothing", tmp_path / "x"), ArtifactNotFound),
        ):
            with pytest.raises(error):
                await refused  # and says why, though a part of it was under way


def test_what_is_put_survives_a_kill(process: HopperProcess, hopper: Hopper) -> None:
    task, content = new_task(hopper), os.urandom(MIB)
    hopper.put_artifact(task, content, name="a.bin")
    process.kill()
    process.start()
    got = io.BytesIO()
    with Hopper(process.address, timeout=SOON) as again:
        again.get_artifact(task, "a.bin", got)
    assert got.getvalue() == content


def test_files_of_what_a_task_was_handed_to_are_beside_it_too(hopper: Hopper, places: None) -> None:
    task = new_task(hopper)
    request = DelegateTaskRequest(task=task, to_instance="instances/a", kind=Delegation.KIND_ROUTE)
    (child,) = hopper.delegations.DelegateTask(request).delegation.child_tasks
    hopper.put_artifact(child, b"of the child", name="a.txt")
    for each in (task, child):
        listed = hopper.artifacts.ListArtifacts(ListArtifactsRequest(task=each)).artifacts
        assert [(found.artifact.name, found.stored) for found in listed] == [("a.txt", 12)]
        got = io.BytesIO()
        hopper.get_artifact(each, "a.txt", got)
        assert got.getvalue() == b"of the child"
    hopper.tasks.CancelTask(CancelTaskRequest(name=task))
    with pytest.raises(WrongState) as caught:
        hopper.put_artifact(child, b"late", name="b.txt")
    assert caught.value.reason == "TASK_WRONG_STATE"


# Who may.


@pytest.fixture(scope="module")
def keys(process: HopperProcess, places: None) -> dict[str, str]:
    """Of a member and a viewer of the instance a, an agent there, and a member of b."""
    admin = (("authorization", f"Bearer {first_admin(process.address)}"),)
    made: dict[str, str] = {}
    with grpc.insecure_channel(process.tcp_address) as channel:
        access = AccessServiceStub(channel)
        for name, role, place in (
            ("member", Role.ROLE_MEMBER, "instances/a"),
            ("viewer", Role.ROLE_VIEWER, "instances/a"),
            ("agent", Role.ROLE_AGENT, "instances/a"),
            ("stranger", Role.ROLE_MEMBER, "instances/b"),
        ):
            agent = name == "agent"
            principal = principal_pb2.Principal(
                kind=principal_pb2.Principal.KIND_AGENT if agent else principal_pb2.Principal.KIND_PERSON,
                bindings=[principal_pb2.RoleBinding(role=role, resource=place)],
                acts_for="principals/boss" if agent else "",
            )
            if agent:
                boss = principal_pb2.Principal(
                    kind=principal_pb2.Principal.KIND_PERSON,
                    bindings=[principal_pb2.RoleBinding(role=Role.ROLE_ADMIN, resource=ROOT)],
                )
                access.CreatePrincipal(
                    asvc.CreatePrincipalRequest(principal_id="boss", principal=boss),
                    metadata=admin,
                    timeout=SOON,
                )
            request = asvc.CreatePrincipalRequest(principal_id=name, principal=principal)
            access.CreatePrincipal(request, metadata=admin, timeout=SOON)
            key = asvc.CreateApiKeyRequest(parent=f"principals/{name}")
            made[name] = access.CreateApiKey(key, metadata=admin, timeout=SOON).secret
    return made


@pytest.mark.parametrize(
    ("who", "puts", "gets"),
    [("member", True, True), ("agent", True, True), ("viewer", False, True), ("stranger", False, False)],
)
def test_a_file_is_for_those_whose_task_it_is(
    process: HopperProcess,
    hopper: Hopper,
    keys: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    puts: bool,
    gets: bool,
) -> None:
    task, content = new_task(hopper, "instances/a"), os.urandom(2 * MIB + 1)
    hopper.put_artifact(task, content, name="owners.bin")
    monkeypatch.setenv("HOPPER_API_KEY", keys[who])
    with Hopper(process.tcp_address, timeout=SOON) as client:
        if puts:
            client.put_artifact(task, content, name="theirs.bin")  # in pieces, of which one names the task
        else:
            with pytest.raises(PermissionDenied):
                client.put_artifact(task, content, name="theirs.bin")
        got = io.BytesIO()
        if gets:
            client.get_artifact(task, "owners.bin", got)
            assert got.getvalue() == content
        else:
            with pytest.raises(PermissionDenied):
                client.get_artifact(task, "owners.bin", got)
