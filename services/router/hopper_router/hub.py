"""
Who waits for work, and waking just as many as there is work for.

A worker that finds its queue empty waits here. After each commit the engine says which queues got how many ready
tasks; that many waiters are woken, the longest waiting first, each to try its claim. Waking is a hint and claims are
the truth: a wake-up that comes to nothing costs one query, and one that is missed costs `SAFETY_NET`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

SAFETY_NET: Final = 5.0
"""Seconds after which a waiter looks for itself, whatever it was told."""


class Hub:
    """Waiting workers by queue; used from the event loop only."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def waiting(self, queue: str) -> asyncio.Future[None]:
        """
        Register as waiting. Do it before looking, so that nothing falls between looking and waiting; `leave` when done.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, deque()).append(waiter)
        return waiter

    def leave(self, queue: str, waiter: asyncio.Future[None], *, looks_again: bool) -> None:
        """
        Stop waiting.

        Who was woken and does not look again passes the wake-up on: it was for a task, not for them.
        """
        if waiter.done() and not looks_again:
            self.wake([queue])
        waiters = self._waiting.get(queue)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[queue]

    def wake(self, queues: Iterable[str]) -> None:
        """Wake one waiter for each mention of its queue."""
        for queue, ready in Counter(queues).items():
            waiters = self._waiting.get(queue)
            if waiters is None:
                continue
            for _ in range(min(ready, len(waiters))):
                waiters.popleft().set_result(None)
            if not waiters:
                del self._waiting[queue]

    def wake_all(self) -> None:
        """Wake everybody: what stands still may have changed."""
        self.wake(queue for queue, waiters in list(self._waiting.items()) for _ in range(len(waiters)))
