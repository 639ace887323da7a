"""An HTTP server on this machine that behaves as it is told, one request after another."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.router.llm.published import Sent

Behaviour = Callable[[Sent, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """
    What came, and what to do next; the last behaviour is kept up.

    Attributes:
        sent: Every request that arrived whole.
        written: Bytes of the last endless body that went out before the other side had enough.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.behaviours: list[Behaviour] = []
        self.written = 0
        self.port = 0
        self.arrived = asyncio.Event()
        self.closing = asyncio.Event()

    def then(self, *behaviours: Behaviour) -> None:
        """Behave like this from the next request on."""
        self.behaviours = list(behaviours)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (sent := await _request(reader)) is not None:
                self.sent.append(sent)
                self.arrived.set()
                behave = self.behaviours[0]
                if len(self.behaviours) > 1:
                    self.behaviours.pop(0)
                await behave(sent, writer)
                if writer.is_closing():
                    break
        writer.close()

    # Behaviours.

    def slow(self) -> Behaviour:
        """Says nothing for as long as the test runs."""

        async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
            await self.closing.wait()
            writer.close()

        return behave

    def drip(self) -> Behaviour:
        """Sends a byte again and again: no pause is long, and there is no end."""

        async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
            while not self.closing.is_set():
                writer.write(b" ")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), 0.02)

        return behave

    def endless(self) -> Behaviour:
        """Sends and sends."""

        async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
            self.written = 0
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while self.written < 2**28:
                    writer.write(b" " * 65_536)
                    self.written += 65_536
                    await writer.drain()
            writer.close()

        return behave


def says(body: Any, status: int = 200, **headers: str) -> Behaviour:
    """Answers with JSON, or with text as it is."""
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Status", "content-type: application/json"]
        lines += [f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    return behave


def answers(make: Callable[[Sent], Any]) -> Behaviour:
    """Answers with what it makes of the request."""

    async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await says(make(sent))(sent, writer)

    return behave


async def resets(sent: Sent, writer: asyncio.StreamWriter) -> None:
    """Breaks the connection."""
    writer.transport.abort()


def truncates(body: Any) -> Behaviour:
    """Sends half of what it announced, and is gone."""
    content = json.dumps(body).encode()

    async def behave(sent: Sent, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\n\r\n".encode())
        writer.write(content[: len(content) // 2])
        await writer.drain()
        writer.close()

    return behave


async def _request(reader: asyncio.StreamReader) -> Sent | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Sent(method, path, headers, content)


@asynccontextmanager
async def a_server(
    behaviours: Sequence[Behaviour] = (), *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server on a port that the system gives it."""
    server = Server()
    server.then(*behaviours)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.closing.set()
        listening.close()
