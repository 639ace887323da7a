"""
Offers and results as they cross: sealed by whoever says them, opened by whoever they are for.

    origin ── seal_offer ──► B ── open_offer, extend_offer ──► C ── open_offer
    origin ◄── open_result ── B ◄── open_result, countersign ── C ◄── seal_result

TLS protects one link of that way. The signatures protect all of it: a Hopper in between cannot alter the task, allow
more than it was allowed, drop a label, send it round in a circle, or invent a result, without being found out by
whoever knows the keys of the Hopper that it lies about. Whoever does not know them has its word alone.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.timestamps import duration_field, from_proto, time_field, to_proto
from hopper_federation.delegation.chain import (
    KeysOf,
    Kind,
    Link,
    OfferChain,
    Signer,
    check,
    digest,
    from_of,
    labels_of,
    nobodys_keys,
    read_offer,
    read_result,
    redelegation_to_proto,
    sign,
)
from hopper_federation.delegation.model import OfferFacts, Outcome
from hopper_federation.delegation.narrowing import MOST_HOPS, NOBODY, Redelegation, handed_on
from hopper_federation.errors import DelegationLoop


@dataclass(frozen=True, slots=True)
class HandOver:
    """
    One step of a task from one Hopper to the next.

    Attributes:
        to: Install id.
        delegation: Its id, 26 letters and digits.
        lease: As the other two lengths not signed: it is between the two alone.
        schedule_to_start: How long it may wait to be begun; None: as long as is usual.
        schedule_to_close: How long it may take in all; None: likewise.
    """

    to: str
    delegation: str
    epoch: int
    lease: timedelta
    schedule_to_start: timedelta | None = None
    schedule_to_close: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How a task ended where it was executed.

    Attributes:
        failure_reason: Of FAILED: a word.
        failure_message: Of FAILED: for people.
        permanent: Of FAILED: trying again anywhere cannot help.
    """

    outcome: Outcome
    finish_time: datetime
    output: bytes = b""
    artifacts: tuple[dpb.Artifact, ...] = ()
    failure_reason: str = ""
    failure_message: str = ""
    permanent: bool = False
    effort: timedelta | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class ResultFacts:
    """
    What a result says, once it has been verified.

    Attributes:
        executor: Install id of who executed the task.
        verified: The executor's own signature was verified; else it is the peer's word.
    """

    ended: Ended
    executor: str
    verified: bool


# Offers.


def seal_offer(
    identity: Signer,
    body: dpb.TaskBody,
    hand_over: HandOver,
    *,
    task: str,
    redelegation: Redelegation = NOBODY,
    exclusive: bool = False,
    not_after: datetime,
    now: datetime,
) -> dpb.Offer:
    """
    Offer a task of this Hopper's own to another.

    Args:
        body: What of it may leave; see `redaction`.
        task: What this Hopper calls it: the same in every hand-over of it.
        redelegation: What is allowed beyond that Hopper; see `narrowing.at_origin`.
        not_after: Nobody takes it after that.

    Raises:
        IdentityWrongState: This process has no signing key.
    """
    serialised = body.SerializeToString(deterministic=True)
    envelope = dpb.TaskEnvelope(
        task_uid=f"{identity.install_id}/{task}",
        origin=identity.install_id,
        body_digest=digest(serialised),
        create_time=to_proto(now),
        not_after=to_proto(not_after),
        capabilities=body.required_capabilities,
        labels=labels_of(body),
        redelegation=redelegation_to_proto(redelegation),
        exclusive=exclusive,
    )
    signed = sign(identity, Kind.TASK, envelope)
    hop = _hop(identity, signed, hand_over, redelegation, now)
    return _with_lengths(dpb.Offer(envelope=signed, hops=[hop], body=serialised), hand_over)


