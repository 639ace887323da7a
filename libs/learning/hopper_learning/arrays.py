"""Arrays that grow, and the few sums that every expert needs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]

LOWEST: Final = -14.0
"""The least log-probability an expert may claim: one expert's certainty is not to outvote all others for ever."""


def grown(array: NDArray[Any], shape: tuple[int, ...], fill: float = 0.0) -> NDArray[Any]:
    """*array* with room for *shape*: itself, or a copy in which each short side is at least doubled."""
    if all(have >= need for have, need in zip(array.shape, shape, strict=True)):
        return array
    sizes = tuple(
        have if have >= need else max(need, 2 * have) for have, need in zip(array.shape, shape, strict=True)
    )
    larger = np.full(sizes, fill, array.dtype)
    larger[tuple(slice(0, have) for have in array.shape)] = array
    return larger


def compacted(table: NDArray[Any], rows: Indices, fill: float = 0.0) -> NDArray[Any]:
    """A table of which *rows* are the first, in order, with some room for more."""
    height = max(1024, 1 << int(len(rows) - 1).bit_length())
    smaller = np.full((height, *table.shape[1:]), fill, table.dtype)
    smaller[: len(rows)] = table[rows]
    return smaller


def scale(values: Floats, length: float) -> None:
    """Bring *values* to a length, in place; nothing stays nothing."""
    if len(values):
        values *= np.float32(length / float(np.sqrt((values * values).sum())))


def log_softmax(scores: Doubles) -> Doubles:
    """Log-probabilities of each row of *scores*, none below `LOWEST`."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(
        np.maximum(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), LOWEST), np.float64
    )


def softmax(scores: Doubles) -> Doubles:
    """Probabilities of *scores*."""
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), np.float64)
