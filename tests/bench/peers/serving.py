"""
What every peer is asked to do, and the process around it.

A peer runs as two processes of one script, one that enqueues and one that works. Each reads commands, one JSON object a
line, from its stdin, and answers each with one line. Nothing here imports anything but the standard library and uvloop:
it runs in the environment of the peers.

| command | does |
|---|---|
| `setup` | makes tables, groups and the like |
| `enqueue` seconds, callers, size | closed loop of calls with that many jobs each → count, seconds |
| `fill` count | enqueues as fast as it can |
| `paced` rate, count | one job at a time, evenly spread, each carrying the time it was sent |
| `clear` | forgets all jobs |
| `work` count, options | works off that many jobs → count, seconds from the first start to the last |
| `listen` count, options | the same, idle in between → delays_ms from enqueueing to start, in order |
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import uvloop

SIZE: Final = 1017
_DIGITS: Final = 20
BATCH: Final = 100
CALLERS: Final = 16


class Peer(ABC):
    """
    One side of a peer: `setup`, `enqueue` and `clear` are called in one process, `work` in the other.

    Attributes:
        callers: How many callers it can be enqueued by at once.
    """

    callers = CALLERS

    async def setup(self) -> None:
        """Make what is needed; called once."""
        return

    @abstractmethod
    async def enqueue(self, bodies: Sequence[str]) -> None:
        """Enqueue jobs in one call, if it has such a call."""

    @abstractmethod
    async def clear(self) -> None:
        """Forget all jobs."""

    @abstractmethod
    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        """Run jobs until that many have started and ended; say of each when it starts, with its body."""


def body(sent: int = 0) -> str:
    """A job of 1 KB that knows when it was sent: nanoseconds of the machine's monotonic clock."""
    return f"{sent:0{_DIGITS}d}" + "x" * (SIZE - _DIGITS)


def sent_of(text: str) -> int:
    """When a job was sent."""
    return int(text[:_DIGITS])


Command = Callable[..., Awaitable[Mapping[str, Any]]]


def serve(make: Callable[[str], Awaitable[Peer]], url: str) -> None:
    """Obey commands until stdin ends."""

    async def run() -> None:
        peer = await make(url)
        await _obey(_commands(peer))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def _obey(commands: Mapping[str, Command]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed here
    print(json.dumps({"ready": True}), file=answers, flush=True)
    async for line in reader:
        request = json.loads(line)
        answer = await commands[request.pop("do")](**request)
        print(json.dumps(answer), file=answers, flush=True)


def _commands(peer: Peer) -> dict[str, Command]:
    async def setup() -> Mapping[str, Any]:
        await peer.setup()
        return {}

    async def clear() -> Mapping[str, Any]:
        await peer.clear()
        return {}

    async def enqueue(seconds: float, callers: int, size: int) -> Mapping[str, Any]:
        return await _enqueue(peer, seconds, callers, size)

    async def fill(count: int) -> Mapping[str, Any]:
        left = -(-count // BATCH)

        async def filler() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await peer.enqueue([body()] * BATCH)

        await asyncio.gather(*(filler() for _ in range(2)))
        return {"count": -(-count // BATCH) * BATCH}

    async def paced(rate: float, count: int) -> Mapping[str, Any]:
        await _paced(peer, rate, count)
        return {"count": count}

    async def work(count: int, **options: Any) -> Mapping[str, Any]:
        starts: list[float] = []
        await peer.work(count, lambda _: starts.append(time.perf_counter()), options)
        return {"count": len(starts), "seconds": starts[-1] - starts[0]}

    async def listen(count: int, **options: Any) -> Mapping[str, Any]:
        delays: list[float] = []
        await peer.work(
            count, lambda text: delays.append((time.monotonic_ns() - sent_of(text)) / 1e6), options
        )
        return {"delays_ms": delays}

    return {
        "setup": setup,
        "clear": clear,
        "enqueue": enqueue,
        "fill": fill,
        "paced": paced,
        "work": work,
        "listen": listen,
    }


async def _enqueue(peer: Peer, seconds: float, callers: int, size: int) -> Mapping[str, Any]:
    count = 0
    bodies = [body()] * size
    start = time.perf_counter()

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < start + seconds:
            await peer.enqueue(bodies)
            count += size

    await asyncio.gather(*(caller() for _ in range(min(callers, peer.callers))))
    return {"count": count, "seconds": time.perf_counter() - start}


async def _paced(peer: Peer, rate: float, count: int) -> None:
    start = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        await peer.enqueue([body(time.monotonic_ns())])
