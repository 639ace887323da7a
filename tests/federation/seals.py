"""
Four Hoppers, and what they sign for each other: alice is the origin, bob has the task from her, carol from bob.

Shared by the tests of sealing, custody and the service that shows both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from hopper.common.v1.identity_pb2 import SigningKey
from hopper.federation.v1 import delegation_pb2 as dpb
from hopper_common.identity.store import Identity, IdentityStore
from hopper_federation.delegation.chain import KeysOf
from hopper_federation.delegation.model import OfferFacts, Outcome
from hopper_federation.delegation.narrowing import at_origin
from hopper_federation.delegation.sealing import (
    Ended,
    HandOver,
    countersign,
    extend_offer,
    open_offer,
    seal_offer,
    seal_result,
)
from hopper_testing.clock import ManualClock

NOW: Final = datetime(2026, 11, 1, 12, tzinfo=UTC)
FIRST: Final = "1" * 26
SECOND: Final = "2" * 26
LEASE: Final = timedelta(minutes=15)

BODY: Final = dpb.TaskBody(
    title="translate the report",
    description="All of it, by tomorrow.",
    tags=["docs", "work"],
    required_capabilities=["translate"],
    labels={"customer": "acme"},
    priority=60,
)


@dataclass(frozen=True)
class Hoppers:
    alice: Identity
    bob: Identity
    carol: Identity
    dave: Identity

    def named(self, names: Sequence[str]) -> KeysOf:
        """The keys of these, as somebody who knows them knows them."""
        known: Mapping[str, Sequence[SigningKey]] = {
            hopper.install_id: hopper.trust_bundle().signing_keys
            for hopper in (getattr(self, name) for name in names)
        }
        return knowing(known)


def knowing(keys: Mapping[str, Sequence[SigningKey]]) -> KeysOf:
    """As somebody knows them who knows these keys."""
    return lambda install_id, _: keys.get(install_id)


EVERYBODY: Final = ("alice", "bob", "carol", "dave")


def made_hoppers(directory: Path) -> Hoppers:
    """Four identities."""
    clock = ManualClock(NOW)
    return Hoppers(*(IdentityStore.open(directory / name / "identity", clock) for name in EVERYBODY))


def to(hopper: Identity, delegation: str = FIRST, epoch: int = 1) -> HandOver:
    return HandOver(hopper.install_id, delegation, epoch, LEASE)


def offer_to_bob(hoppers: Hoppers, body: dpb.TaskBody = BODY, **different: Any) -> dpb.Offer:
    terms: dict[str, Any] = {
        "redelegation": at_origin(),
        "not_after": NOW + timedelta(days=7),
        "now": NOW,
        **different,
    }
    return seal_offer(hoppers.alice, body, to(hoppers.bob), task="01k", **terms)


def offer_to_carol(hoppers: Hoppers, came: dpb.Offer | None = None) -> dpb.Offer:
    came = offer_to_bob(hoppers) if came is None else came
    return extend_offer(hoppers.bob, came, to(hoppers.carol, SECOND), now=NOW)


def opened_by_bob(hoppers: Hoppers, offer: dpb.Offer, **different: Any) -> OfferFacts:
    said: dict[str, Any] = {
        "sender": hoppers.alice.install_id,
        "own": hoppers.bob.install_id,
        "delegation": FIRST,
        "epoch": 1,
        "keys_of": hoppers.named(("alice", "bob")),
        "now": NOW,
        **different,
    }
    return open_offer(offer, **said)


def opened_by_carol(
    hoppers: Hoppers, offer: dpb.Offer, known: Sequence[str] = EVERYBODY, **different: Any
) -> OfferFacts:
    return opened_by_bob(
        hoppers,
        offer,
        **{
            "sender": hoppers.bob.install_id,
            "own": hoppers.carol.install_id,
            "delegation": SECOND,
            "keys_of": hoppers.named(known),
            **different,
        },
    )


ENDED: Final = Ended(
    Outcome.SUCCEEDED,
    NOW,
    output=b"done",
    artifacts=(dpb.Artifact(name="report.txt", sha256=bytes(32), size=7, media_type="text/plain"),),
    effort=timedelta(minutes=2),
    attempts=2,
)


def result_of_carol(hoppers: Hoppers, outcome: Outcome = Outcome.SUCCEEDED) -> tuple[dpb.Result, dpb.Offer]:
    """What carol made of it, as bob passes it on; and what alice had offered to bob."""
    offer = offer_to_bob(hoppers)
    ended = replace(ENDED, outcome=outcome)
    result = seal_result(hoppers.carol, offer_to_carol(hoppers, offer), ended)
    return countersign(hoppers.bob, result, offer, NOW), offer
