"""
What strangers may ask, one method per RPC; behind the pairing port, and nowhere else.

Each call has been counted against its network's rate before (`strangers`). Whether an invitation exists is told to
those alone who prove that they hold it.
"""

import secrets
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc.aio
import structlog

from hopper.federation.v1 import pairing_service_pb2 as psvc
from hopper.federation.v1.pairing_service_pb2_grpc import PairingServiceServicer
from hopper_common import failpoints
from hopper_common.clock import Clock
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.identity.certificates import to_der
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.ids import Ids
from hopper_common.timestamps import to_proto
from hopper_federation import admission, transcript
from hopper_federation.admission import Outcome, Redemption
from hopper_federation.convert import verdict_from_proto, verdict_to_proto
from hopper_federation.dialling import SERVICE_PATH
from hopper_federation.errors import (
    InvitationExpired,
    InvitationRefused,
    InvitationUsed,
    PairingCommitmentBroken,
    PairingFull,
    PairingWrongStep,
)
from hopper_federation.introductions import Introduced, Introductions
from hopper_federation.model import MOST_WRONG_PROOFS, Invitation
from hopper_federation.pairing import (
    MOST_PENDING,
    MOST_PENDING_OF_SOURCE,
    TIME_TO_LIVE,
    Event,
    Session,
    Step,
)
from hopper_federation.pairing_port import Window
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.strangers import caller_network
from hopper_federation.transcript import Side

