"""
The nouns of the federation service: peers and invitations. Pairings by digits: `pairing`.

A *revision* counts the changes of a peer, and its etag is a hash of that.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Final

from hopper_common.errors import EtagMismatch
from hopper_federation import trust
from hopper_federation.errors import ClockSkew, UnsupportedVersion
from hopper_federation.transcript import OURS, Versions
from hopper_federation.trust import Alert, Level

MOST_SKEW: Final = timedelta(minutes=5)
MOST_WRONG_PROOFS: Final = 5
MOST_OPEN_INVITATIONS: Final = 20
DEFAULT_LIFETIME: Final = timedelta(minutes=10)
DEFAULT_WINDOW: Final = timedelta(minutes=5)
REPEATABLE_FOR: Final = timedelta(minutes=5)
"""How long after an invitation was redeemed its redeemer may ask again, because the answer was lost."""


class Revocation(StrEnum):
    """How a peer was ended."""

    NONE = "NONE"
    DRAIN = "DRAIN"
    NOW = "NOW"
    COMPROMISED = "COMPROMISED"


@dataclass(frozen=True, slots=True)
class Peer:
    """
    Another Hopper with which this one is, or was, paired.

    Attributes:
        name: `peers/{id}`, as this Hopper's owner calls it.
        revision: Counts from 1.
        words: The six that both owners saw when they paired.
        verified_by: Who compared them, and how; empty: nobody has.
        alert: Why its level fell by itself, or why to look twice.
        drain_time: Of DRAIN: until when what is under way may go on.
        compromise_time: Of COMPROMISED: since when its keys may have been in other hands.
        bundle_sequence: Of its trust bundle, as known here.
    """

    name: str
    install_id: str
    level: Level
    create_time: datetime
    revision: int = 1
    addresses: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    verified_by: str = ""
    verify_time: datetime | None = None
    policy_version: int = 0
    revocation: Revocation = Revocation.NONE
    revoke_time: datetime | None = None
    drain_time: datetime | None = None
    compromise_time: datetime | None = None
    alert: str = ""
    bundle_sequence: int = 0

    @property
    def etag(self) -> str:
        """16 hexadecimal digits, different for every revision, and of an earlier peer that had its install id."""
        content = f"{self.install_id}\n{self.create_time.isoformat()}\n{self.revision}"
        return blake2b(content.encode(), digest_size=8).hexdigest()

    def check_etag(self, etag: str) -> None:
        """
        Refuse a change by somebody who has not seen the peer as it is.

        Args:
            etag: What the caller has seen; empty if it does not matter.

        Raises:
            EtagMismatch: With the etag of now.
        """
        if etag and etag != self.etag:
            raise EtagMismatch(resource=self.name, etag=self.etag)

    def renamed(self, name: str) -> "Peer":
        """The peer under another name; itself if it has that."""
        return self if name == self.name else replace(self, name=name, revision=self.revision + 1)

    def at(self, addresses: tuple[str, ...]) -> "Peer":
        """The peer somewhere else; itself if it is there."""
        same = addresses == self.addresses
        return self if same else replace(self, addresses=addresses, revision=self.revision + 1)

    def alerted(self, alert: Alert) -> "Peer":
        """The peer after something did not add up: its level may fall, and never rises."""
        level = trust.after_alert(self.level, alert)
        if (level, alert) == (self.level, self.alert):
            return self
        return replace(self, level=level, alert=alert, revision=self.revision + 1)

    def paired_again(
        self, offered: Level, words: tuple[str, ...], addresses: tuple[str, ...], sequence: int
    ) -> "Peer":
        """The peer after it was paired once more; that ends a revocation, and then who compared words is forgotten."""
        blocked = self.level is Level.BLOCKED
        return replace(
            self,
            level=trust.after_pairing(self.level, offered),
            words=words,
            addresses=addresses or self.addresses,
            verified_by="" if blocked else self.verified_by,
            verify_time=None if blocked else self.verify_time,
            revocation=Revocation.NONE,
            revoke_time=None,
            drain_time=None,
            compromise_time=None,
            alert="",
            bundle_sequence=sequence,
            revision=self.revision + 1,
        )


class InvitationState(StrEnum):
    """What has become of an invitation, as far as that is stored: one whose time has run out is still OPEN."""

    OPEN = "OPEN"
    REDEEMED = "REDEEMED"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True)
class Invitation:
    """
    A one-time offer to pair.

    Attributes:
        id: Of the resource `invitations/{id}`, for people; the token has `secret_id`.
        secret_id: What the redeemer names it by, 16 bytes.
        key: What its proofs are made with.
        root_key: The root that its token names: this Hopper's active one when it was made.
        peer_id: What the peer will be called.
        redeemer: Digest of the install id and root key of who redeemed it.
        nonce, our_nonce: Theirs and ours, of that time: a repeat gets the same answer.
    """

    id: str
    secret_id: bytes
    key: bytes = field(repr=False)
    root_key: bytes
    peer_id: str
    level: Level
    create_time: datetime
    expire_time: datetime
    state: InvitationState = InvitationState.OPEN
    wrong_proofs: int = 0
    redeemer_install_id: str = ""
    redeemer: bytes = b""
    nonce: bytes = field(default=b"", repr=False)
    our_nonce: bytes = field(default=b"", repr=False)
    redeem_time: datetime | None = None
    contested: int = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"invitations/{self.id}"

    def redeemable(self, now: datetime) -> bool:
        """Whether somebody may redeem it."""
        return self.state is InvitationState.OPEN and now < self.expire_time

    def listens_until(self) -> datetime | None:
        """Until when the pairing port is open because of it; None: it is not."""
        if self.state is InvitationState.OPEN:
            return self.expire_time
        if self.state is InvitationState.REDEEMED and self.redeem_time is not None:
            return self.redeem_time + REPEATABLE_FOR
        return None


# What both sides check of each other.


def check_clock(theirs: datetime, ours: datetime) -> None:
    """
    Refuse a Hopper whose clock is too far from ours.

    Raises:
        ClockSkew: With how far; positive: theirs is ahead.
    """
    offset = theirs - ours
    if abs(offset) > MOST_SKEW:
        seconds, limit = round(offset.total_seconds()), round(MOST_SKEW.total_seconds())
        raise ClockSkew(
            f"the other's clock is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} this one, "
            f"and more than {limit} s is not accepted: set the one that is wrong",
            offset_seconds=str(seconds),
            limit_seconds=str(limit),
        )


def agreed_version(theirs: Versions, ours: Versions = OURS) -> str:
    """
    The newest version that both speak.

    Raises:
        UnsupportedVersion: There is none.
    """
    minor = min(theirs.greatest_minor, ours.greatest_minor)
    if theirs.major != ours.major or minor < max(theirs.least_minor, ours.least_minor):
        raise UnsupportedVersion(
            f"the other speaks {theirs}, this Hopper {ours}: upgrade the older",
            theirs=str(theirs),
            ours=str(ours),
        )
    return f"{ours.major}.{minor}"
