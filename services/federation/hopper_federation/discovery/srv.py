"""
SRV records: `_hopper-peer._tcp.example.org` and `_hopper-pair._tcp.example.org` say where a domain's Hopper is.

By the library dnspython (extra `discovery`). An answer is a hint as any other: whoever answers for the domain may say
anything, and pairing proves who is there.
"""

from datetime import timedelta
from typing import Final

from hopper_common.clock import Clock
from hopper_federation.discovery.sightings import Sighting, Source
from hopper_federation.errors import DiscoveryUnavailable

PEER_RECORD: Final = "_hopper-peer._tcp"
PAIRING_RECORD: Final = "_hopper-pair._tcp"
_MOST: Final = 16


async def ask(
    domain: str, clock: Clock, *, timeout: timedelta, nameserver: tuple[str, int] | None = None
) -> list[Sighting]:
    """
    Ask for a domain's Hoppers.

    Args:
        domain: `example.org`.
        nameserver: Address and port of whom to ask; None: as the machine is set up.

    Returns:
        At most 16 of each record, by priority and weight; none where the domain has no such records.

    Raises:
        DiscoveryUnavailable: The library is not installed, or the name server does not answer.
    """
    peers = await _records(f"{PEER_RECORD}.{domain}", timeout, nameserver)
    pairing = await _records(f"{PAIRING_RECORD}.{domain}", timeout, nameserver)
    now = clock.now()
    return [Sighting(Source.DNS, now, peer_address=where) for where in peers] + [
        Sighting(Source.DNS, now, pairing_address=where) for where in pairing
    ]


async def _records(name: str, timeout: timedelta, nameserver: tuple[str, int] | None) -> list[str]:
    try:
        import dns.asyncresolver  # noqa: PLC0415 - an extra
        import dns.exception  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415
    except ImportError as error:
        raise DiscoveryUnavailable(
            "asking a domain needs the extra `discovery`: pip install 'hopper-mesh[discovery]'",
            missing="dnspython",
        ) from error
    try:
        resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        if nameserver is not None:
            resolver.nameservers, resolver.port = [nameserver[0]], nameserver[1]
        resolver.lifetime = timeout.total_seconds()
        answer = await resolver.resolve(name, "SRV")
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except dns.exception.DNSException as error:
        raise DiscoveryUnavailable(
            f"the name server does not say: {type(error).__name__}", missing="answer"
        ) from error
    ordered = sorted(answer, key=lambda record: (record.priority, -record.weight, record.target))
    return [f"{record.target.to_text(omit_final_dot=True)}:{record.port}" for record in ordered[:_MOST]]