log = structlog.get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class PairingServicer(PairingServiceServicer):
    """
    `hopper.federation.v1.PairingService`.

    Args:
        window: Whether the owner lets others ask to pair by digits now.
    """

    def __init__(
        self,
        federation: Federation,
        introductions: Introductions,
        clock: Clock,
        window: Window,
    ) -> None:
        self._federation = federation
        self._introductions = introductions
        self._clock = clock
        self._ids = Ids()  # later ones come later in lists, whatever the clock does
        self._window = window

    async def Introduce(self, request: psvc.IntroduceRequest, context: _Context) -> psvc.IntroduceResponse:
        return psvc.IntroduceResponse(introduction=self._introductions.ours())

    async def GetRotation(
        self, request: psvc.GetRotationRequest, context: _Context
    ) -> psvc.GetRotationResponse:
        return psvc.GetRotationResponse(bundle=self._introductions.identity.bundle())

    # By invitation.

    async def Redeem(self, request: psvc.RedeemRequest, context: _Context) -> psvc.RedeemResponse:
        source = caller_network(context)
        _check_lengths(request, invitation=16, nonce=transcript.NONCE_BYTES)
        redeemer = await self._introductions.read(request.introduction)
        invitation = await self._federation.read(lambda store: store.invitation_of(request.invitation))
        binding = self._binding(request, redeemer, invitation)
        if invitation is None or not _proves(invitation.key, binding, redeemer, request):
            await self._refuse(invitation, source)
        signed = transcript.redeem_signed(binding, redeemer.told)
        redeemer.verify(request.signature, signed, "transcript")
        redeemer.check_meets(self._introductions.now())
        redemption = await self._redeemed(request, redeemer, invitation, binding)
        await failpoints.reach("redeem.done", "federation")
        self._note(redemption, invitation, source)
        return self._answer(redemption, invitation, binding)

    def _binding(
        self, request: psvc.RedeemRequest, redeemer: Introduced, invitation: Invitation | None
    ) -> bytes:
        root_key = invitation.root_key if invitation is not None else b""
        inviter = Side(self._introductions.identity.install_id, root_key)
        return transcript.invitation_binding(request.invitation, inviter, redeemer.told.side, request.nonce)

    async def _refuse(self, invitation: Invitation | None, source: str) -> NoReturn:
        """
        Refuse who does not hold the token, in the same words whether there is such an invitation or not.

        Raises:
            InvitationRefused: Always.
        """
        if invitation is not None:
            secret_id = invitation.secret_id
            log.warning("a wrong proof for an invitation", invitation=invitation.name, source=source)
            await self._federation.write(lambda store: store.count_wrong_proof(secret_id, MOST_WRONG_PROOFS))
        raise InvitationRefused

    async def _redeemed(
        self, request: psvc.RedeemRequest, redeemer: Introduced, invitation: Invitation, binding: bytes
    ) -> Redemption:
        fresh = secrets.token_bytes(transcript.NONCE_BYTES)
        return await self._federation.write(
            lambda store: admission.redeem(
                store,
                invitation,
                redeemer.candidate,
                nonce=request.nonce,
                our_nonce=fresh,
                words_of=lambda nonce: transcript.invitation_words(binding, nonce),
            )
        )

    def _note(self, redemption: Redemption, invitation: Invitation, source: str) -> None:
        """
        Log what came of it.

        Raises:
            InvitationUsed, InvitationExpired: It was not redeemed for this redeemer.
        """
        peer = redemption.peer.name if redemption.peer is not None else ""
        if redemption.outcome is Outcome.DONE:
            log.info("an invitation was redeemed", invitation=invitation.name, peer=peer, source=source)
        elif redemption.outcome is Outcome.USED:
            log.warning(
                "somebody else holds an invitation that was redeemed: compare the words with the peer",
                invitation=invitation.name,
                peer=peer,
                source=source,
            )
            raise InvitationUsed
        elif redemption.outcome is Outcome.EXPIRED:
            raise InvitationExpired

    def _answer(self, redemption: Redemption, invitation: Invitation, binding: bytes) -> psvc.RedeemResponse:
        ours = self._introductions.ours()
        told = self._introductions.read_ours(ours)
        nonce = redemption.our_nonce
        proof = transcript.answer_proof(invitation.key, binding, nonce, told)
        return psvc.RedeemResponse(introduction=ours, nonce=nonce, proof=proof)

    # By digits.

    async def StartPairing(
        self, request: psvc.StartPairingRequest, context: _Context
    ) -> psvc.StartPairingResponse:
        source = caller_network(context)
        _check_lengths(request, commitment=32)
        if not self._window.open:
            raise PairingWrongStep(
                "this Hopper's owner does not pair now: they open pairing with `hopper peer open`",
                step="OPEN",
            )
        # First, because it costs least: most callers of a flood get no further.
        await self._federation.read(lambda store: _check_room(store, source))
        asker = await self._introductions.read(request.introduction)
        asker.check_meets(self._introductions.now())
        ours = self._introductions.ours()
        now = self._clock.now()
        session = Session(
            id=self._ids.new(now),
            session=secrets.token_bytes(transcript.SESSION_BYTES),
            outgoing=False,
            install_id=asker.bundle.install_id,
            claimed_name=asker.shown_name,
            address=unquote(context.peer().partition(":")[2]),
            create_time=now,
            expire_time=now + TIME_TO_LIVE,
            source=source,
            ours=ours.SerializeToString(),
            theirs=request.introduction.SerializeToString(),
            commitment=request.commitment,
            our_nonce=secrets.token_bytes(transcript.NONCE_BYTES),
            leaf=to_der(self._introductions.identity.leaf(SERVICE_PATH).certificate),
        )
        await self._federation.write(lambda store: _begin(store, session))
        log.info("somebody asks to pair", pairing=session.name, install_id=session.install_id, source=source)
        return psvc.StartPairingResponse(
            session=session.session,
            introduction=ours,
            nonce=session.our_nonce,
            expire_time=to_proto(session.expire_time),
        )

    async def RevealPairing(
        self, request: psvc.RevealPairingRequest, context: _Context
    ) -> psvc.RevealPairingResponse:
        session, asker = await self._asked(request.session)
        binding = self._digits_binding(session, asker, request.nonce)
        problem = _revealed_wrongly(session, asker, request, binding)

        def take(store: SqlStore) -> Session | None:
            current = store.session_of(request.session)
            if current is None or (current.open and current.binding == binding):
                return current  # said again: the answer was lost
            if problem is not None:
                moved = current.moved(Event.BREAK, store.now, failure=problem.reason)
            else:
                moved = current.revealed(request.nonce, binding, transcript.code_of(binding), store.now)
            store.save_session(moved)
            return moved

        moved = await self._federation.write(take)
        if problem is not None:
            log.warning("a pairing does not add up", pairing=session.name, reason=problem.reason)
            raise problem
        if moved is None or moved.step is Step.FAILED:
            raise _no_session(request.session)
        data = transcript.revealed_signed(binding, asker=False)
        return psvc.RevealPairingResponse(signature=self._introductions.identity.sign_with_root(data))

    async def ConfirmPairing(
        self, request: psvc.ConfirmPairingRequest, context: _Context
    ) -> psvc.ConfirmPairingResponse:
        session, asker = await self._asked(request.session)
        verdict = verdict_from_proto(request.verdict)
        if not session.binding:
            raise PairingWrongStep("the nonce is not revealed yet", session=session.name, step=session.step)
        asker.verify(
            request.signature, transcript.verdict_signed(session.binding, verdict, asker=True), "verdict"
        )

        def take(store: SqlStore) -> Session:
            current = store.session_of(request.session) or session
            # Both know of the other's verdict already: the asker only has not heard of this side's.
            if not current.open:
                return current
            return admission.heard(store, current, verdict, asker.candidate)

        taken = await self._federation.write(take)
        if taken.step is Step.DONE and session.step is not Step.DONE:
            log.info("paired by digits", pairing=taken.name, peer=f"peers/{taken.peer_id}")
        data = transcript.verdict_signed(taken.binding, taken.verdict, asker=False)
        return psvc.ConfirmPairingResponse(
            verdict=verdict_to_proto(taken.verdict),
            signature=self._introductions.identity.sign_with_root(data),
        )

    async def _asked(self, session: bytes) -> tuple[Session, Introduced]:
        """
        The pairing of that id, and who asked for it.

        Raises:
            PairingWrongStep: There is none, or its time is over.
        """
        found = await self._federation.read(lambda store: store.session_of(session))
        if found is None or found.overdue(self._clock.now()):
            raise _no_session(session)
        asker = await self._introductions.read(psvc.Introduction.FromString(found.theirs))
        return found, asker

    def _digits_binding(self, session: Session, asker: Introduced, nonce: bytes) -> bytes:
        ours = self._introductions.read_ours(psvc.Introduction.FromString(session.ours))
        return transcript.digits_binding(
            session.session, nonce, session.our_nonce, asker.told, ours, session.leaf
        )


