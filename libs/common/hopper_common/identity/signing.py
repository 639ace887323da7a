"""
Keys that sign task envelopes and results, and never a connection: Ed25519, good for 90 days, listed in the bundle.

Their own, so that whoever gets hold of a connection's key cannot sign tasks. The next key is made when the current one
is half through, and is used a day after it was told: by then every peer that asks for bundles knows it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hopper.common.v1.identity_pb2 import SigningKey
from hopper_common.identity.certificates import BACKDATED
from hopper_common.identity.errors import BundleInvalid, SignatureInvalid
from hopper_common.timestamps import from_proto, to_proto

KEY_LIFETIME: Final = timedelta(days=90)
TOLD_BEFORE_USE: Final = timedelta(days=1)
KEPT_AFTER: Final = timedelta(days=90)
"""How long a key that was replaced stays listed, so that what it signed can be verified."""

_ENVELOPE: Final = b"hopper envelope 1\0"
_KEY_BYTES: Final = 32
_END_OF_TIME: Final = 253402300800  # the year 10000, past which there is no datetime


@dataclass(frozen=True, slots=True)
class Signature:
    """
    A signature by a signing key.

    Attributes:
        key_id: Which of the bundle's keys made it.
        signature: Ed25519, 64 bytes.
    """

    key_id: str
    signature: bytes


def key_id_of(public_key: bytes) -> str:
    """SHA-256 of a public key, the first 16 bytes in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def describe(key: Ed25519PrivateKey, not_before: datetime) -> SigningKey:
    """A key as the bundle lists it."""
    public = key.public_key().public_bytes_raw()
    return SigningKey(
        key_id=key_id_of(public),
        public_key=public,
        not_before=to_proto(not_before),
        not_after=to_proto(not_before + KEY_LIFETIME),
    )


def first_key(now: datetime) -> tuple[Ed25519PrivateKey, SigningKey]:
    """A key to be used at once."""
    key = Ed25519PrivateKey.generate()
    return key, describe(key, now - BACKDATED)


def next_key(now: datetime) -> tuple[Ed25519PrivateKey, SigningKey]:
    """A key to be told now and used later."""
    key = Ed25519PrivateKey.generate()
    return key, describe(key, now + TOLD_BEFORE_USE)


def check_signing_key(key: SigningKey) -> None:
    """
    Check a listed key.

    Raises:
        BundleInvalid: Its id is not its own, or its times make no sense.
    """
    if len(key.public_key) != _KEY_BYTES or key.key_id != key_id_of(key.public_key):
        raise BundleInvalid("the bundle has a signing key whose id is not its own", what="bundle")
    if not 0 < key.not_before.seconds < key.not_after.seconds < _END_OF_TIME:
        raise BundleInvalid("the bundle has a signing key that is never valid", what="bundle")


def in_use(keys: Iterable[SigningKey], now: datetime) -> SigningKey | None:
    """The key to sign with: the latest that may be used already."""
    ready = [key for key in keys if from_proto(key.not_before) <= now < from_proto(key.not_after)]
    return max(ready, key=lambda key: from_proto(key.not_before), default=None)


def made_if_due(keys: Sequence[SigningKey], now: datetime) -> tuple[Ed25519PrivateKey, SigningKey] | None:
    """A further key, if the latest is half through or there is none to sign with; else None."""
    if in_use(keys, now) is None:
        return first_key(now)
    latest = max(keys, key=lambda key: from_proto(key.not_before))
    if from_proto(latest.not_before) + KEY_LIFETIME / 2 <= now:
        return next_key(now)
    return None


def without_forgotten(keys: Sequence[SigningKey], now: datetime) -> list[SigningKey]:
    """The keys that stay listed: not those replaced a long time ago."""
    in_order = sorted(keys, key=lambda key: from_proto(key.not_before))
    return [
        key
        for key, following in zip(in_order, [*in_order[1:], None], strict=True)
        if following is None
        or now < min(from_proto(following.not_before), from_proto(key.not_after)) + KEPT_AFTER
    ]


def sign(key: Ed25519PrivateKey, data: bytes) -> Signature:
    """Sign with a signing key."""
    return Signature(key_id_of(key.public_key().public_bytes_raw()), key.sign(_ENVELOPE + data))


def verify_signature(keys: Iterable[SigningKey], signature: Signature, data: bytes, *, at: datetime) -> None:
    """
    Check who signed something.

    Args:
        keys: The `signing_keys` of the signer's verified bundle.
        at: When it was signed, as far as is known: the key must have been valid then.

    Raises:
        SignatureInvalid: By none of these keys, not of this data, or when the key was not valid.
    """
    key = next((key for key in keys if key.key_id == signature.key_id), None)
    if key is None:
        raise SignatureInvalid(
            "the signature is by a key that the bundle does not list", what=signature.key_id
        )
    if not from_proto(key.not_before) <= at < from_proto(key.not_after):
        raise SignatureInvalid("the signature is by a key that was not valid then", what=signature.key_id)
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature.signature, _ENVELOPE + data)
    except InvalidSignature as error:
        raise SignatureInvalid("the signature does not verify", what=signature.key_id) from error
