"""
Offers and results, and every lie about them that a Hopper on their way could tell.

Who does not know another's keys has its neighbour's word for what that one says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper_common.errors import HopperError
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.store import Identity, IdentityStore
from hopper_federation.artifacts.errors import ArtifactInvalid
from hopper_federation.delegation import chain as chains
from hopper_federation.delegation.chain import Kind, UnlistedKey
from hopper_federation.delegation.known_keys import KnownKeys
from hopper_federation.delegation.model import OfferFacts, Outcome
from hopper_federation.delegation.narrowing import Redelegation, at_origin
from hopper_federation.delegation.sealing import (
    Ended,
    ResultFacts,
    countersign,
    extend_offer,
    open_offer,
    open_result,
    passes_on,
    seal_offer,
    seal_result,
)
from hopper_federation.errors import CapabilityDenied, DelegationLoop, FanOutLimit, HopLimit
from hopper_federation.model import Revocation
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshots
from hopper_testing.clock import ManualClock
from tests.federation.seals import (
    BODY,
    ENDED,
    EVERYBODY,
    FIRST,
    LEASE,
    NOW,
    SECOND,
    Hoppers,
    knowing,
    made_hoppers,
    offer_to_bob,
    offer_to_carol,
    opened_by_bob,
    opened_by_carol,
    result_of_carol,
    to,
)


@pytest.fixture(scope="module")
def hoppers(tmp_path_factory: pytest.TempPathFactory) -> Hoppers:
    return made_hoppers(tmp_path_factory.mktemp("hoppers"))


def refused(call: Callable[[], object], error: type[HopperError], what: str = "") -> None:
    with pytest.raises(error) as caught:
        call()
    if what:
        assert caught.value.metadata["what"] == what, caught.value.message


def resigned(
    by: Identity, kind: Kind, signed: dpb.Signed, message: Message, change: Callable[[Any], object]
) -> None:
    """Change a statement, and sign it as oneself: what a Hopper in between can do."""
    message.ParseFromString(signed.payload)
    change(message)
    signed.CopyFrom(chains.sign(by, kind, message))


def copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


# Offers.


def test_an_offer_says_what_was_sealed(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers, exclusive=True)
    facts = opened_by_bob(hoppers, offer)
    assert facts == OfferFacts(
        sealed=offer.SerializeToString(),
        task_uid=f"{hoppers.alice.install_id}/01k",
        origin=hoppers.alice.install_id,
        path=(hoppers.alice.install_id,),
        lease=900.0,
        exclusive=True,
        capabilities=("translate",),
        labels=("docs", "work", "customer=acme"),
        priority=60,
        size=len(offer.body),
        hops=2,
        fan_out=7,
        title="translate the report",
        made=NOW.timestamp(),
    )


def test_an_offer_that_was_handed_on_says_the_whole_way(hoppers: Hoppers) -> None:
    facts = opened_by_carol(hoppers, offer_to_carol(hoppers))
    assert facts.path == (hoppers.alice.install_id, hoppers.bob.install_id)
    assert facts.origin == hoppers.alice.install_id
    assert (facts.hops, facts.fan_out) == (1, 3)


def test_what_came_is_handed_on_byte_for_byte(hoppers: Hoppers) -> None:
    came = offer_to_bob(hoppers)
    went = offer_to_carol(hoppers, came)
    assert went.envelope == came.envelope
    assert went.hops[0] == came.hops[0]
    assert went.body == came.body


def test_whose_keys_are_not_known_is_quoted_by_whose_are(hoppers: Hoppers) -> None:
    facts = opened_by_carol(hoppers, offer_to_carol(hoppers), known=("bob", "carol"))
    assert facts.origin == hoppers.alice.install_id


def test_who_sends_must_be_known(hoppers: Hoppers) -> None:
    offer = offer_to_carol(hoppers)
    refused(lambda: opened_by_carol(hoppers, offer, known=("alice",)), SignatureInvalid, "hop signature")


def test_a_task_that_is_too_old_says_so(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers, not_after=NOW)
    assert opened_by_bob(hoppers, offer).expired
    assert not opened_by_bob(hoppers, offer, now=NOW - timedelta(microseconds=1)).expired


# Offers that somebody has meddled with.


def test_an_offer_for_somebody_else_is_worth_nothing(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers)
    refused(lambda: opened_by_bob(hoppers, offer, own=hoppers.dave.install_id), SignatureInvalid, "to")


def test_an_offer_that_somebody_else_sends_is_worth_nothing(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers)
    refused(
        lambda: opened_by_bob(
            hoppers, offer, sender=hoppers.dave.install_id, keys_of=hoppers.named(EVERYBODY)
        ),
        SignatureInvalid,
        "to",
    )


def test_a_hop_of_another_hopper_cannot_be_used_again(hoppers: Hoppers) -> None:
    """dave has got hold of what bob was offered, and offers it to carol as if alice had meant her."""
    offer = offer_to_bob(hoppers)
    resigned(
        hoppers.dave,
        Kind.HOP,
        offer.hops[0],
        dpb.Hop(),
        lambda hop: setattr(hop, "to", hoppers.carol.install_id),
    )
    refused(
        lambda: opened_by_carol(hoppers, offer, sender=hoppers.alice.install_id, delegation=FIRST),
        SignatureInvalid,
        "signer",
    )


@pytest.mark.parametrize("other", [{"delegation": SECOND}, {"epoch": 2}])
def test_an_offer_cannot_be_replayed_as_another(hoppers: Hoppers, other: dict[str, Any]) -> None:
    offer = offer_to_bob(hoppers)
    refused(lambda: opened_by_bob(hoppers, offer, **other), SignatureInvalid, "delegation")


def edit_body(change: Callable[[dpb.TaskBody], object]) -> Callable[[Hoppers, dpb.Offer], None]:
    def edit(hoppers: Hoppers, offer: dpb.Offer) -> None:
        body = dpb.TaskBody.FromString(offer.body)
        change(body)
        offer.body = body.SerializeToString(deterministic=True)

    return edit


def by_bob(change: Callable[[dpb.Hop], object]) -> Callable[[Hoppers, dpb.Offer], None]:
    return lambda hoppers, offer: resigned(hoppers.bob, Kind.HOP, offer.hops[1], dpb.Hop(), change)


def as_alice(change: Callable[[Any], object]) -> Callable[[Hoppers, dpb.Offer], None]:
    """bob edits what alice signed, and leaves her signature under it."""

    def edit(hoppers: Hoppers, offer: dpb.Offer) -> None:
        envelope = dpb.TaskEnvelope.FromString(offer.envelope.payload)
        change(envelope)
        offer.envelope.payload = envelope.SerializeToString(deterministic=True)

    return edit


def allow(**fields: Any) -> Callable[[dpb.Hop], object]:
    return lambda hop: hop.redelegation.MergeFrom(dpb.Redelegation(**fields))


def without_label(hoppers: Hoppers, offer: dpb.Offer) -> None:
    """bob drops a label of both, and signs all of it as well as he can."""
    edit_body(lambda body: body.labels.clear())(hoppers, offer)

    def strip(envelope: dpb.TaskEnvelope) -> None:
        envelope.labels.remove("customer=acme")
        envelope.body_digest = chains.digest(offer.body)

    as_alice(strip)(hoppers, offer)
    rechain(hoppers, offer)


def rechain(hoppers: Hoppers, offer: dpb.Offer) -> None:
    """bob signs his own hop over what he has made of the rest."""
    by_bob(lambda hop: setattr(hop, "previous", chains.digest(offer.hops[0].payload)))(hoppers, offer)


def without_first_hop(hoppers: Hoppers, offer: dpb.Offer) -> None:
    """bob hides that he had the task from alice."""
    del offer.hops[0]
    resigned(
        hoppers.bob,
        Kind.HOP,
        offer.hops[0],
        dpb.Hop(),
        lambda hop: setattr(hop, "previous", chains.digest(offer.envelope.payload)),
    )


FORGERIES: Final[Mapping[str, tuple[Callable[[Hoppers, dpb.Offer], None], type[HopperError], str]]] = {
    "edited body": (edit_body(lambda body: setattr(body, "title", "wire money")), SignatureInvalid, "body"),
    "raised priority": (edit_body(lambda body: setattr(body, "priority", 100)), SignatureInvalid, "body"),
    "label stripped from the body": (
        edit_body(lambda body: body.labels.clear()),
        SignatureInvalid,
        "body",
    ),
    "label stripped from the envelope": (
        as_alice(lambda envelope: envelope.labels.remove("work")),
        SignatureInvalid,
        "labels",
    ),
    "label stripped everywhere": (without_label, SignatureInvalid, ""),
    "capability stripped": (
        as_alice(lambda envelope: envelope.capabilities.pop()),
        SignatureInvalid,
        "capabilities",
    ),
    "exclusive all of a sudden": (
        as_alice(lambda envelope: setattr(envelope, "exclusive", True)),
        SignatureInvalid,
        "",
    ),
    "longer life": (
        as_alice(lambda envelope: envelope.not_after.FromSeconds(4_000_000_000)),
        SignatureInvalid,
        "",
    ),
    "more hops": (by_bob(allow(hops=2)), SignatureInvalid, "redelegation"),
    "more copies": (by_bob(allow(fan_out=7)), SignatureInvalid, "redelegation"),
    "negative hops": (by_bob(allow(hops=-1)), SignatureInvalid, "redelegation"),
    "first hop hidden": (without_first_hop, SignatureInvalid, "from"),
    "epoch of nothing": (by_bob(lambda hop: setattr(hop, "epoch", 0)), SignatureInvalid, "delegation"),
    "no hand-over": (by_bob(lambda hop: setattr(hop, "delegation", "x")), SignatureInvalid, "delegation"),
    "no time": (by_bob(lambda hop: hop.ClearField("create_time")), SignatureInvalid, "create_time"),
    "a time that is none": (
        by_bob(lambda hop: setattr(hop.create_time, "seconds", 1 << 60)),
        SignatureInvalid,
        "create_time",
    ),
    "to nobody": (by_bob(lambda hop: setattr(hop, "to", "..")), SignatureInvalid, "install id"),
    "no hops": (lambda hoppers, offer: offer.ClearField("hops"), SignatureInvalid, "hop"),
    "hop that is none": (
        lambda hoppers, offer: setattr(offer.hops[1], "payload", b"\xff"),
        SignatureInvalid,
        "payload",
    ),
    "too large a hop": (
        lambda hoppers, offer: setattr(offer.hops[1], "payload", bytes(65_537)),
        SignatureInvalid,
        "payload",
    ),
    "too large a body": (
        lambda hoppers, offer: setattr(offer, "body", bytes(1_048_577)),
        SignatureInvalid,
        "body",
    ),
    "envelope of another": (
        lambda hoppers, offer: offer.envelope.CopyFrom(
            offer_to_bob(hoppers, dpb.TaskBody(title="another")).envelope
        ),
        SignatureInvalid,
        "body",
    ),
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
@pytest.mark.parametrize("known", [EVERYBODY, ("bob", "carol")], ids=["origin known", "origin unknown"])
def test_what_bob_makes_of_it_is_found_out_by_carol(
    hoppers: Hoppers, forgery: str, known: Sequence[str]
) -> None:
    forge, error, what = FORGERIES[forgery]
    offer = offer_to_carol(hoppers)
    opened_by_carol(hoppers, offer, known)  # it held before
    forge(hoppers, offer)
    if forgery == "label stripped everywhere" and "alice" not in known:
        what = "previous"  # alice's hop is over the envelope as she signed it
    refused(lambda: opened_by_carol(hoppers, offer, known), error, what)


def test_where_the_origin_may_be_known_its_signature_is_checked_and_not_only_the_hashes(
    hoppers: Hoppers,
) -> None:
    """bob makes up all of the chain before him, in alice's name: who knows her finds out, who does not cannot."""
    offer = offer_to_bob(hoppers, dpb.TaskBody(title="alice never said so"))
    for signed in (offer.envelope, offer.hops[0]):
        signed.signature = bytes(64)
    forged = offer_to_carol(hoppers, offer)
    refused(lambda: opened_by_carol(hoppers, forged), SignatureInvalid)
    links = chains.read_offer(forged, hoppers.named(("bob",))).links
    assert [(link.verified, link.problem) for link in links] == [(False, None), (False, None), (True, None)]


