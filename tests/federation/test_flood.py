"""What a peer may put into a whole Hopper, and no more: floods of offers, quotas, and what no rule covers."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import pytest_asyncio

from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_client import TaskContext
from hopper_common.border.grants import PENDING_OF_KNOWN
from hopper_common.ids import Ids
from hopper_federation.delegation.crossings_journal import TURNED_AWAY
from hopper_federation.joining import Joiner
from hopper_testing.processes import temporary_directory
from tests.federation.handing import sealed_to
from tests.federation.harness import PATIENCE
from tests.federation.hoppers import WholeHopper, found
from tests.federation.neighbours import Neighbour, neighbour

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY: Final = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "in"
capabilities = ["docs.*"]
in_flight = 5
max_bytes = "4 KiB"

[[rule]]
name = "nothing about health"
effect = "deny"
direction = "both"
labels = ["health"]
"""

FLOOD: Final = 1_000
AT_ONCE: Final = 50
IDS: Final = Ids()

REVIEW: Final = pb.TaskBody(title="review", required_capabilities=["docs.review"], priority=50)


class Stage(NamedTuple):
    """A Hopper at work, and peers of it that say whatever a test wants: only known, or trusted."""

    work: WholeHopper
    known: Neighbour
    trusted: Neighbour
    another: Neighbour


async def never_ending(_: TaskContext) -> None:
    """What is taken stays open."""
    await asyncio.Event().wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    with temporary_directory() as directory:
        work = WholeHopper(directory / "work")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(work.running())
            await work.project("reviews", "docs.review")
            await work.work("reviews", never_ending)
            await work.can_place("docs.review")
            peers = []
            for name in ("known", "trusted", "another"):
                peer = await stack.enter_async_context(neighbour(directory / name))
                await Joiner(peer.federation, peer.introductions).join(await work.invite(name), "work")
                await stack.enter_async_context(peer.running(contact=False))
                peers.append(peer)
            for name in ("trusted", "another"):
                await work.trust(name, POLICY)
            yield Stage(work, *peers)


def offers_of(peer: Neighbour, bodies: Sequence[pb.TaskBody]) -> list[pb.Message]:
    """An offer of each, signed as it should be."""
    (work,) = peer.snapshots.current.peers
    messages = []
    for body in bodies:
        message, delegation = IDS.new(datetime.now(UTC)), IDS.new(datetime.now(UTC))
        offer = sealed_to(peer, work, delegation, body)
        messages.append(pb.Message(id=message, delegation=delegation, epoch=1, sequence=1, offer=offer))
    return messages


def _deliver(
    request: svc.DeliverRequest,
) -> "Callable[[PeerServiceAsyncStub], Awaitable[svc.DeliverResponse]]":
    return lambda stub: stub.Deliver(request, timeout=PATIENCE)


async def delivered(peer: Neighbour, messages: Sequence[pb.Message]) -> list[pb.Receipt]:
    """What all of them are answered, a request after the other."""
    (work,) = peer.snapshots.current.peers
    link, receipts = peer.peering.links.to(work), list[pb.Receipt]()
    for first in range(0, len(messages), AT_ONCE):
        request = svc.DeliverRequest(incarnation=1, messages=messages[first : first + AT_ONCE])
        receipts += (await link.call(_deliver(request))).receipts
    return receipts


async def brought(work: WholeHopper, peer: Neighbour) -> "list[pb.DelegationState.ValueType]":
    """Where the hand-overs of a peer are."""
    return [each.state for each in await work.hand_overs() if each.peer == f"peers/{peer.name}"]


def remembered(work: WholeHopper, peer: Neighbour) -> int:
    """How many rows the database has of what a peer has said."""
    with closing(sqlite3.connect(f"file:{work.directory}/federation.db?mode=ro", uri=True)) as rows:
        return sum(
            rows.execute(f"SELECT count(*) FROM {table} WHERE peer = ?", (peer.install_id,)).fetchone()[0]
            for table in ("inbox", "delegations", "outbox")
        )


