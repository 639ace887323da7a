"""
Pieces of words: what is left to go by when a word is new, misspelt, inflected, or of a language nobody foresaw.

A piece is four bytes in a row, within a word or over one of its edges, of the title or of the beginning of the
description. Pieces are hashed to a fixed number of rows: there are too many to remember by name, and a collision of two
costs little where a text has a hundred.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hopper_learning.arrays import Indices

ROWS: Final = 1 << 14

_BODY_CHARACTERS: Final = 400
_SPREAD: Final = np.uint32(
    2_654_435_761
)  # Knuth's multiplicative hash: the high bits are the well mixed ones
_SHIFT: Final = np.uint32(32 - 14)
_SPACE: Final = 32
_SEPARATED: Final = bytes(code if code > 127 or chr(code).isalnum() else _SPACE for code in range(256))


class Pieces(NamedTuple):
    """Rows of pieces: the first *title* of them are the title's, the rest are the description's alone."""

    rows: Indices
    title: int


def pieces_of(title: str, description: str) -> Pieces:
    """The pieces of a text, each once."""
    ours = _rows(title)
    rest = np.setdiff1d(_rows(description[:_BODY_CHARACTERS]), ours, assume_unique=True)
    return Pieces(np.concatenate([ours, rest]), len(ours))


def _rows(text: str) -> Indices:
    data = b" ".join(text.lower().encode().translate(_SEPARATED).split())
    if len(data) < 2:
        return np.zeros(0, np.intp)
    codes = np.frombuffer(b" " + data + b" ", np.uint8).astype(np.uint32)
    fours = codes[:-3] | codes[1:-2] << 8 | codes[2:-1] << 16 | codes[3:] << 24
    within = (codes[1:-2] != _SPACE) & (codes[2:-1] != _SPACE)
    return np.unique((fours[within] * _SPREAD) >> _SHIFT).astype(np.intp)
