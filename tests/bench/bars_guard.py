"""What it costs to ask who calls and what they may: the same call with and without, in the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import grpc.aio

from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_common.rpc.channel import OPTIONS
from tests.bench import message
from tests.bench.bar import Result, at_most, bar
from tests.bench.load import Load, Rounds, Side, closed_loop
from tests.bench.rig import Rig

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub

CALLERS: Final = 1
LIMIT: Final = at_most(5, 3, "%")


class Guarded(NamedTuple):
    """The server, and a stub at each of its doors."""

    pid: int
    stubs: Mapping[str, TaskServiceAsyncStub]
    key: str


@contextmanager
def _process(directory: Path) -> Iterator[tuple[int, Any]]:
    """The server of `guard_process`: its process id, and what it says of itself."""
    directory.mkdir()
    command = [sys.executable, "-m", "tests.bench.guard_process", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            process.terminate()


@asynccontextmanager
async def guarded(directory: Path) -> AsyncIterator[Guarded]:
    """That server with channels to it, while the block lasts."""
    async with AsyncExitStack() as stack:
        pid, said = stack.enter_context(_process(directory))
        ca, chain, key = ((directory / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key"))
        own = (
            *OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.ssl_target_name_override", said["name"]),
        )
        credentials = grpc.ssl_channel_credentials(ca, key, chain)
        stubs = {}
        for name, port in said["ports"].items():
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=own)
            stubs[name] = TaskServiceStub(await stack.enter_async_context(channel))
        yield Guarded(pid, stubs, said["key"])


@bar
async def guard(rig: Rig) -> Sequence[Result]:
    """An mTLS unary call, by a service and by an agent with a key, beside one that nobody asks anything of."""
    async with guarded(rig.directory / "guard") as server:
        rounds = await rig.bench().interleaved(*(_side(server, name) for name in server.stubs))
    return [_judged(rounds, name) for name in ("service", "key")]


def _side(server: Guarded, name: str) -> Side:
    call = server.stubs[name].SubmitTask
    shown = (("authorization", f"Bearer {server.key if name == 'key' else 'nobody looks at this'}"),)
    # What is sent is the same everywhere: one door alone looks at it.
    metadata = () if name == "service" else shown

    async def run(seconds: float) -> Load:
        return await closed_loop(
            lambda number: call(message.submit(number), metadata=metadata), CALLERS, seconds
        )

    return Side(name, run, {"server": server.pid})


def _judged(rounds: Rounds, name: str) -> Result:
    extra = (rounds.p50(name) / rounds.p50("open") - 1) * 100
    return LIMIT.judge(
        f"guard: what it adds to an mTLS call ({name})",
        extra,
        rounds.figures("open", name),
        note=f"how much longer a call takes, {rounds.method}; one caller, and a handler that does nothing",
        skipped=rounds.skipped,
    )
