"""
B17, B18: what the router's storage makes of the drivers under it, without a server around it.

Both sides store the same rows: a task, its event, and its decision whole, in the router's own tables. The tasks are
decided about beforehand, and the drivers get their rows ready made.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy.dialects import postgresql

from hopper_common.database import Database
from hopper_common.gather import Gatherer
from hopper_router import tables
from hopper_router.engine import hot_store
from hopper_router.hot import Admission, HotStore, Repeat
from tests.bench import driving
from tests.bench.bar import Result, at_least, bar
from tests.bench.load import Load, Side, closed_loop
from tests.bench.rawsql import RawPostgres, raw_sqlite, sqlite_insert
from tests.bench.rig import SQLITE, Rig
from tests.bench.stock import COLUMNS, Rows, Stock

CALLERS: Final = 16
MANY: Final = 1000
SQLITE_BATCH: Final = 100
_SCHEMA: Final = "hopper_router"
_ORIGIN: Final = "bench"
_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
_ARRAYS: Final = ", ".join(
    f"${place}::{tables.tasks.c[name].type.compile(_DIALECT)}[]"
    for place, name in enumerate(COLUMNS, start=1)
)
_FREE: Final = len(COLUMNS) + 1
_RAW: Final = f"""
WITH given AS (
    SELECT * FROM unnest({_ARRAYS}, ${_FREE}::bytea[], ${_FREE + 1}::bytea[])
        AS given ({", ".join(COLUMNS)}, event, record)
),
stored AS (INSERT INTO tasks ({", ".join(COLUMNS)}) SELECT {", ".join(COLUMNS)} FROM given),
logged AS (
    INSERT INTO task_events (version, topic, key, body, create_time)
    SELECT generation, 'SUBMIT', instance || '/tasks/' || id, event, create_time FROM given
)
INSERT INTO routing_decisions (id, task, instance, project, body)
SELECT substr(decision, 11), instance || '/tasks/' || id, instance, project, record FROM given
"""


async def _open(where: str | Path) -> Database:
    return await Database.open(
        where, metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    )


@asynccontextmanager
async def _stored(where: str | Path) -> AsyncIterator[Database]:
    database = await _open(where)
    try:
        yield database
    finally:
        await database.close()


class Storage:
    """The router's own way: calls are gathered, and each set is one statement and one commit."""

    def __init__(self, store: HotStore, stock: Stock) -> None:
        self._gatherer: Gatherer[Admission, int | Repeat] = Gatherer(
            lambda calls: store.admit(calls, _ORIGIN), weigh=lambda call: len(call.tasks)
        )
        self._stock = stock

    async def insert(self, callers: int, seconds: float, *, each: int = 1) -> Load:
        """Calls of so many tasks each, until time or what is ready made runs out."""

        async def one(_: int) -> None:
            await self._gatherer.add(self._stock.take())

        return await closed_loop(one, callers, seconds, each=each, most=self._stock.calls * each)


class _WithoutWakeUps:
    """A database whose statements tell nobody: `pg_notify` is left out of them."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def statement(self, work: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        return await self._database.statement(lambda conn: work(_Silent(conn)), **options)


class _Silent:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def fetch(self, statement: str, *values: Any) -> Any:
        return await self._connection.fetch(statement.replace("pg_notify(", "textcat("), *values)


class RawRows:
    """Bare asyncpg on the router's tables: rows ready made, a connection for each caller."""

    def __init__(self, connections: list[asyncpg.Connection], stock: Stock) -> None:
        self._connections = connections
        self._stock = stock
        self._ready: list[list[Any]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, stock: Stock) -> AsyncIterator[RawRows]:
        """Make the tables as the router does."""
        await (await _open(url)).close()
        async with AsyncExitStack() as stack:
            connections = []
            for _ in range(CALLERS):
                connection = await asyncpg.connect(url, server_settings={"search_path": _SCHEMA})
                stack.push_async_callback(connection.close)
                connections.append(connection)
            yield cls(connections, stock)

    def make(self, calls: int, tasks: int) -> None:
        """Have rows at hand for so many calls."""
        self._stock.make(calls, tasks)
        self._ready = [self._arrays() for _ in range(calls)]

    def _arrays(self) -> list[Any]:
        rows = self._stock.rows(self._stock.take())
        columns = [[row[name] for row in rows.tasks] for name in COLUMNS]
        return [*columns, [event[3] for event in rows.events], [decision[4] for decision in rows.decisions]]

    async def insert(self, callers: int, seconds: float, *, each: int = 1) -> Load:
        """So many rows a statement, until time or what is ready made runs out."""
        idle: asyncio.Queue[Any] = asyncio.Queue()
        for connection in self._connections[:callers]:
            idle.put_nowait(await connection.prepare(_RAW))

        async def one(_: int) -> None:
            statement = idle.get_nowait()
            await statement.fetch(*self._ready.pop())
            idle.put_nowait(statement)

        return await closed_loop(one, callers, seconds, each=each, most=len(self._ready) * each)


