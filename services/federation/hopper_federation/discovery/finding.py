"""Looking for others in every way there is, at once, and putting together what was found."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from hopper_common.clock import Clock
from hopper_federation.discovery import mdns, srv
from hopper_federation.discovery.sightings import Sighting, Sightings, Source
from hopper_federation.errors import DiscoveryUnavailable

DEFAULT_WAIT: Final = timedelta(seconds=2)
_DNS_PATIENCE: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Findings:
    """
    What came of looking.

    Attributes:
        sightings: The latest first.
        left_out: How many more there were.
        problems: Where could not be looked, and why.
    """

    sightings: Sequence[Sighting]
    left_out: int
    problems: Sequence[str]


class Finder:
    """
    Looks when asked to, and at no other time.

    Args:
        own: This Hopper's install id, which is left out.
        static: Peer ports that the owner has written down.
        interfaces: Addresses of the interfaces to listen on; none: all of them.
        nameserver: As of `srv.ask`.
    """

    def __init__(
        self,
        own: str,
        clock: Clock,
        *,
        static: Sequence[str] = (),
        interfaces: Sequence[str] = (),
        nameserver: tuple[str, int] | None = None,
    ) -> None:
        self._own = own
        self._clock = clock
        self._static = tuple(static)
        self._interfaces = tuple(interfaces)
        self._nameserver = nameserver

    async def find(self, wait: timedelta | None = None, domain: str = "") -> Findings:
        """
        Look on the network, in a domain's records, and at what is written down.

        Args:
            wait: How long to listen on the network; zero: not at all.
            domain: Whose records to ask for; empty: nobody's.

        Raises:
            DiscoveryUnavailable: There was no way to look at all.
        """
        listen = DEFAULT_WAIT if wait is None else wait
        heard, told = await asyncio.gather(self._hear(listen), self._ask(domain), return_exceptions=True)
        sightings = Sightings()
        for address in self._static:
            sightings.add(Sighting(Source.STATIC, self._clock.now(), peer_address=address))
        problems: list[DiscoveryUnavailable] = []
        left_out = 0
        for outcome in (told, heard):
            if isinstance(outcome, DiscoveryUnavailable):
                problems.append(outcome)
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            found, more = outcome
            left_out += more
            for sighting in found:
                if sighting.claimed_install_id != self._own:
                    sightings.add(sighting)
        ways = bool(listen) + bool(domain) + bool(self._static)
        if problems and len(problems) == ways:
            raise problems[0]
        return Findings(
            sightings.latest(), sightings.left_out + left_out, [problem.message for problem in problems]
        )

    async def _hear(self, wait: timedelta) -> tuple[list[Sighting], int]:
        return await mdns.look(wait, self._clock, self._interfaces) if wait else ([], 0)

    async def _ask(self, domain: str) -> tuple[list[Sighting], int]:
        if not domain:
            return [], 0
        return await srv.ask(domain, self._clock, timeout=_DNS_PATIENCE, nameserver=self._nameserver), 0
