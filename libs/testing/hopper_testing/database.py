"""
Real databases for tests: on a temporary file, gone afterwards, failing when told to.

    async with temporary_database(metadata=METADATA, migrations="hopper_router.migrations", service="router")
    as db:
        db.set_next_error(StorageFull(service="router"))
        with pytest.raises(StorageFull):
            await db.write(work)

`differences` is for the one test that every service needs: that its migrations make exactly its tables.
"""

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, MetaData

from hopper_common import migrations as schema
from hopper_common.database import Database

T = TypeVar("T")

Moment = Literal["write", "read", "answer"]


class FaultyDatabase(Database):
    """The real database, with a say in which calls fail."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._errors: dict[Moment, deque[Exception]] = {"write": deque(), "read": deque(), "answer": deque()}

    def set_next_error(self, error: Exception, *, at: Moment = "write") -> None:
        """
        Make a coming call raise *error*; several queue up, one per call.

        Args:
            at: "write" and "read" fail instead of being done. "answer" is a write that is done and durable,
            and whose
                answer is lost: what a caller sees who is cut off at the wrong moment, and has to retry.
        """
        self._errors[at].append(error)

    async def write(self, work: Callable[[Connection], T]) -> T:
        self._raise_next("write")
        result = await super().write(work)
        self._raise_next("answer")
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        self._raise_next("read")
        return await super().read(work)

    def _raise_next(self, moment: Moment) -> None:
        if self._errors[moment]:
            raise self._errors[moment].popleft()


@asynccontextmanager
async def temporary_database(
    *, metadata: MetaData, migrations: str, service: str
) -> AsyncIterator[FaultyDatabase]:
    """An empty database of a service, closed and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hopper-") as directory:
        path = Path(directory) / f"{service}.db"
        db = await FaultyDatabase.open(path, metadata=metadata, migrations=migrations, service=service)
        try:
            yield db
        finally:
            await db.close()


async def differences(*, metadata: MetaData, migrations: str, service: str) -> list[Any]:
    """
    What the migrations of a service make otherwise than its tables say; empty when they agree.

    Columns, their types and nullability, indexes, constraints and foreign keys count; server defaults do not.
    """
    async with temporary_database(metadata=metadata, migrations=migrations, service=service) as db:
        return await db.read(lambda conn: schema.differences(conn, metadata=metadata, service=service))
