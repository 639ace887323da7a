"""
The floor of a call: a bare grpc.aio server on uvloop, a process of its own, behind the same mTLS as Hopper's.

SubmitTask and SubmitStream answer with the task they were sent, as Hopper does, and nothing behind it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hopper.router.v1 import task_pb2
from hopper.router.v1 import task_service_pb2 as svc
from tests.bench.certificates import server_credentials


async def _submit(request: svc.SubmitTaskRequest, context: object) -> svc.SubmitTaskResponse:
    return svc.SubmitTaskResponse(task=task_pb2.Task(spec=request.spec))


async def _submit_stream(requests: object, context: Any) -> None:
    # read and write, not a generator: a fifth faster.
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(svc.SubmitStreamResponse(task=task_pb2.Task(spec=request.spec)))


def _handlers() -> grpc.GenericRpcHandler:
    submit = grpc.unary_unary_rpc_method_handler(
        _submit,
        request_deserializer=svc.SubmitTaskRequest.FromString,
        response_serializer=svc.SubmitTaskResponse.SerializeToString,
    )
    stream = grpc.stream_stream_rpc_method_handler(
        _submit_stream,
        request_deserializer=svc.SubmitStreamRequest.FromString,
        response_serializer=svc.SubmitStreamResponse.SerializeToString,
    )
    methods: dict[str, Any] = {"SubmitTask": submit, "SubmitStream": stream}
    return grpc.method_handlers_generic_handler("hopper.router.v1.TaskService", methods)


async def _serve(certificates: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 10_000)])
    server.add_generic_rpc_handlers((_handlers(),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(certificates))
    await server.start()
    gc.collect()
    gc.freeze()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
