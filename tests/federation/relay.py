"""A TCP relay in a test's hand: an address that stays while what is behind it changes, dies, or is not heard."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self


class Relay:
    """
    Forwards connections to another port of this machine.

    Attributes:
        target: The address that connections are forwarded to from now on; empty: they are closed at once.
        lose_when: Asked whenever something comes back; once it says yes, that is thrown away and the connection is
            closed, and it is asked no more.
        lost: How often that has happened.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.lose_when: Callable[[], bool] | None = None
        self.lost = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._open):
            writer.close()
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(OSError):
            if self.target:
                await self._forward(reader, writer)
        writer.close()
        self._open.discard(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        self._open.add(back)
        both = [
            asyncio.ensure_future(_copy(reader, back)),
            asyncio.ensure_future(self._answers(there, writer)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        back.close()
        self._open.discard(back)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            if self.lose_when is not None and self.lose_when():
                self.lose_when = None
                self.lost += 1
                return
            writer.write(content)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while content := await reader.read(65536):
        writer.write(content)
        await writer.drain()
