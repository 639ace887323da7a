"""
How this Hopper's owner deals with other Hoppers, one method per RPC: convert, call, convert, answer.

Who may call, and the limits of every field, have been checked before a method is reached (`hopper_common.rpc`); domain
errors pass through to be answered there.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc.aio
import structlog

from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper.federation.v1.pairing_service_pb2 import Introduction
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceServicer
from hopper_common.clock import Clock
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.eventlog import Event
from hopper_common.ids import Ids
from hopper_common.pagination import PageTokens, page_size
from hopper_common.timestamps import duration_field, to_proto
from hopper_federation import addresses, admission, tokens, transcript
from hopper_federation.asking import Asker
from hopper_federation.convert import (
    invitation_to_proto,
    level_from_proto,
    pairing_to_proto,
    peer_to_proto,
)
from hopper_federation.errors import (
    InvitationNotFound,
    PairingFull,
    PairingWrongStep,
    PeerExists,
    PeerNotFound,
)
from hopper_federation.introductions import Introductions
from hopper_federation.joining import Joiner
from hopper_federation.model import (
    DEFAULT_LIFETIME,
    DEFAULT_WINDOW,
    MOST_OPEN_INVITATIONS,
    Invitation,
    Peer,
)
from hopper_federation.pairing import Event as Move
from hopper_federation.pairing import Session, Step
from hopper_federation.pairing_port import PairingPort
from hopper_federation.store_sql import PEER_REMOVED, Federation, SqlStore
from hopper_federation.tokens import Token
from hopper_federation.trust import BY_PAIRING, Level

log = structlog.get_logger(__name__)

MOST_INVITATIONS: Final = 100
MOST_PAIRINGS: Final = 40
TELL_SECONDS: Final = 5.0

_Context = grpc.aio.ServicerContext[Any, Any]


class PeerAdminServicer(PeerAdminServiceServicer):
    """`hopper.federation.v1.PeerAdminService`."""

    def __init__(
        self,
        federation: Federation,
        introductions: Introductions,
        clock: Clock,
        port: PairingPort,
        joiner: Joiner,
        asker: Asker,
        page_tokens: PageTokens,
    ) -> None:
        self._federation = federation
        self._introductions = introductions
        self._clock = clock
        self._ids = Ids()  # later ones come later in lists, whatever the clock does
        self._port = port
        self._joiner = joiner
        self._asker = asker
        self._tokens = page_tokens

    # Invitations.

    async def CreateInvitation(
        self, request: svc.CreateInvitationRequest, context: _Context
    ) -> svc.CreateInvitationResponse:
        hosts = _checked_hosts(request.hosts)
        secret = secrets.token_bytes(tokens.SECRET_BYTES)
        invitation = self._invitation(request, secret)
        async with self._port.held():
            where = self._port.addresses(hosts)
            await self._federation.write(lambda store: _add_invitation(store, invitation))
        token = Token(
            invitation=invitation.secret_id,
            secret=secret,
            install_id=self._introductions.identity.install_id,
            root_key=invitation.root_key,
            addresses=where,
            expire_time=invitation.expire_time,
        )
        return svc.CreateInvitationResponse(
            invitation=invitation_to_proto(invitation, expired=False), token=tokens.encode(token)
        )

    def _invitation(self, request: svc.CreateInvitationRequest, secret: bytes) -> Invitation:
        level = level_from_proto(request.level, Level.KNOWN)
        if level not in BY_PAIRING:
            raise InvalidArgument(
                violations=[
                    FieldViolation("level", "must be KNOWN or UNTRUSTED: more is given after pairing")
                ]
            )
        now = self._clock.now()
        return Invitation(
            id=self._ids.new(now),
            secret_id=secrets.token_bytes(tokens.ID_BYTES),
            key=transcript.key_of(secret),
            root_key=self._introductions.side().root_key,
            peer_id=request.peer_id,
            level=level,
            create_time=now,
            expire_time=now + (duration_field(request, "lifetime") or DEFAULT_LIFETIME),
        )

    async def ListInvitations(
        self, request: svc.ListInvitationsRequest, context: _Context
    ) -> svc.ListInvitationsResponse:
        found = await self._federation.read(lambda store: store.invitations(MOST_INVITATIONS))
        return svc.ListInvitationsResponse(invitations=[self._shown(each) for each in found])

    async def RevokeInvitation(
        self, request: svc.RevokeInvitationRequest, context: _Context
    ) -> svc.RevokeInvitationResponse:
        def end(store: SqlStore) -> Invitation:
            invitation = store.invitation(request.name)
            if invitation is None:
                raise InvitationNotFound(f"there is no {request.name}", invitation=request.name)
            store.end_invitation(invitation.secret_id)
            return store.invitation(request.name) or invitation

        ended = await self._federation.write(end)
        return svc.RevokeInvitationResponse(invitation=self._shown(ended))

    def _shown(self, invitation: Invitation) -> ppb.Invitation:
        return invitation_to_proto(invitation, expired=invitation.expire_time <= self._clock.now())

    async def Join(self, request: svc.JoinRequest, context: _Context) -> svc.JoinResponse:
        # What has begun is finished, whether or not the caller waits: the other side may know of it already.
        peer = await asyncio.shield(self._joiner.join(request.token, request.peer_id))
        return svc.JoinResponse(peer=peer_to_proto(peer))

    # Pairings by digits.

    async def OpenPairing(
        self, request: svc.OpenPairingRequest, context: _Context
    ) -> svc.OpenPairingResponse:
        lifetime = duration_field(request, "lifetime")
        until = await self._port.open_window(DEFAULT_WINDOW if lifetime is None else lifetime)
        where = self._port.addresses()
        return svc.OpenPairingResponse(address=where[0] if where else "", close_time=to_proto(until))

    async def RequestPairing(
        self, request: svc.RequestPairingRequest, context: _Context
    ) -> svc.RequestPairingResponse:
        address = addresses.check(request.address, "address")
        session = await self._asker.request(address, request.peer_id)
        return svc.RequestPairingResponse(pairing=pairing_to_proto(session))

    async def ListPairings(
        self, request: svc.ListPairingsRequest, context: _Context
    ) -> svc.ListPairingsResponse:
        found = await self._federation.read(lambda store: store.sessions(MOST_PAIRINGS))
        shown = [pairing_to_proto(session) for session in found if session.step is not Step.WAITING]
        return svc.ListPairingsResponse(pairings=shown)

    async def ApprovePairing(
        self, request: svc.ApprovePairingRequest, context: _Context
    ) -> svc.ApprovePairingResponse:
        session = await self._federation.read(lambda store: _session(store, request.name))
        theirs = await self._introductions.read(Introduction.FromString(session.theirs))

        def approve(store: SqlStore) -> Session:
            current = _session(store, request.name)
            return admission.approve(store, current, request.code, request.peer_id, theirs.candidate)

        approved = await self._federation.write(approve)
        if approved.step is Step.FAILED:
            log.warning("the digits of a pairing differ", pairing=approved.name, address=approved.address)
            await self._tell(approved)
            problem = "is not what this Hopper shows: somebody may be in between, so this pairing is over"
            raise InvalidArgument(violations=[FieldViolation("code", problem)])
        return svc.ApprovePairingResponse(pairing=pairing_to_proto(approved))

    async def DeclinePairing(
        self, request: svc.DeclinePairingRequest, context: _Context
    ) -> svc.DeclinePairingResponse:
        def decline(store: SqlStore) -> Session:
            declined = _session(store, request.name).moved(Move.DECLINE, store.now)
            store.save_session(declined)
            return declined

        declined = await self._federation.write(decline)
        await self._tell(declined)
        return svc.DeclinePairingResponse(pairing=pairing_to_proto(declined))

    async def _tell(self, session: Session) -> None:
        """Tell the other that nothing comes of it, if this Hopper asked; whoever does not hear it waits in vain."""
        if not session.outgoing:
            return
        try:
            async with asyncio.timeout(TELL_SECONDS):
                await self._asker.exchange(session)
        except (HopperError, TimeoutError) as error:
            log.info("the other does not hear that a pairing is over", pairing=session.name, error=str(error))

    # Peers.

    async def ListPeers(self, request: svc.ListPeersRequest, context: _Context) -> svc.ListPeersResponse:
        after = str(self._tokens.decode(request.page_token, request).get("after", ""))
        size = page_size(request.page_size)
        found = await self._federation.read(
            lambda store: store.peers(after=after, limit=size + 1, blocked=request.include_blocked)
        )
        page, more = found[:size], len(found) > size
        token = self._tokens.encode({"after": page[-1].name}, request) if more else ""
        return svc.ListPeersResponse(peers=[peer_to_proto(peer) for peer in page], next_page_token=token)

    async def GetPeer(self, request: svc.GetPeerRequest, context: _Context) -> svc.GetPeerResponse:
        peer = await self._federation.read(lambda store: _peer(store, request.name))
        return svc.GetPeerResponse(peer=peer_to_proto(peer))

    async def RenamePeer(self, request: svc.RenamePeerRequest, context: _Context) -> svc.RenamePeerResponse:
        def effect(store: SqlStore) -> svc.RenamePeerResponse:
            peer = admission.rename(store, _peer(store, request.name), request.peer_id)
            return svc.RenamePeerResponse(peer=peer_to_proto(peer))

        return await self._federation.answer(request, svc.RenamePeerResponse, effect)

    async def SetPeerAddresses(
        self, request: svc.SetPeerAddressesRequest, context: _Context
    ) -> svc.SetPeerAddressesResponse:
        where = addresses.check_all(request.addresses, "addresses")

        def effect(store: SqlStore) -> svc.SetPeerAddressesResponse:
            peer = admission.move(store, _peer(store, request.name), where)
            return svc.SetPeerAddressesResponse(peer=peer_to_proto(peer))

        return await self._federation.answer(request, svc.SetPeerAddressesResponse, effect)

    async def WatchPeers(
        self, request: svc.WatchPeersRequest, context: _Context
    ) -> AsyncIterator[svc.WatchPeersResponse]:
        after = request.after_version
        if not after:
            after, found = await self._federation.read(lambda store: (store.version, store.peers()))
            for peer in found:
                yield svc.WatchPeersResponse(version=after, peer=peer_to_proto(peer))
            yield svc.WatchPeersResponse(version=after, snapshot_count=len(found))
        async with aclosing(self._federation.changes(after=after)) as batches:
            async for batch in batches:
                for event in batch:
                    yield _peer_event(event)


def _add_invitation(store: SqlStore, invitation: Invitation) -> None:
    """
    Keep an invitation.

    Raises:
        PeerExists: The name is a peer's, and that one is not blocked.
        PairingFull: Too many may be redeemed already.
    """
    name = f"peers/{invitation.peer_id}"
    there = store.peer(name)
    if there is not None and there.level is not Level.BLOCKED:
        raise PeerExists(
            f"{name} is a peer already: choose another name", peer=name, install_id=there.install_id
        )
    pending = store.open_invitations()
    if pending >= MOST_OPEN_INVITATIONS:
        raise PairingFull(
            f"{pending} invitations may be redeemed already: end some with `hopper peer invitations --end`",
            pending=str(pending),
            limit=str(MOST_OPEN_INVITATIONS),
        )
    store.add_invitation(invitation)


def _checked_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    violations, found = [], []
    for number, host in enumerate(hosts):
        try:
            found.append(addresses.check_host(host))
        except ValueError as error:
            violations.append(FieldViolation(f"hosts[{number}]", str(error)))
    if violations:
        raise InvalidArgument(violations=violations)
    return tuple(found)


def _peer(store: SqlStore, name: str) -> Peer:
    peer = store.peer(name)
    if peer is None:
        raise PeerNotFound(f"there is no {name}", peer=name)
    return peer


def _session(store: SqlStore, name: str) -> Session:
    session = store.session(name)
    if session is None or session.overdue(store.now):
        raise PairingWrongStep(
            f"{name} is not under way: begin again with `hopper peer request`", session=name, step="NONE"
        )
    return session


def _peer_event(event: Event) -> svc.WatchPeersResponse:
    if event.topic == PEER_REMOVED:
        return svc.WatchPeersResponse(version=event.version, removed=event.key)
    return svc.WatchPeersResponse(version=event.version, peer=ppb.Peer.FromString(event.body))
