"""
Text as words: the one reading that rules and routing share, so that a keyword and a project's name mean the
same thing everywhere.

A word is a run of letters and digits, case-folded, of any script; `C++` and `C#` keep their signs. Everything
else separates: `meas_multifit` is two words, `don't` is `don` and `t`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

SCORED_CHARACTERS: Final = 1_500
"""How much of a description is compared with projects; what follows is mostly logs. Rules read all of it."""

_SEPARATED: Final = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else ord(" ") for code in range(256)
)
"""ASCII with capitals made small and everything else that is not a letter or digit a space."""
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+(?:\+\+|#(?![a-z0-9_]))?")
_WORD: Final = re.compile(r"[^\W_]+(?:\+\+|#(?!\w))?")

_STOP_WORDS: Final = (
    "a about after again all also an and any are as at be because been before being between both but by "
    "can could did do does doing done during each else etc few for from further had has have having he "
    "her here him his how i if in into is it its just like may me might more most must my need no nor not "
    "now of off on once only or other our out over own per please same shall she should since so some "
    "such than that the their them then there these they this those through to too under until up us use "
    "used using very via want was we were what when where which while who why will with within without "
    "would yes you your don doesn isn t s d ll m re ve "
)
STOP_WORDS: Final = frozenset(_STOP_WORDS.split())
"""Words that say nothing about a topic; ignored in comparing, never in rules."""


def tokens(text: str) -> list[str]:
    """The words of *text*, case-folded, in order."""
    if text.isascii():
        if "++" in text or "#" in text:
            return _ASCII_WORD.findall(text.lower())
        # A quarter of the time of the expression, and nothing is read more often than tasks.
        return text.encode().translate(_SEPARATED).decode().split()
    # Composed and decomposed accents, wide and ligature forms are the same word to whoever typed them.
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def fold(word: str) -> str:
    """*word* without an English plural s, so that `invoices` meets `invoice`."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class Text(NamedTuple):
    """
    A task's text, read once: the words of its title, of the part of the description that is compared with projects
    (`head`), and of the rest.
    """

    title: Sequence[str]
    head: Sequence[str]
    tail: Sequence[str]

    @classmethod
    def of(cls, title: str, description: str) -> Text:
        """Read a task."""
        if len(description) <= SCORED_CHARACTERS:
            head, tail = tokens(description), []
        else:
            cut = _cut(description)
            head, tail = tokens(description[:cut]), tokens(description[cut:])
        return cls(tokens(title), head, tail)

    def among(self, words: frozenset[str]) -> frozenset[str]:
        """Which of *words* are in it, wherever; quicker than making a set of it."""
        return words.intersection(chain(self.title, self.head, self.tail))

    def first_of(self, one: str, other: str) -> str:
        """Which of two words comes first in the title, or else in the head, where one of them must be."""
        return next(word for part in (self.title, self.head) for word in part if word in (one, other))

    def spelled(self) -> str:
        """All words in order, one space around each; no phrase reaches from the title into the description."""
        return f" {' '.join(self.title)} \n {' '.join(self.head)} {' '.join(self.tail)} "


def _cut(description: str) -> int:
    # Between words, so that none is read as two.
    return len(description[:SCORED_CHARACTERS].rsplit(None, 1)[0])
