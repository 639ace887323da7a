"""
How a root is replaced while everything goes on: four moves, each a new bundle.

    prepare    the next root is made and told to everybody; it issues nothing
    activate   it issues from now on; what the old one issued is still good
    taint      whatever the old one issued is replaced at once
    revoke     the old one is trusted no longer, and its key is destroyed

Peers have to know a root before they see its first leaf, so `activate` waits: until all peers have said that they
have the bundle, or for two weeks. The other moves wait for a leaf's lifetime, so that none that is still shown is
cut off. Whoever was away for longer follows the chain of statements.

Functions of a bundle and the time: the keys and the files are `hopper_common.identity.store`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from hopper.common.v1.identity_pb2 import Root, TrustBundle
from hopper_common.identity.bundles import ACTIVE, PREPARED, REVOKED, TAINTED, certificate_of, successor
from hopper_common.identity.certificates import LEAF_LIFETIME, RootKey, key_hash, to_der
from hopper_common.identity.errors import IdentityWrongState

OVERLAP: Final = timedelta(days=14)
"""How long a prepared root waits for peers that have not said that they know it."""
SETTLE: Final = timedelta(seconds=15)
"""How long a prepared root waits for the processes of its own Hopper, which look at its files every second."""
LISTED_AFTER_REVOKE: Final = timedelta(days=30)
BEFORE_EXPIRY: Final = timedelta(days=365)
"""How long before a root runs out its successor is prepared by itself."""


class Verb(StrEnum):
    """A move of a rotation."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    TAINT = "taint"
    REVOKE = "revoke"


@dataclass(frozen=True, slots=True)
class Step:
    """The next move, and the time from which it is made by itself."""

    verb: Verb
    due: datetime


_STAGES: Final = {PREPARED: "prepared", ACTIVE: "active", TAINTED: "tainted", REVOKED: "revoked"}
_MEANS: Final = {
    Verb.ACTIVATE: (PREPARED, ACTIVE),
    Verb.TAINT: (ACTIVE, TAINTED),
    Verb.REVOKE: (TAINTED, REVOKED),
}


def stage_word(stage: int) -> str:
    """A stage as a word."""
    return next((word for value, word in _STAGES.items() if value == stage), "unknown")


def next_step(
    bundle: TrustBundle, since: Mapping[bytes, datetime], lifetime: timedelta = LEAF_LIFETIME
) -> Step:
    """
    Where a rotation stands.

    Args:
        since: When each root entered its stage, by the hash of its key.
        lifetime: Of leaves.
    """
    if (root := _first(bundle, TAINTED)) is not None:
        return Step(Verb.REVOKE, since[_hash(root)] + lifetime)
    if (root := _first(bundle, PREPARED)) is not None:
        return Step(Verb.ACTIVATE, since[_hash(root)] + OVERLAP)
    latest = bundle.roots[-1]
    if _first(bundle, ACTIVE) != latest:
        return Step(Verb.TAINT, since[_hash(latest)] + lifetime)
    return Step(Verb.PREPARE, certificate_of(latest.certificate).not_valid_after_utc - BEFORE_EXPIRY)


def settled(bundle: TrustBundle, since: Mapping[bytes, datetime], now: datetime) -> bool:
    """Whether a root is prepared that waits for nobody but peers."""
    root = _first(bundle, PREPARED)
    return (
        root is not None
        and next_step(bundle, since).verb is Verb.ACTIVATE
        and now >= since[_hash(root)] + SETTLE
    )


def check_turn(bundle: TrustBundle, since: Mapping[bytes, datetime], verb: Verb) -> None:
    """
    Check that a move is the next one.

    Raises:
        IdentityWrongState: Another is; says which.
    """
    step = next_step(bundle, since)
    if step.verb != verb:
        stages = ", ".join(stage_word(root.stage) for root in bundle.roots)
        raise IdentityWrongState(
            f"the roots are {stages}: the next move is `hopper ca {step.verb}`, not {verb}",
            stage=stages,
            verb=verb,
        )


def prepared(bundle: TrustBundle, root: RootKey, now: datetime) -> TrustBundle:
    """The bundle with a further root; its statement is the caller's to add."""
    following = successor(bundle, now)
    following.roots.add(certificate=to_der(root.certificate), stage=PREPARED)
    return following


def moved(bundle: TrustBundle, verb: Verb, now: datetime) -> tuple[TrustBundle, bytes]:
    """
    The bundle after `activate`, `taint` or `revoke`.

    Returns:
        The bundle, and the hash of the key of the root that has moved.
    """
    before, after = _MEANS[verb]
    following = successor(bundle, now)
    root = next(root for root in following.roots if root.stage == before)
    root.stage = after
    return following, _hash(root)


def without_forgotten(bundle: TrustBundle, since: Mapping[bytes, datetime], now: datetime) -> list[Root]:
    """The roots that are still told of: not those revoked a month ago."""
    return [
        root
        for root in bundle.roots
        if root.stage != REVOKED or now < since[_hash(root)] + LISTED_AFTER_REVOKE
    ]


def _first(bundle: TrustBundle, stage: int) -> Root | None:
    return next((root for root in bundle.roots if root.stage == stage), None)


def _hash(root: Root) -> bytes:
    return key_hash(certificate_of(root.certificate))
