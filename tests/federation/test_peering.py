"""Peers over real TLS: who gets in, who is told what, who stays in touch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.identity.certificates import to_pem
from hopper_common.rpc.errors import from_rpc_error
from hopper_federation.model import Revocation
from hopper_federation.peering import open_peering
from hopper_federation.trust import Alert, Level
from hopper_testing.certificates import Authority, attacks
from tests.federation.neighbours import PATIENCE, Neighbour, neighbour, until

Trio = tuple[Neighbour, Neighbour, Neighbour]


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    """Three Hoppers; nobody knows anybody."""
    async with AsyncExitStack() as stack:
        first, second, third = [
            await stack.enter_async_context(neighbour(tmp_path / name)) for name in ("alice", "bob", "carol")
        ]
        yield first, second, third


async def answer(stub: object) -> svc.GetCapabilitiesResponse:
    call = stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE)  # type: ignore[attr-defined]
    response: svc.GetCapabilitiesResponse = await call
    return response


async def refused(stub: object) -> tuple[grpc.StatusCode, str]:
    """Code and reason; a handshake that was refused has no reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer(stub)
    code = caught.value.code()
    if code is grpc.StatusCode.UNAVAILABLE and not caught.value.trailing_metadata():
        return code, ""
    return code, from_rpc_error(caught.value).reason


async def to_its_end(stream: object) -> None:
    while await stream.read() != grpc.aio.EOF:  # type: ignore[attr-defined]
        pass


async def test_a_peer_gets_in_and_a_stranger_does_not(trio: Trio) -> None:
    alice, bob, carol = trio
    async with alice.running(contact=False):
        await alice.knows(bob)
        async with bob.calling(alice) as stub:
            assert (await answer(stub)).capabilities == ["docs.review"]
        async with carol.calling(alice) as stub:
            assert await refused(stub) == (grpc.StatusCode.UNAVAILABLE, "")


async def test_without_a_peer_nobody_gets_in(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(contact=False), bob.calling(alice) as stub:
        assert await refused(stub) == (grpc.StatusCode.UNAVAILABLE, "")


# What a handshake with constrained anchors lets through is caught at the call, and none of it is let in.
AT_THE_CALL = {"agent": "PATH_DENIED"}


async def test_no_certificate_that_a_paired_attacker_issues_passes_for_another(trio: Trio) -> None:
    alice, bob, carol = trio
    root = next(iter(bob.identity._view.keys.roots.values()))
    attacker = Authority(root, bob.identity.trust_domain, datetime.now(UTC))
    victim = carol.identity.roots()[0]
    tried = attacks(attacker, victim, carol.identity.trust_domain)
    async with alice.running(contact=False):
        await alice.knows(bob)
        await alice.knows(carol)
        for kind, leaf in tried.items():
            async with bob.calling(alice, leaf) as stub:
                code, reason = await refused(stub)
            assert code in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
            ), kind
            assert reason == AT_THE_CALL.get(kind, reason), kind
        async with carol.calling(alice) as stub:
            await answer(stub)  # and who was to be passed for is not shut out


async def test_a_revocation_ends_calls_and_streams_within_a_second(trio: Trio) -> None:
    alice, bob, carol = trio
    async with alice.running(contact=False):
        await alice.knows(bob)
        await alice.knows(carol)
        async with bob.calling(alice) as stub, carol.calling(alice) as other:
            stream, untouched = stub.Listen(svc.ListenRequest()), other.Listen(svc.ListenRequest())
            for opened in (stream, untouched):
                assert await opened.read() != grpc.aio.EOF
            now = alice.clock.now()
            await alice.change(
                bob,
                lambda peer: replace(
                    peer, level=Level.BLOCKED, revocation=Revocation.NOW, revoke_time=now, revision=9
                ),
            )
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await to_its_end(stream)
            error = from_rpc_error(ended.value)
            assert (error.reason, error.metadata["mode"]) == ("PEER_REVOKED", "NOW")
            assert await refused(stub) == (grpc.StatusCode.PERMISSION_DENIED, "PEER_REVOKED")
            await answer(other)
            assert not untouched.done()


