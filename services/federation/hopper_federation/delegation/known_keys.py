"""Whose signatures can be verified here: this Hopper's own, and those of the peers that it knows."""

from collections.abc import Sequence

from hopper.common.v1.identity_pb2 import SigningKey, TrustBundle
from hopper_common.identity.store import Identity
from hopper_federation.model import Revocation
from hopper_federation.trust_snapshot import TrustSnapshots


class KnownKeys:
    """
    A `chain.KeysOf`.

    A peer whose keys somebody else may have is not known: what they sign says nothing, whenever it says it was signed.
    """

    def __init__(self, identity: Identity, snapshots: TrustSnapshots) -> None:
        self._identity = identity
        self._snapshots = snapshots
        self._read: dict[str, tuple[bytes, Sequence[SigningKey]]] = {}

    def __call__(self, install_id: str) -> Sequence[SigningKey] | None:
        """The signing keys of an install; None: it is not known here."""
        if install_id == self._identity.install_id:
            return self._identity.trust_bundle().signing_keys
        peer = self._snapshots.current.peers.get(install_id)
        if peer is None or not peer.bundle or peer.revocation is Revocation.COMPROMISED:
            return None
        bundle, keys = self._read.get(install_id, (b"", ()))
        if bundle != peer.bundle:
            keys = tuple(TrustBundle.FromString(peer.bundle).signing_keys)
            self._read[install_id] = peer.bundle, keys
        return keys
