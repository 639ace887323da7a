"""Messages about hand-overs: there and back, and what is not understood."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.errors import InvalidArgument
from hopper_common.rpc.limits import check_limits
from hopper_federation.delegation import wire
from hopper_federation.delegation.model import (
    Appraisal,
    Cancel,
    Decision,
    Delegation,
    Note,
    Receipt,
    Renewal,
    Role,
    State,
    Update,
)

ABOUT = Delegation("d" * 26, Role.IN, "b" * 32, "uid", 3, State.RUNNING, 900.0, sent=7)
MESSAGE = "m" * 26

texts = st.text(max_size=700)


@given(texts, texts, st.floats())
def test_whatever_is_said_keeps_to_the_limits(one: str, two: str, fraction: float) -> None:
    for body in (Decision(False, one, two), Update(True, fraction, one), Cancel(two), Renewal()):
        proto = wire.message_to_proto(MESSAGE, ABOUT, body)
        check_limits(proto)
        message = wire.message_from_proto(pb.Message.FromString(proto.SerializeToString()))
        assert (message.id, message.delegation, message.epoch, message.sequence) == (MESSAGE, "d" * 26, 3, 7)
        assert type(message.body) is type(body)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan, math.inf])
def test_a_share_that_is_none_is_not_sent(fraction: float) -> None:
    assert wire.message_to_proto(MESSAGE, ABOUT, Update(True, fraction)).update.fraction == 0.0


def test_a_digest_is_of_everything_and_of_what_is_not_known_here_too() -> None:
    proto = wire.message_to_proto(MESSAGE, ABOUT, Appraisal(pb.Appraisal(comment="good").SerializeToString()))
    same = pb.Message.FromString(proto.SerializeToString())
    assert wire.digest_of(same) == wire.digest_of(proto)
    later = pb.Message.FromString(proto.SerializeToString() + _unknown_field())
    assert wire.digest_of(later) != wire.digest_of(proto)
    other = wire.message_to_proto(MESSAGE, replace(ABOUT, sent=8), Renewal())
    assert wire.digest_of(other) != wire.digest_of(wire.message_to_proto(MESSAGE, ABOUT, Renewal()))


def test_what_is_sealed_keeps_what_is_not_known_here() -> None:
    sealed = pb.Offer(body=b"work").SerializeToString() + _unknown_field()
    proto = pb.Message(id=MESSAGE)
    proto.offer.MergeFromString(sealed)
    assert pb.Offer.FromString(wire.sealed_offer(proto)) == pb.Offer.FromString(sealed)
    assert _unknown_field() in wire.sealed_offer(proto)


def _unknown_field() -> bytes:
    return b"\xfa\x3e\x03new"  # field 1007


def _says_nothing(proto: pb.Message) -> None:
    proto.ClearField("renewal")


def _ends_strangely(proto: pb.Message) -> None:
    proto.result.envelope.payload = pb.ResultEnvelope(outcome=9).SerializeToString()  # type: ignore[arg-type]


def _ends_without_a_word(proto: pb.Message) -> None:
    proto.result.envelope.payload = pb.ResultEnvelope().SerializeToString()


def _is_garbage(proto: pb.Message) -> None:
    proto.result.envelope.payload = b"\xff\xff"


@pytest.mark.parametrize("spoil", [_says_nothing, _ends_strangely, _ends_without_a_word, _is_garbage])
def test_what_is_not_understood_is_refused(spoil: Callable[[pb.Message], None]) -> None:
    proto = wire.message_to_proto(MESSAGE, ABOUT, Renewal())
    spoil(proto)
    with pytest.raises(InvalidArgument):
        wire.message_from_proto(proto)


@given(
    st.sampled_from([None, *State]),
    st.sampled_from(["", "QUOTA", "STALE_EPOCH"]),
    st.none() | st.floats(0, 1e7).map(lambda seconds: round(seconds, 6)),
)
def test_a_receipt_comes_back(state: State | None, reason: str, wait: float | None) -> None:
    receipt = Receipt(MESSAGE, state, reason, "because", wait)
    back = wire.receipt_from_proto(wire.receipt_to_proto(receipt))
    assert replace(back, retry_after=None) == replace(receipt, retry_after=None)
    assert back.retry_after == (None if wait is None else pytest.approx(wait, abs=2e-6))


@pytest.mark.parametrize("state", sorted(State))
def test_a_note_comes_back(state: State) -> None:
    note = Note("d" * 26, 3, state, 12, handed_over=True)
    assert wire.note_from_proto(wire.note_to_proto(note)) == note


def test_a_state_of_a_later_version_is_not_taken_for_another() -> None:
    unknown = pb.Receipt(message_id=MESSAGE, state=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        wire.receipt_from_proto(unknown)
    for note in (pb.DelegationNote(state=99), pb.DelegationNote()):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            wire.note_from_proto(note)
