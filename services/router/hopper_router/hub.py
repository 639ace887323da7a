"""
Who waits for work, and waking just as many as there is work for.

A worker that finds its queue empty waits here, and says how many tasks it could take. After each commit the engine
says which queues got how many ready tasks; so many waiters are woken as can take them, the longest waiting first, each
to try its claim. Waking is a hint and claims are the truth: a wake-up that comes to nothing costs one query.

    a thousand waiters, one task ready ──► one wakes and claims, 999 sleep on

One that was missed (a notification lost with its connection) costs `SAFETY_NET`: so often one waiter of each queue is
sent to look, whatever was said, and if it finds something the next is sent after it. The cost of that follows the
number of queues, not of those who wait.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

SAFETY_NET: Final = 5.0
"""Seconds after which one waiter of a queue looks, whatever was said; give or take a fifth, to spread the queues."""

Waiter = asyncio.Future[int]
"""Done when it is woken; its result is for how many tasks."""


class Hub:
    """
    Waiting workers by queue; used from the event loop only.

    Args:
        jitter: Gives numbers from 0 to 1.
    """

    def __init__(
        self, *, safety_net: float = SAFETY_NET, jitter: Callable[[], float] = random.random
    ) -> None:
        self._safety_net = safety_net
        self._jitter = jitter
        self._waiting: dict[str, OrderedDict[Waiter, int]] = {}
        self._workers: dict[tuple[str, str], Waiter] = {}
        self._looks: dict[str, asyncio.TimerHandle] = {}
        self._looking: set[str] = set()

    def waiting(self, queue: str, most: int = 1, worker: str = "") -> Waiter:
        """
        Register as waiting. Do it before looking, so that nothing falls between looking and waiting; `leave` when done.

        Args:
            most: How many tasks the waiter would take.
            worker: Who it is, for `wake_worker`.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, OrderedDict())[waiter] = max(most, 1)
        if worker:
            self._workers[queue, worker] = waiter
            waiter.add_done_callback(lambda _: self._forget(queue, worker, waiter))
        if queue not in self._looks:
            self._look_later(queue)
        return waiter

    def leave(self, queue: str, waiter: Waiter, *, looks_again: bool, found: bool = False) -> None:
        """
        Stop waiting.

        Who was woken and does not look again passes the wake-up on: it was for tasks, not for them.

        Args:
            found: The waiter leaves with tasks.
        """
        if waiter.done() and not looks_again:
            self._wake(queue, waiter.result())
        waiters = self._waiting.get(queue)
        if waiters is not None and waiters.pop(waiter, None) is not None and not waiters:
            del self._waiting[queue]
        waiter.cancel()  # nobody waits for it any more
        if found and queue in self._looking:  # nobody was told of what it found, and there may be more
            self._wake(queue, 1)

    def wake(self, ready_tasks: Mapping[str, int]) -> None:
        """Wake as many as can take the tasks that got ready, so many by queue."""
        for queue, ready in ready_tasks.items():
            self._looking.discard(queue)
            self._wake(queue, ready)

    def wake_worker(self, queue: str, worker: str) -> None:
        """Wake that worker, if it waits, for one task."""
        waiter = self._workers.get((queue, worker))
        waiters = self._waiting.get(queue, OrderedDict())
        if waiter is not None and waiters.pop(waiter, None) is not None:
            waiter.set_result(1)
            if not waiters:
                del self._waiting[queue]

    def _forget(self, queue: str, worker: str, waiter: Waiter) -> None:
        if self._workers.get((queue, worker)) is waiter:
            del self._workers[queue, worker]

    def wake_all(self) -> None:
        """Wake everybody: what stands still may have changed."""
        for queue in list(self._waiting):
            for waiter in self._waiting.pop(queue):
                waiter.set_result(1)

    def _wake(self, queue: str, ready: int) -> None:
        waiters = self._waiting.get(queue)
        if waiters is None:
            return
        while ready > 0 and waiters:
            waiter, most = waiters.popitem(last=False)
            waiter.set_result(min(most, ready))
            ready -= most
        if not waiters:
            del self._waiting[queue]

    # ------------------------------------------------------------ the safety net

    def _look_later(self, queue: str) -> None:
        delay = self._safety_net * (0.8 + 0.4 * self._jitter())
        self._looks[queue] = asyncio.get_running_loop().call_later(delay, self._look, queue)

    def _look(self, queue: str) -> None:
        del self._looks[queue]
        self._looking.discard(queue)
        if queue in self._waiting:
            self._looking.add(queue)
            self._wake(queue, 1)
            self._look_later(queue)
