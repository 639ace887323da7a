"""The store, and the rules over it, on both engines."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from hopper_common.errors import EtagMismatch
from hopper_common.identity.errors import BundleRollback
from hopper_federation import admission
from hopper_federation.admission import Candidate, Outcome, Redemption
from hopper_federation.errors import PeerExists, PeerRevoked, PeerWrongState
from hopper_federation.model import (
    MOST_WRONG_PROOFS,
    REPEATABLE_FOR,
    Invitation,
    InvitationState,
    Peer,
    Revocation,
)
from hopper_federation.pairing import TIME_TO_LIVE, Session, Step, Verdict
from hopper_federation.store_sql import KEEP_INVITATIONS_FOR, PEER_CHANGED, PEER_REMOVED, Federation, SqlStore
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.transcript import Side
from hopper_federation.trust import Alert, Level
from hopper_testing.clock import ManualClock
from hopper_testing.database import differences

NONCE, OURS = b"n" * 32, b"o" * 32
WORDS = ("one", "two", "three", "four", "five", "six")


def candidate(letter: str, *, root_key: bytes = b"", sequence: int = 1) -> Candidate:
    side = Side(letter * 32, root_key or b"\x02" + letter.encode() * 32)
    return Candidate(side, bundle=b"", sequence=sequence, addresses=("192.0.2.7:8470",))


def invitation(clock: ManualClock, number: int = 1, peer_id: str = "bob") -> Invitation:
    return Invitation(
        id=f"i{number}",
        secret_id=number.to_bytes(16),
        key=b"k" * 32,
        root_key=b"\x02" + b"a" * 32,
        peer_id=peer_id,
        level=Level.KNOWN,
        create_time=clock.now(),
        expire_time=clock.now() + timedelta(minutes=10),
    )


def redeeming(
    which: Invitation, who: Candidate, nonce: bytes = NONCE, ours: bytes = OURS
) -> Callable[[SqlStore], Redemption]:
    return lambda store: admission.redeem(
        store, which, who, nonce=nonce, our_nonce=ours, words_of=lambda nonce: (nonce.hex()[:4], *WORDS[1:])
    )


async def test_the_migrations_make_the_tables(database_url: str) -> None:
    assert not await differences(
        metadata=METADATA, migrations=MIGRATIONS, service="federation", url=database_url
    )


async def test_a_peer_comes_back_as_it_was(federation: Federation, clock: ManualClock) -> None:
    peer = Peer(
        name="peers/bob",
        install_id="b" * 32,
        level=Level.VERIFIED,
        create_time=clock.now(),
        revision=7,
        addresses=("192.0.2.7:8470", "[2001:db8::7]:8470"),
        words=WORDS,
        verified_by="alice, by phone",
        verify_time=clock.now(),
        policy_version=3,
        revocation=Revocation.DRAIN,
        revoke_time=clock.now(),
        drain_time=clock.now() + timedelta(days=1),
        alert="key_changed",
        bundle_sequence=9,
    )
    await federation.write(lambda store: store.save_peer(peer))
    assert await federation.read(lambda store: store.peer("peers/bob")) == peer
    assert await federation.read(lambda store: store.peer_of("b" * 32)) == peer
    assert await federation.read(lambda store: store.peer("peers/eve")) is None


async def test_a_redeemed_invitation_makes_a_peer_with_its_roots(
    federation: Federation, clock: ManualClock
) -> None:
    open_one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(open_one))
    assert await federation.read(lambda store: store.invitation_of(open_one.secret_id)) == open_one
    done = await federation.write(redeeming(open_one, candidate("b")))
    assert done.outcome is Outcome.DONE
    peer = await federation.read(lambda store: store.peer("peers/bob"))
    assert peer == done.peer
    assert peer is not None
    assert (peer.level, peer.words[0]) == (Level.KNOWN, OURS.hex()[:4])
    assert await federation.read(lambda store: store.root_key("b" * 32)) == b"\x02" + b"b" * 32
    (trusted,) = await federation.read(lambda store: store.trusted_peers())
    assert (trusted.name, trusted.level) == ("peers/bob", Level.KNOWN)


async def test_of_a_hundred_who_redeem_at_once_one_has_done_it(
    federation: Federation, clock: ManualClock
) -> None:
    """Each with a key of its own, all with the right proof."""
    open_one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(open_one))
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    who = [candidate(letters[number // 32] + letters[number % 32]) for number in range(100)]
    who = [replace(each, side=replace(each.side, install_id=each.side.install_id[:32])) for each in who]
    came = await asyncio.gather(*(federation.write(redeeming(open_one, each)) for each in who))
    assert sorted(each.outcome for each in came) == [Outcome.DONE, *[Outcome.USED] * 99]
    (peer,) = await federation.read(lambda store: store.peers())
    winner = who[[each.outcome for each in came].index(Outcome.DONE)]
    assert peer.install_id == winner.side.install_id
    assert peer.alert == Alert.INVITATION_CONTESTED
    now = await federation.read(lambda store: store.invitation_of(open_one.secret_id))
    assert now is not None
    assert (now.state, now.contested) == (InvitationState.REDEEMED, 99)


async def test_of_two_who_race_a_hundred_times_one_has_won_each_time(
    federation: Federation, clock: ManualClock
) -> None:
    for number in range(100):
        open_one = invitation(clock, number, peer_id=f"peer-{number}")
        await federation.write(lambda store, each=open_one: store.add_invitation(each))  # type: ignore[misc]  # bound now
        came = await asyncio.gather(
            *(federation.write(redeeming(open_one, candidate(letter))) for letter in "bc")
        )
        assert sorted(each.outcome for each in came) == [Outcome.DONE, Outcome.USED]
    assert len(await federation.read(lambda store: store.peers())) <= 2


async def test_the_same_redeemer_gets_the_same_answer(federation: Federation, clock: ManualClock) -> None:
    open_one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(open_one))
    first = await federation.write(redeeming(open_one, candidate("b")))
    again = await federation.write(redeeming(open_one, candidate("b"), ours=b"x" * 32))
    assert (first.outcome, again.outcome) == (Outcome.DONE, Outcome.AGAIN)
    assert again.our_nonce == first.our_nonce == OURS
    assert len(await federation.read(lambda store: store.peers())) == 1


async def test_another_nonce_of_the_same_redeemer_is_no_repeat(
    federation: Federation, clock: ManualClock
) -> None:
    """It would let the redeemer look for words that it likes."""
    open_one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(open_one))
    await federation.write(redeeming(open_one, candidate("b")))
    other = await federation.write(redeeming(open_one, candidate("b"), nonce=b"m" * 32))
    assert other.outcome is Outcome.USED


async def test_a_repeat_is_answered_for_a_while_also_after_the_invitation_would_have_run_out(
    federation: Federation, clock: ManualClock
) -> None:
    open_one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(open_one))
    clock.advance(timedelta(minutes=10) - timedelta(seconds=1))
    await federation.write(redeeming(open_one, candidate("b")))
    clock.advance(REPEATABLE_FOR - timedelta(seconds=1))
    assert (await federation.write(redeeming(open_one, candidate("b")))).outcome is Outcome.AGAIN
    clock.advance(timedelta(seconds=2))
    assert (await federation.write(redeeming(open_one, candidate("b")))).outcome is Outcome.EXPIRED


async def test_one_that_ran_out_or_was_ended_is_redeemed_by_nobody(
    federation: Federation, clock: ManualClock
) -> None:
    late, ended = invitation(clock, 1), invitation(clock, 2)
    for each in (late, ended):
        await federation.write(lambda store, each=each: store.add_invitation(each))  # type: ignore[misc]  # bound now
    await federation.write(lambda store: store.end_invitation(ended.secret_id))
    assert (await federation.write(redeeming(ended, candidate("b")))).outcome is Outcome.EXPIRED
    clock.advance(timedelta(minutes=10))
    assert (await federation.write(redeeming(late, candidate("b")))).outcome is Outcome.EXPIRED
    assert await federation.read(lambda store: store.peers()) == []


async def test_five_wrong_proofs_end_an_invitation(federation: Federation, clock: ManualClock) -> None:
    open_one = invitation(clock)
    secret_id = open_one.secret_id
    await federation.write(lambda store: store.add_invitation(open_one))
    states = []
    for _ in range(MOST_WRONG_PROOFS + 1):
        await federation.write(lambda store: store.count_wrong_proof(secret_id, MOST_WRONG_PROOFS))
        now = await federation.read(lambda store: store.invitation_of(secret_id))
        assert now is not None
        states.append((now.state, now.wrong_proofs))
    assert states[3] == (InvitationState.OPEN, 4)
    assert states[4] == states[5] == (InvitationState.DEAD, 5)
    assert (await federation.write(redeeming(open_one, candidate("b")))).outcome is Outcome.EXPIRED


async def test_who_comes_with_a_taken_name_gets_a_number(federation: Federation, clock: ManualClock) -> None:
    """The redeemer cannot help it: the owner gave two invitations the same name."""
    for number, letter in ((1, "b"), (2, "c"), (3, "d")):
        each = invitation(clock, number)
        await federation.write(lambda store, each=each: store.add_invitation(each))  # type: ignore[misc]  # bound now
        await federation.write(redeeming(each, candidate(letter)))
    names = [peer.name for peer in await federation.read(lambda store: store.peers())]
    assert names == ["peers/bob", "peers/bob-2", "peers/bob-3"]


def _admitting(who: Candidate, peer_id: str = "bob") -> Callable[[SqlStore], Peer]:
    return lambda store: admission.admit(store, who, peer_id, Level.KNOWN, WORDS)


def _saving(peer: Peer) -> Callable[[SqlStore], None]:
    return lambda store: store.save_peer(peer)


async def test_pairing_again_ends_a_revocation(federation: Federation) -> None:
    peer = await federation.write(_admitting(candidate("b")))
    revoked = replace(peer, level=Level.BLOCKED, revocation=Revocation.NOW, verified_by="alice", revision=2)
    await federation.write(_saving(revoked))
    back = await federation.write(_admitting(candidate("b", sequence=4)))
    assert (back.name, back.level, back.revocation) == ("peers/bob", Level.KNOWN, Revocation.NONE)
    assert (back.verified_by, back.bundle_sequence) == ("", 4)


async def test_a_blocked_peer_does_not_come_back_with_somebody_elses_invitation(
    federation: Federation, clock: ManualClock
) -> None:
    eve = await federation.write(_admitting(candidate("e"), "eve"))
    await federation.write(_saving(replace(eve, level=Level.BLOCKED, revocation=Revocation.NOW)))
    for_bob = invitation(clock)
    await federation.write(lambda store: store.add_invitation(for_bob))
    with pytest.raises(PeerRevoked, match="no other"):
        await federation.write(redeeming(for_bob, candidate("e")))
    assert (await federation.write(redeeming(for_bob, candidate("b")))).outcome is Outcome.DONE


async def test_pairing_again_takes_nothing_from_who_is_trusted(federation: Federation) -> None:
    peer = await federation.write(_admitting(candidate("b")))
    trusted = replace(peer, level=Level.VERIFIED, verified_by="alice", revision=2)
    await federation.write(_saving(trusted))
    again = await federation.write(_admitting(candidate("b")))
    assert (again.level, again.verified_by) == (Level.VERIFIED, "alice")


async def test_compromised_keys_do_not_come_back(federation: Federation) -> None:
    peer = await federation.write(_admitting(candidate("b")))
    await federation.write(_saving(replace(peer, level=Level.BLOCKED, revocation=Revocation.COMPROMISED)))
    with pytest.raises(PeerRevoked, match="rotate"):
        await federation.write(_admitting(candidate("b", sequence=2)))
    fresh = candidate("b", root_key=b"\x03" + b"f" * 32, sequence=2)
    assert (await federation.write(_admitting(fresh))).level is Level.KNOWN


async def test_an_older_bundle_is_refused(federation: Federation) -> None:
    await federation.write(_admitting(candidate("b", sequence=5)))
    with pytest.raises(BundleRollback):
        await federation.write(_admitting(candidate("b", sequence=4)))


async def test_names_are_the_owners_and_belong_to_one(federation: Federation) -> None:
    bob = await federation.write(_admitting(candidate("b"), "bob"))
    await federation.write(_admitting(candidate("c"), "carol"))
    with pytest.raises(PeerExists) as caught:
        await federation.write(lambda store: admission.rename(store, bob, "carol"))
    assert caught.value.metadata == {"peer": "peers/carol", "install_id": "c" * 32}
    before = await federation.read(lambda store: store.version)
    renamed = await federation.write(lambda store: admission.rename(store, bob, "robert"))
    assert (renamed.name, renamed.revision) == ("peers/robert", bob.revision + 1)
    assert await federation.read(lambda store: store.peer("peers/bob")) is None
    async for batch in federation.changes(after=before):
        assert [(event.topic, event.key) for event in batch] == [
            (PEER_REMOVED, "peers/bob"),
            (PEER_CHANGED, "peers/robert"),
        ]
        break


async def test_a_name_is_required_to_be_free(federation: Federation) -> None:
    await federation.write(_admitting(candidate("b"), "bob"))
    await federation.write(lambda store: admission.require_free(store, "bob", "b" * 32))
    await federation.write(lambda store: admission.require_free(store, "carol", "c" * 32))
    for peer_id, letter in (("bob", "c"), ("carol", "b")):
        with pytest.raises(PeerExists):
            await federation.write(
                lambda store, peer_id=peer_id, letter=letter: admission.require_free(  # type: ignore[misc]  # bound now
                    store, peer_id, letter * 32
                )
            )


async def test_addresses_are_set_and_a_blocked_peer_has_none(federation: Federation) -> None:
    bob = await federation.write(_admitting(candidate("b")))
    moved = await federation.write(lambda store: admission.move(store, bob, ("192.0.2.9:1",)))
    assert moved.addresses == ("192.0.2.9:1",)
    assert await federation.write(lambda store: admission.move(store, moved, moved.addresses)) is moved
    with pytest.raises(PeerWrongState):
        await federation.write(lambda store: admission.move(store, replace(moved, level=Level.BLOCKED), ()))


async def test_an_alert_is_kept_and_told_once(federation: Federation) -> None:
    bob = await federation.write(_admitting(candidate("b")))
    await federation.write(_saving(replace(bob, level=Level.TRUSTED, revision=2)))
    fallen = await federation.write(lambda store: admission.mark(store, "b" * 32, Alert.SIGNATURE_FAILED))
    assert fallen is not None
    assert (fallen.level, fallen.alert, fallen.revision) == (Level.KNOWN, "signature_failed", 3)
    again = await federation.write(lambda store: admission.mark(store, "b" * 32, Alert.SIGNATURE_FAILED))
    assert again == fallen
    assert await federation.write(lambda store: admission.mark(store, "x" * 32, Alert.KEY_CHANGED)) is None


def test_an_etag_changes_with_every_revision(clock: ManualClock) -> None:
    bob = Peer("peers/bob", "b" * 32, Level.KNOWN, clock.now())
    bob.check_etag("")
    bob.check_etag(bob.etag)
    with pytest.raises(EtagMismatch):
        bob.renamed("peers/robert").check_etag(bob.etag)


async def test_the_nonce_of_a_join_is_the_same_in_every_attempt(federation: Federation) -> None:
    first = await federation.write(lambda store: store.join_nonce(b"i" * 16, "a" * 32, NONCE))
    again = await federation.write(lambda store: store.join_nonce(b"i" * 16, "a" * 32, b"x" * 32))
    assert first == again == NONCE
    assert not await federation.read(lambda store: store.joined(b"i" * 16))
    await federation.write(lambda store: store.finish_join(b"i" * 16))
    assert await federation.read(lambda store: store.joined(b"i" * 16))


def session(
    clock: ManualClock, number: int = 1, *, outgoing: bool = False, source: str = "192.0.2.0/24"
) -> Session:
    return Session(
        id=f"p{number}",
        session=number.to_bytes(16),
        outgoing=outgoing,
        install_id="b" * 32,
        claimed_name="bob",
        address="192.0.2.7:50000",
        create_time=clock.now(),
        expire_time=clock.now() + TIME_TO_LIVE,
        source=source,
        ours=b"ours",
        theirs=b"theirs",
        commitment=b"c" * 32,
        our_nonce=OURS,
        leaf=b"leaf",
    )


async def test_a_pairing_comes_back_as_it_was(federation: Federation, clock: ManualClock) -> None:
    made = session(clock)
    await federation.write(lambda store: store.save_session(made))
    assert await federation.read(lambda store: store.session(made.name)) == made
    revealed = made.revealed(NONCE, b"binding", "123456", clock.now())
    await federation.write(lambda store: store.save_session(revealed))
    assert await federation.read(lambda store: store.session_of(made.session)) == revealed
    assert await federation.read(lambda store: store.sessions(10)) == [revealed]


async def test_pending_are_those_that_others_asked_for(federation: Federation, clock: ManualClock) -> None:
    for each in (
        session(clock, 1),
        session(clock, 2, source="198.51.100.0/24"),
        session(clock, 3, outgoing=True),
    ):
        await federation.write(_keeping(each))
    assert await federation.read(lambda store: (store.pending(), store.pending("192.0.2.0/24"))) == (2, 1)
    assert [each.id for each in await federation.read(lambda store: store.open_sessions(outgoing=True))] == [
        "p3"
    ]
    clock.advance(TIME_TO_LIVE)
    assert await federation.read(lambda store: store.pending()) == 0


def _keeping(each: Session) -> Callable[[SqlStore], None]:
    return lambda store: store.save_session(each)


async def test_the_last_approval_makes_the_peer(federation: Federation, clock: ManualClock) -> None:
    made = session(clock).revealed(NONCE, b"binding", "123456", clock.now())
    await federation.write(_keeping(made))
    here = await federation.write(
        lambda store: admission.approve(store, made, "123456", "bob", candidate("b"))
    )
    assert here.step is Step.APPROVED_HERE
    assert await federation.read(lambda store: store.peers()) == []
    done = await federation.write(
        lambda store: admission.heard(store, here, Verdict.APPROVED, candidate("b"))
    )
    assert (done.step, done.peer_id) == (Step.DONE, "bob")
    assert [peer.name for peer in await federation.read(lambda store: store.peers())] == ["peers/bob"]


async def test_the_port_is_needed_by_what_may_still_come(federation: Federation, clock: ManualClock) -> None:
    def needed(store: SqlStore) -> object:
        return store.port_needed_until()

    assert await federation.read(needed) is None
    one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(one))
    assert await federation.read(needed) == one.expire_time
    clock.advance(timedelta(minutes=1))
    await federation.write(redeeming(one, candidate("b")))
    assert await federation.read(needed) == clock.now() + REPEATABLE_FOR
    clock.advance(timedelta(minutes=1))
    asked = session(clock)
    await federation.write(_keeping(asked))
    assert await federation.read(needed) == asked.expire_time


async def test_what_is_old_is_forgotten(federation: Federation, clock: ManualClock) -> None:
    one = invitation(clock)
    await federation.write(lambda store: store.add_invitation(one))
    over = session(clock).heard(Verdict.DECLINED, clock.now())
    await federation.write(_keeping(over))
    await federation.write(lambda store: store.join_nonce(b"i" * 16, "a" * 32, NONCE))
    clock.advance(timedelta(minutes=59))
    await federation.forget()
    assert len(await federation.read(lambda store: store.sessions(10))) == 1
    clock.advance(KEEP_INVITATIONS_FOR)
    await federation.forget()
    assert await federation.read(lambda store: store.sessions(10)) == []
    assert await federation.read(lambda store: store.invitations(10)) == []
