"""Whose signatures can be verified here: this Hopper's own, and those of the peers that it knows."""

from collections.abc import Sequence

from hopper.common.v1.identity_pb2 import SigningKey, TrustBundle
from hopper_common.clock import Clock
from hopper_common.identity.store import Identity
from hopper_federation.model import Revocation
from hopper_federation.trust_snapshot import TrustSnapshots


class KnownKeys:
    """
    A `chain.KeysOf`.

    A peer whose keys somebody else may have is not known: what they sign says nothing, whenever it says it was signed.
    A peer that was parted from is known by the keys that it had told by then, and tells of new ones no more: what is
    signed with a newer one, and brought by a third Hopper, is a claim, as by anybody who is not known.
    """

    def __init__(self, identity: Identity, snapshots: TrustSnapshots, clock: Clock) -> None:
        self._identity = identity
        self._snapshots = snapshots
        self._clock = clock
        self._read: dict[str, tuple[bytes, Sequence[SigningKey]]] = {}

    def __call__(self, install_id: str, key_id: str) -> Sequence[SigningKey] | None:
        """The signing keys of an install; None: whose the key of that id is, is not known here."""
        if install_id == self._identity.install_id:
            return self._identity.trust_bundle().signing_keys
        peer = self._snapshots.current.peers.get(install_id)
        if peer is None or not peer.bundle or peer.revocation is Revocation.COMPROMISED:
            return None
        bundle, keys = self._read.get(install_id, (b"", ()))
        if bundle != peer.bundle:
            keys = tuple(TrustBundle.FromString(peer.bundle).signing_keys)
            self._read[install_id] = peer.bundle, keys
        told = any(key.key_id == key_id for key in keys)
        return keys if told or not peer.is_gone(self._clock.now()) else None
