"""
The last snapshot of what was learned, in a file of this router's own: to begin with, when memory is away.

Position and SHA-256 stand before the bytes. A file that is not whole is no file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, NamedTuple

_POSITION_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_HEAD_BYTES: Final = _POSITION_BYTES + _DIGEST_BYTES


class Snapshot(NamedTuple):
    """What was known after the lesson at `position`."""

    position: int
    data: bytes


def write(path: Path, snapshot: Snapshot) -> None:
    """
    Put a snapshot in the place of the last one: after a crash there is the one or the other.

    Raises:
        OSError: The file system's; the last one is still there.
    """
    beside = path.with_name(f"{path.name}.new")
    with open(beside, "wb", opener=_private) as file:
        file.write(snapshot.position.to_bytes(_POSITION_BYTES))
        file.write(hashlib.sha256(snapshot.data).digest())
        file.write(snapshot.data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> Snapshot | None:
    """The snapshot in a file; None if there is none, or it is damaged or cannot be read."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    data = whole[_HEAD_BYTES:]
    if len(whole) < _HEAD_BYTES or whole[_POSITION_BYTES:_HEAD_BYTES] != hashlib.sha256(data).digest():
        return None
    return Snapshot(int.from_bytes(whole[:_POSITION_BYTES]), data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # it has words of tasks in it
