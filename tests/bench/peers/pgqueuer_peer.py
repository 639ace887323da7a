"""pgqueuer over asyncpg: `… URL`. A pool enqueues, one connection works, as its documentation has it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import asyncpg
from pgqueuer import AsyncpgDriver, AsyncpgPoolDriver, PgQueuer, Queries
from pgqueuer.models import Job

from tests.bench.peers.serving import CALLERS, Peer, serve

_ENTRYPOINT: Final = "noop"


class PgQueuerPeer(Peer):
    """See `serving.Peer`."""

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self._url = url
        self._queries = Queries(AsyncpgPoolDriver(pool))

    @classmethod
    async def make(cls, url: str) -> PgQueuerPeer:
        """Connect."""
        return cls(url, await asyncpg.create_pool(url, min_size=CALLERS, max_size=CALLERS))

    async def setup(self) -> None:
        await self._queries.install()

    async def enqueue(self, bodies: Sequence[str]) -> None:
        count = len(bodies)
        await self._queries.enqueue([_ENTRYPOINT] * count, [body.encode() for body in bodies], [0] * count)

    async def clear(self) -> None:
        await self._queries.clear_queue()

    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        connection = await asyncpg.connect(self._url)
        worker = PgQueuer(AsyncpgDriver(connection))
        done = 0

        @worker.entrypoint(_ENTRYPOINT)
        async def noop(job: Job) -> None:
            nonlocal done
            started((job.payload or b"").decode())
            done += 1
            if done == count:
                worker.shutdown.set()

        await worker.run(**options)
        await connection.close()


if __name__ == "__main__":
    serve(PgQueuerPeer.make, sys.argv[1])
