"""
What the registry does by itself: notice that workers have gone silent, and forget what is too old.

Looking costs a read each second; the disk is written only when there is something to say.
"""

import asyncio
from datetime import timedelta

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_registry import projects
from hopper_registry.store_sql import Registry

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
FORGET_EVERY = timedelta(minutes=1)


class Sweeper:
    """
    Runs beside the server. `sweep` is one round, for tests and for start.

    Args:
        pause: Seconds between rounds.
    """

    def __init__(self, registry: Registry, clock: Clock, *, pause: float = SWEEP_SECONDS) -> None:
        self._registry = registry
        self._clock = clock
        self._pause = pause
        self._forget_at = 0.0

    async def run(self) -> None:
        """Sweep each second, for ever. A round that the storage refuses is done by a later one."""
        while True:
            try:
                await self.sweep()
            except (StorageFull, StorageUnavailable, Overloaded) as error:
                log.warning("sweep put off", reason=error.reason, message=error.message)
            await asyncio.sleep(self._pause)

    async def sweep(self) -> None:
        """Mark silent workers dead, and now and then forget what is too old."""
        await self._expire()
        if self._clock.monotonic() >= self._forget_at:
            await self._registry.forget()
            await self._registry.write(projects.forget_workers)
            self._forget_at = self._clock.monotonic() + FORGET_EVERY.total_seconds()

    async def _expire(self) -> None:
        expiry = await self._registry.read(lambda store: store.next_expiry())
        if expiry is None or expiry > self._clock.now():
            return
        names = await self._registry.write(projects.expire_workers)
        log.info("workers went silent", projects=names)
