"""
Cases F59 to F61: everybody at every method of a running Hopper, with real keys and certificates.

The matrix sends bytes that are no message: whoever may not call is told so before they are read, whoever may is told
that they are none, and nothing happens either way. Who may call is taken from the options in the descriptors, by code
that shares nothing with the guard's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor

from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper.common.v1.options_pb2 import Role, Service
from hopper.federation.v1 import peer_admin_service_pb2 as fsvc
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import instance_pb2, instance_service_pb2, principal_pb2
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_pb2 import Project, Worker
from hopper.registry.v1.project_service_pb2 import HeartbeatRequest, RegisterProjectRequest
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1 import routing_service_pb2 as rsvc
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.task_pb2 import Failure, TaskSpec
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.clock import SystemClock
from hopper_common.identity.store import IdentityStore
from hopper_common.identity.tls import open_secure_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.common.auth.contract import ROLES, SERVICES, agent_may, declared, methods, path, role_may
from tests.e2e.calls import first_admin

ROOT = "instances/global"
SOON = 60.0
# They have ports of their own, or a server of their own.
ELSEWHERE = {
    "hopper.federation.v1.PeerService",
    "hopper.federation.v1.PairingService",
    "hopper.sage.v1.SageService",
}
METHODS = [method for method in methods() if method.containing_service.full_name not in ELSEWHERE]
LOOSE = {
    f"HOPPER_RATE_{name}": "100000" for name in ("READ", "WRITE", "WORK", "ADMIN", "SERVICES", "STRANGERS")
}

Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def process() -> Iterator[HopperProcess]:
    with (
        temporary_directory() as directory,
        HopperProcess(
            directory / "data",
            listen="127.0.0.1:0",
            environment={"HOPPER_SERVICES_LISTEN": "sockets", **LOOSE},
        ) as started,
    ):
        yield started


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


class Crowd:
    """People and agents of a Hopper, made by its first admin."""

    def __init__(self, process: HopperProcess) -> None:
        self.admin = bearer(first_admin(process.address))
        self._channel = grpc.insecure_channel(process.tcp_address)
        self._access = AccessServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def add(self, name: str, *bindings: tuple["Role.ValueType", str], acts_for: str = "") -> Metadata:
        """Somebody new; returns what they show."""
        kind = principal_pb2.Principal.KIND_AGENT if acts_for else principal_pb2.Principal.KIND_PERSON
        bound = [principal_pb2.RoleBinding(role=role, resource=resource) for role, resource in bindings]
        principal = principal_pb2.Principal(kind=kind, bindings=bound, acts_for=acts_for)
        request = asvc.CreatePrincipalRequest(principal_id=name, principal=principal)
        self._access.CreatePrincipal(request, metadata=self.admin, timeout=SOON)
        made = self._access.CreateApiKey(
            asvc.CreateApiKeyRequest(parent=f"principals/{name}"), metadata=self.admin, timeout=SOON
        )
        return bearer(made.secret)


@pytest.fixture(scope="module")
def crowd(process: HopperProcess) -> Iterator[Crowd]:
    made = Crowd(process)
    yield made
    made.close()


# Every method, everybody.

ATTEMPTS = 20
WRITE_FAILED = "Internal error from Core"
"""What gRPC says instead of the answer, where a stream was refused before its first message was written."""


@dataclass
class Caller:
    """Somebody at a door, and what the options say about them."""

    name: str
    channel: grpc.aio.Channel
    may: Callable[[MethodDescriptor], bool]
    metadata: Metadata = ()

    async def outcome(self, method: MethodDescriptor) -> str:
        """`let in`, or the reason why not."""
        reason = from_rpc_error(await _refusal(self, method)).reason
        return "let in" if reason == "MALFORMED_REQUEST" else reason


async def _refusal(caller: Caller, method: MethodDescriptor) -> grpc.aio.AioRpcError:
    """Send something that is no message, in the method's shape; it is always refused."""
    for _ in range(ATTEMPTS):
        refusal = await _refused(caller, method)
        if refusal.details() != WRITE_FAILED:
            return refusal
    raise AssertionError(f"{path(method)} never said why it refuses")