async def test_a_compromised_peer_does_not_even_shake_hands(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(contact=False):
        await alice.knows(bob)
        async with bob.calling(alice) as stub:
            await answer(stub)
        await alice.change(
            bob, lambda peer: replace(peer, level=Level.BLOCKED, revocation=Revocation.COMPROMISED)
        )
        await until(lambda: not alice.peering.anchors.pool)
        async with bob.calling(alice) as stub:
            assert await refused(stub) == (grpc.StatusCode.UNAVAILABLE, "")


async def test_a_refusal_is_written_down(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(contact=False):
        await alice.knows(bob, level=Level.BLOCKED)
        async with bob.calling(alice) as stub:
            assert await refused(stub) == (grpc.StatusCode.PERMISSION_DENIED, "PEER_REVOKED")
    (decision,) = alice.audit.decisions
    assert (decision.allowed, decision.reason) == (False, "PEER_REVOKED")
    assert decision.method == "/hopper.federation.v1.PeerService/GetCapabilities"


async def test_nobody_is_let_in_when_trust_cannot_be_looked_up(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(contact=False):
        await alice.knows(bob)
        async with bob.calling(alice) as stub:
            await answer(stub)
            async with alice.keeper._looking:  # the store is asked by nobody until then
                stale = replace(alice.snapshots.current, confirmed=alice.clock.monotonic() - 31)
                alice.snapshots.current = stale
                assert await refused(stub) == (grpc.StatusCode.UNAVAILABLE, "TRUST_STORE_STALE")


def in_touch(one: Neighbour, other: Neighbour) -> bool:
    """Whether the last call has succeeded, and who answered has been met: what it said is read after that."""
    status = one.status(other)
    return status.reached is not None and status.offset is not None and not status.failure


async def test_two_who_know_each_other_stay_in_touch(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(), bob.running():
        await alice.knows(bob)
        await bob.knows(alice)
        for one, other in ((alice, bob), (bob, alice)):
            await until(partial(in_touch, one, other))
            status = one.status(other)
            assert status.heard is not None
            assert status.version == "1.0"
            assert status.offset is not None
            assert abs(status.offset) < timedelta(minutes=1)


async def test_a_peer_that_was_away_is_found_again_by_itself(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running():
        async with bob.running():
            await alice.knows(bob)
            await bob.knows(alice)
            await until(lambda: alice.status(bob).reached is not None)
        await until(lambda: alice.status(bob).failure == "PEER_UNREACHABLE")
        async with bob.running():
            await until(lambda: alice.status(bob).failure == "")


async def test_a_peer_with_a_wrong_address_first_is_found_at_the_second(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(), bob.running():
        await bob.knows(alice)
        await alice.knows(bob)
        await alice.change(bob, lambda peer: peer.at(("127.0.0.1:9", bob.address)))
        await until(lambda: alice.status(bob).reached is not None)


async def test_who_answers_at_a_peers_address_must_be_that_peer(trio: Trio) -> None:
    alice, bob, carol = trio
    async with alice.running(), carol.running():
        await carol.knows(alice)
        await alice.knows(bob, address=carol.address)
        await until(lambda: alice.status(bob).failure == "PEER_UNREACHABLE")
        assert alice.status(bob).reached is None


async def test_new_keys_reach_a_peer_that_listens(trio: Trio) -> None:
    alice, bob, _ = trio
    async with alice.running(), bob.running():
        await alice.knows(bob)
        await bob.knows(alice)
        await until(lambda: alice.status(bob).reached is not None and bob.status(alice).reached is not None)
        bob.identity.prepare()
        sequence = bob.identity.trust_bundle().sequence
        assert sequence > 1
        await until(lambda: alice.snapshots.current.peers[bob.install_id].bundle_sequence == sequence)
        stored = await alice.federation.read(lambda store: store.bundle(bob.install_id))
        assert stored == bob.identity.trust_bundle()


async def test_keys_that_do_not_go_on_from_the_known_ones_cost_trust(trio: Trio) -> None:
    alice, bob, carol = trio
    async with alice.running(contact=False):
        await alice.knows(bob, level=Level.TRUSTED)
        async with bob.calling(alice) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.PushBundle(svc.PushBundleRequest(bundle=carol.identity.bundle()), timeout=PATIENCE)
            assert from_rpc_error(caught.value).reason == "SIGNATURE_INVALID"
            await until(lambda: alice.snapshots.current.peers[bob.install_id].level is Level.KNOWN)
    assert (await alice.peer(bob)).alert == Alert.SIGNATURE_FAILED


async def test_impersonation_blocks_the_impersonator(trio: Trio) -> None:
    """Where the handshake does not see it: an own leaf for the connection, whose root then signs in another's name."""
    alice, bob, carol = trio
    async with alice.running(contact=False):
        await alice.knows(bob, level=Level.TRUSTED)
        await alice.knows(carol)
        root = next(iter(bob.identity._view.keys.roots.values()))
        forged = Authority(root, bob.identity.trust_domain, datetime.now(UTC)).leaf(
            uris=[f"spiffe://{carol.identity.trust_domain}/svc/federation"]
        )
        # The constraint is lifted, as if the anchors had failed: the guard alone has to see it.
        alice.peering.anchors.pool = to_pem([*bob.identity.roots(), *carol.identity.roots()])
        async with bob.calling(alice, forged) as stub:
            assert await refused(stub) == (grpc.StatusCode.PERMISSION_DENIED, "ISSUER_MISMATCH")
        await until(lambda: alice.snapshots.current.peers[bob.install_id].level is Level.BLOCKED)
        assert alice.snapshots.current.peers[carol.install_id].level is Level.KNOWN


async def test_a_short_leaf_is_renewed_and_no_call_fails(tmp_path: Path) -> None:
    # Renewed half through its life: so long may the process be held up, and no longer.
    short = timedelta(seconds=12)
    async with (
        neighbour(tmp_path / "alice", leaf_lifetime=short) as alice,
        neighbour(tmp_path / "bob", leaf_lifetime=short) as bob,
        alice.running(),
        bob.running(),
    ):
        await alice.knows(bob)
        await bob.knows(alice)
        await until(lambda: alice.status(bob).reached is not None)
        link, first = alice.peering.links.to(bob.install_id), bob.identity.leaf("/svc/federation").not_after
        while alice.clock.now() < first + timedelta(seconds=1):
            await link.call(lambda stub: stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE))
            await asyncio.sleep(0.1)


async def test_where_federation_is_off_nobody_is_listened_for_and_nobody_called(trio: Trio) -> None:
    alice, bob, _ = trio
    await alice.knows(bob, address="127.0.0.1:9")
    async with open_peering(
        alice.federation,
        alice.introductions,
        alice.snapshots,
        alice.clock,
        alice.audit,
        listen=None,
        answers=alice.answers,
        stopping=alice.stopping,
    ) as peering:
        assert (peering.port, peering.guard) == (0, None)
        assert len(peering.tasks) == 1  # writing alarms down
        peering.end_calls()
        assert peering.ended_calls(bob.install_id) == 0
