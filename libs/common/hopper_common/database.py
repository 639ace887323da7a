"""
The database of a service: one writer that commits in groups, and readers with snapshots.

Durable storage is slow in one place only: the fsync at the end of a commit (0.15 ms on a good disk, 10 ms on
a bad one). Sixty callers who each wait for their own fsync wait for sixty; sixty callers who share one wait
for one. So:

    write(work) ──┐
    write(work) ──┼─► queue ─► writer thread:  BEGIN IMMEDIATE
    write(work) ──┘                              SAVEPOINT · work 1 · RELEASE
                                                 SAVEPOINT · work 2 · ROLLBACK TO   (it raised)
                                                 SAVEPOINT · work 3 · RELEASE
                                               COMMIT                             (one fsync)
                  ◄── answers to all three, in one call into the event loop

**There is no timer.** The writer takes whatever is waiting, at most `GROUP_LIMIT`, and commits it; what
arrives meanwhile is the next group. A single caller finds the writer idle and pays nothing; under load the
groups grow by themselves, and that is all the tuning there is.

**Nothing is answered before COMMIT returns**, failures included: a unit may have failed because of what an
earlier one in its group did (say, ALREADY_EXISTS), and that is not true until it is durable. When COMMIT
itself fails, or SQLite drops the transaction in the middle (full disk, I/O error), the whole group gets the
storage's error and nothing of it is applied. The writer then throws its connection away and opens another for
the next group, so that it works again as soon as the disk does.

**A unit of work** is a plain function of a SQLAlchemy `Connection`. It runs on the writer thread, between
other people's work: it must be quick, must not commit or defer a constraint to the commit, and must return
values rather than open cursors. It runs once; if its caller has gone away before it started, it does not run;
if the caller goes away later, it may still be committed, which is what `request_id` (see
`hopper_common.idempotency`) is for.

**Readers** are two threads with connections that cannot write. Each `read` sees one snapshot from beginning
to end, and everything whose `write` had returned before the read began. In WAL mode they neither wait for the
writer nor delay it.

**`committed`** fires after each group that changed something; `hopper_common.eventlog` tails on it, so
nothing polls.

Only this module and `sqlite_file` know SQLite. PostgreSQL is to arrive behind the same two methods: `work`
keeps its shape, because `AsyncConnection.run_sync` hands it the same synchronous `Connection`.
"""

import asyncio
import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn, Self, TypeVar, cast

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from hopper_common import migrations as schema
from hopper_common import sqlite_file
from hopper_common.errors import (
    DatabaseCorrupt,
    HopperError,
    InvalidArgument,
    Overloaded,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
)

T = TypeVar("T")

GROUP_LIMIT = 512  # units in one transaction: enough to hide the fsync, few enough that nobody waits long
WAITING_LIMIT = 20_000  # beyond this the callers' deadlines are lost anyway; say so at once
READERS = 2


class Signal:
    """
    Something that happens again and again, and that many can wait for without ever missing it.

    Read `count`, look at the world, then `wait(after=count)`: whatever happened in between ends the wait at
    once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def fire(self) -> None:
        """It happened. From the event loop's thread only."""
        self.count += 1
        happened, self._next = self._next, asyncio.Event()
        happened.set()

    async def wait(self, *, after: int) -> int:
        """Wait until it has happened more than *after* times; returns how often it has."""
        while self.count <= after:
            await self._next.wait()
        return self.count


