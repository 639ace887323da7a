"""
The database of a service in a PostgreSQL server, which several processes may share.

**One at a time.** Every transaction that writes takes one advisory lock of the service first. So the writers of
all processes follow each other, and what a queue needs comes for free: the versions of `hopper_common.eventlog`
become visible in their order, whoever checks and then writes is not raced, and nobody deadlocks. It costs what
one writer can do, which is what the fsync allows anyway; the groups carry the load. In a process the writer is
one task with one connection, and the units run in its event loop, each awaiting its statements in a greenlet.

**Statements.** `statement` runs one SQL statement alone on the writer's connection, outside a transaction: for
the hottest paths, which save BEGIN and COMMIT. It is to take the lock itself (`lock_key`), in a function or
a statement of its own, since a statement sees what was committed when it began and not when it got the lock.

**A connection that is lost** before COMMIT was sent has done nothing: the group runs again on another one. After
COMMIT was sent, nobody knows. So the writer knows its transaction's id, and asks the server, once it answers
again, what has become of it (`pg_xact_status`): committed, and the callers get their results; aborted, and the
group runs again. There is one trap. A server that crashes forgets the ids of transactions that had nothing on
the disk, and gives them again; then "committed" may be somebody else's. An unlogged table, which the recovery
from a crash empties, tells: if it was, "committed" counts as unknown. What stays unknown is reported so
(`StorageUnavailable`), and a repeat with the same `request_id` finds out.

**A server that is away** for a moment, as for a restart, is waited for; then callers are told at once.

**Wake-ups.** A group that changed something sends one NOTIFY, in its transaction. Every process listens on a
connection of its own. After that connection was lost, `committed` fires and callbacks get the empty payload:
something may have been missed.

**Roles** (`lead`) are advisory locks of sessions, each on a connection of its own that its holder has to use
every second: the server ends it when it has been silent for three.

A pooler between us and the server must keep sessions (PgBouncer's `pool_mode=session`).
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Self, TypeVar

import asyncpg
import structlog
from sqlalchemy import Connection, MetaData

from hopper_common import database, failpoints
from hopper_common.clock import Ahead, Clock
from hopper_common.database import Database, Outcome, Unit, answer, for_future, notifications_of
from hopper_common.errors import HopperError, Internal, Overloaded, ShuttingDown, StorageUnavailable
from hopper_common.postgres_connection import (
    PATIENCE_SECONDS,
    Link,
    Outage,
    Server,
    advisory_key,
    connect,
    is_lost,
    is_repeatable,
    make_engine,
    prepare,
    reason,
    sqlstate,
    storage_error,
    take_out_values,
)

T = TypeVar("T")

log = structlog.get_logger(__name__)

GROUP_LIMIT = 64  # from the 65th SAVEPOINT on, everybody's snapshots have to look them up on disk
READERS = 4
# The last is what asyncpg says when the server has ended the session while the event loop was held up.
_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
ATTEMPTS = 5  # at a group whose transaction is lost again and again

_MESSAGE_BYTES: Final = 7_900  # NOTIFY takes 8,000
_LEAD_EVERY_SECONDS: Final = 1.0
_LISTEN_CHECK_SECONDS: Final = 5.0
_CLOCK_ROUNDS: Final = 20
_CLOCK_CLOSE: Final = timedelta(milliseconds=2)
# Whoever has changed nothing has no id, and nobody needs to know. The first column is the answer.
_XID_AND_NOTIFY: Final = (
    "SELECT pg_current_xact_id_if_assigned()::text,"
    " CASE WHEN ($3 OR pg_current_xact_id_if_assigned() IS NOT NULL) AND NOT pg_try_advisory_xact_lock($4)"
    " THEN pg_notify($1, $2) END"
)
_UNKNOWN: Final = (
    "the database was lost while it committed, and it is not known whether this was done: "
    "a repeat with the same request_id is safe"
)
_FROM_THE_FUTURE: Final = "22023"  # what pg_xact_status says of an id that was never given


class PostgresDatabase(Database):
    """The tables of one service in a schema of a PostgreSQL database."""

    dialect = "postgresql"

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.name = server.name
        self.lock_key = server.lock_key
        self.presence_key = server.presence_key
        self.channel = server.channel
        self._server = server
        self._closing = False
        self._origin = secrets.token_hex(6)
        self._writer = _Writer(server, self._origin, self._committed_here, self._missed)
        self._readers = _Readers(server)
        self._listener = _Listener(server, self._committed_elsewhere, self._missed, self._writer.be_present)

    @classmethod
    async def start(cls, url: str, *, metadata: MetaData, migrations: str, service: str) -> Self:
        """Migrate and open the service's schema: see `Database.open`."""
        server = Server(url, service)
        # A thread with a loop of its own: Alembic keeps its state in globals, and its lock blocks.
        await asyncio.to_thread(lambda: asyncio.run(prepare(server, metadata, migrations)))
        db = cls(server)
        try:
            await db._writer.connect()
            await db._listener.connect()
        except BaseException:
            await db.close()
            raise
        return db

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self._closing:
            raise ShuttingDown(service=self._server.service)
        return await self._writer.run(work)

    async def statement(
        self, work: Callable[[Any], Awaitable[T]], *, changed: Callable[[T], bool] = lambda _result: True
    ) -> T:
        """
        Run *work*, given the `asyncpg.Connection`, alone on the writer's connection, outside a transaction.

        It is to make one statement that changes something, and nothing else that does. It may run again, when
        the server refused the statement for a reason that passes. To tell other processes, the statement calls
        `pg_notify(channel, message)` with `channel` and `message(...)` of this object, unless
        `pg_try_advisory_xact_lock(presence_key)` says that there are none.

        Args:
            changed: Whether a result means that something was changed: then `committed` fires.

        Raises:
            StorageUnavailable: If the connection was lost meanwhile, it may have been done; the message says
                so. Otherwise nothing was done.
            StorageFull, Overloaded, ShuttingDown: Nothing was done.
            Exception: Whatever *work* raised.
        """
        if self._closing:
            raise ShuttingDown(service=self._server.service)
        result: T = await self._writer.run_alone(work, changed)
        return result

    def message(self, payloads: Iterable[str] = ()) -> str:
        """What a `statement` gives to `pg_notify`, so that `on_notify` gets the payloads everywhere."""
        return _message(self._origin + "+", payloads)

    async def read(self, work: Callable[[Connection], T]) -> T:
        if self._closing:
            raise ShuttingDown(service=self._server.service)
        return await self._readers.run(work)

    async def lead(
        self, role: str, work: Callable[[], Awaitable[T]], *, waiting: Callable[[], None] | None = None
    ) -> T:
        key = advisory_key(f"{self._server.schema}:{role}")
        while not self._closing:
            try:
                connection = await connect(self._server, "leader")
            except Exception as error:
                if storage_error(error, "") is None:
                    raise
                log.warning("cannot ask for a role", role=role, reason=reason(error))
                await asyncio.sleep(_LEAD_EVERY_SECONDS)
                continue
            try:
                if await _become(connection, key, waiting):
                    log.info("has a role", role=role, service=self._server.service)
                    return await _while_held(connection, work)
            except _RoleLostError:
                log.warning("has lost a role", role=role, service=self._server.service)
            finally:
                connection.terminate()
        raise ShuttingDown(service=self._server.service)

    async def clock_ahead(self, clock: Clock) -> Ahead:
        ahead = await self._clock_ahead(clock)
        for _ in range(_CLOCK_ROUNDS):
            if ahead.width < _CLOCK_CLOSE:
                break
            ahead = min(ahead, await self._clock_ahead(clock), key=lambda one: one.width)
        return ahead

    async def _clock_ahead(self, clock: Clock) -> Ahead:
        before = clock.now()
        theirs: datetime = await self._readers.run_raw("SELECT clock_timestamp()")
        return Ahead(theirs - clock.now(), theirs - before)

    async def close(self) -> None:
        """Commit and answer what is queued, and let go of the connections. Once is enough."""
        if self._closing:
            return
        self._closing = True
        try:
            await self._writer.close()
            await self._readers.close()
        finally:
            await self._listener.close()
        self.committed.fire()  # whoever tails the log finds out now

    def _committed_here(self, payloads: Iterable[str]) -> None:
        self.committed.fire()
        self._tell(payloads)

    def _committed_elsewhere(self, message: str) -> None:
        origin, told, payloads = message.partition("\n")
        if origin == self._origin:
            return  # told when it was committed
        if origin != self._origin + "+":  # a statement of ours: `committed` has fired
            self.committed.fire()
        if told:
            self._tell(payloads.split("\n"))

    def _missed(self) -> None:
        self.committed.fire()
        self._tell([""])