def test_a_key_that_its_owner_has_not_told_is_no_claim(hoppers: Hoppers) -> None:
    """Or whoever makes something up would name a key that nobody knows."""
    offer = offer_to_bob(hoppers)
    offer.envelope.key_id = "0" * 32
    refused(lambda: opened_by_bob(hoppers, offer), UnlistedKey)


def test_a_statement_of_one_kind_is_none_of_another(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers)
    offer.hops[0].CopyFrom(chains.sign(hoppers.alice, Kind.TASK, dpb.Hop.FromString(offer.hops[0].payload)))
    refused(lambda: opened_by_bob(hoppers, offer), SignatureInvalid)


def test_a_key_that_was_not_valid_then_signs_nothing(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers, now=NOW + timedelta(days=91))
    refused(lambda: opened_by_bob(hoppers, offer), SignatureInvalid)


# Loops, and how far it may go.


def test_nobody_offers_a_task_to_whoever_had_it(hoppers: Hoppers) -> None:
    came = offer_to_bob(hoppers)
    for again in (hoppers.alice, hoppers.bob):
        refused(lambda: extend_offer(hoppers.bob, came, to(again, SECOND), now=NOW), DelegationLoop)  # noqa: B023


def test_a_task_that_comes_back_is_refused(hoppers: Hoppers) -> None:
    offer = offer_to_carol(hoppers)
    by_bob(lambda hop: setattr(hop, "to", hoppers.alice.install_id))(hoppers, offer)
    refused(lambda: opened_by_carol(hoppers, offer, own=hoppers.alice.install_id), DelegationLoop)


