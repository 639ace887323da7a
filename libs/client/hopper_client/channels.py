"""
The channel of a client, and the interceptors that make its calls as `hopper_client.policy` says.

There are two sets, for `grpc.aio` and for blocking `grpc`, each a loop around the same decisions. Streams are not
retried here, because only the caller knows where to go on: see `hopper_client.watch`, `hopper_client.artifacts`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from hopper_client.credentials import Credentials, credentials_for
from hopper_client.errors import translate
from hopper_client.policy import Attempts
from hopper_common.errors import HopperError
from hopper_common.rpc.address import check_address, check_secure_address
from hopper_common.rpc.channel import ACCEPTED, OPTIONS

REFUSAL_SECONDS = 0.2
"""How long the rest of a refusal may take to arrive once it has begun to."""


def open_async(address: str, timeout: float, key_file: Path | None = None) -> grpc.aio.Channel:
    """
    A `grpc.aio` channel that follows the policy; it connects with its first call.

    Raises:
        AddressRefused: Malformed, or of another machine and to be spoken to in plain text.
        Unauthenticated: The credentials in the environment cannot be used.
    """
    credentials = credentials_for(address, key_file)
    calls = _Calls(address, timeout, credentials)
    options = (*OPTIONS, *credentials.options())
    # grpc.aio sorts interceptors by class and takes each for one shape only.
    interceptors = [
        _AsyncUnary(calls),
        _AsyncClientStream(calls),
        _AsyncServerStream(calls),
        _AsyncBothStreams(calls),
    ]
    secure = credentials.channel_credentials()
    if secure is None:
        return grpc.aio.insecure_channel(check_address(address), options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(
        check_secure_address(address), secure, options=options, interceptors=interceptors
    )


def open_blocking(address: str, timeout: float, key_file: Path | None = None) -> grpc.Channel:
    """The same, for threads."""
    credentials = credentials_for(address, key_file)
    options = (*OPTIONS, *credentials.options())
    secure = credentials.channel_credentials()
    if secure is None:
        channel = grpc.insecure_channel(check_address(address), options=options)
    else:
        channel = grpc.secure_channel(check_secure_address(address), secure, options=options)
    return grpc.intercept_channel(channel, _Blocking(_Calls(address, timeout, credentials)))


@dataclass(frozen=True, slots=True)
class _Calls:
    """What all calls of one client have in common."""

    address: str
    timeout: float
    credentials: Credentials

    def attempts(self, details: Any, request: Message) -> Attempts[Message]:
        return Attempts(
            _method(details), request, timeout=details.timeout, default=self.timeout, now=time.monotonic()
        )

    def read(self, error: grpc.RpcError, details: Any, seconds: float | None) -> HopperError:
        return translate(error, method=_method(details), address=self.address, seconds=seconds)


def _method(details: Any) -> str:
    # grpc.aio hands out bytes, whatever its types say.
    method = details.method
    return method.decode() if isinstance(method, bytes) else str(method)


class _AsyncUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        attempts = self._calls.attempts(client_call_details, request)
        authorized = self._calls.credentials.on(client_call_details)
        while True:
            details = authorized._replace(timeout=attempts.remaining(time.monotonic()))
            try:
                return await (await continuation(details, attempts.request))
            except grpc.aio.AioRpcError as error:
                made = self._calls.read(error, details, attempts.seconds)
                pause = attempts.pause_after(made, time.monotonic())
                if pause is None:
                    raise made from error
            await asyncio.sleep(pause)


class _AsyncClientStream(grpc.aio.StreamUnaryClientInterceptor):
    """
    Holds the stream up after its first message until the server has said, by its metadata, that it takes it.

    Else a refusal could come while more is written, and grpc.aio would tell that writing failed, and not why.
    """

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_stream_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        taken = asyncio.Event()
        authorized = self._calls.credentials.on(client_call_details)
        call = await continuation(authorized, _after_first(request_iterator, taken))
        answered = asyncio.ensure_future(_until_taken(call))
        answered.add_done_callback(lambda _: taken.set())
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise self._calls.read(error, client_call_details, client_call_details.timeout) from error
        finally:
            answered.cancel()
        return call


async def _until_taken(call: Any) -> None:
    """Return when the server has said that it wants the rest of a stream, or that it is over."""
    said = await call.initial_metadata()
    if said is None or not set(ACCEPTED) <= set(said):
        # A refusal begins with metadata as well. Or it is a server that does not say that it has taken a stream.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFUSAL_SECONDS):
                await call.code()


async def _after_first(requests: AsyncIterator[Any], taken: asyncio.Event) -> AsyncIterator[Any]:
    async for request in requests:
        yield request
        await taken.wait()


class _AsyncServerStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        call = await continuation(self._calls.credentials.on(client_call_details), request)
        return _translated(call, self._calls, client_call_details)


class _AsyncBothStreams(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_stream_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        call = await continuation(self._calls.credentials.on(client_call_details), request_iterator)
        return _translated(call, self._calls, client_call_details)


async def _translated(call: Any, calls: _Calls, details: Any) -> AsyncIterator[Any]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise calls.read(error, details, details.timeout) from error


class _Blocking(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        attempts = self._calls.attempts(client_call_details, request)
        authorized = self._calls.credentials.on(client_call_details)
        while True:
            details = authorized._replace(timeout=attempts.remaining(time.monotonic()))
            try:
                call = continuation(details, attempts.request)
                call.result()
                return call
            except grpc.RpcError as error:
                made = self._calls.read(error, details, attempts.seconds)
                pause = attempts.pause_after(made, time.monotonic())
                if pause is None:
                    raise made from error
            time.sleep(pause)

    def intercept_stream_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        call = continuation(self._calls.credentials.on(client_call_details), request_iterator)
        try:
            call.result()
        except grpc.RpcError as error:
            raise self._calls.read(error, client_call_details, client_call_details.timeout) from error
        return call

    def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        authorized = self._calls.credentials.on(client_call_details)
        return _BlockingStream(continuation(authorized, request), self._calls, client_call_details)

    def intercept_stream_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        call = continuation(self._calls.credentials.on(client_call_details), request_iterator)
        return _BlockingStream(call, self._calls, client_call_details)


class _BlockingStream:
    """A stream of responses that fails with Hopper's errors, and is the call in everything else."""

    def __init__(self, call: Any, calls: _Calls, details: Any) -> None:
        self._call = call
        self._calls = calls
        self._details = details

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise self._calls.read(error, self._details, self._details.timeout) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)
