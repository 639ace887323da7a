"""
Search by words in `episodes_fts`, quick however many episodes there are.

An OR of words costs what its commonest word costs: in fifty thousand episodes, scoring everything that says
"test" takes longer than a person or a decision wants to wait, and "test" tells least. So words are counted
first, which stops early and costs next to nothing, and then

1. the **rare words** are looked up in all episodes, rarest first, as long as there are few enough hits to
   score;
2. if those do not fill the answer, **all words** are looked up, but only among the newest episodes, back to
   where the commonest has been seen often enough.

Both scores are bm25 (`-bm25()`, so that greater is better) with the title weighted most. The first is without
its commonest words, whose weight is near nothing anyway; where an episode has both, the greater one counts.

A project or instance narrows the index itself, so that words are counted within it. There it is a phrase of
the tokens of its id, which `web.shop` shares with `web-shop`; so the row is compared as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import Connection, text

from hopper_memory.words import words_of

CONSIDERED_WORDS = 48  # of a text, from its beginning; counting is what they cost
MOST_WORDS = 32  # looked up
COMMON = 1_000  # episodes that make a word common
MOST_SCORED = 5_000  # episodes by rare words

_COUNT = text(
    """
    SELECT count(*), min(rowid) FROM (
        SELECT rowid FROM episodes_fts WHERE episodes_fts MATCH :query ORDER BY rowid DESC LIMIT :most
    )
    """
)
_FIND = text(
    """
    SELECT episodes.id, -episodes_fts.rank AS score
    FROM episodes_fts JOIN episodes ON episodes.id = episodes_fts.rowid
    WHERE episodes_fts MATCH :query AND episodes_fts.rank MATCH 'bm25(4.0, 1.0, 2.0, 0.0, 0.0)'
        AND episodes_fts.rowid >= :oldest
        AND (:project = '' OR episodes.project = :project)
        AND (:instance = '' OR episodes.instance = :instance)
    ORDER BY episodes_fts.rank LIMIT :limit
    """
)


class _Word(NamedTuple):
    """
    A word, and how often it is said.

    Attributes:
        hits: Episodes that say it, counted from the newest up to `COMMON`.
        oldest: The row of the oldest of those.
    """

    hits: int
    oldest: int
    text: str


def similar(conn: Connection, wanted: str, *, limit: int, project: str, instance: str) -> Mapping[int, float]:
    """
    Rows of `episodes` by their scores, best first.

    Args:
        wanted: Any text.
        project, instance: Only theirs. Empty: any.
    """
    place = {"project": project, "instance": instance}
    words = _counted(conn, words_of(wanted, most=CONSIDERED_WORDS), place)[:MOST_WORDS]
    rare = list(_rare(words))
    scores = _find(conn, rare, place, limit, oldest=0)
    common = words[len(rare) :]
    if common and len(scores) < limit:
        newest = _find(conn, words, place, limit, oldest=max(word.oldest for word in common))
        scores = {row: max(scores.get(row, 0.0), newest.get(row, 0.0)) for row in scores | newest}
    best = sorted(scores.items(), key=lambda item: item[1], reverse=True)
    return dict(best[:limit])


def _counted(conn: Connection, words: Sequence[str], place: Mapping[str, str]) -> list[_Word]:
    """The words that occur at all, rarest first."""
    found = []
    for word in words:
        query = _query([word], place)
        hits, oldest = conn.execute(_COUNT, {"query": query, "most": COMMON}).one()
        if hits:
            found.append(_Word(hits, oldest, word))
    return sorted(found)


def _rare(words: Sequence[_Word]) -> Iterator[_Word]:
    """The words, rarest first, that are not common and together few enough to score."""
    left = MOST_SCORED
    for word in takewhile(lambda word: word.hits < COMMON, words):
        left -= word.hits
        if left < 0:
            return
        yield word


def _find(
    conn: Connection, words: Sequence[_Word], place: Mapping[str, str], limit: int, *, oldest: int
) -> dict[int, float]:
    if not words:
        return {}
    query = _query([word.text for word in words], place)
    found = conn.execute(_FIND, {"query": query, "oldest": oldest, "limit": limit, **place})
    return {row.id: row.score for row in found}


def _query(words: Sequence[str], place: Mapping[str, str]) -> str:
    """In FTS5's language. Words and ids are quoted, and have no quotes in them."""
    said = " OR ".join(f'"{word}"' for word in words)
    where = [f'{column} : "{name.split("/")[-1]}"' for column, name in place.items() if name]
    return " AND ".join([f"{{title description tags}} : ({said})", *where])
