"""Neighbours of the router for its tests: real servers on a socket, that can be taken down and brought back."""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.server import HopperServer, Registered, build_server


class Neighbour:
    """A service at a fixed address; what it knows outlives its server, as a database would."""

    def __init__(self, path: Path, *services: tuple[ServiceDescriptor, Any, Any]) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._services = [Registered.of(*service) for service in services]
        self._server: HopperServer | None = None

    async def start(self) -> None:
        self._server = build_server(self._services)
        listen_unix(self._server, self._path)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
