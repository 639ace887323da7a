"""
What a Hopper tells others of its keys: made, signed, and verified by whoever knows nothing but the install id.

A bundle proves itself from its first root on. The install id is the hash of the first root's key; each later root is
tied to the one before by a statement that both have signed; the bundle is signed by the roots it calls active or
tainted, and by one it has prepared. So it does not matter where it came from: a peer, a file, a pairing.

Whoever knows an earlier bundle takes only one that goes on from it: of a higher sequence, with the same statements and
perhaps further ones, in which no root has come back from a later stage. That is what an attacker runs into who has got
hold of an old root: its statement for a root of the attacker's own does not go on from the chain that peers know.

A signature is made over a label and the payload, so that one made for one purpose says nothing for another.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from google.protobuf.message import DecodeError

from hopper.common.v1.identity_pb2 import (
    RootSignature,
    RootStage,
    RotationPayload,
    RotationStatement,
    SignedBundle,
    SigningKey,
    TrustBundle,
)
from hopper_common.identity.certificates import (
    RootKey,
    check_root,
    install_id_of,
    key_hash,
    sign_with,
    signed_with,
    to_der,
)
from hopper_common.identity.errors import BundleInvalid, BundleRollback
from hopper_common.identity.signing import check_signing_key
from hopper_common.identity.spiffe import trust_domain_of
from hopper_common.timestamps import to_proto

MOST_BYTES: Final = 64 * 1024
REFRESH_HINT: Final = timedelta(hours=1)
LEAST_HINT: Final = timedelta(minutes=1)

PREPARED: Final = RootStage.ROOT_STAGE_PREPARED
ACTIVE: Final = RootStage.ROOT_STAGE_ACTIVE
TAINTED: Final = RootStage.ROOT_STAGE_TAINTED
REVOKED: Final = RootStage.ROOT_STAGE_REVOKED
TRUSTED: Final = frozenset({PREPARED, ACTIVE, TAINTED})
LISTED: Final = TRUSTED | {REVOKED}

_BUNDLE: Final = b"hopper bundle 1\0"
_ROTATION: Final = b"hopper rotation 1\0"
_DATA: Final = b"hopper root signature 1\0"


# Reading them.


def certificate_of(der: bytes) -> x509.Certificate:
    """
    Read a certificate of a message.

    Raises:
        BundleInvalid: It is none.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _invalid("a certificate that cannot be read") from error
    return certificate


def roots_of(bundle: TrustBundle, stages: Iterable[int] = TRUSTED) -> list[x509.Certificate]:
    """The roots in any of these stages, in the order of their rotation."""
    wanted = frozenset(stages)
    return [certificate_of(root.certificate) for root in bundle.roots if root.stage in wanted]


# Making them.


def new_bundle(root: RootKey, signing_keys: Iterable[SigningKey], now: datetime) -> TrustBundle:
    """The first bundle of a Hopper whose first root that is."""
    bundle = TrustBundle(
        install_id=install_id_of(root.certificate),
        sequence=1,
        signing_keys=signing_keys,
        genesis_certificate=to_der(root.certificate),
        refresh_hint=to_proto(REFRESH_HINT),
        create_time=to_proto(now),
    )
    bundle.roots.add(certificate=to_der(root.certificate), stage=ACTIVE)
    return bundle


def successor(bundle: TrustBundle, now: datetime) -> TrustBundle:
    """A copy to change: the next sequence, made now."""
    following = TrustBundle()
    following.CopyFrom(bundle)
    following.sequence += 1
    following.create_time.CopyFrom(to_proto(now))
    return following


def sign_bundle(bundle: TrustBundle, keys: Iterable[RootKey]) -> SignedBundle:
    """The bundle as it travels. *keys*: of every root that is active or tainted, and of one that is prepared."""
    payload = bundle.SerializeToString(deterministic=True)
    return SignedBundle(
        payload=payload,
        signatures=[
            RootSignature(
                key_hash=key_hash(each.certificate), signature=sign_with(each.key, _BUNDLE + payload)
            )
            for each in keys
        ],
    )


