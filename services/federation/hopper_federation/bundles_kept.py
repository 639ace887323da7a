"""
What peers tell of their keys, taken over if it proves itself and goes on from what is known; and what they know of
this Hopper's.

It is durable before anybody is told that it was taken: a peer that heard so may drop its old root, and this Hopper must
then know the new one, also after being killed.
"""

from collections.abc import Callable
from dataclasses import replace

from hopper.common.v1.identity_pb2 import SignedBundle
from hopper_common.identity.bundles import ACTIVE, roots_of, verify_bundle
from hopper_common.identity.errors import BundleInvalid, BundleRollback, SignatureInvalid
from hopper_federation.errors import PeerUnknown
from hopper_federation.introductions import point_of
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Alert


async def take(
    federation: Federation, install_id: str, signed: SignedBundle, alarm: Callable[[str, Alert], None]
) -> int:
    """
    Take a peer's bundle over.

    Args:
        install_id: Who told it, as proved by its certificate.
        alarm: Told of a bundle that does not add up.

    Returns:
        The sequence that is durable here now.

    Raises:
        PeerUnknown: It is no peer.
        BundleInvalid: The bundle proves nothing, or is somebody else's.
        BundleRollback: It is older than the known one, or does not go on from it.
    """
    try:
        return await federation.write(lambda store: _take(store, install_id, signed))
    except BundleRollback as error:
        # An older one is only late; another one of the same age or later says something else than before.
        if int(error.metadata["sequence"]) >= int(error.metadata["known"]):
            alarm(install_id, Alert.KEY_CHANGED)
        raise
    except SignatureInvalid:
        alarm(install_id, Alert.SIGNATURE_FAILED)
        raise


async def acknowledged(federation: Federation, install_id: str, sequence: int) -> None:
    """
    Note what a peer has said that it knows of this Hopper's keys. Durable when this returns.

    Args:
        install_id: Who said so, as proved by its certificate.
        sequence: Of this Hopper's bundle.
    """
    if sequence > await federation.read(lambda store: store.acknowledged(install_id)):
        await federation.write(lambda store: store.acknowledge(install_id, sequence))


def _take(store: SqlStore, install_id: str, signed: SignedBundle) -> int:
    peer = store.peer_of(install_id)
    if peer is None:
        raise PeerUnknown(install_id=install_id)
    known = store.bundle(install_id)
    bundle = verify_bundle(signed, known=known, now=store.now)
    if bundle.install_id != install_id:
        raise BundleInvalid("the bundle is another Hopper's", what="bundle")
    if known is None or bundle.sequence > known.sequence:
        root = roots_of(bundle, (ACTIVE,))[-1]
        store.save_bundle(install_id, bundle.sequence, point_of(root), signed.SerializeToString())
        store.save_peer(replace(peer, bundle_sequence=bundle.sequence, revision=peer.revision + 1))
    return bundle.sequence