def extend_offer(
    identity: Signer,
    came: dpb.Offer,
    hand_over: HandOver,
    *,
    spent: int = 0,
    narrowed: Redelegation | None = None,
    now: datetime,
) -> dpb.Offer:
    """
    Offer on a task that came from another Hopper: what came stays byte for byte, and a hop is signed beside it.

    Args:
        came: The offer that was accepted here.
        spent: How many copies of it this Hopper has under way elsewhere; see `narrowing.share`.
        narrowed: What this Hopper's policy allows beyond the next; only what the way here allows too counts.

    Raises:
        DelegationLoop: The task has been there already.
        CapabilityDenied: Those before do not let it go there.
        HopLimit: It may come to no further Hopper.
        FanOutLimit: No copy of it is left.
        IdentityWrongState: This process has no signing key.
    """
    chain = read_offer(came, nobodys_keys)
    check(chain.links)
    if hand_over.to in chain.path:
        raise DelegationLoop(
            f"the task has been at {hand_over.to} already", path=" ".join(chain.path), instance=hand_over.to
        )
    allowed = handed_on(chain.allowed, hand_over.to, spent=spent)
    if narrowed is not None:
        allowed = allowed.meet(narrowed)
    offer = dpb.Offer()
    offer.CopyFrom(came)
    offer.hops.append(_hop(identity, came.hops[-1], hand_over, allowed, now))
    return _with_lengths(offer, hand_over)


def _hop(
    identity: Signer,
    before: dpb.Signed,
    hand_over: HandOver,
    redelegation: Redelegation,
    now: datetime,
) -> dpb.Signed:
    hop = dpb.Hop(
        previous=digest(before.payload),
        to=hand_over.to,
        delegation=hand_over.delegation,
        epoch=hand_over.epoch,
        redelegation=redelegation_to_proto(redelegation),
        create_time=to_proto(now),
    )
    setattr(hop, "from", identity.install_id)
    return sign(identity, Kind.HOP, hop)


def _with_lengths(offer: dpb.Offer, hand_over: HandOver) -> dpb.Offer:
    offer.lease.CopyFrom(to_proto(hand_over.lease))
    for field in ("schedule_to_start", "schedule_to_close"):
        offer.ClearField(field)
        if (length := getattr(hand_over, field)) is not None:
            getattr(offer, field).CopyFrom(to_proto(length))
    return offer


def passes_on(offer: dpb.Offer, came: dpb.Offer) -> bool:
    """Whether an offer hands on what another had brought: the same task may have come before, by another one."""
    return offer.envelope == came.envelope and list(offer.hops[:-1]) == list(came.hops)


def open_offer(
    offer: dpb.Offer,
    *,
    sender: str,
    own: str,
    delegation: str,
    epoch: int,
    keys_of: KeysOf,
    now: datetime,
) -> OfferFacts:
    """
    Read an offer that has come, if everything about it holds.

    Args:
        sender: Install id of who sent it, as proved by its certificate.
        own: This Hopper's.
        delegation: Of the message that brought it.
        epoch: Of the message that brought it.

    Raises:
        SignatureInvalid: Something is not what was signed, or is for another Hopper or another hand-over. `what` tells.
        DelegationLoop: It has been here already.
        CapabilityDenied: It may not be handed on that way.
        HopLimit: It has been through too many Hoppers.
        FanOutLimit: There are too many copies of it.
    """
    chain = read_offer(offer, keys_of)
    check(chain.links)
    _check_meant(chain, sender, own, delegation, epoch)
    _check_known(chain.links[-1])
    return _facts(offer, chain, now)


def _check_meant(chain: OfferChain, sender: str, own: str, delegation: str, epoch: int) -> None:
    hop = chain.hops[-1]
    if own in chain.path[:-1]:
        raise DelegationLoop("the task has been here already", path=" ".join(chain.path), instance=own)
    if (hop.to, from_of(hop)) != (own, sender):
        raise SignatureInvalid("the offer is for another Hopper, or by another", what="to")
    if (hop.delegation, hop.epoch) != (delegation, epoch):
        raise SignatureInvalid("the offer is of another hand-over", what="delegation")


def _check_known(link: Link) -> None:
    if not link.verified:
        raise SignatureInvalid(f"no keys of {link.signer} are known here", what=f"{link.kind} signature")


