"""
Between the contract's messages and the model, both directions side by side.

`..._to_proto` makes what a caller sees. `stored_...` and `..._from_stored` are the same for the database. What other
Hoppers say of themselves is read in `introductions`, because it has to be proved.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from hopper.common.v1.options_pb2 import TrustLevel
from hopper.federation.v1 import pairing_service_pb2 as psvc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper_common.timestamps import from_proto, time_field, to_proto
from hopper_federation.model import Invitation, InvitationState, Peer, Revocation
from hopper_federation.pairing import Session, Step, Verdict
from hopper_federation.transcript import Versions
from hopper_federation.trust import Level

# The names in an enum of the contract are ours behind a prefix.


def level_to_proto(level: Level) -> TrustLevel.ValueType:
    """A level as messages have it."""
    return TrustLevel.Value(f"TRUST_LEVEL_{level}")


def level_from_proto(level: TrustLevel.ValueType, default: Level) -> Level:
    """A level that a caller names; the default where it names none."""
    return Level(TrustLevel.Name(level).removeprefix("TRUST_LEVEL_")) if level else default


def revocation_from_proto(value: ppb.Peer.Revocation.ValueType) -> Revocation:
    """How a peer was ended, or is to be."""
    return (
        Revocation(ppb.Peer.Revocation.Name(value).removeprefix("REVOCATION_")) if value else Revocation.NONE
    )


def _revocation_to_proto(revocation: Revocation) -> ppb.Peer.Revocation.ValueType:
    none = ppb.Peer.REVOCATION_UNSPECIFIED
    return none if revocation is Revocation.NONE else ppb.Peer.Revocation.Value(f"REVOCATION_{revocation}")


# Peers.


def stored_peer(peer: Peer) -> ppb.Peer:
    """A peer as it is kept: without etag."""
    return ppb.Peer(
        name=peer.name,
        install_id=peer.install_id,
        level=level_to_proto(peer.level),
        addresses=peer.addresses,
        words=peer.words,
        verified_by=peer.verified_by,
        verify_time=to_proto(peer.verify_time),
        policy_version=peer.policy_version,
        revocation=_revocation_to_proto(peer.revocation),
        revoke_time=to_proto(peer.revoke_time),
        alert=peer.alert,
        create_time=to_proto(peer.create_time),
        bundle_sequence=peer.bundle_sequence,
        drain_time=to_proto(peer.drain_time),
        compromise_time=to_proto(peer.compromise_time),
    )


def peer_to_proto(peer: Peer) -> ppb.Peer:
    """A peer as callers see it."""
    proto = stored_peer(peer)
    proto.etag = peer.etag
    return proto


def peer_from_stored(body: bytes, revision: int, drain_time: datetime | None) -> Peer:
    """A peer as it was kept; what is not in its body has a column of its own."""
    proto = ppb.Peer.FromString(body)
    return Peer(
        name=proto.name,
        install_id=proto.install_id,
        level=level_from_proto(proto.level, Level.UNTRUSTED),
        create_time=from_proto(proto.create_time),
        revision=revision,
        addresses=tuple(proto.addresses),
        words=tuple(proto.words),
        verified_by=proto.verified_by,
        verify_time=time_field(proto, "verify_time"),
        policy_version=proto.policy_version,
        revocation=revocation_from_proto(proto.revocation),
        revoke_time=time_field(proto, "revoke_time"),
        alert=proto.alert,
        bundle_sequence=proto.bundle_sequence,
        drain_time=drain_time,
        compromise_time=time_field(proto, "compromise_time"),
    )


# Invitations.


def invitation_to_proto(invitation: Invitation, *, expired: bool) -> ppb.Invitation:
    """
    An invitation as callers see it: nothing in it helps to redeem it.

    Args:
        expired: Whether its time has run out.
    """
    return ppb.Invitation(
        name=invitation.name,
        peer=f"peers/{invitation.peer_id}",
        level=level_to_proto(invitation.level),
        state=_state_to_proto(invitation.state, expired=expired),
        create_time=to_proto(invitation.create_time),
        expire_time=to_proto(invitation.expire_time),
        wrong_proofs=invitation.wrong_proofs,
        contested=invitation.contested,
    )


def _state_to_proto(state: InvitationState, *, expired: bool) -> ppb.Invitation.State.ValueType:
    if state is InvitationState.OPEN and expired:
        return ppb.Invitation.STATE_EXPIRED
    return ppb.Invitation.State.Value(f"STATE_{state}")


# Pairings.

_SHOWN: Final[Mapping[Step, ppb.Pairing.State.ValueType]] = {
    Step.WAITING: ppb.Pairing.STATE_UNSPECIFIED,
    Step.COMPARE: ppb.Pairing.STATE_COMPARE,
    Step.APPROVED_THERE: ppb.Pairing.STATE_COMPARE,
    Step.APPROVED_HERE: ppb.Pairing.STATE_APPROVED_HERE,
    Step.DONE: ppb.Pairing.STATE_DONE,
    Step.DECLINED: ppb.Pairing.STATE_DECLINED,
    Step.FAILED: ppb.Pairing.STATE_FAILED,
}


def pairing_to_proto(session: Session) -> ppb.Pairing:
    """A pairing as callers see it."""
    return ppb.Pairing(
        name=session.name,
        install_id=session.install_id,
        claimed_name=session.claimed_name,
        code=session.code,
        state=_SHOWN[session.step],
        outgoing=session.outgoing,
        address=session.address,
        create_time=to_proto(session.create_time),
        expire_time=to_proto(session.expire_time),
        peer=f"peers/{session.peer_id}" if session.step is Step.DONE else "",
        failure=session.failure,
    )


_VERDICTS: Final[Mapping[Verdict, psvc.PairingVerdict.ValueType]] = {
    Verdict.NONE: psvc.PAIRING_VERDICT_UNSPECIFIED,
    Verdict.APPROVED: psvc.PAIRING_VERDICT_APPROVED,
    Verdict.DECLINED: psvc.PAIRING_VERDICT_DECLINED,
}


def verdict_to_proto(verdict: Verdict) -> psvc.PairingVerdict.ValueType:
    """A verdict as it is sent."""
    return _VERDICTS[verdict]


def verdict_from_proto(verdict: psvc.PairingVerdict.ValueType) -> Verdict:
    """A verdict as it was sent."""
    return next(ours for ours, theirs in _VERDICTS.items() if theirs == verdict)


# Versions.


def versions_to_proto(versions: Versions) -> psvc.VersionRange:
    """Versions as they are told."""
    return psvc.VersionRange(
        major=versions.major,
        least_minor=versions.least_minor,
        greatest_minor=versions.greatest_minor,
        features=versions.features,
    )


def versions_from_proto(proto: psvc.VersionRange) -> Versions:
    """Versions as they were told."""
    return Versions(proto.major, proto.least_minor, proto.greatest_minor, tuple(proto.features))
