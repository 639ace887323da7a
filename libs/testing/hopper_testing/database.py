"""
Real databases for tests: empty, gone afterwards, failing when told to.

    async with temporary_database(metadata=METADATA, migrations="hopper_router.migrations", service="router")
    as db:
        db.set_next_error(StorageFull(service="router"))
        with pytest.raises(StorageFull):
            await db.write(work)

They are on a temporary file, or where `url` says (see `hopper_testing.postgres`).

`differences` is for the one test that every service needs: that its migrations make exactly its tables.
"""

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, MetaData

from hopper_common import migrations as schema
from hopper_common.clock import Ahead, Clock
from hopper_common.database import Database

T = TypeVar("T")

Moment = Literal["write", "read", "answer"]


class WrappedDatabase(Database):
    """
    Another database, of either engine, to see or change what passes through.

    Attributes:
        inner: The one that does it all.
    """

    def __init__(self, inner: Database) -> None:
        super().__init__()
        self.inner = inner
        self.committed = inner.committed
        self.dialect = inner.dialect
        self.name = inner.name

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self.inner.write(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self.inner.read(work)

    async def lead(
        self, role: str, work: Callable[[], Awaitable[T]], *, waiting: Callable[[], None] | None = None
    ) -> T:
        return await self.inner.lead(role, work, waiting=waiting)

    async def clock_ahead(self, clock: Clock) -> Ahead:
        return await self.inner.clock_ahead(clock)

    def on_notify(self, callback: Callable[[str], None]) -> Callable[[], None]:
        return self.inner.on_notify(callback)

    async def close(self) -> None:
        await self.inner.close()

    def __getattr__(self, name: str) -> Any:
        # What only one of the engines has.
        return getattr(self.inner, name)


class FaultyDatabase(WrappedDatabase):
    """The real database, with a say in which calls fail."""

    def __init__(self, inner: Database) -> None:
        super().__init__(inner)
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
    *, metadata: MetaData, migrations: str, service: str, url: str = ""
) -> AsyncIterator[FaultyDatabase]:
    """An empty database of a service, closed at the end, and removed unless it is at *url*."""
    with tempfile.TemporaryDirectory(prefix="hopper-") as directory:
        where = url or Path(directory) / f"{service}.db"
        db = FaultyDatabase(
            await Database.open(where, metadata=metadata, migrations=migrations, service=service)
        )
        try:
            yield db
        finally:
            await db.close()


async def differences(*, metadata: MetaData, migrations: str, service: str, url: str = "") -> list[Any]:
    """
    What the migrations of a service make otherwise than its tables say; empty when they agree.

    Columns, their types and nullability, indexes, constraints and foreign keys count; server defaults do not.
    """
    async with temporary_database(metadata=metadata, migrations=migrations, service=service, url=url) as db:
        return await db.read(lambda conn: schema.differences(conn, metadata=metadata, service=service))
