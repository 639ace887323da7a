"""Celery over Redis, solo pool, acknowledging late, without results: `… URL`. Its API is not asynchronous."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from celery import Celery
from celery.worker import state

from tests.bench.peers.serving import Peer, serve


class CeleryPeer(Peer):
    """See `serving.Peer`."""

    callers = 1

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._app = Celery("bench", broker=url)
        self._app.conf.update(
            task_acks_late=True,
            task_ignore_result=True,
            worker_hijack_root_logger=False,
            worker_redirect_stdouts=False,
            broker_connection_retry_on_startup=True,
        )
        self._started: Callable[[str], None] = _nobody
        self._left = 0

        @self._app.task(name="noop")
        def noop(body: str) -> None:
            self._started(body)
            self._left -= 1
            if self._left == 0:
                state.should_stop = 0  # an exit code: the worker stops after this job

        self._task = noop

    @classmethod
    async def make(cls, url: str) -> CeleryPeer:
        """Connect."""
        return cls(url)

    async def enqueue(self, bodies: Sequence[str]) -> None:
        for body in bodies:
            self._task.apply_async((body,))

    async def clear(self) -> None:
        self._redis.flushdb()

    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        self._started, self._left = started, count
        state.should_stop = None
        worker = self._app.Worker(
            pool="solo", without_gossip=True, without_mingle=True, without_heartbeat=True, loglevel="WARNING"
        )
        worker.start()


def _nobody(_: str) -> None:
    return


if __name__ == "__main__":
    serve(CeleryPeer.make, sys.argv[1])
