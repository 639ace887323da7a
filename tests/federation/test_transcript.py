"""What is proved while two Hoppers pair: it is the same on both sides, and different as soon as anything is."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_federation import transcript
from hopper_federation.transcript import Side, Told, Versions
from hopper_federation.words import WORDS, words_of

ALICE = Side("a" * 32, b"\x02" + b"a" * 32)
BOB = Side("b" * 32, b"\x03" + b"b" * 32)
EVE = Side("e" * 32, b"\x02" + b"e" * 32)
NONCE = b"n" * 32
KEY = transcript.key_of(b"s" * 16)
TOLD = Told(
    side=BOB,
    bundle=b"bundle",
    claimed_name="bob",
    addresses=("192.0.2.7:8470",),
    versions=Versions(),
    now=1_700_000_000_000_000,
)
BINDING = transcript.invitation_binding(b"i" * 16, ALICE, BOB, NONCE)


def test_the_list_has_2048_different_words_that_can_be_said() -> None:
    assert len(set(WORDS)) == len(WORDS) == 2048
    assert all(len(word) == 5 and word.isascii() and word.isalpha() and word.islower() for word in WORDS)


def test_every_word_and_every_place_is_used() -> None:
    seen = Counter(
        word for number in range(4000) for word in words_of(transcript._hash("test", number.to_bytes(4)))
    )
    assert len(seen) > 2000


@given(st.binary(min_size=9, max_size=32))
def test_six_words_stand_for_66_bits(digest: bytes) -> None:
    words = words_of(digest)
    number = 0
    for word in words:
        number = number << 11 | WORDS.index(word)
    assert number == int.from_bytes(digest[:9]) >> 6


def test_the_words_of_a_transcript_stay_what_they_are() -> None:
    """Both sides may be of different versions: a change of these is a change of the protocol."""
    assert " ".join(transcript.invitation_words(BINDING, NONCE)) == "diras keron zagos riges deron liros"
    assert transcript.code_of(BINDING) == "246721"


@pytest.mark.parametrize(
    "other",
    [
        transcript.invitation_binding(b"j" * 16, ALICE, BOB, NONCE),
        transcript.invitation_binding(b"i" * 16, EVE, BOB, NONCE),
        transcript.invitation_binding(b"i" * 16, ALICE, EVE, NONCE),
        transcript.invitation_binding(b"i" * 16, BOB, ALICE, NONCE),
        transcript.invitation_binding(b"i" * 16, ALICE, BOB, b"m" * 32),
        transcript.invitation_binding(b"i" * 16, replace(ALICE, root_key=EVE.root_key), BOB, NONCE),
    ],
)
def test_a_binding_is_about_all_of_it(other: bytes) -> None:
    assert other != BINDING
    assert transcript.invitation_words(other, NONCE) != transcript.invitation_words(BINDING, NONCE)


@pytest.mark.parametrize(
    "other",
    [
        replace(TOLD, side=EVE),
        replace(TOLD, bundle=b"another"),
        replace(TOLD, claimed_name="eve"),
        replace(TOLD, addresses=()),
        replace(TOLD, addresses=("192.0.2.7:8470", "")),
        replace(TOLD, versions=Versions(1, 0, 1)),
        replace(TOLD, versions=Versions(features=("blobs",))),
        replace(TOLD, now=TOLD.now + 1),
    ],
)
def test_a_proof_is_about_all_that_was_told(other: Told) -> None:
    assert transcript.redeem_proof(KEY, BINDING, other) != transcript.redeem_proof(KEY, BINDING, TOLD)
    assert transcript.redeem_signed(BINDING, other) != transcript.redeem_signed(BINDING, TOLD)


def test_a_proof_of_one_kind_is_none_of_another() -> None:
    """A redeemer's proof cannot be sent back as the inviter's answer, nor one side's verdict as the other's."""
    kinds = {
        transcript.redeem_proof(KEY, BINDING, TOLD),
        transcript.answer_proof(KEY, BINDING, NONCE, TOLD),
        transcript.redeem_signed(BINDING, TOLD),
        transcript.revealed_signed(BINDING, asker=True),
        transcript.revealed_signed(BINDING, asker=False),
        transcript.verdict_signed(BINDING, "APPROVED", asker=True),
        transcript.verdict_signed(BINDING, "APPROVED", asker=False),
        transcript.verdict_signed(BINDING, "DECLINED", asker=True),
    }
    assert len(kinds) == 8


def test_proofs_need_the_secret() -> None:
    other = transcript.key_of(b"t" * 16)
    assert transcript.redeem_proof(other, BINDING, TOLD) != transcript.redeem_proof(KEY, BINDING, TOLD)
    assert not transcript.same(b"one", b"two")
    assert transcript.same(b"one", b"one")


def test_a_commitment_is_to_a_nonce_and_to_who_made_it() -> None:
    made = transcript.commitment(NONCE, ALICE)
    assert made != transcript.commitment(b"m" * 32, ALICE)
    assert made != transcript.commitment(NONCE, EVE)


def test_digits_are_six_and_spread() -> None:
    codes = [transcript.code_of(number.to_bytes(4)) for number in range(2000)]
    assert all(len(code) == 6 and code.isdecimal() for code in codes)
    first = Counter(code[0] for code in codes)
    assert len(first) == 10
    assert max(first.values()) < 300


def test_digits_differ_when_somebody_is_in_between() -> None:
    """Each end has the one in between as its other side: whatever that one chooses, it is not the same transcript."""
    alice, eve = replace(TOLD, side=ALICE), replace(TOLD, side=EVE)
    here = transcript.digits_binding(b"s" * 16, NONCE, b"m" * 32, alice, eve, b"leaf of eve")
    there = transcript.digits_binding(b"s" * 16, NONCE, b"m" * 32, eve, TOLD, b"leaf of bob")
    assert here != there
