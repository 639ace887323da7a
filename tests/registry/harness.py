"""A real registry, on a real database and a Unix socket, for one test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from pydantic import SecretStr

from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.host import Ready, serve
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.settings import HostSettings
from hopper_registry.app import SERVICE
from hopper_testing.clock import ManualClock
from tests.channels import separate_channel

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.registry.v1.access_service_pb2_grpc import AccessServiceAsyncStub
    from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceAsyncStub
    from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceAsyncStub


class RunningRegistry:
    """
    The service as its host runs it, with a clock in the test's hand.

    `start` and `stop` may alternate: the data directory stays. Channels stay open until `close`, so that whoever
    reads while the server stops hears it from the server, not from a channel that is closed meanwhile.

    Args:
        settings: Of the host, besides where the data is.
    """

    def __init__(self, directory: Path, clock: ManualClock, database_url: str, **settings: Any) -> None:
        self.clock = clock
        self.settings = HostSettings(
            data_dir=directory, registry_database=SecretStr(database_url), **settings
        )
        self.addresses: Sequence[str] = ()
        self._server = AsyncExitStack()
        self._channels = AsyncExitStack()
        self.projects: ProjectServiceAsyncStub
        self.instances: InstanceServiceAsyncStub
        self.access: AccessServiceAsyncStub

    async def start(self) -> None:
        ready = await self._server.enter_async_context(_served(self.settings, self.clock))
        self.addresses = ready.addresses
        channel = await self.keep(separate_channel(f"unix:{self.settings.socket_path}"))
        self.projects = ProjectServiceStub(channel)
        self.instances = InstanceServiceStub(channel)
        self.access = AccessServiceStub(channel)

    async def keep(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """Keep a channel open until `close`."""
        return await self._channels.enter_async_context(channel)

    async def stop(self) -> None:
        await self._server.aclose()

    async def close(self) -> None:
        await self.stop()
        await self._channels.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@asynccontextmanager
async def _served(settings: HostSettings, clock: ManualClock) -> AsyncIterator[Ready]:
    stop = asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve([SERVICE], settings, ready=started.set_result, stop=stop, clock=clock))
        yield await started
        stop.set()


async def refusal(call: Awaitable[Any], code: grpc.StatusCode, reason: str, **metadata: str) -> HopperError:
    """Make a call that must be refused so, with exactly this metadata; returns the error as clients read it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason, dict(error.metadata)) == (code, reason, metadata)
    return error


async def violations(call: Awaitable[Any]) -> Mapping[str, str]:
    """Make a call that must be INVALID_REQUEST; returns what is wrong, by field."""
    error = await refusal(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert isinstance(error, InvalidArgument)
    return {violation.field: violation.description for violation in error.violations}
