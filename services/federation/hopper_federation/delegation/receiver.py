"""
Takes what peers say of hand-overs: read and verified first, then done in one transaction, and answered once that is
durable.

    Deliver ─► read, verify ─► one transaction: inbox ─► desk ─► receipts ─► commit ─► answer

Whoever asks may go away in the middle: what was begun is finished all the same, and the same question gets its answer
from the inbox. A message that nothing can be made of is refused by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.auth.rates import Bucket, Rate
from hopper_common.errors import HopperError
from hopper_common.identity.errors import SignatureInvalid
from hopper_federation.delegation import syncing, wire
from hopper_federation.delegation.desk import Raised
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Alarm, Message, Offer, OfferFacts, Receipt, Result, Role
from hopper_federation.delegation.ports import Opener
from hopper_federation.errors import ResyncNeeded
from hopper_federation.trust import Alert

log = structlog.get_logger(__name__)

OFFERS: Final = Rate(10, 50)
"""How many offers of a peer are looked at, whatever its policy says."""

MESSAGES: Final = Rate(1_000, 5_000)
"""How many messages of a peer are done, of any other kind: far more than come of what it may be offered."""

SPOILT_WAITS: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Arrived:
    """
    A message that came.

    Attributes:
        is_offer: It offers a task, or means to.
        message: What it says, if it may be done.
        refusal: Why not, otherwise.
    """

    id: str
    digest: bytes
    is_offer: bool = False
    message: Message | None = None
    refusal: Receipt | None = None


class Receiver:
    """
    The answers to `PeerService.Deliver` and `Sync`.

    Args:
        free_slots: How many more tasks this Hopper would take from a peer now.
        monotonic: Seconds, of a clock that never goes back.
    """

    def __init__(
        self,
        desks: Desks,
        opener: Opener,
        *,
        free_slots: Callable[[str], Awaitable[int]],
        monotonic: Callable[[], float],
    ) -> None:
        self._desks = desks
        self._opener = opener
        self._free_slots = free_slots
        self._monotonic = monotonic
        self._buckets: dict[tuple[str, Rate], Bucket] = {}
        self._on_restored: list[Callable[[str], None]] = []
        self._on_refused: list[Callable[[str, str, str], None]] = []

    def on_restored(self, callback: Callable[[str], None]) -> None:
        """Call back with the install id of a peer that has begun anew: what it has lost, only this Hopper knows."""
        self._on_restored.append(callback)

    def on_refused(self, callback: Callable[[str, str, str], None]) -> None:
        """Call back with the install id, the reason, and what decided, for each offer that is not taken."""
        self._on_refused.append(callback)

    async def deliver(self, peer: str, request: svc.DeliverRequest) -> svc.DeliverResponse:
        """
        Do what the messages of a peer say, each once.

        Raises:
            ResyncNeeded: Notes have to be compared first.
            StorageFull, StorageUnavailable: Nothing was done.
        """
        offers = await self._offers_behind(request.messages)
        arrived = []
        for proto in request.messages:
            arrived.append(self._read(peer, proto, offers.get(proto.delegation, b"")))
            await asyncio.sleep(0)  # signatures take a while, and others want to be served
        receipts = await self._desks.to_the_end(self._take(peer, request.incarnation, arrived))
        return svc.DeliverResponse(
            receipts=[wire.receipt_to_proto(receipt) for receipt in receipts],
            free_slots=await self._free_slots(peer),
        )

    async def sync(self, peer: str, request: svc.SyncRequest) -> svc.SyncResponse:
        """
        Compare notes with a peer.

        Raises:
            StorageFull, StorageUnavailable: Nothing was done.
        """
        before = await self._desks.read(lambda rows: rows.incarnation_of(peer))
        response = await self._desks.write(lambda sitting: syncing.answered(sitting, peer, request))
        if before not in (0, request.incarnation):
            for tell in self._on_restored:
                tell(peer)
        return response

    # Reading.

    async def _offers_behind(self, messages: Sequence[pb.Message]) -> dict[str, bytes]:
        """What this Hopper had offered, of the hand-overs that are said to have ended."""
        ended = {proto.delegation for proto in messages if proto.WhichOneof("body") == "result"}
        if not ended:
            return {}
        found = await self._desks.read(
            lambda rows: [rows.delegation(Role.OUT, delegation) for delegation in sorted(ended)]
        )
        return {each.id: each.offer for each in found if each is not None}

    def _read(self, peer: str, proto: pb.Message, offer: bytes) -> Arrived:
        digest, kind = wire.digest_of(proto), proto.WhichOneof("body")
        is_offer = kind == "offer"
        wait = self._too_fast(peer, OFFERS if is_offer else MESSAGES)
        if wait is not None:
            return Arrived(proto.id, digest, is_offer, refusal=wait)
        try:
            message = wire.message_from_proto(proto, self._opened(peer, proto) if is_offer else None)
            if isinstance(message.body, Result) and offer:
                self._opener.check_result(peer, offer, message.body.sealed)
            return Arrived(proto.id, digest, is_offer, message=message)
        except HopperError as error:
            self._raise_alarm(peer, proto.delegation, error)
            return Arrived(proto.id, digest, is_offer, refusal=_refusal(error))

    def _opened(self, peer: str, proto: pb.Message) -> OfferFacts:
        return self._opener.open_offer(peer, proto.delegation, proto.epoch, wire.sealed_offer(proto))

    def _too_fast(self, peer: str, rate: Rate) -> Receipt | None:
        now = self._monotonic()
        bucket = self._buckets.get((peer, rate))
        if bucket is None:
            bucket = self._buckets[peer, rate] = Bucket(rate, now)
        wait = bucket.take(now)
        if not wait:
            return None
        what = "offers" if rate is OFFERS else "messages"
        detail = f"{rate.per_second:g} {what} a second are looked at"
        return Receipt("", None, "QUOTA", detail, wait)

    def _raise_alarm(self, peer: str, delegation: str, error: HopperError) -> None:
        if isinstance(error, SignatureInvalid) and error.retry_after is None:
            log.warning("a peer has sent what was not signed so", install_id=peer, problem=error.message)
            alarm = Alarm(Alert.SIGNATURE_FAILED, error.message)
            self._desks.raise_alarm(Raised(peer, delegation, alarm))

    # Doing.

    async def _take(self, peer: str, incarnation: int, arrived: Sequence[Arrived]) -> list[Receipt]:
        try:
            done = await self._desks.write(lambda sitting: _do_all(sitting, peer, incarnation, arrived))
        except HopperError:
            raise
        except Exception:
            log.exception("messages of a peer cannot be done together", install_id=peer)
            # So that one of them holds up no other.
            done = await self._desks.write(lambda sitting: _do_each(sitting, peer, incarnation, arrived))
        for message, receipt in zip(arrived, done.receipts, strict=True):
            if message.is_offer and receipt.reason:
                rule = done.rules.get(_task_uid(message)) or receipt.detail
                for tell in self._on_refused:
                    tell(peer, receipt.reason, rule)
        return done.receipts


@dataclass(frozen=True, slots=True)
class _Done:
    """
    What became of messages.

    Attributes:
        rules: Of the policy, that refused a task, by its uid.
    """

    receipts: list[Receipt]
    rules: Mapping[str, str]


def _task_uid(arrived: Arrived) -> str:
    body = None if arrived.message is None else arrived.message.body
    return "" if not isinstance(body, Offer) or body.facts is None else body.facts.task_uid


def _do_all(sitting: Sitting, peer: str, incarnation: int, arrived: Sequence[Arrived]) -> _Done:
    _check_incarnation(sitting, peer, incarnation)
    _foresee(sitting, peer, arrived)
    return _Done([_do(sitting, peer, each) for each in arrived], sitting.border.refused_by)


def _do_each(sitting: Sitting, peer: str, incarnation: int, arrived: Sequence[Arrived]) -> _Done:
    """The same, and what fails is undone by itself."""
    _check_incarnation(sitting, peer, incarnation)
    receipts = []
    for each in arrived:
        try:
            with sitting.rows.apart():
                receipts.append(_do(sitting, peer, each))
        except (HopperError, SQLAlchemyError):
            raise
        except Exception:
            log.exception("a message of a peer cannot be done", install_id=peer, message=each.id)
            wait = SPOILT_WAITS.total_seconds()
            receipts.append(Receipt(each.id, None, "INTERNAL", "it could not be done", wait))
    return _Done(receipts, sitting.border.refused_by)


def _foresee(sitting: Sitting, peer: str, arrived: Sequence[Arrived]) -> None:
    """Ask once for what all of them are about."""
    messages = [each.message for each in arrived if each.message is not None]
    facts = [each.body.facts for each in messages if isinstance(each.body, Offer)]
    sitting.rows.foresee(
        peer,
        messages=[each.id for each in arrived],
        ids=[each.delegation for each in messages],
        task_uids=[each.task_uid for each in facts if each is not None],
    )


def _check_incarnation(sitting: Sitting, peer: str, incarnation: int) -> None:
    known = sitting.rows.incarnation_of(peer)
    if incarnation == known:
        return
    if known and sitting.rows.open_of(peer):
        raise ResyncNeeded(peer=peer)
    sitting.rows.save_incarnation_of(peer, incarnation)


def _do(sitting: Sitting, peer: str, arrived: Arrived) -> Receipt:
    if arrived.message is not None:
        return sitting.desk.take(peer, arrived.message)
    if arrived.refusal is None:
        raise RuntimeError("a message was neither read nor refused")
    before = sitting.rows.answer_of(peer, arrived.id)
    if before is not None and before[0] == arrived.digest:
        return before[1]  # it was read once, and what was said then counts
    refusal = replace(arrived.refusal, message=arrived.id)
    if before is None and refusal.retry_after is None:
        sitting.rows.keep_answer(peer, arrived.digest, refusal, sitting.now)
    return refusal


def _refusal(error: HopperError) -> Receipt:
    wait = error.retry_after
    return Receipt("", None, error.reason, error.message, None if wait is None else wait.total_seconds())
