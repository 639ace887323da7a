"""
`grpc.health.v1`: one answer per service, and one for the server as a whole under the empty name.

grpcio ships a servicer of its own. This one differs at the end of a server's life: it tells every watcher
NOT_SERVING and then ends the stream by itself, so that a stop neither races with that news nor waits for
watchers to leave.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package ships no types
    """
    The health of one server: not serving, then serving, perhaps not for a while, then stopped for good.

    Args:
        services: Full names of the services that are asked about.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._status = NOT_SERVING
        self._stopped = False
        self._changed = asyncio.Event()

    def serve(self, *, ready: bool = True) -> None:
        """Every service answers SERVING from now on; or, where it is not ready, NOT_SERVING for a while."""
        if not self._stopped:
            self._change(SERVING if ready else NOT_SERVING)

    def stop(self) -> None:
        """Every service answers NOT_SERVING from now on, and watchers are sent away with that."""
        self._stopped = True
        self._change(NOT_SERVING)

    def _change(self, status: int) -> None:
        self._status = status
        # Whoever waits has the old event; whoever comes later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: _Context) -> Any:
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "no such service here: ask reflection which there are"
            )
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: _Context) -> AsyncIterator[Any]:
        known = request.service in self._services
        sent = None
        while True:
            # Taken together: all of it may change while the answer is being written.
            changed, stopped, status = self._changed, self._stopped, self._status
            status = status if known else SERVICE_UNKNOWN
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            if stopped:
                return
            await changed.wait()
