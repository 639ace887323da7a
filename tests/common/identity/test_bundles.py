"""A bundle is believed as far as it proves itself, and never goes back."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper.common.v1.identity_pb2 import SignedBundle, TrustBundle
from hopper_common.identity import bundles, rotation, signing
from hopper_common.identity.bundles import PREPARED, REVOKED, TAINTED, roots_of, verify_bundle
from hopper_common.identity.certificates import RootKey, key_hash, new_root, to_der
from hopper_common.identity.errors import BundleInvalid, BundleRollback, SignatureInvalid
from hopper_common.identity.rotation import Verb
from hopper_common.identity.signing import Signature
from hopper_common.identity.spiffe import trust_domain_of
from hopper_common.rpc.errors import code_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)


class Told(NamedTuple):
    """A bundle, and the keys of its roots."""

    bundle: TrustBundle
    keys: list[RootKey]

    @property
    def signed(self) -> SignedBundle:
        trusted = {key_hash(root) for root in roots_of(self.bundle)}
        return bundles.sign_bundle(
            self.bundle, [key for key in self.keys if key_hash(key.certificate) in trusted]
        )


def first() -> Told:
    root = new_root(NOW)
    return Told(bundles.new_bundle(root, [signing.first_key(NOW)[1]], NOW), [root])


def prepared(told: Told) -> Told:
    root = new_root(NOW, trust_domain_of(told.bundle.install_id))
    bundle = rotation.prepared(told.bundle, root, NOW)
    bundle.rotations.append(bundles.state_rotation(told.keys[-1], root, told.bundle, NOW))
    return Told(bundle, [*told.keys, root])


def moved(told: Told, *verbs: Verb) -> Told:
    for verb in verbs:
        told = Told(rotation.moved(told.bundle, verb, NOW)[0], told.keys)
    return told


def rotated(told: Told) -> Told:
    return moved(prepared(told), Verb.ACTIVATE, Verb.TAINT, Verb.REVOKE)


FIRST = first()
PREPARED_ONE = prepared(FIRST)
ACTIVATED = moved(PREPARED_ONE, Verb.ACTIVATE)
TAINTED_ONE = moved(ACTIVATED, Verb.TAINT)
ROTATED = moved(TAINTED_ONE, Verb.REVOKE)
TWICE = rotated(ROTATED)


@pytest.mark.parametrize("told", [FIRST, PREPARED_ONE, ACTIVATED, TAINTED_ONE, ROTATED, TWICE])
def test_every_stage_of_a_rotation_proves_itself(told: Told) -> None:
    assert verify_bundle(told.signed, now=NOW) == told.bundle


def test_who_knows_a_bundle_takes_every_later_one() -> None:
    steps = [FIRST, PREPARED_ONE, ACTIVATED, TAINTED_ONE, ROTATED, TWICE]
    for number, known in enumerate(steps):
        for later in steps[number:]:
            assert verify_bundle(later.signed, known=known.bundle, now=NOW) == later.bundle


def test_who_knows_a_bundle_takes_no_earlier_one() -> None:
    steps = [FIRST, PREPARED_ONE, ACTIVATED, TAINTED_ONE, ROTATED, TWICE]
    for number, known in enumerate(steps):
        for earlier in steps[:number]:
            with pytest.raises(BundleRollback, match="older") as caught:
                verify_bundle(earlier.signed, known=known.bundle, now=NOW)
            assert caught.value.metadata == {
                "sequence": str(earlier.bundle.sequence),
                "known": str(known.bundle.sequence),
            }
            assert code_of(caught.value).name == "ABORTED"


def changed(told: Told, change: Callable[[TrustBundle], object]) -> SignedBundle:
    """The bundle after a change that its owner has signed."""
    bundle = TrustBundle()
    bundle.CopyFrom(told.bundle)
    change(bundle)
    try:
        return Told(bundle, told.keys).signed
    except BundleInvalid:  # its roots cannot be read: then by all keys that there are
        return bundles.sign_bundle(bundle, told.keys)


def later(bundle: TrustBundle) -> None:
    bundle.sequence += 10


def stage(number: int, value: int) -> Callable[[TrustBundle], None]:
    def change(bundle: TrustBundle) -> None:
        bundle.roots[number].stage = value  # type: ignore[assignment]

    return change


def drop_first_statement(bundle: TrustBundle) -> None:
    del bundle.rotations[0]


def swap_statements(bundle: TrustBundle) -> None:
    one, other = list(bundle.rotations)
    del bundle.rotations[:]
    bundle.rotations.extend([other, one])


def break_statement(field: str) -> Callable[[TrustBundle], None]:
    def change(bundle: TrustBundle) -> None:
        signature = bytearray(getattr(bundle.rotations[0], field))
        signature[-1] ^= 1
        setattr(bundle.rotations[0], field, bytes(signature))

    return change


def repeat_root(bundle: TrustBundle) -> None:
    bundle.roots.append(bundle.roots[0])


def smuggle_root(bundle: TrustBundle) -> None:
    stranger = new_root(NOW, trust_domain_of(bundle.install_id))
    bundle.roots.insert(0, type(bundle.roots[0])(certificate=to_der(stranger.certificate), stage=TAINTED))


def foreign_genesis(bundle: TrustBundle) -> None:
    bundle.genesis_certificate = to_der(new_root(NOW).certificate)


def unknown_version(bundle: TrustBundle) -> None:
    # In DER the version is the first field of the body: [0] { INTEGER 2 }.
    version = bytes.fromhex("a003020102")
    assert version in bundle.genesis_certificate
    bundle.genesis_certificate = bundle.genesis_certificate.replace(version, bytes.fromhex("a00302012f"), 1)


def other_install(bundle: TrustBundle) -> None:
    bundle.install_id = "a" * 32


def no_hint(bundle: TrustBundle) -> None:
    bundle.refresh_hint.seconds = 59


def wrong_key_id(bundle: TrustBundle) -> None:
    bundle.signing_keys[0].key_id = "0" * 32


def short_key(bundle: TrustBundle) -> None:
    bundle.signing_keys[0].public_key = b"x" * 31


def timeless_key(bundle: TrustBundle) -> None:
    bundle.signing_keys[0].not_after.seconds = 10**15


@pytest.mark.parametrize(
    ("told", "change", "why"),
    [
        (FIRST, other_install, "another Hopper's"),
        (FIRST, foreign_genesis, "another Hopper's"),
        (FIRST, unknown_version, "cannot be read"),
        (FIRST, no_hint, "refresh hint"),
        (FIRST, wrong_key_id, "signing key"),
        (FIRST, short_key, "signing key"),
        (FIRST, timeless_key, "never valid"),
        (FIRST, stage(0, PREPARED), "no root that is active"),
        (FIRST, stage(0, REVOKED), "no root that is active"),
        (FIRST, stage(0, 0), "stage that is unknown"),
        (FIRST, stage(0, 9), "stage that is unknown"),
        (FIRST, repeat_root, "listed twice"),
        (FIRST, smuggle_root, "no statement leads to"),
        (ROTATED, drop_first_statement, "no statement leads to"),
        (ROTATED, break_statement("signature_by_previous"), "root before has not signed"),
        (ROTATED, break_statement("signature_by_next"), "root after has not signed"),
        (ROTATED, break_statement("payload"), "rotation 1|cannot be read|root"),
        (ROTATED, stage(0, PREPARED), "not in order"),
        (TWICE, swap_statements, "rotation 1"),
        (ROTATED, lambda bundle: bundle.roots.pop(), "no root that is active, or not the latest"),
        (PREPARED_ONE, lambda bundle: bundle.roots.pop(), "not the latest"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_prove_itself_is_refused(
    told: Told, change: Callable[[TrustBundle], object], why: str
) -> None:
    with pytest.raises(BundleInvalid, match=why) as caught:
        verify_bundle(changed(told, change), now=NOW)
    assert (caught.value.reason, code_of(caught.value).name) == ("SIGNATURE_INVALID", "PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("told", "missing"), [(FIRST, 0), (PREPARED_ONE, 0), (PREPARED_ONE, 1), (TAINTED_ONE, 0)]
)
def test_every_root_that_is_trusted_has_to_sign(told: Told, missing: int) -> None:
    signed = told.signed
    del signed.signatures[missing]
    with pytest.raises(BundleInvalid, match="not signed"):
        verify_bundle(signed, now=NOW)


def test_a_signature_for_another_purpose_is_none_for_a_bundle() -> None:
    payload = FIRST.signed.payload
    signed = SignedBundle(payload=payload)
    signed.signatures.add(
        key_hash=key_hash(FIRST.keys[0].certificate), signature=bundles.sign_data(FIRST.keys[0], payload)
    )
    with pytest.raises(BundleInvalid, match="not signed"):
        verify_bundle(signed, now=NOW)


def test_a_bundle_of_more_than_64_kib_is_not_even_read() -> None:
    signed = FIRST.signed
    signed.payload += b"x" * 64 * 1024
    with pytest.raises(BundleInvalid, match="65536 bytes"):
        verify_bundle(signed, now=NOW)


def test_a_bundle_whose_active_root_has_expired_is_refused() -> None:
    with pytest.raises(BundleInvalid, match="expired"):
        verify_bundle(FIRST.signed, now=NOW + timedelta(days=3700))


def test_another_bundle_of_the_known_sequence_is_refused() -> None:
    assert verify_bundle(FIRST.signed, known=FIRST.bundle, now=NOW) == FIRST.bundle
    other = changed(FIRST, lambda bundle: bundle.create_time.FromDatetime(NOW + timedelta(days=1)))
    with pytest.raises(BundleRollback, match="sequence of another"):
        verify_bundle(other, known=FIRST.bundle, now=NOW)


def test_another_hoppers_bundle_does_not_go_on_from_the_known_one() -> None:
    with pytest.raises(BundleInvalid, match="another Hopper"):
        verify_bundle(first().signed, known=FIRST.bundle, now=NOW)


def test_a_stolen_old_root_cannot_take_the_chain_elsewhere() -> None:
    """Whoever has the first root's key can state another successor: peers that know the true one refuse it."""
    fork = rotated(Told(FIRST.bundle, FIRST.keys[:1]))
    assert verify_bundle(changed(fork, later), now=NOW)
    with pytest.raises(BundleRollback, match="does not go on from the rotations"):
        verify_bundle(changed(fork, later), known=ROTATED.bundle, now=NOW)
    with pytest.raises(BundleRollback, match="does not go on from the rotations"):
        verify_bundle(changed(FIRST, later), known=PREPARED_ONE.bundle, now=NOW)


