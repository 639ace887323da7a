"""Calls to this Hopper's own services: what went wrong comes as the error it is."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import grpc.aio

from hopper_common.errors import HopperError, ResourceExhausted, Unavailable
from hopper_common.rpc.errors import DeadlineExceeded, from_rpc_error

T = TypeVar("T")

CALL_SECONDS: Final = 10.0


async def made(call: Awaitable[T]) -> T:
    """
    The answer of a call.

    Raises:
        HopperError: What was answered instead.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


class Followed:
    """A stream of responses, likewise."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for response in self._stream:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    def cancel(self) -> None:
        """End it."""
        self._stream.cancel()


def passes(error: HopperError) -> bool:
    """Whether the same call may be answered otherwise a little later, with nothing done about it."""
    kinds = (Unavailable, DeadlineExceeded, ResourceExhausted)
    return isinstance(error, kinds) or error.retry_after is not None
