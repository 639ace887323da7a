"""Telling the registry that a worker is alive, how much it can take, and what it is like now."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from hopper.registry.v1.project_pb2 import Worker
from hopper.registry.v1.project_service_pb2 import HeartbeatRequest
from hopper_client.policy import Backoff
from hopper_common.errors import HopperError
from hopper_common.timestamps import from_proto, to_proto

if TYPE_CHECKING:  # stubs of grpc.aio are types only
    from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceAsyncStub

log = logging.getLogger(__name__)

_SHORTEST_INTERVAL = 0.1
_SHORTEST_TIME_TO_LIVE = timedelta(seconds=1)
LEAVE_TIMEOUT = 1.0


async def keep_present(projects: "ProjectServiceAsyncStub", describe: Callable[[], Worker]) -> NoReturn:
    """
    Send heartbeats at the interval the registry names, for ever.

    What fails is logged and tried again: a worker that cannot be seen still works.
    """
    backoff = Backoff(first=1.0, longest=10.0)
    while True:
        try:
            response = await projects.Heartbeat(HeartbeatRequest(worker=describe()))
            pause = max(_SHORTEST_INTERVAL, from_proto(response.next_heartbeat).total_seconds())
            backoff.reset()
        except HopperError as error:
            pause = backoff.next()
            log.warning("no heartbeat could be sent, trying again in %.1f s: %s", pause, error.message)
        await asyncio.sleep(pause)


async def leave(projects: "ProjectServiceAsyncStub", worker: Worker) -> None:
    """Say that a worker goes: it counts as dead within a second, and not only after its usual time to live."""
    worker.running = 0
    worker.time_to_live.CopyFrom(to_proto(_SHORTEST_TIME_TO_LIVE))
    try:
        await projects.Heartbeat(HeartbeatRequest(worker=worker), timeout=LEAVE_TIMEOUT)
    except HopperError as error:
        log.info("the registry was not told that %s goes: %s", worker.name, error.message)
