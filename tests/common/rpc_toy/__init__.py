"""A toy service, compiled from `toy.proto` when the tests run, and what the tests of `hopper_common.rpc` share."""

import importlib.resources
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_tools import protoc

import hopper.common.v1.options_pb2  # noqa: F401 - toy_pb2 needs its descriptor in the pool
from hopper_common.errors import HopperError
from hopper_common.rpc.address import listen_tcp
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.rpc.interceptor import UNARY_CAP
from hopper_common.rpc.server import HopperServer, Registered, build_server

_HERE = Path(__file__).parent
PROTOS = _HERE.parents[2] / "protos"


def _compile() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as out:
        arguments = [
            "protoc",
            f"--proto_path={_HERE}",
            f"--proto_path={PROTOS}",
            f"--proto_path={importlib.resources.files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            "toy.proto",
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("toy.proto does not compile")
        sys.path.insert(0, out)
        try:
            return import_module("toy_pb2"), import_module("toy_pb2_grpc")
        finally:
            sys.path.remove(out)


pb, pb_grpc = _compile()

SERVICE = pb.DESCRIPTOR.services_by_name["ToyService"]
FORGETFUL = pb.DESCRIPTOR.services_by_name["ForgetfulService"]

Unary = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


async def echo(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """Answer with the name of the request."""
    return pb.Response(text=request.name)


_Generated: Any = pb_grpc.ToyServiceServicer


class Toy(_Generated):  # type: ignore[misc]  # its base is made at run time
    """Echoes, unless a test says what else to do with each request. `Unwritten` is left to the generated base."""

    def __init__(self, answer: Unary = echo) -> None:
        self.answer = answer

    async def Put(self, request: Any, context: Any) -> Any:
        return await self.answer(request, context)

    async def Upload(self, request: Any, context: Any) -> Any:
        return await self.answer(request, context)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.Response(text="first")
        yield await self.answer(request, context)

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Any:
        last = pb.Request()
        async for request in requests:
            last = request
        return await self.answer(last, context)

    async def Assemble(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return await self.Collect(requests, context)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self.answer(request, context)


def registered(servicer: object) -> Registered:
    return Registered.of(SERVICE, servicer, pb_grpc.add_ToyServiceServicer_to_server)


@asynccontextmanager
async def running(
    answer: Unary = echo, *, unary_cap: timedelta = UNARY_CAP
) -> AsyncIterator[tuple[HopperServer, grpc.aio.Channel]]:
    """A real server with the toy on it, and a real channel to it."""
    server = build_server([registered(Toy(answer))], unary_cap=unary_cap)
    address = listen_tcp(server, "127.0.0.1:0")
    await server.start()
    async with open_channel(address) as channel:
        try:
            yield server, channel
        finally:
            await server.stop(None)


@asynccontextmanager
async def toy(answer: Unary = echo, *, unary_cap: timedelta = UNARY_CAP) -> AsyncIterator[Any]:
    """A stub of a running toy. `stub.raw(method, bytes)` calls without the stub's own checks."""
    async with running(answer, unary_cap=unary_cap) as (_, channel):
        stub = pb_grpc.ToyServiceStub(channel)
        stub.raw = lambda method, raw: channel.unary_unary(f"/toy.v1.ToyService/{method}")(raw)
        yield stub


class Refusal:
    """
    What a call was refused with.

        async with toy() as stub:
            refusal = await Refusal.of(stub.Put(request))
    """

    def __init__(self, raised: grpc.aio.AioRpcError) -> None:
        self.code = raised.code().name
        self.text = raised.details() or ""
        self.error: HopperError = from_rpc_error(raised)
        self.reason = self.error.reason
        self.metadata = dict(self.error.metadata)
        self.paths = [violation.field for violation in getattr(self.error, "violations", ())]

    @classmethod
    async def of(cls, call: Awaitable[Any]) -> "Refusal":
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return cls(caught.value)
