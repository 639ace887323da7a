"""
The signed chain of a hand-over, link by link: read, and each link checked by itself.

    envelope (origin) ◄─ hop 1 ◄─ hop 2 ◄─ … ◄─ hop n        each names the SHA-256 of the one before, so that whoever
        ▲  by its digest                                     knows the last signer's keys knows that nobody has put
    result (executor) ◄─ countersign ◄─ countersign …        anything else before it

A signature is verified where the signer's keys are known here. Where they are not, the link is a *claim* of whoever
passed it on: trust does not travel. What is signed are bytes as they came, never a message that was serialised anew.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.common.v1.identity_pb2 import SigningKey
from hopper.federation.v1 import delegation_pb2 as dpb
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.signing import Signature, verify_signature
from hopper_common.identity.spiffe import SpiffeInvalid, check_install_id
from hopper_common.timestamps import from_proto
from hopper_federation.artifacts.errors import ArtifactInvalid
from hopper_federation.artifacts.model import MOST_FILES, check_claims
from hopper_federation.delegation.narrowing import MOST_HOPS, Redelegation, check_step
from hopper_federation.errors import DelegationLoop, HopLimit

MOST_PAYLOAD: Final = 65_536
MOST_BODY: Final = 1_048_576
_MOST_NAME: Final = 200
_ID: Final = re.compile(r"[a-z0-9]{26}")
_OUTCOMES: Final = frozenset({dpb.OUTCOME_SUCCEEDED, dpb.OUTCOME_FAILED, dpb.OUTCOME_CANCELLED})
_SPEAKERS: Final = ("origin", "from", "executor")
_TIMES: Final = ("create_time", "finish_time")

_NOT_SIGNED: Final = "it is not what was signed"
_NOT_AFTER: Final = "it does not follow from the one before"

KeysOf = Callable[[str, str], Sequence[SigningKey] | None]
"""The signing keys of an install, as its bundle lists them; None: whose the key of that id is, nobody knows here."""

M = TypeVar("M", bound=Message)


class Kind(StrEnum):
    """What is signed. A signature for one kind says nothing for another."""

    TASK = "task"
    HOP = "hop"
    RESULT = "result"
    COUNTERSIGN = "countersign"

    def labelled(self, payload: bytes) -> bytes:
        """What is signed of a payload of that kind."""
        return f"hopper {self} 1\0".encode() + payload


class Signer(Protocol):
    """Who signs here: this Hopper's `Identity`."""

    @property
    def install_id(self) -> str:
        """Its name."""

    def sign(self, data: bytes) -> Signature:
        """Sign with the signing key in use; see `Identity.sign`."""


class UnlistedKey(SignatureInvalid):
    """The signer is known here, and the key is not: its bundle here may be an old one."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    One signed statement, as it was found.

    Attributes:
        signer: Install id, as it says.
        time: When, as the signer says.
        to: Install id of who was meant; empty: everybody.
        verified: The signature is by a key that is known here. False without a problem: a claim.
        problem: What is wrong with it.
    """

    kind: Kind
    signer: str
    time: datetime | None = None
    to: str = ""
    verified: bool = False
    problem: HopperError | None = None


