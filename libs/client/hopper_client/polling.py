"""
A worker without a stream: long polls, one at a time, for as many tasks as slots are free.

It is how a worker begins that is to leave when its queue is empty, because only a claim can say that it is; and how
one works with a Hopper that offers no streams.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
from hopper_client.client import AsyncHopper
from hopper_client.policy import Backoff
from hopper_client.shift import Shift
from hopper_common.errors import HopperError

T = TypeVar("T")

MOST_TASKS_PER_CLAIM = 100
LONG_POLL = timedelta(seconds=20)
BUSY_POLL = timedelta(seconds=0.25)  # until_idle, while something runs whose end may be the end of the run
# What a poll under way is given when the worker stops: under load, its tasks are on their way already.
POLL_GRACE = 0.5

Ask = Callable[[int, timedelta], ClaimTasksRequest]
"""Makes a claim for so many tasks that waits so long, with a `request_id` of its own."""


async def claim(hopper: AsyncHopper, shift: Shift, request: ClaimTasksRequest) -> Sequence[Task]:
    """
    Send one claim until it is answered. It carries one `request_id`, so that claims whose answer was lost come with
    the next.

    Raises:
        HopperError: The queue cannot be worked on.
    """
    backoff = Backoff()
    said = ""
    while True:
        try:
            response = await hopper.work.ClaimTasks(request)
        except HopperError as error:
            pause = shift.pause_after(error, backoff, request.queue, said)
            said = error.reason
        else:
            shift.answered()
            return response.tasks
        await asyncio.sleep(pause)


async def claim_all(hopper: AsyncHopper, shift: Shift, ask: Ask, *, most: float, until_idle: bool) -> None:
    """
    Claim until the worker is stopped, has had enough, or is idle.

    Raises:
        HopperError: The queue cannot be worked on.
    """
    loop = asyncio.get_running_loop()
    while not shift.stopping.is_set() and shift.stats.claimed < most:
        if not shift.room:
            has_room = shift.wait_changed(lambda: shift.room > 0)
            await _unless_stopped(shift.stopping, has_room)
            continue
        idle = shift.in_hand == 0
        request = ask(
            int(min(shift.room, MOST_TASKS_PER_CLAIM, most - shift.stats.claimed)), _wait(until_idle, idle)
        )
        asked_at = loop.time()
        tasks = await _unless_stopped(shift.stopping, claim(hopper, shift, request)) or ()
        shift.take(tasks, asked_at)
        # A poll that began while something ran may have missed what its end made ready.
        if until_idle and idle and not tasks:
            return


def _wait(until_idle: bool, idle: bool) -> timedelta:
    if not until_idle:
        return LONG_POLL
    return timedelta() if idle else BUSY_POLL


async def _unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result; None when the worker was stopped and a short grace has passed."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({task}, timeout=POLL_GRACE if not task.done() else 0)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stop.cancel()
