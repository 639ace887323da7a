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
from tests.bench.pairs import Call, Pairs, paired
from tests.bench.rig import Rig

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub

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
        pairs = await paired(rig.pace, _sides(server), server.pid)
    return [_judged(pairs, name) for name in ("service", "key")]


def _sides(server: Guarded) -> dict[str, Call]:
    """What is compared is sent alike: beside calls with a key, the open door is sent that key too."""
    shown = (("authorization", f"Bearer {server.key}"),)
    return {
        "service": _call(server.stubs["service"], ()),
        _beside("service"): _call(server.stubs["open"], ()),
        "key": _call(server.stubs["key"], shown),
        _beside("key"): _call(server.stubs["open"], shown),
    }


def _beside(name: str) -> str:
    return f"open, sent what {name} is"


def _call(stub: TaskServiceAsyncStub, metadata: Sequence[tuple[str, str]]) -> Call:
    return lambda number: stub.SubmitTask(message.submit(number), metadata=metadata)


def _judged(pairs: Pairs, name: str) -> Result:
    beside = _beside(name)
    wall, cpu = pairs.wall(name, beside), pairs.cpu(name, beside)
    return LIMIT.judge(
        f"guard: what it adds to an mTLS call ({name})",
        wall.median,
        {
            beside: pairs.figures(beside),
            name: pairs.figures(name),
            "added, %": wall._asdict(),
            "added to the server's processor time, %": cpu._asdict(),
        },
        note=f"how much longer a call takes, {pairs.method}; one caller, and a handler that does nothing",
        skipped=pairs.skipped,
    )
