"""
The journal in SQL: a `ports.Journal` over the table of `tables`.

An entry is a decision. It is written when its question is answered, or when an outcome brings the task of one that was
never asked about; whichever comes later completes it.

Searching goes by words, in two steps: the full-text index finds the entries that share the rarest of them (`bm25`),
and how like those are is worked out from all their words. Only the newest `SEARCHED` entries are looked at, and fewer
for each when many tasks are looked up at once: an OR of words costs what its commonest word costs, about 60 ms in
20,000 entries, and what is older than that says little about today.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, func, or_, select, text, update
from sqlalchemy.dialects.sqlite import insert

from hopper_common.database import Database
from hopper_common.timestamps import from_micros, to_micros
from hopper_sage.errors import QuestionConflict
from hopper_sage.model import (
    Abstention,
    Advised,
    Answer,
    Choice,
    Clarification,
    Consulted,
    Cost,
    Outcome,
    Question,
    Remembered,
    Task,
    Told,
    Why,
    was_success,
)
from hopper_sage.tables import ENTRIES
from hopper_sage.words import similarity, words_of, words_of_task

SEARCHED: Final = 20_000
_LEAST_SEARCHED: Final = 1_000
_AT_ONCE: Final = 10
_LOOKED_UP_WORDS: Final = 32
_SCORED: Final = 50

_E = ENTRIES.c
_EPOCH: Final = from_micros(0)
_CHOICE: Final = "CHOICE"
_CLARIFICATION: Final = "CLARIFICATION"

_FIND = text(
    """
    SELECT entries.* FROM entries_fts JOIN entries ON entries.id = entries_fts.rowid
    WHERE entries_fts MATCH :query AND entries_fts.rowid > :after AND entries.outcome IS NOT NULL
    ORDER BY entries_fts.rank LIMIT :limit
    """
)


class SqlJournal:
    """The journal in one database; `ports.Journal`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def answered(self, decision: str, digest: bytes) -> bytes | None:
        return await self._database.read(lambda conn: _answered(conn, decision, digest))

    async def write_answer(
        self, question: Question, digest: bytes, advised: Advised, response: bytes, now: datetime
    ) -> bytes:
        words = words_of_task(question.task, [reply.answer for reply in question.replies])
        asked = {
            "create_time": to_micros(now),  # of the question, where an outcome came before it
            "digest": digest,
            "response": response,
            **_answer_columns(advised),
        }

        def work(conn: Connection) -> bytes:
            first = _answered(conn, question.decision, digest)
            if first is not None:
                return first
            entry = _entry(question.decision, words, now) | asked
            conn.execute(
                insert(ENTRIES).on_conflict_do_update(index_elements=[_E.decision], set_=asked), entry
            )
            return response

        return await self._database.write(work)

    async def record(self, told: Sequence[Told], now: datetime) -> tuple[int, int]:
        def work(conn: Connection) -> tuple[int, int]:
            new = unknown = 0
            for one in told:
                if one.task is not None:
                    entry = _entry(one.decision, words_of_task(one.task), now)
                    conn.execute(insert(ENTRIES).on_conflict_do_nothing(), entry)
                if conn.execute(_TELL, _outcome_parameters(one)).rowcount:
                    new += 1
                elif not conn.execute(_IS_THERE, {"of": one.decision}).first():
                    unknown += 1
            return new, unknown

        return await self._database.write(work)

    async def similar(self, tasks: Sequence[Task], *, limit: int) -> list[list[Remembered]]:
        searched = max(_LEAST_SEARCHED, SEARCHED // max(1, len(tasks)))

        def look_up(some: Sequence[Task], conn: Connection) -> list[list[Remembered]]:
            after = (conn.scalar(select(func.max(_E.id))) or 0) - searched
            return [_similar(conn, words_of_task(task), after, limit) for task in some]

        found: list[list[Remembered]] = []
        for at in range(
            0, len(tasks), _AT_ONCE
        ):  # in steps, so that whoever has no more time can stop waiting
            found += await self._database.read(partial(look_up, tasks[at : at + _AT_ONCE]))
        return found

    async def consulted(self, start: datetime | None, end: datetime | None) -> list[Consulted]:
        query = select(ENTRIES).where(_E.digest.is_not(None))
        if start is not None:
            query = query.where(_E.create_time >= to_micros(start))
        if end is not None:
            query = query.where(_E.create_time < to_micros(end))
        return await self._database.read(lambda conn: [_consulted(row) for row in conn.execute(query)])


# Writing.

_IS_THERE = select(_E.id).where(_E.decision == bindparam("of"))
_TELL = (
    update(ENTRIES)
    .where(
        _E.decision == bindparam("of"),
        or_(_E.outcome.is_(None), and_(_E.revision < bindparam("new_revision"))),
    )
    .values(
        outcome=bindparam("new_outcome"),
        final_project=bindparam("new_final_project"),
        success=bindparam("new_success"),
        duration=bindparam("new_duration"),
        revision=bindparam("new_revision"),
    )
)


def _entry(decision: str, words: Sequence[str], now: datetime) -> dict[str, Any]:
    return {"decision": decision, "create_time": to_micros(now), "words": " ".join(words)}


def _outcome_parameters(told: Told) -> dict[str, Any]:
    return {
        "of": told.decision,
        "new_outcome": told.outcome.value,
        "new_final_project": told.final_project,
        "new_success": told.success,
        "new_duration": None if told.duration is None else to_micros(_EPOCH + told.duration),
        "new_revision": told.revision,
    }


def _answer_columns(advised: Advised) -> Mapping[str, Any]:
    answer, cost = advised.answer, advised.cost
    choice = answer if isinstance(answer, Choice) else None
    return {
        "answer": _answer_word(answer),
        "project": None if choice is None else choice.project,
        "confidence": None if choice is None else choice.confidence,
        "model_calls": cost.model_calls,
        "input_tokens": cost.input_tokens,
        "output_tokens": cost.output_tokens,
        "money": cost.money,
    }


def _answer_word(answer: Answer) -> str:
    match answer:
        case Choice():
            return _CHOICE
        case Clarification():
            return _CLARIFICATION
        case Abstention():
            return answer.kind.value


# Reading.


def _answered(conn: Connection, decision: str, digest: bytes) -> bytes | None:
    found = conn.execute(select(_E.digest, _E.response).where(_E.decision == decision)).first()
    if found is None or found.digest is None:
        return None
    if found.digest != digest:
        raise QuestionConflict(request_id=decision, method="DecideRouting")
    return bytes(found.response)


def _similar(conn: Connection, words: Sequence[str], after: int, limit: int) -> list[Remembered]:
    if not words:
        return []
    query = " OR ".join(f'"{word}"' for word in words[:_LOOKED_UP_WORDS])
    rows = conn.execute(_FIND, {"query": query, "after": after, "limit": max(_SCORED, limit)})
    found = [_remembered(row, similarity(words, words_of([row.words]))) for row in rows]
    return sorted(found, key=lambda one: -one.similarity)[:limit]


def _remembered(row: Row[Any], similar: float) -> Remembered:
    told = _told(row)
    success = was_success(told)
    not_with = {told.final_project} if success is False else set()
    if success and row.project:
        not_with |= {row.project} - {told.final_project}
    return Remembered(
        decision=row.decision,
        belongs=told.final_project if success else None,
        not_with=frozenset(not_with - {""}),
        duration=told.duration,
        similarity=similar,
    )


def _told(row: Row[Any]) -> Told:
    return Told(
        decision=row.decision,
        outcome=Outcome(row.outcome),
        final_project=row.final_project,
        success=None if row.success is None else bool(row.success),
        duration=None if row.duration is None else from_micros(row.duration) - _EPOCH,
        revision=row.revision,
    )


def _consulted(row: Row[Any]) -> Consulted:
    return Consulted(
        answer=_answer(row),
        cost=Cost(row.model_calls, row.input_tokens, row.output_tokens, row.money),
        told=None if row.outcome is None else _told(row),
    )


def _answer(row: Row[Any]) -> Answer:
    """What was answered, without the words: those are in the response."""
    if row.answer == _CHOICE:
        return Choice(row.project, row.confidence, "")
    return Clarification("") if row.answer == _CLARIFICATION else Abstention(Why(row.answer), "")
