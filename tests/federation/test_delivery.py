"""Two Hoppers and more that hand work to each other, over real connections, good and bad."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Connection, delete, func, select, update

from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.auth.rates import Rate
from hopper_common.errors import StorageFull
from hopper_common.ids import Ids
from hopper_federation.delegation import receiver, syncing
from hopper_federation.delegation.breaker import Hold
from hopper_federation.delegation.desks import Sitting
from hopper_federation.delegation.known_keys import KnownKeys
from hopper_federation.delegation.model import (
    STOPS_AT,
    Delegation,
    Outcome,
    Renewal,
    Role,
    State,
    Task,
    TaskNews,
)
from hopper_federation.delegation.receiver import Receiver
from hopper_federation.delegation.store_sql import Outgoing, SqlDelegations
from hopper_federation.delegation.syncing import Syncer
from hopper_federation.delegation.tables import DELEGATIONS, ERRANDS, INBOX, OUTBOX
from hopper_federation.delegation.verifying import Verifier
from hopper_federation.errors import ResyncNeeded
from hopper_federation.incarnation import Incarnation, Restored
from hopper_federation.model import Revocation
from hopper_federation.store_sql import SqlStore
from hopper_federation.trust import Alert, Level
from hopper_testing.proxy import ChaosProxy
from tests.federation.handing import LEASE, all_said, comes_to, counts, ends, found, offer, states, trusts
from tests.federation.neighbours import Neighbour, neighbour, until


@asynccontextmanager
async def running(*several: Neighbour) -> AsyncIterator[None]:
    """Each of them listens and sends."""
    async with AsyncExitStack() as stack:
        for each in several:
            await stack.enter_async_context(each.running(contact=False, sending=True))
        yield


IDS = Ids()


class Pair(NamedTuple):
    """Two that trust each other, and do not listen."""

    alice: Neighbour
    bob: Neighbour


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        await trusts(alice, bob)
        await trusts(bob, alice)
        yield Pair(alice, bob)


async def test_a_task_crosses_and_its_result_comes_back(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        running(alice, bob),
    ):
        await trusts(alice, bob)
        await trusts(bob, alice)
        made = await offer(alice, bob, 3)
        await comes_to(alice, Role.OUT, made, State.ACCEPTED)
        await until(
            lambda: alice.slots == {bob.install_id: 7}
        )  # told after what else the answer said is durable
        assert await states(bob, Role.IN, made) == [State.ACCEPTED] * 3
        chores = await bob.desks.read(lambda rows: rows.errands(0.0, 10))
        assert [(chore.delegation.id, chore.errand.task) for chore in chores] == [
            (each, Task.SUBMIT) for each in made
        ]
        await bob.desks.write(lambda sitting: sitting.desk.news(made[0], TaskNews(True, 0.5, "half")))
        await comes_to(alice, Role.OUT, made[:1], State.RUNNING)
        assert (await found(alice, Role.OUT, made[0])).fraction == 0.5
        await ends(bob, made[0])
        await ends(bob, made[1], Outcome.FAILED)
        await comes_to(alice, Role.OUT, made[:1], State.COMPLETED)
        await comes_to(alice, Role.OUT, made[1:2], State.FAILED)
        await alice.desks.write(lambda sitting: sitting.desk.cancel(made[2], "enough", by_router=False))
        await comes_to(bob, Role.IN, made[2:], State.CANCELLING)
        await ends(bob, made[2], Outcome.CANCELLED)
        await comes_to(alice, Role.OUT, made[2:], State.CANCELLED)
        await all_said(bob, alice)
        assert [(await found(bob, Role.IN, each)).settled for each in made] == [True] * 3
        assert (await counts(alice, bob)).handed_over == (await counts(bob, alice)).taken_over == 0


async def test_what_a_known_peer_offers_waits_for_a_person(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        running(alice, bob),
    ):
        await trusts(alice, bob)
        await bob.knows(alice)
        yes, no = await offer(alice, bob, 2)
        await comes_to(alice, Role.OUT, [yes, no], State.QUARANTINED)
        await bob.desks.write(lambda sitting: sitting.desk.decide(yes, True))
        await bob.desks.write(lambda sitting: sitting.desk.decide(no, False, "not now"))
        await comes_to(alice, Role.OUT, [yes], State.ACCEPTED)
        await comes_to(alice, Role.OUT, [no], State.REJECTED)
        assert (await found(alice, Role.OUT, no)).detail == "not now"


# Links that do not do what they should.


async def test_an_answer_that_was_lost_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        deliver, losing = bob.receiver.deliver, False

        async def lost(peer: str, request: svc.DeliverRequest) -> svc.DeliverResponse:
            proxy.back.held = losing
            return await deliver(peer, request)

        monkeypatch.setattr(bob.receiver, "deliver", lost)
        async with running(alice, bob), ChaosProxy(bob.address) as proxy:
            await trusts(bob, alice)
            await trusts(alice, bob, address=proxy.address)
            first = await offer(alice, bob)
            await comes_to(alice, Role.OUT, first, State.ACCEPTED)
            losing = True
            second = await offer(alice, bob, 2)
            await comes_to(bob, Role.IN, second, State.ACCEPTED)
            assert await states(alice, Role.OUT, second) == [State.OFFERED] * 2
            losing = False
            proxy.reset()
            proxy.flow()
            await comes_to(alice, Role.OUT, second, State.ACCEPTED)
            await all_said(alice, bob)
            assert (await counts(bob, alice)).taken_over == 3
            chores = await bob.desks.read(lambda rows: rows.errands(0.0, 10))
            assert [chore.delegation.id for chore in chores] == [*first, *second]


async def test_who_does_not_answer_holds_up_nobody_else(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        neighbour(tmp_path / "carol") as carol,
        running(alice, bob, carol),
        ChaosProxy(bob.address) as proxy,
    ):
        for other, address in ((bob, proxy.address), (carol, "")):
            await trusts(other, alice)
            await trusts(alice, other, address=address)
        proxy.hold()
        held = await offer(alice, bob, 2)
        await until(lambda: proxy.accepted)
        for _ in range(5):
            made = await offer(alice, carol)
            await comes_to(alice, Role.OUT, made, State.ACCEPTED)
        assert await states(alice, Role.OUT, held) == [State.OFFERED] * 2
        proxy.flow()
        await comes_to(alice, Role.OUT, held, State.ACCEPTED)


async def test_how_long_to_wait_outlives_the_process_and_a_sign_of_life_ends_it(tmp_path: Path) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        async with bob.running(contact=False):
            await trusts(bob, alice)
        async with alice.running(contact=False, sending=True):
            await trusts(alice, bob)
            made = await offer(alice, bob)
            await until(lambda: alice.senders.hold_of(bob.install_id).failures)
        long = Hold(7, alice.desks.steady(), alice.desks.steady() + 290, "PEER_UNREACHABLE", "no answer")
        await alice.desks.write(lambda sitting: sitting.rows.save_hold(bob.install_id, long))
        async with alice.running(contact=False, sending=True), bob.running(contact=False):
            await until(lambda: alice.senders.hold_of(bob.install_id).failures == 7)
            assert await states(bob, Role.IN, made) == [None]
            async with bob.calling(alice) as stub:
                await stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=30)
            await comes_to(alice, Role.OUT, made, State.ACCEPTED)
            await until(lambda: alice.senders.hold_of(bob.install_id) == Hold())
            assert await alice.desks.read(lambda rows: rows.hold(bob.install_id)) == Hold()


async def test_a_peer_that_moved_is_tried_at_once(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        running(alice, bob),
    ):
        await trusts(bob, alice)
        await trusts(alice, bob, address="127.0.0.1:1")
        made = await offer(alice, bob)
        await until(lambda: alice.senders.hold_of(bob.install_id).failures >= 2)
        await alice.change(
            bob, lambda peer: replace(peer, addresses=(bob.address,), revision=peer.revision + 1)
        )
        await comes_to(alice, Role.OUT, made, State.ACCEPTED)


async def test_a_lease_counts_from_when_its_renewal_was_said_however_late_the_answer(pair: Pair) -> None:
    alice, bob = pair
    (made,) = await offer(alice, bob)
    await bob.receiver.deliver(alice.install_id, await _request(alice, bob))
    said_at = bob.desks.steady() - 100.0

    def say(sitting: Sitting) -> None:
        was = sitting.rows.delegation(Role.IN, made)
        assert was is not None
        renewing = replace(was, sent=was.sent + 1)
        sitting.rows.save(renewing)
        sitting.rows.send(renewing, Renewal(), said_at)

    await bob.desks.write(say)
    async with alice.running(contact=False), bob.running(contact=False, sending=True):
        await bob.knows(alice, level=Level.TRUSTED)
        await all_said(bob, alice)
    taken = await found(bob, Role.IN, made)
    assert taken.lease_end == pytest.approx(said_at + STOPS_AT * LEASE.total_seconds())


async def test_a_link_that_is_closed_meanwhile_ends_no_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        deliver, answers, asked = bob.receiver.deliver, asyncio.Event(), asyncio.Event()

        async def late(peer: str, request: svc.DeliverRequest) -> svc.DeliverResponse:
            asked.set()
            await answers.wait()
            return await deliver(peer, request)

        monkeypatch.setattr(bob.receiver, "deliver", late)
        async with bob.running(contact=False), alice.running(sending=True):
            await trusts(bob, alice)
            await trusts(alice, bob)
            made = await offer(alice, bob)
            await asked.wait()
            later = alice.clock.now() + timedelta(hours=1)
            await alice.change(
                bob,
                lambda peer: replace(
                    peer,
                    level=Level.BLOCKED,
                    revocation=Revocation.DRAIN,
                    drain_time=later,
                    revision=peer.revision + 1,
                ),
            )
            await until(lambda: alice.senders.hold_of(bob.install_id).failures)  # contact has hung up
            answers.set()
            await comes_to(alice, Role.OUT, made, State.ACCEPTED)


# What is refused.


async def test_a_peer_that_has_revoked_this_hopper_is_sent_nothing_more(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        running(alice, bob),
    ):
        await trusts(alice, bob)
        await trusts(bob, alice)
        made = await offer(alice, bob)
        await comes_to(alice, Role.OUT, made, State.ACCEPTED)
        await bob.change(
            alice,
            lambda peer: replace(
                peer,
                level=Level.BLOCKED,
                revocation=Revocation.NOW,
                revoke_time=bob.clock.now(),
                revision=peer.revision + 1,
            ),
        )
        await bob.keeper.look()
        late = await offer(alice, bob)
        await comes_to(alice, Role.OUT, made + late, State.RECLAIMED)
        chores = await alice.desks.read(lambda rows: rows.errands(0.0, 10))
        assert [chore.errand.task for chore in chores] == [Task.RETURN, Task.RETURN]
        assert (await counts(alice, bob)).outbox == 0
        hold = alice.senders.hold_of(bob.install_id)
        assert hold.reason == "PEER_REVOKED"
        assert hold.until > alice.desks.steady() + 60


async def test_who_answers_that_it_cannot_take_it_is_not_left_alone_for_as_long_as_who_was_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:

        async def full(peer: str, request: svc.DeliverRequest) -> svc.DeliverResponse:
            raise StorageFull

        monkeypatch.setattr(bob.receiver, "deliver", full)
        unreached = Hold(9, failed=0.0, until=0.0, reason="PEER_UNREACHABLE")
        await alice.desks.write(lambda sitting: sitting.rows.save_hold(bob.install_id, unreached))
        async with running(alice, bob):
            await trusts(alice, bob)
            await trusts(bob, alice)
            await offer(alice, bob)
            await until(lambda: alice.senders.hold_of(bob.install_id).reason == "STORAGE_FULL")
            assert alice.senders.hold_of(bob.install_id).failures < 5


async def test_a_message_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        async with bob.running(contact=False):
            await trusts(bob, alice)
            await trusts(alice, bob)
            made = await offer(alice, bob, 3)
            too_long = pb.Message.FromString((await _outbox(alice, bob))[1].body)
            too_long.offer.hops.extend(too_long.offer.hops[0] for _ in range(8))
            spoilt = (
                update(OUTBOX).where(OUTBOX.c.id == too_long.id).values(body=too_long.SerializeToString())
            )
            await alice.federation.write(lambda store: store.conn.execute(spoilt).rowcount)
            async with alice.running(contact=False, sending=True):
                await comes_to(alice, Role.OUT, [made[0], made[2]], State.ACCEPTED)
                await comes_to(alice, Role.OUT, [made[1]], State.REJECTED)
        assert (await found(alice, Role.OUT, made[1])).reason == "INVALID_REQUEST"


async def test_what_was_not_signed_so_is_refused_and_told(pair: Pair) -> None:
    alice, bob = pair
    made = await offer(alice, bob, 2)
    request = await _request(alice, bob)
    request.messages[0].offer.body += b"\x0a\x04more"
    answer = await bob.receiver.deliver(alice.install_id, request)
    assert [receipt.reason for receipt in answer.receipts] == ["SIGNATURE_INVALID", ""]
    assert await states(bob, Role.IN, made) == [None, State.ACCEPTED]
    assert [(raised.peer, raised.alarm.kind) for raised in bob.raised] == [
        (alice.install_id, Alert.SIGNATURE_FAILED)
    ]


async def test_a_result_must_be_of_who_was_handed_the_task(pair: Pair) -> None:
    alice, bob = pair
    made = await offer(alice, bob, 2)
    await bob.receiver.deliver(alice.install_id, await _request(alice, bob))
    for each in made:
        await ends(bob, each)
    request = await _request(bob, alice)
    one, two = request.messages
    one.result.CopyFrom(two.result)
    answer = await alice.receiver.deliver(bob.install_id, request)
    assert [receipt.reason for receipt in answer.receipts] == ["SIGNATURE_INVALID", ""]
    assert await states(alice, Role.OUT, made) == [State.OFFERED, State.COMPLETED]


async def test_the_same_message_gets_its_first_answer(pair: Pair) -> None:
    alice, bob = pair
    (made,) = await offer(alice, bob)
    request = await _request(alice, bob)
    first = await bob.receiver.deliver(alice.install_id, request)
    await bob.desks.write(lambda sitting: sitting.desk.news(made, TaskNews(running=True)))
    assert await bob.receiver.deliver(alice.install_id, request) == first
    request.messages[0].sequence += 1
    (other,) = (await bob.receiver.deliver(alice.install_id, request)).receipts
    assert other.reason == "IDEMPOTENCY_CONFLICT"
    assert len(await bob.desks.read(lambda rows: rows.errands(0.0, 10))) == 1


async def test_what_was_taken_is_answered_so_though_it_could_not_be_read_any_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = pair
    await offer(alice, bob)
    request = await _request(alice, bob)
    first = await bob.receiver.deliver(alice.install_id, request)
    await bob.change(alice, lambda peer: replace(peer, revocation=Revocation.COMPROMISED))
    await bob.keeper.look()
    assert await bob.receiver.deliver(alice.install_id, request) == first


async def test_who_asks_too_fast_is_told_when_to_ask_again(pair: Pair) -> None:
    alice, bob = pair
    monotonic = 1000.0
    slow = Receiver(
        bob.desks,
        Verifier(bob.install_id, KnownKeys(bob.identity, bob.snapshots, bob.clock), bob.clock),
        free_slots=bob.free_slots,
        monotonic=lambda: monotonic,
    )
    await offer(alice, bob, 51)
    request = await _request(alice, bob, 51)
    answer = await slow.deliver(alice.install_id, request)
    assert [receipt.reason for receipt in answer.receipts] == [""] * 50 + ["QUOTA"]
    assert answer.receipts[-1].retry_after.ToTimedelta() == timedelta(milliseconds=100)
    again = await slow.deliver(alice.install_id, request)
    assert list(again.receipts) == list(answer.receipts)
    monotonic += 1
    del request.messages[:-1]
    again = await slow.deliver(alice.install_id, request)
    assert [receipt.reason for receipt in again.receipts] == [""]


async def test_f46_a_flood_of_progress_is_kept_once_and_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "MESSAGES", Rate(100, ENOUGH))
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        neighbour(tmp_path / "carol") as carol,
        running(alice, carol),
        bob.running(contact=False),
    ):
        for other in (bob, carol):
            await trusts(alice, other)
            await trusts(other, alice)
        (flooded,) = await offer(alice, bob)
        others = await offer(alice, carol, 5)
        await comes_to(alice, Role.OUT, [flooded, *others], State.ACCEPTED)
        before = await _kept(alice)
        flood = asyncio.ensure_future(_flood(alice, bob, flooded, FLOOD))
        for each in others:
            await ends(carol, each)
        await comes_to(alice, Role.OUT, others, State.COMPLETED)
        receipts = await flood
        assert {receipt.reason for receipt in receipts[:ENOUGH]} == {""}
        assert {receipt.reason for receipt in receipts[ENOUGH:]} == {"QUOTA"}
        assert all(receipt.HasField("retry_after") for receipt in receipts[ENOUGH:])
        now = await found(alice, Role.OUT, flooded)
        assert (now.state, now.fraction) == (State.RUNNING, ENOUGH / FLOOD)
        # One errand tells how far it is, and the answers to the five results are all that is remembered.
        assert await _kept(alice) == (before[0] + len(others), before[1] + 1 + len(others))


FLOOD = 700
ENOUGH = 500


async def _flood(one: Neighbour, other: Neighbour, delegation: str, count: int) -> list[pb.Receipt]:
    """What *one* answers to so much progress, all at the same moment."""
    at_once = Receiver(
        one.desks,
        Verifier(one.install_id, KnownKeys(one.identity, one.snapshots, one.clock), one.clock),
        free_slots=one.free_slots,
        monotonic=lambda: 1000.0,
    )
    receipts: list[pb.Receipt] = []
    for start in range(1, count + 1, 50):
        request = svc.DeliverRequest()
        for number in range(start, start + 50):
            update = pb.Update(running=True, fraction=number / count)
            request.messages.add(
                id=IDS.new(datetime.now(UTC)),
                delegation=delegation,
                epoch=1,
                sequence=number + 1,
                update=update,
            )
        receipts += (await at_once.deliver(other.install_id, request)).receipts
    return receipts


async def _kept(one: Neighbour) -> tuple[int, int]:
    """How many answers are remembered, and how many errands there are to be done."""

    def work(conn: Connection) -> tuple[int, int]:
        inbox, errands = (
            conn.scalar(select(func.count()).select_from(each)) or 0 for each in (INBOX, ERRANDS)
        )
        return inbox, errands

    return await one.db.read(work)


async def test_who_goes_away_in_the_middle_has_been_heard(pair: Pair) -> None:
    alice, bob = pair
    made = await offer(alice, bob)
    request = await _request(alice, bob)
    commits = bob.federation.committed.count
    asking = asyncio.ensure_future(bob.receiver.deliver(alice.install_id, request))
    while not bob.desks.under_way:  # noqa: ASYNC110 - it is for several turns of the loop
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await bob.federation.committed.wait(after=commits)
    assert await states(bob, Role.IN, made) == [State.ACCEPTED]


async def test_what_somebody_wrote_who_has_gone_away_is_told_of(pair: Pair) -> None:
    alice, bob = pair
    told: list[str] = []
    alice.desks.on_told(lambda peer, messages: told.append(peer))
    writing = asyncio.ensure_future(offer(alice, bob))
    while not alice.desks.under_way:  # noqa: ASYNC110 - it is for several turns of the loop
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await until(lambda: told)
    assert told == [bob.install_id]


async def test_a_message_that_breaks_something_is_undone_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = pair
    made = await offer(alice, bob, 3)
    save = SqlDelegations.save

    def fragile(rows: SqlDelegations, delegation: Delegation) -> None:
        save(rows, delegation)
        if delegation.id == made[1] and delegation.role is Role.IN:
            raise ZeroDivisionError

    monkeypatch.setattr(SqlDelegations, "save", fragile)
    request = await _request(alice, bob)
    answer = await bob.receiver.deliver(alice.install_id, request)
    assert [receipt.reason for receipt in answer.receipts] == ["", "INTERNAL", ""]
    assert await states(bob, Role.IN, made) == [State.ACCEPTED, None, State.ACCEPTED]
    monkeypatch.setattr(SqlDelegations, "save", save)
    again = await bob.receiver.deliver(alice.install_id, request)
    assert [receipt.reason for receipt in again.receipts] == [""] * 3


# Comparing notes.


async def test_after_a_restore_notes_are_compared_first(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        bob.running(contact=False, sending=True),
    ):
        alice.federation.begin(Incarnation("", 7))
        async with alice.running(contact=False, sending=True):
            await trusts(bob, alice)
            await trusts(alice, bob)
            made = await offer(alice, bob, 2)
            await comes_to(alice, Role.OUT, made, State.ACCEPTED)
        await alice.federation.write(lambda store: _drop(store, made[1]))  # as if it came after the copy
        alice.federation.begin(Incarnation("", 8, restored=Restored.EARLIER))
        await alice.federation.write(lambda store: store.save_incarnation(alice.federation.begun))
        request = svc.DeliverRequest(incarnation=8)
        with pytest.raises(ResyncNeeded):
            await bob.receiver.deliver(alice.install_id, request)
        async with alice.running(contact=False, sending=True):
            late = await offer(alice, bob)
            await comes_to(alice, Role.OUT, late, State.ACCEPTED)
            await comes_to(bob, Role.IN, made[1:], State.ORPHANED)
        assert not await alice.federation.read(lambda store: store.must_sync(bob.install_id))
        assert await states(bob, Role.IN, made[:1]) == [State.ACCEPTED]


async def test_who_wants_notes_first_gets_them_and_then_the_message(tmp_path: Path) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:
        alice.federation.begin(Incarnation("", 7))
        async with bob.running(contact=False), alice.running(contact=False, sending=True):
            await trusts(alice, bob)
            await trusts(bob, alice)
            first = await offer(alice, bob)
            await comes_to(alice, Role.OUT, first, State.ACCEPTED)
            await bob.desks.write(lambda sitting: sitting.rows.save_incarnation_of(alice.install_id, 3))
            second = await offer(alice, bob)
            await comes_to(alice, Role.OUT, second, State.ACCEPTED)
        assert await bob.desks.read(lambda rows: rows.incarnation_of(alice.install_id)) == 7


async def test_who_is_never_content_with_notes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with neighbour(tmp_path / "alice") as alice, neighbour(tmp_path / "bob") as bob:

        async def never(peer: str, request: svc.DeliverRequest) -> svc.DeliverResponse:
            raise ResyncNeeded(peer=peer)

        monkeypatch.setattr(bob.receiver, "deliver", never)
        async with bob.running(contact=False), alice.running(contact=False, sending=True):
            await trusts(alice, bob)
            await trusts(bob, alice)
            await offer(alice, bob)
            await until(lambda: alice.senders.hold_of(bob.install_id).failures)
            assert alice.senders.hold_of(bob.install_id).reason == "RESYNC_NEEDED"


def _drop(store: SqlStore, delegation: str) -> None:
    store.conn.execute(delete(DELEGATIONS).where(DELEGATIONS.c.id == delegation))


async def test_what_one_side_has_lost_is_found(tmp_path: Path) -> None:
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        bob.running(contact=False),
    ):
        await trusts(bob, alice)
        async with alice.running(contact=False, sending=True):
            await trusts(alice, bob)
            made = await offer(alice, bob, 3)
            await comes_to(alice, Role.OUT, made, State.ACCEPTED)
        await bob.federation.write(lambda store: _drop(store, made[0]))
        await ends(bob, made[1])
        await bob.federation.write(lambda store: store.conn.execute(delete(OUTBOX)).rowcount)
        async with alice.running(contact=False, sending=True):
            links = alice.peering.links
            await Syncer(alice.desks, links, alice.federation).sync(bob.install_id)
        assert await states(alice, Role.OUT, made) == [State.RECLAIMED, State.ACCEPTED, State.ACCEPTED]
        said = [pb.Message.FromString(each.body) for each in await _outbox(bob, alice)]
        assert [(each.delegation, each.WhichOneof("body")) for each in said] == [(made[1], "result")]


async def test_notes_are_compared_page_by_page(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "PAGE", 2)
    alice, bob = pair
    made = await offer(alice, bob, 5)
    await bob.receiver.deliver(alice.install_id, await _request(alice, bob))
    await alice.federation.write(lambda store: store.conn.execute(delete(OUTBOX)).rowcount)
    await bob.federation.write(lambda store: _drop(store, made[4]))
    async with bob.running(contact=False), alice.running(contact=False):
        await alice.knows(bob, level=Level.TRUSTED)
        await Syncer(alice.desks, alice.peering.links, alice.federation).sync(bob.install_id)
    assert await states(alice, Role.OUT, made) == [State.ACCEPTED] * 4 + [State.RECLAIMED]


async def _request(one: Neighbour, other: Neighbour, limit: int = 50) -> svc.DeliverRequest:
    """What one would send the other now."""
    messages = [pb.Message.FromString(each.body) for each in await _outbox(one, other, limit)]
    return svc.DeliverRequest(messages=messages)


async def _outbox(one: Neighbour, other: Neighbour, limit: int = 50) -> list[Outgoing]:
    now = one.desks.steady()
    return await one.desks.read(
        lambda rows: rows.batch(other.install_id, now, limit=limit, most_bytes=1 << 20)
    )
