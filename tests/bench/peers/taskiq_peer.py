"""taskiq over Redis streams, acknowledging, 100 jobs at once, without results: `… URL`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from tests.bench.peers.serving import Peer, serve

_AT_ONCE: Final = 100


class TaskiqPeer(Peer):
    """See `serving.Peer`."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)
        self._broker = RedisStreamBroker(url)
        self._started: Callable[[str], None] = _nobody
        self._left = 0
        self._all_done = asyncio.Event()

        @self._broker.task(task_name="noop")
        async def noop(body: str) -> None:
            self._started(body)
            self._left -= 1
            if self._left == 0:
                self._all_done.set()

        self._task = noop

    @classmethod
    async def make(cls, url: str) -> TaskiqPeer:
        """Connect."""
        return cls(url)

    async def setup(self) -> None:
        await self._broker.startup()

    async def enqueue(self, bodies: Sequence[str]) -> None:
        for body in bodies:
            await self._task.kiq(body)

    async def clear(self) -> None:
        await self._redis.flushdb()
        await self._broker.startup()  # its group is gone too

    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        self._started, self._left = started, count
        self._all_done.clear()
        self._broker.is_worker_process = True
        receiver = Receiver(self._broker, max_async_tasks=_AT_ONCE, run_startup=False)
        await receiver.listen(self._all_done)


def _nobody(_: str) -> None:
    return


if __name__ == "__main__":
    logging.getLogger("taskiq").setLevel(logging.WARNING)
    serve(TaskiqPeer.make, sys.argv[1])
