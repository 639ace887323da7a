"""
What `PeerService.Hello` signs: whoever answers has a key of the Hopper that was called, now, for this caller.

Pure: bytes from values.
"""

from datetime import datetime
from typing import Final

from hopper_common.timestamps import to_micros

NONCE_BYTES: Final = 32

_LABEL: Final = b"hopper hello 1\0"


def signed(nonce: bytes, caller: str, callee: str, now: datetime) -> bytes:
    """
    The bytes under the signature of an answer.

    Args:
        nonce: The caller's, 32 bytes.
        caller: Its install id.
        callee: The answering one's.
        now: What time the answering one has.
    """
    return b"".join((_LABEL, nonce, caller.encode(), callee.encode(), to_micros(now).to_bytes(8, "big")))
