"""
The database of a service: one writer that commits in groups, and readers with snapshots.

Durable storage is slow in one place only: the fsync at the end of a commit (0.15 ms on a good disk, 10 ms on
a bad one). Sixty callers who each wait for their own fsync wait for sixty; sixty callers who share one wait
for one. So:

    write(work) ──┐
    write(work) ──┼─► queue ─► the writer:  BEGIN
    write(work) ──┘                           SAVEPOINT · work 1 · RELEASE
                                              SAVEPOINT · work 2 · ROLLBACK TO   (it raised)
                                              SAVEPOINT · work 3 · RELEASE
                                            COMMIT                             (one fsync)
                  ◄── answers to all three

**There is no timer.** The writer takes whatever is waiting, up to a limit, and commits it; what arrives
meanwhile is the next group. A single caller finds the writer idle and pays nothing; under load the groups
grow by themselves, and that is all the tuning there is.

**Nothing is answered before COMMIT returns**, failures included: a unit may have failed because of what an
earlier one in its group did (say, ALREADY_EXISTS), and that is not true until it is durable. When COMMIT
itself fails, or the transaction is lost in the middle (full disk, I/O error), the whole group gets the
storage's error and nothing of it is applied.

**A unit of work** is a plain function of a SQLAlchemy `Connection`. It runs between other people's work: it
must be quick, must not commit or defer a constraint to the commit, and must return values rather than open
cursors. If its caller has gone away before it started, it does not run; if the caller goes away later, it may
still be committed, which is what `request_id` (see `hopper_common.idempotency`) is for. It may run **more than
once**, when the transaction it was part of was lost before it was committed: so it has no effects but those in
the database. A statement that fails has spoilt the unit, unless it ran in `conn.begin_nested()`.

**Readers** cannot write. Each `read` sees one snapshot from beginning to end, and everything whose `write` had
returned before the read began.

**`committed`** fires after each group, this process's and, where several share a database, those of the
others; `hopper_common.eventlog` tails on it, so nothing polls. What the others should know beyond that is told
with `notify` and heard with `on_notify`.

There are two engines, `hopper_common.sqlite` and `hopper_common.postgres`, and their essays say how each does
it. Whoever has a `Database` need not know which it is.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection, MetaData, make_url
from sqlalchemy.exc import ArgumentError

from hopper_common.clock import Ahead, Clock
from hopper_common.errors import DatabaseUnsupported, InvalidArgument

T = TypeVar("T")

log = structlog.get_logger(__name__)

GROUP_LIMIT = 512  # units in one transaction: enough to hide the fsync, few enough that nobody waits long
WAITING_LIMIT = 20_000  # beyond this the callers' deadlines are lost anyway; say so at once
PAYLOAD_LIMIT = 1_000  # bytes of one notification; some of them share a message of 8,000

_NOTIFICATIONS = "hopper_notifications"


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


class Database(ABC):
    """
    The tables of one service. Made by `open`; used from the event loop that opened it.

    Attributes:
        committed: Fires after each group of writes, before their callers go on.
        dialect: Which engine it is, for the few who write SQL for one.
        name: What to call it in messages: its file, or its address without password.
    """

    dialect: Literal["sqlite", "postgresql"]
    name: str

    def __init__(self) -> None:
        self.committed = Signal()
        self._callbacks: list[Callable[[str], None]] = []

    @staticmethod
    async def open(
        url_or_path: str | Path, *, metadata: MetaData, migrations: str, service: str
    ) -> "Database":
        """
        Check the database, bring its tables up to date, and start serving it.

        Args:
            url_or_path: A file or `sqlite:///<file>`, made if missing, readable by its owner only. Or
                `postgresql://...`, a database that exists; the service's tables are in a schema of their own.
            metadata: The service's tables, all of which the migrations must make.
            migrations: The package of its Alembic revisions, e.g. "hopper_router.migrations".
            service: Short name, for errors, the version table and the schema.

        Raises:
            DatabaseLocked: Another process, or this one, has the file open.
            DatabaseCorrupt: It is damaged, cut short, or not Hopper's.
            DatabaseNewer: A newer Hopper wrote it.
            DatabaseUnsupported: The driver is not installed, or the server is too old.
            StorageFull, StorageUnavailable: The disk is full, or it cannot be opened.
            InvalidArgument: It is no address of a database.
        """
        # Here, because the engines import this module, and because the driver of one may not be installed.
        if dialect_of(url_or_path) == "sqlite":
            from hopper_common.sqlite import SqliteDatabase  # noqa: PLC0415

            return await SqliteDatabase.start(
                url_or_path, metadata=metadata, migrations=migrations, service=service
            )
        try:
            from hopper_common.postgres import PostgresDatabase  # noqa: PLC0415
        except ImportError as error:
            if error.name != "asyncpg":
                raise
            raise DatabaseUnsupported(
                "a postgresql database needs the driver asyncpg: pip install 'hopper-mesh[postgres]'"
            ) from error
        return await PostgresDatabase.start(
            str(url_or_path), metadata=metadata, migrations=migrations, service=service
        )

    @abstractmethod
    async def write(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* in a transaction of its own, as far as it can tell; return its result once that is durable.

        Raises:
            StorageFull, StorageUnavailable: Nothing was done. Except that on PostgreSQL, when the server was
                lost while it committed, it may have been done; the message says so.
            Overloaded: Too much is waiting; nothing was done.
            ShuttingDown: After `close`; nothing was done.
            Exception: Whatever *work* raised, after its changes were taken back.
        """

    @abstractmethod
    async def read(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* on one consistent snapshot that contains every write that has returned. It cannot write.

        Raises:
            StorageUnavailable: The database does not answer.
            ShuttingDown: After `close`.
        """

    @abstractmethod
    async def lead(
        self, role: str, work: Callable[[], Awaitable[T]], *, waiting: Callable[[], None] | None = None
    ) -> T:
        """
        Run *work* while this process, of all that share the database, is the one that has *role*.

        Waits for the role, for as long as it takes; gives it back when *work* ends. When the role is lost, as
        with the connection it hangs on, *work* is cancelled, and started again once the role is back. A
        process that dies or hangs has lost it within 5 seconds. One that hung and goes on may for a moment
        not know that it has: so what *work* writes has to be right whoever writes it.

        Args:
            waiting: Called, again and again, while another process has the role.

        Raises:
            Exception: Whatever *work* raised.
        """

    @abstractmethod
    async def clock_ahead(self, clock: Clock) -> Ahead:
        """
        How far the database server's clock is ahead of *clock*; 0 if it has none of its own.

        Raises:
            StorageUnavailable: The database does not answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Commit and answer what is queued, and let go of the database. Once is enough."""

    def on_notify(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """
        Call *callback* with every payload given to `notify`, after its commit, in every process.

        The payload is empty when something may have been missed, or when there were too many to tell: then
        whatever the payloads stand for may have happened.

        Returns:
            A function that stops it.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def _tell(self, payloads: Iterable[str]) -> None:
        for payload in payloads:
            for callback in tuple(self._callbacks):
                try:
                    callback(payload)
                except Exception:  # of whoever listens: the others are to hear of it all the same
                    log.exception("a callback failed", database=self.name)


def notify(conn: Connection, payload: str) -> None:
    """
    Tell every process that has the database open, this one too, once the unit of work is committed.

    The same payload is told once per group. See `Database.on_notify`.

    Args:
        payload: One line, 1 to `PAYLOAD_LIMIT` bytes; no secrets.
    """
    if not 1 <= len(payload.encode()) <= PAYLOAD_LIMIT or not payload.isprintable():
        raise ValueError(f"a notification is one printable line of up to {PAYLOAD_LIMIT} bytes")
    notifications_of(conn).append(payload)


def dialect_of(url_or_path: str | Path) -> Literal["sqlite", "postgresql"]:
    """
    Which engine an address is for; a file is SQLite's.

    Raises:
        InvalidArgument: For none that there is.
    """
    scheme, separator, _ = str(url_or_path).partition("://")
    if not separator or scheme == "sqlite":
        return "sqlite"
    if scheme in ("postgresql", "postgres"):
        return "postgresql"
    raise InvalidArgument(
        f"a {scheme} database cannot be opened: give a file, sqlite:///<file> or postgresql://..."
    )


# For the engines.


class Unit(NamedTuple):
    """A unit of work in the queue, and who waits for it."""

    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]


class Outcome(NamedTuple):
    """What a unit of work came to: its result or its error, to be told after the commit."""

    future: asyncio.Future[Any]
    result: Any
    error: BaseException | None


def answer(outcomes: Iterable[Outcome]) -> bool:
    """Tell the callers who are still there; returns whether anything succeeded."""
    succeeded = False
    for future, result, error in outcomes:
        succeeded = succeeded or error is None
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    return succeeded


def notifications_of(conn: Connection) -> list[str]:
    """What the units of the group that is being written want told."""
    notifications: list[str] = conn.info.setdefault(_NOTIFICATIONS, [])
    return notifications


def for_future(error: BaseException) -> BaseException:
    """The error in a form that a future accepts."""
    return RuntimeError("a unit of work raised StopIteration") if isinstance(error, StopIteration) else error


def sqlite_path(url_or_path: str | Path) -> Path:
    """
    The file that an SQLite address means, absolute.

    Raises:
        InvalidArgument: It names none.
    """
    text = str(url_or_path)
    if "://" not in text:
        return Path(text).absolute()
    try:
        database = make_url(text).database
    except ArgumentError:
        database = None
    if not database:
        raise InvalidArgument("the database address names no file: give sqlite:///<file>")
    return Path(database).absolute()
