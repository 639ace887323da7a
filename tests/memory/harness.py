"""A real memory, on a real database and a Unix socket, for one test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.memory.v1.learning_service_pb2_grpc import LearningServiceStub
from hopper.memory.v1.working_service_pb2_grpc import WorkingMemoryServiceStub
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.host import Ready, serve
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.settings import HostSettings
from hopper_memory.app import SERVICE
from hopper_testing.clock import ManualClock
from tests.channels import separate_channel

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceAsyncStub
    from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceAsyncStub
    from hopper.memory.v1.learning_service_pb2_grpc import LearningServiceAsyncStub
    from hopper.memory.v1.working_service_pb2_grpc import WorkingMemoryServiceAsyncStub


class RunningMemory:
    """
    The service as its host runs it, with a clock in the test's hand.

    `start` and `stop` may alternate: the data directory stays. Channels stay open until `close`, so that whoever
    reads while the server stops hears it from the server, not from a channel that is closed meanwhile.
    """

    def __init__(self, directory: Path, clock: ManualClock) -> None:
        self.clock = clock
        self.directory = directory
        self._server = AsyncExitStack()
        self._channels = AsyncExitStack()
        self.episodes: EpisodicMemoryServiceAsyncStub
        self.feedback: FeedbackServiceAsyncStub
        self.learning: LearningServiceAsyncStub
        self.working: WorkingMemoryServiceAsyncStub

    async def start(self) -> None:
        address = await self._server.enter_async_context(_served(self.directory, self.clock))
        channel = await self._channels.enter_async_context(separate_channel(address))
        self.episodes = EpisodicMemoryServiceStub(channel)
        self.feedback = FeedbackServiceStub(channel)
        self.learning = LearningServiceStub(channel)
        self.working = WorkingMemoryServiceStub(channel)

    async def stop(self) -> None:
        await self._server.aclose()

    async def close(self) -> None:
        await self.stop()
        await self._channels.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@asynccontextmanager
async def _served(directory: Path, clock: ManualClock) -> AsyncIterator[str]:
    stop = asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    settings = HostSettings(data_dir=directory)
    async with asyncio.TaskGroup() as group:
        group.create_task(serve([SERVICE], settings, ready=started.set_result, stop=stop, clock=clock))
        yield (await started).addresses[0]
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
