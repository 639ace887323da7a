"""
A task's text as features: the words that the experts count.

Titles say more per word than descriptions, so they are kept apart and come with their bigrams; identifiers are also
read in their parts (`ScrollableView`, `user_name`, `System.Net.Http`), because the part is what the next task shares.
Long texts are cut before anything else looks at them: what follows the first screens is logs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from hopper_learning.pieces import Pieces, pieces_of

TITLE_CHARACTERS: Final = 400
BODY_CHARACTERS: Final = 1_500
_TAGS: Final = 32
_TAG_CHARACTERS: Final = 80
_WORD_CHARACTERS: Final = 48
_STEM: Final = 5

_WORD: Final = re.compile(r"[^\W_]+(?:[_.][^\W_]+)*")
_PART: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")
_SPACELESS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


class Text(NamedTuple):
    """What is known of a task before it is placed."""

    title: str
    description: str = ""
    tags: Sequence[str] = ()
    requester: str = ""

    def cut(self) -> Text:
        """The same text without what is never read; hashable, and without halves of characters."""
        return Text(
            _cut(self.title, TITLE_CHARACTERS),
            _cut(self.description, BODY_CHARACTERS),
            tuple(_cut(tag, _TAG_CHARACTERS) for tag in self.tags[:_TAGS]),
            _cut(self.requester, _TAG_CHARACTERS),
        )


class Reading(NamedTuple):
    """
    A text, read once.

    `head` are the features of title, tags and requester, `body` the plain words of description and title, each once,
    in order of appearance. `stems` are the plain words without their endings, `title_stems` those of the title.
    """

    head: tuple[str, ...]
    body: tuple[str, ...]
    stems: frozenset[str]
    title_stems: frozenset[str]
    pieces: Pieces


def read(text: Text) -> Reading:
    """Read a task's text, cut as `Text.cut` does."""
    title, parts = words(text.title)
    body, body_parts = words(text.description)
    head = dict.fromkeys(f"t:{word}" for word in title)
    head.update(dict.fromkeys(f"t:{part}" for part in parts))
    head.update(dict.fromkeys(f"b:{first} {second}" for first, second in pairwise(title)))
    head.update(dict.fromkeys(f"s:{word[:_STEM]}" for word in title if len(word) > _STEM))
    head.update(dict.fromkeys(f"g:{tag.casefold()}" for tag in text.tags))
    if text.requester:
        head[f"r:{text.requester}"] = None
    everywhere = dict.fromkeys((*body, *body_parts, *title, *parts))
    return Reading(
        tuple(head),
        tuple(everywhere),
        frozenset(map(fold, everywhere)),
        frozenset(map(fold, (*title, *parts))),
        pieces_of(text.title, text.description),
    )


@lru_cache(1 << 15)
def fold(word: str) -> str:
    """*word* without its commonest English endings, so that `invoices` meets `invoice`."""
    if len(word) > 4:
        for ending in ("ies", "ing", "es", "ed", "s"):
            if word.endswith(ending) and len(word) - len(ending) > 3:
                return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 4 else word


def _cut(text: str, length: int) -> str:
    text = text[:length]
    return text if text.isascii() else text.encode(errors="replace").decode()


def words(text: str) -> tuple[list[str], list[str]]:
    """The words of *text* in order, and the parts of those that are identifiers, both case-folded."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    whole: list[str] = []
    parts: list[str] = []
    for spelled in filter(None, map(_spelled, _WORD.findall(text))):
        whole.append(spelled[0])
        if len(spelled) > 1:
            parts += spelled[1:]
    return whole, parts


@lru_cache(1 << 15)
def _spelled(word: str) -> tuple[str, ...]:
    """A word case-folded, and its parts if it is an identifier; nothing for a single letter."""
    ascii_ = word.isascii()
    if len(word) == 1 and ascii_ and not word.isdigit():
        return ()
    word = word[:_WORD_CHARACTERS]
    folded = word.casefold()
    if not ascii_ and _SPACELESS.search(word):
        return (folded, *(first + second for first, second in pairwise(folded)))
    if word.isdigit() or (word.isalpha() and (word[1:].islower() or word.islower() or word.isupper())):
        return (folded,)
    return (folded, *_parts(word))


def _parts(word: str) -> Iterator[str]:
    """
    The parts of an identifier: its words, and its dotted beginnings (`system.net` of `system.net.http`).

    Not its numbers: those of `host31` and `page31` have nothing in common.
    """
    pieces = [piece.casefold() for piece in _PART.findall(word)]
    if len(pieces) > 1:
        yield from (piece for piece in pieces if len(piece) > 1 and not piece.isdigit())
    dotted = word.casefold().split(".")
    yield from (".".join(dotted[:end]) for end in range(2, len(dotted)))
