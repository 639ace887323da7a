"""
Pairing by digits, on the side that asks: `hopper peer request`.

The first two calls are made at once, and then the digits are shown. What the owners decide is exchanged afterwards:
every two seconds the other is told this side's verdict and asked for its own, until both have approved, one has
declined, or the time runs out. A pairing lives in the store, so a restart in between loses nothing.
"""

import asyncio
import secrets
from typing import Final

import structlog
from cryptography import x509

from hopper.federation.v1.pairing_service_pb2 import (
    ConfirmPairingRequest,
    Introduction,
    RevealPairingRequest,
    StartPairingRequest,
    StartPairingResponse,
)
from hopper_common.clock import Clock
from hopper_common.errors import HopperError, Overloaded, StorageFull, StorageUnavailable
from hopper_common.identity.bundles import roots_of
from hopper_common.identity.certificates import issued_by
from hopper_common.ids import Ids
from hopper_federation import admission, dialling, transcript
from hopper_federation.convert import verdict_from_proto, verdict_to_proto
from hopper_federation.dialling import Shown
from hopper_federation.errors import PairingCommitmentBroken, PairingFull, PeerImpostor
from hopper_federation.introductions import Introduced, Introductions
from hopper_federation.pairing import MOST_PENDING, TIME_TO_LIVE, Session, Verdict
from hopper_federation.store_sql import Federation, SqlStore

log = structlog.get_logger(__name__)

ASK_EVERY: Final = 1.0
LEAST_PAUSE: Final = 1.0
SOONEST_AGAIN: Final = 0.1


