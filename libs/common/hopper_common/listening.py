"""
Where a process is called, and by whom: it opens each door with the guard that fits it.

| where | who | how they prove it |
|---|---|---|
| the Unix socket | the owner | they can open it |
| `HOPPER_LISTEN` | people and agents | a key or a token; over TLS where others than this machine can reach it |
| `<service>.mtls.sock`, `HOPPER_SERVICES_LISTEN` | services of other processes | a certificate of this Hopper |
"""

from dataclasses import dataclass
from typing import Final

import grpc

from hopper_common.auth.bearer import Bearers
from hopper_common.auth.directory import Directory
from hopper_common.auth.rates import Limiter, Rate, Rates
from hopper_common.clock import Clock, WallClock
from hopper_common.identity.spiffe import SpiffeId
from hopper_common.identity.store import Identity
from hopper_common.identity.tls import own_roots, server_credentials
from hopper_common.rpc.address import is_loopback, listen_tcp, listen_tls, listen_unix, split
from hopper_common.rpc.guard import Auditing, CallerGuard, Callers, People, Services
from hopper_common.rpc.presented import Certificates
from hopper_common.rpc.server import Door, HopperServer
from hopper_common.settings import HostSettings
from hopper_common.startup import AddressRefused

PEOPLE: Final = "/svc/api"
"""Whose certificate people are shown. No service has that name, so it lets nobody in anywhere."""
SOCKETS: Final = "sockets"
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Listening:
    """
    What it takes to open a process's doors.

    Attributes:
        here: The services that run in it.
    """

    settings: HostSettings
    here: frozenset[str]
    identity: Identity
    directory: Directory
    audit: Auditing
    clock: Clock

    def listen(self, server: HopperServer) -> list[str]:
        """
        Open all that the settings say.

        Returns:
            The addresses, the owner's socket first.

        Raises:
            AddressRefused: One cannot be listened on.
            IdentityRefused: There is no certificate to show.
        """
        settings = self.settings
        limiter, bearers = Limiter(rates(settings)), self._bearers()

        def door(callers: Callers) -> Door:
            return server.door(CallerGuard(callers, self.directory, limiter, self.audit, self.clock))

        addresses = [listen_unix(server, settings.socket_path)]
        if settings.listen is not None:
            addresses.append(self._listen_for_people(door(People(bearers)), settings.listen))
        where = settings.services_listen or (SOCKETS if settings.alone else NONE)
        if where != NONE:
            services = Services(self._certificates(), bearers, self.identity.trust_domain)
            addresses += self._listen_for_services(door(services), where)
        return addresses

    def _bearers(self) -> Bearers:
        trust_domain = self.identity.trust_domain
        return Bearers(
            self.directory,
            self.clock,
            audiences=[str(SpiffeId(trust_domain, f"/svc/{service}")) for service in self.here],
            issuer=trust_domain,
        )

    def _certificates(self) -> Certificates:
        identity = self.identity
        return Certificates(
            lambda trust_domain: identity.roots() if trust_domain == identity.trust_domain else (),
            lambda: identity.generation,
            WallClock(self.clock).now,
            self.clock.monotonic,
        )

    def _listen_for_people(self, door: Door, address: str) -> str:
        secure = self.settings.listen_tls
        if secure is None:
            secure = not is_loopback(split(address)[0])
        if not secure:
            return listen_tcp(door, address)
        credentials = server_credentials(self.identity, PEOPLE, lambda: b"", require_client=False)
        return listen_tls(door, address, credentials)

    def _listen_for_services(self, door: Door, where: str) -> list[str]:
        services = sorted(self.here)
        addresses = [
            listen_unix(door, self.settings.services_socket_path(service), self._credentials(service))
            for service in services
        ]
        if where == SOCKETS:
            return addresses
        if len(services) != 1:
            raise AddressRefused(
                f"a port for services ({where}) is for a process that runs one service alone, and this one runs "
                f"{', '.join(services)}: HOPPER_SERVICES_LISTEN=sockets opens a socket for each"
            )
        return [*addresses, listen_tls(door, where, self._credentials(services[0]))]

    def _credentials(self, service: str) -> grpc.ServerCredentials:
        identity = self.identity
        return server_credentials(identity, f"/svc/{service}", lambda: own_roots(identity))


def rates(settings: HostSettings) -> Rates:
    """The limits that the settings say; twice as many at once after a pause."""

    def rate(per_second: float) -> Rate:
        return Rate(per_second, max(1.0, 2 * per_second))

    return Rates(
        read=rate(settings.rate_read),
        write=rate(settings.rate_write),
        work=rate(settings.rate_work),
        admin=rate(settings.rate_admin),
        services=rate(settings.rate_services),
        strangers=Rate(settings.rate_strangers, max(1.0, 20 * settings.rate_strangers)),
        open_streams=settings.rate_open_streams,
    )
