"""
Who is on the other end of the peer port, looked at anew on every call.

TLS has let somebody in whose certificate some root of the pool vouches for. That is not enough: gRPC has one pool for
all peers, cannot say which root it was, and goes on with an open connection when a root is gone, a peer is revoked or a
leaf has run out. So it is asked again, of the certificate itself and of the trust there is *now*:

    fresh snapshot ─► TLS 1.3 ─► one SPIFFE id ─► issued by a root of the peer it names ─► in time
                         `hopper_common.rpc.presented`                                       │
                          /svc/federation ─► not revoked ─► level, rate, audit ◄─────────────┘
                                                        `hopper_common.rpc.guard`
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from cryptography import x509

from hopper_common.auth.decide import Session
from hopper_common.auth.model import Kind, Principal, TrustLevel
from hopper_common.clock import Clock, WallClock
from hopper_common.errors import HopperError, IssuerMismatch, PathDenied, TrustStoreStale
from hopper_common.identity.certificates import issued_by
from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid, install_id_of_domain, trust_domain_of
from hopper_common.rpc.guard import source_of
from hopper_common.rpc.presented import Certificates, Presented
from hopper_federation.errors import PeerRevoked, PeerUnknown
from hopper_federation.model import Revocation
from hopper_federation.trust import Alert, Level
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshots

PATH: Final = "/svc/federation"
"""Of the certificates that may call here; others of a peer's are none of ours."""


class PeerSession(Session):
    """A peer that has shown who it is, as it stood at one moment."""

    __slots__ = ("generation", "peer", "presented")

    def __init__(
        self, principal: Principal, peer: TrustedPeer, presented: Presented, generation: int
    ) -> None:
        super().__init__(principal)
        self.peer = peer
        self.presented = presented
        self.generation = generation


class Peers:
    """
    Callers with a certificate of another Hopper; `hopper_common.rpc.guard.Callers`.

    Args:
        alarm: Told the install id of a peer whose root was misused.
    """

    def __init__(self, snapshots: TrustSnapshots, clock: Clock, alarm: Callable[[str, Alert], None]) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._alarm = alarm
        self._certificates = Certificates(
            lambda trust_domain: _roots(self._peer_of(trust_domain)),
            lambda: snapshots.current.generation,
            WallClock(clock).now,
            clock.monotonic,
        )

    def session(self, context: Any) -> PeerSession:
        """
        Who calls.

        Raises:
            TrustStoreStale: Who is trusted is not known fresh enough.
            Unauthenticated, TlsTooOld, BadSan, LeafExpired: What is wrong with the connection or its certificate.
            PeerUnknown, IssuerMismatch, PathDenied: Whose it is not, or what it is not for.
            PeerRevoked: It was revoked, or is blocked.
        """
        self._require_fresh()
        auth = context.auth_context()
        try:
            presented = self._certificates.presented(auth)
        except IssuerMismatch as error:
            raise self._not_by_its_root(auth["x509_pem_cert"][0], error) from error
        return self._standing(presented, source_of(context))

    def again(self, session: Session) -> PeerSession:
        """
        The same as it is now, for a call that is under way.

        Raises:
            As `session`.
        """
        self._require_fresh()
        before = cast("PeerSession", session)
        presented = self._certificates.again(before.presented)
        return self._standing(presented, before.principal.source, before)

    def spend(self, session: Session) -> None:
        """A certificate is not used up."""

    def _require_fresh(self) -> None:
        age = self._snapshots.current.age(self._clock.monotonic())
        if not self._snapshots.current.fresh(self._clock.monotonic()):
            raise TrustStoreStale(age_seconds="" if age is None else f"{age:.0f}")

    def _standing(self, presented: Presented, source: str, before: PeerSession | None = None) -> PeerSession:
        """The caller, as its peer stands now; the very same session where nothing has changed."""
        if presented.name.path != PATH:
            raise PathDenied(path=presented.name.path)
        snapshot = self._snapshots.current
        peer = self._peer_of(presented.name.trust_domain)
        if peer is None:
            raise _unknown(presented.name)
        level = self._level(peer)
        if (
            before is not None
            and before.generation == snapshot.generation
            and before.principal.level is level
        ):
            return before
        principal = Principal(
            name=str(presented.name),
            kind=Kind.PEER,
            credential="certificate",
            source=source,
            level=level,
            expires=presented.not_after,
        )
        return PeerSession(principal, peer, presented, snapshot.generation)

    def _level(self, peer: TrustedPeer) -> TrustLevel:
        """The level that counts now: one that is drained may still finish what is under way."""
        if (
            peer.revocation is Revocation.DRAIN
            and peer.drain_time is not None
            and self._clock.now() < peer.drain_time
        ):
            return TrustLevel.KNOWN
        if peer.revocation is not Revocation.NONE or peer.level is Level.BLOCKED:
            mode = "" if peer.revocation is Revocation.NONE else peer.revocation
            raise PeerRevoked(install_id=peer.install_id, mode=mode)
        return TrustLevel[peer.level.name]

    def _peer_of(self, trust_domain: str) -> TrustedPeer | None:
        try:
            return self._snapshots.current.peers.get(install_id_of_domain(trust_domain))
        except SpiffeInvalid:  # of a form that no Hopper's has
            return None

    def _not_by_its_root(self, pem: bytes, error: IssuerMismatch) -> HopperError:
        """What to say of a certificate that the named peer's root did not issue; and whom to blame, if known."""
        leaf = x509.load_pem_x509_certificate(pem)
        named = error.metadata["trust_domain"]
        for other in self._snapshots.current.peers.values():
            if trust_domain_of(other.install_id) != named and issued_by(leaf, _roots(other)):
                self._alarm(other.install_id, Alert.IMPERSONATION)
                return error
        return error if self._peer_of(named) else _unknown(SpiffeId(named, PATH))


def _roots(peer: TrustedPeer | None) -> Sequence[x509.Certificate]:
    return () if peer is None else tuple(_certificate(root) for root in peer.roots)


@lru_cache(1024)
def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _unknown(name: SpiffeId) -> PeerUnknown:
    return PeerUnknown(install_id=name.trust_domain.removesuffix(".hopper"))
