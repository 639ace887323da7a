"""
Texts as words, and how like two of them are.

The words of a text are its distinct runs of letters and digits, case-folded, without those that say nothing about a
topic. Two texts are as like as their words are: the cosine of the two sets.
"""

import re
from collections.abc import Iterable
from math import sqrt
from typing import Final

from hopper_sage.model import Task

MOST_WORDS: Final = 200
"""Of a text, from its beginning: what it is about is said early."""

_COMMON: Final = (
    "a about after all also an and any are as at be because been before but by can could did do does for from had has "
    "have how i if in into is it its just me more my no not of on or other our out over please should so some such "
    "than that the their them then there these they this those to too up us very was we were what when where which "
    "while who why will with would you your"
)
_STOP_WORDS: Final = frozenset(_COMMON.split())
# A letter or digit, then more of them or the accents that combine with them.
_WORD: Final = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f])*")


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words of texts, in order of appearance, at most `MOST_WORDS`."""
    found: dict[str, None] = {}
    for text in texts:
        for match in _WORD.finditer(text):
            word = match.group().casefold()
            if word not in _STOP_WORDS:
                found[word] = None
                if len(found) == MOST_WORDS:
                    return list(found)
    return list(found)


def words_of_task(task: Task, answers: Iterable[str] = ()) -> list[str]:
    """
    The words of a task.

    Args:
        answers: What its requester said when asked, which is the more telling for that.
    """
    return words_of((task.title, *answers, *task.tags, task.description))


def similarity(one: Iterable[str], other: Iterable[str]) -> float:
    """How like two sets of words are, 0 to 1."""
    left, right = frozenset(one), frozenset(other)
    if not left or not right:
        return 0.0
    return len(left & right) / sqrt(len(left) * len(right))
