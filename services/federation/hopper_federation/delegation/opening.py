"""
Puts the parts of this package together, for `app`, in two steps: what peers are answered is needed before there are
ways to peers, and everything else after.

    open_delegations ─► answers: what it would take, Deliver, Sync
    Delegations.beside(peering) ─► what runs beside the server

    registry ◄─ PlaceKeeper, Pulse      Inquirer ─► peers      Senders ─► peers
    router   ◄─ Claimer, Claims, Errands, Watcher              desks ◄─ all of them
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc.aio

from hopper_common.host import HostContext
from hopper_federation.artifacts.opening import ArtifactParts
from hopper_federation.artifacts.puller import Puller
from hopper_federation.delegation.advertising import Advertiser
from hopper_federation.delegation.appraising import Appraiser
from hopper_federation.delegation.claiming import Claimer
from hopper_federation.delegation.claims import Claims
from hopper_federation.delegation.concluding import Concluder
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.crossings_journal import CrossingsJournal
from hopper_federation.delegation.desks import Desks
from hopper_federation.delegation.errands import Errands, Router
from hopper_federation.delegation.files_wanted import FilesWanted
from hopper_federation.delegation.inquiring import Inquirer
from hopper_federation.delegation.known_keys import KnownKeys
from hopper_federation.delegation.measuring import CrossingMeasures
from hopper_federation.delegation.offering import Offerer
from hopper_federation.delegation.own_registry import OwnRegistry
from hopper_federation.delegation.parting import Parting
from hopper_federation.delegation.presence import PlaceKeeper, Places, Pulse
from hopper_federation.delegation.receiver import Receiver
from hopper_federation.delegation.sender import Senders
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.delegation.syncing import Syncer
from hopper_federation.delegation.ticking import Ticker
from hopper_federation.delegation.unplaced import Unplaced
from hopper_federation.delegation.verifying import Verifier
from hopper_federation.delegation.watching import Watcher
from hopper_federation.peering import Peering
from hopper_federation.store_sql import Federation
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_snapshot import TrustSnapshots

Task = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Channels:
    """To this Hopper's own services."""

    registry: grpc.aio.Channel
    router: grpc.aio.Channel
    memory: grpc.aio.Channel


@dataclass(frozen=True, slots=True)
class Delegations:
    """
    What the rest of the service needs.

    Attributes:
        desks: For whoever looks at hand-overs, or decides about one.
        keys_of: Whose signatures can be verified here.
        advertiser: What peers are told that this Hopper would take.
        receiver: What peers are answered to messages about hand-overs.
    """

    desks: Desks
    keys_of: KnownKeys
    advertiser: Advertiser
    receiver: Receiver
    measures: CrossingMeasures
    _context: HostContext
    _federation: Federation
    _trust: TrustAdmin
    _snapshots: TrustSnapshots
    _registry: OwnRegistry
    _channels: Channels

    def beside(
        self, peering: Peering, artifacts: ArtifactParts, puller: Puller, *, lease: timedelta
    ) -> Sequence[Task]:
        """
        What runs beside the server; nothing where federation is off: then nothing crosses, and what is written down
        stays.

        Args:
            puller: Told when a result names files.
            lease: Of what this Hopper hands over.
        """
        if not peering.port:
            return []
        clock = self._context.clock
        journal = CrossingsJournal(self._context.audit, self._snapshots, peering.alarms, clock.monotonic)
        self.desks.on_alarm(journal.raised)
        self.receiver.on_refused(journal.turned_away)
        credit, places = Credits(clock.monotonic), Places(self._registry)
        inquirer = Inquirer(peering.links, self._snapshots, credit)
        claims = Claims(self._channels.router, self.desks)
        return [
            self._registry.run,
            inquirer.run,
            self.measures.run,
            *self._in_the_registry(peering, inquirer, credit, places, claims),
            *self._with_peers(peering, credit),
            *self._at_the_router(credit, places, claims, journal, lease),
            self._errands(credit, claims, puller).run,
            self._watcher(places, claims, artifacts).run,
            Unplaced(self.desks, claims).run,
            Ticker(self.desks, self._federation.committed).run,
            Parting(self.desks, self._snapshots, peering.statuses, clock, journal).run,
        ]

    def _in_the_registry(
        self, peering: Peering, inquirer: Inquirer, credit: Credits, places: Places, claims: Claims
    ) -> Sequence[Task]:
        channel = self._channels.registry
        keeper = PlaceKeeper(
            channel,
            self._registry,
            self._federation,
            self._trust,
            self._snapshots,
            peering.statuses,
            inquirer,
        )
        pulse = Pulse(channel, places, self._snapshots, peering.statuses, credit, open_with=claims.open_with)
        return [keeper.run, pulse.run]

    def _with_peers(self, peering: Peering, credit: Credits) -> Sequence[Task]:
        def told_slots(install_id: str, free: int) -> None:
            self.measures.delivered()
            credit.told(install_id, free)
            peering.statuses.would_take(install_id, free)

        syncer = Syncer(self.desks, peering.links, self._federation)
        senders = Senders(
            self.desks, peering.links, self._snapshots, peering.statuses, syncer, told_slots=told_slots
        )
        self.receiver.on_restored(senders.restored)
        return [senders.run]

    def _at_the_router(
        self,
        credit: Credits,
        places: Places,
        claims: Claims,
        journal: CrossingsJournal,
        lease: timedelta,
    ) -> Sequence[Task]:
        offerer = Offerer(self.desks, self._context.identity, lease=lease)
        claimer = Claimer(self._channels.router, places, self._snapshots, credit, offerer, journal)
        return [claims.run, claimer.run]

    def _errands(self, credit: Credits, claims: Claims, puller: Puller) -> Errands:
        appraiser = Appraiser(self._channels.memory, claims, self._snapshots)
        wanted = FilesWanted(self.desks, puller.look_soon)
        router = Router(self._channels.router, claims, self._snapshots, appraiser, wanted)
        return Errands(self.desks, router, credit)

    def _watcher(self, places: Places, claims: Claims, artifacts: ArtifactParts) -> Watcher:
        clock, identity = self._context.clock, self._context.identity
        concluder = Concluder(self.desks, claims, identity, clock, artifacts.files, artifacts.of_tasks)
        return Watcher(self._channels.router, self.desks, claims, places, concluder, self._federation)


@asynccontextmanager
async def open_delegations(
    context: HostContext,
    federation: Federation,
    trust: TrustAdmin,
    snapshots: TrustSnapshots,
    router: grpc.aio.Channel,
) -> AsyncIterator[Delegations]:
    """Be ready to answer peers."""
    clock, identity = context.clock, context.identity
    async with context.open_channel("registry") as registry, context.open_channel("memory") as memory:
        own = OwnRegistry(registry)
        desks = Desks(federation, trust, SteadyClock(clock), identity.install_id)
        keys_of = KnownKeys(identity, snapshots, clock)
        advertiser = Advertiser(own, federation, trust, clock)
        receiver = Receiver(
            desks,
            Verifier(identity.install_id, keys_of, clock),
            free_slots=advertiser.free_slots,
            monotonic=clock.monotonic,
        )
        yield Delegations(
            desks=desks,
            keys_of=keys_of,
            advertiser=advertiser,
            receiver=receiver,
            measures=CrossingMeasures(federation),
            _context=context,
            _federation=federation,
            _trust=trust,
            _snapshots=snapshots,
            _registry=own,
            _channels=Channels(registry, router, memory),
        )