def test_nobody_hands_on_what_may_not_be(hoppers: Hoppers) -> None:
    only = Redelegation(installs=frozenset({hoppers.dave.install_id}), hops=1, fan_out=1)
    for redelegation, error in (
        (Redelegation(), CapabilityDenied),
        (only, CapabilityDenied),
        (Redelegation(any=True, fan_out=1), HopLimit),
        (Redelegation(any=True, hops=1), FanOutLimit),
    ):
        came = offer_to_bob(hoppers, redelegation=redelegation)
        refused(lambda: offer_to_carol(hoppers, came), error)  # noqa: B023
        offer = offer_to_carol(hoppers)
        first = resealed(hoppers, offer, redelegation)
        refused(lambda: opened_by_carol(hoppers, first), error)  # noqa: B023
    came = offer_to_bob(hoppers, redelegation=only)
    extend_offer(hoppers.bob, came, to(hoppers.dave, SECOND), now=NOW)


def resealed(hoppers: Hoppers, offer: dpb.Offer, redelegation: Redelegation) -> dpb.Offer:
    """bob hands on, all the same, what alice does not let him hand on."""
    came = offer_to_bob(hoppers, redelegation=redelegation)
    came.hops.append(offer.hops[1])

    def narrow(hop: dpb.Hop) -> None:
        hop.previous = chains.digest(came.hops[0].payload)
        hop.ClearField("redelegation")

    resigned(hoppers.bob, Kind.HOP, came.hops[1], dpb.Hop(), narrow)
    return came