# The writer.


class _Alone(NamedTuple):
    """A statement in the queue."""

    work: Callable[[Any], Awaitable[Any]]
    changed: Callable[[Any], bool]
    future: asyncio.Future[Any]


class _TransactionLostError(Exception):
    """A unit of work has ended the transaction it was part of."""


class _UnansweredError(Exception):
    """COMMIT was sent, and the connection is gone; the arguments are the transaction's id and its outcomes."""

    def __init__(self, xid: str, run: str, outcomes: list[Outcome]) -> None:
        super().__init__(xid)
        self.xid = xid
        self.run = run
        self.outcomes = outcomes


class _Writer:
    """The task that does all writing. See the essay above."""

    def __init__(
        self,
        server: Server,
        origin: str,
        committed: Callable[[Iterable[str]], None],
        missed: Callable[[], None],
    ) -> None:
        self._server = server
        self._outage = Outage(server)
        self._origin = origin
        self._committed = committed
        self._missed = missed
        self._was_connected = False
        self._engine = make_engine(server, "writer")
        self._link: Link | None = None
        self._begin = f"BEGIN; SELECT pg_advisory_xact_lock({server.lock_key})"
        self._queue: deque[Unit | _Alone] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"{server.service}-writer")

    async def connect(self) -> None:
        """Make the connection now rather than for the first group."""
        await self._connected()

    async def run(self, work: Callable[[Connection], T]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(Unit(work, future))
        return await future

    async def run_alone(self, work: Callable[[Any], Awaitable[T]], changed: Callable[[T], bool]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(_Alone(work, changed, future))
        return await future

    def be_present(self) -> None:
        """Have a connection also while there is nothing to write: others tell only those whom they see."""
        if not self._queue:
            self._arrived.set()

    async def close(self) -> None:
        self._closing = True
        self._arrived.set()
        try:
            await self._task
        finally:
            await self._disconnect()
            await self._engine.dispose()

    def _put(self, entry: Unit | _Alone) -> None:
        if len(self._queue) >= database.WAITING_LIMIT:
            raise Overloaded(service=self._server.service)
        self._queue.append(entry)
        self._arrived.set()

    async def _serve(self) -> None:
        try:
            while self._queue or not self._closing:
                if self._queue:
                    await self._serve_next()
                else:
                    self._arrived.clear()
                    await self._arrived.wait()
                    await self._reconnected()
        finally:
            for entry in self._queue:  # only if this task was cancelled, with the whole loop
                entry.future.cancel()

    async def _serve_next(self) -> None:
        first = self._queue.popleft()
        if isinstance(first, _Alone):
            if not first.future.done():
                await self._execute(first)
            return
        group = [first]
        while self._queue and len(group) < GROUP_LIMIT and isinstance(unit := self._queue[0], Unit):
            group.append(unit)
            self._queue.popleft()
        group = [unit for unit in group if not unit.future.done()]
        if group:
            await self._commit(group)

    # A group.

    async def _commit(self, group: list[Unit]) -> None:
        notifications: list[str] = []
        try:
            outcomes = await self._committed_group(group, notifications)
        except asyncio.CancelledError:
            for unit in group:
                unit.future.cancel()
            raise
        except Exception as error:  # each caller its own: they add their own tracebacks
            outcomes = [Outcome(unit.future, None, self._group_error(error)) for unit in group]
        try:
            await self._reach("commit.after")
        except failpoints.FailpointError:
            unknown = StorageUnavailable(_UNKNOWN, service=self._server.service)
            outcomes = [Outcome(unit.future, None, unknown) for unit in group]
        if answer(outcomes):
            self._committed(notifications)

    async def _committed_group(self, group: list[Unit], notifications: list[str]) -> list[Outcome]:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        attempt = 1
        while True:
            link = await self._connected()
            notifications.clear()
            try:
                return await self._transaction(link, group, notifications)
            except _UnansweredError as unanswered:
                await self._disconnect()
                if await self._was_committed(unanswered.xid, unanswered.run):
                    return unanswered.outcomes
            except BaseException as error:
                again = link.raw.is_closed() or is_lost(error) or is_repeatable(error)
                await self._disconnect()
                # Once more also when time is up: it may be this process that was held up, and lost its turn by that.
                late = attempt > 1 and asyncio.get_running_loop().time() > deadline
                if not again or attempt >= ATTEMPTS or late:
                    raise
            attempt += 1

    async def _transaction(self, link: Link, group: list[Unit], notifications: list[str]) -> list[Outcome]:
        alone = len(group) == 1
        await link.raw.execute(self._begin if alone else f"{self._begin}; SAVEPOINT unit")
        await self._reach("transaction.begun")
        wanted = notifications_of(link.session.sync_connection)
        wanted.clear()
        outcomes = [await self._attempt(link, unit, wanted, alone=alone) for unit in group]
        if all(outcome.error is not None for outcome in outcomes):
            await link.raw.execute("ROLLBACK")
            return outcomes
        notifications += dict.fromkeys(wanted)
        await self._reach("commit.before")
        xid = await link.raw.fetchval(
            _XID_AND_NOTIFY,
            self._server.channel,
            _message(self._origin, notifications),
            bool(notifications),
            self._server.presence_key,
        )
        await self._end(link, xid, outcomes)
        return outcomes

    async def _attempt(self, link: Link, unit: Unit, wanted: list[str], *, alone: bool) -> Outcome:
        if unit.future.done():
            return Outcome(unit.future, None, asyncio.CancelledError())
        told = len(wanted)
        try:
            result = await link.work(unit.work)
            await self._reach("unit.after")
            if not link.in_transaction:
                raise _TransactionLostError
            if not alone:
                await link.raw.execute("RELEASE unit; SAVEPOINT unit")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if link.raw.is_closed() or is_repeatable(error):
                raise
            if not link.in_transaction:
                raise _TransactionLostError from error
            del wanted[told:]
            if not alone:
                await link.raw.execute("ROLLBACK TO unit")
            return Outcome(unit.future, None, self._unit_error(error))
        return Outcome(unit.future, result, None)

    async def _end(self, link: Link, xid: str | None, outcomes: list[Outcome]) -> None:
        try:
            status = await self._send("commit.sent", link.raw.execute("COMMIT"), link)
        except Exception as error:
            if not (link.raw.is_closed() or is_lost(error) or isinstance(error, failpoints.FailpointError)):
                raise  # the server says that it could not, and has rolled back
            if xid is None:
                return  # nothing was changed, so nothing can be lost
            raise _UnansweredError(xid, link.run, outcomes) from error
        if status != "COMMIT":
            # What a server calls a success after it has rolled back.
            raise _TransactionLostError(f"COMMIT came to {status}")

    async def _was_committed(self, xid: str, run: str) -> bool:
        """
        Whether a transaction was committed whose COMMIT nobody answered.

        Raises:
            StorageUnavailable: It cannot be found out.
        """
        deadline = asyncio.get_running_loop().time() + 2 * PATIENCE_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            try:
                link = await self._connected()
                status = await link.raw.fetchval("SELECT pg_xact_status($1::text::xid8)", xid)
            except HopperError as error:
                raise StorageUnavailable(_UNKNOWN, service=self._server.service) from error
            except Exception as error:
                if sqlstate(error) == _FROM_THE_FUTURE:
                    return False  # the server crashed with nothing of it on its disk
                if not is_lost(error):
                    raise
                await self._disconnect()
                continue
            if status == "aborted":
                return False
            if status == "committed" and link.run == run:
                return True
            if status != "in progress":
                break
            await asyncio.sleep(0.02)
        raise StorageUnavailable(_UNKNOWN, service=self._server.service)

    # A statement.

    async def _execute(self, entry: _Alone) -> None:
        try:
            result = await self._executed(entry.work)
            await self._reach("statement.after")
            changed = entry.changed(result)
        except asyncio.CancelledError:
            entry.future.cancel()
            raise
        except BaseException as error:
            outcome, changed = Outcome(entry.future, None, self._unit_error(error)), False
        else:
            outcome = Outcome(entry.future, result, None)
        answer([outcome])
        if changed:
            self._committed(())

    async def _executed(self, work: Callable[[Any], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            link = await self._connected()
            try:
                await self._reach("statement.before", link)
                result = await self._send("statement.sent", work(link.raw), link)
                if link.in_transaction:
                    raise Internal("a statement has left a transaction open")
                return result
            except BaseException as error:
                if link.raw.is_closed() or is_lost(error):
                    await self._disconnect()
                    raise StorageUnavailable(_UNKNOWN, service=self._server.service) from error
                if link.in_transaction or not isinstance(error, Exception):
                    await self._disconnect()
                if attempt >= ATTEMPTS or not is_repeatable(error):
                    raise
            attempt += 1

    # Both.

    async def _connected(self) -> Link:
        if self._link is not None and self._link.raw.is_closed():
            await self._disconnect()
        if self._link is None:
            presence = self._server.presence_key
            self._link = await self._outage.over(lambda: Link.open(self._engine, presence=presence))
            if self._was_connected:
                self._missed()  # meanwhile others may have seen nobody to tell
            self._was_connected = True
        return self._link

    async def _reconnected(self) -> None:
        """Make a lost connection anew; if there is none to be had, those who write are told so, and nobody else."""
        if self._queue or self._closing or not self._was_connected:
            return
        try:
            await self._connected()
        except HopperError as error:
            log.warning("cannot show other processes that this one is there", reason=error.message)

    async def _disconnect(self) -> None:
        """Drop the connection, and with it whatever is open: the next group gets a new one."""
        link, self._link = self._link, None
        if link is not None:
            await link.discard()

    async def _send(self, place: str, sent: Awaitable[T], link: Link) -> T:
        """Await the answer of a statement, with a failpoint between sending and reading."""
        if not failpoints.armed(place):
            return await sent
        sending = asyncio.ensure_future(sent)
        await asyncio.sleep(0)  # up to where it waits for the answer
        try:
            await self._reach(place, link)
        except failpoints.FailpointError:
            link.raw.terminate()
            await asyncio.wait([sending])
            sending.exception()  # seen
            raise
        return await sending

    async def _reach(self, place: str, link: Link | None = None) -> None:
        link = link or self._link
        await failpoints.reach(place, self._server.service, link.raw.terminate if link else None)

    def _unit_error(self, error: BaseException) -> BaseException:
        take_out_values(error)
        if sqlstate(error) == "25P02":
            return _spoilt()
        if isinstance(error, failpoints.FailpointError):
            return StorageUnavailable(f"failpoint {error}", service=self._server.service)
        return storage_error(error, self._server.service) or for_future(error)

    def _group_error(self, error: Exception) -> BaseException:
        if isinstance(error, HopperError):
            return type(error)(error.message, **error.metadata)
        if sqlstate(error) == "25P02":  # a lone unit: nobody else can have spoilt it
            return _spoilt()
        known = storage_error(error, self._server.service)
        return known or StorageUnavailable(
            f"the transaction was lost ({reason(error)}); nothing was done", service=self._server.service
        )


def _spoilt() -> RuntimeError:
    return RuntimeError(
        "a unit of work went on after one of its statements had failed: use conn.begin_nested() around it"
    )


def _message(origin: str, payloads: Iterable[str]) -> str:
    lines = [origin, *payloads]
    text = "\n".join(lines)
    return text if len(text.encode()) <= _MESSAGE_BYTES else f"{origin}\n"  # the empty payload: look yourself


# Readers.


class _Readers:
    """A few connections, on which each read is a transaction of its own."""

    def __init__(self, server: Server) -> None:
        self._service = server.service
        self._outage = Outage(server)
        self._engine = make_engine(server, "reader")
        self._idle: list[Link] = []  # the last used is used next, and the others may rest
        self._permits = asyncio.Semaphore(READERS)
        self._waiting = 0

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await self._with_link(lambda link: self._snapshot(link, work))

    async def run_raw(self, query: str) -> Any:
        return await self._with_link(lambda link: link.raw.fetchval(query))

    async def close(self) -> None:
        for _ in range(READERS):
            await self._permits.acquire()
        while self._idle:
            await self._idle.pop().discard()
        await self._engine.dispose()

    async def _with_link(self, use: Callable[[Link], Awaitable[T]]) -> T:
        if self._waiting >= database.WAITING_LIMIT:
            raise Overloaded(service=self._service)
        self._waiting += 1
        try:
            async with self._permits:
                return await self._outage.over(lambda: self._attempt(use))
        finally:
            self._waiting -= 1

    async def _attempt(self, use: Callable[[Link], Awaitable[T]]) -> T:
        link = self._idle.pop() if self._idle else await Link.open(self._engine)
        try:
            result = await use(link)
        except BaseException as error:
            # Who is cancelled leaves a statement behind that is still running; and a connection that the server has
            # ended does not know yet that it is closed.
            usable = isinstance(error, Exception) and not is_lost(error) and not link.raw.is_closed()
            if usable and not link.in_transaction:
                self._idle.append(link)
            else:
                await link.discard()
            raise
        self._idle.append(link)
        return result

    async def _snapshot(self, link: Link, work: Callable[[Connection], T]) -> T:
        await link.raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            result = await link.work(work)
        except Exception:
            if link.in_transaction:
                await link.raw.execute("ROLLBACK")
            raise
        await link.raw.execute("COMMIT")
        return result


# Other processes.


class _Listener:
    """The connection on which this process hears of what others commit."""

    def __init__(
        self,
        server: Server,
        heard: Callable[[str], None],
        missed: Callable[[], None],
        alive: Callable[[], None],
    ) -> None:
        self._server = server
        self._heard = heard
        self._missed = missed
        self._alive = alive
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Listen from now on."""
        connection = await Outage(self._server).over(self._subscribe)
        self._task = asyncio.create_task(self._listen(connection), name=f"{self._server.service}-listener")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _subscribe(self) -> Any:
        connection = await connect(self._server, "listener")
        await connection.add_listener(self._server.channel, lambda *event: self._heard(event[-1]))
        return connection

    async def _listen(self, connection: Any) -> None:
        while True:
            try:
                await _until_lost(connection, self._alive)
            finally:
                connection.terminate()
            connection = await self._subscribe_again()
            self._missed()

    async def _subscribe_again(self) -> Any:
        while True:
            try:
                return await Outage(self._server).over(self._subscribe)
            except HopperError as error:
                log.warning("cannot listen to other processes", reason=error.message)
            except Exception:  # whatever it is: nobody else would notice that this task has ended
                log.exception("cannot listen to other processes")
                await asyncio.sleep(_LISTEN_CHECK_SECONDS)


async def _until_lost(connection: Any, alive: Callable[[], None]) -> None:
    """Return when a connection is lost; call *alive* now and then while it is not."""
    gone = asyncio.Event()
    connection.add_termination_listener(lambda _connection: gone.set())
    while not connection.is_closed():
        try:
            async with asyncio.timeout(_LISTEN_CHECK_SECONDS):
                await gone.wait()
        except TimeoutError:
            if not await _answers(connection):
                return
            alive()


async def _answers(connection: Any) -> bool:
    try:
        await connection.execute("SELECT 1")
    except _LOST as error:
        log.warning("a connection is lost", reason=reason(error))
        return False
    return True


# Roles.


class _RoleLostError(Exception):
    """The connection that a role hangs on is lost."""


async def _become(connection: Any, key: int, waiting: Callable[[], None] | None) -> bool:
    """Wait for the role; False if the connection is lost meanwhile."""
    try:
        # Asked for rather than waited for: a connection that says something every second is known to live.
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", key):
            if waiting is not None:
                waiting()
            await asyncio.sleep(_LEAD_EVERY_SECONDS)
    except _LOST:
        await asyncio.sleep(_LEAD_EVERY_SECONDS)
        return False
    return True


async def _while_held(connection: Any, work: Callable[[], Awaitable[T]]) -> T:
    task = asyncio.ensure_future(work())
    gone = asyncio.Event()
    connection.add_termination_listener(lambda _connection: gone.set())
    noticing = asyncio.create_task(gone.wait())
    try:
        while not task.done():
            await asyncio.wait(
                [task, noticing], timeout=_LEAD_EVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done() and (gone.is_set() or not await _answers(connection)):
                raise _RoleLostError
        return task.result()
    finally:
        noticing.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])  # it must have ended before anybody begins again
