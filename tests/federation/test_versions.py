"""Peers that are older or newer: what the other does not know is refused by its name, and nothing is lost by it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import update

from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.errors import UnknownField
from hopper_common.rpc.errors import MethodNotOffered
from hopper_federation.delegation.chain import Kind, sign
from hopper_federation.delegation.model import Role, State, TaskNews
from hopper_federation.delegation.tables import OUTBOX
from tests.federation.handing import comes_to, ends, found, offer, trusts
from tests.federation.harness import PATIENCE
from tests.federation.neighbours import Neighbour, neighbour, until_true

NEWER = b"\x7a\x03new"
"""A field 15, of which no Hopper knows yet: of a message, it is a kind of its own."""
NEWER_STATE = 99


class Two(NamedTuple):
    """Two that trust each other, and do not listen."""

    alice: Neighbour
    bob: Neighbour


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        async with alice.running(contact=False), bob.running(contact=False):  # which ports they have
            await trusts(alice, bob)
            await trusts(bob, alice)
        yield Two(alice, bob)


async def said_more(one: Neighbour, message: str, body: bytes) -> None:
    """Let a message of the outbox say what only a newer Hopper says."""
    spoilt = update(OUTBOX).where(OUTBOX.c.id == message).values(body=body)
    assert await one.federation.write(lambda store: store.conn.execute(spoilt).rowcount) == 1


async def outbox(one: Neighbour, other: Neighbour) -> list[tuple[str, bytes]]:
    batch = await one.desks.read(
        lambda rows: rows.batch(other.install_id, one.desks.steady(), limit=50, most_bytes=1 << 20)
    )
    return [(each.id, each.body) for each in batch]


def not_offered(*_: object) -> object:
    raise MethodNotOffered


async def test_a_message_with_a_newer_field_is_refused_by_itself(two: Two) -> None:
    alice, bob = two
    made = await offer(alice, bob, 3)
    (_, (second, body), _) = await outbox(alice, bob)
    await said_more(alice, second, body + NEWER)
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        await comes_to(alice, Role.OUT, [made[0], made[2]], State.ACCEPTED)
        await comes_to(alice, Role.OUT, [made[1]], State.REJECTED)  # and so it goes back to the router
    assert (await found(alice, Role.OUT, made[1])).reason == "UNKNOWN_FIELD"


async def test_progress_that_an_older_hopper_cannot_read_stops_nobody(two: Two) -> None:
    alice, bob = two
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        (made,) = await offer(alice, bob)
        await comes_to(alice, Role.OUT, [made], State.ACCEPTED)
        await bob.desks.write(lambda sitting: sitting.desk.news(made, TaskNews(running=True)))
        ((message, body),) = await outbox(bob, alice)
        newer = pb.Message.FromString(body)
        newer.update.MergeFromString(NEWER)
        await said_more(bob, message, newer.SerializeToString())
    async with bob.running(contact=False, sending=True), alice.running(contact=False):
        await until_true(lambda: nothing_to_say(bob, alice))
        assert (await found(bob, Role.IN, made)).state is State.RUNNING
        await ends(bob, made)
        await comes_to(alice, Role.OUT, [made], State.COMPLETED)
        await until_true(lambda: nothing_to_say(bob, alice))
    assert (await found(bob, Role.IN, made)).settled


async def nothing_to_say(one: Neighbour, other: Neighbour) -> bool:
    return not await outbox(one, other)


async def test_a_message_of_a_newer_kind_is_refused_by_its_name(two: Two) -> None:
    alice, bob = two
    (made,) = await offer(alice, bob)
    ((_, body),) = await outbox(alice, bob)
    message = pb.Message.FromString(body)
    message.ClearField("offer")
    message.MergeFromString(NEWER)
    request = svc.DeliverRequest(messages=[message])
    async with bob.running(contact=False), alice.running(contact=False):
        link = alice.peering.links.to(bob.install_id)
        with pytest.raises(UnknownField) as caught:
            await link.call(lambda stub: stub.Deliver(request, timeout=PATIENCE))
    assert caught.value.metadata["field_numbers"] == "15"
    # And where that is not looked at, it is the message's own problem.
    answer = await bob.receiver.deliver(alice.install_id, request)
    assert [(each.reason, each.HasField("retry_after")) for each in answer.receipts] == [
        ("INVALID_REQUEST", False)
    ]
    assert await bob.desks.read(lambda rows: rows.delegation(Role.IN, made)) is None


async def test_who_does_not_compare_notes_is_handed_work_all_the_same(two: Two) -> None:
    alice, bob = two
    bob.receiver.sync = not_offered  # type: ignore[method-assign, assignment]
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        made = await offer(alice, bob)
        await comes_to(alice, Role.OUT, made, State.ACCEPTED)


async def test_who_takes_no_messages_is_handed_nothing(two: Two) -> None:
    alice, bob = two
    bob.receiver.deliver = not_offered  # type: ignore[method-assign, assignment]
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        made = await offer(alice, bob, 2)
        await comes_to(alice, Role.OUT, made, State.REJECTED)
    for each in made:
        assert (await found(alice, Role.OUT, each)).reason == "METHOD_NOT_OFFERED"


async def test_a_note_of_a_newer_state_is_passed_over(two: Two) -> None:
    """The others are compared."""
    alice, bob = two
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        made = await offer(alice, bob, 2)
        await comes_to(alice, Role.OUT, made, State.ACCEPTED)
    request = svc.SyncRequest()
    for each in made:
        request.notes.add(
            delegation=each, epoch=1, state=pb.DELEGATION_STATE_ACCEPTED, heard=1, handed_over=True
        )
    request.notes[0].state = NEWER_STATE  # type: ignore[assignment]
    answer = await bob.receiver.sync(alice.install_id, request)
    assert {note.delegation for note in answer.notes} == {made[1]}
    assert list(answer.unknown) == []
    assert await states_of(bob, made) == [State.ACCEPTED] * 2


async def states_of(one: Neighbour, made: list[str]) -> list[State]:
    return [(await found(one, Role.IN, each)).state for each in made]


async def test_a_result_of_a_newer_outcome_is_refused_and_changes_nothing(two: Two) -> None:
    alice, bob = two
    async with bob.running(contact=False), alice.running(contact=False, sending=True):
        (made,) = await offer(alice, bob)
        await comes_to(alice, Role.OUT, [made], State.ACCEPTED)
    await ends(bob, made)
    ((_, body),) = await outbox(bob, alice)
    message = pb.Message.FromString(body)
    envelope = pb.ResultEnvelope.FromString(message.result.envelope.payload)
    envelope.outcome = NEWER_STATE  # type: ignore[assignment]
    message.result.envelope.CopyFrom(sign(bob.identity, Kind.RESULT, envelope))
    answer = await alice.receiver.deliver(bob.install_id, svc.DeliverRequest(messages=[message]))
    assert [(each.reason, each.HasField("retry_after")) for each in answer.receipts] == [
        ("INVALID_REQUEST", False)
    ]
    assert (await found(alice, Role.OUT, made)).state is State.ACCEPTED
