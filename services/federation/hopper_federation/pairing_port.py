"""
The port that strangers reach: open while somebody may have to come, closed at all other times.

It is needed for an invitation that may be redeemed, for a while after one was redeemed (its redeemer may not have heard
the answer), while the owner lets others ask, and for pairings that others have begun. All but the owner's window is
read from the store, so a restart opens the port again.

Its server has no health, no reflection, small requests, few connections, and closes each soon; a handshake that is not
finished in five seconds is cut.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_common.identity.errors import IdentityWrongState
from hopper_common.identity.store import Identity
from hopper_common.identity.tls import server_credentials
from hopper_common.rpc.guard import Guard
from hopper_common.rpc.server import HopperServer, Registered, build_server
from hopper_federation import addresses
from hopper_federation.dialling import SERVICE_PATH
from hopper_federation.own_hosts import own_hosts
from hopper_federation.store_sql import Federation

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0
SOONEST_AGAIN: Final = 0.1
CLOSE_GRACE: Final = 1.0
_BIND_ATTEMPTS: Final = 20
_BIND_PAUSE: Final = 0.1

OPTIONS: Final = {
    "grpc.max_receive_message_length": 128 * 1024,
    "grpc.max_send_message_length": 128 * 1024,
    "grpc.max_metadata_size": 8 * 1024,
    "grpc.absolute_max_metadata_size": 8
    * 1024,  # else what is twice as much is only refused more often than not
    "grpc.max_concurrent_streams": 8,
    "grpc.max_allowed_incoming_connections": 20,
    "grpc.server_handshake_timeout_ms": 5_000,
    "grpc.max_connection_idle_ms": 15_000,
    "grpc.max_connection_age_ms": 60_000,
    "grpc.max_connection_age_grace_ms": 10_000,
    "grpc.server.max_pending_requests": 100,
    "grpc.server.max_pending_requests_hard_limit": 200,
}


class Window:
    """The time for which the owner lets others ask to pair by digits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether they may now."""
        return self._until is not None and self._clock.now() < self._until

    def set(self, until: datetime | None) -> None:
        """Let them until then; None: no longer."""
        self._until = until


class PairingPort:
    """
    Opens and closes the pairing port.

    Args:
        listen: `host:port`; port 0 takes a free one. None: federation is not switched on.
        hosts: What the operator says others reach this machine by.
        offered: What strangers may ask.
    """

    def __init__(
        self,
        identity: Identity,
        federation: Federation,
        clock: Clock,
        *,
        listen: str | None,
        hosts: Sequence[str],
        offered: Sequence[Registered],
        guard: Guard,
        window: Window,
    ) -> None:
        self._identity = identity
        self._federation = federation
        self._clock = clock
        self._listen = listen
        self._hosts = tuple(hosts)
        self._offered = offered
        self._guard = guard
        self._window = window
        self._lock = asyncio.Lock()
        self._server: HopperServer | None = None
        self._port = 0
        self._holders = 0
        self._callbacks: list[Callable[[], None]] = []

    # What others need to know.

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back whenever it has been opened or closed."""
        self._callbacks.append(callback)

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()

    @property
    def is_open(self) -> bool:
        """Whether it is listened on."""
        return self._server is not None

    @property
    def port(self) -> int:
        """Which port that is; 0: none."""
        return self._port

    def addresses(self, hosts: Sequence[str] = ()) -> tuple[str, ...]:
        """Where others reach it, while it is open."""
        if not self.is_open or self._listen is None:
            return ()
        host, _ = addresses.split(self._listen, least_port=0)
        where = own_hosts(host, tuple(hosts) or self._hosts)
        return tuple(addresses.joined(each, self._port) for each in where)

    # Opening and closing.

    async def open_window(self, lifetime: timedelta) -> datetime:
        """
        Let others ask to pair by digits for a while; for no time at all closes it.

        Raises:
            IdentityWrongState: See `held`.
        """
        until = self._clock.now() + lifetime
        if lifetime:
            async with self.held():
                self._window.set(until)
        else:
            self._window.set(None)
            await self.adjust()
        return until

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """
        Open it now, and keep it open until there is something for which it is needed.

        Raises:
            IdentityWrongState: Federation is not switched on, or the port cannot be listened on.
        """
        self._holders += 1
        try:
            async with self._lock:
                await self._open()
            yield
        finally:
            self._holders -= 1

    async def adjust(self) -> None:
        """Open it if somebody may come, and close it if nobody may."""
        async with self._lock:
            held = self._holders > 0  # what they write may come after what is read here
            needed_until = await self._federation.read(lambda store: store.port_needed_until())
            if held or self._needed(needed_until):
                if self._listen is not None:
                    await self._open()
            else:
                await self._close()

    def _needed(self, until: datetime | None) -> bool:
        asked_for = until is not None and self._clock.now() < until
        return self._holders > 0 or self._window.open or asked_for

    async def run(self) -> None:
        """Keep it open while it is needed, for ever."""
        try:
            while True:
                commits = self._federation.committed.count
                try:
                    await self.adjust()
                except (HopperError, OSError) as error:
                    log.error("the pairing port is not as it should be", error=str(error))
                await self._until_changed(commits)
        finally:
            async with self._lock:
                await self._close()

    async def _until_changed(self, commits: int) -> None:
        # A commit may open it; time, which nobody tells, closes it. Where much crosses, most commits are about that.
        await asyncio.sleep(SOONEST_AGAIN)
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await self._federation.committed.wait(after=commits)
        except TimeoutError:
            return

    async def _open(self) -> None:
        if self._server is not None:
            return
        if self._listen is None:
            raise IdentityWrongState(
                "federation is not switched on: start this Hopper with HOPPER_FEDERATION=1",
                stage="off",
                verb="pair",
            )
        host, port = addresses.split(self._listen, least_port=0)
        server = build_server(self._offered, owner=self._guard, options=OPTIONS, described=False)
        self._port = await self._bind(server, host, port)
        await server.start()
        self._server = server
        self._tell()
        log.info("the pairing port is open", address=addresses.joined(host, self._port))

    async def _bind(self, server: HopperServer, host: str, port: int) -> int:
        for attempt in range(_BIND_ATTEMPTS):
            try:
                # Credentials belong to one port, so they are new each time.
                credentials = server_credentials(
                    self._identity, SERVICE_PATH, lambda: b"", require_client=False
                )
                return server.add_secure_port(addresses.joined(host, port), credentials)
            except RuntimeError:
                if attempt == _BIND_ATTEMPTS - 1:
                    raise IdentityWrongState(
                        f"cannot listen on {addresses.joined(host, port)}: another process has the port; "
                        "stop it, or choose another (HOPPER_PAIRING_LISTEN)",
                        stage="port taken",
                        verb="pair",
                    ) from None
                await asyncio.sleep(_BIND_PAUSE)  # the one that was closed just now may still let go of it
        raise AssertionError("unreachable")

    async def _close(self) -> None:
        server, self._server, self._port = self._server, None, 0
        if server is not None:
            self._tell()
            await server.stop(CLOSE_GRACE)
            log.info("the pairing port is closed")
