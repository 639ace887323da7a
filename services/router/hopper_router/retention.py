"""
Moves what has been finished for long to the archive, in steps that delay nobody, and forgets what is there for long.

Each step is a short transaction, and is followed by a pause at least twice as long as it took: whoever else writes gets
most of the time, however much there is to move. It may end anywhere and begin again: see `archive`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.errors import HopperError, ShuttingDown
from hopper_router import archive, archive_months
from hopper_router.settings import RouterSettings

EVERY: Final = 3600.0
PAUSE: Final = 0.02
_log = structlog.get_logger("hopper.router")


class Progress(NamedTuple):
    """Of *total* tasks that were to be moved, *moved* are."""

    total: int
    moved: int
    done: bool


class Retention:
    """The care of what is finished."""

    def __init__(self, db: Database, clock: Clock, settings: RouterSettings | None = None) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings or RouterSettings()

    async def run(self) -> None:
        """Do by itself what the settings say."""
        while True:
            try:
                await self.keep_house()
            except ShuttingDown:
                raise
            except HopperError as error:
                _log.warning("trouble, will try again", what="archive", reason=error.reason)
            await asyncio.sleep(EVERY)

    async def keep_house(self) -> int:
        """Archive and forget what has its time behind it; returns how many tasks were archived."""
        moved = 0
        if self._settings.keep_finished:
            async for step in self.move(self._settings.keep_finished):
                moved += step
            if moved:
                _log.info("finished tasks were archived", tasks=moved)
        if self._settings.keep_archive:
            await self.forget(self._settings.keep_archive)
        return moved

    async def archive(self, older_than: timedelta, *, dry_run: bool = False) -> AsyncIterator[Progress]:
        """Archive, and say after each step how far it is; a *dry_run* only counts."""
        total = await self._count(older_than)
        moved = 0
        if not dry_run:
            yield Progress(total, 0, done=False)
            async for step in self.move(older_than):
                moved += step
                yield Progress(max(total, moved), moved, done=False)
        yield Progress(max(total, moved), moved, done=True)

    async def _count(self, older_than: timedelta) -> int:
        count, after, until = 0, "", self._clock.now() - older_than
        while True:
            found = await self._db.read(partial(archive.look, after=after, until=until))
            count, after = count + len(found.ids), found.last
            if not after:
                return count

    async def move(self, older_than: timedelta) -> AsyncIterator[int]:
        """Move what ended that long ago; yields how many tasks each step moved."""
        after, until, moved = "", self._clock.now() - older_than, 0
        while True:
            found = await self._db.read(partial(archive.look, after=after, until=until))
            for first in range(0, len(found.ids), archive.STEP):
                step = await self._step(found.ids[first : first + archive.STEP])
                moved += step
                yield step
            after = found.last
            if not after:
                break
        if moved and self._db.dialect == "sqlite":
            await self._forget_words()

    async def _step(self, ids: Sequence[str]) -> int:
        packed = await self._db.read(partial(archive.pack, ids=ids))
        times = [one.row["finish_time"] for one in packed]

        def work(conn: Connection) -> int:
            archive_months.ensure(conn, times, self._clock.now())
            return archive.move(conn, packed)

        return await self._unhurried(work)

    async def _unhurried(self, work: Callable[[Connection], int]) -> int:
        started = self._clock.monotonic()
        result = await self._db.write(work)
        await asyncio.sleep(max(PAUSE, 2 * (self._clock.monotonic() - started)))
        return result

    async def _forget_words(self) -> None:
        after = 0
        while True:
            dead, after = await self._db.read(partial(archive.dead_words, after=after))
            if dead:
                await self._db.write(partial(archive.forget_words, rowids=dead))
                await asyncio.sleep(PAUSE)
            if not after:
                return

    async def forget(self, older_than: timedelta) -> int:
        """Forget what was archived and ended that long ago; returns how many months or tasks it was."""
        forgotten, before = 0, self._clock.now() - older_than
        while step := await self._unhurried(partial(archive_months.drop, before=before)):
            forgotten += step
        return forgotten
