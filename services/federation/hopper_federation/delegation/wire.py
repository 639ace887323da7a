"""
Between the contract's messages and the model, both directions side by side.

What is sealed is passed on as it came: an older Hopper keeps what a newer one has put into it. Anything else that
cannot be read is refused, message by message.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.text import one_line
from hopper_common.timestamps import duration_field
from hopper_federation.delegation.model import (
    Appraisal,
    Body,
    Cancel,
    Decision,
    Delegation,
    Message,
    Note,
    Offer,
    OfferFacts,
    Outcome,
    Receipt,
    Renewal,
    Result,
    State,
    Update,
)

# What a field of the contract takes, in bytes.
_REASON_BYTES: Final = 100
_TEXT_BYTES: Final = 500

KINDS: Final[Mapping[type[Body], str]] = {
    Offer: "offer",
    Decision: "decision",
    Update: "update",
    Renewal: "renewal",
    Cancel: "cancel",
    Result: "result",
    Appraisal: "appraisal",
}
"""What each body is called in `Message`."""

_TYPES: Final = {kind: body for body, kind in KINDS.items()}


def kind_of(name: str) -> type[Body]:
    """The type of body behind a field's name."""
    return _TYPES[name]


# Messages.


def message_to_proto(message: str, delegation: Delegation, body: Body) -> pb.Message:
    """A message about a hand-over, under the sequence that it has."""
    proto = pb.Message(id=message, delegation=delegation.id, epoch=delegation.epoch, sequence=delegation.sent)
    match body:
        case Offer(sealed=sealed):
            proto.offer.MergeFromString(sealed)
        case Decision(accepted=accepted, reason=reason, detail=detail):
            proto.decision.CopyFrom(
                pb.Decision(accepted=accepted, reason=_word(reason), message=_text(detail))
            )
        case Update(running=running, fraction=fraction, message=text):
            share = fraction if 0.0 <= fraction <= 1.0 else 0.0
            proto.update.CopyFrom(pb.Update(running=running, fraction=share, message=_text(text)))
        case Renewal():
            proto.renewal.SetInParent()
        case Cancel(reason=reason):
            proto.cancel.CopyFrom(pb.Cancel(reason=_text(reason)))
        case Result(sealed=sealed):
            proto.result.MergeFromString(sealed)
        case Appraisal(sealed=sealed):
            proto.appraisal.MergeFromString(sealed)
    return proto


def message_from_proto(proto: pb.Message, facts: OfferFacts | None = None) -> Message:
    """
    A message as it came.

    Args:
        facts: Of an offer: what it says, where its signatures have been verified.

    Raises:
        InvalidArgument: It says nothing that this Hopper understands.
    """
    return Message(
        id=proto.id,
        delegation=proto.delegation,
        epoch=proto.epoch,
        sequence=proto.sequence,
        body=body_from_proto(proto, facts),
        digest=digest_of(proto),
    )


def body_from_proto(proto: pb.Message, facts: OfferFacts | None = None) -> Body:
    """
    What a message says.

    Raises:
        InvalidArgument: Nothing that this Hopper understands.
    """
    kind = proto.WhichOneof("body")
    if kind is None:
        raise _unreadable("body", "says nothing that this Hopper understands")
    return _READ[kind](proto, facts)


def sealed_offer(proto: pb.Message) -> bytes:
    """The offer of a message, to be kept and verified."""
    return proto.offer.SerializeToString(deterministic=True)


def sealed_result(proto: pb.Message) -> bytes:
    """Likewise, the result."""
    return proto.result.SerializeToString(deterministic=True)


def digest_of(proto: pb.Message) -> bytes:
    """SHA-256 of everything in a message, what this Hopper does not know too."""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()


def _offer(proto: pb.Message, facts: OfferFacts | None) -> Offer:
    return Offer(sealed_offer(proto), facts)


def _decision(proto: pb.Message, _: OfferFacts | None) -> Decision:
    said = proto.decision
    return Decision(said.accepted, _word(said.reason), _text(said.message))


def _update(proto: pb.Message, _: OfferFacts | None) -> Update:
    return Update(proto.update.running, proto.update.fraction, _text(proto.update.message))


def _result(proto: pb.Message, _: OfferFacts | None) -> Result:
    return Result(_outcome(proto.result), sealed_result(proto))


def _outcome(result: pb.Result) -> Outcome:
    try:
        value = pb.ResultEnvelope.FromString(result.envelope.payload).outcome
        return Outcome(pb.Outcome.Name(value).removeprefix("OUTCOME_"))
    except (DecodeError, ValueError) as error:
        raise _unreadable("result.envelope", "does not say how it ended") from error


_READ: Final[Mapping[str, Callable[[pb.Message, OfferFacts | None], Body]]] = {
    "offer": _offer,
    "decision": _decision,
    "update": _update,
    "renewal": lambda proto, _: Renewal(),
    "cancel": lambda proto, _: Cancel(_text(proto.cancel.reason)),
    "result": _result,
    "appraisal": lambda proto, _: Appraisal(proto.appraisal.SerializeToString(deterministic=True)),
}


# Receipts and notes.


def receipt_to_proto(receipt: Receipt) -> pb.Receipt:
    """What became of a message."""
    return pb.Receipt(
        message_id=receipt.message,
        state=state_to_proto(receipt.state),
        reason=_word(receipt.reason),
        detail=_text(receipt.detail),
        retry_after=_duration(receipt.retry_after),
    )


def receipt_from_proto(proto: pb.Receipt) -> Receipt:
    """
    What a peer says became of a message.

    Raises:
        InvalidArgument: The hand-over is in a state there that this Hopper does not know.
    """
    wait = duration_field(proto, "retry_after")
    return Receipt(
        message=proto.message_id,
        state=state_from_proto(proto.state),
        reason=_word(proto.reason),
        detail=_text(proto.detail),
        retry_after=None if wait is None else wait.total_seconds(),
    )


def note_to_proto(note: Note) -> pb.DelegationNote:
    """What this Hopper knows of a hand-over."""
    return pb.DelegationNote(
        delegation=note.delegation,
        epoch=note.epoch,
        state=state_to_proto(note.state),
        heard=note.heard,
        handed_over=note.handed_over,
    )


def note_from_proto(proto: pb.DelegationNote) -> Note:
    """
    What a peer knows of one.

    Raises:
        InvalidArgument: It is in a state there that this Hopper does not know, or in none.
    """
    state = state_from_proto(proto.state)
    if state is None:
        raise _unreadable("state", "is required")
    return Note(proto.delegation, proto.epoch, state, proto.heard, proto.handed_over)


def state_to_proto(state: State | None) -> pb.DelegationState.ValueType:
    """A state as messages have it."""
    none = pb.DELEGATION_STATE_UNSPECIFIED
    return none if state is None else pb.DelegationState.Value(f"DELEGATION_STATE_{state}")


def state_from_proto(value: pb.DelegationState.ValueType) -> State | None:
    """
    A state that a peer names.

    Raises:
        InvalidArgument: This Hopper does not know it.
    """
    if not value:
        return None
    try:
        return State(pb.DelegationState.Name(value).removeprefix("DELEGATION_STATE_"))
    except ValueError as error:
        raise _unreadable("state", "is none that this Hopper knows") from error


def _duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else Duration(nanos=int(seconds % 1 * 1e9), seconds=int(seconds))


def _word(text: str) -> str:
    return one_line(text, most_bytes=_REASON_BYTES)


def _text(text: str) -> str:
    return one_line(text, most_bytes=_TEXT_BYTES)


def _unreadable(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(violations=[FieldViolation(field, problem)])