async def _refused(caller: Caller, method: MethodDescriptor) -> grpc.aio.AioRpcError:
    raw = b"\xff\xff\xff"
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call: Any = getattr(caller.channel, shape)(path(method))
    answer = call(_once(raw) if method.client_streaming else raw, metadata=caller.metadata, timeout=SOON)
    try:
        await (_read(answer) if method.server_streaming else answer)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"{path(method)} took what is no message")


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


async def _read(responses: Any) -> None:
    async for _ in responses:
        pass


def role_name(role: "Role.ValueType") -> str:
    return Role.Name(role).removeprefix("ROLE_").lower()


@pytest.fixture(scope="module")
def keys(crowd: Crowd) -> Mapping[str, Metadata]:
    """Of one person for each role, and of an agent for each of them."""
    shown = {}
    for role in ROLES:
        if role != Role.ROLE_OWNER:  # nobody can be given that
            name = role_name(role)
            shown[name] = crowd.add(f"one-{name}", (role, ROOT))
            shown[f"agent of {name}"] = crowd.add(
                f"bot-{name}", (Role.ROLE_AGENT, ROOT), acts_for=f"principals/one-{name}"
            )
    shown["without a role"] = crowd.add("nobody")
    return shown


@pytest.fixture
async def callers(process: HopperProcess, keys: Mapping[str, Metadata]) -> AsyncIterator[Sequence[Caller]]:
    def role(number: "Role.ValueType") -> Callable[[MethodDescriptor], bool]:
        return lambda method: role_may(declared(method), number)

    def agent(number: "Role.ValueType") -> Callable[[MethodDescriptor], bool]:
        return lambda method: agent_may(declared(method), number)

    def service(number: "Service.ValueType") -> Callable[[MethodDescriptor], bool]:
        return lambda method: number in declared(method).services

    def never(_: MethodDescriptor) -> bool:
        return False

    identity = IdentityStore.open(process.identity_dir, SystemClock())
    async with AsyncExitStack() as stack:
        socket, port = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for address in (process.address, process.tcp_address)
        ]
        made = [
            Caller("owner", socket, lambda method: True),
            Caller("nobody", port, never),
            Caller("without a role", port, never, keys["without a role"]),
        ]
        for number in ROLES:
            if number != Role.ROLE_OWNER:
                name = role_name(number)
                made.append(Caller(name, port, role(number), keys[name]))
                made.append(Caller(f"agent of {name}", port, agent(number), keys[f"agent of {name}"]))
        for each in SERVICES:
            name = Service.Name(each).removeprefix("SERVICE_").lower()
            channel = open_secure_channel(
                process.services_address("registry"), identity, "registry", path=f"/svc/{name}"
            )
            made.append(Caller(name, await stack.enter_async_context(channel), service(each)))
        yield made


async def test_everybody_is_let_in_to_what_the_options_say_and_to_nothing_else(
    callers: Sequence[Caller],
) -> None:
    owner, *others = callers
    outcomes = await asyncio.gather(*map(owner.outcome, METHODS))
    assert set(outcomes) <= {"let in", "METHOD_NOT_OFFERED"}
    written = [method for method, outcome in zip(METHODS, outcomes, strict=True) if outcome == "let in"]
    assert len(written) > 90
    for caller in others:
        outcomes = await asyncio.gather(*map(caller.outcome, written))
        for method, outcome in zip(written, outcomes, strict=True):
            refused = "UNAUTHENTICATED" if caller.name == "nobody" else "PERMISSION_DENIED"
            expected = "let in" if caller.may(method) else refused
            assert outcome == expected, f"{caller.name} at {path(method)}"


# F59 to F61.


