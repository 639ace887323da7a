"""
Who is on the other end of the peer port, looked at anew on every call.

TLS has let somebody in whose certificate some root of the pool vouches for. That is not enough: gRPC has one pool for
all peers, cannot say which root it was, and goes on with an open connection when a root is gone, a peer is revoked or a
leaf has run out. So the guard asks again, of the certificate itself and of the trust there is *now*:

    fresh snapshot ─► TLS 1.3 ─► one SPIFFE id ─► of a peer ─► issued by a root of that peer ─► /svc/federation
                                                                          │
                                 in time ─► not revoked ─► level  ◄───────┘

What depends on the certificate and the peer's roots alone (parsing, and a signature, 100 microseconds) is remembered
for as long as the peers stay the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from cryptography import x509

from hopper_common.errors import (
    BadSan,
    HopperError,
    IssuerMismatch,
    LeafExpired,
    PathDenied,
    TlsTooOld,
    TrustStoreStale,
)
from hopper_common.identity.certificates import issued_by, spiffe_id_of
from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid, install_id_of_domain
from hopper_federation.errors import PeerRevoked, PeerUnknown, TrustLevelTooLow
from hopper_federation.model import Revocation
from hopper_federation.trust import Alert, Level
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot, TrustSnapshots

PATH: Final = "/svc/federation"
"""Of the certificates that may call here; others of a peer's are none of ours."""

_TLS: Final = b"TLSv1.3"
_REMEMBERED: Final = 4096

Auth = Mapping[str, Sequence[bytes]]
"""What gRPC says of a connection: `context.auth_context()`."""
_Refusal = Callable[[], HopperError]


@dataclass(frozen=True, slots=True)
class Proved:
    """
    What a certificate proves, whenever it is shown.

    Attributes:
        peer: As it was when this was found out.
    """

    name: SpiffeId
    peer: TrustedPeer
    not_before: datetime
    not_after: datetime


class PeerGuard:
    """
    Lets peers in, call by call.

    Args:
        now: The time of day.
        monotonic: Seconds, of a clock that never goes back.
        alarm: Told the install id of a peer whose root was misused, or whose certificate does not add up.
    """

    def __init__(
        self,
        snapshots: TrustSnapshots,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        alarm: Callable[[str, Alert], None],
    ) -> None:
        self._snapshots = snapshots
        self._now = now
        self._monotonic = monotonic
        self._alarm = alarm
        self._generation = -1
        self._remembered: OrderedDict[bytes, Proved | _Refusal] = OrderedDict()

    def admit(self, auth: Auth, needed: Level) -> Proved:
        """
        Say who calls, if they may.

        Args:
            needed: The least level that may call the method.

        Raises:
            TrustStoreStale: Who is trusted is not known fresh enough.
            TlsTooOld, BadSan, PeerUnknown, IssuerMismatch, PathDenied, LeafExpired: As the catalogue says.
            PeerRevoked: It was, or is blocked.
            TrustLevelTooLow: It is not trusted far enough for that.
        """
        snapshot = self._snapshots.current
        monotonic = self._monotonic()
        if not snapshot.fresh(monotonic):
            age = snapshot.age(monotonic)
            raise TrustStoreStale(age_seconds="" if age is None else f"{age:.0f}")
        proved = self._proved(auth, snapshot)
        now = self._now()
        if not proved.not_before <= now < proved.not_after:
            raise LeafExpired(
                not_before=proved.not_before.isoformat(), not_after=proved.not_after.isoformat()
            )
        check_standing(proved.peer, needed, now)
        return proved

    def _proved(self, auth: Auth, snapshot: TrustSnapshot) -> Proved:
        version = _only(auth, "ssl_tls_version")
        if version != _TLS:
            raise TlsTooOld(version=version.decode("ascii", "replace"))
        pem = _only(auth, "x509_pem_cert")
        if self._generation != snapshot.generation:
            self._remembered.clear()
            self._generation = snapshot.generation
        known = self._remembered.get(pem)
        if known is None:
            known = self._remember(pem, self._examined(pem, snapshot))
        if not isinstance(known, Proved):
            raise known()
        # gRPC's own reading must agree: it is absent when there is not exactly one URI.
        if _only(auth, "peer_spiffe_id") != str(known.name).encode():
            raise BadSan(problem="gRPC reads another SPIFFE id, or none")
        return known

    def _remember(self, pem: bytes, known: Proved | _Refusal) -> Proved | _Refusal:
        self._remembered[pem] = known
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return known

    def _examined(self, pem: bytes, snapshot: TrustSnapshot) -> Proved | _Refusal:
        """What a certificate proves; the expensive part."""
        try:
            leaf = x509.load_pem_x509_certificate(pem)
            name = spiffe_id_of(leaf)
            install_id = install_id_of_domain(name.trust_domain)
        except (SpiffeInvalid, ValueError) as error:
            return partial(BadSan, problem=str(error))
        peer = snapshot.peers.get(install_id)
        if peer is None or not _issued_by(leaf, peer):
            return self._not_issued_by_its_root(leaf, name, install_id, peer, snapshot)
        if name.path != PATH:
            return partial(PathDenied, path=name.path)
        return Proved(name, peer, leaf.not_valid_before_utc, leaf.not_valid_after_utc)

    def _not_issued_by_its_root(
        self,
        leaf: x509.Certificate,
        name: SpiffeId,
        install_id: str,
        peer: TrustedPeer | None,
        snapshot: TrustSnapshot,
    ) -> _Refusal:
        for other in snapshot.peers.values():
            if other.install_id != install_id and _issued_by(leaf, other):
                self._alarm(other.install_id, Alert.IMPERSONATION)
                return partial(IssuerMismatch, trust_domain=name.trust_domain)
        if peer is None:
            return partial(PeerUnknown, install_id=install_id)
        return partial(IssuerMismatch, trust_domain=name.trust_domain)


def check_standing(peer: TrustedPeer, needed: Level, now: datetime) -> None:
    """
    Check that a peer may call something, as it stands now.

    Raises:
        PeerRevoked: It was revoked, or is blocked.
        TrustLevelTooLow: It is not trusted far enough.
    """
    drained = peer.revocation is Revocation.DRAIN and peer.drain_time is not None and now < peer.drain_time
    if peer.revocation is not Revocation.NONE and not drained:
        raise PeerRevoked(install_id=peer.install_id, mode=peer.revocation)
    if peer.level is Level.BLOCKED and not drained:
        raise PeerRevoked(install_id=peer.install_id, mode="")
    level = Level.KNOWN if drained else peer.level
    if not drained and not peer.may(needed):
        raise TrustLevelTooLow(level=level, needed=needed)


def _issued_by(leaf: x509.Certificate, peer: TrustedPeer) -> bool:
    return issued_by(leaf, (x509.load_der_x509_certificate(root) for root in peer.roots))


def _only(auth: Auth, key: str) -> bytes:
    """The one value of that key; empty where there is none, or more than one."""
    values = auth.get(key, ())
    return values[0] if len(values) == 1 else b""