def _proves(key: bytes, binding: bytes, redeemer: Introduced, request: psvc.RedeemRequest) -> bool:
    return transcript.same(transcript.redeem_proof(key, binding, redeemer.told), request.proof)


def _check_lengths(request: Any, **lengths: int) -> None:
    violations = [
        FieldViolation(field, f"must be {length} bytes")
        for field, length in lengths.items()
        if len(getattr(request, field)) != length
    ]
    if violations:
        raise InvalidArgument(violations=violations)


def _check_room(store: SqlStore, source: str) -> None:
    """
    Refuse one more pairing that waits for an answer, if there are enough.

    Raises:
        PairingFull: Of that network, or of all.
    """
    for network, most in ((source, MOST_PENDING_OF_SOURCE), ("", MOST_PENDING)):
        pending = store.pending(network)
        if pending >= most:
            raise PairingFull(pending=str(pending), limit=str(most))


def _begin(store: SqlStore, session: Session) -> None:
    _check_room(store, session.source)
    store.save_session(session)


def _revealed_wrongly(
    session: Session, asker: Introduced, request: psvc.RevealPairingRequest, binding: bytes
) -> HopperError | None:
    """What does not add up about a reveal; None: nothing."""
    expected = transcript.commitment(request.nonce, asker.told.side)
    if not transcript.same(expected, session.commitment):
        return PairingCommitmentBroken(session=session.name)
    try:
        asker.verify(request.signature, transcript.revealed_signed(binding, asker=True), "transcript")
    except SignatureInvalid as error:
        return error
    return None


def _no_session(session: bytes) -> PairingWrongStep:
    return PairingWrongStep("no such pairing is under way: begin again", session=session.hex(), step="NONE")
