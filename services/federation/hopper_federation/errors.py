"""What can go wrong between Hoppers, in this service's words. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from datetime import timedelta

from hopper_common.errors import (
    AlreadyExists,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    WrongState,
)

# Peers.


class PeerNotFound(NotFound):
    """There is no such peer."""

    reason = "PEER_NOT_FOUND"


class PeerExists(AlreadyExists):
    """A peer has that name, or that install id under another name."""

    reason = "PEER_EXISTS"


class PeerWrongState(WrongState):
    """The peer's level or state does not allow the move."""

    reason = "PEER_WRONG_STATE"


class PeerRevoked(PermissionDenied):
    """The peer was revoked: pair again to be let in."""

    reason = "PEER_REVOKED"


class PeerUnknown(PermissionDenied):
    """No such peer, or it is not paired: pair first."""

    reason = "PEER_UNKNOWN"


class PeerUnreachable(Unavailable):
    """The peer does not answer."""

    reason = "PEER_UNREACHABLE"
    retry_after = timedelta(seconds=5)


class PeerImpostor(PermissionDenied):
    """Who answers is not who was expected."""

    reason = "PEER_IMPOSTOR"


class ResyncNeeded(Unavailable):
    """One of the two was restored from a copy: both compare notes first."""

    reason = "RESYNC_NEEDED"
    retry_after = timedelta(seconds=1)


class ClockSkew(WrongState):
    """The two clocks are too far apart: set the one that is wrong."""

    reason = "CLOCK_SKEW"


class UnsupportedVersion(WrongState):
    """The two speak no common version: upgrade the older."""

    reason = "UNSUPPORTED_VERSION"


# Invitations.


class InvitationNotFound(NotFound):
    """There is no such invitation."""

    reason = "INVITATION_NOT_FOUND"


class InvitationRefused(PermissionDenied):
    """There is no such invitation, or the proof is wrong: ask for a new one."""

    reason = "INVITATION_REFUSED"


class InvitationExpired(PermissionDenied):
    """The invitation has run out, or was ended: ask for a new one."""

    reason = "INVITATION_EXPIRED"


class InvitationUsed(PermissionDenied):
    """Somebody else has redeemed the invitation: tell who sent it, and ask for a new one."""

    reason = "INVITATION_USED"


# Pairing by digits.


class PairingWrongStep(WrongState):
    """No pairing is under way, or not at that step."""

    reason = "PAIRING_WRONG_STEP"


class PairingCommitmentBroken(PermissionDenied):
    """What was revealed is not what was committed to: somebody may be in between."""

    reason = "PAIRING_COMMITMENT_BROKEN"


class PairingFull(ResourceExhausted):
    """Too many pairings wait for an answer: answer some, or wait until they end."""

    reason = "PAIRING_FULL"
    retry_after = timedelta(seconds=30)


# Looking for others.


class DiscoveryUnavailable(WrongState):
    """This Hopper cannot look for others that way."""

    reason = "DISCOVERY_UNAVAILABLE"


# Handing over.


class DelegationLoop(WrongState):
    """The task would come back to a Hopper that had it already."""

    reason = "DELEGATION_LOOP"


class HopLimit(WrongState):
    """The task has been through as many Hoppers as it may."""

    reason = "HOP_LIMIT"


class FanOutLimit(WrongState):
    """The task may be handed on to no more Hoppers."""

    reason = "FAN_OUT_LIMIT"


class TrustLevelTooLow(PermissionDenied):
    """The peer is not trusted far enough."""

    reason = "TRUST_LEVEL_TOO_LOW"


class CapabilityDenied(PermissionDenied):
    """What the task takes may not cross."""

    reason = "CAPABILITY_DENIED"
