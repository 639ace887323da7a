"""
Builds the federation service from what its host gives it, in order, and closes it in reverse. The one place that knows
everything.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hopper.federation.v1 import pairing_service_pb2, peer_admin_service_pb2
from hopper.federation.v1.pairing_service_pb2_grpc import add_PairingServiceServicer_to_server
from hopper.federation.v1.peer_admin_service_pb2_grpc import add_PeerAdminServiceServicer_to_server
from hopper_common.database import Database
from hopper_common.host import HostContext, Running, Service
from hopper_common.pagination import PageTokens
from hopper_common.rpc.server import Registered
from hopper_federation import addresses
from hopper_federation.admin_servicer import PeerAdminServicer
from hopper_federation.asking import Asker
from hopper_federation.introductions import Introductions
from hopper_federation.joining import Joiner
from hopper_federation.keeping import Housekeeper, TrustKeeper
from hopper_federation.own_hosts import own_hosts
from hopper_federation.pairing_port import PairingPort, Window
from hopper_federation.pairing_servicer import PairingServicer
from hopper_federation.settings import FederationSettings
from hopper_federation.store_sql import Federation
from hopper_federation.strangers import StrangerGuard
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.trust_snapshot import TrustSnapshots

NAME = "federation"


@asynccontextmanager
async def open_federation(context: HostContext) -> AsyncIterator[Running]:
    """Open the database, and learn whom to trust before anybody calls."""
    settings, clock, identity = FederationSettings(), context.clock, context.identity
    db = await Database.open(context.database(NAME), metadata=METADATA, migrations=MIGRATIONS, service=NAME)
    try:
        federation = Federation(db, clock)
        introductions = Introductions(
            identity,
            federation,
            clock,
            name=settings.name,
            peer_addresses=lambda: _peer_addresses(settings),
        )
        window = Window(clock)
        strangers = PairingServicer(federation, introductions, clock, window)
        port = PairingPort(
            identity,
            federation,
            clock,
            listen=settings.pairing_at,
            hosts=settings.hosts,
            offered=[
                Registered.of(
                    pairing_service_pb2.DESCRIPTOR.services_by_name["PairingService"],
                    strangers,
                    add_PairingServiceServicer_to_server,
                )
            ],
            guard=StrangerGuard(clock, context.audit),
            window=window,
        )
        asker = Asker(federation, introductions, clock)
        admin = PeerAdminServicer(  # type: ignore[abstract]  # some of its methods are not offered yet
            federation,
            introductions,
            clock,
            port,
            Joiner(federation, introductions, clock),
            asker,
            PageTokens(),
        )
        snapshots = TrustSnapshots()
        trust_keeper = TrustKeeper(federation, snapshots, clock)
        await trust_keeper.look()
        yield Running(
            registered=[
                Registered.of(
                    peer_admin_service_pb2.DESCRIPTOR.services_by_name["PeerAdminService"],
                    admin,
                    add_PeerAdminServiceServicer_to_server,
                )
            ],
            tasks=[
                trust_keeper.run,
                Housekeeper(federation, clock).run,
                port.run,
                asker.run,
            ],
        )
    finally:
        await db.close()


def _peer_addresses(settings: FederationSettings) -> Sequence[str]:
    """Where others reach the peer port; nothing if there is none."""
    if settings.peers_at is None:
        return ()
    host, port = addresses.split(settings.peers_at, least_port=0)
    return [addresses.joined(each, port) for each in own_hosts(host, settings.hosts)] if port else ()


SERVICE = Service(name=NAME, open=open_federation)
