"""
The floors of storage: the same rows through the bare drivers, as fast as we know how.

A row is slim: the columns that queues are ordered by, and the task as bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import asyncpg

from tests.bench import message
from tests.bench.load import Load, closed_loop

BODY: Final = message.submit(message.HOT).SerializeToString()

_TABLE: Final = """
CREATE TABLE slim (
    id bigint PRIMARY KEY, queue text NOT NULL, state smallint NOT NULL, priority integer NOT NULL,
    ready_time bigint NOT NULL, token bigint NOT NULL, body bytea NOT NULL
);
CREATE INDEX slim_ready ON slim (queue, priority DESC, ready_time, id) WHERE state = 1;
"""
_COLUMNS: Final = "(id, queue, state, priority, ready_time, token, body)"
_INSERT: Final = f"INSERT INTO slim {_COLUMNS} VALUES ($1, 'q', 1, 50, $1, 0, $2)"
_UNNEST: Final = (
    f"INSERT INTO slim {_COLUMNS} SELECT id, 'q', 1, 50, id, 0, body "
    "FROM unnest($1::bigint[], $2::bytea[]) AS given (id, body)"
)
_CLAIM: Final = """
UPDATE slim SET state = 2, token = token + 1 WHERE id = ANY(ARRAY(
    SELECT id FROM slim WHERE queue = 'q' AND state = 1
    ORDER BY priority DESC, ready_time, id FOR UPDATE SKIP LOCKED LIMIT $1))
RETURNING id, token, body
"""
_COMPLETE: Final = "UPDATE slim SET state = 3 WHERE id = ANY($1::bigint[]) AND state = 2"


class RawPostgres:
    """Bare asyncpg, on connections of its own."""

    def __init__(self, connections: list[asyncpg.Connection]) -> None:
        self._connections = connections
        self._ids = itertools.count(1)
        self._ready = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, connections: int = 16) -> AsyncIterator[RawPostgres]:
        """Make the table in an empty database."""
        async with AsyncExitStack() as stack:
            opened = []
            for _ in range(connections):
                connection = await asyncpg.connect(url)
                stack.push_async_callback(connection.close)
                opened.append(connection)
            await opened[0].execute(_TABLE)
            yield cls(opened)

    async def insert(self, callers: int, seconds: float) -> Load:
        """Single rows, prepared, one commit each: a connection for each caller."""
        prepared = [await connection.prepare(_INSERT) for connection in self._connections[:callers]]
        idle: asyncio.Queue[asyncpg.prepared_stmt.PreparedStatement] = asyncio.Queue()
        for statement in prepared:
            idle.put_nowait(statement)

        async def one(_: int) -> None:
            statement = idle.get_nowait()
            await statement.fetch(next(self._ids), BODY)
            idle.put_nowait(statement)

        return await closed_loop(one, callers, seconds)

    async def insert_many(self, rows: int, seconds: float) -> Load:
        """So many rows a statement, on one connection."""
        statement = await self._connections[0].prepare(_UNNEST)

        async def many(_: int) -> None:
            ids = [next(self._ids) for _ in range(rows)]
            await statement.fetch(ids, [BODY] * rows)

        return await closed_loop(many, 1, seconds, each=rows)

    async def have_ready(self, rows: int) -> None:
        """Start afresh with so many rows to claim."""
        connection = self._connections[0]
        await connection.execute("TRUNCATE slim")
        for some in _parts(rows, 1000):
            ids = [next(self._ids) for _ in range(some)]
            await connection.execute(_UNNEST, ids, [BODY] * some)
        await connection.execute("VACUUM ANALYZE slim")
        self._ready = rows

    async def work_off(self, batch: int, seconds: float) -> Load:
        """Claim a batch and complete it, again and again, on one connection, until time or rows run out."""
        claim, complete = await self._claiming()

        async def both(_: int) -> None:
            rows = await claim.fetch(batch)
            await complete.fetch([row[0] for row in rows])

        return await closed_loop(both, 1, seconds, each=batch, most=self._ready)

    async def claim_seconds(self, batch: int) -> float:
        """Add a batch, and time one claim of as many, which are then completed."""
        claim, complete = await self._claiming()
        ids = [next(self._ids) for _ in range(batch)]
        await self._connections[0].execute(_UNNEST, ids, [BODY] * batch)
        begin = time.perf_counter()
        rows = await claim.fetch(batch)
        taken = time.perf_counter() - begin
        await complete.fetch([row[0] for row in rows])
        return taken

    async def _claiming(
        self,
    ) -> tuple[asyncpg.prepared_stmt.PreparedStatement, asyncpg.prepared_stmt.PreparedStatement]:
        connection = self._connections[0]
        return await connection.prepare(_CLAIM), await connection.prepare(_COMPLETE)


@asynccontextmanager
async def pinned(url: str) -> AsyncIterator[None]:
    """
    A transaction that has written and looked, and is open meanwhile: no row that dies while it lasts is cleaned away.
    """
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("CREATE TABLE pin_of_the_benchmark ()")
            await connection.fetchval("SELECT count(*) FROM pg_class")
            yield
    finally:
        await connection.close()


@contextmanager
def raw_sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Bare sqlite3, WAL and synchronous=FULL, with the same table."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(
            "CREATE TABLE slim (id INTEGER PRIMARY KEY, queue TEXT, state INTEGER, priority INTEGER, "
            "ready_time INTEGER, token INTEGER, body BLOB)"
        )
        connection.execute(
            "CREATE INDEX slim_ready ON slim (queue, priority DESC, ready_time, id) WHERE state = 1"
        )
        yield connection
    finally:
        connection.close()


def sqlite_insert(connection: sqlite3.Connection, rows: int, seconds: float) -> Load:
    """So many rows a commit, one caller."""
    statement = f"INSERT INTO slim {_COLUMNS} VALUES (NULL, 'q', 1, 50, ?, 0, ?)"
    latencies: list[float] = []
    start = time.perf_counter()
    while (begin := time.perf_counter()) < start + seconds or not latencies:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, [(number, BODY) for number in range(rows)])
        connection.execute("COMMIT")
        latencies.append(time.perf_counter() - begin)
    return Load(len(latencies) * rows, time.perf_counter() - start, latencies)


def _parts(whole: int, most: int) -> Iterator[int]:
    while whole > 0:
        yield min(whole, most)
        whole -= most
