"""A service with a few tables and no purpose, for the tests of what services share."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, insert, select

from hopper_common.database import Database
from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table
from hopper_testing.database import FaultyDatabase, temporary_database

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


def toy_database() -> AbstractAsyncContextManager[FaultyDatabase]:
    """An empty one, gone afterwards."""
    return temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="toy")


def add_note(conn: Connection, text: str) -> None:
    conn.execute(insert(NOTES), {"text": text})


def add_reply(conn: Connection, note: int) -> None:
    conn.execute(insert(REPLIES), {"note": note})


def notes(conn: Connection) -> list[str]:
    return list(conn.scalars(select(NOTES.c.text).order_by(NOTES.c.id)))


@asynccontextmanager
async def held_writer(db: Database) -> AsyncIterator[threading.Event]:
    """
    Keep the writer busy, so that everything written in the body is one group.

    Yields the event that lets the writer go on, which the end of the body sets too.
    """
    busy, go_on = threading.Event(), threading.Event()

    def hold(_conn: Connection) -> None:
        busy.set()
        go_on.wait()

    holding = asyncio.create_task(db.write(hold))
    await asyncio.to_thread(busy.wait)
    try:
        yield go_on
    finally:
        go_on.set()
        await holding
