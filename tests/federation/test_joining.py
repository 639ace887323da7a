"""Two Hoppers pair by an invitation: as it should be, and whatever comes in between."""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN, TRUST_LEVEL_TRUSTED, TRUST_LEVEL_UNTRUSTED
from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1.peer_pb2 import Invitation
from hopper_common import failpoints
from hopper_common.identity.certificates import issued_by
from hopper_common.identity.store import IdentityStore
from hopper_common.timestamps import to_proto
from hopper_federation import tokens
from hopper_federation.dialling import look
from hopper_federation.introductions import point_of
from hopper_federation.model import MOST_OPEN_INVITATIONS
from hopper_testing.clock import ManualClock
from tests.federation.harness import PATIENCE, RunningFederation, refusal, violations
from tests.federation.relay import Relay

DENIED = grpc.StatusCode.PERMISSION_DENIED


def altered(token: str, **changes: object) -> str:
    """The token with other content, as somebody could make it who has it."""
    return tokens.encode(replace(tokens.decode(token), **changes))  # type: ignore[arg-type]  # any of its parts


async def test_two_commands_pair_two_hoppers(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    there = await bob.join(token, "alice")
    here = await alice.peer("bob")
    assert here.words == there.words
    assert len(set(here.words)) > 1
    assert (here.level, there.level) == (TRUST_LEVEL_KNOWN, TRUST_LEVEL_KNOWN)
    assert here.install_id != there.install_id
    assert tokens.decode(token).install_id == there.install_id
    assert (here.bundle_sequence, there.bundle_sequence) == (1, 1)
    (invitation,) = await alice.invitations()
    assert invitation.state == Invitation.STATE_REDEEMED
    assert (invitation.contested, invitation.wrong_proofs) == (0, 0)


async def test_a_join_may_be_repeated(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    first = await bob.join(token, "alice")
    again = await bob.join(token, "alice")
    assert again == first
    assert len(await alice.peers()) == len(await bob.peers()) == 1


async def test_an_answer_that_is_lost_is_asked_for_again(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    """The connection breaks after the invitation was redeemed and before its redeemer hears of it."""
    token = await alice.invite("bob")
    (target,) = tokens.decode(token).addresses
    async with Relay(target) as relay:
        relay.lose_when = lambda: redeemed(alice.directory)
        there = await bob.join(altered(token, addresses=(relay.address,)), "alice")
        assert relay.lost == 1
    (here,) = await alice.peers()
    assert here.words == there.words
    assert not here.alert
    (invitation,) = await alice.invitations()
    assert invitation.contested == 0


def redeemed(directory: Path) -> bool:
    with sqlite3.connect(directory / "federation.db") as database:
        return database.execute("SELECT 1 FROM invitations WHERE state = 'REDEEMED'").fetchone() is not None


async def test_a_join_that_failed_after_all_was_done_is_finished_by_the_next(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    """On either side: the inviter fails to answer, then the joiner to keep the answer."""
    token = await alice.invite("bob")
    for place in ("redeem.done", "join.answered"):
        with failpoints.active(f"{place}=error@1"):
            await refusal(bob.join(token, "alice"), grpc.StatusCode.INTERNAL, "INTERNAL")
        assert await bob.peers() == []
        assert len(await alice.peers()) == 1
    there = await bob.join(token, "alice")
    assert list((await alice.peer("bob")).words) == list(there.words)


async def test_the_wrong_person_is_seen(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    """Eve has read the mail with the token, and is first."""
    token = await alice.invite("bob")
    eves = await eve.join(token, "alice")
    await refusal(bob.join(token, "alice"), DENIED, "INVITATION_USED")
    assert await bob.peers() == []
    peer = await alice.peer("bob")
    assert peer.alert == "invitation_contested"
    assert peer.level == TRUST_LEVEL_KNOWN
    assert peer.words == eves.words  # and bob has none to compare: the owners find out
    (invitation,) = await alice.invitations()
    assert invitation.contested == 1


async def test_who_comes_in_between_shows_other_words(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    """Eve keeps alice's token for herself, and gives bob one of her own."""
    await eve.join(await alice.invite("bob"), "alice")
    bobs = await bob.join(await eve.invite("bob"), "alice")
    assert (await alice.peer("bob")).words != bobs.words


async def test_an_invitation_runs_out(
    alice: RunningFederation, bob: RunningFederation, clock: ManualClock
) -> None:
    token = await alice.invite("bob", lifetime=to_proto(timedelta(minutes=2)))
    other = await alice.invite("carol", lifetime=to_proto(timedelta(minutes=10)))
    assert other  # keeps the port open
    clock.advance(timedelta(minutes=3))
    await refusal(bob.join(token, "alice"), DENIED, "INVITATION_EXPIRED")
    clock.advance(timedelta(minutes=5))  # now bob knows it too
    await refusal(bob.join(token, "alice"), DENIED, "INVITATION_EXPIRED")
    states = [invitation.state for invitation in await alice.invitations()]
    assert states == [Invitation.STATE_OPEN, Invitation.STATE_EXPIRED]
    assert await alice.peers() == []


async def test_five_wrong_proofs_end_an_invitation(
    alice: RunningFederation, bob: RunningFederation, clock: ManualClock
) -> None:
    token = await alice.invite("bob")
    await alice.invite("carol")  # keeps the port open
    for _ in range(5):
        guess = altered(token, secret=secrets.token_bytes(16))
        await refusal(bob.join(guess, "alice"), DENIED, "INVITATION_REFUSED")
        clock.advance(timedelta(seconds=10))
    await refusal(bob.join(token, "alice"), DENIED, "INVITATION_EXPIRED")
    _, invitation = await alice.invitations()
    assert (invitation.state, invitation.wrong_proofs) == (Invitation.STATE_DEAD, 5)
    assert await alice.peers() == await bob.peers() == []


async def test_one_that_is_not_there_is_refused_in_the_same_words(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    token = await alice.invite("bob")
    wrong = await refusal(
        bob.join(altered(token, secret=secrets.token_bytes(16)), "alice"), DENIED, "INVITATION_REFUSED"
    )
    absent = await refusal(
        bob.join(altered(token, invitation=secrets.token_bytes(16)), "alice"), DENIED, "INVITATION_REFUSED"
    )
    assert (wrong.message, wrong.metadata) == (absent.message, absent.metadata)


async def test_what_strangers_do_is_written_down(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    guess = altered(token, secret=secrets.token_bytes(16))
    await refusal(bob.join(guess, "alice"), DENIED, "INVITATION_REFUSED")
    await bob.join(token, "alice")
    redeemed: list[tuple[str, str, bool, str]] = []
    async with asyncio.timeout(PATIENCE):
        while len(redeemed) < 3:
            await asyncio.sleep(0.05)  # the last one is written a moment after its call
            redeemed = [each for each in reversed(await alice.audited()) if each[1] == "Redeem"]
    assert redeemed == [
        ("stranger", "Redeem", True, ""),  # it was let in, and then
        ("stranger", "Redeem", False, "INVITATION_REFUSED"),
        ("stranger", "Redeem", True, ""),
    ]
    assert ("owner", "CreateInvitation", True, "") in await alice.audited()


async def test_an_altered_key_or_name_in_a_token_is_found_before_anything_is_said(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    token = await alice.invite("bob")
    of_eve = tokens.decode(await eve.invite("bob"))
    for changes in (
        {"root_key": of_eve.root_key},
        {"install_id": of_eve.install_id},
        {"root_key": b"\x02" + bytes(32)},
        {"addresses": of_eve.addresses},  # somebody else at the address
    ):
        await refusal(bob.join(altered(token, **changes), "alice"), DENIED, "PEER_IMPOSTOR")
    for hopper in (alice, eve):
        (invitation,) = await hopper.invitations()
        assert (invitation.state, invitation.wrong_proofs) == (Invitation.STATE_OPEN, 0)
    assert (await bob.join(token, "alice")).level == TRUST_LEVEL_KNOWN


async def test_a_root_that_was_replaced_since_the_invitation_was_made(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation, clock: ManualClock
) -> None:
    """Who shows a certificate of the next root is believed; one of a root that came before is not."""
    token = await alice.invite("bob")
    (address,) = tokens.decode(token).addresses
    identity = IdentityStore.open(alice.directory / "identity", clock)
    for move in (identity.prepare, identity.activate, identity.taint):
        move()
    async with asyncio.timeout(PATIENCE):
        while not issued_by((await look(address)).certificate, identity.roots()[-1:]):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)
    later = await alice.invite("carol")
    assert tokens.decode(later).root_key != tokens.decode(token).root_key
    assert (await bob.join(token, "alice")).level == TRUST_LEVEL_KNOWN
    identity.revoke()
    identity.prepare()  # it issues nothing yet
    unborn = altered(later, root_key=point_of(identity.roots()[-1]))
    await refusal(eve.join(unborn, "alice"), DENIED, "PEER_IMPOSTOR")
    assert (await eve.join(later, "alice")).level == TRUST_LEVEL_KNOWN


async def test_all_addresses_are_tried(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    async with Relay() as nobody:
        where = ("127.0.0.1:1", nobody.address, *tokens.decode(token).addresses)
        there = await bob.join(altered(token, addresses=where), "alice")
    assert there.name == "peers/alice"


async def test_nobody_there_is_said_so(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    await alice.stop()
    error = await refusal(bob.join(token, "alice"), grpc.StatusCode.UNAVAILABLE, "PEER_UNREACHABLE")
    assert set(error.metadata) == {"peer", "cause"}
    async with Relay() as relay:  # somebody listens there, who speaks no TLS
        silent = altered(token, addresses=(relay.address,))
        await refusal(bob.join(silent, "alice"), grpc.StatusCode.UNAVAILABLE, "PEER_UNREACHABLE")


@pytest.fixture
async def late(place: Path, clock: ManualClock) -> AsyncIterator[RunningFederation]:
    """A Hopper whose clock is six minutes ahead."""
    running = RunningFederation(place / "late", ManualClock(clock.now() + timedelta(minutes=6)))
    await running.start()
    yield running
    await running.close()


async def test_clocks_too_far_apart_are_named(alice: RunningFederation, late: RunningFederation) -> None:
    token = await alice.invite("late", lifetime=to_proto(timedelta(hours=1)))
    error = await refusal(late.join(token, "alice"), grpc.StatusCode.FAILED_PRECONDITION, "CLOCK_SKEW")
    assert 355 <= int(error.metadata["offset_seconds"]) <= 370
    assert await alice.peers() == await late.peers() == []
    (invitation,) = await alice.invitations()
    assert invitation.state == Invitation.STATE_OPEN  # once the clock is right, it still is good


async def test_what_a_join_cannot_be(alice: RunningFederation, bob: RunningFederation) -> None:
    token = await alice.invite("bob")
    assert await violations(alice.join(token, "me")) == {
        "token": "is this Hopper's own invitation: give it to the other owner"
    }
    assert set(await violations(bob.join("hopper1:nonsense", "alice"))) == {"token"}
    assert set(await violations(bob.join(altered(token, addresses=()), "alice"))) == {"token"}
    assert set(await violations(bob.join(token, "No Name!"))) == {"peer_id"}
    await bob.join(token, "alice")
    taken = (grpc.StatusCode.ALREADY_EXISTS, "PEER_EXISTS")
    second = await alice.invite("robert")
    await refusal(bob.join(second, "other"), *taken)  # alice is known as alice
    await refusal(alice.invite("bob"), *taken)


async def test_pairing_again_changes_the_words_and_nothing_else(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    first = await bob.join(await alice.invite("bob"), "alice")
    again = await bob.join(await alice.invite("robert"), "alice")
    (here,) = await alice.peers()
    assert (here.name, again.name) == ("peers/bob", "peers/alice")  # names are the owners'
    assert here.words == again.words != first.words


async def test_an_invitation_gives_a_level_up_to_known(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    asked = svc.CreateInvitationRequest(peer_id="bob", level=TRUST_LEVEL_TRUSTED)
    assert set(await violations(alice.admin.CreateInvitation(asked))) == {"level"}
    await bob.join(await alice.invite("bob", level=TRUST_LEVEL_UNTRUSTED), "alice")
    assert (await alice.peer("bob")).level == TRUST_LEVEL_UNTRUSTED


async def test_invitations_are_listed_ended_and_bounded(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    made = [await alice.invite(f"bob-{number}") for number in range(MOST_OPEN_INVITATIONS)]
    await refusal(alice.invite("one-more"), grpc.StatusCode.RESOURCE_EXHAUSTED, "PAIRING_FULL")
    newest = (await alice.invitations())[0]
    assert newest.peer == f"peers/bob-{MOST_OPEN_INVITATIONS - 1}"
    request = svc.RevokeInvitationRequest(name=newest.name)
    ended = (await alice.admin.RevokeInvitation(request)).invitation
    assert ended.state == Invitation.STATE_DEAD
    await refusal(bob.join(made[-1], "alice"), DENIED, "INVITATION_EXPIRED")
    assert await alice.invite("one-more")
    unknown = svc.RevokeInvitationRequest(name="invitations/none")
    await refusal(alice.admin.RevokeInvitation(unknown), grpc.StatusCode.NOT_FOUND, "INVITATION_NOT_FOUND")


async def test_nothing_is_open_until_federation_is_switched_on(place: Path, clock: ManualClock) -> None:
    closed = RunningFederation(
        place / "closed", clock, HOPPER_PAIRING_LISTEN="", HOPPER_PEER_LISTEN="", HOPPER_FEDERATION=""
    )
    await closed.start()
    try:
        error = await refusal(
            closed.invite("bob"), grpc.StatusCode.FAILED_PRECONDITION, "IDENTITY_WRONG_STATE"
        )
        assert "HOPPER_FEDERATION=1" in error.message
        assert await closed.invitations() == []
    finally:
        await closed.close()


async def test_of_several_who_race_one_is_paired(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    token = await alice.invite("bob")
    came = await asyncio.gather(bob.join(token, "alice"), eve.join(token, "alice"), return_exceptions=True)
    winners = [each for each in came if not isinstance(each, BaseException)]
    (peer,) = await alice.peers()
    assert [list(winner.words) for winner in winners] == [list(peer.words)]
    assert peer.alert == "invitation_contested"
    assert len(await bob.peers()) + len(await eve.peers()) == 1
