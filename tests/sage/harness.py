"""A real Sage, on a real journal and a Unix socket, in the test's own process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio

from hopper.sage.v1 import sage_service_pb2_grpc
from hopper_common.clock import Clock, SystemClock
from hopper_common.database import Database
from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.server import build_server
from hopper_sage.app import MIGRATIONS, NAME, registered
from hopper_sage.journal import SqlJournal
from hopper_sage.mind import ReferenceMind
from hopper_sage.ports import Mind
from hopper_sage.servicer import SageServicer
from hopper_sage.tables import METADATA

MakeServicer = Callable[[Mind, SqlJournal, Clock], SageServicer]


@asynccontextmanager
async def opened_journal(directory: Path) -> AsyncIterator[SqlJournal]:
    """The journal in *directory*."""
    database = await Database.open(
        directory / "sage.db", metadata=METADATA, migrations=MIGRATIONS, service=NAME
    )
    try:
        yield SqlJournal(database)
    finally:
        await database.close()


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    mind: Mind | None = None,
    make: MakeServicer = SageServicer,
    clock: Clock | None = None,
) -> AsyncIterator[str]:
    """A Sage that keeps its journal in *directory*, behind the server that every Hopper service has; its address."""
    async with opened_journal(directory) as journal:
        servicer = make(mind or ReferenceMind("1"), journal, clock or SystemClock())
        server = build_server([registered(servicer)])
        address = listen_unix(server, directory / "sage.sock")
        await server.start()
        try:
            yield address
        finally:
            await server.stop(None)
            await servicer.close()


@asynccontextmanager
async def serving_bare(
    directory: Path, servicer: sage_service_pb2_grpc.SageServiceServicer
) -> AsyncIterator[str]:
    """Any servicer behind gRPC's own server, which checks nothing; its address."""
    server = grpc.aio.server()
    sage_service_pb2_grpc.add_SageServiceServicer_to_server(servicer, server)
    address = f"unix:{directory / 'bare.sock'}"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


class InProcess:
    """
    A Sage of this process that can be restarted; `sage_conformance.Stage`. Close it with `close`.

    Args:
        open_: Opens it, the first time and again after each stop.
    """

    def __init__(self, address: str, open_: Callable[[], "AsyncIterator[str]"]) -> None:
        self.address = address
        self._open = open_
        self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Open it."""
        await self._stack.enter_async_context(asynccontextmanager(self._open)())

    async def close(self) -> None:
        """Stop it."""
        await self._stack.aclose()

    def restart(self, *, kill: bool) -> None:
        """Close it and open it again; called from another thread."""

        async def again() -> None:
            await self.close()
            await self.start()

        asyncio.run_coroutine_threadsafe(again(), self._loop).result()
