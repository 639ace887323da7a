"""
Bytes sealed with a passphrase: scrypt makes the key, AES-256-GCM seals.

    magic 8 │ version 1 │ log2 n, r, p │ salt 16 │ nonce 12 │ sealed bytes │ SHA-256 of all before

Everything before the sealed bytes is authenticated with them, and so is what they are for. The hash at the end tells
damage, which a new copy may mend, from a wrong passphrase.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hopper_common.identity.errors import IdentityDamaged, IdentityNewer, WrongPassphrase

_MAGIC: Final = b"HOPRSEAL"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">8sBBBB16s12s")
_HASH_BYTES: Final = 32
_KEY_BYTES: Final = 32
_MOST_LOG_N: Final = 20  # a gigabyte: whoever sends us a file should not choose more
_MOST_FACTOR: Final = 16


@dataclass(frozen=True, slots=True)
class Cost:
    """What guessing a passphrase costs: 128 * r * 2**log_n bytes of memory, p times."""

    log_n: int
    r: int = 8
    p: int = 1


AT_EVERY_START: Final = Cost(15)
"""32 MiB, some 80 ms."""
FOR_BACKUPS: Final = Cost(17)
"""128 MiB, some 0.4 s."""


def is_sealed(content: bytes) -> bool:
    """Whether these bytes are of this form."""
    return content.startswith(_MAGIC)


def seal(content: bytes, passphrase: bytes, *, purpose: bytes, cost: Cost) -> bytes:
    """
    Seal bytes.

    Args:
        purpose: What they are for; has to be told again to open them.
    """
    salt, nonce = os.urandom(16), os.urandom(12)
    header = _HEADER.pack(_MAGIC, _VERSION, cost.log_n, cost.r, cost.p, salt, nonce)
    sealed = AESGCM(_key(passphrase, salt, cost)).encrypt(nonce, content, header + purpose)
    return header + sealed + hashlib.sha256(header + sealed).digest()


def unseal(content: bytes, passphrase: bytes, *, purpose: bytes, name: str) -> bytes:
    """
    Open what was sealed.

    Args:
        name: Of the file, for errors.

    Raises:
        IdentityDamaged: Cut short, altered, or never sealed.
        IdentityNewer: Sealed by a newer Hopper.
        WrongPassphrase: Sealed with another passphrase, or for another purpose.
    """
    if len(content) < _HEADER.size + _HASH_BYTES or not is_sealed(content):
        raise IdentityDamaged(f"{name} is not sealed by Hopper, or is cut short: take another copy")
    _, version, log_n, r, p, salt, nonce = _HEADER.unpack_from(content)
    if version > _VERSION:
        raise IdentityNewer(f"{name} was sealed by a newer Hopper (version {version}): upgrade this one")
    rest, digest = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
    bounded = 1 <= log_n <= _MOST_LOG_N and 1 <= r <= _MOST_FACTOR and 1 <= p <= _MOST_FACTOR
    if hashlib.sha256(rest).digest() != digest or not bounded:
        raise IdentityDamaged(f"{name} is damaged: take another copy")
    header, sealed = rest[: _HEADER.size], rest[_HEADER.size :]
    try:
        return AESGCM(_key(passphrase, salt, Cost(log_n, r, p))).decrypt(nonce, sealed, header + purpose)
    except InvalidTag:
        raise WrongPassphrase(f"the passphrase does not open {name}") from None


def _key(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=1 << cost.log_n, r=cost.r, p=cost.p).derive(passphrase)
