"""Group commit and snapshots: what `write` and `read` promise to callers who know nothing of each other."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, func, select

from hopper_common import database, sqlite
from hopper_common.database import Database, Signal
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
    add_note,
    add_reply,
    held_writer,
    notes,
    toy_database,
)


@pytest.fixture
async def db() -> AsyncIterator[FaultyDatabase]:
    async with toy_database() as db:
        yield db


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
        tasks = [note_task(db, f"{i}") for i in range(100)]
        await queued()
        before = db.committed.count
    await asyncio.gather(*tasks)
    assert db.committed.count - before == 2  # the holder's own group, and one for all the others
    assert len(await db.read(notes)) == 100


async def test_a_group_is_no_larger_than_its_limit(db: Database) -> None:
    async with held_writer(db):
        tasks = [note_task(db, f"{i}") for i in range(database.GROUP_LIMIT + 1)]
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
        asyncio.run_coroutine_threadsafe(several_turns(), loop).result()
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
    """SQLite rolls back on its own after an I/O error; a unit that catches the error must not hide it."""

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


async def test_a_database_without_room_says_so_and_works_again_when_there_is(db: Database) -> None:
    def limit(conn: Connection, pages: int) -> None:
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await db.write(lambda conn: limit(conn, 20))
    async with held_writer(db):
        tasks = [note_task(db, "small"), note_task(db, "x" * 500_000)]
        await queued()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], StorageFull)
    kept = ["small"] if outcomes[0] is None else []
    assert await db.read(notes) == kept
    await db.write(lambda conn: limit(conn, 1_000_000))
    await note_task(db, "y" * 500_000)
    assert await db.read(notes) == [*kept, "y" * 500_000]


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
    started, go_on = threading.Event(), threading.Event()

    def slow(conn: Connection) -> None:
        add_note(conn, "kept")
        started.set()
        go_on.wait()

    leaving = asyncio.create_task(db.write(slow))
    await asyncio.to_thread(started.wait)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    next_one = note_task(db, "next")
    go_on.set()
    await next_one
    assert await db.read(notes) == ["kept", "next"]


# Reads


async def test_a_read_sees_one_snapshot_from_beginning_to_end(db: Database) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def look_twice(conn: Connection) -> tuple[list[str], list[str]]:
        first = notes(conn)
        looked.set()
        go_on.wait()
        return first, notes(conn)

    await note_task(db, "a")
    reading = asyncio.create_task(db.read(look_twice))
    await asyncio.to_thread(looked.wait)
    await note_task(db, "b")
    go_on.set()
    assert await reading == (["a"], ["a"])
    assert await db.read(notes) == ["a", "b"]


async def test_a_read_sees_every_write_that_has_returned(db: Database) -> None:
    for i in range(50):
        await note_task(db, f"{i}")
        assert await db.read(lambda conn: conn.scalar(select(func.count(NOTES.c.id)))) == i + 1


async def test_a_read_cannot_write_and_leaves_its_thread_usable(db: Database) -> None:
    for _ in range(2 * sqlite.READERS):
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
    with pytest.raises(sqlalchemy.exc.OperationalError):
        await db.write(lambda conn: conn.exec_driver_sql("SELECT nothing FROM nowhere"))


# The end


async def test_close_serves_who_is_in_the_queue_and_refuses_who_comes_later(db: Database) -> None:
    async with held_writer(db) as go_on:
        tasks = [note_task(db, f"{i}") for i in range(100)]
        await queued()
        closing = asyncio.create_task(db.close())
        await queued()
        with pytest.raises(ShuttingDown):
            await note_task(db, "late")
        with pytest.raises(ShuttingDown):
            await db.read(notes)
        go_on.set()
    await asyncio.gather(closing, *tasks)
    assert not db.path.with_name(db.path.name + "-wal").exists()  # folded into the file
    again = await Database.open(db.path, metadata=METADATA, migrations=MIGRATIONS, service="toy")
    assert len(await again.read(notes)) == 100
    await again.close()
    await again.close()


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


async def test_other_databases_are_refused_without_their_password() -> None:
    url = "mysql://user:secret@host/db"
    with pytest.raises(InvalidArgument, match="mysql") as caught:
        await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="toy")
    assert "secret" not in str(caught.value)
