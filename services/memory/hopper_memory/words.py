"""
Any text to words that can be searched for.

Whatever people write, quotes, operators and emoji included, comes out as plain words of letters and digits,
so nothing of a caller's text is ever syntax to a search engine.
"""

import re

# Words that are in every other task and tell none from another.
_STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be because been before but by can could did do does for from
    had has have he her his how i if in into is it its just me more my no not of on or other our out over
    please she should so some such than that the their them then there these they this those to too up us
    very was we were what when where which while who why will with would you your
    """.split()  # noqa: SIM905 - a hundred quoted literals are worse to read
)
# A letter or digit, then more of them or the accents that combine with them.
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f])*")


def words_of(text: str, *, most: int) -> list[str]:
    """
    The distinct words of a text, in order of appearance, without stop words.

    They keep their case and accents: which of those matter is for the engine's own tokenizer to say.

    Args:
        most: How many at most; what a text is about is usually said early.
    """
    found: dict[str, str] = {}
    for match in _WORD.finditer(text):
        word = match.group()
        if word.lower() not in _STOP_WORDS:
            found.setdefault(word.lower(), word)
            if len(found) == most:
                break
    return list(found.values())
