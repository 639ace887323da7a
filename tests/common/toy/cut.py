"""A network that fails at a chosen moment: between a client and a PostgreSQL server, on Unix sockets."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

Moment = Literal["before", "after"]

_COMMIT = b"COMMIT\0"


class Cable:
    """
    What all connections of one client go through.

    Attributes:
        cut: When to cut the next connection that sends COMMIT: "before" the server gets it, or "after" the
            server has answered it, and before the client gets the answer.
        cuts: How many have been cut.
    """

    def __init__(self, server: Path) -> None:
        self.cut: Moment | None = None
        self.cuts = 0
        self._server = server
        self._writers: list[asyncio.StreamWriter] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the client's."""
        server_reader, server_writer = await asyncio.open_unix_connection(str(self._server))
        self._writers += (writer, server_writer)
        committing = asyncio.Event()
        pumps = [
            asyncio.create_task(self._up(reader, server_writer, committing)),
            asyncio.create_task(self._down(server_reader, writer, committing)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            writer.close()
            server_writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, committing: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            if self.cut is not None and data.startswith(b"Q") and data.endswith(_COMMIT):
                if self.cut == "before":
                    self._has_cut()
                    return
                committing.set()
            writer.write(data)

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, committing: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            if committing.is_set():
                self._has_cut()
                return
            writer.write(data)

    def _has_cut(self) -> None:
        self.cut = None
        self.cuts += 1


@asynccontextmanager
async def cable(url: str) -> AsyncIterator[tuple[Cable, str]]:
    """A cable to the server of an address, and the address at its other end."""
    parts = urlsplit(url)
    (directory,) = parse_qs(parts.query)["host"]
    with tempfile.TemporaryDirectory(prefix="hop-") as here:
        made = Cable(Path(directory) / ".s.PGSQL.5432")
        listening = await asyncio.start_unix_server(made.carry, f"{here}/.s.PGSQL.5432")
        try:
            yield made, urlunsplit(parts._replace(query=urlencode({"host": here})))
        finally:
            listening.close()
            made.close()
