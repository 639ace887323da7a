"""Health, reflection, and how a server stops."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.health import Health
from hopper_common.rpc.server import build_server
from tests.common.rpc_toy import Refusal, Toy, pb, pb_grpc, registered, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def asking(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_reflection_lists_every_service() -> None:
    async with running() as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        answer = await call.read()
    assert {service.name for service in answer.list_services_response.service} == {
        "toy.v1.ToyService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_gives_the_descriptors_with_their_options() -> None:
    async with running() as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="toy.v1.ToyService")
        answer = await stub.ServerReflectionInfo(iter([request])).read()
    files = answer.file_descriptor_response.file_descriptor_proto
    assert any(b"toy.proto" in file for file in files)


@pytest.mark.parametrize(
    ("symbol", "found"),
    [
        ("hopper.common.v1.Role", True),
        ("hopper.common.v1.Role.ROLE_OWNER", True),
        ("hopper.common.v1.MethodAccess.rate_class", True),
        ("grpc.health.v1.Health.Check", True),
        ("grpc.health.v1.Health.Nothing", False),
        ("nothing.at.all", False),
    ],
)
async def test_reflection_finds_methods_and_fields_by_name(symbol: str, found: bool) -> None:
    async with running() as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        answer = await stub.ServerReflectionInfo(iter([request])).read()
    assert answer.HasField("file_descriptor_response" if found else "error_response")


@pytest.mark.parametrize("service", ["", "toy.v1.ToyService"])
async def test_health_flips_at_the_start_of_a_stop(service: str) -> None:
    async with running() as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(asking(service))).status == SERVING
        watch = stub.Watch(asking(service))
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(server.stop(600))
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 60)  # the watcher has not made it wait for its grace


async def test_a_stop_while_an_answer_is_being_written_is_told_too() -> None:
    health = Health(["toy.v1.ToyService"])
    health.serve()
    watch = health.Watch(asking(), None)  # type: ignore[arg-type]  # it does not look at its context
    assert (await anext(watch)).status == SERVING
    health.stop()  # the generator has not been asked for more yet
    assert (await anext(watch)).status == NOT_SERVING
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_health_knows_what_it_does_not_know() -> None:
    async with running() as (_, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        refusal = await Refusal.of(stub.Check(asking("toy.v1.Other")))
        assert refusal.code == "NOT_FOUND"
        watch = stub.Watch(asking("toy.v1.Other"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        watch.cancel()


async def test_a_stop_lets_a_call_in_flight_finish() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def answer(request: Any, context: Any) -> Any:
        started.set()
        await go.wait()
        return pb.Response(text="done")

    async with running(answer) as (server, channel):
        call = pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))
        await started.wait()
        stopping = asyncio.create_task(server.stop(600))
        await asyncio.sleep(0)
        go.set()
        assert (await call).text == "done"
        await asyncio.wait_for(stopping, 60)


async def test_a_stop_tells_streams_to_come_back() -> None:
    both = asyncio.Barrier(3)

    async def forever(request: Any, context: Any) -> Any:
        await both.wait()
        await asyncio.Event().wait()

    async with running(forever) as (server, channel):
        stub = pb_grpc.ToyServiceStub(channel)
        watch = stub.Watch(pb.Request(name="a"))
        await watch.read()
        chat = stub.Chat()
        await chat.write(pb.Request(name="a"))
        await both.wait()
        stopping = asyncio.create_task(server.stop(600))
        for call in (watch, chat):
            refusal = await Refusal.of(call.read())
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert refusal.metadata == {"service": "toy.v1.ToyService"}
            assert refusal.error.retry_after is not None
        await asyncio.wait_for(stopping, 60)


async def test_a_stop_ends_what_outlasts_its_grace() -> None:
    cancelled, started = asyncio.Event(), asyncio.Event()

    async def forever(request: Any, context: Any) -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with running(forever) as (server, channel):
        call = pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))
        await started.wait()
        await asyncio.wait_for(server.stop(0.01), 60)
        await asyncio.wait_for(cancelled.wait(), 60)
        refusal = await Refusal.of(call)
    assert refusal.code in ("UNAVAILABLE", "CANCELLED")


async def test_nothing_is_answered_after_a_stop(tmp_path: Path) -> None:
    server = build_server([registered(Toy())])
    address = listen_unix(server, tmp_path / "s")  # a port might be somebody else's by then
    await server.start()
    await server.stop(None)
    async with open_channel(address) as channel:
        refusal = await Refusal.of(pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a")))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SERVICE_UNAVAILABLE")
