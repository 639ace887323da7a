"""Hoppers that are peers already: identity, store, peer port and contact of each, without a host around them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from hopper.federation.v1 import peer_service_pb2 as psvc
from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceStub
from hopper_common.audit.model import Decision, Handling
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.identity.bundles import ACTIVE, roots_of
from hopper_common.identity.certificates import LEAF_LIFETIME, Leaf, to_pem
from hopper_common.identity.store import IdentityStore
from hopper_common.startup import make_private
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.serving import OwedFiles
from hopper_federation.artifacts.store_sql import Artifacts
from hopper_federation.delegation.desk import Raised
from hopper_federation.delegation.desks import Desks
from hopper_federation.delegation.known_keys import KnownKeys
from hopper_federation.delegation.receiver import Receiver
from hopper_federation.delegation.sender import Senders
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.delegation.syncing import Syncer
from hopper_federation.delegation.verifying import Verifier
from hopper_federation.introductions import Introductions, point_of
from hopper_federation.keeping import TrustKeeper
from hopper_federation.model import Peer
from hopper_federation.peer_guard import PATH
from hopper_federation.peer_servicer import Answers
from hopper_federation.peering import Peering, open_peering
from hopper_federation.statuses import Status
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.trust import Level
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_snapshot import TrustSnapshots
from tests.federation.harness import loopback_of_its_own

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

PATIENCE: Final = 60.0
"""Seconds to wait for what must come: nobody waits that long unless something is wrong."""

Owed = Callable[[str, psvc.GetBlobRequest], AsyncGenerator[bytes, None]]


class Noted:
    """An audit log that keeps its decisions in a list."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def record(self, decision: Decision, handling: Handling) -> int:
        self.decisions.append(decision)
        return len(self.decisions)

    async def flushed(self, ticket: int | None = None) -> None:
        """They are."""


