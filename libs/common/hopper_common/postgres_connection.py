"""
Connections to a PostgreSQL server: made soundly, or refused with the reason and the remedy.

Everything that one service has is in the schema `hopper_<service>` of the database it was given, so that
services can share a database. What a connection may do, and for how long, is said when it is made, and differs
by its role: a process that hangs in the middle of a transaction must not keep the others from writing for
ever.

No password and nothing that people wrote gets into an error here: a driver's "detail" quotes rows, so it is
taken out.
"""

import asyncio
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from sqlalchemy import Connection, MetaData, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from hopper_common import failpoints
from hopper_common import migrations as schema
from hopper_common.errors import (
    DatabaseCorrupt,
    DatabaseUnsupported,
    HopperError,
    InvalidArgument,
    StorageFull,
    StorageUnavailable,
)

T = TypeVar("T")

Role = Literal["writer", "reader", "listener", "leader", "migration"]

PATIENCE_SECONDS: Final = 5.0  # how long a server may be away before callers hear of it
OLDEST_SERVER: Final = 14  # idle_session_timeout
STATEMENTS: Final = 500  # kept prepared by each connection

_CONNECT_SECONDS: Final = 3.0
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.5

_SETTINGS: Final = {
    "timezone": "UTC",
    "jit": "off",  # our statements are short; compiling them is not
    # A peer whose machine is gone is found out within half a minute, so that its locks are free again.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20s",
    "idle_session_timeout": "0",
}
_SETTINGS_OF: Final[dict[Role, dict[str, str]]] = {
    "writer": {
        "statement_timeout": "15s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "5s",  # what a hung process holds, it holds no longer
        # What writes finds its rows by an index, also while the tables are small and when they have grown since: a
        # plan that was made for an empty table and reads all of it would be kept for as long as the connection.
        "enable_seqscan": "off",
        "plan_cache_mode": "force_generic_plan",
    },
    "reader": {"statement_timeout": "30s", "idle_in_transaction_session_timeout": "60s"},
    "listener": {"statement_timeout": "5s"},
    "leader": {"statement_timeout": "2s", "idle_session_timeout": "3s"},
    "migration": {
        "statement_timeout": "0",
        "lock_timeout": "60s",
        "idle_in_transaction_session_timeout": "60s",
    },
}
# The driver's own limit is for servers that do not even time out.
_COMMAND_SECONDS: Final[dict[Role, float | None]] = {
    "writer": 20.0,
    "reader": 35.0,
    "listener": 6.0,
    "leader": 2.0,
    "migration": None,
}

# A value of the statement in asyncpg's own words.
_QUOTED_ARGUMENT: Final = re.compile(r"(invalid input for query argument \$\d+).*", re.DOTALL)

# The server's codes: www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL: Final = "53100"
_TOO_MANY_CONNECTIONS: Final = "53300"
_DAMAGE: Final = {"XX001", "XX002"}
_REPEATABLE: Final = {"40001", "40P01"}  # serialization failure, deadlock
_AWAY_CLASSES: Final = {"08", "53", "57", "58"}  # connection, resources, operator, system
_REFUSED_CLASSES: Final = {"28", "3D"}  # name or password, no such database
_TROUBLE: Final = _REPEATABLE | {"25006", "25P03", "55P03"}  # read only, idle in transaction, lock not had
_FORBIDDEN: Final = "42501"
_NO_TEXT: Final = "22021"  # a NUL character, the only one that cannot be stored
# Another process has changed the tables: on a new connection, statements are prepared anew.
_OUTDATED: Final = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


