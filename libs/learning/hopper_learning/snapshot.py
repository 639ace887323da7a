"""
A model's state as bytes: versioned, checksummed, refused when damaged, newer, or of other vectors.

    magic (4) | format (2, big endian) | SHA-256 of the rest (32) | deflated: length (4) | JSON | arrays

The JSON holds the state with each array replaced by its place; tables that are mostly one value are kept as the cells
that differ. The state is whole: a restored model goes on exactly as the one that was saved, to the last digit.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hopper_learning.errors import SnapshotCorrupt, SnapshotTooNew

FORMAT: Final = 1
"""Raised whenever a model of this code could not go on from an older snapshot as it would have from the log."""

_MAGIC: Final = b"HPLM"
_HEAD: Final = len(_MAGIC) + 2 + 32
_LEVEL: Final = 1  # most of the size is won by leaving cells out; more effort costs seconds

State: TypeAlias = dict[str, Any]
"""JSON-able values, arrays and `Sparse` tables, nested as one likes."""


class Sparse(NamedTuple):
    """A table most of whose cells are *fill*."""

    table: NDArray[Any]
    fill: float


def pack(state: State) -> bytes:
    """Bytes from which `unpack` makes the same state."""
    blobs: list[bytes] = []
    text = json.dumps(_taken_apart(state, blobs), separators=(",", ":")).encode()
    body = zlib.compress(b"".join((len(text).to_bytes(4, "big"), text, *blobs)), _LEVEL)
    return _MAGIC + FORMAT.to_bytes(2, "big") + hashlib.sha256(body).digest() + body


def unpack(data: bytes) -> State:
    """
    The state that was packed.

    Raises:
        SnapshotCorrupt: These are not the bytes that were written.
        SnapshotTooNew: Newer code wrote them.
    """
    if len(data) < _HEAD or data[:4] != _MAGIC:
        raise SnapshotCorrupt
    format_ = int.from_bytes(data[4:6], "big")
    body = data[_HEAD:]
    if hashlib.sha256(body).digest() != data[6:_HEAD]:
        raise SnapshotCorrupt
    if format_ > FORMAT:
        raise SnapshotTooNew
    if format_ < FORMAT:
        raise SnapshotCorrupt("the snapshot's format is no longer read; fold the log from its start")
    plain = zlib.decompress(body)
    start = 4 + int.from_bytes(plain[:4], "big")
    state = _put_together(json.loads(plain[4:start]), memoryview(plain)[start:], [0])
    assert isinstance(state, dict)  # noqa: S101 - what was packed was one
    return state


def _taken_apart(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, dict):
        return {key: _taken_apart(inner, blobs) for key, inner in value.items()}
    if isinstance(value, Sparse):
        cells = np.flatnonzero(value.table != value.fill)
        kept = [_array(cells.astype(np.uint32), blobs), _array(value.table.ravel()[cells], blobs)]
        return {"$cells": kept, "shape": value.table.shape, "fill": value.fill}
    if isinstance(value, np.ndarray):
        return _array(value, blobs)
    if isinstance(value, (list, tuple)):
        return [_taken_apart(inner, blobs) for inner in value]
    return value


def _array(array: NDArray[Any], blobs: list[bytes]) -> State:
    blobs.append(array.tobytes())
    return {"$array": array.dtype.str, "shape": array.shape}


def _put_together(value: Any, blobs: memoryview, at: list[int]) -> Any:
    """Read arrays in the order in which they were taken apart; *at* is how far the blobs are read."""
    if isinstance(value, list):
        return [_put_together(inner, blobs, at) for inner in value]
    if not isinstance(value, dict):
        return value
    if "$cells" in value:
        cells, values = (_put_together(inner, blobs, at) for inner in value["$cells"])
        table = np.full(value["shape"], value["fill"], values.dtype)
        table.reshape(-1)[cells] = values
        return table
    if "$array" in value:
        kind, shape = np.dtype(value["$array"]), tuple(value["shape"])
        begin, at[0] = at[0], at[0] + kind.itemsize * int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(blobs[begin : at[0]], kind).reshape(shape).copy()
    return {key: _put_together(inner, blobs, at) for key, inner in value.items()}
