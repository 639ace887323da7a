"""
This Hopper's claims on the tasks that are with peers: kept for as long as the router is to be told how one ends.

    every 20 s ── RenewClaims ──► kept
                       └─ lost ──► claimed again: the token is new, the hand-over goes on
                                └► the task is over here: the peer is told that it is no longer wanted
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog

from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper.router.v1.task_pb2 import TASK_VIEW_FULL, Task
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.errors import HopperError, NotFound
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.calls import CALL_SECONDS, made
from hopper_federation.delegation.desks import Desks
from hopper_federation.delegation.model import Delegation
from hopper_federation.delegation.presence import WORKER

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = structlog.get_logger(__name__)

CLAIM_LEASE: Final = timedelta(seconds=60)
RENEW_EVERY: Final = 20.0
_BATCH: Final = 1000
_AT_ONCE: Final = 20

ENDED: Final = frozenset({Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_REJECTED, Task.STATE_CANCELLED})


class Claims:
    """Runs beside the server. `keep` is one round."""

    def __init__(self, channel: grpc.aio.Channel, desks: Desks, *, every: float = RENEW_EVERY) -> None:
        self._work: WorkServiceAsyncStub = WorkServiceStub(channel)
        self._tasks: TaskServiceAsyncStub = TaskServiceStub(channel)
        self._desks = desks
        self._every = every
        self._with: Counter[str] = Counter()

    def open_with(self, install_id: str) -> int:
        """How many tasks are with a peer, as of the last round."""
        return self._with[install_id]

    async def run(self) -> None:
        """Keep them for ever."""
        while True:
            try:
                await self.keep()
            except HopperError as error:
                log.warning("claims are not renewed", reason=error.reason, message=error.message)
            await asyncio.sleep(self._every)

    async def keep(self) -> None:
        """Renew each, and look after those that are lost."""
        held = await self._desks.read(lambda rows: rows.held())
        self._with = Counter(each.peer for each in held if each.state.open)
        lost: list[Delegation] = []
        for start in range(0, len(held), _BATCH):
            lost += await self._renew(held[start : start + _BATCH])
        for start in range(0, len(lost), _AT_ONCE):
            await asyncio.gather(*(self._look_after(each) for each in lost[start : start + _AT_ONCE]))

    async def _look_after(self, lost: Delegation) -> None:
        try:
            await self.again(lost)
        except HopperError as error:  # the next round tries again; the others have theirs meanwhile
            log.warning("a claim is not taken again", delegation=lost.id, reason=error.reason)

    async def _renew(self, held: Sequence[Delegation]) -> list[Delegation]:
        """Returns those that are lost."""
        request = wsvc.RenewClaimsRequest(lease_duration=to_proto(CLAIM_LEASE))
        for each in held:
            request.claims.add(task=each.task, fencing_token=each.token)
        answer = await made(self._work.RenewClaims(request, timeout=CALL_SECONDS))
        results = zip(held, answer.results, strict=True)
        return [each for each, result in results if result.HasField("error")]

    async def again(self, delegation: Delegation) -> bool:
        """
        Claim the task of a hand-over again, after the claim was lost.

        Returns:
            Whether there still is something to claim; if not, its hand-over knows.

        Raises:
            HopperError: Neither can be said now.
        """
        task = await self.task(delegation.task)
        if task is None or task.state in ENDED:
            why = "the task is over" if task is None or not task.failure.message else task.failure.message
            await self._desks.write(lambda sitting: sitting.desk.cancel(delegation.id, why, by_router=True))
            return False
        if task.claim.fencing_token == delegation.token:
            return True
        queue = delegation.task.partition("/tasks/")[0]
        request = wsvc.ClaimTasksRequest(
            queue=queue, worker=WORKER, task=delegation.task, lease_duration=to_proto(CLAIM_LEASE)
        )
        answer = await made(self._work.ClaimTasks(request, timeout=CALL_SECONDS))
        token = answer.tasks[0].claim.fencing_token
        await self._desks.write(lambda sitting: sitting.desk.claimed(delegation.task, token))
        log.info("a task that is with a peer was claimed again", delegation=delegation.id)
        return True

    async def task(self, name: str) -> Task | None:
        """A task, whole; None: there is none."""
        request = tsvc.GetTaskRequest(name=name, view=TASK_VIEW_FULL)
        try:
            return (await made(self._tasks.GetTask(request, timeout=CALL_SECONDS))).task
        except NotFound:
            return None