@dataclass(frozen=True, slots=True)
class OfferChain:
    """
    How a task came here.

    Attributes:
        hops: Oldest first; fewer than came if one could not be read.
        body: What is to be done; empty if it could not be read.
    """

    envelope: dpb.TaskEnvelope
    hops: tuple[dpb.Hop, ...]
    body: dpb.TaskBody
    links: tuple[Link, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """Install ids of every Hopper it came through, oldest first, whoever has it now last."""
        return (self.envelope.origin, *(hop.to for hop in self.hops))

    @property
    def allowed(self) -> Redelegation:
        """What is allowed beyond the last of them."""
        return redelegation_of(self.hops[-1].redelegation) if self.hops else Redelegation()


@dataclass(frozen=True, slots=True)
class ResultChain:
    """How a result came here, in the same way."""

    envelope: dpb.ResultEnvelope
    countersigns: tuple[dpb.Countersign, ...]
    links: tuple[Link, ...]


def check(links: Iterable[Link]) -> None:
    """Raise the first problem of a chain, if it has one."""
    for link in links:
        if link.problem is not None:
            raise link.problem


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def sign(identity: Signer, kind: Kind, message: Message) -> dpb.Signed:
    """
    Serialise a statement once, and sign these bytes.

    Raises:
        IdentityWrongState: This process has no signing key.
    """
    payload = message.SerializeToString(deterministic=True)
    signature = identity.sign(kind.labelled(payload))
    return dpb.Signed(
        payload=payload,
        signer=identity.install_id,
        key_id=signature.key_id,
        signature=signature.signature,
    )


def labels_of(body: dpb.TaskBody) -> list[str]:
    """Tags, and labels as `key=value`: what policies look at."""
    return [*body.tags, *(f"{key}={value}" for key, value in sorted(body.labels.items()))]


def redelegation_of(message: dpb.Redelegation) -> Redelegation:
    """As the rules of narrowing have it."""
    return Redelegation(message.any, frozenset(message.installs), message.hops, message.fan_out)


def redelegation_to_proto(allowed: Redelegation) -> dpb.Redelegation:
    """As it is signed."""
    return dpb.Redelegation(
        any=allowed.any, installs=sorted(allowed.installs), hops=allowed.hops, fan_out=allowed.fan_out
    )


# Reading offers.


def read_offer(offer: dpb.Offer, keys_of: KeysOf) -> OfferChain:
    """Read an offer, whatever is wrong with it: `links` says what."""
    body = _body(offer.body)
    envelope, first = _read(
        Kind.TASK,
        offer.envelope,
        dpb.TaskEnvelope(),
        keys_of,
        lambda envelope: _envelope_problems(envelope, offer, body),
    )
    hops: list[dpb.Hop] = []
    links = [first]
    before = offer.envelope
    for signed in offer.hops:
        check_hop = partial(_hop_problems, envelope, tuple(hops), before)
        hop, link = _read(Kind.HOP, signed, dpb.Hop(), keys_of, check_hop)
        hops.append(hop)
        links.append(link)
        before = signed
    if not hops:
        links.append(Link(Kind.HOP, "", problem=_invalid("hop", "nobody has signed for handing it over")))
    return OfferChain(envelope, tuple(hops), dpb.TaskBody() if body is None else body, tuple(links))


def _body(serialised: bytes) -> dpb.TaskBody | None:
    try:
        return dpb.TaskBody.FromString(serialised) if len(serialised) <= MOST_BODY else None
    except DecodeError:
        return None


def _envelope_problems(
    envelope: dpb.TaskEnvelope, offer: dpb.Offer, body: dpb.TaskBody | None
) -> Iterator[HopperError | None]:
    uid = envelope.task_uid
    own = uid.startswith(f"{envelope.origin}/") and len(uid) <= _MOST_NAME and uid.isprintable()
    yield _unless(own, "task_uid", "it is not the origin's")
    yield _unless(envelope.body_digest == digest(offer.body), "body", _NOT_SIGNED)
    if body is None:
        yield _invalid("body", "it cannot be read")
        return
    capabilities = list(body.required_capabilities)
    yield _unless(list(envelope.capabilities) == capabilities, "capabilities", _NOT_SIGNED)
    yield _unless(list(envelope.labels) == labels_of(body), "labels", _NOT_SIGNED)


def _hop_problems(
    envelope: dpb.TaskEnvelope, earlier: Sequence[dpb.Hop], before: dpb.Signed, hop: dpb.Hop
) -> Iterator[HopperError | None]:
    path = [envelope.origin, *(each.to for each in earlier)]
    yield _unless(from_of(hop) == path[-1], "from", "it is not by whoever had the task")
    yield _unless(hop.previous == digest(before.payload), "previous", _NOT_AFTER)
    yield _wrong_install(hop.to)
    yield _wrong_hand_over(hop)
    yield _loop(path, hop.to)
    yield _too_far(len(path))
    yield _widened(envelope, earlier, hop)


def _too_far(hops: int) -> HopperError | None:
    if hops <= MOST_HOPS:
        return None
    return HopLimit(f"the task has been through {hops} Hoppers", hops=str(hops))


def _widened(envelope: dpb.TaskEnvelope, earlier: Sequence[dpb.Hop], hop: dpb.Hop) -> HopperError | None:
    allowed = redelegation_of(earlier[-1].redelegation if earlier else envelope.redelegation)
    if earlier:
        try:
            check_step(allowed, hop.to)
        except HopperError as error:
            return error
        allowed = allowed.below()
    narrow = redelegation_of(hop.redelegation).within(allowed)
    return _unless(narrow, "redelegation", "it allows more than the one before")


# Reading results.


def read_result(result: dpb.Result, offer: dpb.Offer, keys_of: KeysOf) -> ResultChain:
    """
    Read the result of an offer, whatever is wrong with it: `links` says what.

    Args:
        offer: As it was handed over: its last hop is the hand-over that the result ends. It was checked before.
    """
    known = read_offer(offer, nobodys_keys)
    if not known.hops:
        return ResultChain(dpb.ResultEnvelope(), (), known.links)
    envelope, first = _read(
        Kind.RESULT,
        result.envelope,
        dpb.ResultEnvelope(),
        keys_of,
        lambda envelope: _result_problems(envelope, result, offer, known),
    )
    countersigns: list[dpb.Countersign] = []
    links = [first]
    before = result.envelope
    for signed in result.countersigns:
        place = _Place(known, envelope.executor, tuple(countersigns), len(links) == len(result.countersigns))
        check_it = partial(_countersign_problems, place, before)
        message, link = _read(Kind.COUNTERSIGN, signed, dpb.Countersign(), keys_of, check_it)
        countersigns.append(message)
        links.append(link)
        before = signed
    return ResultChain(envelope, tuple(countersigns), tuple(links))


def nobodys_keys(install_id: str, key_id: str) -> None:
    """A `KeysOf` of who knows nobody: all of it are claims."""


def _result_problems(
    envelope: dpb.ResultEnvelope, result: dpb.Result, offer: dpb.Offer, known: OfferChain
) -> Iterator[HopperError | None]:
    yield _unless(envelope.task_uid == known.envelope.task_uid, "task_uid", "it is of another task")
    yield _unless(
        envelope.envelope_digest == digest(offer.envelope.payload), "envelope", "it is of another offer"
    )
    yield _unless(envelope.output_digest == digest(result.output), "output", _NOT_SIGNED)
    yield _unless(len(result.output) <= MOST_BODY, "output", "it is too large")
    yield _unless(envelope.outcome in _OUTCOMES, "outcome", "it does not say how the task ended")
    yield _wrong_artifacts(envelope.artifacts)
    if not result.countersigns:
        yield _unless(envelope.executor == known.path[-1], "executor", "it is not by whoever took the task")
        yield _other_hand_over(envelope, known)
        return
    yield _wrong_hand_over(envelope)
    yield _below(known, envelope.executor, len(result.countersigns))


@dataclass(frozen=True, slots=True)
class _Place:
    """
    Where a countersignature stands.

    Attributes:
        known: The chain of the offer.
        earlier: Those before it.
        last: It leads to who handed the task over.
    """

    known: OfferChain
    executor: str
    earlier: tuple[dpb.Countersign, ...]
    last: bool


def _countersign_problems(
    place: _Place, before: dpb.Signed, countersign: dpb.Countersign
) -> Iterator[HopperError | None]:
    by, known = from_of(countersign), place.known
    if place.earlier:
        yield _unless(place.earlier[-1].to == by, "from", "it is not by whoever was meant")
    yield _unless(countersign.previous == digest(before.payload), "previous", _NOT_AFTER)
    yield _wrong_install(countersign.to)
    yield _loop([place.executor, *(from_of(each) for each in place.earlier)], by)
    if not place.last:
        yield _wrong_hand_over(countersign)
        yield _below(known, by, 0)
        return
    yield _unless(by == known.path[-1], "from", "it is not by whoever took the task")
    yield _unless(countersign.to == known.path[-2], "to", "it is for another Hopper")
    yield _other_hand_over(countersign, known)


def _below(known: OfferChain, install_id: str, further: int) -> HopperError | None:
    """
    Whether the task may have come to a Hopper beyond whoever it was handed over to.

    Args:
        further: How many steps beyond, at least.
    """
    if install_id in known.path:
        return _loop(known.path, install_id)
    if further > known.allowed.hops:
        return HopLimit("the task went further than it may", hops=str(known.allowed.hops))
    return _unless(known.allowed.allows(install_id), "executor", "the task may not have come there")


def _other_hand_over(message: dpb.ResultEnvelope | dpb.Countersign, known: OfferChain) -> HopperError | None:
    hop = known.hops[-1]
    same = (message.delegation, message.epoch) == (hop.delegation, hop.epoch)
    return _unless(same, "delegation", "it is of another hand-over")


def _wrong_artifacts(artifacts: Sequence[dpb.Artifact]) -> HopperError | None:
    if len(artifacts) > MOST_FILES or not all(artifact.sha256 for artifact in artifacts):
        return _invalid("artifacts", "there are too many, or one has no hash")
    try:
        for artifact in artifacts:
            check_claims(artifact.name, artifact.sha256, artifact.size, artifact.media_type)
    except ArtifactInvalid as error:
        return error
    return None


# One link.


def _read(
    kind: Kind,
    signed: dpb.Signed,
    message: M,
    keys_of: KeysOf,
    problems: Callable[[M], Iterable[HopperError | None]],
) -> tuple[M, Link]:
    """A statement, and what was found: what it says is checked first, then who says so."""
    time, verified, problem = None, False, _parse(signed, message)
    if problem is None:
        problem = next((each for each in problems(message) if each is not None), None)
    if problem is None:
        try:
            time = _time(message)
            verified = _verify(kind, signed, time, keys_of)
        except HopperError as error:
            problem = error
    return message, Link(kind, signed.signer, time, getattr(message, "to", ""), verified, problem)


def _parse(signed: dpb.Signed, message: Message) -> HopperError | None:
    if len(signed.payload) > MOST_PAYLOAD:
        return _invalid("payload", "it is too large")
    try:
        message.ParseFromString(signed.payload)
    except DecodeError:
        return _invalid("payload", "it cannot be read")
    if _speaker(message) != signed.signer:
        return _invalid("signer", "it is not by whom it names")
    return _wrong_install(signed.signer)


def _speaker(message: Message) -> str:
    """Who says so, as the statement has it."""
    return next(
        str(getattr(message, name)) for name in _SPEAKERS if name in message.DESCRIPTOR.fields_by_name
    )


def _time(message: Message) -> datetime:
    """
    When it was signed, as it says.

    Raises:
        SignatureInvalid: It does not say, or nonsense.
    """
    name = next(name for name in _TIMES if name in message.DESCRIPTOR.fields_by_name)
    stamp: Timestamp = getattr(message, name)
    if not message.HasField(name):
        raise _invalid(name, "it does not say when")
    try:
        return from_proto(stamp)
    except InvalidArgument as error:
        raise _invalid(name, "it does not say when") from error


def _verify(kind: Kind, signed: dpb.Signed, time: datetime, keys_of: KeysOf) -> bool:
    """
    Whether the signature is by a key that is known here; False: whose keys they are is not known.

    Raises:
        SignatureInvalid: It is not the signer's.
        UnlistedKey: The signer is known, and the key is not.
    """
    keys = keys_of(signed.signer, signed.key_id)
    if keys is None:
        return False
    key = next((key for key in keys if key.key_id == signed.key_id), None)
    if key is None:
        raise UnlistedKey(
            f"the {kind} is signed by a key that {signed.signer} has not told", what=signed.key_id
        )
    # It is signed after the time it tells: a task may have ended before the key that signs its result was in use.
    at = max(time, from_proto(key.not_before))
    verify_signature([key], Signature(signed.key_id, signed.signature), kind.labelled(signed.payload), at=at)
    return True


# What may be wrong.


def from_of(message: dpb.Hop | dpb.Countersign) -> str:
    """Its `from`, which is no name in Python."""
    return str(getattr(message, "from"))


def _invalid(what: str, found: str) -> SignatureInvalid:
    return SignatureInvalid(f"the {what} of the chain does not hold: {found}", what=what)


def _unless(sound: bool, what: str, found: str) -> HopperError | None:
    return None if sound else _invalid(what, found)


def _wrong_install(install_id: str) -> HopperError | None:
    try:
        check_install_id(install_id)
    except SpiffeInvalid as error:
        return _invalid("install id", str(error))
    return None


def _wrong_hand_over(message: dpb.Hop | dpb.Countersign | dpb.ResultEnvelope) -> HopperError | None:
    sound = bool(_ID.fullmatch(message.delegation)) and message.epoch >= 1
    return _unless(sound, "delegation", "it names no hand-over")


def _loop(path: Sequence[str], install_id: str) -> HopperError | None:
    if install_id not in path:
        return None
    return DelegationLoop(
        f"the task has been at {install_id} already", path=" ".join(path), instance=install_id
    )
