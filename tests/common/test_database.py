"""
Group commit and snapshots: what `write` and `read` promise to callers who know nothing of each other, on both
engines. What only one of them does is in test_sqlite_file.py, test_durability.py and test_postgres*.py.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, func, select

from hopper_common import database, postgres
from hopper_common.database import Database, Signal, notify
from hopper_common.errors import (
    InvalidArgument,
    NotFound,
    Overloaded,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
)
from hopper_testing.database import FaultyDatabase
from tests.common.toy import (
    METADATA,
    MIGRATIONS,
    NOTES,
    EngineKind,
    Gate,
    add_note,
    add_reply,
    await_in_work,
    held_writer,
    notes,
    open_toy,
)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[FaultyDatabase]:
    db = FaultyDatabase(await open_toy(database_url))
    yield db
    await db.close()


@pytest.fixture
def group_limit(engine_kind: EngineKind) -> int:
    return database.GROUP_LIMIT if engine_kind == "sqlite" else postgres.GROUP_LIMIT


class NoteMissingError(NotFound):
    """No such note."""

    reason = "NOTE_NOT_FOUND"


def note_task(db: Database, text: str) -> "asyncio.Task[None]":
    return asyncio.create_task(db.write(lambda conn: add_note(conn, text)))


async def queued() -> None:
    """Let the tasks just made run up to where they wait for the writer."""
    await asyncio.sleep(0)


# Groups


async def test_calls_that_wait_together_are_committed_together(db: Database) -> None:
    async with held_writer(db):
        tasks = [note_task(db, f"{i}") for i in range(60)]
        await queued()
        before = db.committed.count
    await asyncio.gather(*tasks)
    assert db.committed.count - before == 2  # the holder's own group, and one for all the others
    assert len(await db.read(notes)) == 60


async def test_a_group_is_no_larger_than_its_limit(db: Database, group_limit: int) -> None:
    async with held_writer(db):
        tasks = [note_task(db, f"{i}") for i in range(group_limit + 1)]
        await queued()
        before = db.committed.count
    await asyncio.gather(*tasks)
    assert db.committed.count - before == 3


async def test_a_unit_that_raises_takes_back_its_own_changes_only(db: Database) -> None:
    def half_done(conn: Connection) -> None:
        add_note(conn, "never")
        raise NoteMissingError

    async with held_writer(db):
        tasks = [note_task(db, "a"), asyncio.create_task(db.write(half_done)), note_task(db, "b")]
        await queued()
        before = db.committed.count
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert db.committed.count - before == 2
    assert [type(outcome) for outcome in outcomes] == [type(None), NoteMissingError, type(None)]
    assert await db.read(notes) == ["a", "b"]


async def test_a_broken_constraint_reaches_the_store_as_it_is(db: Database) -> None:
    await note_task(db, "a")
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        await note_task(db, "a")
    assert await db.read(notes) == ["a"]


async def test_an_error_does_not_carry_the_values_of_the_statement(db: Database) -> None:
    """Its text ends in a log, and the values are what people wrote."""
    await db.write(lambda conn: add_note(conn, "swordfish"))
    with pytest.raises(sqlalchemy.exc.IntegrityError) as broken:
        await db.write(lambda conn: add_note(conn, "swordfish"))
    assert "swordfish" not in str(broken.value)


async def test_units_see_what_earlier_units_of_their_group_did(db: Database) -> None:
    async with held_writer(db):
        first = note_task(db, "a")
        second = asyncio.create_task(db.write(notes))
        await queued()
    await first
    assert await second == ["a"]


async def test_nobody_is_answered_before_the_commit(db: Database) -> None:
    """A unit in the middle of a group gives the loop time to deliver answers, and sees that there are none."""
    loop = asyncio.get_running_loop()

    async def several_turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def look(conn: Connection) -> tuple[list[str], list[bool]]:
        await_in_work(conn, several_turns(), loop)
        return notes(conn), [task.done() for task in others]

    async with held_writer(db):
        first = note_task(db, "a")
        middle = asyncio.create_task(db.write(look))
        others = [first, note_task(db, "b")]
        await queued()
    assert await middle == (["a"], [False, False])
    await asyncio.gather(*others)


async def test_a_group_whose_commit_fails_fails_as_a_whole_and_the_writer_goes_on(db: Database) -> None:
    async with held_writer(db):
        dangling = asyncio.create_task(
            db.write(lambda conn: add_reply(conn, note=404))
        )  # found out at COMMIT
        bystander = note_task(db, "a")
        await queued()
        before = db.committed.count
    outcomes = await asyncio.gather(dangling, bystander, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable, StorageUnavailable]
    assert outcomes[0] is not outcomes[1]
    assert db.committed.count - before == 1  # the holder's
    await note_task(db, "b")
    assert await db.read(notes) == ["b"]


@pytest.mark.parametrize("swallow", [False, True])
async def test_a_transaction_lost_in_the_middle_is_lost_for_the_whole_group(
    db: Database, swallow: bool
) -> None:
    """SQLite rolls back by itself after an I/O error; a unit that catches the error must not hide it."""

    def lose(conn: Connection) -> None:
        conn.exec_driver_sql("ROLLBACK")
        if not swallow:
            raise NoteMissingError

    async with held_writer(db):
        tasks = [note_task(db, "a"), asyncio.create_task(db.write(lose)), note_task(db, "b")]
        await queued()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:2]] == [StorageUnavailable, StorageUnavailable]
    assert isinstance(outcomes[2], StorageUnavailable)
    assert await db.read(notes) == []
    await note_task(db, "c")
    assert await db.read(notes) == ["c"]


async def test_a_unit_of_work_cannot_commit(db: Database) -> None:
    def commit(conn: Connection) -> None:
        add_note(conn, "never")
        conn.commit()

    with pytest.raises(RuntimeError, match="must not commit"):
        await db.write(commit)
    assert await db.read(notes) == []


async def test_an_exhausted_iterator_in_a_unit_is_an_error_of_that_unit(db: Database) -> None:
    async with held_writer(db):
        careless = asyncio.create_task(db.write(lambda _conn: next(iter(()))))
        other = note_task(db, "a")
        await queued()
    with pytest.raises(RuntimeError, match="StopIteration"):
        await careless
    await other


async def test_foreign_keys_are_enforced(db: Database) -> None:
    await note_task(db, "a")
    await db.write(lambda conn: add_reply(conn, note=1))
    with pytest.raises(StorageUnavailable):
        await db.write(lambda conn: add_reply(conn, note=2))


async def test_more_than_can_wait_is_refused_at_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAITING_LIMIT", 2)
    async with held_writer(db):
        tasks = [note_task(db, f"{i}") for i in range(2)]
        await queued()
        with pytest.raises(Overloaded):
            await note_task(db, "too much")
    await asyncio.gather(*tasks)


# Callers who go away


async def test_a_caller_who_leaves_the_queue_is_not_served_and_does_not_disturb(db: Database) -> None:
    async with held_writer(db):
        tasks = [note_task(db, text) for text in "abc"]
        await queued()
        tasks[1].cancel()
        await queued()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert await db.read(notes) == ["a", "c"]


async def test_a_caller_who_leaves_while_being_served_does_not_disturb(db: Database) -> None:
    started, go_on = Gate(), Gate()

    def slow(conn: Connection) -> None:
        add_note(conn, "kept")
        started.open()
        go_on.wait_in_work(conn)

    leaving = asyncio.create_task(db.write(slow))
    await started.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    next_one = note_task(db, "next")
    go_on.open()
    await next_one
    assert await db.read(notes) == ["kept", "next"]


# Reads


async def test_a_read_sees_one_snapshot_from_beginning_to_end(db: Database) -> None:
    looked, go_on = Gate(), Gate()

    def look_twice(conn: Connection) -> tuple[list[str], list[str]]:
        first = notes(conn)
        looked.open()
        go_on.wait_in_work(conn)
        return first, notes(conn)

    await note_task(db, "a")
    reading = asyncio.create_task(db.read(look_twice))
    await looked.wait()
    await note_task(db, "b")
    go_on.open()
    assert await reading == (["a"], ["a"])
    assert await db.read(notes) == ["a", "b"]


async def test_a_read_sees_every_write_that_has_returned(db: Database) -> None:
    for i in range(50):
        await note_task(db, f"{i}")
        assert await db.read(lambda conn: conn.scalar(select(func.count(NOTES.c.id)))) == i + 1


async def test_a_read_cannot_write_and_leaves_its_connection_usable(db: Database) -> None:
    for _ in range(2 * postgres.READERS):
        with pytest.raises(StorageUnavailable):
            await db.read(lambda conn: add_note(conn, "never"))
    assert await db.read(notes) == []


async def test_a_read_passes_on_what_its_work_raises(db: Database) -> None:
    def look(_conn: Connection) -> None:
        raise NoteMissingError from KeyError("why")

    with pytest.raises(NoteMissingError) as caught:
        await db.read(look)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_wrong_sql_is_a_defect_and_not_called_an_outage(db: Database) -> None:
    with pytest.raises((sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError)):
        await db.write(lambda conn: conn.exec_driver_sql("SELECT nothing FROM nowhere"))


# The end


async def test_close_serves_who_is_in_the_queue_and_refuses_who_comes_later(
    db: Database, database_url: str
) -> None:
    async with held_writer(db) as go_on:
        tasks = [note_task(db, f"{i}") for i in range(100)]
        await queued()
        closing = asyncio.create_task(db.close())
        await queued()
        with pytest.raises(ShuttingDown):
            await note_task(db, "late")
        with pytest.raises(ShuttingDown):
            await db.read(notes)
        go_on.open()
    await asyncio.gather(closing, *tasks)
    again = await open_toy(database_url)
    assert len(await again.read(notes)) == 100
    await again.close()
    await again.close()


# What is told beside the commit


async def test_what_a_unit_tells_is_heard_once_per_group_after_its_commit(db: Database) -> None:
    heard: list[tuple[str, int]] = []
    stop = db.on_notify(lambda payload: heard.append((payload, db.committed.count)))

    def tell(conn: Connection, payload: str) -> None:
        notify(conn, payload)

    async with held_writer(db):
        tasks = [asyncio.create_task(db.write(lambda conn, p=p: tell(conn, p))) for p in "aba"]  # type: ignore[misc]
        await queued()
        before = db.committed.count
    await asyncio.gather(*tasks)
    assert heard == [("a", before + 2), ("b", before + 2)]
    stop()
    await db.write(lambda conn: tell(conn, "c"))
    assert len(heard) == 2


async def test_what_a_failed_unit_wanted_told_is_not(db: Database) -> None:
    heard: list[str] = []
    db.on_notify(heard.append)

    def fail(conn: Connection) -> None:
        notify(conn, "never")
        raise NoteMissingError

    async with held_writer(db):
        tasks = [
            asyncio.create_task(db.write(fail)),
            asyncio.create_task(db.write(lambda conn: notify(conn, "a"))),
        ]
        await queued()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(NoteMissingError):
        await db.write(fail)
    await note_task(db, "b")
    assert heard == ["a"]


async def test_a_callback_that_fails_disturbs_nobody(db: Database) -> None:
    heard: list[str] = []

    def fail(_payload: str) -> None:
        raise NoteMissingError

    db.on_notify(fail)
    db.on_notify(heard.append)
    await db.write(lambda conn: notify(conn, "a"))
    assert heard == ["a"]


@pytest.mark.parametrize("payload", ["", "two\nlines", "x" * 1001])
async def test_what_is_told_is_one_short_line(db: Database, payload: str) -> None:
    with pytest.raises(ValueError, match="one printable line"):
        await db.write(lambda conn: notify(conn, payload))


# The signal and the faults


async def test_a_signal_given_before_the_wait_is_not_lost() -> None:
    signal = Signal()
    signal.fire()
    assert await signal.wait(after=0) == 1


async def test_a_signal_wakes_everybody_who_waits() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait(after=0)) for _ in range(3)]
    beyond = asyncio.create_task(signal.wait(after=1))
    await queued()
    signal.fire()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert not beyond.done()
    signal.fire()
    assert await beyond == 2


async def test_a_failure_changes_nothing_and_does_not_count_as_a_commit(db: Database) -> None:
    def fail(_conn: Connection) -> None:
        raise NoteMissingError

    before = db.committed.count
    with pytest.raises(NoteMissingError):
        await db.write(fail)
    assert db.committed.count == before


async def test_errors_on_demand_come_once_each_and_where_asked(db: FaultyDatabase) -> None:
    db.set_next_error(StorageFull(service="toy"))
    db.set_next_error(StorageUnavailable(service="toy"), at="answer")
    db.set_next_error(StorageUnavailable(service="toy"), at="read")
    with pytest.raises(StorageFull):
        await note_task(db, "not done")
    with pytest.raises(StorageUnavailable):
        await note_task(db, "done")
    with pytest.raises(StorageUnavailable):
        await db.read(notes)
    assert await db.read(notes) == ["done"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:secret@host/db",
        "postgresql+psycopg://user:secret@host/db",
        "postgresql://user:sec/ret@h/db",
    ],
)
async def test_addresses_that_cannot_be_used_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="toy")
    assert "sec" not in str(caught.value)
