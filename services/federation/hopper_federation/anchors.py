"""
What vouches for peers in the handshakes of the peer port.

gRPC takes one pool of roots for all of them, and with the plain roots in it each peer could issue a certificate in the
name of another. So the pool has copies of the roots that are signed here and hold for one trust domain each
(`hopper_common.identity.certificates.constrained_anchor`). What they do not see, the guard does: `peer_guard`.
"""

from functools import lru_cache

from cryptography import x509

from hopper_common.clock import Clock
from hopper_common.identity.certificates import constrained_anchor, new_root, to_pem
from hopper_common.identity.spiffe import trust_domain_of
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot, TrustSnapshots


class Anchors:
    """
    The pool, made anew when trust changes, and read in the middle of handshakes, on any thread.

    Attributes:
        pool: All peers' anchors, as PEM; empty: nobody gets in.
        nobody: A root that has issued nothing, for a channel that is to reach nobody.
    """

    def __init__(self, snapshots: TrustSnapshots, clock: Clock) -> None:
        self._clock = clock
        # It is in no pool: nobody trusts it, so its key is thrown away with the process.
        self._signer = new_root(clock.now())
        self.nobody = to_pem([self._signer.certificate])
        self._anchor = lru_cache(4096)(self._made)
        self.pool = b""
        self._take(snapshots.current)
        snapshots.on_change(self._take)

    def of(self, peer: TrustedPeer) -> bytes:
        """One peer's anchors, as PEM, for a channel to it."""
        return b"".join(self._anchor(peer.install_id, root) for root in peer.roots)

    def _take(self, snapshot: TrustSnapshot) -> None:
        self.pool = b"".join(self.of(peer) for peer in snapshot.peers.values())

    def _made(self, install_id: str, root: bytes) -> bytes:
        certificate = x509.load_der_x509_certificate(root)
        return constrained_anchor(certificate, trust_domain_of(install_id), self._signer, self._clock.now())
