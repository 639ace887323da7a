"""Forgets files whose tasks have been over for long, and removes bytes that no file names."""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.model import KEPT_FOR
from hopper_federation.artifacts.store_sql import Artifacts
from hopper_federation.artifacts.tasks import Tasks

log = structlog.get_logger(__name__)

KEEP_EVERY: Final = timedelta(hours=1)
UNNAMED_FOR: Final = timedelta(hours=1)
"""How long bytes stay that no file names: they may be about to be named."""

_AT_ONCE: Final = 200


class ArtifactKeeper:
    """Runs beside the server. `keep` is one round, for tests."""

    def __init__(self, files: Artifacts, blobs: BlobStore, tasks: Tasks, clock: Clock) -> None:
        self._files = files
        self._blobs = blobs
        self._tasks = tasks
        self._clock = clock

    async def run(self) -> None:
        """Keep house each hour, for ever. A round that fails is done by a later one."""
        while True:
            await asyncio.sleep(KEEP_EVERY.total_seconds())
            try:
                await self.keep()
            except HopperError as error:
                log.warning("files are not looked after", reason=error.reason, message=error.message)

    async def keep(self) -> None:
        """Forget, and then remove."""
        await self._forget()
        await self._collect()

    async def _forget(self) -> None:
        before = self._clock.now() - KEPT_FOR
        after = (0, "")
        while old := await self._files.read(lambda store: store.old_tasks(before, after, _AT_ONCE)):  # noqa: B023 - runs at once
            over = [task for _, task in old if await self._tasks.over_before(task, before)]
            if over:
                await self._files.write(lambda store: store.drop(over))  # noqa: B023 - runs at once
            after = old[-1]

    async def _collect(self) -> None:
        before = (self._clock.now() - UNNAMED_FOR).timestamp()
        old = sorted(await asyncio.to_thread(self._blobs.old, before))
        removed = 0
        for begin in range(0, len(old), _AT_ONCE):
            batch = old[begin : begin + _AT_ONCE]
            named = await self._files.read(lambda store: store.named(batch))  # noqa: B023 - runs at once
            for sha256 in batch:
                if sha256 not in named:
                    removed += await asyncio.to_thread(self._blobs.remove, sha256, before)
        if removed:
            log.info("bytes that no file names are removed", files=removed)