@dataclass(frozen=True, slots=True)
class Server:
    """
    Where a service's tables are, and what its part of the database is called.

    Attributes:
        url: With password; never shown.
        name: The same for people.
    """

    url: str = field(repr=False)
    service: str
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _public_name(self.url))

    @property
    def schema(self) -> str:
        """The schema of the service's tables."""
        return f"hopper_{self.service}"

    @property
    def channel(self) -> str:
        """Where its processes hear of each other's commits."""
        return self.schema

    @property
    def lock_key(self) -> int:
        """The advisory lock that every transaction that writes holds."""
        return advisory_key(self.schema)

    @property
    def presence_key(self) -> int:
        """
        The advisory lock that shows who is there: every process holds it, shared, with the connection that it writes
        with. So a transaction that can have it alone has nobody to tell anything, and NOTIFY, which costs as much as a
        small insert, is left out. Who comes later waits for the end of that transaction.
        """
        return self.lock_key ^ 1


def advisory_key(name: str) -> int:
    """The advisory lock of that name: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(f"hopper:{name}".encode()).digest()[:8], signed=True)


async def connect(server: Server, role: Role) -> Any:
    """
    One `asyncpg.Connection`, with the settings of its role.

    Raises:
        InvalidArgument: The URL cannot be read.
        Exception: The driver's; see `is_lost` and `storage_error`.
    """
    settings = {
        **_SETTINGS,
        **_SETTINGS_OF[role],
        "search_path": server.schema,
        "application_name": f"hopper {server.service} {role}",
    }
    try:
        connection = await asyncpg.connect(
            server.url,
            timeout=_CONNECT_SECONDS,
            command_timeout=_COMMAND_SECONDS[role],
            statement_cache_size=STATEMENTS,
            max_cacheable_statement_size=0,
            server_settings=settings,
        )
    except (asyncpg.ClientConfigurationError, ValueError):
        # Its text quotes the URL, which may have the password where it does not belong.
        raise InvalidArgument(
            f"the postgresql URL of {server.service} cannot be read: percent-encode what is special in the "
            "password, and see postgresql.org/docs for the form"
        ) from None
    _keep_alive(connection)
    return connection


class Link:
    """
    A connection in use: the driver's, and SQLAlchemy's over it, which begins and commits only when told to.

    Attributes:
        raw: The `asyncpg.Connection`.
        session: What units of work run on.
        run: Changes when the server has recovered from a crash; only asked for if it matters.
    """

    __slots__ = ("raw", "run", "session")

    def __init__(self, raw: Any, session: Any, run: str) -> None:
        self.raw = raw
        self.session = session
        self.run = run

    @classmethod
    async def open(cls, engine: AsyncEngine, *, presence: int | None = None) -> "Link":
        """
        Connect; raises what the driver raises.

        Args:
            presence: `Server.presence_key`, for a writer's connection.
        """
        session = await engine.connect()
        try:
            raw = (await session.get_raw_connection()).driver_connection
            run = "" if presence is None else await _set_up_writer(raw, presence)
        except BaseException:
            await session.invalidate()
            await session.close()
            raise
        return cls(raw, session, run)

    async def work(self, work: Callable[[Connection], T]) -> T:
        """Run a unit of work on it."""
        result: T = await self.session.run_sync(work)
        return result

    @property
    def in_transaction(self) -> bool:
        """Whether the server says that a transaction is open."""
        return not self.raw.is_closed() and bool(self.raw.is_in_transaction())

    async def discard(self) -> None:
        """Drop it as it is, and with it whatever is open."""
        self.raw.terminate()
        try:
            await self.session.invalidate()
            await self.session.close()
        except (DBAPIError, OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
            pass  # it is gone, which is what was wanted


class Outage:
    """
    How long the server has been away, for all connections of a process, and what callers are told.

    While it has been away for less than `PATIENCE_SECONDS`, callers wait and it is tried again and again. Then
    each caller pays for one attempt at most.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._since: float | None = None

    async def over(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """
        The first success of *attempt*.

        Raises:
            HopperError: There was none while there was patience.
        """
        pause = _FIRST_PAUSE
        began = asyncio.get_running_loop().time()
        while True:
            try:
                result = await attempt()
            except Exception as error:
                if self._bearable(error, began):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                known = storage_error(error, self._server.service, name=self._server.name)
                if known is None:
                    raise
                raise known from error
            self._since = None
            return result

    def _bearable(self, error: BaseException, began: float) -> bool:
        if not is_lost(error):
            return False
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        # The second: with some connections in use and none to be had, others end the outage again and again.
        return now - self._since < PATIENCE_SECONDS and now - began < PATIENCE_SECONDS


def make_engine(server: Server, role: Role) -> AsyncEngine:
    """Every `connect` of it is a new connection to the server, kept by whoever asked."""

    def creator() -> Any:
        return engine.sync_engine.dialect.loaded_dbapi.connect(
            async_creator_fn=lambda: connect(server, role), prepared_statement_cache_size=STATEMENTS
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=creator,
        poolclass=NullPool,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",  # SQLAlchemy begins nothing by itself
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "handle_error", _take_out_values)
    event.listen(engine.sync_engine, "commit", _refuse_commit)
    if role == "writer" and failpoints.armed("sql.after"):
        event.listen(
            engine.sync_engine, "after_cursor_execute", lambda *_: failpoints.hit("sql.after", server.service)
        )
    return engine


async def prepare(server: Server, metadata: MetaData, migrations: str) -> None:
    """
    Make the service's schema if it is not there, and bring its tables up to date.

    Of several processes that start at once, one does it and the others wait for it.

    Raises:
        DatabaseNewer, DatabaseUnsupported, InvalidArgument, StorageUnavailable
    """
    engine = make_engine(server, "migration")
    try:
        await Outage(server).over(lambda: _make_schema(server))
        link = await Outage(server).over(lambda: Link.open(engine))
        try:
            await link.raw.execute(f"BEGIN; SELECT pg_advisory_xact_lock({server.lock_key})")
            await link.work(lambda conn: _migrate(conn, server, metadata, migrations))
            await link.raw.execute("COMMIT")
        finally:
            await link.discard()
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        known = storage_error(error, server.service)
        if sqlstate(error) == _FORBIDDEN:
            raise StorageUnavailable(
                f"{server.name} cannot be opened ({reason(error)}): its role needs CREATE on the database, or on the "
                f"schema {server.schema}"
            ) from error
        if known is None:
            raise
        raise type(known)(
            f"{server.name} cannot be opened ({reason(error)}): check the server and the URL"
        ) from error
    finally:
        await engine.dispose()


def take_out_values(error: BaseException) -> None:
    """What people wrote, out of the text of a driver's error."""
    if getattr(error, "detail", None):
        error.detail = None  # type: ignore[attr-defined]
    if error.args and isinstance(error.args[0], str):
        error.args = (_QUOTED_ARGUMENT.sub(r"\1", error.args[0]), *error.args[1:])


def sqlstate(error: BaseException | None) -> str:
    """The server's five letters for what went wrong; empty if it was not the server that said so."""
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    return getattr(driver_error, "sqlstate", None) or ""


def reason(error: BaseException) -> str:
    """The error in one line without anybody's values."""
    driver_error = error.orig if isinstance(error, DBAPIError) and error.orig else error
    if isinstance(driver_error, OSError):
        text = driver_error.strerror or ""
    else:
        text = str(driver_error.args[0]) if driver_error.args else ""
    return _QUOTED_ARGUMENT.sub(r"\1", text).partition("\n")[0] or type(driver_error).__name__


def is_lost(error: BaseException) -> bool:
    """Whether the error means that the connection is gone, or that there is none to be had."""
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(driver_error, OSError):  # timeouts too
        return True
    # The driver has lost its place in the conversation: the server has said good-bye in the middle of it.
    if any(isinstance(cause, asyncpg.InternalClientError) for cause in _causes(error)):
        return True
    state = sqlstate(error)
    return (
        state[:2] == "08"
        or (state[:3] == "57P" and state != "57P04")
        or state in ("25P03", _TOO_MANY_CONNECTIONS)
        or "connection is closed" in str(driver_error)
    )


def is_repeatable(error: BaseException | None) -> bool:
    """Whether the same transaction may go well if it is run again: nothing of it has been done."""
    return any(sqlstate(cause) in _REPEATABLE or isinstance(cause, _OUTDATED) for cause in _causes(error))


def storage_error(
    error: BaseException | None, service: str, *, name: str = "the database"
) -> HopperError | None:
    """
    What a driver's error means to the caller, in Hopper's words.

    Args:
        name: What to call the database.

    Returns:
        None if it is not the storage's fault: a broken constraint, which is the store's to translate, or
        wrong SQL.
    """
    if error is None:
        return None
    state = sqlstate(error)
    if state == _DISK_FULL:
        return StorageFull(service=service)
    if state in _DAMAGE:
        return DatabaseCorrupt(
            "the database is damaged: stop the service and restore a backup", service=service
        )
    if state == _NO_TEXT:
        return InvalidArgument("a text has a NUL character in it, which cannot be stored: leave it out")
    if is_lost(error) or state[:2] in _AWAY_CLASSES | _REFUSED_CLASSES or state in _TROUBLE:
        return StorageUnavailable(
            f"{name} does not answer ({reason(error)}); nothing was done", service=service
        )
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _take_out_values(context: ExceptionContext) -> None:
    for error in (*_causes(context.original_exception), context.sqlalchemy_exception):
        if error is not None:
            take_out_values(error)


def _refuse_commit(_connection: Connection) -> None:
    raise RuntimeError("a unit of work must not commit: it would commit the work of others with it")


async def _set_up_writer(raw: Any, presence: int) -> str:
    await raw.execute(f"SELECT pg_advisory_lock_shared({presence})")
    # An acknowledged write is durable; whoever has set more than `on` (remote_apply) keeps it.
    await raw.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
    await raw.execute(
        "INSERT INTO hopper_server_run (id) SELECT gen_random_uuid()::text"
        " WHERE NOT EXISTS (SELECT 1 FROM hopper_server_run) ON CONFLICT DO NOTHING"
    )
    return str(await raw.fetchval("SELECT id FROM hopper_server_run"))


async def _make_schema(server: Server) -> None:
    raw = await connect(server, "migration")
    try:
        if raw.get_server_version().major < OLDEST_SERVER:
            raise DatabaseUnsupported(
                f"{server.name} is PostgreSQL {raw.get_server_version().major}: Hopper needs {OLDEST_SERVER} "
                "or newer"
            )
        async with raw.transaction():
            await raw.execute(f"SELECT pg_advisory_xact_lock({server.lock_key})")
            if not await raw.fetchval("SELECT to_regnamespace($1) IS NOT NULL", server.schema):
                await raw.execute(f'CREATE SCHEMA "{server.schema}"')
            # Unlogged: emptied by the recovery from a crash, and by nothing else. That is how the writer
            # learns that transaction ids may have been given twice.
            await raw.execute(
                "CREATE UNLOGGED TABLE IF NOT EXISTS hopper_server_run"
                " (lone boolean PRIMARY KEY DEFAULT true CHECK (lone), id text NOT NULL)"
            )
    finally:
        raw.terminate()


def _migrate(connection: Connection, server: Server, metadata: MetaData, migrations: str) -> None:
    connection.begin()  # tells Alembic that the transaction is ours
    schema.upgrade(connection, migrations=migrations, service=server.service, database=server.name)
    schema.check_complete(connection, metadata=metadata, migrations=migrations)


def _keep_alive(connection: Any) -> None:
    # The server's settings find out about a dead client; these about a dead server. The driver has no
    # public way to them, so it is done where it can be done.
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 10_000),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _public_name(url: str) -> str:
    """The address without user and password; nothing of it, if it is not clear where the password is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the postgresql database"
    if "@" not in parts.netloc and ("@" in url or ":" in parts.netloc.rpartition("]")[2].partition(":")[2]):
        return "the postgresql database"
    host = parts.netloc.rpartition("@")[2] or ",".join(parse_qs(parts.query).get("host", ["localhost"]))
    return f"postgresql {parts.path.strip('/') or 'postgres'} at {host}"
