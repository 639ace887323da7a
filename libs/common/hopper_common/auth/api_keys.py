"""
API keys: `hop_{id}_{secret}_{check}`.

The secret is 256 random bits as 43 characters of base 62, so one unsalted SHA-256 keeps it: nobody guesses their way
through 2**256. The check is the CRC-32 of all before it, as 6 characters: a mistyped key, and a scanner that looks for
keys in sources, need no database. The key is shown once and never kept.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from typing import Final, NamedTuple

PREFIX: Final = "hop_"

_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH: Final = 12
# No underscore in the id: it ends there.
_FORM: Final = re.compile(
    r"hop_([a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", re.ASCII
)


class NewKey(NamedTuple):
    """
    A key that was just made.

    Attributes:
        id: Random, not secret: the last part of its resource name.
        key: Shown once.
        hash: What is kept.
    """

    id: str
    key: str
    hash: bytes

    def __repr__(self) -> str:
        return f"NewKey(id={self.id!r})"  # the key must not reach a log


def new_key() -> NewKey:
    """Make a key."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    body = f"{PREFIX}{key_id}_{_base62(secrets.randbits(256), _SECRET_LENGTH)}"
    key = f"{body}_{_check(body)}"
    return NewKey(key_id, key, hash_of(key))


def id_of(key: str) -> str | None:
    """The id in a key; None if it is no key, or mistyped."""
    found = _FORM.fullmatch(key)
    if found is None or not hmac.compare_digest(key[-_CHECK_LENGTH:], _check(key[: -_CHECK_LENGTH - 1])):
        return None
    return found[1]


def hash_of(key: str) -> bytes:
    """What is kept of a key: SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def matches(key: str, kept: bytes) -> bool:
    """Whether it is the key with that hash; takes as long for any other."""
    return hmac.compare_digest(hash_of(key), kept)


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
