"""
2,048 short words that people can say over a telephone, and six of which stand for 66 bits.

They are made rather than taken from a dictionary, so that they belong to no language and need no list: consonant,
vowel, consonant, vowel, consonant, from letters that are hard to mistake for each other (no p beside b, no t beside d,
no n beside m at the same place).
"""

import itertools
from typing import Final

_FIRST: Final = "bdfklmrz"
_VOWELS: Final = "aeio"
_MIDDLE: Final = "bdgklmrv"
_LAST: Final = "ns"

WORDS: Final[tuple[str, ...]] = tuple(
    "".join(letters) for letters in itertools.product(_FIRST, _VOWELS, _MIDDLE, _VOWELS, _LAST)
)
BITS: Final = 11
COUNT: Final = 6


def words_of(digest: bytes) -> tuple[str, ...]:
    """
    Six words for the first 66 bits of a digest.

    Args:
        digest: At least nine bytes.
    """
    number = int.from_bytes(digest[:9]) >> (72 - BITS * COUNT)
    places = (number >> (BITS * place) & (2**BITS - 1) for place in reversed(range(COUNT)))
    return tuple(WORDS[place] for place in places)