@pytest.fixture(scope="module")
def places(process: HopperProcess) -> None:
    """Instances a and b, a-1 under a, and a project."""
    with grpc.insecure_channel(process.address) as channel:
        instances = InstanceServiceStub(channel)
        for name, parent, scope in (
            ("a", ROOT, instance_pb2.SCOPE_FAMILY),
            ("b", ROOT, instance_pb2.SCOPE_PERSONAL),
            ("a-1", "instances/a", instance_pb2.SCOPE_PERSONAL),
        ):
            config = instance_pb2.InstanceConfig(members=["ann"])
            made = instance_pb2.Instance(scope=scope, parent=parent, config=config)
            instances.CreateInstance(
                instance_service_pb2.CreateInstanceRequest(instance_id=name, instance=made), timeout=SOON
            )
            instances.StartInstance(
                instance_service_pb2.StartInstanceRequest(name=f"instances/{name}"), timeout=SOON
            )
        ProjectServiceStub(channel).RegisterProject(
            RegisterProjectRequest(project_id="crew", project=Project()), timeout=SOON
        )


@dataclass
class Agents:
    """Two agents, of one person who may do much."""

    channel: grpc.aio.Channel
    one: Metadata
    two: Metadata
    boss: Metadata


@pytest.fixture(scope="module")
def agent_keys(crowd: Crowd, places: None) -> tuple[Metadata, Metadata, Metadata]:
    boss = crowd.add("boss", (Role.ROLE_ADMIN, ROOT))
    bound = [(Role.ROLE_AGENT, "instances/a"), (Role.ROLE_AGENT, "projects/crew")]
    one, two = (crowd.add(name, *bound, acts_for="principals/boss") for name in ("one", "two"))
    return one, two, boss


@pytest.fixture
async def agents(
    process: HopperProcess, agent_keys: tuple[Metadata, Metadata, Metadata]
) -> AsyncIterator[Agents]:
    async with grpc.aio.insecure_channel(process.tcp_address) as channel:
        one, two, boss = agent_keys
        yield Agents(channel, one, two, boss)


