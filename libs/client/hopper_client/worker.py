"""
A worker: claims tasks from a queue, hands them to a handler, brings the results home.

```
            one stream: free slots out, tasks in                     (hopper_client.stream)
                │
   slots ──► handler(context) ──► ends, together if several end together
                │     └── lost ─► cancelled, nothing is sent
                └── all running claims renewed in one message, at a third of the lease
```

With a Hopper that offers no streams it polls instead (`hopper_client.polling`).

What may go wrong, and what comes of it:

- No Hopper answers, or the stream breaks: it comes back with growing pauses. Claims are kept meanwhile and renewed
  first of all; what was done is sent until it is answered, and counts once.
- The claim is lost: the handler is cancelled (see `hopper_client.claims`).
- The handler raises: FailTask, and the task's retry policy decides.
- Claiming is refused for good (no such project, not a member): what runs is finished, then `run` raises it.
- `run` is cancelled: handlers are cancelled and their tasks released.
"""

import asyncio
import contextlib
import math
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import timedelta
from typing import Any

from hopper.registry.v1 import project_pb2
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest, WorkOpen
from hopper_client import polling
from hopper_client.client import AsyncHopper
from hopper_client.policy import Backoff, with_request_id
from hopper_client.presence import keep_present, leave
from hopper_client.shift import Handler, Shift, WorkerStats
from hopper_client.stream import WorkerStream
from hopper_common.errors import HopperError
from hopper_common.rpc.errors import MethodNotOffered
from hopper_common.timestamps import to_proto

__all__ = ["Handler", "Worker", "WorkerStats"]

MOST_SLOTS = 1000
_STEADY = 5.0
"""Seconds after which a stream that breaks is not one that could not be begun."""


class Worker:
    """
    Runs a handler for the tasks of a queue.

    Args:
        queue: `projects/{project}` or `instances/{instance}`.
        handler: Called with each task. What it returns is the result, at most 1 MiB. It shares the event loop
            with the renewals: give what computes or blocks to `asyncio.to_thread`.
        worker_id: Unique among the workers of the queue. Default: host name, process and a random end.
        concurrency: How many slots it has, at most 1,000: how many tasks run at once, if each takes one.
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
        if concurrency > MOST_SLOTS:
            raise ValueError(f"a worker has at most {MOST_SLOTS} slots, not {concurrency}: use several")
        self.queue = queue
        self.worker_id = worker_id or _new_worker_id()
        self.labels = dict(labels or {})
        self._hopper = hopper
        self._handler = handler
        self._concurrency = concurrency
        self._lease = lease
        self._stopping = asyncio.Event()
        self._shift: Shift | None = None

    def stop(self) -> None:
        """
        Wind down: claim no more, let running tasks finish, then return from `run`. May be called before `run`,
        and from a signal handler of the loop.
        """
        self._stopping.set()
        if self._shift is not None:
            self._shift.changed.set()

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
        if self._shift is not None:
            raise RuntimeError("this worker runs already: make another one, or raise its concurrency")
        self._shift = shift = Shift(
            self._hopper,
            self._handler,
            self._lease,
            self._concurrency,
            stopping=self._stopping,
            patient=not until_idle,
        )
        try:
            await self._run(shift, until_idle, math.inf if max_tasks is None else max_tasks)
        finally:
            self._shift = None
            self._stopping.clear()
        return shift.stats

    async def _run(self, shift: Shift, until_idle: bool, most: float) -> None:
        refused: HopperError | None = None
        try:
            async with asyncio.TaskGroup() as shift.group:
                presence = self._beside(shift, self._presence(shift))
                try:
                    await self._work(shift, until_idle, most)
                except HopperError as error:
                    refused = error
                async with self._by_calls(shift):
                    await shift.wait_changed(lambda: not shift.in_hand)
                presence.cancel()
        except ExceptionGroup as failures:  # a defect here: what runs was cancelled, and nobody waits in vain
            await shift.abandon()
            raise failures.exceptions[0] from failures
        except asyncio.CancelledError:
            await shift.abandon()
            raise
        if self._is_present:
            await leave(self._hopper.projects, self._describe(shift))
        if refused is not None:
            raise refused

    def _beside(self, shift: Shift, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return shift.group.create_task(work)

    # Claiming.

    async def _work(self, shift: Shift, until_idle: bool, most: float) -> None:
        try:
            await self._by_streams(shift, until_idle, most)
        except MethodNotOffered:
            async with self._by_calls(shift):
                await polling.claim_all(
                    self._hopper, shift, self._claim_request, most=most, until_idle=until_idle
                )

    @contextlib.asynccontextmanager
    async def _by_calls(self, shift: Shift) -> AsyncIterator[None]:
        """Within, leases are renewed and ends delivered by calls of their own."""
        loops = (shift.claims.keep(), shift.outbox.deliver(self._hopper.work))
        tasks = [self._beside(shift, loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _by_streams(self, shift: Shift, until_idle: bool, most: float) -> None:
        backoff, said = Backoff(), ""
        while shift.in_hand or not (self._stopping.is_set() or shift.stats.claimed >= most):
            if until_idle and not shift.in_hand and not await self._found_something(shift, most):
                return
            opened = WorkOpen(queue=self.queue, worker=self.worker_id, lease_duration=to_proto(self._lease))
            stream = WorkerStream(self._hopper, shift, opened, most=most, until_idle=until_idle)
            began = asyncio.get_running_loop().time()
            try:
                await stream.run()
                continue
            except MethodNotOffered:
                raise
            except HopperError as error:
                if stream.heard or asyncio.get_running_loop().time() > began + _STEADY:
                    backoff.reset()
                    said = ""
                pause = shift.pause_after(error, backoff, self.queue, said)
                said = error.reason
            await self._pause(shift, pause)

    async def _found_something(self, shift: Shift, most: float) -> bool:
        """Claim what is ready now, by a call: only that can say that nothing is."""
        wanted = int(min(shift.room, polling.MOST_TASKS_PER_CLAIM, most - shift.stats.claimed))
        asked_at = asyncio.get_running_loop().time()
        tasks = await polling.claim(self._hopper, shift, self._claim_request(wanted, timedelta()))
        shift.take(tasks, asked_at)
        return bool(tasks)

    async def _pause(self, shift: Shift, seconds: float) -> None:
        """Wait; not for nothing, when the worker is stopped."""
        if shift.in_hand:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _claim_request(self, most: int, wait: timedelta) -> ClaimTasksRequest:
        return with_request_id(
            ClaimTasksRequest(
                queue=self.queue,
                worker=self.worker_id,
                max_tasks=most,
                worker_slots=self._concurrency,
                lease_duration=to_proto(self._lease),
                wait=to_proto(wait),
            )
        )

    # Presence.

    async def _presence(self, shift: Shift) -> None:
        if self._is_present:
            await keep_present(self._hopper.projects, lambda: self._describe(shift))

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


def _new_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:32] or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
