"""
Keeps in touch with every peer: says hello, listens, and tells when this Hopper's keys have changed.

    hello ─► listen: a beat every ten seconds, news of its keys ─► the stream ends, or the link is dead (15 s)
      ▲                                                                      │
      └── a pause of 0.5 s; after five minutes up to 2 s, after half an hour up to 30 s; ◄┘
          cut short when the peer is heard, or is said to be somewhere else

One peer that is down holds up no other: each has a task of its own.
"""

import asyncio
import contextlib
import random
from datetime import timedelta
from typing import Final

import grpc.aio
import structlog

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.errors import HopperError
from hopper_common.identity.store import Identity
from hopper_federation import bundles_kept
from hopper_federation.peer_links import CALL_SECONDS, UNVERIFIED, PeerLink, PeerLinks
from hopper_federation.statuses import Statuses
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustSnapshot, TrustSnapshots

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 0.5
PAUSES: Final = ((timedelta(minutes=5), FIRST_PAUSE), (timedelta(minutes=30), 2.0))
"""The longest pause while the peer was last reached less than so long ago: a link that is back is used within 2 s."""
LONGEST_PAUSE: Final = 30.0


class Contact:
    """
    Runs beside the server.

    Args:
        first_pause: Seconds after the first failure; each further one doubles it.
    """

    def __init__(
        self,
        links: PeerLinks,
        snapshots: TrustSnapshots,
        statuses: Statuses,
        identity: Identity,
        *,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._links = links
        self._snapshots = snapshots
        self._statuses = statuses
        self._identity = identity
        self._first_pause = first_pause
        self._changed = asyncio.Event()
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listening: set[str] = set()
        snapshots.on_change(self._on_trust)
        statuses.on_heard(self._on_heard)
        identity.on_change(self._wake_all)

    async def run(self) -> None:
        """Keep in touch, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                await self._follow(group)
                await self._changed.wait()

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """A task for each peer that may be spoken to, and none for the others."""
        wanted = {
            peer.install_id
            for peer in self._snapshots.current.peers.values()
            if peer.level is not Level.BLOCKED and peer.addresses
        }
        for install_id in self._tasks.keys() - wanted:
            self._tasks.pop(install_id).cancel()
            self._wakes.pop(install_id, None)
            await self._links.forget(install_id)
        for install_id in wanted - self._tasks.keys():
            self._wakes[install_id] = asyncio.Event()
            self._tasks[install_id] = group.create_task(self._keep(install_id))
        self._statuses.keep_only(set(self._snapshots.current.peers))

    async def _keep(self, install_id: str) -> None:
        """Keep in touch with one peer, until cancelled."""
        link = self._links.to(install_id)
        pause = self._first_pause
        while True:
            before = self._statuses.of(install_id).reached
            try:
                await self._stay(link)
            except HopperError as error:
                if self._statuses.of(install_id).failure != error.reason:
                    self._statuses.failed(install_id, error.reason, error.message)
                log.info("a peer is not reached", install_id=install_id, reason=error.reason)
                if UNVERIFIED in error.metadata.get("cause", ""):
                    await self._catch_up(link)
            if self._statuses.of(install_id).reached != before:
                pause = self._first_pause
            await self._rest(install_id, pause * random.uniform(0.6, 1.0))  # noqa: S311 - spreads calls, hides nothing
            pause = min(pause * 2, self._longest_pause(install_id))

    async def _catch_up(self, link: PeerLink) -> None:
        """Who answers may be the peer with a root that this Hopper has not heard of."""
        try:
            await link.catch_up()
        except HopperError as error:
            log.warning("who answers for a peer is not it", install_id=link.install_id, reason=error.reason)

    def _longest_pause(self, install_id: str) -> float:
        """Who was there a moment ago will be back soon; who was not, is a laptop that is off."""
        ago = self._statuses.ago(self._statuses.of(install_id).reached)
        if ago is None:
            return LONGEST_PAUSE
        return next((pause for within, pause in PAUSES if ago < within), LONGEST_PAUSE)

    async def _rest(self, install_id: str, seconds: float) -> None:
        wake = self._wakes[install_id]
        wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wake.wait()

    async def _stay(self, link: PeerLink) -> None:
        """Say hello, and listen until the stream ends."""
        told = self._identity.trust_bundle().sequence
        await link.greet()
        telling = asyncio.create_task(self._tell_changes(link, told))
        try:
            await self._listen(link)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _listen(self, link: PeerLink) -> None:
        peer = link.peer
        stream = link.stub.Listen(svc.ListenRequest(known_sequence=peer.bundle_sequence))
        self._listening.add(link.install_id)
        try:
            async for message in stream:
                self._statuses.reached(link.install_id)
                if message.WhichOneof("event") == "bundle_sequence":
                    await self._fetch(link)
        except grpc.aio.AioRpcError as error:
            raise link.problem_of(error, peer) from error
        finally:
            self._listening.discard(link.install_id)
            stream.cancel()

    async def _fetch(self, link: PeerLink) -> None:
        """
        Take over the peer's keys, if they are newer than those known, and let it know that this is done.

        That they are known already it is told too: it may wait for this before it shows its next root.
        """
        answer = await self._newer(link, link.peer.bundle_sequence)
        if answer.HasField("bundle"):
            taken = await bundles_kept.take(
                self._links.federation, link.install_id, answer.bundle, self._links.alarm
            )
            await self._newer(link, taken)

    async def _newer(self, link: PeerLink, known: int) -> svc.GetBundleResponse:
        request = svc.GetBundleRequest(known_sequence=known)
        return await link.call(lambda stub: stub.GetBundle(request, timeout=CALL_SECONDS))

    async def _tell_changes(self, link: PeerLink, told: int) -> None:
        """Tell the peer this Hopper's keys whenever they change. If that fails, the next hello tells them."""
        wake = self._wakes[link.install_id]
        while True:
            wake.clear()
            if self._identity.trust_bundle().sequence > told:
                told = self._identity.trust_bundle().sequence
                try:
                    await link.push(self._identity.bundle())
                except HopperError as error:
                    log.info(
                        "a peer does not know our keys yet", install_id=link.install_id, reason=error.reason
                    )
            await wake.wait()

    # What wakes.

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._changed.set()
        self._wake_all()

    def _on_heard(self, install_id: str) -> None:
        # It is there, so a pause before the next attempt is a waste; while we listen there is no pause.
        if install_id in self._wakes and install_id not in self._listening:
            self._wakes[install_id].set()

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            wake.set()
