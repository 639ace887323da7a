"""
A worker: claims tasks from a queue, hands them to a handler, brings the results home.

```
            ClaimTasks (long poll, one at a time, for as many tasks as slots are free)
                │
   slots ──► handler(context) ──► CompleteTasks (together, if several end together)
                │     │      └──► FailTask
                │     └── lost ─► cancelled, nothing is sent
                └── RenewClaims: all running claims in one call, at a third of the lease
```

What may go wrong, and what comes of it:

- No Hopper answers: claims, renewals and results wait for it with growing pauses, each with its one
  `request_id`. Claims whose answer was lost come with the repeat.
- The claim is lost: the handler is cancelled (see `hopper_client.claims`).
- The handler raises: FailTask, and the task's retry policy decides.
- Claiming is refused for good (no such project, not a member): what runs is finished, then `run` raises it.
- `run` is cancelled: handlers are cancelled and their tasks released.
"""

import asyncio
import math
import os
import re
import secrets
import socket
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from hopper.registry.v1 import project_pb2
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
from hopper_client.client import AsyncHopper
from hopper_client.policy import with_request_id
from hopper_client.presence import keep_present, leave
from hopper_client.shift import Handler, Shift, WorkerStats
from hopper_common.errors import HopperError
from hopper_common.timestamps import to_proto

__all__ = ["Handler", "Worker", "WorkerStats"]

T = TypeVar("T")

MOST_TASKS_PER_CLAIM = 100
LONG_POLL = timedelta(seconds=20)
BUSY_POLL = timedelta(seconds=0.25)  # until_idle, while something runs whose end may be the end of the run
# What a poll under way is given when the worker stops: under load, its tasks are on their way already.
POLL_GRACE = 0.5


class Worker:
    """
    Runs a handler for the tasks of a queue.

    Args:
        queue: `projects/{project}` or `instances/{instance}`.
        handler: Called with each task. What it returns is the result, at most 1 MiB. It shares the event loop
            with the renewals: give what computes or blocks to `asyncio.to_thread`.
        worker_id: Unique among the workers of the queue. Default: host name, process and a random end.
        concurrency: How many tasks run at once.
        lease: How long a claim outlives this process, 1 s to 1 h.
        labels: What it is like, told to the registry with each heartbeat; `worker.labels` may be changed while
            it runs.
    """

    def __init__(
        self,
        hopper: AsyncHopper,
        queue: str,
        handler: Handler,
        *,
        worker_id: str | None = None,
        concurrency: int = 1,
        lease: timedelta = timedelta(seconds=60),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"a worker needs at least one slot, not {concurrency}")
        self.queue = queue
        self.worker_id = worker_id or _new_worker_id()
        self.labels = dict(labels or {})
        self._hopper = hopper
        self._handler = handler
        self._concurrency = concurrency
        self._lease = lease
        self._stopping = asyncio.Event()
        self._runs = False

    def stop(self) -> None:
        """
        Wind down: claim no more, let running tasks finish, then return from `run`. May be called before `run`,
        and from a signal handler of the loop.
        """
        self._stopping.set()

    async def run(self, *, until_idle: bool = False, max_tasks: int | None = None) -> WorkerStats:
        """
        Work until stopped.

        Args:
            until_idle: Return when a claim came back empty and nothing runs. Tasks that wait for their back-off
                or their time do not count.
            max_tasks: Return after so many tasks.

        Returns:
            What became of the tasks, after the last has ended.

        Raises:
            HopperError: The queue cannot be worked on: no such project, not a member, ... With `until_idle`
                also when it is paused, or no Hopper has answered yet.
        """
        if self._runs:
            raise RuntimeError("this worker runs already: make another one, or raise its concurrency")
        self._runs = True
        shift = Shift(self._hopper, self._handler, self._lease, patient=not until_idle)
        try:
            await self._run(shift, until_idle, math.inf if max_tasks is None else max_tasks)
        finally:
            self._runs = False
            self._stopping.clear()
        return shift.stats

    async def _run(self, shift: Shift, until_idle: bool, most: float) -> None:
        refused: HopperError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(loop) for loop in self._background(shift)]
                try:
                    await self._claim_all(shift, group, until_idle, most)
                except HopperError as error:
                    refused = error
                await shift.wait_below(1)
                for task in background:
                    task.cancel()
        except ExceptionGroup as failures:  # a defect here: what runs was cancelled, and nobody waits in vain
            raise failures.exceptions[0] from failures
        if self._is_present:
            await leave(self._hopper.projects, self._describe(shift))
        if refused is not None:
            raise refused

    def _background(self, shift: Shift) -> list[Coroutine[Any, Any, None]]:
        loops: list[Coroutine[Any, Any, None]] = [shift.claims.keep(), shift.completions.deliver()]
        if self._is_present:
            loops.append(keep_present(self._hopper.projects, lambda: self._describe(shift)))
        return loops

    # Presence.

    @property
    def _is_present(self) -> bool:
        return self.queue.startswith("projects/")  # the registry knows workers of projects only

    def _describe(self, shift: Shift) -> project_pb2.Worker:
        return project_pb2.Worker(
            name=f"{self.queue}/workers/{self.worker_id}",
            # Who winds down has no room but for what it runs.
            slots=shift.running if self._stopping.is_set() else self._concurrency,
            running=shift.running,
            labels=self.labels,
        )

    # Claiming.

    async def _claim_all(self, shift: Shift, group: asyncio.TaskGroup, until_idle: bool, most: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set() and shift.stats.claimed < most:
            free = self._concurrency - shift.running
            if not free:
                await self._unless_stopped(shift.wait_below(self._concurrency))
                continue
            idle = shift.running == 0
            request = self._request(
                most=int(min(free, MOST_TASKS_PER_CLAIM, most - shift.stats.claimed)),
                wait=_wait(until_idle, idle),
            )
            asked_at = loop.time()
            tasks = await self._unless_stopped(shift.claim(request)) or ()
            for task in tasks:
                shift.stats.claimed += 1
                if self._stopping.is_set():
                    group.create_task(shift.give_back(task))
                else:
                    shift.begin(group, task, asked_at)
            # A poll that began while something ran may have missed what its end made ready.
            if until_idle and idle and not tasks:
                return

    def _request(self, *, most: int, wait: timedelta) -> ClaimTasksRequest:
        return with_request_id(
            ClaimTasksRequest(
                queue=self.queue,
                worker=self.worker_id,
                max_tasks=most,
                lease_duration=to_proto(self._lease),
                wait=to_proto(wait),
            )
        )

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result; None when the worker was stopped and a short grace has passed."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({task}, timeout=POLL_GRACE if not task.done() else 0)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()


def _wait(until_idle: bool, idle: bool) -> timedelta:
    if not until_idle:
        return LONG_POLL
    return timedelta() if idle else BUSY_POLL


def _new_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:32] or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
