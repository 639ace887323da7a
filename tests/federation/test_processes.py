"""Hoppers as processes of their own: killed at the worst moments, and read for what they must not write down."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.federation.v1.peer_pb2 import Peer
from hopper_federation import tokens, transcript
from hopper_testing.processes import HopperProcess
from tests.channels import separate_channel
from tests.federation.harness import LOOPBACK, PATIENCE, refusal
from tests.federation.relay import Relay
from tests.federation.test_joining import altered

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceAsyncStub

KILLED = -9


@pytest.fixture
def hoppers(place: Path) -> Iterator[tuple[HopperProcess, HopperProcess]]:
    """Alice, who dies once an invitation of hers is redeemed; and bob, who dies once he has the answer."""
    environment = {**LOOPBACK, "HOPPER_LOG_LEVEL": "debug"}
    dies_at = ("redeem.done=kill@1", "join.answered=kill@1")
    alice, bob = (
        HopperProcess(
            place / name, service="federation", environment={**environment, "HOPPER_FAILPOINTS": failpoint}
        )
        for name, failpoint in zip(("alice", "bob"), dies_at, strict=True)
    )
    with alice, bob:
        yield alice, bob


@asynccontextmanager
async def admin(hopper: HopperProcess) -> AsyncIterator["PeerAdminServiceAsyncStub"]:
    async with separate_channel(hopper.address) as channel:
        yield PeerAdminServiceStub(channel)


async def survives(hopper: HopperProcess) -> None:
    """Wait until it has died, and start it again, to live."""
    assert await asyncio.to_thread(hopper.wait) == KILLED
    del hopper.environment["HOPPER_FAILPOINTS"]
    await asyncio.to_thread(hopper.start)


async def peers(hopper: HopperProcess) -> list[Peer]:
    async with admin(hopper) as owner:
        return list((await owner.ListPeers(svc.ListPeersRequest(), timeout=PATIENCE)).peers)


async def test_whoever_dies_in_between_is_paired_by_saying_it_again(
    hoppers: tuple[HopperProcess, HopperProcess],
) -> None:
    alice, bob = hoppers
    async with Relay() as relay:
        async with admin(alice) as owner:
            made = await owner.CreateInvitation(svc.CreateInvitationRequest(peer_id="bob"), timeout=PATIENCE)
        (relay.target,) = tokens.decode(made.token).addresses
        join = svc.JoinRequest(token=altered(made.token, addresses=(relay.address,)), peer_id="alice")
        async with admin(bob) as owner:
            call = owner.Join(join, timeout=PATIENCE)
            await refusal(call, grpc.StatusCode.UNAVAILABLE, "PEER_UNREACHABLE")
        await survives(alice)
        assert [peer.name for peer in await peers(alice)] == ["peers/bob"]
        assert await peers(bob) == []
        async with admin(alice) as owner:  # its port is another one now
            opened = await owner.OpenPairing(svc.OpenPairingRequest(), timeout=PATIENCE)
        relay.target = opened.address
        async with admin(bob) as owner:
            with pytest.raises(grpc.aio.AioRpcError):
                await owner.Join(join, timeout=PATIENCE)
        await survives(bob)
        assert await peers(bob) == []
        async with admin(bob) as owner:
            there = (await owner.Join(join, timeout=PATIENCE)).peer
    (here,) = await peers(alice)
    assert list(here.words) == list(there.words)
    assert (here.alert, len(await peers(bob))) == ("", 1)
    for hopper in hoppers:
        assert await asyncio.to_thread(hopper.stop) == 0
        nowhere_in(hopper, made.token)


def nowhere_in(hopper: HopperProcess, token: str) -> None:
    """Neither the log nor anything in the data directory has a token in it, or what one is made of."""
    secret = tokens.decode(token).secret
    shapes = {
        token.removeprefix(tokens.PREFIX)[:40].encode(),
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    }
    key = transcript.key_of(secret)
    written = {hopper.log: hopper.log.read_bytes()}
    written |= {path: path.read_bytes() for path in hopper.data_dir.rglob("*") if path.is_file()}
    assert len(written) > 3
    assert [path for path, content in written.items() for shape in shapes if shape in content] == []
    # What is kept of it instead is in the database alone.
    assert key.hex().encode() not in written[hopper.log]
