"""
Redeeming another Hopper's invitation: `hopper peer join`.

    token ─► nonce, durable ─► certificate looked at ─► Redeem ─► answer proved ─► peer and roots, durable ─► words

The nonce is kept before anything is sent, so that whoever dies in between may simply say the same again: the other side
knows a repeat by it and gives the same answer, and both show the same words.
"""

import secrets
from collections.abc import Callable

import structlog

from hopper.federation.v1.pairing_service_pb2 import GetRotationRequest, RedeemRequest, RedeemResponse
from hopper_common import failpoints
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.identity.bundles import roots_of, verify_bundle
from hopper_common.identity.certificates import issued_by
from hopper_common.identity.errors import BundleInvalid, SignatureInvalid
from hopper_federation import admission, dialling, tokens, transcript
from hopper_federation.dialling import Shown
from hopper_federation.errors import InvitationExpired, PeerImpostor, PeerUnreachable
from hopper_federation.introductions import Introduced, Introductions, point_of
from hopper_federation.model import MOST_SKEW, Peer
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.tokens import Token
from hopper_federation.transcript import Side
from hopper_federation.trust import Level

log = structlog.get_logger(__name__)


class Joiner:
    """Redeems invitations of others."""

    def __init__(self, federation: Federation, introductions: Introductions) -> None:
        self._federation = federation
        self._introductions = introductions

    async def join(self, text: str, peer_id: str) -> Peer:
        """
        Redeem an invitation. What was redeemed before is not redeemed again.

        Args:
            text: The token.
            peer_id: What the peer will be called here.

        Raises:
            HopperError: As `PeerAdminService.Join` says.
        """
        token = tokens.decode(text)
        self._check(token)
        fresh = secrets.token_bytes(transcript.NONCE_BYTES)

        def prepare(store: SqlStore) -> tuple[Peer | None, bytes]:
            admission.require_free(store, peer_id, token.install_id)
            nonce = store.join_nonce(token.invitation, token.install_id, fresh)
            return store.peer_of(token.install_id) if store.joined(token.invitation) else None, nonce

        there, nonce = await self._federation.write(prepare)
        if there is not None:
            return there
        await failpoints.reach("join.before", "federation")
        answerer, words = await self._redeemed(token, nonce)
        await failpoints.reach("join.answered", "federation")

        def finish(store: SqlStore) -> Peer:
            store.finish_join(token.invitation)
            return admission.admit(store, answerer.candidate, peer_id, Level.KNOWN, words)

        peer = await self._federation.write(finish)
        log.info("paired by an invitation", peer=peer.name, install_id=peer.install_id)
        return peer

    def _check(self, token: Token) -> None:
        if token.install_id == self._introductions.identity.install_id:
            raise InvalidArgument(
                violations=[
                    FieldViolation("token", "is this Hopper's own invitation: give it to the other owner")
                ]
            )
        # As far as this clock can tell: the other's may be behind it.
        if token.expire_time + MOST_SKEW < self._introductions.now():
            raise InvitationExpired(f"the invitation ran out at {token.expire_time}: ask for a new one")
        if not token.addresses:
            raise InvalidArgument(violations=[FieldViolation("token", "names no address")])

    async def _redeemed(self, token: Token, nonce: bytes) -> tuple[Introduced, tuple[str, ...]]:
        """Ask at each address in turn, until somebody answers who may."""
        failures: list[PeerUnreachable | PeerImpostor] = []
        for address in token.addresses:
            try:
                shown = await self._seen(address, token)
                return await self._redeem(shown, token, nonce)
            except (PeerUnreachable, PeerImpostor) as error:
                failures.append(error)
        # Somebody in the other's place is worse news than nobody.
        raise next((each for each in failures if isinstance(each, PeerImpostor)), failures[-1])

    async def _seen(self, address: str, token: Token) -> Shown:
        try:
            shown = await dialling.look(address)
        except ValueError as error:
            raise dialling.unreachable(address, str(error)) from error
        shown.check_is(token.install_id)
        shown.check_times(self._introductions.now())
        try:
            shown.check_issued_by(token.root_key)
        except PeerImpostor:
            if not await self._issued_later(shown, token):
                raise
        return shown

    async def _issued_later(self, shown: Shown, token: Token) -> bool:
        """Whether it was issued by a root that has followed the one of the invitation since, as its bundle proves."""
        request = GetRotationRequest()
        async with dialling.pinned(shown) as pairing:
            answer = await dialling.called(
                shown.address, lambda: pairing.GetRotation(request, timeout=dialling.CALL_SECONDS)
            )
        try:
            bundle = verify_bundle(answer.bundle, now=self._introductions.now())
        except (BundleInvalid, SignatureInvalid):
            return False
        roots = roots_of(bundle)
        since = next(
            (number for number, root in enumerate(roots) if point_of(root) == token.root_key), len(roots)
        )
        return bundle.install_id == token.install_id and issued_by(shown.certificate, roots[since:])

    async def _redeem(self, shown: Shown, token: Token, nonce: bytes) -> tuple[Introduced, tuple[str, ...]]:
        inviter = Side(token.install_id, token.root_key)
        binding = transcript.invitation_binding(token.invitation, inviter, self._introductions.side(), nonce)
        key = transcript.key_of(token.secret)
        response = await self._called(shown, lambda: self._request(token, binding, key, nonce))
        answerer = await self._proved(response, token, binding, key)
        return answerer, transcript.invitation_words(binding, response.nonce)

    def _request(self, token: Token, binding: bytes, key: bytes, nonce: bytes) -> RedeemRequest:
        ours = self._introductions.ours()
        told = self._introductions.read_ours(ours)
        identity = self._introductions.identity
        return RedeemRequest(
            invitation=token.invitation,
            introduction=ours,
            nonce=nonce,
            proof=transcript.redeem_proof(key, binding, told),
            signature=identity.sign_with_root(transcript.redeem_signed(binding, told)),
        )

    async def _called(self, shown: Shown, request: Callable[[], RedeemRequest]) -> RedeemResponse:
        async def once() -> RedeemResponse:
            async with dialling.pinned(shown) as pairing:
                return await dialling.called(
                    shown.address, lambda: pairing.Redeem(request(), timeout=dialling.CALL_SECONDS)
                )

        try:
            return await once()
        except PeerUnreachable:  # perhaps only the answer was lost; over another connection
            return await once()

    async def _proved(self, response: RedeemResponse, token: Token, binding: bytes, key: bytes) -> Introduced:
        """
        Check that who answered made the invitation.

        Raises:
            PeerImpostor, SignatureInvalid, ClockSkew, UnsupportedVersion: They did not, or cannot be talked to.
        """
        answerer = await self._introductions.read(response.introduction)
        if answerer.bundle.install_id != token.install_id or not answerer.has_root(token.root_key):
            raise PeerImpostor(expected=token.install_id, found=answerer.bundle.install_id)
        proof = transcript.answer_proof(key, binding, response.nonce, answerer.told)
        if len(response.nonce) != transcript.NONCE_BYTES or not transcript.same(proof, response.proof):
            raise SignatureInvalid("who answered does not know the invitation's secret", what="answer")
        answerer.check_meets(self._introductions.now())
        return answerer
