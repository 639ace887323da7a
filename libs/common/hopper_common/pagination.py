"""
Page sizes and page tokens.

A token is where the next page begins, together with a seal over the request it was made for. Whoever changes
the filter in the middle of a list gets an error instead of a page that fits neither; `page_size` may change
from page to page. The token is opaque, not secret: it holds a place in a list, and gives nobody a right.
"""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

from google.protobuf.message import Message

from hopper_common.errors import FieldViolation, InvalidArgument, PageTokenInvalid

_SEAL_BYTES = 12
_PAGING_FIELDS = ("page_size", "page_token")


class PageTokens:
    """
    Makes and reads the tokens of one service.

    Args:
        key: Mixed into the seal, up to 64 bytes. Replicas of a service need the same one.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    def encode(self, cursor: Mapping[str, Any], request: Message) -> str:
        """
        The token of the page that begins at *cursor*.

        Args:
            cursor: Where to go on, e.g. the last row's sort key. Values that JSON can hold.
            request: The list request being answered.
        """
        place = json.dumps(cursor, separators=(",", ":"), sort_keys=True).encode()
        return urlsafe_b64encode(self._seal(place, request) + place).decode().rstrip("=")

    def decode(self, token: str, request: Message) -> dict[str, Any]:
        """
        The cursor in *token*; empty for an empty token, the first page.

        Raises:
            PageTokenInvalid: Not made here, or for a request with other parameters.
        """
        if not token:
            return {}
        try:
            content = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raise PageTokenInvalid from None
        seal, place = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
        if not compare_digest(seal, self._seal(place, request)):
            raise PageTokenInvalid
        cursor: dict[str, Any] = json.loads(place)
        return cursor

    def _seal(self, place: bytes, request: Message) -> bytes:
        parameters = type(request)()
        parameters.CopyFrom(request)
        for field in _PAGING_FIELDS:
            parameters.ClearField(field)
        seal = blake2b(key=self._key, digest_size=_SEAL_BYTES)
        seal.update(request.DESCRIPTOR.full_name.encode() + b"\0")
        seal.update(blake2b(parameters.SerializeToString(deterministic=True)).digest())
        seal.update(place)
        return seal.digest()


def page_size(requested: int, *, default: int = 50, maximum: int = 1000) -> int:
    """
    How many entries to send: what was asked for, but at most *maximum*; *default* if nothing was asked.

    Raises:
        InvalidArgument: Negative.
    """
    if requested < 0:
        raise InvalidArgument(violations=[FieldViolation("page_size", "must not be negative")])
    return min(requested or default, maximum)
