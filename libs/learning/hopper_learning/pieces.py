"""
Pieces of words: what is left to go by when a word is new, misspelt, inflected, or of a language nobody foresaw.

A piece is four bytes in a row, within a word or over one of its edges, of the title or of the beginning of the
description. Pieces are hashed to a fixed number of rows: there are too many to remember by name, and a collision of two
costs little where a text has a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    ours = dict.fromkeys(_rows(title))
    all_ = dict.fromkeys((*ours, *_rows(description[:_BODY_CHARACTERS])))
    return Pieces(np.array(list(all_), np.intp), len(ours))


def _rows(text: str) -> Sequence[int]:
    data = b" ".join(text.lower().encode().translate(_SEPARATED).split())
    if len(data) < 2:
        return ()
    codes = np.frombuffer(b" " + data + b" ", np.uint8).astype(np.uint32)
    fours = codes[:-3] | codes[1:-2] << 8 | codes[2:-1] << 16 | codes[3:] << 24
    within = (codes[1:-2] != _SPACE) & (codes[2:-1] != _SPACE)
    rows: list[int] = ((fours[within] * _SPREAD) >> _SHIFT).tolist()
    return rows
