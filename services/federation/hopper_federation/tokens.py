"""
Invitations as text: what one owner sends the other, over a channel both trust.

    hopper1: base64url( id 16 · secret 16 · install id 20 · root key 33 · expiry 5 · [length 1 · host:port]… · check 4 )

Around 180 characters. The root travels as its public key (a compressed point of P-256), which is all it takes to check
the certificate of whoever answers, and a tenth of a whole certificate. The check finds a slip of whoever copies it;
against forging it is no help and need not be: who alters the key is not whom the other owner meant, and the six words
that both then see are not the same.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.identity.spiffe import SpiffeInvalid, check_install_id

PREFIX: Final = "hopper1:"
ID_BYTES: Final = 16
SECRET_BYTES: Final = 16
KEY_BYTES: Final = 33
MOST_ADDRESSES: Final = 8
MOST_ADDRESS_BYTES: Final = 255
MOST_CHARACTERS: Final = 4096
LATEST: Final = 253402300799  # the end of the year 9999

_INSTALL_BYTES: Final = 20
_TIME_BYTES: Final = 5
_CHECK_BYTES: Final = 4
_FIXED: Final = ID_BYTES + SECRET_BYTES + _INSTALL_BYTES + KEY_BYTES + _TIME_BYTES


@dataclass(frozen=True, slots=True)
class Token:
    """
    An invitation as it travels.

    Attributes:
        invitation: Which one, 16 bytes.
        secret: 128 bits, known to whoever has the token. Never sent, and never shown.
        install_id: Of the Hopper that invites.
        root_key: Its active root's public key, a compressed point of P-256.
        addresses: Where its pairing port may be, `host:port`; all are tried.
        expire_time: Until when it may be redeemed, in whole seconds.
    """

    invitation: bytes
    secret: bytes = field(repr=False)
    install_id: str
    root_key: bytes
    addresses: tuple[str, ...]
    expire_time: datetime

    def __str__(self) -> str:
        return f"{PREFIX}…"  # never by accident


def encode(token: Token) -> str:
    """
    The text of a token.

    Raises:
        ValueError: A part has another length than it must, or there are too many addresses.
    """
    parts = (token.invitation, token.secret, _packed(token.install_id), token.root_key)
    lengths = (ID_BYTES, SECRET_BYTES, _INSTALL_BYTES, KEY_BYTES)
    if any(len(part) != length for part, length in zip(parts, lengths, strict=True)):
        raise ValueError("a part of the token has the wrong length")
    if len(token.addresses) > MOST_ADDRESSES:
        raise ValueError(f"a token has at most {MOST_ADDRESSES} addresses")
    content = b"".join(parts) + int(token.expire_time.timestamp()).to_bytes(_TIME_BYTES)
    content += b"".join(_counted(address) for address in token.addresses)
    return PREFIX + base64.urlsafe_b64encode(content + _check(content)).decode().rstrip("=")


def decode(text: str) -> Token:
    """
    Read the text of a token; white space in it does not matter, as mail breaks lines.

    Raises:
        InvalidArgument: It is no token, of a version this Hopper does not know, cut short, or has a slip.
    """
    plain = "".join(text.split())
    if not plain.startswith(PREFIX):
        known = plain[:16].partition(":")[0]
        newer = known.startswith("hopper") and known.removeprefix("hopper").isdecimal()
        raise _wrong(
            "is of a newer Hopper: upgrade this one"
            if newer
            else f"is no invitation: it begins with {PREFIX}"
        )
    content = _unpadded(plain.removeprefix(PREFIX))
    if len(content) < _FIXED + _CHECK_BYTES or content[-_CHECK_BYTES:] != _check(content[:-_CHECK_BYTES]):
        raise _wrong("is cut short or has a slip: copy all of it once more")
    return _read(content[:-_CHECK_BYTES])


def _read(content: bytes) -> Token:
    fixed, at = [], 0
    for length in (ID_BYTES, SECRET_BYTES, _INSTALL_BYTES, KEY_BYTES, _TIME_BYTES):
        fixed.append(content[at : at + length])
        at += length
    invitation, secret, install, root_key, seconds = fixed
    try:
        return Token(
            invitation=invitation,
            secret=secret,
            install_id=base64.b32encode(install).decode().lower(),
            root_key=root_key,
            addresses=_addresses(content[at:]),
            expire_time=datetime.fromtimestamp(min(int.from_bytes(seconds), LATEST), UTC),
        )
    except (UnicodeDecodeError, IndexError):
        raise _wrong("is damaged: ask for a new one") from None


def _addresses(content: bytes) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(content):
        end = at + 1 + content[at]
        if end > len(content) or len(found) == MOST_ADDRESSES:
            raise IndexError
        found.append(content[at + 1 : end].decode())
        at = end
    return tuple(found)


def _unpadded(text: str) -> bytes:
    if len(text) > MOST_CHARACTERS or not text.isascii():
        raise _wrong("is no invitation")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise _wrong("is cut short or has a slip: copy all of it once more") from None


def _packed(install_id: str) -> bytes:
    try:
        return base64.b32decode(check_install_id(install_id).upper())
    except SpiffeInvalid as error:
        raise ValueError(str(error)) from error


def _counted(address: str) -> bytes:
    encoded = address.encode()
    if not 0 < len(encoded) <= MOST_ADDRESS_BYTES:
        raise ValueError(f"an address has 1 to {MOST_ADDRESS_BYTES} bytes")
    return bytes([len(encoded)]) + encoded


def _check(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECK_BYTES]


def _wrong(what: str) -> InvalidArgument:
    return InvalidArgument(violations=[FieldViolation("token", what)])