def test_a_root_never_comes_back_from_a_later_stage() -> None:
    with pytest.raises(BundleRollback, match="earlier stage"):
        verify_bundle(changed(ACTIVATED, later), known=TAINTED_ONE.bundle, now=NOW)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_bytes_that_are_no_bundle_are_refused_and_nothing_else_happens(payload: bytes) -> None:
    with pytest.raises(BundleInvalid):
        verify_bundle(SignedBundle(payload=payload), now=NOW)


WHOLE = TWICE.signed.SerializeToString()


@given(st.integers(0, 100_000), st.integers(1, 255))
@settings(max_examples=150)
def test_a_damaged_bundle_is_refused_wherever_the_damage_is(place: int, damage: int) -> None:
    content = bytearray(WHOLE)
    content[place % len(content)] ^= damage
    try:
        signed = SignedBundle.FromString(bytes(content))
    except DecodeError:
        return
    try:
        verified = verify_bundle(signed, now=NOW)
    except BundleInvalid:
        return
    assert verified == TWICE.bundle  # the damage was in bytes that mean nothing


# Signing keys.

KEY, LISTED = signing.first_key(NOW)


def test_a_signature_says_who_signed() -> None:
    made = signing.sign(KEY, b"task")
    signing.verify_signature([LISTED], made, b"task", at=NOW)
    assert made.key_id == LISTED.key_id


