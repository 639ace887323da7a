"""What survives: a killed process, a file that may not grow. A full disk is in test_small_disk.py."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hopper_common.database import Database
from hopper_common.errors import DatabaseLocked
from tests.common.toy import METADATA, MIGRATIONS, notes

ROOT = Path(__file__).parents[2]


async def open_toy(path: Path) -> Database:
    return await Database.open(path, metadata=METADATA, migrations=MIGRATIONS, service="toy")


@asynccontextmanager
async def running(module: str, path: Path) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", f"tests.common.toy.{module}", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def acknowledged(process: Process, count: int) -> list[str]:
    assert process.stdout is not None
    return [(await process.stdout.readline()).decode().strip() for _ in range(count)]


async def test_every_acknowledged_row_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "toy.db"
    seen: list[str] = []
    for _ in range(3):
        async with running("writer", path.with_name(f"{len(seen)}.db")) as process:
            lines = await acknowledged(process, 1000)
            process.kill()
            assert process.stdout is not None
            rest = (await process.stdout.read()).decode()
            await process.wait()
        lines += rest[: rest.rfind("\n") + 1].split()
        db = await open_toy(path.with_name(f"{len(seen)}.db"))
        kept = await db.read(notes)
        await db.close()
        assert set(lines) <= set(kept)
        assert len(kept) <= len(lines) + 16  # one unanswered note per writer, no more
        seen += lines


async def test_another_process_that_has_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.db"
    async with running("writer", path) as process:
        await acknowledged(process, 1)
        with pytest.raises(DatabaseLocked, match=f"in use by process {process.pid}: stop") as caught:
            await open_toy(path)
        assert caught.value.metadata["pid"] == str(process.pid)
        process.kill()
        await process.wait()
    await (await open_toy(path)).close()


async def test_a_file_that_may_not_grow_is_a_full_storage_until_it_may(tmp_path: Path) -> None:
    async with running("limited", tmp_path / "toy.db") as process:
        assert process.stdout is not None
        words = (await process.stdout.read()).decode().split()
        assert await process.wait() == 0
    assert words == [*["STORAGE_FULL"] * 4, "OK", "before", "after"]
