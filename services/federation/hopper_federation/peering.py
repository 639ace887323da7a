"""
Everything between paired Hoppers that runs while the service is open, put together: the port for peers, the ways to
them, and staying in touch.

    peers ─► peer port ─► peer guard ─► PeerServicer ─► store, statuses
    Contact ─► PeerLinks ─► peers          Alarms ─► store ─► TrustSnapshots ─► guard, anchors, links
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hopper.federation.v1 import peer_service_pb2
from hopper.federation.v1.peer_service_pb2_grpc import add_PeerServiceServicer_to_server
from hopper_common.auth.rates import Limiter, Rates
from hopper_common.clock import Clock
from hopper_common.identity.spiffe import SpiffeId, trust_domain_of
from hopper_common.rpc.guard import Auditing, CallerGuard
from hopper_common.rpc.server import Registered
from hopper_federation.alarms import Alarms
from hopper_federation.anchors import Anchors
from hopper_federation.contact import Contact
from hopper_federation.introductions import Introductions
from hopper_federation.peer_guard import PATH, Peers
from hopper_federation.peer_links import PeerLinks
from hopper_federation.peer_port import guard_of, peer_port
from hopper_federation.peer_servicer import Answers, PeerServicer
from hopper_federation.statuses import Statuses
from hopper_federation.store_sql import Federation
from hopper_federation.trust_snapshot import TrustSnapshots


@dataclass(frozen=True, slots=True)
class Peering:
    """
    What the rest of the service needs of it.

    Attributes:
        port: The peer port's number; 0: it is not listened on.
        guard: Of that port; None: it is not listened on.
        alarms: To be told of what does not add up.
        tasks: What runs beside the server.
    """

    port: int
    guard: CallerGuard | None
    statuses: Statuses
    links: PeerLinks
    anchors: Anchors
    alarms: Alarms
    tasks: Sequence[Callable[[], Awaitable[None]]]

    def end_calls(self) -> None:
        """End calls under way that would not be let in any more, now."""
        if self.guard is not None:
            self.guard.look()

    def ended_calls(self, install_id: str) -> int:
        """How many calls of a peer have been ended under way so far."""
        return 0 if self.guard is None else self.guard.ended[str(SpiffeId(trust_domain_of(install_id), PATH))]


@asynccontextmanager
async def open_peering(
    federation: Federation,
    introductions: Introductions,
    snapshots: TrustSnapshots,
    clock: Clock,
    audit: Auditing,
    *,
    listen: str | None,
    answers: Answers,
    stopping: asyncio.Event,
) -> AsyncIterator[Peering]:
    """
    Listen for peers, and be ready to speak to them.

    Args:
        listen: `host:port`; None: federation is off: no peer can call here, and none is called by itself.
        answers: What peers are answered.

    Raises:
        AddressRefused: The port cannot be listened on.
    """
    identity = introductions.identity
    statuses, alarms, anchors = Statuses(clock.monotonic), Alarms(federation), Anchors(snapshots, clock)
    links = PeerLinks(federation, introductions, snapshots, anchors, statuses, clock, alarm=alarms)
    try:
        if listen is None:
            yield Peering(0, None, statuses, links, anchors, alarms, [alarms.run])
            return
        contact = Contact(links, snapshots, statuses, identity)
        servicer = PeerServicer(
            federation,
            introductions,
            statuses,
            answers=answers,
            alarm=alarms,
            stopping=stopping,
        )
        offered = Registered.of(
            peer_service_pb2.DESCRIPTOR.services_by_name["PeerService"],
            servicer,
            add_PeerServiceServicer_to_server,
        )
        guard = guard_of(Peers(snapshots, clock, alarms), snapshots, Limiter(Rates()), audit, clock)
        async with peer_port(listen, identity, anchors, guard, [offered]) as port:
            yield Peering(port, guard, statuses, links, anchors, alarms, [alarms.run, contact.run])
    finally:
        await links.close()
