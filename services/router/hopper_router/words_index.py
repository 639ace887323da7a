"""
Finding tasks by words: an index of its own, written after the tasks and never before anybody's answer.

Indexing a task costs more than taking it in. So the index follows the log: in steps, when there is time, and at once
when somebody searches, who therefore finds everything that was answered before. How far it has come is kept in the
transaction of the step.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

from hopper_common.database import Database
from hopper_common.errors import HopperError, ResumeTooOld, ShuttingDown
from hopper_router.backoff import Backoff
from hopper_router.model import Task
from hopper_router.store_sql import EVENTS, Store

CURSOR: Final = "words_indexed"
STEP: Final = 500
QUIET: Final = 1.0
"""Seconds without a commit after which there is time for the index."""
LATEST: Final = 60.0
"""Seconds after which it is written all the same."""
FIRST_WAIT: Final = timedelta(milliseconds=250)
LONGEST_WAIT: Final = timedelta(seconds=10)
_TOPICS: Final = frozenset({"SUBMIT", "OFFER", "UPDATE"})
_DESCRIPTION: Final = 2000  # characters beyond this are not searched: they are logs more often than words


class WordIndex:
    """The index of a router's tasks."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Keep the index fresh, a step at a time."""
        backoff = Backoff("words of the log", first=FIRST_WAIT, longest=LONGEST_WAIT)
        while True:
            seen = self._db.committed.count
            try:
                await self.catch_up()
            except ShuttingDown:
                raise
            except HopperError as error:
                await asyncio.sleep(backoff.failed(error.reason))
                continue
            backoff.worked()
            await self._db.committed.wait(after=seen)
            await self._quiet()

    async def _quiet(self) -> None:
        """Wait until nothing has been committed for a moment, but not for ever."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + LATEST
        seen = -1
        while seen != self._db.committed.count and loop.time() < latest:
            seen = self._db.committed.count
            await asyncio.sleep(QUIET)

    async def catch_up(self) -> None:
        """Index everything that has been taken in by now."""
        async with self._turn:
            more = await self._db.read(behind)
            while more:
                more = await self._db.write(step) == STEP


def behind(conn: Connection) -> bool:
    """Whether anything was written to the log since the last step."""
    return EVENTS.head(conn) > _cursor(Store(conn))


def step(conn: Connection) -> int:
    """Index what the next events are about; returns how many events."""
    store = Store(conn)
    head = EVENTS.head(conn)
    try:
        events = EVENTS.read(conn, after=_cursor(store), limit=STEP, topics=_TOPICS)
    except ResumeTooOld as error:  # trimmed past us: what was trimmed is long finished
        events = EVENTS.read(conn, after=int(error.metadata["oldest"]) - 1, limit=STEP, topics=_TOPICS)
    names = list(dict.fromkeys(event.key for event in events))
    changed = {event.key for event in events if event.topic == "UPDATE"}
    tasks = store.tasks(names).values()
    again = [{"id": task.id} for task in tasks if task.name in changed]
    if again and store.dialect == "sqlite":
        conn.execute(_FORGET, again)
    if tasks:
        _add(store, [_words(task) for task in tasks])
    store.put_value(CURSOR, str(events[-1].version if len(events) == STEP else head).encode())
    return len(events)


def _add(store: Store, rows: list[dict[str, str]]) -> None:
    if store.dialect == "sqlite":
        store.conn.execute(_ADD_TO_SQLITE, rows)
    else:
        store.conn.execute(_ADD_TO_POSTGRES, {name: [row[name] for row in rows] for name in rows[0]})


def _cursor(store: Store) -> int:
    return int(store.value(CURSOR) or 0)


def _words(task: Task) -> dict[str, str]:
    """What a task is found by."""
    spec = task.spec
    words = {"id": task.id, "title": spec.title, "description": spec.description[:_DESCRIPTION]}
    return {**words, "tags": " ".join(spec.tags)}


_FORGET: Final = text("DELETE FROM tasks_fts WHERE id = :id")
_ADD_TO_SQLITE: Final = text(
    "INSERT INTO tasks_fts (id, title, description, tags) VALUES (:id, :title, :description, :tags)"
)
_ADD_TO_POSTGRES: Final = text(
    "INSERT INTO task_words (id, words) SELECT id, setweight(to_tsvector('words', title), 'A') || "
    "setweight(to_tsvector('words', tags), 'B') || to_tsvector('words', description) "
    "FROM unnest(CAST(:id AS TEXT[]), CAST(:title AS TEXT[]), CAST(:description AS TEXT[]), CAST(:tags AS TEXT[])) "
    "AS w(id, title, description, tags) ON CONFLICT (id) DO UPDATE SET words = excluded.words"
)
