"""With keys and tokens, through the door for people: what was made lets in at once, what was ended never again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_pb2 import Instance, Scope
from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.principal_pb2 import Principal, RoleBinding
from hopper_common.auth.directory import Directory
from hopper_common.auth.follow import AccessFollower
from hopper_common.identity.store import IdentityStore
from hopper_common.identity.tls import open_secure_channel
from hopper_common.timestamps import from_proto
from hopper_testing.clock import ManualClock
from tests.channels import separate_channel
from tests.registry.harness import RunningRegistry, refusal
from tests.registry.test_access import ROOT, add, add_agent, keys, make_key, revoke, role, update

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.registry.v1.access_service_pb2_grpc import AccessServiceAsyncStub
    from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceAsyncStub

CODE = grpc.StatusCode
PATIENCE = 60
ME = asvc.WhoAmIRequest()


class Caller:
    """Somebody who calls with a key or a token."""

    def __init__(self, channel: grpc.aio.Channel, credential: str) -> None:
        self.metadata = (("authorization", f"Bearer {credential}"),)
        self.access: AccessServiceAsyncStub = AccessServiceStub(channel)
        self.instances: InstanceServiceAsyncStub = InstanceServiceStub(channel)

    async def who(self) -> asvc.WhoAmIResponse:
        return await self.access.WhoAmI(ME, metadata=self.metadata)

    async def token(self, audience: str = "registry") -> str:
        request = asvc.IssueTokenRequest(audience=audience)
        return (await self.access.IssueToken(request, metadata=self.metadata)).token


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    """With a port for people, and a socket for other services, who look at certificates by the time of day."""
    clock = ManualClock(datetime.now(UTC))
    database = str(tmp_path / "registry.db")
    running = RunningRegistry(
        tmp_path / "hopper", clock, database, listen="127.0.0.1:0", services_listen="sockets"
    )
    await running.start()
    yield running
    await running.close()


async def calling(registry: RunningRegistry, credential: str) -> Caller:
    port = next(address for address in registry.addresses if address.startswith("127.0.0.1:"))
    return Caller(await registry.keep(separate_channel(port)), credential)


async def ada(registry: RunningRegistry, *bindings: RoleBinding) -> tuple[Caller, str]:
    """Her, calling, and the name of her key."""
    await add(registry, bindings=bindings or [role("VIEWER")])
    made = await make_key(registry)
    return await calling(registry, made.secret), made.key.name


async def test_a_key_lets_in_at_once_and_never_after_it_was_revoked(registry: RunningRegistry) -> None:
    caller, key = await ada(registry)
    me = await caller.who()
    assert (me.principal, me.credential) == ("principals/ada", f"key:{key.rpartition('/')[2]}")
    assert list(me.bindings) == [role("VIEWER")]
    assert from_proto(me.expire_time) - registry.clock.now() == timedelta(days=90)
    await revoke(registry, key)
    await refusal(caller.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")


async def test_whoever_is_disabled_or_removed_is_let_in_no_more(registry: RunningRegistry) -> None:
    caller, _ = await ada(registry)
    await update(registry, "disabled", disabled=True)
    await refusal(caller.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")
    await update(registry, "disabled", disabled=False)
    assert (await caller.who()).principal == "principals/ada"
    await registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/ada"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.who()
    assert refused.value.code() == CODE.UNAUTHENTICATED


async def test_an_agent_is_out_with_its_person(registry: RunningRegistry) -> None:
    await add(registry, bindings=[role("MEMBER")])
    await add_agent(registry)
    await registry.access.UpdatePrincipal(
        asvc.UpdatePrincipalRequest(
            principal=Principal(name="principals/bot", bindings=[role("AGENT")]),
            update_mask=FieldMask(paths=["bindings"]),
        )
    )
    bot = await calling(registry, (await make_key(registry, "bot")).secret)
    me = await bot.who()
    assert (me.principal, me.acts_for, list(me.bindings)) == (
        "principals/bot",
        "principals/ada",
        [role("AGENT")],
    )
    await update(registry, "disabled", disabled=True)
    await refusal(bot.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")


async def test_people_replace_and_end_their_own_key_and_hear_the_answer(registry: RunningRegistry) -> None:
    """Though the call is made with the very key that ends: the new one is shown nowhere else."""
    caller, key = await ada(registry)
    request = asvc.RotateApiKeyRequest(name=key, overlap_seconds=0)
    rotated = await caller.access.RotateApiKey(request, metadata=caller.metadata)
    await refusal(caller.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")
    caller = await calling(registry, rotated.secret)
    assert (await caller.who()).principal == "principals/ada"
    ended = await caller.access.RevokeApiKey(
        asvc.RevokeApiKeyRequest(name=rotated.key.name), metadata=caller.metadata
    )
    assert ended.key.HasField("revoke_time")
    await refusal(caller.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")


async def test_a_viewer_makes_no_keys_and_takes_none_of_others(registry: RunningRegistry) -> None:
    caller, _ = await ada(registry)
    await add(registry, "bo")
    other = (await make_key(registry, "bo")).key.name
    for call in (
        caller.access.RevokeApiKey(asvc.RevokeApiKeyRequest(name=other), metadata=caller.metadata),
        caller.access.CreateApiKey(
            asvc.CreateApiKeyRequest(parent="principals/ada"), metadata=caller.metadata
        ),
        caller.access.BootstrapAdmin(asvc.BootstrapAdminRequest(), metadata=caller.metadata),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == CODE.PERMISSION_DENIED
    assert not (await keys(registry, "bo"))[0].HasField("revoke_time")


async def test_an_admin_of_a_team_acts_in_it_from_the_first_moment(registry: RunningRegistry) -> None:
    """Also in an instance that was made by the call before."""
    instance = Instance(scope=Scope.SCOPE_EVENT, parent=ROOT)
    await registry.instances.CreateInstance(CreateInstanceRequest(instance_id="team", instance=instance))
    caller, _ = await ada(registry, role("ADMIN", "instances/team"))
    run = Instance(scope=Scope.SCOPE_ORCHESTRATION, parent="instances/team")
    await caller.instances.CreateInstance(
        CreateInstanceRequest(instance_id="run", instance=run), metadata=caller.metadata
    )
    person = Principal(kind=Principal.KIND_PERSON, bindings=[role("MEMBER", "instances/run")])
    await caller.access.CreatePrincipal(
        asvc.CreatePrincipalRequest(principal_id="bo", principal=person), metadata=caller.metadata
    )
    await caller.access.CreateApiKey(
        asvc.CreateApiKeyRequest(parent="principals/bo"), metadata=caller.metadata
    )
    await caller.access.DeletePrincipal(
        asvc.DeletePrincipalRequest(name="principals/bo"), metadata=caller.metadata
    )
    await add(registry, "cy", bindings=[role("VIEWER"), role("MEMBER", "instances/team")])
    taken = Principal(name="principals/cy", bindings=[role("MEMBER", "instances/team")])
    call = caller.access.UpdatePrincipal(
        asvc.UpdatePrincipalRequest(principal=taken, update_mask=FieldMask(paths=["bindings"])),
        metadata=caller.metadata,
    )
    await refusal(call, CODE.PERMISSION_DENIED, "PERMISSION_DENIED", rule=f"admin of {ROOT}")


# Tokens.


async def test_a_token_does_what_its_key_may_and_ends_with_it(registry: RunningRegistry) -> None:
    caller, key = await ada(registry)
    passed_on = await calling(registry, await caller.token())
    me = await passed_on.who()
    assert (me.principal, me.credential) == ("principals/ada", "token")
    assert from_proto(me.expire_time) - registry.clock.now() <= timedelta(minutes=5)
    await refusal(passed_on.token(), CODE.PERMISSION_DENIED, "PERMISSION_DENIED", rule="only with a key")
    await revoke(registry, key)
    await refusal(passed_on.who(), CODE.UNAUTHENTICATED, "CREDENTIALS_REVOKED")


async def test_a_token_of_a_key_with_scopes_has_them_too(registry: RunningRegistry) -> None:
    await add(registry, bindings=[role("ADMIN")])
    secret = (await make_key(registry, scopes=[role("VIEWER")])).secret
    passed_on = await calling(registry, await (await calling(registry, secret)).token())
    assert list((await passed_on.who()).bindings) == [role("VIEWER")]


async def test_a_token_for_another_service_is_not_taken_here(registry: RunningRegistry) -> None:
    caller, _ = await ada(registry)
    elsewhere = await calling(registry, await caller.token("router"))
    await refusal(elsewhere.who(), CODE.UNAUTHENTICATED, "UNAUTHENTICATED", problem="audience")


async def test_a_token_outlives_a_restart_of_who_signed_it(registry: RunningRegistry) -> None:
    caller, _ = await ada(registry)
    token = await caller.token()
    await registry.restart()
    passed_on = await calling(registry, token)
    assert (await passed_on.who()).principal == "principals/ada"


async def test_the_last_use_of_a_key_is_known_after_a_while(registry: RunningRegistry) -> None:
    """At the latest when the process ends."""
    caller, _ = await ada(registry)
    await caller.who()
    await registry.restart()
    minute = registry.clock.now().replace(second=0, microsecond=0)
    assert from_proto((await keys(registry))[0].last_use_time) == minute


# Other processes.


class Mirror:
    """What another service of this Hopper knows."""

    def __init__(self, registry: RunningRegistry) -> None:
        self.directory = Directory(ManualClock().monotonic)
        identity = IdentityStore.open(registry.settings.identity_path, registry.clock)
        address = f"unix:{registry.settings.services_socket_path('registry')}"
        self.channel = open_secure_channel(address, identity, "registry", path="/svc/router")
        self.follower = AccessFollower(self.channel, self.directory)
        self._changed = asyncio.Event()
        self.directory.on_change(self._changed.set)

    async def until(self, condition: Callable[[Directory], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition(self.directory):
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def mirror(registry: RunningRegistry) -> AsyncIterator[Mirror]:
    """Following, until the end of the test."""
    mirror = Mirror(registry)
    running = asyncio.create_task(mirror.follower.run())
    yield mirror
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await mirror.channel.close()


async def test_another_process_knows_what_the_registry_knows(
    registry: RunningRegistry, mirror: Mirror
) -> None:
    """People, keys, what tokens are signed with, and who stands under whom; and hears of each change."""
    await mirror.until(lambda known: known.fresh)
    _, key = await ada(registry)
    key_id = key.rpartition("/")[2]
    await mirror.until(lambda known: known.key(key_id) is not None)
    assert mirror.directory.token_keys
    await revoke(registry, key)
    await mirror.until(lambda known: _is_revoked(known, key_id))
    instance = Instance(scope=Scope.SCOPE_EVENT, parent=ROOT)
    await registry.instances.CreateInstance(CreateInstanceRequest(instance_id="team", instance=instance))
    await mirror.until(lambda known: list(known.ancestors("instances/team")) == [ROOT])
    await registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/ada"))
    await mirror.until(lambda known: known.principal("principals/ada") is None)


def _is_revoked(known: Directory, key_id: str) -> bool:
    key = known.key(key_id)
    return key is not None and key.revoked is not None


async def test_another_process_goes_on_after_the_registry_was_away(
    registry: RunningRegistry, mirror: Mirror
) -> None:
    _, key = await ada(registry)
    key_id = key.rpartition("/")[2]
    await mirror.until(lambda known: known.key(key_id) is not None)
    await registry.restart()
    await revoke(registry, key)
    await mirror.until(lambda known: _is_revoked(known, key_id))


async def test_another_process_tells_which_keys_were_used(registry: RunningRegistry, mirror: Mirror) -> None:
    _, key = await ada(registry)
    mirror.directory.used(key.rpartition("/")[2], registry.clock.now())
    await mirror.follower.tell_uses()
    minute = registry.clock.now().replace(second=0, microsecond=0)
    assert from_proto((await keys(registry))[0].last_use_time) == minute


async def test_the_stream_is_for_services_alone(registry: RunningRegistry) -> None:
    """It has the hashes of all keys in it."""
    caller, _ = await ada(registry, role("ADMIN"))
    call = caller.access.WatchAccess(asvc.WatchAccessRequest(), metadata=caller.metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(call))
    assert refused.value.code() == CODE.PERMISSION_DENIED