class Neighbour:
    """One of them, in real time. Made by `neighbour`."""

    def __init__(self, directory: Path, db: Database, leaf_lifetime: timedelta) -> None:
        self.clock = SystemClock()
        federation = Federation(db, self.clock)
        self.db = db
        self.files = Artifacts(db, self.clock)
        self.blobs = BlobStore(directory / "blobs")
        self.owed: Owed = OwedFiles(self.files, self.blobs).pieces
        self.name = directory.name
        self.identity = IdentityStore.open(directory / "identity", self.clock, leaf_lifetime=leaf_lifetime)
        self.federation = federation
        self.snapshots = TrustSnapshots()
        self.audit = Noted()
        self.stopping = asyncio.Event()
        self.listen = f"{loopback_of_its_own()}:0"
        self.introductions = Introductions(
            self.identity, federation, self.clock, name=self.name, peer_addresses=lambda: [self.address]
        )
        self.keeper = TrustKeeper(federation, self.snapshots, self.clock)
        self.trust = TrustAdmin(self.identity)
        self.desks = Desks(federation, self.trust, SteadyClock(self.clock), self.identity.install_id)
        self.receiver = Receiver(
            self.desks,
            Verifier(
                self.identity.install_id, KnownKeys(self.identity, self.snapshots, self.clock), self.clock
            ),
            free_slots=self.free_slots,
            monotonic=self.clock.monotonic,
        )
        self.raised: list[Raised] = []
        self.desks.on_alarm(self.raised.append)
        self.slots: dict[str, int] = {}
        self.peering: Peering
        self.senders: Senders

    @property
    def answers(self) -> Answers:
        """What its peers are answered."""
        return Answers(
            takes=self._takes,
            deliver=self.receiver.deliver,
            sync=self.receiver.sync,
            owed=lambda caller, request: self.owed(caller, request),  # noqa: PLW0108 - as it is then
        )

    @property
    def address(self) -> str:
        return self.listen

    @property
    def install_id(self) -> str:
        return self.identity.install_id

    @asynccontextmanager
    async def running(self, *, contact: bool = True, sending: bool = False) -> AsyncIterator[None]:
        """Listen, and (perhaps) stay in touch, and send, for as long as that lasts. Again on the same port."""
        await self.keeper.look()
        self.stopping.clear()
        async with open_peering(
            self.federation,
            self.introductions,
            self.snapshots,
            self.clock,
            self.audit,
            listen=self.listen,
            answers=self.answers,
            stopping=self.stopping,
        ) as self.peering:
            self.listen = f"{self.listen.rpartition(':')[0]}:{self.peering.port}"
            links, statuses = self.peering.links, self.peering.statuses
            syncer = Syncer(self.desks, links, self.federation)
            self.senders = Senders(
                self.desks, links, self.snapshots, statuses, syncer, told_slots=self.slots.__setitem__
            )
            self.receiver.on_restored(self.senders.restored)
            works = [self.keeper.run, self.identity.keep_fresh, *self.peering.tasks[: None if contact else 1]]
            if sending:
                works.append(self.senders.run)
            tasks = [asyncio.ensure_future(work()) for work in works]
            try:
                yield
            finally:
                self.stopping.set()
                for task in tasks:
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, Exception):
                        raise outcome

    async def free_slots(self, install_id: str) -> int:
        """What peers are told."""
        return 7

    async def _takes(self, install_id: str) -> psvc.GetCapabilitiesResponse:
        return psvc.GetCapabilitiesResponse(capabilities=["docs.review"], free_slots=7)

    async def knows(
        self, other: "Neighbour", *, level: Level = Level.KNOWN, address: str = "", **fields: Any
    ) -> None:
        """Have the other as a peer, as after pairing."""
        peer = Peer(
            f"peers/{other.name}",
            other.install_id,
            level,
            self.clock.now(),
            addresses=(address or other.address,),
            bundle_sequence=other.identity.trust_bundle().sequence,
            **fields,
        )

        def save(store: SqlStore) -> None:
            bundle = other.identity.trust_bundle()
            root = point_of(roots_of(bundle, (ACTIVE,))[-1])
            signed = other.identity.bundle().SerializeToString()
            store.save_bundle(other.install_id, bundle.sequence, root, signed)
            store.save_peer(peer)

        await self.federation.write(save)
        await self.keeper.look()

    async def change(self, other: "Neighbour", change: Callable[[Peer], Peer]) -> None:
        """Change the peer that the other is."""

        def save(store: SqlStore) -> None:
            peer = store.peer_of(other.install_id)
            assert peer is not None
            store.save_peer(change(peer))

        await self.federation.write(save)

    async def peer(self, other: "Neighbour") -> Peer:
        """What is stored of the other."""
        peer = await self.federation.read(lambda store: store.peer_of(other.install_id))
        assert peer is not None
        return peer

    def status(self, other: "Neighbour") -> Status:
        """How the other is doing, as seen from here."""
        return self.peering.statuses.of(other.install_id)

    @asynccontextmanager
    async def calling(
        self, other: "Neighbour", leaf: Leaf | None = None
    ) -> "AsyncIterator[PeerServiceAsyncStub]":
        """A plain channel to the other's peer port, with this one's leaf or any other."""
        shown = self.identity.leaf(PATH) if leaf is None else leaf
        credentials = grpc.ssl_channel_credentials(
            to_pem(other.identity.roots()), shown.key_pem, shown.chain_pem
        )
        options = (
            ("grpc.ssl_target_name_override", f"federation.{other.identity.trust_domain}"),
            ("grpc.use_local_subchannel_pool", 1),
        )
        async with grpc.aio.secure_channel(other.address, credentials, options=options) as channel:
            yield PeerServiceStub(channel)


@asynccontextmanager
async def neighbour(directory: Path, *, leaf_lifetime: timedelta = LEAF_LIFETIME) -> AsyncIterator[Neighbour]:
    """A Hopper with an identity and a store of its own."""
    make_private(directory)
    url = str(directory / "federation.db")
    db = await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="federation")
    try:
        yield Neighbour(directory, db, leaf_lifetime)
    finally:
        await db.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that must come."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Likewise, where looking takes a while."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
