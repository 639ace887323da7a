"""
How a Hopper becomes a peer, whichever way the two found each other: rules over a store, inside one transaction.

Nothing here raises an install's level by itself: a new peer gets what its invitation says, one that was blocked is let
in again by pairing anew and in no other way, and one that is known stays what it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.identity.errors import BundleRollback
from hopper_federation import transcript, trust
from hopper_federation.errors import PeerExists, PeerRevoked, PeerWrongState
from hopper_federation.model import Invitation, InvitationState, Peer, Revocation
from hopper_federation.pairing import Session, Step, Verdict
from hopper_federation.ports import InvitationStore, PeerStore, SessionStore
from hopper_federation.transcript import Side
from hopper_federation.trust import Alert, Level

_MOST_NAMES: Final = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    Another Hopper that has proved who it is.

    Attributes:
        bundle: Its SignedBundle, serialised; verified.
        sequence: The bundle's.
    """

    side: Side
    bundle: bytes
    sequence: int
    addresses: tuple[str, ...]


def require_free(store: PeerStore, peer_id: str, install_id: str) -> None:
    """
    Refuse a name that is another peer's, or an install that is a peer under another name.

    Raises:
        PeerExists: With the peer there is.
    """
    name = f"peers/{peer_id}"
    there = store.peer(name)
    if there is not None and there.install_id != install_id:
        raise PeerExists(
            f"{name} is another Hopper: choose another name, or rename that one with `hopper peer rename`",
            peer=name,
            install_id=there.install_id,
        )
    there = store.peer_of(install_id)
    if there is not None and there.name != name:
        raise PeerExists(
            f"that Hopper is known here as {there.name}: use that name, or rename it with `hopper peer rename`",
            peer=there.name,
            install_id=install_id,
        )


def admit(store: PeerStore, candidate: Candidate, peer_id: str, level: Level, words: tuple[str, ...]) -> Peer:
    """
    Make a Hopper a peer, or pair again with one that is: the peer and its roots are one transaction.

    Args:
        peer_id: What it is called if it is new. If that is taken, it gets a number behind it.

    Raises:
        PeerRevoked: It is blocked, and meant by another name; or its keys were in other hands, and are the same.
        BundleRollback: Its bundle is older than the one known.
    """
    install_id = candidate.side.install_id
    there = store.peer_of(install_id)
    if there is None:
        peer = Peer(
            name=_free_name(store, peer_id),
            install_id=install_id,
            level=trust.after_pairing(None, level),
            create_time=store.now,
            addresses=candidate.addresses,
            words=words,
            bundle_sequence=candidate.sequence,
        )
    else:
        _check_again(store, there, candidate, peer_id)
        peer = there.paired_again(level, words, candidate.addresses, candidate.sequence)
    store.save_bundle(install_id, candidate.sequence, candidate.side.root_key, candidate.bundle)
    store.save_peer(peer)
    return peer


def _check_again(store: PeerStore, there: Peer, candidate: Candidate, peer_id: str) -> None:
    revoked = {"install_id": there.install_id, "mode": str(there.revocation)}
    if there.level is Level.BLOCKED and there.name != f"peers/{peer_id}":
        # Whoever was blocked may have got hold of an invitation that was meant for somebody else.
        raise PeerRevoked(f"{there.name} is blocked: it is let in by that name, and by no other", **revoked)
    same_key = store.root_key(there.install_id) == candidate.side.root_key
    if there.revocation is Revocation.COMPROMISED and same_key:
        raise PeerRevoked(
            f"{there.name} was revoked because its keys are in other hands, and it still has the same: "
            "it must rotate its root first",
            **revoked,
        )
    if candidate.sequence < there.bundle_sequence:
        raise BundleRollback(
            "the bundle is older than the one known",
            sequence=str(candidate.sequence),
            known=str(there.bundle_sequence),
        )


def _free_name(store: PeerStore, peer_id: str) -> str:
    names = (f"peers/{peer_id}", *(f"peers/{peer_id[:58]}-{number}" for number in range(2, _MOST_NAMES)))
    for name in names:
        if store.peer(name) is None:
            return name
    raise PeerExists(f"a thousand peers are called {peer_id}: choose another name", peer=names[0])


def rename(store: PeerStore, peer: Peer, peer_id: str) -> Peer:
    """
    Give a peer another name.

    Raises:
        PeerExists: The name is taken.
    """
    name = f"peers/{peer_id}"
    there = store.peer(name)
    if there is not None and there.install_id != peer.install_id:
        raise PeerExists(
            f"{name} is another Hopper: choose another name", peer=name, install_id=there.install_id
        )
    renamed = peer.renamed(name)
    if renamed is not peer:
        store.save_peer(renamed)
    return renamed


