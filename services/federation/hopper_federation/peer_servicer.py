"""
What peers ask of this Hopper, one method per RPC.

Who calls has been proved, call by call (`peer_guard`), and limits have been checked before a method is reached.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceServicer
from hopper_common.auth.current import current
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.identity.spiffe import SpiffeId, install_id_of_domain
from hopper_common.timestamps import from_proto, to_proto
from hopper_federation import bundles_kept, greeting
from hopper_federation.convert import versions_from_proto
from hopper_federation.introductions import Introductions
from hopper_federation.model import agreed_version, check_clock
from hopper_federation.statuses import Statuses
from hopper_federation.store_sql import Federation
from hopper_federation.trust import Alert

BEAT_SECONDS: Final = 10.0
GOING_SECONDS: Final = 5
"""How soon a Hopper that goes down expects to be back."""

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """
    What peers are answered, by their install ids.

    Attributes:
        takes: What this Hopper would take from a peer.
        deliver: What becomes of messages about hand-overs.
        sync: What is known of hand-overs that both have.
        owed: The pieces of a file that a peer asks for, if it may have it.
    """

    takes: Callable[[str], Awaitable[svc.GetCapabilitiesResponse]]
    deliver: Callable[[str, svc.DeliverRequest], Awaitable[svc.DeliverResponse]]
    sync: Callable[[str, svc.SyncRequest], Awaitable[svc.SyncResponse]]
    owed: Callable[[str, svc.GetBlobRequest], AsyncGenerator[bytes, None]]


class PeerServicer(PeerServiceServicer):
    """
    `hopper.federation.v1.PeerService`.

    Args:
        answers: What this Hopper answers beside what it says of itself.
        alarm: Told of what does not add up.
        stopping: Set when the process begins to stop.
    """

    def __init__(
        self,
        federation: Federation,
        introductions: Introductions,
        statuses: Statuses,
        *,
        answers: Answers,
        alarm: Callable[[str, Alert], None],
        stopping: asyncio.Event,
        beat: float = BEAT_SECONDS,
    ) -> None:
        self._federation = federation
        self._introductions = introductions
        self._identity = introductions.identity
        self._statuses = statuses
        self._answers = answers
        self._alarm = alarm
        self._stopping = stopping
        self._beat = beat
        self._changed = asyncio.Event()
        self._identity.on_change(self._tell_change)

    async def Hello(self, request: svc.HelloRequest, context: _Context) -> svc.HelloResponse:
        caller = self._caller()
        if len(request.nonce) != greeting.NONCE_BYTES:
            raise InvalidArgument(
                violations=[FieldViolation("nonce", f"must have {greeting.NONCE_BYTES} bytes")]
            )
        theirs = request.introduction
        then, now = from_proto(theirs.now), self._introductions.now()
        version = agreed_version(versions_from_proto(theirs.versions))
        self._statuses.met(
            caller, offset=then - now, version=version
        )  # also of who is refused by it: it is shown
        check_clock(then, now)
        await bundles_kept.take(self._federation, caller, theirs.bundle, self._alarm)
        ours = self._introductions.ours()
        signature = self._identity.sign(
            greeting.signed(request.nonce, caller, self._identity.install_id, from_proto(ours.now))
        )
        return svc.HelloResponse(introduction=ours, signature=signature.signature, key_id=signature.key_id)

    async def GetBundle(self, request: svc.GetBundleRequest, context: _Context) -> svc.GetBundleResponse:
        await self._acknowledged(self._caller(), request.known_sequence)
        if self._identity.trust_bundle().sequence <= request.known_sequence:
            return svc.GetBundleResponse()
        return svc.GetBundleResponse(bundle=self._identity.bundle())

    async def PushBundle(self, request: svc.PushBundleRequest, context: _Context) -> svc.PushBundleResponse:
        sequence = await bundles_kept.take(self._federation, self._caller(), request.bundle, self._alarm)
        return svc.PushBundleResponse(sequence=sequence)

    async def GetCapabilities(
        self, request: svc.GetCapabilitiesRequest, context: _Context
    ) -> svc.GetCapabilitiesResponse:
        return await self._answers.takes(self._caller())

    async def Listen(
        self, request: svc.ListenRequest, context: _Context
    ) -> AsyncIterator[svc.ListenResponse]:
        told = request.known_sequence
        await self._acknowledged(self._caller(), told)
        while not self._stopping.is_set():
            self._changed.clear()
            sequence = self._identity.trust_bundle().sequence
            if sequence > told:
                told = sequence
                yield svc.ListenResponse(bundle_sequence=sequence)
            yield svc.ListenResponse(alive=to_proto(self._introductions.now()))
            await self._until_changed()
        leaving = svc.ListenResponse()
        leaving.leaving.seconds = GOING_SECONDS
        yield leaving

    async def Deliver(self, request: svc.DeliverRequest, context: _Context) -> svc.DeliverResponse:
        return await self._answers.deliver(self._caller(), request)

    async def Sync(self, request: svc.SyncRequest, context: _Context) -> svc.SyncResponse:
        return await self._answers.sync(self._caller(), request)

    async def GetBlob(
        self, request: svc.GetBlobRequest, context: _Context
    ) -> AsyncIterator[svc.GetBlobResponse]:
        async with aclosing(self._answers.owed(self._caller(), request)) as pieces:
            async for piece in pieces:
                yield svc.GetBlobResponse(data=piece)

    def _caller(self) -> str:
        """The install id of the peer that calls; it was heard."""
        name = SpiffeId.parse(current().name)
        install_id = install_id_of_domain(name.trust_domain)
        self._statuses.heard(install_id, current().expires)
        return install_id

    async def _acknowledged(self, caller: str, sequence: int) -> None:
        """What a peer says it knows of this Hopper's keys, and be it too much, it knows."""
        ours = self._identity.trust_bundle().sequence
        await bundles_kept.acknowledged(self._federation, caller, min(sequence, ours))

    def _tell_change(self) -> None:
        self._changed.set()

    async def _until_changed(self) -> None:
        """Until there is something to tell, or a beat has passed."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._stopping)]
        try:
            await asyncio.wait(waits, timeout=self._beat, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
