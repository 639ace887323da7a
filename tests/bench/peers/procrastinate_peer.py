"""procrastinate over psycopg (its C speedups), 16 jobs at once: `… URL`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import procrastinate
from procrastinate.exceptions import ConnectorException

from tests.bench.peers.serving import CALLERS, Peer, serve

_CONCURRENCY: Final = 16


class ProcrastinatePeer(Peer):
    """See `serving.Peer`."""

    def __init__(self, app: procrastinate.App) -> None:
        self._app = app
        self._started: Callable[[str], None] = _nobody
        self._left = 0
        self._all_done = asyncio.Event()

        @app.task(name="noop")
        async def noop(body: str) -> None:
            self._started(body)
            self._left -= 1
            if self._left == 0:
                self._all_done.set()

        self._task = noop

    @classmethod
    async def make(cls, url: str) -> ProcrastinatePeer:
        """Connect."""
        connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=CALLERS + 4)
        app = procrastinate.App(connector=connector)
        await app.open_async()
        return cls(app)

    async def setup(self) -> None:
        await self._app.schema_manager.apply_schema_async()

    async def enqueue(self, bodies: Sequence[str]) -> None:
        if len(bodies) == 1:
            await self._task.defer_async(body=bodies[0])
        else:
            await self._task.batch_defer_async(*({"body": body} for body in bodies))

    async def clear(self) -> None:
        await self._app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")

    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        self._started, self._left = started, count
        self._all_done.clear()
        working = asyncio.create_task(
            self._app.run_worker_async(concurrency=_CONCURRENCY, install_signal_handlers=False)
        )
        ended = asyncio.create_task(self._all_done.wait())
        await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if not ended.done():
            raise ConnectorException("the worker ended before its jobs")


def _nobody(_: str) -> None:
    return


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    serve(ProcrastinatePeer.make, sys.argv[1])
