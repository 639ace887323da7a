"""The registry as the router's port has it: the watched copy, kept over a restart, and the one thing it reports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Final

import grpc

from hopper.registry.v1 import instance_pb2, instance_service_pb2
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper_common.database import Database
from hopper_common.errors import NotFound
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import to_proto
from hopper_router.convert import instance_from_registry
from hopper_router.errors import RegistryUnknown
from hopper_router.model import Instance
from hopper_router.ports import RunReport
from hopper_router.registry_watch import RegistryWatch
from hopper_router.store_sql import Store

_REPORT_TIMEOUT: Final = 5.0
_CACHE_KEY: Final = "registry"


class RegistryClient(RegistryWatch):
    """
    Follows the registry; `ports.Registry`.

    Args:
        ask_timeout: How long the registry may take to answer, and then its streams to bring what it has said.
    """

    def __init__(
        self, channel: grpc.aio.Channel, db: Database, *, ask_timeout: timedelta = timedelta(seconds=1)
    ) -> None:
        super().__init__(channel, StoredCopy(db), ask_timeout=ask_timeout)
        self._instance_service = InstanceServiceStub(channel)

    async def refresh_instance(self, name: str) -> bool:
        """
        Whether there is such an instance; the copy then says of it what the registry says.

        The registry is asked once, and the stream then gets a while to bring what the registry has said: all of it, for
        an instance that was created and started a moment ago is first heard of as not started. When the registry does
        not answer, the copy counts, if it has the instance.

        Raises:
            RegistryUnknown: It is not known here and the registry does not answer, or the copy does not come to say
                what the registry says: nobody can go by it.
        """
        now = await self._as_it_is(name)
        if now is None:
            return False
        try:
            async with asyncio.timeout(self._ask_timeout.total_seconds()):
                await self._hear_of(now)
        except TimeoutError:
            raise RegistryUnknown(
                f"the registry knows more of {name} than it has told here", service="registry"
            ) from None
        return True

    async def _as_it_is(self, name: str) -> Instance | None:
        """What the registry says of an instance; None: there is none, or the copy counts."""
        known = name in self.current.instances
        request = instance_service_pb2.GetInstanceRequest(name=name)
        try:
            answer = await self._instance_service.GetInstance(
                request, timeout=self._ask_timeout.total_seconds(), wait_for_ready=not known
            )
        except grpc.aio.AioRpcError as error:
            if known or isinstance(from_rpc_error(error), NotFound):
                return None
            raise RegistryUnknown(
                f"the registry does not answer, so that nobody can say whether there is {name}",
                service="registry",
            ) from error
        return instance_from_registry(answer.instance)

    async def _hear_of(self, instance: Instance) -> None:
        """Wait until the copy has an instance as it is."""
        while True:
            seen = self.changed.count
            known = self.current.instances.get(instance.name)
            if known is not None and replace(known, start_time=instance.start_time) == instance:
                return
            await self.changed.wait(after=seen)

    async def report_stopped(self, report: RunReport) -> None:
        """Say that nothing runs in a STOPPING instance any more."""
        run = instance_pb2.RunSummary(
            instance=report.instance,
            succeeded=report.succeeded,
            failed=report.failed,
            returned=report.returned,
            start_time=to_proto(report.start_time),
            end_time=to_proto(report.end_time),
        )
        request = instance_service_pb2.ReportInstanceRequest(
            name=report.instance, state=instance_pb2.Instance.STATE_STOPPED, run=run
        )
        try:
            await self._instance_service.ReportInstance(request, timeout=_REPORT_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


class StoredCopy:
    """The last copy of the registry, in the router's own database: it still decides when it starts alone."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self) -> bytes | None:
        """What was saved last."""
        return await self._db.read(lambda conn: Store(conn).value(_CACHE_KEY))

    async def save(self, body: bytes) -> None:
        """Keep this instead."""
        await self._db.write(lambda conn: Store(conn).put_value(_CACHE_KEY, body))
