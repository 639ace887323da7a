"""A full disk, for real. Collected where this user may mount one (conftest.py); test_durability.py covers the rest."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopper_common.errors import StorageFull
from hopper_testing import disks
from tests.common.test_durability import open_toy
from tests.common.toy import add_note, held_writer, notes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    point = tmp_path / "disk"
    point.mkdir()
    with disks.small_disk(point, megabytes=2) as mounted:
        yield mounted


async def test_a_full_disk_fails_the_group_and_serves_the_next_when_there_is_room(small_disk: Path) -> None:
    db = await open_toy(small_disk / "toy.db")
    await db.write(lambda conn: add_note(conn, "before"))
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes((free.f_bavail - 10) * free.f_bsize))
    async with held_writer(db):
        tasks = [
            asyncio.create_task(db.write(lambda conn, i=i: add_note(conn, f"{i}" * 20_000)))  # type: ignore[misc]
            for i in range(8)
        ]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StorageFull] * 8
    assert await db.read(notes) == ["before"]
    filler.unlink()
    await db.write(lambda conn: add_note(conn, "after"))
    await db.close()
    again = await open_toy(small_disk / "toy.db")
    assert await again.read(notes) == ["before", "after"]
    await again.close()


async def test_a_disk_too_full_to_open_on_is_named(small_disk: Path) -> None:
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
    with pytest.raises(StorageFull, match=r"toy\.db cannot be opened"):
        await open_toy(small_disk / "toy.db")
