"""
A TCP proxy that behaves as bad networks do, for tests: nothing needs root, and everything can be changed while
connections are open.

    async with ChaosProxy("127.0.0.1:8470") as proxy:
        ...                                 # connect to proxy.address
        proxy.hold()                        # a blackhole: connections stay open, and nothing passes either way
        proxy.there.held = False            # half-open: what the client sends arrives, and no answer comes
        proxy.flow()                        # it has healed: what was held arrives, as TCP would send it again
        proxy.back.delay = 0.2              # latency, one way
        proxy.down()                        # connections are closed, new ones too
        proxy.reset()                       # those that are open end with RST

Faults after Toxiproxy's: latency, bandwidth, slicer, slow_close, timeout, reset_peer, down.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 65_536
_UNDER_WAY: Final = 64
"""Chunks that may be on a way that delays them."""

_END: Final = b""


@dataclass
class Way:
    """
    One direction. All of it holds for connections that are open too.

    Attributes:
        delay: Seconds that everything takes.
        bytes_per_second: How much passes; 0: as much as comes.
        slices: Bytes that are passed on at a time; 0: as they come.
        close_delay: Seconds until the other side hears that this one has closed.
        passed: Bytes that came through, of all connections.
    """

    delay: float = 0.0
    bytes_per_second: float = 0.0
    slices: int = 0
    close_delay: float = 0.0
    passed: int = 0
    _flows: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._flows.set()

    @property
    def held(self) -> bool:
        """Whether nothing passes. What comes is kept, as TCP would send it again, and passes later."""
        return not self._flows.is_set()

    @held.setter
    def held(self, held: bool) -> None:
        if held:
            self._flows.clear()
        else:
            self._flows.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, until it ends."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        arriving = asyncio.ensure_future(self._arrive(under_way, writer))
        try:
            async for chunk in _chunks(reader):
                await under_way.put((asyncio.get_running_loop().time() + self.delay, chunk))
            await arriving
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._flows.wait()
            if chunk == _END:
                await asyncio.sleep(self.close_delay)
                writer.write_eof()
                return
            for piece in self._sliced(chunk):
                await self._flows.wait()
                writer.write(piece)
                await writer.drain()
                self.passed += len(piece)
                if self.bytes_per_second:
                    await asyncio.sleep(len(piece) / self.bytes_per_second)

    def _sliced(self, chunk: bytes) -> list[bytes]:
        size = self.slices or len(chunk)
        return [chunk[begin : begin + size] for begin in range(0, len(chunk), size)]


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What comes, and an empty chunk when it ends; a connection that breaks has no end."""
    while chunk := await reader.read(_CHUNK):
        yield chunk
    yield _END


class ChaosProxy:
    """
    Forwards connections to an address, however badly.

    Args:
        target: `host:port`.

    Attributes:
        target: Where new connections go from now on.
        there: The way from who connects to the target.
        back: The way of the answers.
        accepted: How many connections there were.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.there = Way()
        self.back = Way()
        self.accepted = 0
        self._up = True
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.down()  # also for who was let in, and is not being served yet
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """Where it listens, also while it is down."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def open_connections(self) -> int:
        """How many are being forwarded."""
        return len(self._open)

    # What may happen to it.

    def hold(self) -> None:
        """Let nothing pass, either way: a blackhole."""
        self.there.held = self.back.held = True

    def flow(self) -> None:
        """Let everything pass again, both ways."""
        self.there.held = self.back.held = False

    def down(self) -> None:
        """Close what is open, and whatever comes."""
        self._up = False
        self._close_all()

    def up(self) -> None:
        """Forward new connections again."""
        self._up = True

    def reset(self) -> None:
        """End what is open with RST, as a machine that has forgotten its connections does."""
        for task, writers in self._open.items():
            for writer in writers:
                _reset(writer)
            task.cancel()

    # Inside.

    def _close_all(self) -> None:
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        writers = self._open[task] = [writer]
        try:
            if self._up:
                await self._forward(reader, writers)
            for each in writers:
                each.close()
        except (OSError, asyncio.CancelledError):  # a connection that breaks is what this is about
            for each in writers:
                each.transport.abort()
        finally:
            del self._open[task]

    async def _forward(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        host, _, port = self.target.rpartition(":")
        answers, onward = await asyncio.open_connection(host, int(port))
        writers.append(onward)
        ways = [
            asyncio.ensure_future(self.there.carry(reader, onward)),
            asyncio.ensure_future(self.back.carry(answers, writers[0])),
        ]
        try:
            # The first that breaks ends both; one that ends in order leaves the other open.
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed in the meantime
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
