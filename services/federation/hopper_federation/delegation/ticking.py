"""
Lets the clocks of hand-overs run: leases, renewals, deadlines; and forgets what has been over for long enough.

What this Hopper has handed over gets a whole lease more when it starts: how long it was away, it cannot know.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

import structlog

from hopper_common.database import Signal
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_federation.delegation.desks import Desks, Sitting

log = structlog.get_logger(__name__)

LONGEST: Final = 5.0
"""How long it is not looked, at most: the clock may be one that a test moves."""

SHORTEST: Final = 0.25
"""How long after one look comes the next, at least: no clock runs shorter than that."""
FORGET_EVERY: Final = 60.0
BATCH: Final = 500

_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)


class Ticker:
    """Runs beside the server. `begin` and `tick` are its parts, for tests."""

    def __init__(self, desks: Desks, committed: Signal) -> None:
        self._desks = desks
        self._committed = committed
        self._forget_at = 0.0

    async def run(self) -> None:
        """Tick for ever."""
        while not await self._done(self.begin()):  # noqa: ASYNC110 - there is no event for a database that is back
            await asyncio.sleep(LONGEST)
        while True:
            commits = self._committed.count
            pause = await self._pause()
            if pause > 0:
                await asyncio.sleep(min(pause, SHORTEST))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause - SHORTEST):
                        await self._committed.wait(after=commits)
            elif not await self._done(self.tick()):
                await asyncio.sleep(LONGEST)

    async def _done(self, work: Awaitable[None]) -> bool:
        try:
            await work
        except _PUT_OFF as error:
            log.warning("the clocks of hand-overs stand still", reason=error.reason)
            return False
        return True

    async def begin(self) -> None:
        """What was handed over gets a whole lease, and nothing waits for a time that another clock has told."""

        def work(sitting: Sitting) -> None:
            sitting.rows.wait_no_longer(sitting.now)
            sitting.desk.restarted(sitting.rows.open_peers())

        await self._desks.write(work)

    async def tick(self) -> None:
        """Do what is due."""
        forget = self._desks.steady() >= self._forget_at

        def work(sitting: Sitting) -> None:
            sitting.desk.tick(BATCH)
            if forget:
                sitting.rows.forget(sitting.now, BATCH)

        await self._desks.write(work)
        if forget:
            self._forget_at = self._desks.steady() + FORGET_EVERY

    async def _pause(self) -> float:
        """How long nothing is due, in seconds."""
        try:
            due = await self._desks.read(lambda rows: rows.next_due())
        except _PUT_OFF:
            return LONGEST
        now = self._desks.steady()
        next_ = self._forget_at if due is None else min(due, self._forget_at)
        if next_ <= now:
            return 0.0
        return min(LONGEST, max(0.01, next_ - now))
