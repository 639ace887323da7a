"""
Builds the federation service from what its host gives it, in order, and closes it in reverse. The one place that knows
everything.

    database ─► who has the role (`succession`) ─► everything else, opened by that process alone
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from hopper.federation.v1 import (
    artifact_service_pb2,
    delegation_service_pb2,
    pairing_service_pb2,
    peer_admin_service_pb2,
)
from hopper.federation.v1.artifact_service_pb2_grpc import add_ArtifactServiceServicer_to_server
from hopper.federation.v1.delegation_service_pb2_grpc import add_RemoteDelegationServiceServicer_to_server
from hopper.federation.v1.pairing_service_pb2_grpc import add_PairingServiceServicer_to_server
from hopper.federation.v1.peer_admin_service_pb2_grpc import add_PeerAdminServiceServicer_to_server
from hopper_common.database import Database
from hopper_common.host import HostContext, Running, Service
from hopper_common.identity.store import Identity
from hopper_common.pagination import PageTokens
from hopper_common.rpc.server import Registered
from hopper_federation import addresses
from hopper_federation.artifacts.opening import open_artifacts
from hopper_federation.asking import Asker
from hopper_federation.checking import Checker
from hopper_federation.delegation.delegation_servicer import RemoteDelegationServicer
from hopper_federation.delegation.opening import open_delegations
from hopper_federation.discovery.finding import Finder
from hopper_federation.discovery.mdns import Announcer, require_zeroconf
from hopper_federation.incarnation_keeping import FILE, IncarnationKeeper
from hopper_federation.introductions import Introductions
from hopper_federation.joining import Joiner
from hopper_federation.journal import TrustJournal
from hopper_federation.keeping import Housekeeper, TrustKeeper
from hopper_federation.own_hosts import own_hosts
from hopper_federation.pairing_port import PairingPort, Window
from hopper_federation.pairing_servicer import PairingServicer
from hopper_federation.peer_servicer import Answers
from hopper_federation.peering import open_peering
from hopper_federation.policy_keeping import PolicyKeeper
from hopper_federation.root_keeping import RootKeeper
from hopper_federation.settings import FederationSettings
from hopper_federation.store_sql import Federation
from hopper_federation.strangers import StrangerGuard
from hopper_federation.succession import Offered, Succession, check_identity
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_servicer import PeerAdmin, Trusting
from hopper_federation.trust_snapshot import TrustSnapshots

NAME = "federation"


OFFERED: Final = (
    Offered(
        peer_admin_service_pb2.DESCRIPTOR.services_by_name["PeerAdminService"],
        add_PeerAdminServiceServicer_to_server,
    ),
    Offered(
        delegation_service_pb2.DESCRIPTOR.services_by_name["RemoteDelegationService"],
        add_RemoteDelegationServiceServicer_to_server,
    ),
    Offered(
        artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
        add_ArtifactServiceServicer_to_server,
    ),
)


@asynccontextmanager
async def open_federation(context: HostContext) -> AsyncIterator[Running]:
    """Open the database, and the service if no other process of this Hopper is it."""
    settings = FederationSettings()
    db = await Database.open(context.database(NAME), metadata=METADATA, migrations=MIGRATIONS, service=NAME)
    whereabouts = Whereabouts(settings)
    succession = Succession(db, lambda: open_whole(context, settings, db, whereabouts), OFFERED)
    try:
        await succession.begin()
        if succession.stands_by:
            await check_identity(Federation(db, context.clock), context.identity)
        yield Running(registered=succession.fronts, tasks=[succession.run], measures=[succession.measures])
    finally:
        await succession.close()
        await db.close()


@asynccontextmanager
async def open_whole(
    context: HostContext, settings: FederationSettings, db: Database, whereabouts: "Whereabouts"
) -> AsyncIterator[Running]:
    """Open all of the service, and learn whom to trust before anybody calls."""
    clock, identity = context.clock, context.identity
    blobs = settings.artifact_dir or context.data_dir / "blobs"
    federation = Federation(db, clock)
    incarnations = IncarnationKeeper(federation, identity, context.settings.shared_path(FILE), clock)
    try:
        await incarnations.begin()
        introductions = Introductions(
            identity, federation, clock, name=settings.name, peer_addresses=whereabouts.addresses
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
        snapshots = TrustSnapshots()
        trust_keeper = TrustKeeper(federation, snapshots, clock)
        await trust_keeper.look()
        journal = TrustJournal(context.audit, snapshots)
        trust = TrustAdmin(identity)

        async with (
            context.open_channel("router") as router,
            open_artifacts(db, blobs, router, settings.artifact_limits, clock) as artifacts,
            open_delegations(context, federation, trust, snapshots, router) as delegations,
            open_peering(
                federation,
                introductions,
                snapshots,
                clock,
                context.audit,
                listen=whereabouts.listen,
                answers=Answers(
                    takes=delegations.advertiser.to,
                    deliver=delegations.receiver.deliver,
                    sync=delegations.receiver.sync,
                    owed=artifacts.owed.pieces,
                ),
                stopping=context.stopping,
            ) as peering,
        ):
            whereabouts.port = peering.port
            puller = artifacts.puller(peering.links, peering.statuses, delegations.desks.raise_alarm)
            announcer = _announcer(settings, identity, peering.port, port)
            admin = PeerAdmin(
                federation,
                introductions,
                clock,
                port,
                Joiner(federation, introductions),
                asker,
                PageTokens(),
                Trusting(
                    admin=trust,
                    keeper=trust_keeper,
                    snapshots=snapshots,
                    peering=peering,
                    finder=Finder(
                        identity.install_id,
                        clock,
                        static=settings.static_peers,
                        interfaces=settings.discovery_interfaces,
                    ),
                    checker=Checker(
                        identity, peering.links, peering.statuses, clock, listens=bool(peering.port)
                    ),
                    router=router,
                ),
            )
            yield Running(
                registered=[
                    Registered.of(
                        peer_admin_service_pb2.DESCRIPTOR.services_by_name["PeerAdminService"],
                        admin,
                        add_PeerAdminServiceServicer_to_server,
                    ),
                    Registered.of(
                        delegation_service_pb2.DESCRIPTOR.services_by_name["RemoteDelegationService"],
                        RemoteDelegationServicer(
                            delegations.desks, snapshots, delegations.keys_of, PageTokens()
                        ),
                        add_RemoteDelegationServiceServicer_to_server,
                    ),
                    artifacts.registered,
                ],
                tasks=[
                    trust_keeper.run,
                    Housekeeper(federation, clock).run,
                    PolicyKeeper(federation, identity, journal).run,
                    RootKeeper(federation, identity, peering.statuses).run,
                    incarnations.run,
                    port.run,
                    asker.run,
                    *peering.tasks,
                    *artifacts.tasks,
                    *delegations.beside(
                        peering, artifacts, puller, lease=timedelta(seconds=settings.delegation_lease)
                    ),
                    *([puller.run] if peering.port else []),
                    *([] if announcer is None else [announcer.run]),
                ],
                measures=[delegations.measures],
            )
    finally:
        await incarnations.close()


class Whereabouts:
    """Where others reach the peer port, once it is listened on; the same one each time that this process opens it."""

    def __init__(self, settings: FederationSettings) -> None:
        self._settings = settings
        self.port = 0

    @property
    def listen(self) -> str | None:
        """Where to listen; None: nowhere."""
        listen = self._settings.peers_at
        if listen is None or not self.port:
            return listen
        return addresses.joined(addresses.split(listen, least_port=0)[0], self.port)

    def addresses(self) -> Sequence[str]:
        """Nothing while there is none."""
        listen = self._settings.peers_at
        if listen is None or not self.port:
            return ()
        host, _ = addresses.split(listen, least_port=0)
        return [addresses.joined(each, self.port) for each in own_hosts(host, self._settings.hosts)]


def _announcer(
    settings: FederationSettings, identity: Identity, peer_port: int, pairing: PairingPort
) -> Announcer | None:
    """
    What tells the network where this Hopper is, if its owner wants that.

    Raises:
        DiscoveryUnavailable: They do, and what it takes is not installed.
    """
    if not settings.discovery:
        return None
    require_zeroconf()
    announcer = Announcer(identity.install_id, interfaces=settings.discovery_interfaces)

    def tell() -> None:
        announcer.tell(peer_port=peer_port, pairing_port=pairing.port)

    pairing.on_change(tell)
    tell()
    return announcer


SERVICE = Service(name=NAME, open=open_federation)