def state_rotation(
    previous: RootKey, following: RootKey, bundle: TrustBundle, now: datetime
) -> RotationStatement:
    """Tie the next root to the latest one of the bundle."""
    payload = RotationPayload(
        install_id=bundle.install_id,
        sequence=len(bundle.rotations) + 1,
        previous_key_hash=key_hash(previous.certificate),
        next_certificate=to_der(following.certificate),
        create_time=to_proto(now),
    ).SerializeToString(deterministic=True)
    return RotationStatement(
        payload=payload,
        signature_by_previous=sign_with(previous.key, _ROTATION + payload),
        signature_by_next=sign_with(following.key, _ROTATION + payload),
    )


# Verifying them.


def verify_bundle(signed: SignedBundle, *, known: TrustBundle | None = None, now: datetime) -> TrustBundle:
    """
    Read a bundle, if it proves what it says.

    Whose it is, is in the answer: with nothing known, compare its `install_id` with who it should be.

    Args:
        known: The verified bundle of that Hopper that was known before. The same one again is accepted.

    Raises:
        BundleInvalid: It proves nothing, or is another Hopper's than the known one.
        BundleRollback: It is older than the known one, or does not go on from it.
    """
    if signed.ByteSize() > MOST_BYTES:
        raise _invalid(f"more than {MOST_BYTES} bytes")
    bundle = _read(signed.payload)
    chain = _chain(bundle)
    stages = _stages(bundle, chain)
    _check_signatures(signed, chain, stages)
    _check_times(bundle, chain, stages, now)
    for key in bundle.signing_keys:
        check_signing_key(key)
    if known is not None:
        _check_follows(bundle, known)
    return bundle


def verify_chain(genesis: bytes, rotations: Sequence[RotationStatement]) -> list[x509.Certificate]:
    """
    The roots of a chain of statements, the first one first.

    Raises:
        BundleInvalid: A statement does not follow from the one before it.
    """
    first = certificate_of(genesis)
    install_id = install_id_of(first)
    domain = trust_domain_of(install_id)
    _check_root(first, domain)
    chain = [first]
    for number, statement in enumerate(rotations, start=1):
        chain.append(_next_root(chain[-1], statement, install_id, number))
        _check_root(chain[-1], domain)
    if len({key_hash(root) for root in chain}) != len(chain):
        raise _invalid("a root that comes back")
    return chain


def _read(payload: bytes) -> TrustBundle:
    try:
        return TrustBundle.FromString(payload)
    except DecodeError as error:
        raise _invalid("bytes that are no bundle") from error


def _chain(bundle: TrustBundle) -> dict[bytes, x509.Certificate]:
    chain = verify_chain(bundle.genesis_certificate, bundle.rotations)
    if install_id_of(chain[0]) != bundle.install_id:
        raise _invalid("a first root that is another Hopper's")
    return {key_hash(root): root for root in chain}


def _next_root(
    previous: x509.Certificate, statement: RotationStatement, install_id: str, number: int
) -> x509.Certificate:
    try:
        payload = RotationPayload.FromString(statement.payload)
    except DecodeError as error:
        raise _invalid(f"rotation {number}, which cannot be read") from error
    following = certificate_of(payload.next_certificate)
    if (payload.install_id, payload.sequence) != (install_id, number):
        raise _invalid(f"rotation {number}, which is of another Hopper or in another place")
    if payload.previous_key_hash != key_hash(previous):
        raise _invalid(f"rotation {number}, which does not follow from the root before it")
    _check_root(following, trust_domain_of(install_id))
    data = _ROTATION + statement.payload
    if not signed_with(previous, statement.signature_by_previous, data):
        raise _invalid(f"rotation {number}, which the root before has not signed")
    if not signed_with(following, statement.signature_by_next, data):
        raise _invalid(f"rotation {number}, which the root after has not signed")
    return following