@bar
async def storage(rig: Rig) -> list[Result]:
    """B17: the hot path's statements on PostgreSQL, beside bare asyncpg."""
    stock = Stock()
    seconds = rig.pace.seconds
    postgres = {"postgres": rig.postgres.pid}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(_stored(rig.database()))
        loud = Storage(hot_store(database), stock)
        quiet = Storage(hot_store(_WithoutWakeUps(database)), stock)
        raw = await enter(RawRows.open(rig.database(), stock))
        slim = await enter(RawPostgres.open(rig.database(), connections=1))
        many, single = int(20 * seconds) + 2, int(4_000 * seconds) + 100  # ready made ones take a while

        async def stock_up(calls: int, tasks: int) -> None:
            stock.make(calls, tasks)

        async def make_rows(calls: int, tasks: int) -> None:
            raw.make(calls, tasks)

        rounds = await rig.bench().interleaved(
            Side("slim unnest 1000", lambda length: slim.insert_many(MANY, length), postgres),
            Side(
                "raw 1000",
                lambda length: raw.insert(1, length, each=MANY),
                postgres,
                lambda: make_rows(many, MANY),
            ),
            Side(
                "hopper 1000",
                lambda length: loud.insert(1, length, each=MANY),
                postgres,
                lambda: stock_up(many, MANY),
            ),
            Side(
                "raw c16", lambda length: raw.insert(CALLERS, length), postgres, lambda: make_rows(single, 1)
            ),
            Side(
                "hopper c16",
                lambda length: loud.insert(CALLERS, length),
                postgres,
                lambda: stock_up(single, 1),
            ),
            Side(
                "hopper c16, no wake-ups",
                lambda length: quiet.insert(CALLERS, length),
                postgres,
                lambda: stock_up(single, 1),
            ),
        )
    return [
        at_least(0.75, 0.9).judge(
            "B17 insert of 1,000 tasks / the same rows by bare asyncpg",
            rounds.ratio("hopper 1000", "raw 1000"),
            rounds.figures("hopper 1000", "raw 1000", "slim unnest 1000"),
            note=rounds.method,
        ),
        at_least(0.7, 0.85).judge(
            "B17 insert c16 / the same rows by bare asyncpg on 16 connections",
            rounds.ratio("hopper c16", "raw c16"),
            rounds.figures("hopper c16", "raw c16"),
            note=rounds.method,
        ),
        at_least(0.9, 0.95).judge(
            "B17 insert c16 with wake-ups / without",
            rounds.ratio("hopper c16", "hopper c16, no wake-ups"),
            rounds.figures("hopper c16", "hopper c16, no wake-ups"),
            note=rounds.method,
        ),
    ]


@bar
async def embedded(rig: Rig) -> list[Result]:
    """B18: SQLite with synchronous=FULL, beside bare sqlite3; and SubmitTask on it."""
    stock = Stock()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_stored(rig.directory / "storage.db"))
        own = Storage(hot_store(database), stock)
        raw_file = rig.directory / "raw.db"
        await (await _open(raw_file)).close()
        raw = stack.enter_context(raw_sqlite(raw_file))
        slim = stack.enter_context(raw_sqlite(rig.directory / "slim.db"))
        router = await stack.enter_async_context(rig.router(SQLITE))
        calls = int(150 * rig.pace.seconds) + 10
        rows: list[Rows] = []

        async def stock_up() -> None:
            stock.make(calls, SQLITE_BATCH)

        async def make_rows() -> None:
            stock.make(calls, SQLITE_BATCH)
            rows.extend(stock.rows(stock.take()) for _ in range(calls))

        async def raw_insert(seconds: float) -> Load:
            async def one(_: int) -> None:
                _raw_transaction(raw, rows.pop())

            return await closed_loop(one, 1, seconds, each=SQLITE_BATCH, most=len(rows) * SQLITE_BATCH)

        async def slim_insert(seconds: float) -> Load:
            return sqlite_insert(slim, SQLITE_BATCH, seconds)

        rounds = await rig.bench().interleaved(
            Side("slim 100", slim_insert),
            Side("raw 100", raw_insert, prepare=make_rows),
            Side("hopper 100", lambda seconds: own.insert(1, seconds, each=SQLITE_BATCH), prepare=stock_up),
            Side(
                "SubmitTask c16", lambda seconds: driving.submit(router, 16, seconds), router.processes(rig)
            ),
        )
    return [
        at_least(0.5, 0.8).judge(
            "B18 embedded: batches of 100 tasks / the same rows by bare sqlite3, FULL",
            rounds.ratio("hopper 100", "raw 100"),
            rounds.figures("hopper 100", "raw 100", "slim 100"),
            note=rounds.method,
        ),
        Result(
            "B18 embedded: SubmitTask c16 / the original Hopper's POST",
            round(rounds.rate("SubmitTask c16")),
            "tasks/s",
            must=">= 8 x",
            target=">= 15 x",
            verdict="not judged: the original is not here, and answers its POST with 500",
            sides=rounds.figures("SubmitTask c16"),
            note=rounds.method,
        ),
    ]


def _raw_transaction(connection: sqlite3.Connection, rows: Rows) -> None:
    connection.execute("BEGIN IMMEDIATE")
    columns, places = ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
    connection.executemany(f"INSERT INTO tasks ({columns}) VALUES ({places})", rows.tasks)
    connection.executemany("INSERT INTO task_events VALUES (?, ?, ?, ?, ?)", rows.events)
    connection.executemany("INSERT INTO routing_decisions VALUES (?, ?, ?, ?, ?)", rows.decisions)
    connection.execute("COMMIT")