class Database:
    """
    The tables of one service. Made by `open`; used from the event loop that opened it.

    Attributes:
        committed: Fires after each group of writes that changed something, before their callers go on.
    """

    def __init__(self, path: Path, service: str, lock: sqlite_file.FileLock) -> None:
        self.committed = Signal()
        self.path = path
        self._service = service
        self._lock = lock
        self._closing = False
        self._readers = _Readers(_engine(path, read_only=True), service)
        self._writer = _Writer(_engine(path), service, asyncio.get_running_loop(), self.committed)

    @classmethod
    async def open(
        cls, url_or_path: str | Path, *, metadata: MetaData, migrations: str, service: str
    ) -> Self:
        """
        Check the database, bring its tables up to date, and start serving it.

        Args:
            url_or_path: A file, or `sqlite:///<file>`. Made if missing, readable by its owner only.
            metadata: The service's tables, all of which the migrations must make.
            migrations: The package of its Alembic revisions, e.g. "hopper_router.migrations".
            service: Short name, for errors and the version table.

        Raises:
            DatabaseLocked: Another process, or this one, has it open.
            DatabaseCorrupt: It is damaged, cut short, or not Hopper's.
            DatabaseNewer: A newer Hopper wrote it.
            StorageFull, StorageUnavailable: The disk is full, or the file cannot be opened.
        """
        path = _path_of(url_or_path)
        lock = await asyncio.to_thread(_prepare, path, metadata, migrations, service)
        try:
            return cls(path, service, lock)
        except BaseException:
            lock.release()
            raise

    async def write(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* in a transaction of its own, as far as it can tell; return its result once that is durable.

        Raises:
            StorageFull, StorageUnavailable: Nothing was done.
            Overloaded: Too much is waiting; nothing was done.
            ShuttingDown: After `close`; nothing was done.
            Exception: Whatever *work* raised, after its changes were taken back.
        """
        if self._closing:
            raise ShuttingDown(service=self._service)
        return await self._writer.run(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* on one consistent snapshot that contains every write that has returned. It cannot write.

        Raises:
            StorageUnavailable: The database does not answer.
            ShuttingDown: After `close`.
        """
        if self._closing:
            raise ShuttingDown(service=self._service)
        return await self._readers.run(work)

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


class _Unit(NamedTuple):
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class _TransactionLostError(Exception):
    """SQLite has rolled back the whole transaction under a unit of work; the cause says why."""


class _Writer:
    """The thread that does all writing. See the essay above."""

    def __init__(
        self, engine: Engine, service: str, loop: asyncio.AbstractEventLoop, committed: Signal
    ) -> None:
        self._engine = engine
        self._service = service
        self._loop = loop
        self._committed = committed
        self._connection: Connection | None = None
        self._queue: SimpleQueue[_Unit | None] = SimpleQueue()  # None: the end
        # A daemon, so that a program that forgets `close` can end: what was answered is durable already.
        self._thread = threading.Thread(target=self._serve, name=f"{service}-writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Connection], T]) -> T:
        if self._queue.qsize() >= WAITING_LIMIT:
            raise Overloaded(service=self._service)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Unit(work, future))
        return await future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    # From here on: the writer thread.

    def _serve(self) -> None:
        more = True
        while more:
            group, more = self._take()
            outcomes = self._commit(group)
            self._loop.call_soon_threadsafe(self._answer, outcomes)
        self._disconnect()

    def _take(self) -> tuple[list[_Unit], bool]:
        """Everything that waits, at least one; and whether more may come."""
        group: list[_Unit] = []
        unit = self._queue.get()
        while unit is not None:
            group.append(unit)
            if len(group) == GROUP_LIMIT:
                return group, True
            try:
                unit = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, group: list[_Unit]) -> list[_Outcome]:
        try:
            connection = self._connected()
            driver = _driver(connection)
            driver.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(unit, connection, driver) for unit in group]
            driver.execute("COMMIT")
        except Exception as error:
            self._disconnect()
            # One exception each: callers add their own tracebacks.
            return [_Outcome(unit.future, None, self._group_error(error)) for unit in group]
        return outcomes

    def _attempt(self, unit: _Unit, connection: Connection, driver: sqlite3.Connection) -> _Outcome:
        if unit.future.cancelled():
            return _Outcome(unit.future, None, None)
        driver.execute("SAVEPOINT unit")
        try:
            result = unit.work(connection)
        except BaseException as error:
            if not driver.in_transaction:
                raise _TransactionLostError from error
            driver.execute("ROLLBACK TO unit")
            driver.execute("RELEASE unit")
            return _Outcome(unit.future, None, _translated(error, self._service))
        driver.execute("RELEASE unit")  # raises if the work swallowed the loss of the transaction
        return _Outcome(unit.future, result, None)

    def _group_error(self, error: BaseException) -> HopperError:
        cause = error.__cause__ if isinstance(error, _TransactionLostError) else error
        return _storage_error(cause, self._service) or StorageUnavailable(
            f"the transaction was lost ({cause}); nothing was done", service=self._service
        )

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        """Drop the connection, and with it whatever is open: the next group gets a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # Back in the event loop.

    def _answer(self, outcomes: list[_Outcome]) -> None:
        for future, result, error in outcomes:
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if any(error is None for _, _, error in outcomes):
            self._committed.fire()


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
    with _engine(path).connect() as connection:
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


def _path_of(url_or_path: str | Path) -> Path:
    text = str(url_or_path)
    if "://" not in text:
        return Path(text).absolute()
    url = make_url(text)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise InvalidArgument(
            f"a {url.drivername} database cannot be opened: give a file or sqlite:///<file>"
        )
    return Path(url.database).absolute()


def _engine(path: Path, *, read_only: bool = False) -> Engine:
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
    return engine


def _refuse_commit(_connection: Connection) -> NoReturn:
    raise RuntimeError("a unit of work must not commit: it would commit the work of others with it")


def _driver(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _translated(error: BaseException, service: str) -> BaseException:
    """Storage trouble in Hopper's words; anything else as it is, in a form that a future accepts."""
    if isinstance(error, StopIteration):
        return RuntimeError("a unit of work raised StopIteration")
    return _storage_error(error, service) or error


def _storage_error(error: BaseException | None, service: str) -> HopperError | None:
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    return sqlite_file.storage_error(driver_error, service)
