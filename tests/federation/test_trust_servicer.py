"""Granting, explaining, revoking and looking, through the socket of Hoppers that have paired as people pair them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import grpc.aio
import pytest

from hopper.common.v1 import options_pb2
from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper.federation.v1 import peer_service_pb2 as peer_svc
from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceStub
from hopper_common.clock import SystemClock
from hopper_common.identity.certificates import to_pem
from hopper_common.identity.store import IdentityStore
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import from_proto, to_proto
from hopper_federation.peer_guard import PATH
from hopper_testing.clock import ManualClock
from tests.federation.harness import PATIENCE, RunningFederation, refusal, violations
from tests.federation.test_discovery import needs_multicast

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.common.v1.audit_service_pb2_grpc import AuditServiceAsyncStub
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

    Listening = grpc.aio.UnaryStreamCall[peer_svc.ListenRequest, peer_svc.ListenResponse]

IN, OUT = svc.Crossing.DIRECTION_IN, svc.Crossing.DIRECTION_OUT
POLICY = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "in"
capabilities = ["docs.*", "code.review"]
max_priority = 60

[[rule]]
name = "no secrets"
effect = "deny"
direction = "both"
labels = ["customer"]
"""


class Pair(NamedTuple):
    """Two that have paired: alice is `alice` at bob's, bob is `bob` at alice's."""

    alice: RunningFederation
    bob: RunningFederation


@pytest.fixture
async def pair(alice: RunningFederation, bob: RunningFederation) -> Pair:
    await bob.join(await alice.invite("bob"), "alice")
    return Pair(alice, bob)


async def trust(hopper: RunningFederation, name: str, **fields: object) -> svc.SetTrustResponse:
    request = svc.SetTrustRequest(name=f"peers/{name}", **fields)  # type: ignore[arg-type]
    return await hopper.admin.SetTrust(request)


async def explained(hopper: RunningFederation, name: str, **crossing: object) -> svc.ExplainPolicyResponse:
    asked = svc.Crossing(**crossing)  # type: ignore[arg-type]
    return await hopper.admin.ExplainPolicy(svc.ExplainPolicyRequest(name=f"peers/{name}", crossing=asked))


