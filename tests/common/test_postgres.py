"""What is PostgreSQL's own: several processes at one database, statements, roles, and what its errors mean."""

import asyncio
import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from hopper_common import postgres, postgres_connection
from hopper_common.clock import SystemClock
from hopper_common.database import Database, notify
from hopper_common.errors import (
    DatabaseUnsupported,
    HopperError,
    Internal,
    InvalidArgument,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
)
from hopper_common.eventlog import EventLog
from hopper_common.postgres import ATTEMPTS, READERS, PostgresDatabase
from hopper_common.postgres_connection import Server, advisory_key, connect
from hopper_testing.postgres import postgres_server
from tests.common.toy import EVENTS, Gate, add_note, held_writer, migrate_toy, notes, open_toy

ROOT = Path(__file__).parents[2]
LOG = EventLog(EVENTS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def open_replica(url: str) -> PostgresDatabase:
    return cast("PostgresDatabase", await open_toy(url))


@pytest.fixture
def url() -> str:
    return postgres_server().create_database(made_by=migrate_toy)


@pytest.fixture
async def db(url: str) -> AsyncIterator[PostgresDatabase]:
    db = await open_replica(url)
    yield db
    await db.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[PostgresDatabase]:
    """Another process's view of the same database: nothing but the server is shared."""
    db = await open_replica(url)
    yield db
    await db.close()


def fail_with(conn: Connection, code: str) -> None:
    """What the server does when it has that kind of trouble."""
    conn.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = 'as asked'; END $$"))


def append(conn: Connection, key: str) -> int:
    return LOG.append(conn, topic="task", key=key, body=b"", now=NOW)


def database_of(url: str) -> str:
    return urlsplit(url).path[1:]


def end_connections(url: str, role: str) -> None:
    """End every connection of a role to a database, as an administrator would."""
    postgres_server().execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        f" WHERE datname = '{database_of(url)}' AND application_name = 'hopper toy {role}'"
    )


def connections(url: str, condition: str = "true") -> int:
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database_of(url)}' AND {condition}"
    return int(postgres_server().execute(count))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what it looks at is the server's
            await asyncio.sleep(0.005)


# Several processes