async def test_f46_a_flood_of_offers_is_answered_and_not_kept_and_disturbs_nobody(stage: Stage) -> None:
    work = stage.work
    flood = asyncio.ensure_future(delivered(stage.trusted, offers_of(stage.trusted, [REVIEW] * FLOOD)))
    mine = [await work.submit("before it", "docs.review")]
    while not flood.done():
        mine.append(await work.submit("meanwhile", "docs.review"))
        assert (await work.task(mine[-1])).project == "projects/reviews"
    receipts = await flood
    taken, refused = receipts[:5], receipts[5:]
    assert {receipt.reason for receipt in taken} == {""}
    assert {receipt.reason for receipt in refused} == {"QUOTA"}
    assert all(receipt.HasField("retry_after") for receipt in refused)
    too_fast = ["offers a second" in receipt.detail for receipt in refused]
    assert not any(too_fast[:45])  # the policy says no
    assert any(too_fast[45:])  # they were not even opened
    assert set(await brought(work, stage.trusted)) <= {
        pb.DELEGATION_STATE_ACCEPTED,
        pb.DELEGATION_STATE_RUNNING,
    }
    assert len(await brought(work, stage.trusted)) == 5
    assert len(await found(lambda: turned_away(work, stage.trusted, {("QUOTA", "reviews")}))) < FLOOD / 2


async def test_f46_a_known_peer_fills_no_more_than_its_quarantine(stage: Stage) -> None:
    receipts = await delivered(stage.known, offers_of(stage.known, [REVIEW] * (PENDING_OF_KNOWN + 30)))
    waiting, refused = receipts[:PENDING_OF_KNOWN], receipts[PENDING_OF_KNOWN:]
    assert {receipt.state for receipt in waiting} == {pb.DELEGATION_STATE_QUARANTINED}
    assert {receipt.reason for receipt in refused} == {"QUOTA"}
    assert all(receipt.HasField("retry_after") for receipt in refused)
    states = await brought(stage.work, stage.known)
    assert states == [pb.DELEGATION_STATE_QUARANTINED] * PENDING_OF_KNOWN


async def turned_away(
    work: WholeHopper, peer: Neighbour, why: set[tuple[str, str]]
) -> list[tuple[str, str]] | None:
    """What the audit log says of offers that were refused, by which reason and rule, once *why* is among it."""
    request = ListAuditRecordsRequest(method_prefix=TURNED_AWAY, page_size=1_000)
    records = (await work.client.audit.ListAuditRecords(request)).records
    told = [(each.reason, each.rule) for each in records if f"peers/{peer.name}" in each.resources]
    return told if why <= set(told) else None


OUTSIDE: Final = {
    "CAPABILITY_DENIED": pb.TaskBody(title="outside", required_capabilities=["code.run"]),
    "QUOTA": pb.TaskBody(title="outside", required_capabilities=["docs.review"], payload=bytes(5_000)),
    "LABEL_DENIED": pb.TaskBody(
        title="outside", required_capabilities=["docs.review"], labels={"health": "knee"}
    ),
}


async def test_f22_what_no_rule_covers_is_refused_and_leaves_nothing_but_its_answer(stage: Stage) -> None:
    work, peer = stage.work, stage.another
    messages = offers_of(peer, list(OUTSIDE.values()))
    receipts = await delivered(peer, messages)
    assert [receipt.reason for receipt in receipts] == list(OUTSIDE)
    assert not any(receipt.HasField("retry_after") or receipt.state for receipt in receipts)
    assert await delivered(peer, messages) == receipts
    assert await brought(work, peer) == []
    assert remembered(work, peer) == len(messages)  # the answers, so that they stay the same
    request = ListAuditRecordsRequest(method_prefix="/hopper.federation.v1.PeerService/Deliver")
    audited = (await work.client.audit.ListAuditRecords(request)).records
    deciding = ["reviews", "reviews", "nothing about health"]
    why = set(zip(OUTSIDE, deciding, strict=True))
    assert await found(lambda: turned_away(work, peer, why))
    assert any(peer.install_id in record.principal for record in audited)
