"""A service with a few tables and no purpose, for the tests of what services share."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, insert, select
from sqlalchemy.util import await_only

from hopper_common.database import Database
from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table
from hopper_testing.database import FaultyDatabase
from hopper_testing.postgres import postgres_server

T = TypeVar("T")

EngineKind = Literal["sqlite", "postgresql"]

METADATA = MetaData()
NOTES = Table("notes", METADATA, Column("id", Integer, primary_key=True), Column("text", String, unique=True))
REPLIES = Table(
    "replies",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("note", Integer, ForeignKey("notes.id", deferrable=True, initially="DEFERRED"), nullable=False),
)
EVENTS = event_table(METADATA, "toy_events")
REQUESTS = requests_table(METADATA)
MIGRATIONS = "tests.common.toy.migrations"


async def open_toy(url: str | Path, migrations: str = MIGRATIONS, service: str = "toy") -> Database:
    return await Database.open(url, metadata=METADATA, migrations=migrations, service=service)


async def migrate_toy(url: str) -> None:
    await (await open_toy(url)).close()


def new_toy(kind: EngineKind, directory: Path) -> str:
    """Where a toy's database can be made, or, in PostgreSQL, an empty one is."""
    if kind == "sqlite":
        return str(directory / "toy.db")
    return postgres_server().create_database(made_by=migrate_toy)


@asynccontextmanager
async def toy_database(kind: EngineKind = "sqlite") -> AsyncIterator[FaultyDatabase]:
    """An empty one, closed at the end."""
    with tempfile.TemporaryDirectory(prefix="hopper-") as directory:
        db = FaultyDatabase(await open_toy(new_toy(kind, Path(directory))))
        try:
            yield db
        finally:
            await db.close()


def add_note(conn: Connection, text: str) -> None:
    conn.execute(insert(NOTES), {"text": text})


def add_reply(conn: Connection, note: int) -> None:
    conn.execute(insert(REPLIES), {"note": note})


def notes(conn: Connection) -> list[str]:
    return list(conn.scalars(select(NOTES.c.text).order_by(NOTES.c.id)))


class Gate:
    """Closed at first. What waits at it may be a test or a unit of work, on either engine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = asyncio.Event()
        self._open_to_threads = threading.Event()

    def open(self) -> None:
        self._open_to_threads.set()
        self._loop.call_soon_threadsafe(self._open.set)

    async def wait(self) -> None:
        await self._open.wait()

    def wait_in_work(self, conn: Connection) -> None:
        if conn.dialect.name == "sqlite":
            self._open_to_threads.wait()
        else:
            await_only(self._open.wait())


def await_in_work(conn: Connection, waited: Awaitable[T], loop: asyncio.AbstractEventLoop) -> T:
    """What *waited* comes to in the event loop, in a unit of work."""

    async def wait() -> T:
        return await waited

    if conn.dialect.name == "sqlite":
        return asyncio.run_coroutine_threadsafe(wait(), loop).result()
    return await_only(wait())


@asynccontextmanager
async def held_writer(db: Database) -> AsyncIterator[Gate]:
    """
    Keep the writer busy, so that everything written in the body is one group.

    Yields the gate that lets the writer go on, which the end of the body opens too.
    """
    busy, go_on = Gate(), Gate()

    def hold(conn: Connection) -> None:
        busy.open()
        go_on.wait_in_work(conn)

    holding = asyncio.create_task(db.write(hold))
    await busy.wait()
    try:
        yield go_on
    finally:
        go_on.open()
        await holding