@pytest.mark.parametrize(
    ("made", "at", "why"),
    [
        (signing.sign(KEY, b"other task"), NOW, "does not verify"),
        (Signature(LISTED.key_id, b""), NOW, "does not verify"),
        (Signature(LISTED.key_id, KEY.sign(b"task")), NOW, "does not verify"),
        (signing.sign(signing.first_key(NOW)[0], b"task"), NOW, "does not list"),
        (signing.sign(KEY, b"task"), NOW + timedelta(days=91), "not valid then"),
        (signing.sign(KEY, b"task"), NOW - timedelta(days=1), "not valid then"),
    ],
)
def test_a_signature_that_says_nothing_is_refused(made: Signature, at: datetime, why: str) -> None:
    with pytest.raises(SignatureInvalid, match=why):
        signing.verify_signature([LISTED], made, b"task", at=at)


def test_the_next_key_is_told_before_it_is_used_and_the_old_one_listed_long_after() -> None:
    halfway = NOW + timedelta(days=46)
    made = signing.made_if_due([LISTED], halfway)
    assert signing.made_if_due([LISTED], NOW + timedelta(days=44)) is None
    assert made is not None
    both = [LISTED, made[1]]
    assert signing.in_use(both, halfway) == LISTED
    assert signing.in_use(both, halfway + timedelta(days=1)) == made[1]
    assert signing.made_if_due(both, halfway + timedelta(days=2)) is None
    assert signing.without_forgotten(both, halfway + timedelta(days=90)) == both
    assert signing.without_forgotten(both, halfway + timedelta(days=92)) == [made[1]]


def test_whoever_was_off_for_long_signs_with_a_new_key_at_once() -> None:
    now = NOW + timedelta(days=120)
    made = signing.made_if_due([LISTED], now)
    assert made is not None
    assert signing.in_use([LISTED, made[1]], now) == made[1]
