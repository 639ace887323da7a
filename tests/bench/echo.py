"""The floor of a call: a bare grpc.aio server, a process of its own, that answers SubmitTask with nothing behind it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from hopper.router.v1 import task_service_pb2 as svc
from hopper_testing.processes import temporary_directory


@dataclass(frozen=True, slots=True)
class Echo:
    """Where it listens."""

    address: str


async def _answer(request: svc.SubmitTaskRequest, context: object) -> svc.SubmitTaskResponse:
    return svc.SubmitTaskResponse()


def _handlers() -> grpc.GenericRpcHandler:
    submit = grpc.unary_unary_rpc_method_handler(
        _answer,
        request_deserializer=svc.SubmitTaskRequest.FromString,
        response_serializer=svc.SubmitTaskResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("hopper.router.v1.TaskService", {"SubmitTask": submit})


@contextmanager
def echo_server() -> Iterator[Echo]:
    """A server while the block lasts."""
    with temporary_directory() as directory:
        address = f"unix:{directory}/echo.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.echo", address], stdout=subprocess.PIPE
        )
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the echo server did not start")
            yield Echo(address)
        finally:
            process.terminate()
            process.wait()


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 10_000)])
    server.add_generic_rpc_handlers((_handlers(),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))
