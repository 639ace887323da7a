"""`hopper.router.v1.QueueService`: the queues as an operator sees them, and the care of what is finished."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from hopper.router.v1 import queue_service_pb2 as svc
from hopper.router.v1.queue_service_pb2_grpc import QueueServiceServicer
from hopper_router.engine import Engine
from hopper_router.queue_stats import MINUTE, Numbers
from hopper_router.retention import Retention
from hopper_router.servicer import Context

_DEFAULT_LIMIT: Final = 20


class QueueServicer(QueueServiceServicer):
    """Translates; `queue_stats` counts, `retention` archives."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._retention = Retention(engine.db, engine.clock)

    async def GetQueueStats(
        self, request: svc.GetQueueStatsRequest, context: Context
    ) -> svc.GetQueueStatsResponse:
        engine = self._engine
        await engine.queues.catch_up()
        now = engine.clock.now()
        limit = request.limit or _DEFAULT_LIMIT
        answer = engine.queues.numbers(engine.registry.current, queue=request.queue, limit=limit)
        second = int(now.timestamp())
        response = svc.GetQueueStatsResponse(
            total=_to_proto(answer.total, second),
            projects=[_to_proto(numbers, second) for numbers in answer.projects],
            keys=[_to_proto(numbers, second) for numbers in answer.keys],
        )
        response.time.FromDatetime(now)
        return response

    async def ArchiveTasks(
        self, request: svc.ArchiveTasksRequest, context: Context
    ) -> AsyncIterator[svc.ArchiveTasksResponse]:
        older_than = request.older_than.ToTimedelta()
        async for progress in self._retention.archive(older_than, dry_run=request.dry_run):
            yield svc.ArchiveTasksResponse(total=progress.total, moved=progress.moved, done=progress.done)


def _to_proto(numbers: Numbers, now: int) -> svc.QueueStats:
    stats = svc.QueueStats(
        name=numbers.name,
        states=numbers.states,
        waits=numbers.waits,
        ready=numbers.ready,
        add_rate=numbers.added / MINUTE,
        start_rate=numbers.started / MINUTE,
        finish_rate=numbers.ended / MINUTE,
        failed=numbers.failed,
    )
    if numbers.oldest is not None:
        stats.oldest_ready.FromSeconds(max(now - numbers.oldest, 0))
    return stats