def test_no_more_than_eight_hoppers_have_a_task(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    line = [IdentityStore.open(tmp_path / str(number) / "identity", clock) for number in range(10)]
    allowed = Redelegation(any=True, hops=50, fan_out=50)
    offer = seal_offer(
        line[0], BODY, to(line[1]), task="01k", redelegation=allowed, not_after=NOW + LEASE, now=NOW
    )
    for number in range(1, 9):
        hop = dpb.Hop.FromString(offer.hops[-1].payload)
        below = Redelegation(any=True, hops=50 - number, fan_out=50 - number)
        changed = {"previous": chains.digest(offer.hops[-1].payload), "to": line[number + 1].install_id}
        for field, value in (*changed.items(), ("from", line[number].install_id)):
            setattr(hop, field, value)
        hop.redelegation.CopyFrom(chains.redelegation_to_proto(below))
        offer.hops.append(chains.sign(line[number], Kind.HOP, hop))
        opened = {
            "sender": line[number].install_id,
            "own": line[number + 1].install_id,
            "delegation": FIRST,
            "epoch": 1,
            "keys_of": knowing({line[number].install_id: line[number].trust_bundle().signing_keys}),
            "now": NOW,
        }
        if number < 8:
            assert open_offer(offer, **opened).hops == 7 - number  # type: ignore[arg-type]
    refused(lambda: open_offer(offer, **opened), HopLimit)  # type: ignore[arg-type]


# Every byte.


@given(data=st.data())
def test_no_byte_of_what_is_signed_can_be_changed(hoppers: Hoppers, data: st.DataObject) -> None:
    offer = offer_to_carol(hoppers)
    parts: list[tuple[Any, str]] = [(offer, "body")]
    for signed in (offer.envelope, *offer.hops):
        parts += [(signed, "payload"), (signed, "signature")]
    message, field = data.draw(st.sampled_from(parts))
    setattr(message, field, data.draw(flipped(getattr(message, field))))
    with pytest.raises(HopperError):
        opened_by_carol(hoppers, offer)


@given(data=st.data())
def test_no_byte_of_a_result_can_be_changed(hoppers: Hoppers, data: st.DataObject) -> None:
    result, offer = result_of_carol(hoppers)
    parts: list[tuple[Any, str]] = [(result, "output")]
    for signed in (result.envelope, *result.countersigns):
        parts += [(signed, "payload"), (signed, "signature")]
    message, field = data.draw(st.sampled_from(parts))
    setattr(message, field, data.draw(flipped(getattr(message, field))))
    with pytest.raises(HopperError):
        opened_by_alice(hoppers, result, offer)


@st.composite
def flipped(draw: st.DrawFn, whole: bytes) -> bytes:
    place = draw(st.integers(0, len(whole) - 1))
    other = draw(st.integers(1, 255))
    return whole[:place] + bytes([whole[place] ^ other]) + whole[place + 1 :]


@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else_happens(hoppers: Hoppers, garbage: bytes) -> None:
    offer = offer_to_bob(hoppers)
    for signed in (offer.envelope, offer.hops[0]):
        spoilt = copy(offer)
        (spoilt.envelope if signed is offer.envelope else spoilt.hops[0]).payload = garbage
        with pytest.raises(HopperError):
            opened_by_bob(hoppers, spoilt)


# Older Hoppers.


def test_what_an_older_hopper_does_not_know_survives_it(hoppers: Hoppers) -> None:
    """A field that this version has not: alice signs it, bob hands it on without knowing it, carol has it."""
    unknown = b"\xa2\x06\x03new"  # field 100, three bytes
    offer = offer_to_bob(hoppers)
    body = offer.body + unknown
    envelope = dpb.TaskEnvelope.FromString(offer.envelope.payload + unknown)
    envelope.body_digest = chains.digest(body)
    offer.body = body
    offer.envelope.CopyFrom(chains.sign(hoppers.alice, Kind.TASK, envelope))
    hop = dpb.Hop.FromString(offer.hops[0].payload + unknown)
    hop.previous = chains.digest(offer.envelope.payload)
    offer.hops[0].CopyFrom(chains.sign(hoppers.alice, Kind.HOP, hop))

    opened_by_bob(hoppers, offer)
    went = dpb.Offer.FromString(offer_to_carol(hoppers, offer).SerializeToString())
    opened_by_carol(hoppers, went)
    read = chains.read_offer(went, hoppers.named(EVERYBODY))
    for message in (read.envelope, read.body, read.hops[0]):
        unread = UnknownFieldSet(message)
        assert (len(unread), unread[0].field_number) == (1, 100)


# Results.


def opened_by_alice(
    hoppers: Hoppers, result: dpb.Result, offer: dpb.Offer, known: Sequence[str] = EVERYBODY, **different: Any
) -> ResultFacts:
    said: dict[str, Any] = {
        "sender": hoppers.bob.install_id,
        "own": hoppers.alice.install_id,
        "keys_of": hoppers.named(known),
        **different,
    }
    return open_result(result, offer=offer, **said)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_result_says_how_it_ended(hoppers: Hoppers, outcome: Outcome) -> None:
    offer = offer_to_bob(hoppers)
    ended = Ended(
        outcome,
        NOW,
        output=b"x",
        failure_reason="HANDLER_ERROR",
        failure_message="no such file",
        permanent=outcome is Outcome.FAILED,
    )
    result = seal_result(hoppers.bob, offer, ended)
    facts = opened_by_alice(hoppers, result, offer, known=("bob",))
    assert facts == ResultFacts(ended, hoppers.bob.install_id, verified=True)


def test_a_result_may_be_signed_by_a_key_that_is_younger_than_it(hoppers: Hoppers) -> None:
    """bob's task ended, then he was off while the time of a new key came."""
    offer = offer_to_bob(hoppers, now=NOW - timedelta(days=30))
    ended = replace(ENDED, finish_time=NOW - timedelta(days=20))
    facts = opened_by_alice(hoppers, seal_result(hoppers.bob, offer, ended), offer)
    assert facts.ended == ended


def test_a_result_from_further_away_is_passed_on_whole(hoppers: Hoppers) -> None:
    result, offer = result_of_carol(hoppers)
    facts = opened_by_alice(hoppers, result, offer)
    assert facts == ResultFacts(ENDED, hoppers.carol.install_id, verified=True)
    between = open_result(
        seal_result(hoppers.carol, offer_to_carol(hoppers), ENDED),
        offer=offer_to_carol(hoppers),
        sender=hoppers.carol.install_id,
        own=hoppers.bob.install_id,
        keys_of=hoppers.named(("carol",)),
    )
    assert between.ended == ENDED


def test_what_came_twice_is_told_apart(hoppers: Hoppers) -> None:
    first, second = offer_to_bob(hoppers), offer_to_bob(hoppers, now=NOW + timedelta(minutes=1))
    handed_on = offer_to_carol(hoppers, first)
    assert passes_on(handed_on, first)
    assert not passes_on(handed_on, second)
    assert not passes_on(first, first)


def test_who_does_not_know_the_executor_has_the_word_of_who_passed_it_on(hoppers: Hoppers) -> None:
    result, offer = result_of_carol(hoppers)
    facts = opened_by_alice(hoppers, result, offer, known=("alice", "bob"))
    assert (facts.executor, facts.verified) == (hoppers.carol.install_id, False)


def by_carol(change: Callable[[dpb.ResultEnvelope], object]) -> Callable[[Hoppers, dpb.Result], None]:
    def edit(hoppers: Hoppers, result: dpb.Result) -> None:
        resigned(hoppers.carol, Kind.RESULT, result.envelope, dpb.ResultEnvelope(), change)
        passed_on(lambda passed: setattr(passed, "previous", chains.digest(result.envelope.payload)))(
            hoppers, result
        )

    return edit


def passed_on(change: Callable[[dpb.Countersign], object]) -> Callable[[Hoppers, dpb.Result], None]:
    return lambda hoppers, result: resigned(
        hoppers.bob, Kind.COUNTERSIGN, result.countersigns[0], dpb.Countersign(), change
    )


def in_carols_name(hoppers: Hoppers, result: dpb.Result) -> None:
    """bob says in carol's name that it failed, and leaves her signature under it."""
    envelope = dpb.ResultEnvelope.FromString(result.envelope.payload)
    envelope.outcome = dpb.OUTCOME_FAILED
    result.envelope.payload = envelope.SerializeToString(deterministic=True)
    passed_on(lambda passed: setattr(passed, "previous", chains.digest(result.envelope.payload)))(
        hoppers, result
    )


def swapped(hoppers: Hoppers, result: dpb.Result) -> None:
    """The countersignature of another result."""
    offer = offer_to_bob(hoppers)
    other = seal_result(hoppers.carol, offer_to_carol(hoppers, offer), Ended(Outcome.FAILED, NOW))
    result.countersigns[0].CopyFrom(countersign(hoppers.bob, other, offer, NOW).countersigns[0])


def called(**fields: Any) -> Callable[[Any], object]:
    return lambda envelope: envelope.artifacts[0].MergeFrom(dpb.Artifact(**fields))


RESULT_FORGERIES: Final[
    Mapping[str, tuple[Callable[[Hoppers, dpb.Result], None], type[HopperError], str]]
] = {
    "edited output": (
        lambda hoppers, result: setattr(result, "output", b"other"),
        SignatureInvalid,
        "output",
    ),
    "in carol's name": (in_carols_name, SignatureInvalid, ""),
    "of another task": (
        by_carol(lambda envelope: setattr(envelope, "task_uid", "x/y")),
        SignatureInvalid,
        "task_uid",
    ),
    "of another offer": (
        by_carol(lambda envelope: setattr(envelope, "envelope_digest", bytes(32))),
        SignatureInvalid,
        "envelope",
    ),
    "that does not say how it ended": (
        by_carol(lambda envelope: envelope.ClearField("outcome")),
        SignatureInvalid,
        "outcome",
    ),
    "with an outcome of the future": (
        by_carol(lambda envelope: setattr(envelope, "outcome", 99)),
        SignatureInvalid,
        "outcome",
    ),
    "of no hand-over": (
        by_carol(lambda envelope: setattr(envelope, "epoch", 0)),
        SignatureInvalid,
        "delegation",
    ),
    "with a path": (by_carol(called(name="../../.profile")), ArtifactInvalid, ""),
    "with half a hash": (by_carol(called(sha256=b"short")), ArtifactInvalid, ""),
    "with no hash": (
        by_carol(lambda envelope: envelope.artifacts[0].ClearField("sha256")),
        SignatureInvalid,
        "artifacts",
    ),
    "with ever so many files": (
        by_carol(lambda envelope: envelope.artifacts.extend([envelope.artifacts[0]] * 100)),
        SignatureInvalid,
        "artifacts",
    ),
    "countersignature swapped": (swapped, SignatureInvalid, "previous"),
    "countersigned for somebody else": (
        lambda hoppers, result: passed_on(lambda passed: setattr(passed, "to", hoppers.dave.install_id))(
            hoppers, result
        ),
        SignatureInvalid,
        "to",
    ),
    "countersigned for another hand-over": (
        passed_on(lambda passed: setattr(passed, "delegation", SECOND)),
        SignatureInvalid,
        "delegation",
    ),
    "countersigned for another epoch": (
        passed_on(lambda passed: setattr(passed, "epoch", 2)),
        SignatureInvalid,
        "delegation",
    ),
    "passed on by nobody": (
        lambda hoppers, result: result.ClearField("countersigns"),
        SignatureInvalid,
        "executor",
    ),
}


@pytest.mark.parametrize("forgery", sorted(RESULT_FORGERIES))
def test_what_is_made_of_a_result_is_found_out_by_alice(hoppers: Hoppers, forgery: str) -> None:
    forge, error, what = RESULT_FORGERIES[forgery]
    result, offer = result_of_carol(hoppers)
    opened_by_alice(hoppers, result, offer)  # it held before
    forge(hoppers, result)
    refused(lambda: opened_by_alice(hoppers, result, offer), error, what)


def test_the_result_of_one_hand_over_is_none_of_another(hoppers: Hoppers) -> None:
    result = seal_result(hoppers.bob, offer_to_bob(hoppers), ENDED)
    again = seal_offer(
        hoppers.alice,
        BODY,
        to(hoppers.bob, FIRST, epoch=2),
        task="01k",
        redelegation=at_origin(),
        not_after=NOW + timedelta(days=7),
        now=NOW,
    )
    refused(lambda: opened_by_alice(hoppers, result, again), SignatureInvalid, "delegation")


def test_a_result_is_taken_from_whoever_took_the_task_and_nobody_else(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers)
    result = seal_result(hoppers.bob, offer, ENDED)
    refused(
        lambda: opened_by_alice(hoppers, result, offer, sender=hoppers.carol.install_id),
        SignatureInvalid,
        "from",
    )
    refused(
        lambda: opened_by_alice(hoppers, result, offer, known=("alice",)),
        SignatureInvalid,
        "result signature",
    )


def test_nobody_executes_what_may_not_come_to_it(hoppers: Hoppers) -> None:
    """bob had it done by carol, whom alice does not want to have it."""
    for redelegation, error in (
        (Redelegation(), HopLimit),
        (Redelegation(installs=frozenset({hoppers.dave.install_id}), hops=1, fan_out=1), SignatureInvalid),
    ):
        offer = offer_to_bob(hoppers, redelegation=redelegation)
        made = seal_result(hoppers.carol, resealed(hoppers, offer_to_carol(hoppers), redelegation), ENDED)
        result = countersign(hoppers.bob, made, offer, NOW)
        refused(lambda: opened_by_alice(hoppers, result, offer), error)  # noqa: B023


@pytest.mark.parametrize("to_carol", [True, False])
def test_nobody_passes_on_what_may_not_come_to_it(hoppers: Hoppers, to_carol: bool) -> None:
    """dave has done it, who may; carol, through whom it went, may have it or not."""
    names = ("carol", "dave") if to_carol else ("dave",)
    installs = frozenset(getattr(hoppers, name).install_id for name in names)
    to_bob = offer_to_bob(hoppers, redelegation=Redelegation(installs=installs, hops=3, fan_out=9))
    anywhere = offer_to_bob(hoppers, redelegation=Redelegation(any=True, hops=3, fan_out=9))
    on = extend_offer(hoppers.bob, anywhere, to(hoppers.carol, SECOND), now=NOW)
    further = extend_offer(hoppers.carol, on, to(hoppers.dave, SECOND), now=NOW)
    for offer in (on, further):
        offer.envelope.CopyFrom(to_bob.envelope)  # bob has told them that they may
    result = seal_result(hoppers.dave, further, ENDED)
    for hopper, offer in ((hoppers.carol, on), (hoppers.bob, to_bob)):
        result = countersign(hopper, result, offer, NOW)
    if to_carol:
        assert opened_by_alice(hoppers, result, to_bob).executor == hoppers.dave.install_id
    else:
        refused(lambda: opened_by_alice(hoppers, result, to_bob), SignatureInvalid, "executor")


def test_nobody_passes_on_what_it_says_it_made_itself(hoppers: Hoppers) -> None:
    offer = offer_to_bob(hoppers)
    result = countersign(hoppers.bob, seal_result(hoppers.bob, offer, ENDED), offer, NOW)
    refused(lambda: opened_by_alice(hoppers, result, offer), DelegationLoop)


@pytest.mark.parametrize(
    ("of_alice", "told_later"),
    [
        ({"level": Level.TRUSTED}, True),
        (
            {
                "level": Level.BLOCKED,
                "revocation": Revocation.DRAIN,
                "drain_time": NOW + timedelta(seconds=1),
            },
            True,
        ),
        ({"level": Level.BLOCKED, "revocation": Revocation.DRAIN, "drain_time": NOW}, False),
        ({"level": Level.BLOCKED, "revocation": Revocation.NOW}, False),
    ],
    ids=["trusted", "drained", "was drained", "revoked"],
)
def test_who_was_parted_from_tells_of_new_keys_no_more(
    hoppers: Hoppers, of_alice: dict[str, Any], told_later: bool
) -> None:
    """What a third Hopper brings of it would else wait for ever; what it signed with its old keys is still verified."""
    bundle = hoppers.alice.trust_bundle()
    alice = TrustedPeer(
        "peers/alice", hoppers.alice.install_id, bundle=bundle.SerializeToString(), **of_alice
    )
    snapshots = TrustSnapshots()
    snapshots.replace([alice], 0.0)
    keys_of = KnownKeys(hoppers.bob, snapshots, ManualClock(NOW))
    (key, *_) = bundle.signing_keys
    assert keys_of(alice.install_id, key.key_id) == tuple(bundle.signing_keys)
    assert (keys_of(alice.install_id, "0" * 32) is not None) == told_later