@asynccontextmanager
async def calling(one: RunningFederation, other: RunningFederation) -> "AsyncIterator[PeerServiceAsyncStub]":
    """A plain channel of one's federation to the other's peer port."""
    own, theirs = [IdentityStore.open(each.directory / "identity", SystemClock()) for each in (one, other)]
    (address,) = (await one.peer(other.directory.name)).addresses
    leaf = own.leaf(PATH)
    credentials = grpc.ssl_channel_credentials(to_pem(theirs.roots()), leaf.key_pem, leaf.chain_pem)
    options = (
        ("grpc.ssl_target_name_override", f"federation.{theirs.trust_domain}"),
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield PeerServiceStub(channel)


async def status_of(hopper: RunningFederation, name: str) -> ppb.PeerStatus:
    return (await hopper.admin.GetPeer(svc.GetPeerRequest(name=f"peers/{name}"))).status


# Granting.


async def test_a_policy_makes_a_peer_trusted_and_is_kept_with_every_earlier_one(pair: Pair) -> None:
    granted = await trust(pair.alice, "bob", policy=POLICY)
    assert granted.peer.level == options_pb2.TRUST_LEVEL_TRUSTED
    assert granted.peer.policy_version == 1
    assert granted.changes[0] == "level: known -> trusted"
    assert any(line.startswith("+ reviews: allow in docs.*, code.review") for line in granted.changes)
    await trust(pair.alice, "bob", policy=POLICY.replace("60", "70"))
    second = await pair.alice.admin.GetPeerPolicy(svc.GetPeerPolicyRequest(name="peers/bob"))
    assert (second.version, second.set_by) == (2, "owner")
    assert "70" in second.policy
    assert second.signature
    first = await pair.alice.admin.GetPeerPolicy(svc.GetPeerPolicyRequest(name="peers/bob", version=1))
    assert first.policy == POLICY
    none = await pair.alice.admin.GetPeerPolicy(svc.GetPeerPolicyRequest(name="peers/bob", version=3))
    assert (none.version, none.policy) == (0, "")


async def test_a_dry_run_says_what_would_change_and_changes_nothing(pair: Pair) -> None:
    would = await trust(pair.alice, "bob", policy=POLICY, dry_run=True)
    assert would.peer.level == options_pb2.TRUST_LEVEL_TRUSTED
    assert would.changes
    assert (await pair.alice.peer("bob")).level == options_pb2.TRUST_LEVEL_KNOWN
    assert not (await pair.alice.admin.GetPeerPolicy(svc.GetPeerPolicyRequest(name="peers/bob"))).version


async def test_a_repeated_grant_is_one_grant(pair: Pair) -> None:
    once = svc.SetTrustRequest(
        name="peers/bob", policy=POLICY, request_id="2f6c0c0e-6c1f-4f0e-9d5c-3f1f8f3d7a10"
    )
    first, second = await pair.alice.admin.SetTrust(once), await pair.alice.admin.SetTrust(once)
    assert first == second
    assert first.peer.policy_version == 1


async def test_what_a_grant_lacks_is_said(pair: Pair) -> None:
    said = await violations(trust(pair.alice, "bob"))
    assert "level" in said
    wrong_state = (grpc.StatusCode.FAILED_PRECONDITION, "PEER_WRONG_STATE")
    await refusal(trust(pair.alice, "bob", level=options_pb2.TRUST_LEVEL_TRUSTED), *wrong_state)
    await trust(pair.alice, "bob", policy=POLICY)
    await refusal(trust(pair.alice, "bob", level=options_pb2.TRUST_LEVEL_VERIFIED), *wrong_state)
    verified = await trust(pair.alice, "bob", compared="by phone")
    assert verified.peer.level == options_pb2.TRUST_LEVEL_VERIFIED
    assert verified.peer.verified_by == "owner, by phone"
    await refusal(
        trust(pair.alice, "bob", policy="level = 'known'"), grpc.StatusCode.INVALID_ARGUMENT, "POLICY_INVALID"
    )
    await refusal(trust(pair.alice, "bob", compared="x", etag="0"), grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    await refusal(trust(pair.alice, "nobody", policy=POLICY), grpc.StatusCode.NOT_FOUND, "PEER_NOT_FOUND")


# Explaining.


async def test_the_rule_that_decides_is_named(pair: Pair) -> None:
    refused = await explained(pair.alice, "bob", direction=OUT, capabilities=["docs.review"])
    assert (refused.allowed, refused.reason) == (False, "TRUST_LEVEL_TOO_LOW")
    held = await explained(pair.alice, "bob", direction=IN, capabilities=["anything"])
    assert (held.allowed, held.quarantined) == (True, True)
    await trust(pair.alice, "bob", policy=POLICY)
    fits = await explained(pair.alice, "bob", direction=IN, capabilities=["docs.review"], priority=50)
    assert (fits.allowed, fits.quarantined, fits.rule) == (True, False, "reviews")
    assert fits.steps[-1] == "allow reviews: fits"
    urgent = await explained(pair.alice, "bob", direction=IN, capabilities=["docs.review"], priority=90)
    assert (urgent.allowed, urgent.reason) == (False, "QUOTA")
    assert urgent.rule == "reviews: priority 90 is above 60"
    labelled = await explained(pair.alice, "bob", direction=IN, labels=["customer=acme"])
    assert (labelled.reason, labelled.rule) == ("LABEL_DENIED", "no secrets: label customer=acme")
    assert (await explained(pair.alice, "bob", direction=OUT)).reason == "CAPABILITY_DENIED"
    said = await violations(explained(pair.alice, "bob"))
    assert "crossing.direction" in said


async def test_without_a_router_a_task_cannot_be_explained(pair: Pair) -> None:
    request = svc.ExplainPolicyRequest(
        name="peers/bob",
        task="instances/global/tasks/01h00000000000000000000000",
        crossing=svc.Crossing(direction=IN),
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pair.alice.admin.ExplainPolicy(request, timeout=PATIENCE)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)


# What peers see.


async def test_two_that_paired_stay_in_touch_and_say_so(pair: Pair) -> None:
    status = await status_of(pair.alice, "bob")
    async with asyncio.timeout(PATIENCE):
        # The first comes when a hello has been answered, and the second when the answer has been read.
        while not (status.HasField("last_reached") and status.HasField("clock_offset")):
            await asyncio.sleep(0.02)
            status = await status_of(pair.alice, "bob")
    assert status.protocol_version == "1.0"
    assert status.last_failure == ""


# Revoking.


async def opened(stub: "PeerServiceAsyncStub") -> "Listening":
    """A stream of it that has begun."""
    stream = stub.Listen(peer_svc.ListenRequest(known_sequence=1))
    assert await stream.read() != grpc.aio.EOF
    return stream


async def to_its_end(stream: "Listening") -> Mapping[str, str]:
    """Read until the stream is ended with a reason; returns it, with its metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await _all_of(stream)
    error = from_rpc_error(ended.value)
    return {"reason": error.reason, **error.metadata}


async def _all_of(stream: "Listening") -> None:
    while await stream.read() != grpc.aio.EOF:
        pass


async def capabilities(stub: "PeerServiceAsyncStub") -> peer_svc.GetCapabilitiesResponse:
    return await stub.GetCapabilities(peer_svc.GetCapabilitiesRequest(), timeout=PATIENCE)


async def test_a_revocation_ends_what_is_under_way_and_says_how_much(pair: Pair) -> None:
    async with calling(pair.bob, pair.alice) as stub:
        streams = [await opened(stub) for _ in range(3)]
        revoked = await pair.alice.admin.RevokePeer(svc.RevokePeerRequest(name="peers/bob"))
        for stream in streams:
            assert await to_its_end(stream) == {
                "reason": "PEER_REVOKED",
                "mode": "NOW",
                "install_id": revoked.peer.install_id,
            }
        await refusal(capabilities(stub), grpc.StatusCode.PERMISSION_DENIED, "PEER_REVOKED")
    assert revoked.ended_calls >= 3  # and what bob's own contact had open
    assert revoked.peer.level == options_pb2.TRUST_LEVEL_BLOCKED
    assert revoked.peer.revocation == ppb.Peer.REVOCATION_NOW
    assert await changes_of_trust(pair.alice, 2) == ["level KNOWN -> BLOCKED", "revoked: NOW"]


async def test_a_drained_peer_may_finish_and_then_not(pair: Pair, clock: ManualClock) -> None:
    async def drain(time: timedelta) -> svc.RevokePeerResponse:
        request = svc.RevokePeerRequest(
            name="peers/bob", mode=ppb.Peer.REVOCATION_DRAIN, drain=to_proto(time)
        )
        return await pair.alice.admin.RevokePeer(request)

    async with calling(pair.bob, pair.alice) as stub:
        stream = await opened(stub)
        drained = await drain(timedelta(hours=1))
        assert drained.ended_calls == 0
        assert from_proto(drained.peer.drain_time) == clock.now() + timedelta(hours=1)
        await capabilities(stub)
        assert not stream.done()
        assert (await drain(timedelta())).ended_calls >= 1
        await refusal(capabilities(stub), grpc.StatusCode.PERMISSION_DENIED, "PEER_REVOKED")
        assert (await to_its_end(stream))["mode"] == "DRAIN"


async def test_a_compromised_peer_is_no_longer_heard_at_all_and_since_when_is_kept(
    pair: Pair, clock: ManualClock
) -> None:
    since = clock.now() - timedelta(days=3)
    async with calling(pair.bob, pair.alice) as stub:
        await capabilities(stub)
        revoked = await pair.alice.admin.RevokePeer(
            svc.RevokePeerRequest(
                name="peers/bob", mode=ppb.Peer.REVOCATION_COMPROMISED, since_time=to_proto(since)
            )
        )
        assert from_proto(revoked.peer.compromise_time) == since
    async with calling(pair.bob, pair.alice) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await capabilities(stub)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # not even a handshake
    await pair.alice.restart()
    assert from_proto((await pair.alice.peer("bob")).compromise_time) == since


async def test_a_milder_end_than_before_changes_nothing(pair: Pair) -> None:
    compromised = svc.RevokePeerRequest(name="peers/bob", mode=ppb.Peer.REVOCATION_COMPROMISED)
    ended = (await pair.alice.admin.RevokePeer(compromised)).peer
    for mode in (ppb.Peer.REVOCATION_NOW, ppb.Peer.REVOCATION_DRAIN, ppb.Peer.REVOCATION_COMPROMISED):
        again = await pair.alice.admin.RevokePeer(svc.RevokePeerRequest(name="peers/bob", mode=mode))
        assert again.peer == ended


async def test_only_what_goes_with_a_mode_is_taken(pair: Pair) -> None:
    asked = svc.RevokePeerRequest(
        name="peers/bob", drain=to_proto(timedelta(hours=1)), since_time=to_proto(datetime.now(UTC))
    )
    assert set(await violations(pair.alice.admin.RevokePeer(asked))) == {"drain", "since_time"}


async def test_a_blocked_peer_is_not_trusted_again_but_paired_again(pair: Pair) -> None:
    blocked = await trust(pair.alice, "bob", level=options_pb2.TRUST_LEVEL_BLOCKED)
    assert blocked.changes == ["level: known -> blocked"]
    await refusal(
        trust(pair.alice, "bob", policy=POLICY), grpc.StatusCode.FAILED_PRECONDITION, "PEER_WRONG_STATE"
    )
    await pair.bob.join(await pair.alice.invite("bob"), "alice")
    assert (await pair.alice.peer("bob")).level == options_pb2.TRUST_LEVEL_KNOWN


# Looking.


async def test_what_is_wrong_is_said_by_the_one_who_asks(pair: Pair) -> None:
    whole = await pair.alice.admin.CheckPeer(svc.CheckPeerRequest(name="peers/bob"), timeout=PATIENCE)
    assert [(check.title, check.outcome) for check in whole.checks][-1] == (
        "policy",
        svc.Check.OUTCOME_WARNING,
    )
    assert all(check.outcome == svc.Check.OUTCOME_OK for check in whole.checks[:-1]), whole
    await pair.bob.admin.RevokePeer(svc.RevokePeerRequest(name="peers/alice"))
    revoked = await pair.alice.admin.CheckPeer(svc.CheckPeerRequest(name="peers/bob"), timeout=PATIENCE)
    assert (revoked.checks[-1].title, revoked.checks[-1].reason) == ("pairing", "PEER_REVOKED")
    assert revoked.checks[-1].remedy
    assert "name" in await violations(pair.alice.admin.CheckPeer(svc.CheckPeerRequest()))
    await refusal(
        pair.alice.admin.CheckPeer(svc.CheckPeerRequest(name="peers/nobody")),
        grpc.StatusCode.NOT_FOUND,
        "PEER_NOT_FOUND",
    )


async def test_written_down_peers_are_found_where_nothing_else_is(place: Path, clock: ManualClock) -> None:
    hopper = RunningFederation(place / "dora", clock, HOPPER_STATIC_PEERS="192.0.2.7:8470, [2001:db8::7]:1")
    await hopper.start()
    try:
        found = await hopper.admin.Discover(svc.DiscoverRequest(wait=to_proto(timedelta())))
    finally:
        await hopper.close()
    assert [sighting.peer_address for sighting in found.sightings] == ["[2001:db8::7]:1", "192.0.2.7:8470"]
    assert {sighting.source for sighting in found.sightings} == {ppb.Sighting.SOURCE_STATIC}


@needs_multicast
async def test_a_hopper_that_announces_itself_is_found(place: Path, clock: ManualClock) -> None:
    on_loopback = {"HOPPER_DISCOVERY_INTERFACES": "127.0.0.1"}
    dora = RunningFederation(place / "dora", clock, HOPPER_DISCOVERY="1", **on_loopback)
    evan = RunningFederation(place / "evan", clock, **on_loopback)
    await dora.start()
    await evan.start()
    try:
        opened_at = (await dora.admin.OpenPairing(svc.OpenPairingRequest())).address
        seen: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while opened_at not in seen:
                request = svc.DiscoverRequest(wait=to_proto(timedelta(seconds=1)))
                found = await evan.admin.Discover(request, timeout=PATIENCE)
                seen = [sighting.pairing_address for sighting in found.sightings]
    finally:
        await evan.close()
        await dora.close()


# What is written down.


async def changes_of_trust(hopper: RunningFederation, least: int) -> list[str]:
    """What the audit log has about peers' levels and ends, the oldest first, once so much is written."""
    async with open_channel(f"unix:{hopper.directory / 'hopper.sock'}") as channel:
        audit: AuditServiceAsyncStub = AuditServiceStub(channel)
        request = ListAuditRecordsRequest(method_prefix="/hopper.federation.v1.Trust/")
        async with asyncio.timeout(PATIENCE):
            while True:
                records = (await audit.ListAuditRecords(request)).records
                changes = [record.rule for record in reversed(records) if "new peer" not in record.rule]
                if len(changes) >= least:
                    return changes
                await asyncio.sleep(0.02)


async def test_every_change_of_trust_is_in_the_audit_log(pair: Pair) -> None:
    await trust(pair.alice, "bob", policy=POLICY)
    assert await changes_of_trust(pair.alice, 2) == ["level KNOWN -> TRUSTED", "policy version 0 -> 1"]
