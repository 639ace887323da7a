"""A file that is not as it should be is refused, with its name and the remedy, and left alone."""

import asyncio
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from hopper_common.errors import (
    DatabaseCorrupt,
    DatabaseLocked,
    HopperError,
    StorageFull,
    StorageUnavailable,
)
from tests.common.toy import add_note, held_writer, notes, open_toy


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
async def closed(tmp_path: Path) -> Path:
    """A sound database of some fifty pages, closed."""
    db = await open_toy(tmp_path / "toy.db")
    await asyncio.gather(*(db.write(lambda conn, i=i: add_note(conn, f"{i}" * 50)) for i in range(1000)))  # type: ignore[misc]
    await db.close()
    return tmp_path / "toy.db"


async def test_a_new_database_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    db = await open_toy(directory / "toy.db")
    await db.write(lambda conn: add_note(conn, "a"))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in [directory, *directory.iterdir()]}
    await db.close()
    assert modes == {"data": 0o700} | dict.fromkeys(
        ["toy.db", "toy.db-wal", "toy.db-shm", "toy.db.lock"], 0o600
    )


async def test_a_url_names_the_same_file_as_its_path(closed: Path) -> None:
    db = await open_toy(f"sqlite:///{closed}")
    assert len(await db.read(notes)) == 1000
    await db.close()


async def test_closing_folds_the_log_into_the_file(tmp_path: Path) -> None:
    db = await open_toy(tmp_path / "toy.db")
    await db.write(lambda conn: add_note(conn, "a"))
    assert (tmp_path / "toy.db-wal").exists()
    await db.close()
    assert not (tmp_path / "toy.db-wal").exists()


async def test_commits_are_durable_one_by_one(tmp_path: Path) -> None:
    db = await open_toy(tmp_path / "toy.db")
    names = ("journal_mode", "synchronous", "foreign_keys")
    settings = await db.write(
        lambda conn: [conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    )
    await db.close()
    assert settings == ["wal", 2, 1]  # 2 is FULL


async def test_a_second_opener_is_told_who_was_first(closed: Path) -> None:
    closed.with_name("toy.db.lock").write_text("12345678901\n")  # who had it before
    first = await open_toy(closed)
    with pytest.raises(DatabaseLocked, match="in use by process") as caught:
        await open_toy(closed)
    assert caught.value.metadata == {"file": str(closed), "pid": str(os.getpid())}
    await first.close()
    await (await open_toy(closed)).close()


def cut_to(size: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(size)

    return cut


def overwrite_pages(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(5, 15):
            file.seek(4096 * page)
            file.write(random.Random(page).randbytes(4096))


def replace_by_text(path: Path) -> None:
    path.write_text("these are not the bytes of a database\n" * 1000)


def replace_by_foreign_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut_to(0), id="empty"),
        pytest.param(cut_to(50), id="cut within the header"),
        pytest.param(cut_to(4096), id="cut to one page"),
        pytest.param(cut_to(4096 * 3 + 17), id="cut within a page"),
        overwrite_pages,
        replace_by_text,
        replace_by_foreign_database,
    ],
)
async def test_a_damaged_file_is_refused_and_left_as_it_is(
    closed: Path, damage: Callable[[Path], None]
) -> None:
    damage(closed)
    before = content(closed)
    with pytest.raises(DatabaseCorrupt, match="restore it from a backup") as caught:
        await open_toy(closed)
    assert str(closed) in str(caught.value)
    assert caught.value.metadata["file"] == str(closed)
    assert content(closed) == before


async def test_an_empty_file_is_not_taken_for_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "toy.db").touch()
    with pytest.raises(DatabaseCorrupt, match="only 0 bytes long"):
        await open_toy(tmp_path / "toy.db")


async def test_no_cut_goes_unnoticed(closed: Path) -> None:
    sizes = random.Random(1).sample(range(len(content(closed))), 40)
    for size in sorted(sizes, reverse=True):
        cut_to(size)(closed)
        with pytest.raises(DatabaseCorrupt):
            await open_toy(closed)


async def test_a_file_restored_after_a_refusal_opens(closed: Path, tmp_path: Path) -> None:
    backup = shutil.copy(closed, tmp_path / "backup")
    cut_to(5000)(closed)
    with pytest.raises(DatabaseCorrupt):
        await open_toy(closed)
    shutil.copy(backup, closed)
    db = await open_toy(closed)  # the refusal has not kept the lock
    assert len(await db.read(notes)) == 1000
    await db.close()


async def test_what_an_interrupted_creation_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "toy.db"
    path.with_name("toy.db.new").write_text("half")
    db = await open_toy(path)
    await db.close()
    assert sorted(os.listdir(tmp_path)) == ["toy.db", "toy.db.lock"]


async def test_a_copy_taken_with_its_log_opens_with_everything_in_it(tmp_path: Path) -> None:
    """What a power cut leaves: nothing folded, everything in the log."""
    db = await open_toy(tmp_path / "toy.db")
    await db.write(lambda conn: add_note(conn, "a"))
    for name in ("toy.db", "toy.db-wal"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    await db.close()
    copy = await open_toy(tmp_path / "copy" / "toy.db")
    assert await copy.read(notes) == ["a"]
    await copy.close()


async def test_damage_met_while_running_is_named(closed: Path) -> None:
    db = await open_toy(closed)
    overwrite_pages(closed)
    with pytest.raises(DatabaseCorrupt, match="restore a backup"):
        await db.read(notes)
    await db.close()


async def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable, match="cannot be opened") as caught:
        await open_toy(tmp_path / "file" / "toy.db")
    assert isinstance(caught.value, HopperError)
    assert str(tmp_path) in str(caught.value)


async def test_a_database_without_room_says_so_and_works_again_when_there_is(tmp_path: Path) -> None:
    def limit(conn: Connection, pages: int) -> None:
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    db = await open_toy(tmp_path / "toy.db")
    await db.write(lambda conn: limit(conn, 20))
    async with held_writer(db):
        small = asyncio.create_task(db.write(lambda conn: add_note(conn, "small")))
        large = asyncio.create_task(db.write(lambda conn: add_note(conn, "x" * 500_000)))
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(small, large, return_exceptions=True)
    assert isinstance(outcomes[1], StorageFull)
    kept = ["small"] if outcomes[0] is None else []
    assert await db.read(notes) == kept
    await db.write(lambda conn: limit(conn, 1_000_000))
    await db.write(lambda conn: add_note(conn, "y" * 500_000))
    assert await db.read(notes) == [*kept, "y" * 500_000]
    await db.close()