def _facts(offer: dpb.Offer, chain: OfferChain, now: datetime) -> OfferFacts:
    envelope, body, allowed = chain.envelope, chain.body, chain.allowed
    not_after = time_field(envelope, "not_after")
    start = duration_field(offer, "schedule_to_start")
    return OfferFacts(
        sealed=offer.SerializeToString(),
        task_uid=envelope.task_uid,
        origin=envelope.origin,
        path=chain.path[:-1],
        lease=from_proto(offer.lease).total_seconds(),
        exclusive=envelope.exclusive,
        capabilities=tuple(envelope.capabilities),
        labels=tuple(envelope.labels),
        priority=body.priority,
        size=len(offer.body),
        hops=min(allowed.hops, MOST_HOPS - len(chain.hops)),
        fan_out=allowed.fan_out,
        expired=not_after is not None and now >= not_after,
        schedule_to_start=None if start is None else start.total_seconds(),
        title=body.title,
        made=chain.hops[-1].create_time.seconds,
    )


# Results.


def seal_result(identity: Signer, offer: dpb.Offer, ended: Ended) -> dpb.Result:
    """
    Say how a task ended that was executed here.

    Args:
        offer: The one that was accepted here.

    Raises:
        IdentityWrongState: This process has no signing key.
    """
    hop = _last_hop(offer)
    envelope = dpb.ResultEnvelope(
        task_uid=dpb.TaskEnvelope.FromString(offer.envelope.payload).task_uid,
        delegation=hop.delegation,
        epoch=hop.epoch,
        envelope_digest=digest(offer.envelope.payload),
        outcome=dpb.Outcome.Value(f"OUTCOME_{ended.outcome}"),
        output_digest=digest(ended.output),
        artifacts=ended.artifacts,
        executor=identity.install_id,
        finish_time=to_proto(ended.finish_time),
        failure_reason=ended.failure_reason,
        failure_message=ended.failure_message,
        permanent=ended.permanent,
        effort=to_proto(ended.effort),
        attempts=ended.attempts,
    )
    return dpb.Result(envelope=sign(identity, Kind.RESULT, envelope), output=ended.output)


def countersign(identity: Signer, result: dpb.Result, offer: dpb.Offer, now: datetime) -> dpb.Result:
    """
    Pass a result on that came from whoever this Hopper had handed the task on to.

    Args:
        result: As it came: it stays byte for byte.
        offer: The one that was accepted here, which the result ends.

    Raises:
        IdentityWrongState: This process has no signing key.
    """
    hop = _last_hop(offer)
    before = result.countersigns[-1] if result.countersigns else result.envelope
    statement = dpb.Countersign(
        previous=digest(before.payload),
        to=from_of(hop),
        delegation=hop.delegation,
        epoch=hop.epoch,
        create_time=to_proto(now),
    )
    setattr(statement, "from", identity.install_id)
    passed_on = dpb.Result()
    passed_on.CopyFrom(result)
    passed_on.countersigns.append(sign(identity, Kind.COUNTERSIGN, statement))
    return passed_on


def _last_hop(offer: dpb.Offer) -> dpb.Hop:
    return dpb.Hop.FromString(offer.hops[-1].payload)


def open_result(
    result: dpb.Result, *, offer: dpb.Offer, sender: str, own: str, keys_of: KeysOf
) -> ResultFacts:
    """
    Read a result that has come, if everything about it holds.

    Args:
        offer: The one that this Hopper made to whoever sends the result.
        sender: Install id of who sent it, as proved by its certificate.
        own: This Hopper's.

    Raises:
        SignatureInvalid: Something is not what was signed, or is of another task or hand-over. `what` tells.
        DelegationLoop: It was executed by a Hopper that had handed it over.
        HopLimit: It was executed further away than it may.
    """
    hop = _last_hop(offer)
    if (from_of(hop), hop.to) != (own, sender):
        raise SignatureInvalid("the result is of a hand-over between others", what="from")
    chain = read_result(result, offer, keys_of)
    check(chain.links)
    _check_known(chain.links[-1])
    envelope = chain.envelope
    ended = Ended(
        outcome=Outcome(dpb.Outcome.Name(envelope.outcome).removeprefix("OUTCOME_")),
        finish_time=from_proto(envelope.finish_time),
        output=result.output,
        artifacts=tuple(envelope.artifacts),
        failure_reason=envelope.failure_reason,
        failure_message=envelope.failure_message,
        permanent=envelope.permanent,
        effort=duration_field(envelope, "effort"),
        attempts=envelope.attempts,
    )
    return ResultFacts(ended, envelope.executor, chain.links[0].verified)
