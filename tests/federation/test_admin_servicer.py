"""What an owner sees of peers, and may change."""

import asyncio
import uuid
from collections.abc import AsyncGenerator

import grpc
import pytest

from hopper.federation.v1 import peer_admin_service_pb2 as svc
from tests.federation.harness import PATIENCE, RunningFederation, refusal, violations

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "PEER_NOT_FOUND")
EXISTS = (grpc.StatusCode.ALREADY_EXISTS, "PEER_EXISTS")


@pytest.fixture
async def paired(alice: RunningFederation, bob: RunningFederation) -> RunningFederation:
    """Alice, who knows bob."""
    await bob.join(await alice.invite("bob"), "alice")
    return alice


async def test_peers_are_listed_page_by_page(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    for hopper, name in ((bob, "bob"), (eve, "eve")):
        await hopper.join(await alice.invite(name), "alice")
    first = await alice.admin.ListPeers(svc.ListPeersRequest(page_size=1))
    assert [peer.name for peer in first.peers] == ["peers/bob"]
    second = await alice.admin.ListPeers(svc.ListPeersRequest(page_size=1, page_token=first.next_page_token))
    assert [peer.name for peer in second.peers] == ["peers/eve"]
    assert not second.next_page_token
    other = svc.ListPeersRequest(include_blocked=True, page_token=first.next_page_token)
    await refusal(alice.admin.ListPeers(other), grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_a_peer_is_renamed_once_for_a_request(paired: RunningFederation) -> None:
    request = svc.RenamePeerRequest(name="peers/bob", peer_id="robert", request_id=str(uuid.uuid4()))
    first = await paired.admin.RenamePeer(request)
    assert first.peer.name == "peers/robert"
    assert await paired.admin.RenamePeer(request) == first
    await refusal(paired.peer("bob"), *NOT_FOUND)
    again = svc.RenamePeerRequest(name="peers/bob", peer_id="x")
    await refusal(paired.admin.RenamePeer(again), *NOT_FOUND)
    assert set(await violations(paired.admin.RenamePeer(svc.RenamePeerRequest(name="bob")))) == {
        "name",
        "peer_id",
    }


async def test_a_name_that_is_taken_is_refused(paired: RunningFederation, eve: RunningFederation) -> None:
    await eve.join(await paired.invite("eve"), "alice")
    await refusal(paired.admin.RenamePeer(svc.RenamePeerRequest(name="peers/eve", peer_id="bob")), *EXISTS)
    assert {peer.name for peer in await paired.peers()} == {"peers/bob", "peers/eve"}


async def test_addresses_are_the_owners_to_say(paired: RunningFederation) -> None:
    before = await paired.peer("bob")
    request = svc.SetPeerAddressesRequest(
        name="peers/bob", addresses=["192.0.2.7:8470", "[2001:DB8::7]:8470", "192.0.2.7:8470"]
    )
    after = (await paired.admin.SetPeerAddresses(request)).peer
    assert list(after.addresses) == ["192.0.2.7:8470", "[2001:db8::7]:8470"]
    assert after.etag != before.etag
    wrong = svc.SetPeerAddressesRequest(name="peers/bob", addresses=["192.0.2.7:8470", "home", "x:0"])
    assert set(await violations(paired.admin.SetPeerAddresses(wrong))) == {"addresses[1]", "addresses[2]"}
    assert await paired.peer("bob") == after


async def changes(hopper: RunningFederation, after: int) -> AsyncGenerator[svc.WatchPeersResponse, None]:
    async for change in hopper.admin.WatchPeers(svc.WatchPeersRequest(after_version=after)):
        yield change


async def test_a_watch_begins_with_all_peers_and_goes_on_with_every_change(
    paired: RunningFederation, eve: RunningFederation
) -> None:
    async with asyncio.timeout(PATIENCE):
        watch = changes(paired, 0)
        first, complete = await anext(watch), await anext(watch)
        assert (first.peer.name, complete.snapshot_count) == ("peers/bob", 1)
        await eve.join(await paired.invite("eve"), "alice")
        joined = await anext(watch)
        assert joined.peer.name == "peers/eve"
        await paired.admin.RenamePeer(svc.RenamePeerRequest(name="peers/bob", peer_id="robert"))
        removed, renamed = await anext(watch), await anext(watch)
        assert (removed.removed, renamed.peer.name) == ("peers/bob", "peers/robert")
        assert removed.version < renamed.version
        await watch.aclose()
        later = changes(paired, complete.version)
        assert await anext(later) == joined
        await later.aclose()