async def test_events_of_many_writers_in_two_processes_are_seen_in_order_and_none_is_missed(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    async def write(replica: Database, writer: int) -> list[int]:
        return [
            await replica.write(lambda conn, i=i: append(conn, f"{writer}-{i}"))  # type: ignore[misc]
            for i in range(30)
        ]

    async def watch(replica: Database) -> list[int]:
        seen: list[int] = []
        async for events in LOG.tail(replica, after=0, batch=7):
            seen += [event.version for event in events]
            if len(seen) >= 2 * 8 * 30:
                break
        return seen

    watching = [asyncio.create_task(watch(replica)) for replica in (db, other, db, other)]
    writing = [write(replica, writer) for writer in range(8) for replica in (db, other)]
    versions = sorted(version for each in await asyncio.gather(*writing) for version in each)
    for seen in await asyncio.gather(*watching):
        assert seen == versions


async def test_what_one_checks_and_then_writes_no_other_process_races(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    def add_if_none(conn: Connection) -> bool:
        if notes(conn):
            return False
        add_note(conn, f"by {id(conn)}")
        return True

    results = await asyncio.gather(
        *(replica.write(add_if_none) for _ in range(20) for replica in (db, other))
    )
    assert sum(results) == 1


async def test_commits_and_what_they_tell_are_heard_in_the_other_process(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    heard: list[str] = []
    other.on_notify(heard.append)
    seen = other.committed.count
    await db.write(lambda conn: add_note(conn, "a"))
    seen = await other.committed.wait(after=seen)
    assert heard == []

    def tell(conn: Connection) -> None:
        for payload in ("x", "y'y\\", "x"):
            notify(conn, payload)

    await db.write(tell)
    await other.committed.wait(after=seen)
    assert heard == ["x", "y'y\\"]


async def test_a_group_that_changes_nothing_wakes_no_other_process(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    before = other.committed.count
    await db.write(notes)
    await db.write(lambda conn: add_note(conn, "a"))
    assert await other.committed.wait(after=before) == before + 1


async def test_more_than_a_message_takes_tells_the_other_process_to_look_itself(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    here: list[str] = []
    there: list[str] = []
    db.on_notify(here.append)
    other.on_notify(there.append)
    lines = [f"{i}" * 300 for i in range(10, 30)]
    before = other.committed.count
    await db.write(lambda conn: [notify(conn, line) for line in lines] and None)  # type: ignore[func-returns-value]
    await other.committed.wait(after=before)
    assert (here, there) == (lines, [""])


async def test_what_happened_while_nobody_listened_is_made_up_for(
    db: PostgresDatabase, other: PostgresDatabase, url: str
) -> None:
    heard: list[str] = []
    other.on_notify(heard.append)
    before = other.committed.count
    end_connections(url, "listener")
    await other.committed.wait(after=before)
    assert heard == [""]
    before = other.committed.count
    await db.write(lambda conn: add_note(conn, "a"))
    await other.committed.wait(after=before)


async def test_a_process_that_is_alone_notifies_nobody(db: PostgresDatabase, url: str) -> None:
    heard: list[str] = []
    stranger = await connect(Server(url, "toy"), "listener")
    await stranger.add_listener(db.channel, lambda *event: heard.append(event[-1]))
    try:
        await db.write(lambda conn: add_note(conn, "alone"))
        await stranger.execute("SELECT 1")  # what was told before is heard before its answer
        assert heard == []
        other = await open_replica(url)
        await db.write(lambda conn: add_note(conn, "in company"))
        await stranger.execute("SELECT 1")
        assert len(heard) == 1
        await other.close()
    finally:
        await stranger.close()


async def test_who_writes_nothing_is_told_again_after_its_writer_was_lost(
    db: PostgresDatabase, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_LISTEN_CHECK_SECONDS", 0.05)
    other = await open_replica(url)
    heard: list[str] = []
    other.on_notify(heard.append)
    before = other.committed.count
    end_connections(url, "writer")
    before = await other.committed.wait(after=before)
    assert heard == [""]  # something may have been missed
    await db.write(lambda conn: notify(conn, "news"))
    await other.committed.wait(after=before)
    assert heard == ["", "news"]
    await other.close()


# Statements


async def test_a_statement_runs_alone_outside_a_transaction(db: PostgresDatabase) -> None:
    async def insert(connection: Any) -> bool:
        await connection.execute("INSERT INTO notes (text) VALUES ('s')")
        return bool(connection.is_in_transaction())

    async with held_writer(db):
        tasks = [
            asyncio.create_task(db.write(lambda conn: add_note(conn, "a"))),
            asyncio.create_task(db.statement(insert)),
            asyncio.create_task(db.write(lambda conn: add_note(conn, "b"))),
        ]
        await asyncio.sleep(0)
        before = db.committed.count
    assert (await asyncio.gather(*tasks))[1] is False
    assert db.committed.count - before == 4  # the holder, and each of the three
    assert await db.read(notes) == ["a", "s", "b"]


async def test_what_a_statement_tells_is_heard_in_every_process(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    db.on_notify(lambda payload: heard.put_nowait(("here", payload)))
    other.on_notify(lambda payload: heard.put_nowait(("there", payload)))
    counts = (db.committed.count, other.committed.count)
    await db.statement(lambda c: c.execute("SELECT pg_notify($1, $2)", db.channel, db.message(["x"])))
    assert {await heard.get(), await heard.get()} == {("here", "x"), ("there", "x")}
    assert (db.committed.count, other.committed.count) == (counts[0] + 1, counts[1] + 1)


async def test_a_statement_that_changed_nothing_does_not_count_as_a_commit(db: PostgresDatabase) -> None:
    before = db.committed.count
    found = await db.statement(
        lambda c: c.fetchval("SELECT count(*) FROM notes"), changed=lambda count: count > 0
    )
    assert (found, db.committed.count) == (0, before)


async def test_an_error_of_a_statement_goes_to_its_caller_and_the_writer_goes_on(
    db: PostgresDatabase,
) -> None:
    with pytest.raises(Exception, match="nowhere"):
        await db.statement(lambda c: c.execute("SELECT * FROM nowhere"))
    with pytest.raises(StorageFull):
        await db.statement(lambda c: c.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))
    await db.write(lambda conn: add_note(conn, "a"))


async def test_a_statement_must_not_leave_a_transaction_behind(db: PostgresDatabase) -> None:
    with pytest.raises(Internal, match="left a transaction open"):
        await db.statement(lambda c: c.execute("BEGIN; INSERT INTO notes (text) VALUES ('never')"))
    await db.write(lambda conn: add_note(conn, "a"))
    assert await db.read(notes) == ["a"]


async def test_a_caller_who_leaves_before_its_statement_begins_is_not_served(db: PostgresDatabase) -> None:
    ran: list[str] = []

    async def work(_connection: Any) -> None:
        ran.append("work")

    async with held_writer(db):
        leaving = asyncio.create_task(db.statement(work))
        await asyncio.sleep(0)
        leaving.cancel()
    await db.write(lambda conn: add_note(conn, "a"))
    assert ran == []


async def test_a_statement_the_server_refuses_for_now_is_made_again(db: PostgresDatabase) -> None:
    attempts: list[int] = []

    async def work(connection: Any) -> str:
        attempts.append(1)
        if len(attempts) < 3:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
        return "done"

    assert await db.statement(work) == "done"


async def test_who_was_held_up_in_a_transaction_until_the_server_ended_it_tries_once_more(
    db: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a night's sleep of the machine: nothing of it was done, and nobody else is in the way."""
    monkeypatch.setattr(postgres, "PATIENCE_SECONDS", -1)  # time is up before it begins
    attempts: list[int] = []

    def held_up(conn: Connection) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        add_note(conn, "a")

    await db.write(held_up)
    assert len(attempts) == 2
    assert await db.read(notes) == ["a"]


async def test_a_statement_whose_connection_is_lost_is_reported_as_unknown(
    db: PostgresDatabase, url: str
) -> None:
    async def work(connection: Any) -> None:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StorageUnavailable, match="not known whether this was done"):
        await db.statement(work)
    await db.write(lambda conn: add_note(conn, "a"))


# What errors mean


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_a_group_the_server_refuses_for_now_runs_again_as_a_whole(
    db: PostgresDatabase, code: str
) -> None:
    attempts: list[int] = []

    def refused_twice(conn: Connection) -> None:
        attempts.append(1)
        add_note(conn, "refused")
        if len(attempts) < 3:
            fail_with(conn, code)

    async with held_writer(db):
        tasks = [
            asyncio.create_task(db.write(lambda conn: add_note(conn, "a"))),
            asyncio.create_task(db.write(refused_twice)),
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert await db.read(notes) == ["a", "refused"]


async def test_a_group_that_is_refused_again_and_again_is_given_up(db: PostgresDatabase) -> None:
    attempts: list[int] = []

    def refused(conn: Connection) -> None:
        attempts.append(1)
        fail_with(conn, "40001")

    with pytest.raises(StorageUnavailable):
        await db.write(refused)
    assert len(attempts) == ATTEMPTS


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("53100", StorageFull),
        ("53200", StorageUnavailable),
        ("58030", StorageUnavailable),
        ("55P03", StorageUnavailable),
        ("22021", InvalidArgument),
    ],
)
async def test_trouble_of_the_server_is_told_in_our_words_to_whoever_had_it(
    db: PostgresDatabase, code: str, error: type[HopperError]
) -> None:
    async with held_writer(db):
        unlucky = asyncio.create_task(db.write(lambda conn: fail_with(conn, code)))
        other = asyncio.create_task(db.write(lambda conn: add_note(conn, "a")))
        await asyncio.sleep(0)
    with pytest.raises(error):
        await unlucky
    await other


async def test_a_statement_that_takes_too_long_costs_its_own_unit_only(db: PostgresDatabase) -> None:
    def too_long(conn: Connection) -> None:
        add_note(conn, "never")
        conn.execute(text("SET LOCAL statement_timeout = '20ms'"))
        conn.execute(text("SELECT pg_sleep(10)"))

    async with held_writer(db):
        slow = asyncio.create_task(db.write(too_long))
        other = asyncio.create_task(db.write(lambda conn: add_note(conn, "a")))
        await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable, match="statement timeout"):
        await slow
    await other
    assert await db.read(notes) == ["a"]


@pytest.mark.parametrize("lone", [True, False])
async def test_a_unit_that_goes_on_after_a_failed_statement_has_failed(
    db: PostgresDatabase, lone: bool
) -> None:
    """PostgreSQL would answer its COMMIT with a rollback, and call that a success."""

    def careless(conn: Connection) -> str:
        try:
            add_note(conn, "a")
            add_note(conn, "a")
        except IntegrityError:
            return "done"
        return "not reached"

    if lone:
        with pytest.raises(RuntimeError, match="begin_nested"):
            await db.write(careless)
    else:
        async with held_writer(db):
            task = asyncio.create_task(db.write(careless))
            other = asyncio.create_task(db.write(lambda conn: add_note(conn, "b")))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="begin_nested"):
            await task
        await other
    assert "a" not in await db.read(notes)


async def test_a_statement_may_fail_in_a_savepoint_of_the_units_own(db: PostgresDatabase) -> None:
    def careful(conn: Connection) -> str:
        add_note(conn, "a")
        try:
            with conn.begin_nested():
                add_note(conn, "a")
        except IntegrityError:
            return "done"
        return "not reached"

    assert await db.write(careful) == "done"
    assert await db.read(notes) == ["a"]


@pytest.mark.parametrize("value", ["swordfish", 7_777_777])
async def test_no_text_of_an_error_has_what_people_wrote(db: PostgresDatabase, value: object) -> None:
    """Neither the server's "detail" nor the driver's complaint about an argument, in no cause of it."""

    def work(conn: Connection) -> None:
        if isinstance(value, str):
            add_note(conn, value)
            add_note(conn, value)
        else:
            conn.exec_driver_sql("INSERT INTO notes (text) VALUES ($1)", (value,))

    with pytest.raises(Exception, match=r".") as caught:
        await db.write(work)
    assert str(value) not in "".join(traceback.format_exception(caught.value))


# Reads


async def test_more_reads_than_connections_wait_for_each_other(db: PostgresDatabase) -> None:
    go_on, reading = Gate(), 0

    def look(conn: Connection) -> None:
        nonlocal reading
        reading += 1
        go_on.wait_in_work(conn)

    tasks = [asyncio.create_task(db.read(look)) for _ in range(3 * READERS)]
    await until(lambda: reading >= READERS)
    assert reading == READERS
    go_on.open()
    await asyncio.gather(*tasks)


async def test_readers_who_leave_free_their_connections(db: PostgresDatabase, url: str) -> None:
    for _ in range(2):
        leaving = [
            asyncio.create_task(db.read(lambda conn: conn.execute(text("SELECT pg_sleep(60)"))))
            for _ in range(READERS)
        ]
        await until(lambda: connections(url, "query = 'SELECT pg_sleep(60)' AND state = 'active'") == READERS)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
    async with asyncio.timeout(60):
        assert await db.read(notes) == []


async def test_reads_go_on_after_their_connections_were_ended(db: PostgresDatabase, url: str) -> None:
    await asyncio.gather(*(db.read(notes) for _ in range(READERS)))
    end_connections(url, "reader")
    for _ in range(2 * READERS):
        assert await db.read(notes) == []


async def test_reads_meet_ended_connections_at_any_moment(db: PostgresDatabase, url: str) -> None:
    """One that the server ends in the middle of a read says so, and nobody else is given it."""
    over = asyncio.Event()
    answered = 0

    async def read_on() -> None:
        nonlocal answered
        while not over.is_set():
            with contextlib.suppress(StorageUnavailable):
                await db.read(notes)
                answered += 1

    readers = [asyncio.create_task(read_on()) for _ in range(2 * READERS)]
    for _ in range(30):
        await asyncio.to_thread(end_connections, url, "reader")
    before = answered
    await until(lambda: answered > before)
    over.set()
    await asyncio.gather(*readers)


# Roles


class Leader:
    """Work that says when it begins and ends, and goes on until it is told."""

    def __init__(self) -> None:
        self.running = 0
        self.started = asyncio.Event()
        self.finish = asyncio.Event()

    async def __call__(self) -> str:
        self.running += 1
        self.started.set()
        try:
            await self.finish.wait()
        finally:
            self.running -= 1
        return "done"


@pytest.fixture
def never_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long this process is held up, that costs it no role."""
    for setting in ("statement_timeout", "idle_session_timeout"):
        monkeypatch.setitem(postgres_connection._SETTINGS_OF["leader"], setting, "60s")
    monkeypatch.setitem(postgres_connection._COMMAND_SECONDS, "leader", 60.0)


@pytest.mark.usefixtures("never_hangs")
async def test_one_process_has_the_role_and_the_next_gets_it_when_it_is_done(
    db: PostgresDatabase, other: PostgresDatabase
) -> None:
    first, second = Leader(), Leader()
    leading = asyncio.create_task(db.lead("sweep", first))
    await first.started.wait()
    waiting = asyncio.create_task(other.lead("sweep", second))
    elsewhere = asyncio.create_task(other.lead("another role", Leader()))
    await asyncio.wait([waiting], timeout=1.5)
    assert not second.started.is_set()
    first.finish.set()
    assert await leading == "done"
    async with asyncio.timeout(60):
        await second.started.wait()
    for task in (waiting, elsewhere):
        task.cancel()
    await asyncio.wait([waiting, elsewhere])
    assert second.running == 0


@pytest.mark.usefixtures("never_hangs")
async def test_who_loses_the_connection_loses_the_role_and_gets_it_again_later(
    db: PostgresDatabase, url: str
) -> None:
    leader = Leader()
    leading = asyncio.create_task(db.lead("sweep", leader))
    await leader.started.wait()
    leader.started.clear()
    end_connections(url, "leader")
    async with asyncio.timeout(60):
        await leader.started.wait()
    assert leader.running == 1
    leader.finish.set()
    assert await leading == "done"


async def test_a_process_that_hangs_loses_its_role(db: PostgresDatabase, url: str) -> None:
    server = Server(url, "toy")
    hung = await connect(server, "leader")
    leader, begun = Leader(), time.monotonic()
    await hung.fetchval("SELECT pg_advisory_lock($1)", advisory_key(f"{server.schema}:sweep"))
    leading = asyncio.create_task(db.lead("sweep", leader))
    async with asyncio.timeout(60):
        await leader.started.wait()
    assert time.monotonic() - begun > 1
    leader.finish.set()
    await leading
    hung.terminate()


async def test_what_the_work_of_a_role_raises_goes_to_its_caller(db: PostgresDatabase) -> None:
    async def fail() -> None:
        raise Internal("as asked")

    with pytest.raises(Internal, match="as asked"):
        await db.lead("sweep", fail)


async def test_a_process_that_hangs_while_it_writes_holds_nobody_up_for_long(
    db: PostgresDatabase, url: str
) -> None:
    server = Server(url, "toy")
    hung = await connect(server, "writer")
    await hung.execute(f"BEGIN; SELECT pg_advisory_xact_lock({server.lock_key})")
    async with asyncio.timeout(60):
        await db.write(lambda conn: add_note(conn, "a"))
    hung.terminate()


# Opening and closing


async def test_what_cannot_be_opened_is_refused_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 3600)  # it is not tried again
    wrong = url.replace("postgres@", "postgres:hunter2@").replace("/hopper_", "/no_hopper_")
    with pytest.raises(StorageUnavailable) as caught:
        await open_toy(wrong)
    text = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in str(caught.value)
    assert "no_hopper_" in str(caught.value)
    assert "hunter2" not in text


async def test_a_role_that_may_not_make_its_schema_is_told_what_it_needs() -> None:
    url = postgres_server().create_database()
    postgres_server().execute(
        "DO $$ BEGIN CREATE ROLE hopper_guest LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    as_guest = url.replace("postgres@", "hopper_guest@")
    with pytest.raises(StorageUnavailable, match="needs CREATE on the database"):
        await open_toy(as_guest)
    postgres_server().execute(f'GRANT CREATE ON DATABASE "{database_of(url)}" TO hopper_guest')
    db = await open_toy(as_guest)
    await db.write(lambda conn: add_note(conn, "a"))
    await db.close()
    postgres_server().drop(url)
    postgres_server().execute("DROP ROLE hopper_guest")


async def test_a_server_that_is_not_there_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1") as caught:
        await open_toy("postgresql://ana:hunter2@127.0.0.1:1/hopper")
    assert "hunter2" not in str(caught.value)


def test_without_its_driver_a_server_is_refused_with_the_remedy_and_files_work(tmp_path: Path) -> None:
    script = """
import asyncio, sys
sys.modules["asyncpg"] = None
from hopper_common.database import Database
from sqlalchemy import MetaData
async def main():
    def opening(where):
        return Database.open(where, metadata=MetaData(), migrations="hopper_registry.migrations", service="toy")
    await (await opening(sys.argv[1])).close()
    try:
        await opening("postgresql://host/db")
    except Exception as error:
        print(type(error).__name__, error)
asyncio.run(main())
"""
    command = [sys.executable, "-c", script, str(tmp_path / "toy.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith(DatabaseUnsupported.__name__)
    assert "pip install 'hopper-mesh[postgres]'" in done.stdout


async def test_a_closed_database_takes_nothing_and_leaves_no_connection(
    url: str, db: PostgresDatabase
) -> None:
    await asyncio.gather(*(db.read(notes) for _ in range(READERS)))
    await db.close()
    await db.close()
    with pytest.raises(ShuttingDown):
        await db.statement(lambda c: c.execute("SELECT 1"))
    with pytest.raises(ShuttingDown):
        await db.lead("sweep", Leader())
    await until(lambda: connections(url) == 0)


async def test_the_servers_clock_is_compared_with_ours(db: PostgresDatabase) -> None:
    ours = SystemClock()
    ahead = await db.clock_ahead(ours)
    margin = timedelta(milliseconds=1)
    assert ahead.least - margin <= ours.behind <= ahead.most + margin


async def test_an_acknowledged_write_is_durable_even_where_the_default_is_that_it_is_not(
    db: PostgresDatabase, url: str
) -> None:
    postgres_server().execute(f'ALTER DATABASE "{database_of(url)}" SET synchronous_commit = off')
    again = await open_replica(url)
    assert await again.statement(lambda c: c.fetchval("SHOW synchronous_commit")) == "on"
    await again.close()