def move(store: PeerStore, peer: Peer, addresses: tuple[str, ...]) -> Peer:
    """
    Say where a peer is.

    Raises:
        PeerWrongState: It is blocked, and nobody goes there.
    """
    if peer.level is Level.BLOCKED:
        raise PeerWrongState(
            f"{peer.name} is blocked: pair again to let it in",
            peer=peer.name,
            level=peer.level,
            verb="SET_ADDRESSES",
        )
    moved = peer.at(addresses)
    if moved is not peer:
        store.save_peer(moved)
    return moved


# By invitation.


class Outcome(StrEnum):
    """What came of an attempt to redeem an invitation."""

    DONE = "DONE"
    AGAIN = "AGAIN"  # by the same redeemer: the first answer was lost
    USED = "USED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Redemption:
    """
    What came of it.

    Attributes:
        our_nonce: Of the first answer, where there is one.
        peer: Where it was done, or whom the invitation had made a peer.
    """

    outcome: Outcome
    our_nonce: bytes = b""
    peer: Peer | None = None


def redeem(
    store: InvitationStore,
    invitation: Invitation,
    candidate: Candidate,
    *,
    nonce: bytes,
    our_nonce: bytes,
    words_of: Callable[[bytes], tuple[str, ...]],
) -> Redemption:
    """
    Redeem an invitation for who has proved to hold it.

    Never raises for one that cannot be redeemed, because what is noted of that must not be taken back.

    Args:
        nonce, our_nonce: Theirs, and ours if it is redeemed now.
        words_of: The words for a nonce of ours.

    Raises:
        PeerRevoked, BundleRollback: See `admit`; the invitation stays open.
    """
    redeemer = candidate.side.digest
    if store.redeem(invitation.secret_id, candidate.side.install_id, redeemer, nonce, our_nonce):
        peer = admit(store, candidate, invitation.peer_id, invitation.level, words_of(our_nonce))
        return Redemption(Outcome.DONE, our_nonce, peer)
    current = store.invitation_of(invitation.secret_id)
    if current is None or current.state is not InvitationState.REDEEMED:
        return Redemption(Outcome.EXPIRED)
    if (current.redeemer, current.nonce) == (redeemer, nonce):
        still_open = (current.listens_until() or store.now) > store.now
        return Redemption(Outcome.AGAIN if still_open else Outcome.EXPIRED, current.our_nonce)
    return Redemption(Outcome.USED, peer=_contested(store, current))


def _contested(store: InvitationStore, invitation: Invitation) -> Peer | None:
    """Two hold the same token, and which of them was meant is not known here: the peer is marked."""
    store.count_contest(invitation.secret_id)
    return mark(store, invitation.redeemer_install_id, Alert.INVITATION_CONTESTED)


# By digits.


def approve(store: SessionStore, session: Session, code: str, peer_id: str, candidate: Candidate) -> Session:
    """
    Approve a pairing here, with the digits from the other's screen; the last to do so makes the peer.

    Args:
        peer_id: What the peer will be called; empty: as was said when this Hopper asked.

    Returns:
        The pairing; FAILED where the digits differ.

    Raises:
        PairingWrongStep: There is nothing to approve.
        PeerExists: See `require_free`.
        InvalidArgument: Nobody has said what the peer will be called.
    """
    wanted = peer_id or session.peer_id
    if not wanted:
        raise InvalidArgument(violations=[FieldViolation("peer_id", "is required: the other Hopper asked")])
    require_free(store, wanted, session.install_id)
    return _kept(store, session, replace(session.approved(code, store.now), peer_id=wanted), candidate)


def heard(store: SessionStore, session: Session, verdict: Verdict, candidate: Candidate) -> Session:
    """
    Take the verdict of the other side; the last to approve makes the peer.

    Raises:
        PairingWrongStep: It cannot have come to one.
    """
    return _kept(store, session, session.heard(verdict, store.now), candidate)


def _kept(store: SessionStore, before: Session, after: Session, candidate: Candidate) -> Session:
    if after.step is Step.DONE and before.step is not Step.DONE:
        words = transcript.digits_words(after.binding)
        peer = admit(store, candidate, after.peer_id, Level.KNOWN, words)
        after = replace(after, peer_id=peer.name.removeprefix("peers/"))
    if after != before:
        store.save_session(after)
    return after


# Both.


def mark(store: PeerStore, install_id: str, alert: Alert) -> Peer | None:
    """Note that something does not add up about a peer, whose level may fall; None: there is no such peer."""
    peer = store.peer_of(install_id)
    if peer is None:
        return None
    alerted = peer.alerted(alert)
    if alerted is not peer:
        store.save_peer(alerted)
    return alerted