class Asker:
    """Pairs with others by digits."""

    def __init__(self, federation: Federation, introductions: Introductions, clock: Clock) -> None:
        self._federation = federation
        self._introductions = introductions
        self._clock = clock
        self._ids = Ids()  # later ones come later in lists, whatever the clock does

    async def request(self, address: str, peer_id: str) -> Session:
        """
        Ask the Hopper at an address to pair: afterwards both show the same digits, unless somebody is in between.

        Args:
            peer_id: What the peer will be called here.

        Raises:
            HopperError: As `PeerAdminService.RequestPairing` says.
        """
        shown = await dialling.look(address)
        shown.check_times(self._introductions.now())
        await self._federation.read(lambda store: self._check_room(store, peer_id, shown.install_id))
        nonce = secrets.token_bytes(transcript.NONCE_BYTES)
        ours = self._introductions.ours()
        told = self._introductions.read_ours(ours)
        async with dialling.pinned(shown) as pairing:
            start = StartPairingRequest(introduction=ours, commitment=transcript.commitment(nonce, told.side))
            response = await dialling.called(
                address, lambda: pairing.StartPairing(start, timeout=dialling.CALL_SECONDS)
            )
            answerer = await self._met(shown, response)
            session, leaf = response.session, shown.leaf
            binding = transcript.digits_binding(session, nonce, response.nonce, told, answerer.told, leaf)
            signature = self._introductions.identity.sign_with_root(
                transcript.revealed_signed(binding, asker=True)
            )
            reveal = RevealPairingRequest(session=session, nonce=nonce, signature=signature)
            revealed = await dialling.called(
                address, lambda: pairing.RevealPairing(reveal, timeout=dialling.CALL_SECONDS)
            )
        answerer.verify(revealed.signature, transcript.revealed_signed(binding, asker=False), "transcript")
        now = self._clock.now()
        made = Session(
            id=self._ids.new(now),
            session=session,
            outgoing=True,
            install_id=answerer.bundle.install_id,
            claimed_name=answerer.shown_name,
            address=address,
            create_time=now,
            expire_time=now + TIME_TO_LIVE,
            ours=ours.SerializeToString(),
            theirs=response.introduction.SerializeToString(),
            our_nonce=nonce,
            leaf=leaf,
            peer_id=peer_id,
        ).revealed(response.nonce, binding, transcript.code_of(binding), now)
        await self._federation.write(lambda store: store.save_session(made))
        return made

    def _check_room(self, store: SqlStore, peer_id: str, install_id: str) -> None:
        admission.require_free(store, peer_id, install_id)
        pending = len(store.open_sessions(outgoing=True))
        if pending >= MOST_PENDING:
            raise PairingFull(pending=str(pending), limit=str(MOST_PENDING))

    async def _met(self, shown: Shown, response: StartPairingResponse) -> Introduced:
        """Check that the certificate is that of the Hopper which answers, and that its answer makes sense."""
        answerer = await self._introductions.read(response.introduction)
        if answerer.bundle.install_id != shown.install_id or not issued_by(
            shown.certificate, roots_of(answerer.bundle)
        ):
            raise PeerImpostor(expected=shown.install_id, found=answerer.bundle.install_id)
        lengths = len(response.nonce), len(response.session)
        if lengths != (transcript.NONCE_BYTES, transcript.SESSION_BYTES):
            raise PairingCommitmentBroken("the other's nonce or session is not as long as it must be")
        answerer.check_meets(self._introductions.now())
        return answerer

    # Verdicts.

    async def run(self) -> None:
        """Exchange verdicts for ever; after a commit at once, because an owner may have decided."""
        while True:
            commits = self._federation.committed.count
            try:
                waiting = await self.exchange_all()
            except (StorageFull, StorageUnavailable, Overloaded) as error:
                log.warning("verdicts are exchanged later", reason=error.reason)
                waiting = True
            # Whatever is committed meanwhile: calls are counted, and most commits are about work that crosses.
            await asyncio.sleep(LEAST_PAUSE if waiting else SOONEST_AGAIN)
            try:
                async with asyncio.timeout(ASK_EVERY if waiting else None):
                    await self._federation.committed.wait(after=commits)
            except TimeoutError:
                continue

    async def exchange_all(self) -> bool:
        """
        Exchange verdicts once for every pairing that was asked for here.

        Returns:
            Whether any is left that something may still come of.
        """
        sessions = await self._federation.read(lambda store: store.open_sessions(outgoing=True))
        for session in sessions:
            if session.overdue(self._clock.now()):
                continue  # ended by the housekeeper
            try:
                await self.exchange(session)
            except (
                HopperError
            ) as error:  # of the other, or of the way to it: tried again until the time is over
                log.info("a pairing is not answered", pairing=session.name, reason=error.reason)
        return bool(sessions)

    async def exchange(self, session: Session) -> Session:
        """
        Tell this side's verdict, and take the other's.

        Raises:
            HopperError: The other does not answer, or not as it should.
        """
        asked = session.verdict
        answerer = await self._introductions.read(Introduction.FromString(session.theirs))
        theirs = await self._confirmed(session, answerer, asked)

        def take(store: SqlStore) -> Session:
            current = store.session(session.name)
            # An approval counts once the other has heard ours: then both sides know of both.
            if current is None or not current.open or (theirs is Verdict.APPROVED and theirs is not asked):
                return current or session
            return admission.heard(store, current, theirs, answerer.candidate)

        return await self._federation.write(take)

    async def _confirmed(self, session: Session, answerer: Introduced, verdict: Verdict) -> Verdict:
        data = transcript.verdict_signed(session.binding, verdict, asker=True)
        request = ConfirmPairingRequest(
            session=session.session,
            verdict=verdict_to_proto(verdict),
            signature=self._introductions.identity.sign_with_root(data),
        )
        async with dialling.pinned(_shown(session)) as pairing:
            response = await dialling.called(
                session.address, lambda: pairing.ConfirmPairing(request, timeout=dialling.CALL_SECONDS)
            )
        theirs = verdict_from_proto(response.verdict)
        answerer.verify(
            response.signature, transcript.verdict_signed(session.binding, theirs, asker=False), "verdict"
        )
        return theirs


def _shown(session: Session) -> Shown:
    certificate = x509.load_der_x509_certificate(session.leaf)
    return Shown(session.address, session.leaf, certificate, session.install_id)
