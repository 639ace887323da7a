"""
Multicast DNS, by the library zeroconf (extra `discovery`).

Announcing and looking are both off until asked for. Nothing here is fatal: a network that is not there, or cannot do
multicast, is logged, and tried again while it is wanted.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from hopper_common.clock import Clock
from hopper_federation.discovery.sightings import Sighting, announcement, is_near, read_announcement
from hopper_federation.errors import DiscoveryUnavailable

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

log = structlog.get_logger(__name__)

SERVICE_TYPE: Final = "_hopper._tcp.local."
MOST_NAMES: Final = 1000
"""How many names are resolved while looking once; a flood has more."""
_AT_ONCE: Final = 16
_RESOLVE_MS: Final = 1500
_LOOK_AFTER_CACHE: Final = 10.0
# What zeroconf remembers of everything it overhears has no bound of its own.
_MOST_CACHED: Final = 5000
_AGAIN_AFTER: Final = 30.0


async def look(wait: timedelta, clock: Clock, interfaces: Sequence[str] = ()) -> tuple[list[Sighting], int]:
    """
    Listen for announcements.

    Args:
        wait: For how long.
        interfaces: Addresses of the interfaces to use; none: all of them.

    Returns:
        What was heard, and how many names were left out.

    Raises:
        DiscoveryUnavailable: The library is not installed, or there is no network that can do it.
    """
    found: list[Sighting] = []
    names: set[str] = set()
    left_out = 0
    async with _opened(interfaces) as zc, asyncio.TaskGroup() as group:
        from zeroconf import ServiceStateChange  # noqa: PLC0415 - an extra
        from zeroconf.asyncio import AsyncServiceBrowser  # noqa: PLC0415

        places = asyncio.Semaphore(_AT_ONCE)

        async def resolve(name: str) -> None:
            async with places:
                sighting = await _resolve(zc, name, clock)
            if sighting is not None:
                found.append(sighting)

        def heard(
            zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange"
        ) -> None:
            nonlocal left_out
            # A removal is anybody's word as well: it takes nothing away.
            if state_change is ServiceStateChange.Removed or name in names:
                return
            if len(names) >= MOST_NAMES:
                left_out += 1
                return
            names.add(name)
            resolving.append(group.create_task(resolve(name)))

        resolving: list[asyncio.Task[None]] = []
        browser = AsyncServiceBrowser(zc.zeroconf, SERVICE_TYPE, handlers=[heard])
        await asyncio.sleep(wait.total_seconds())
        await browser.async_cancel()
        for task in resolving:
            task.cancel()  # who has not answered by now is left out
    return found, left_out


async def _resolve(zc: "AsyncZeroconf", name: str, clock: Clock) -> Sighting | None:
    from zeroconf import BadTypeInNameException  # noqa: PLC0415
    from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415

    try:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if not await info.async_request(zc.zeroconf, _RESOLVE_MS):
            return None
        return read_announcement(info.properties, info.parsed_scoped_addresses(), clock.now())
    except (BadTypeInNameException, ValueError, OSError) as error:  # junk, of which a network may be full
        log.debug("an announcement cannot be read", problem=type(error).__name__)
        return None


class Announcer:
    """
    Tells the network where this Hopper is, for as long as `run` runs.

    Args:
        interfaces: As of `look`.
    """

    def __init__(self, install_id: str, *, interfaces: Sequence[str] = ()) -> None:
        self._install_id = install_id
        self._interfaces = interfaces
        self._ports = (0, 0)
        self._changed = asyncio.Event()
        # Random, so that the name tells nothing and two Hoppers on a host do not meet under it.
        self._label = f"hopper-{secrets.token_hex(6)}"

    def tell(self, *, peer_port: int, pairing_port: int) -> None:
        """Say so from now on; 0: that port is not open. Both 0: say nothing."""
        if self._ports != (peer_port, pairing_port):
            self._ports = (peer_port, pairing_port)
            self._changed.set()

    async def run(self) -> None:
        """
        Announce, until cancelled.

        Raises:
            DiscoveryUnavailable: The library is not installed.
        """
        require_zeroconf()
        while True:
            try:
                await self._announce()
            except (DiscoveryUnavailable, OSError) as error:
                log.warning("cannot announce on this network, and try again", problem=str(error))
                await asyncio.sleep(_AGAIN_AFTER)

    async def _announce(self) -> None:
        """Until the cache has grown too large, or the network fails."""
        async with _opened(self._interfaces) as zc:
            info: AsyncServiceInfo | None = None
            while len(zc.zeroconf.cache.cache) < _MOST_CACHED:
                self._changed.clear()
                if info is not None:
                    await (await zc.async_unregister_service(info))
                info = self._info() if any(self._ports) else None
                if info is not None:
                    await (await zc.async_register_service(info, cooperating_responders=True))
                while not self._changed.is_set() and len(zc.zeroconf.cache.cache) < _MOST_CACHED:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), _LOOK_AFTER_CACHE)

    def _info(self) -> "AsyncServiceInfo":
        from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415

        peer_port, pairing_port = self._ports
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._label}.{SERVICE_TYPE}",
            port=peer_port or pairing_port,
            properties=announcement(self._install_id, peer_port=peer_port, pairing_port=pairing_port),
            server=f"{self._label}.local.",
            parsed_addresses=list(self._interfaces) or _own_addresses(),
        )


def _own_addresses() -> list[str]:
    """This machine's addresses on private networks."""
    import ifaddr  # noqa: PLC0415 - comes with zeroconf

    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if is_near(address) and not address.startswith(("127.", "::1", "fe80")):
                found.append(address)
    return found or [socket.inet_ntoa(b"\x7f\x00\x00\x01")]


def require_zeroconf() -> None:
    """
    Raises:
        DiscoveryUnavailable: The library is not installed.
    """
    try:
        import zeroconf  # noqa: F401, PLC0415
    except ImportError as error:
        raise DiscoveryUnavailable(
            "looking on the network needs the extra `discovery`: pip install 'hopper-mesh[discovery]'",
            missing="zeroconf",
        ) from error


@asynccontextmanager
async def _opened(interfaces: Sequence[str]) -> "AsyncIterator[AsyncZeroconf]":
    require_zeroconf()
    from zeroconf import InterfaceChoice, IPVersion  # noqa: PLC0415
    from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415

    only_v4 = bool(interfaces) and all(":" not in address for address in interfaces)
    try:
        zc = AsyncZeroconf(
            interfaces=list(interfaces) or InterfaceChoice.All,
            ip_version=IPVersion.V4Only if only_v4 else None,
        )
    except (OSError, RuntimeError) as error:
        raise DiscoveryUnavailable(f"no network here does multicast: {error}", missing="network") from error
    try:
        yield zc
    finally:
        await zc.async_close()