def _check_root(root: x509.Certificate, trust_domain: str) -> None:
    try:
        check_root(root, trust_domain)
    except ValueError as error:
        raise _invalid(f"a root that is none: {error}") from error


def _stages(bundle: TrustBundle, chain: Mapping[bytes, x509.Certificate]) -> dict[bytes, int]:
    """Where each listed root stands, in the order of the chain."""
    listed = {key_hash(certificate_of(root.certificate)): root for root in bundle.roots}
    if len(listed) != len(bundle.roots):
        raise _invalid("a root that is listed twice")
    for digest, root in listed.items():
        if digest not in chain or to_der(chain[digest]) != root.certificate:
            raise _invalid("a root that no statement leads to")
        if root.stage not in RootStage.values() or root.stage == RootStage.ROOT_STAGE_UNSPECIFIED:
            raise _invalid("a root in a stage that is unknown")
    stages = {digest: int(listed[digest].stage) for digest in chain if digest in listed}
    _check_order(list(stages.values()), latest_listed=list(chain)[-1] in stages)
    return stages


def _check_order(stages: Sequence[int], *, latest_listed: bool) -> None:
    if ACTIVE not in stages or not latest_listed:
        raise _invalid("no root that is active, or not the latest root")
    # Roots go through the stages in the order in which they were made, so that a later one is never further.
    if any(earlier < later for earlier, later in pairwise(stages)):
        raise _invalid("roots whose stages are not in order")


def _check_signatures(
    signed: SignedBundle, chain: Mapping[bytes, x509.Certificate], stages: Mapping[bytes, int]
) -> None:
    by = {each.key_hash: each.signature for each in signed.signatures}
    for digest, stage in stages.items():
        if stage in TRUSTED and not signed_with(chain[digest], by.get(digest, b""), _BUNDLE + signed.payload):
            raise _invalid("a root that has not signed it")


def _check_times(
    bundle: TrustBundle,
    chain: Mapping[bytes, x509.Certificate],
    stages: Mapping[bytes, int],
    now: datetime,
) -> None:
    issuing = [digest for digest, stage in stages.items() if stage == ACTIVE][-1]
    if chain[issuing].not_valid_after_utc <= now:
        raise _invalid("an active root that has expired")
    if bundle.sequence < 1 or bundle.refresh_hint.seconds < LEAST_HINT.total_seconds():
        raise _invalid("no sequence, or a refresh hint of less than a minute")


def _check_follows(bundle: TrustBundle, known: TrustBundle) -> None:
    if bundle.install_id != known.install_id:
        raise _invalid("keys of another Hopper than the known ones")
    if bundle.sequence < known.sequence:
        raise _rollback(bundle, known, "is older than the one known")
    if bundle.sequence == known.sequence and bundle != known:
        raise _rollback(bundle, known, "has the sequence of another")
    earlier = [statement.payload for statement in known.rotations]
    if [statement.payload for statement in bundle.rotations][: len(earlier)] != earlier:
        raise _rollback(bundle, known, "does not go on from the rotations known")
    stages = {root.certificate: root.stage for root in bundle.roots}
    if any(stages.get(root.certificate, REVOKED) < root.stage for root in known.roots):
        raise _rollback(bundle, known, "takes a root back to an earlier stage")


def _invalid(what: str) -> BundleInvalid:
    return BundleInvalid(f"the bundle has {what}", what="bundle")


def _rollback(bundle: TrustBundle, known: TrustBundle, what: str) -> BundleRollback:
    return BundleRollback(f"the bundle {what}", sequence=str(bundle.sequence), known=str(known.sequence))


# Other signatures of roots, such as those by which two Hoppers pair.


def sign_data(root: RootKey, data: bytes) -> bytes:
    """A root's signature over something that is neither a bundle nor a rotation."""
    return sign_with(root.key, _DATA + data)


def verify_data(root: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Whether `sign_data` made it, with that root."""
    return signed_with(root, signature, _DATA + data)
