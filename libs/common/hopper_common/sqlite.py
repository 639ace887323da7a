"""
The database of a service in one SQLite file, which one process has to itself.

The writer is a thread with the connection that writes; callers wait in the event loop, and a group is answered
in one call into it. The readers are two threads with connections that cannot write. In WAL mode they neither
wait for the writer nor delay it.

When SQLite drops a transaction in the middle (full disk, I/O error), or COMMIT fails, the writer throws its
connection away and opens another for the next group, so that it works again as soon as the disk does. Units
run once here: there is no connection to be lost.
"""

import asyncio
import errno
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, NoReturn, Self, TypeVar, cast

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from hopper_common import database, failpoints, sqlite_file
from hopper_common import migrations as schema
from hopper_common.clock import Ahead, Clock
from hopper_common.database import Database, Outcome, Unit, answer, for_future, notifications_of, sqlite_path
from hopper_common.errors import (
    DatabaseCorrupt,
    HopperError,
    Overloaded,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
)

T = TypeVar("T")

READERS = 2

_LOST_ANSWER: Final = "a test has lost the answer of a commit: it was done"


class SqliteDatabase(Database):
    """
    The tables of one service in a file.

    Attributes:
        path: The file, absolute.
    """

    dialect = "sqlite"

    def __init__(self, path: Path, service: str, lock: sqlite_file.FileLock) -> None:
        super().__init__()
        self.path = path
        self.name = str(path)
        self._service = service
        self._lock = lock
        self._closing = False
        self._readers = _Readers(_engine(path, service, read_only=True), service)
        self._writer = _Writer(_engine(path, service), service, asyncio.get_running_loop(), self._committed)

    @classmethod
    async def start(
        cls, url_or_path: str | Path, *, metadata: MetaData, migrations: str, service: str
    ) -> Self:
        """Check, migrate and open the file: see `Database.open`."""
        path = sqlite_path(url_or_path)
        lock = await asyncio.to_thread(_prepare, path, metadata, migrations, service)
        try:
            return cls(path, service, lock)
        except BaseException:
            lock.release()
            raise

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self._closing:
            raise ShuttingDown(service=self._service)
        return await self._writer.run(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        if self._closing:
            raise ShuttingDown(service=self._service)
        return await self._readers.run(work)

    async def lead(
        self, role: str, work: Callable[[], Awaitable[T]], *, waiting: Callable[[], None] | None = None
    ) -> T:
        # Nobody else can have the file, so nobody else can have the role.
        return await work()

    async def clock_ahead(self, clock: Clock) -> Ahead:
        return Ahead.by(timedelta())

    async def close(self) -> None:
        """Commit and answer what is queued, fold the log into the file, and let go of it. Once is enough."""
        if self._closing:
            return
        self._closing = True
        await asyncio.to_thread(self._stop)
        self.committed.fire()  # whoever tails the log finds out now

    def _stop(self) -> None:
        try:
            self._readers.close()  # first: a reader would keep the log from being folded
            self._writer.close()
        finally:
            self._lock.release()

    def _committed(self, payloads: list[str]) -> None:
        self.committed.fire()
        self._tell(payloads)


class _TransactionLostError(Exception):
    """SQLite has rolled back the whole transaction under a unit of work; the cause says why."""


class _Writer:
    """The thread that does all writing. See the essay above."""

    def __init__(
        self,
        engine: Engine,
        service: str,
        loop: asyncio.AbstractEventLoop,
        committed: Callable[[list[str]], None],
    ) -> None:
        self._engine = engine
        self._service = service
        self._loop = loop
        self._committed = committed
        self._connection: Connection | None = None
        self._notifications: list[str] = []  # the connection's
        self._queue: SimpleQueue[Unit | None] = SimpleQueue()  # None: the end
        # A daemon, so that a program that forgets `close` can end: what was answered is durable already.
        self._thread = threading.Thread(target=self._serve, name=f"{service}-writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Connection], T]) -> T:
        if self._queue.qsize() >= database.WAITING_LIMIT:
            raise Overloaded(service=self._service)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(Unit(work, future))
        return await future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    # From here on: the writer thread.

    def _serve(self) -> None:
        more = True
        while more:
            group, more = self._take()
            notifications: list[str] = []
            outcomes = self._commit(group, notifications)
            self._loop.call_soon_threadsafe(self._answer, outcomes, notifications)
        self._disconnect()

    def _take(self) -> tuple[list[Unit], bool]:
        """Everything that waits, at least one; and whether more may come."""
        group: list[Unit] = []
        unit = self._queue.get()
        while unit is not None:
            group.append(unit)
            if len(group) == database.GROUP_LIMIT:
                return group, True
            try:
                unit = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, group: list[Unit], notifications: list[str]) -> list[Outcome]:
        try:
            connection = self._connected()
            driver = _driver(connection)
            driver.execute("BEGIN IMMEDIATE")
            self._reach("transaction.begun")
            outcomes = [self._attempt(unit, connection, driver) for unit in group]
            self._reach("commit.before")
            driver.execute("COMMIT")
        except Exception as error:
            self._disconnect()
            # One exception each: callers add their own tracebacks.
            return [Outcome(unit.future, None, self._group_error(error)) for unit in group]
        notifications += dict.fromkeys(self._notifications)
        self._notifications.clear()
        try:
            self._reach("commit.sent")
            self._reach("commit.after")
        except failpoints.FailpointError:
            return [Outcome(unit.future, None, StorageUnavailable(_LOST_ANSWER)) for unit in group]
        return outcomes

    def _attempt(self, unit: Unit, connection: Connection, driver: sqlite3.Connection) -> Outcome:
        if unit.future.cancelled():
            return Outcome(unit.future, None, None)
        notified = len(self._notifications)
        driver.execute("SAVEPOINT unit")
        try:
            result = unit.work(connection)
            self._reach("unit.after")
        except BaseException as error:
            if not driver.in_transaction:
                raise _TransactionLostError from error
            driver.execute("ROLLBACK TO unit")
            driver.execute("RELEASE unit")
            del self._notifications[notified:]
            return Outcome(unit.future, None, _translated(error, self._service))
        driver.execute("RELEASE unit")  # raises if the work swallowed the loss of the transaction
        return Outcome(unit.future, result, None)

    def _reach(self, place: str) -> None:
        failpoints.hit(place, self._service)

    def _group_error(self, error: BaseException) -> HopperError:
        cause = error.__cause__ if isinstance(error, _TransactionLostError) else error
        return _storage_error(cause, self._service) or StorageUnavailable(
            f"the transaction was lost ({cause}); nothing was done", service=self._service
        )

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._notifications = notifications_of(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        """Drop the connection, and with it whatever is open: the next group gets a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # Back in the event loop.

    def _answer(self, outcomes: list[Outcome], notifications: list[str]) -> None:
        if answer(outcomes):
            self._committed(notifications)


class _Readers:
    """A few threads, each with a connection that cannot write."""

    def __init__(self, engine: Engine, service: str) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix=f"{service}-reader")
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for _ in range(READERS):
            self._idle.put(engine.connect())

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        for _ in range(READERS):
            self._idle.get_nowait().close()

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection = self._idle.get_nowait()  # never empty: there are as many as threads
        try:
            with _snapshot(_driver(connection)):
                return work(connection)
        except Exception as error:
            translated = _translated(error, self._service)
            if translated is error:
                raise
            raise translated from error
        finally:
            self._idle.put(connection)


@contextmanager
def _snapshot(driver: sqlite3.Connection) -> Iterator[None]:
    driver.execute("BEGIN")
    try:
        yield
    finally:
        if driver.in_transaction:
            driver.execute("ROLLBACK")


def _prepare(path: Path, metadata: MetaData, migrations: str, service: str) -> sqlite_file.FileLock:
    """Lock, check and migrate; the lock is the caller's to release."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = sqlite_file.FileLock(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        sqlite_file.prepare(path)
        _migrate(path, metadata, migrations, service)
    except BaseException as error:
        lock.release()
        if isinstance(error, OSError) or _storage_error(error, service):
            raise _cannot_open(path, error) from error
        raise
    return lock


def _migrate(path: Path, metadata: MetaData, migrations: str, service: str) -> None:
    with _engine(path, "").connect() as connection:
        driver = _driver(connection)
        sqlite_file.check_pages(driver, path)
        # SQLite alters a table by copying it, which references to it would forbid; they are checked after.
        driver.execute("PRAGMA foreign_keys = OFF")
        driver.execute("BEGIN IMMEDIATE")
        connection.begin()  # tells Alembic that the transaction is ours
        changed = schema.upgrade(connection, migrations=migrations, service=service, database=str(path))
        schema.check_complete(connection, metadata=metadata, migrations=migrations)
        if changed:
            sqlite_file.check_references(driver, path)
        driver.execute("COMMIT")


def _cannot_open(path: Path, error: BaseException) -> HopperError:
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    known = _storage_error(error, "")
    if isinstance(known, DatabaseCorrupt):
        return sqlite_file.damaged(path, str(driver_error))
    kind = StorageFull if isinstance(known, StorageFull) or _no_space(error) else StorageUnavailable
    return kind(f"{path} cannot be opened ({driver_error}): check its disk and its owner", file=str(path))


def _no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _engine(path: Path, service: str, *, read_only: bool = False) -> Engine:
    """Every `connect` of it is a new connection to the file, kept by whoever asked."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite_file.connect(path, read_only=read_only),
        poolclass=NullPool,
        pool_reset_on_return=None,
        # An error's text ends in a log; the values in it are what people wrote.
        hide_parameters=True,
    )
    event.listen(engine, "commit", _refuse_commit)
    if failpoints.armed("sql.after"):
        event.listen(engine, "after_cursor_execute", lambda *_: failpoints.hit("sql.after", service))
    return engine


def _refuse_commit(_connection: Connection) -> NoReturn:
    raise RuntimeError("a unit of work must not commit: it would commit the work of others with it")


def _driver(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _translated(error: BaseException, service: str) -> BaseException:
    """Storage trouble in Hopper's words; anything else as it is, in a form that a future accepts."""
    return _storage_error(error, service) or for_future(error)


def _storage_error(error: BaseException | None, service: str) -> HopperError | None:
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    return sqlite_file.storage_error(driver_error, service)
