"""Which tasks wait for advice, as far as this process has seen, and who waits for that to be over."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from hopper_common.database import Signal
from hopper_router.model import Task, TaskState, WaitReason
from hopper_router.unit import Change


def waits_for_advice(task: Task) -> bool:
    """Whether somebody is to be asked about a task."""
    wait = task.wait
    return task.state is TaskState.SUBMITTED and (
        wait is not None and wait.reason is WaitReason.UNSURE and bool(wait.on)
    )


class Inquiries:
    """
    Follows what units change. From the event loop only.

    Attributes:
        opened: Fires when a task has come to wait for advice.
    """

    def __init__(self) -> None:
        self.opened = Signal()
        self._waiters: dict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def follow(self, changes: Sequence[Change]) -> None:
        """Take note of what a unit changed."""
        for change in changes:
            if waits_for_advice(change.after):
                self.opened.fire()
            else:
                for waiter in self._waiters.pop(change.after.name, ()):
                    if not waiter.done():
                        waiter.set_result(None)

    async def over(self, task: str, timeout: float) -> bool:
        """Wait until this process has seen that a task waits for advice no more; whether it has."""
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters[task]
        waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(task) is waiters:
                del self._waiters[task]
        return waiter.done()