async def refused(call: Awaitable[Any]) -> str:
    """The rule that a call was refused by."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    return error.metadata["rule"]


def submission(parent: str) -> tsvc.SubmitTaskRequest:
    return tsvc.SubmitTaskRequest(parent=parent, spec=TaskSpec(title="t", project="projects/crew"))


async def test_an_agent_works_below_its_place_and_never_beside_or_above_it(agents: Agents) -> None:
    tasks = TaskServiceStub(agents.channel)
    for parent in ("instances/a", "instances/a-1"):
        await tasks.SubmitTask(submission(parent), metadata=agents.one, timeout=SOON)
    for parent in ("instances/b", ROOT):
        rule = await refused(tasks.SubmitTask(submission(parent), metadata=agents.one, timeout=SOON))
        assert rule == f"no role on {parent} that the method is for"
        await tasks.SubmitTask(submission(parent), metadata=agents.boss, timeout=SOON)
    listing = tsvc.ListTasksRequest()  # of everywhere
    assert await refused(tasks.ListTasks(listing, metadata=agents.one, timeout=SOON))


async def test_an_agent_ends_its_own_claims_and_nobody_elses(agents: Agents, process: HopperProcess) -> None:
    tasks, work = TaskServiceStub(agents.channel), WorkServiceStub(agents.channel)
    made = (await tasks.SubmitTask(submission(ROOT), metadata=agents.boss, timeout=SOON)).task
    claim_as = wsvc.ClaimTasksRequest(queue="projects/crew", worker="two")
    rule = await refused(work.ClaimTasks(claim_as, metadata=agents.one, timeout=SOON))
    assert rule.startswith("a worker of somebody else")
    claim_as.worker, claim_as.task = "one-7", made.name
    # Of an instance that the agent has nothing to do with: it may not be named, and comes with its queue all the same.
    assert await refused(work.ClaimTasks(claim_as, metadata=agents.one, timeout=SOON))
    claim_as.task = ""
    claimed: dict[str, int] = {}
    while made.name not in claimed:  # others have submitted too
        answer = await work.ClaimTasks(claim_as, metadata=agents.one, timeout=SOON)
        assert answer.tasks
        claimed |= {task.name: task.claim.fencing_token for task in answer.tasks}
    own = wsvc.ClaimRef(task=made.name, fencing_token=claimed[made.name])
    ahead = wsvc.ClaimRef(task=made.name, fencing_token=claimed[made.name] + 1)
    failure = Failure(reason="NO")
    for ref in (own, ahead):
        attempts: list[Awaitable[Any]] = [
            work.RenewClaims(wsvc.RenewClaimsRequest(claims=[ref]), metadata=agents.two, timeout=SOON),
            work.CompleteTasks(
                wsvc.CompleteTasksRequest(completions=[wsvc.Completion(claim=ref)]),
                metadata=agents.two,
                timeout=SOON,
            ),
            work.FailTask(
                wsvc.FailTaskRequest(claim=ref, failure=failure), metadata=agents.two, timeout=SOON
            ),
            work.ReleaseTask(wsvc.ReleaseTaskRequest(claim=ref), metadata=agents.two, timeout=SOON),
        ]
        for attempt in attempts:
            assert await refused(attempt) == "a claim of somebody else"
    # Neither may its person, whose worker it is not; and in a batch with a stale one it is not overlooked.
    stale = wsvc.ClaimRef(task=made.name, fencing_token=max(1, claimed[made.name] - 1))
    both = wsvc.RenewClaimsRequest(claims=[own, stale])
    assert await refused(work.RenewClaims(both, metadata=agents.boss, timeout=SOON))
    done = await work.CompleteTasks(
        wsvc.CompleteTasksRequest(completions=[wsvc.Completion(claim=own)]), metadata=agents.one, timeout=SOON
    )
    assert done.results[0].updated.name == made.name
    with grpc.insecure_channel(process.address) as channel:
        log = AuditServiceStub(channel).ListAuditRecords(
            ListAuditRecordsRequest(page_size=1000, principal="principals/two", refused_only=True),
            timeout=SOON,
        )
    rules = {record.rule for record in log.records if record.method.endswith("/CompleteTasks")}
    assert rules == {"a claim of somebody else"}


async def test_an_agent_is_heard_of_as_its_own_worker_only(agents: Agents) -> None:
    projects = ProjectServiceStub(agents.channel)
    own = HeartbeatRequest(worker=Worker(name="projects/crew/workers/one@host"))
    await projects.Heartbeat(own, metadata=agents.one, timeout=SOON)
    assert await refused(projects.Heartbeat(own, metadata=agents.two, timeout=SOON))


async def test_what_a_task_talks_an_agent_into_has_no_effect_without_a_person(agents: Agents) -> None:
    """F61: the agent's person is an admin, and the agent does all that the text asks for."""
    channel, metadata = agents.channel, agents.one
    access, peers = AccessServiceStub(channel), PeerAdminServiceStub(channel)
    bound = principal_pb2.RoleBinding(role=Role.ROLE_ADMIN, resource="instances/a")
    raised = asvc.UpdatePrincipalRequest(
        principal=principal_pb2.Principal(name="principals/one", bindings=[bound])
    )
    raised.update_mask.paths.append("bindings")
    made = principal_pb2.Principal(kind=principal_pb2.Principal.KIND_PERSON, bindings=[bound])
    given: dict[str, Any] = {"metadata": metadata, "timeout": SOON}
    talked_into: list[Awaitable[Any]] = [
        peers.CreateInvitation(fsvc.CreateInvitationRequest(), **given),
        peers.Join(fsvc.JoinRequest(), **given),
        peers.OpenPairing(fsvc.OpenPairingRequest(), **given),
        peers.ApprovePairing(fsvc.ApprovePairingRequest(), **given),
        peers.SetPeerAddresses(fsvc.SetPeerAddressesRequest(), **given),
        access.CreateApiKey(asvc.CreateApiKeyRequest(parent="principals/boss"), **given),
        access.CreatePrincipal(asvc.CreatePrincipalRequest(principal_id="eve", principal=made), **given),
        access.UpdatePrincipal(raised, **given),
        access.BootstrapAdmin(asvc.BootstrapAdminRequest(), **given),
        RoutingServiceStub(channel).UpdatePolicy(rsvc.UpdatePolicyRequest(), **given),
        AuditServiceStub(channel).ListAuditRecords(ListAuditRecordsRequest(), **given),
    ]
    for call in talked_into:
        rule = await refused(call)
        assert rule in ("not for agents, whoever they act for", "only through this machine's own socket")
