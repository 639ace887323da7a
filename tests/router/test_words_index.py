"""The index of words outlives a storage in trouble."""

import asyncio
from datetime import UTC, datetime

from sqlalchemy import Connection

from hopper_common.errors import StorageFull, StorageUnavailable
from hopper_router import tables
from hopper_router.store_sql import EVENTS
from hopper_router.words_index import WordIndex, behind
from hopper_testing.database import temporary_database


async def test_trouble_with_the_storage_delays_the_index_and_ends_nothing() -> None:
    async with temporary_database(
        metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    ) as db:

        def log(conn: Connection) -> int:
            now = datetime(2026, 1, 1, tzinfo=UTC)
            return EVENTS.append(conn, topic="SUBMIT", key="instances/global/tasks/x", body=b"", now=now)

        await db.write(log)
        for error in (StorageUnavailable(service="router"), StorageFull(service="router")):
            db.set_next_error(error)
        running = asyncio.create_task(WordIndex(db).run())
        async with asyncio.timeout(60):
            while await db.read(behind):
                assert not running.done()
                await asyncio.sleep(0.05)
        running.cancel()
