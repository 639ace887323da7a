"""
What two Hoppers say of themselves when they meet: made for this one, and checked for the other.

What a stranger says is worth what its root has signed: its install id and its keys. Name, addresses, versions and time
are claims, which the transcript of the pairing binds to that root.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hopper.common.v1.identity_pb2 import TrustBundle
from hopper.federation.v1.pairing_service_pb2 import Introduction
from hopper_common.clock import Clock, WallClock
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.identity.bundles import ACTIVE, roots_of, verify_bundle, verify_data
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.store import Identity
from hopper_common.timestamps import from_proto, to_micros, to_proto
from hopper_federation import addresses
from hopper_federation.admission import Candidate
from hopper_federation.convert import versions_from_proto, versions_to_proto
from hopper_federation.model import agreed_version, check_clock
from hopper_federation.store_sql import Federation
from hopper_federation.transcript import OURS, Side, Told

MOST_NAME = 64
MOST_ADDRESSES = 16


def point_of(root: x509.Certificate) -> bytes:
    """A root's public key as a compressed point, 33 bytes."""
    return root.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


@dataclass(frozen=True, slots=True)
class Introduced:
    """
    Another Hopper, as far as it has proved itself.

    Attributes:
        proto: What it said, as it was received.
        root: Its active root; `verify` checks what that signs.
    """

    proto: Introduction
    told: Told
    bundle: TrustBundle
    root: x509.Certificate
    now: datetime

    @property
    def candidate(self) -> Candidate:
        """The same as a peer to be."""
        return Candidate(
            side=self.told.side,
            bundle=self.proto.bundle.SerializeToString(),
            sequence=self.bundle.sequence,
            addresses=addresses.sound(self.proto.addresses, MOST_ADDRESSES),
        )

    @property
    def shown_name(self) -> str:
        """What it calls itself, fit to be shown: a claim."""
        return "".join(each for each in self.proto.claimed_name if each.isprintable())[:MOST_NAME]

    def has_root(self, root_key: bytes) -> bool:
        """Whether it still trusts a root of its own: that may have been followed by another since it was told."""
        return any(point_of(root) == root_key for root in roots_of(self.bundle))

    def verify(self, signature: bytes, data: bytes, what: str) -> None:
        """
        Check a signature of its root.

        Raises:
            SignatureInvalid: Naming *what* it should be over.
        """
        if not verify_data(self.root, signature, data):
            raise SignatureInvalid(f"the signature over the {what} does not verify", what=what)

    def check_meets(self, ours: datetime) -> None:
        """
        Check that the two can talk to each other at all.

        Raises:
            ClockSkew, UnsupportedVersion: They cannot.
        """
        check_clock(self.now, ours)
        agreed_version(self.told.versions)


class Introductions:
    """
    Speaks for this Hopper, and reads what others say.

    Args:
        name: What this Hopper calls itself.
        peer_addresses: Where its peer port is now.
    """

    def __init__(
        self,
        identity: Identity,
        federation: Federation,
        clock: Clock,
        *,
        name: str,
        peer_addresses: Callable[[], Sequence[str]],
    ) -> None:
        self.identity = identity
        self._federation = federation
        self._wall = WallClock(clock)  # that a clock is wrong is to be seen, and over once it is set right
        self._name = name
        self._peer_addresses = peer_addresses

    def now(self) -> datetime:
        """The time of day that is told to others, and by which theirs is judged: the wall clock's."""
        return self._wall.now()

    def ours(self) -> Introduction:
        """What this Hopper says of itself now."""
        return Introduction(
            bundle=self.identity.bundle(),
            claimed_name=self._name,
            addresses=list(self._peer_addresses())[:MOST_ADDRESSES],
            versions=versions_to_proto(OURS),
            now=to_proto(self.now()),
        )

    def read_ours(self, proto: Introduction) -> Told:
        """The same for a transcript."""
        return _told(proto, TrustBundle.FromString(proto.bundle.payload))

    def side(self) -> Side:
        """Who this Hopper is, for a transcript."""
        return _side(self.identity.trust_bundle())

    async def read(self, proto: Introduction) -> Introduced:
        """
        Check what another Hopper says of itself, alone and against what is known of it here.

        Raises:
            BundleInvalid: Its bundle proves nothing.
            BundleRollback: It does not go on from the one that is known here.
            InvalidArgument: It is this Hopper itself.
        """
        now = self.now()
        bundle = verify_bundle(proto.bundle, now=now)
        if bundle.install_id == self.identity.install_id:
            raise InvalidArgument(
                violations=[
                    FieldViolation("introduction", "is this Hopper itself: no Hopper is its own peer")
                ]
            )
        known = await self._federation.read(lambda store: store.bundle(bundle.install_id))
        if known is not None:
            verify_bundle(proto.bundle, known=known, now=now)
        return Introduced(
            proto=proto,
            told=_told(proto, bundle),
            bundle=bundle,
            root=roots_of(bundle, (ACTIVE,))[-1],
            now=from_proto(proto.now),
        )


def _side(bundle: TrustBundle) -> Side:
    return Side(bundle.install_id, point_of(roots_of(bundle, (ACTIVE,))[-1]))


def _told(proto: Introduction, bundle: TrustBundle) -> Told:
    return Told(
        side=_side(bundle),
        bundle=proto.bundle.payload,
        claimed_name=proto.claimed_name,
        addresses=tuple(proto.addresses),
        versions=versions_from_proto(proto.versions),
        now=max(0, to_micros(from_proto(proto.now))),
    )
