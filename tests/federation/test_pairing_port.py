"""The port that strangers reach: when it is open, and what it offers then."""

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hopper.common.v1.identity_pb2 import SignedBundle
from hopper.federation.v1 import pairing_service_pb2 as psvc
from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper_common.identity.bundles import verify_bundle
from hopper_common.identity.store import IdentityStore
from hopper_common.rpc.guard import NoGuard
from hopper_common.timestamps import to_proto
from hopper_federation import addresses, dialling, tokens
from hopper_federation.errors import PeerUnreachable
from hopper_federation.model import REPEATABLE_FOR
from hopper_federation.own_hosts import own_hosts
from hopper_federation.pairing_port import OPTIONS, PairingPort, Window
from hopper_federation.store_sql import Federation
from hopper_testing.clock import ManualClock
from tests.federation.harness import PATIENCE, RunningFederation, environment, refusal
from tests.federation.test_joining import altered

EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED


async def reachable(address: str) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_connection(*addresses.split(address))
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def until_closed(address: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while await reachable(address):  # noqa: ASYNC110 - it is the system that is asked
            await asyncio.sleep(0.05)


async def test_it_is_open_for_as_long_as_an_invitation_is(
    alice: RunningFederation, clock: ManualClock
) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    assert await reachable(address)
    clock.advance(timedelta(minutes=9))
    assert await reachable(address)
    clock.advance(timedelta(minutes=1))
    await until_closed(address)


async def test_it_closes_a_while_after_the_invitation_was_used(
    alice: RunningFederation, bob: RunningFederation, clock: ManualClock
) -> None:
    token = await alice.invite("bob", lifetime=to_proto(timedelta(hours=1)))
    (address,) = tokens.decode(token).addresses
    await bob.join(token, "alice")
    assert await reachable(address)  # who has used it may not have heard
    clock.advance(REPEATABLE_FOR)
    await until_closed(address)


class _Slow:
    """A database that answers when it is told to: nothing needs the port."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def read(self, work: object) -> None:
        self.asked.set()
        await self.answers.wait()


async def test_what_is_written_while_it_looks_keeps_it_open(tmp_path: Path, clock: ManualClock) -> None:
    """Whoever holds it open is done before the look is, which began earlier and has not seen what they wrote."""
    database = _Slow()
    port = PairingPort(
        IdentityStore.open(tmp_path / "identity", clock),
        cast("Federation", database),
        clock,
        listen="127.0.0.1:0",
        hosts=(),
        offered=(),
        guard=NoGuard(),
        window=Window(clock),
    )
    async with port.held():
        looking = asyncio.create_task(port.adjust())
        await database.asked.wait()
    database.answers.set()
    await looking
    assert port.is_open
    await port.adjust()
    assert not port.is_open


async def test_it_closes_when_its_owner_says_so(alice: RunningFederation) -> None:
    opened = await alice.admin.OpenPairing(svc.OpenPairingRequest())
    assert await reachable(opened.address)
    await alice.admin.OpenPairing(svc.OpenPairingRequest(lifetime=to_proto(timedelta())))
    await until_closed(opened.address)


async def test_it_is_open_again_after_a_restart_while_an_invitation_is(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    token = await alice.invite("bob")
    await alice.restart()
    opened = await alice.admin.OpenPairing(svc.OpenPairingRequest())  # it has another port now
    there = await bob.join(altered(token, addresses=(opened.address,)), "alice")
    assert there.words == (await alice.peer("bob")).words


async def test_a_port_that_somebody_else_has_is_named(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    await bob.stop()
    bob._environment["HOPPER_PAIRING_LISTEN"] = address
    await bob.start()
    error = await refusal(bob.invite("carol"), grpc.StatusCode.FAILED_PRECONDITION, "IDENTITY_WRONG_STATE")
    assert "HOPPER_PAIRING_LISTEN" in error.message
    assert await bob.invitations() == []


async def test_anybody_may_ask_who_is_there_and_nothing_else(alice: RunningFederation) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    shown = await dialling.look(address)
    async with dialling.pinned(shown) as pairing:
        introduction = (await pairing.Introduce(psvc.IntroduceRequest())).introduction
        bundle = verify_bundle(introduction.bundle, now=alice.clock.now())
        assert bundle.install_id == shown.install_id
        assert introduction.claimed_name == "alice"
        rotation = await pairing.GetRotation(psvc.GetRotationRequest())
        assert rotation.bundle == introduction.bundle


async def test_it_offers_no_health_no_reflection_and_no_administration(alice: RunningFederation) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    shown = await dialling.look(address)
    async with dialling.channel(shown) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        await refusal(health, grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_OFFERED")
        listed = PeerAdminServiceStub(channel).ListPeers(svc.ListPeersRequest())
        await refusal(listed, grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_OFFERED")


async def test_large_requests_are_refused(alice: RunningFederation) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    shown = await dialling.look(address)
    async with dialling.pinned(shown) as pairing:
        for kilobytes in (100, 1000):
            introduction = psvc.Introduction(bundle=SignedBundle(payload=bytes(kilobytes * 1024)))
            request = psvc.StartPairingRequest(introduction=introduction, commitment=bytes(32))
            await refusal(pairing.StartPairing(request), EXHAUSTED, "REQUEST_TOO_LARGE")


async def test_calls_are_counted_by_network_before_they_are_read(
    alice: RunningFederation, clock: ManualClock
) -> None:
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    shown = await dialling.look(address)
    async with dialling.pinned(shown) as pairing:
        for _ in range(5):
            await pairing.Introduce(psvc.IntroduceRequest())
        error = await refusal(pairing.Introduce(psvc.IntroduceRequest()), EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"rate_class": "STRANGER"}
        assert error.retry_after is not None
        clock.advance(timedelta(seconds=1))
        await pairing.Introduce(psvc.IntroduceRequest())
        await refusal(pairing.Introduce(psvc.IntroduceRequest()), EXHAUSTED, "RATE_LIMITED")


async def test_there_are_twenty_connections_and_no_more(alice: RunningFederation) -> None:
    """Those beyond are closed at once, and there is room again when others leave."""
    (address,) = tokens.decode(await alice.invite("bob")).addresses
    most = OPTIONS["grpc.max_allowed_incoming_connections"]
    held = [await asyncio.open_connection(*addresses.split(address)) for _ in range(most)]
    reader, extra = await asyncio.open_connection(*addresses.split(address))
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):  # closed all the same
            assert await reader.read() == b""
    for _, writer in (*held, (reader, extra)):
        writer.close()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert (await dialling.look(address)).address == address
                break
            except PeerUnreachable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("listen", "wanted", "expected"),
    [
        ("127.0.0.1", (), ("127.0.0.1",)),
        ("::1", (), ("::1",)),
        ("home.example.org", (), ("home.example.org",)),
        ("::", ("192.0.2.7", "home.example.org"), ("192.0.2.7", "home.example.org")),
    ],
)
def test_others_are_told_where_this_machine_is(
    listen: str, wanted: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert own_hosts(listen, wanted) == expected


def test_a_machine_finds_its_own_addresses() -> None:
    hosts = own_hosts("0.0.0.0", ())  # noqa: S104 - nothing is bound
    assert 1 <= len(hosts) <= 8


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("192.0.2.7:8471", True),
        ("[2001:DB8::7]:8471", True),
        ("home.example.org:1", True),
        ("home.example.org", False),
        ("home:0", False),
        ("home:65536", False),
        ("home:8_1", False),
        (":8471", False),
        ("-x:8471", False),
        ("[::1:8471", False),
        ("a b:8471", False),
        ("http://a:8471", False),
        ("x" * 300 + ":1", False),
    ],
)
def test_addresses_are_read_strictly(address: str, good: bool) -> None:
    assert bool(addresses.sound([address], 1)) is good


def test_the_ports_are_off_until_asked_for() -> None:
    from hopper_federation.settings import FederationSettings

    with environment(HOPPER_FEDERATION="", HOPPER_PEER_LISTEN="", HOPPER_PAIRING_LISTEN=""):
        off = FederationSettings()
    assert (off.peers_at, off.pairing_at) == (None, None)
    with environment(HOPPER_FEDERATION="1", HOPPER_PEER_LISTEN="", HOPPER_HOSTS="192.0.2.7, home"):
        on = FederationSettings()
    assert (on.peers_at, on.pairing_at) == ("0.0.0.0:8470", "0.0.0.0:8471")
    assert on.hosts == ("192.0.2.7", "home")
