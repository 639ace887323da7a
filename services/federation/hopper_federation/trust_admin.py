"""
What the owner grants and takes away: levels, policies, revocations. Each change is one transaction, and in force at the
next call.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from hopper.common.v1.identity_pb2 import TrustBundle
from hopper_common.border.grant_toml import read_grant
from hopper_common.border.grants import Crossing, Grant, Ruling, Usage, decide, differences
from hopper_common.errors import FieldViolation, InvalidArgument, PolicyInvalid
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.store import Identity
from hopper_federation import grant_store, trust
from hopper_federation.grant_store import SignedGrant
from hopper_federation.model import Peer, Revocation
from hopper_federation.store_sql import SqlStore
from hopper_federation.trust import Level

log = structlog.get_logger(__name__)

DEFAULT_DRAIN: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Wish:
    """
    What the owner wants of a peer.

    Attributes:
        level: None: as the rest of it needs.
        policy: TOML; empty: as it was.
        compared: How the words were compared; empty: they were not, now.
        by: Who wants it.
    """

    level: Level | None
    policy: str
    compared: str
    by: str


@dataclass(frozen=True, slots=True)
class Granted:
    """What came of a wish: the peer as it is now, or would be, and what changes, for people."""

    peer: Peer
    changes: tuple[str, ...]


class TrustAdmin:
    """Grants, explains, and reads policies, in the transactions of others."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        # What held once holds for as long as neither its text nor this Hopper's keys change.
        self._held: dict[str, tuple[SignedGrant, TrustBundle, Grant]] = {}

    def grant(self, store: SqlStore, peer: Peer, wish: Wish, *, dry_run: bool = False) -> Granted:
        """
        Give a peer a level, a policy, or both.

        Raises:
            PolicyInvalid: The policy does not load.
            PeerWrongState: The level is not to be had so.
            InvalidArgument: Nothing is wished for.
            SignatureInvalid: The policy that would stay is not what the owner signed.
        """
        wanted = _wanted(peer, wish)
        before, lines = self._before(store, peer, wish)
        after = read_grant(wish.policy) if wish.policy else before
        # What was compared before something did not add up says nothing about afterwards.
        compared = bool(wish.compared or (peer.verified_by and not peer.alert))
        level = trust.after_grant(
            peer.name, peer.level, wanted, has_policy=after is not None, compared=compared
        )
        signed = self._signed(store, peer, wish)
        changed = replace(
            peer,
            level=level,
            alert=peer.alert if level in (peer.level, Level.BLOCKED) else "",
            policy_version=peer.policy_version if signed is None else signed.version,
            verified_by=f"{wish.by}, {wish.compared}" if wish.compared else peer.verified_by,
            verify_time=store.now if wish.compared else peer.verify_time,
        )
        if level is not peer.level:
            lines.append(f"level: {peer.level.lower()} -> {level.lower()}")
        lines += differences(before, after)
        if wish.compared:
            lines.append(f"words compared: {wish.compared}")
        if changed == peer:
            return Granted(peer, tuple(lines))
        changed = replace(changed, revision=peer.revision + 1)
        if not dry_run:
            if signed is not None:
                grant_store.add(store, signed)
            store.save_peer(changed)
        return Granted(changed, tuple(lines))

    def _before(self, store: SqlStore, peer: Peer, wish: Wish) -> tuple[Grant | None, list[str]]:
        """The policy that counts before, and what is to be said of it."""
        try:
            return self.policy(store, peer), []
        except (SignatureInvalid, PolicyInvalid):
            if not wish.policy:
                raise
            return None, ["the policy that was stored granted nothing: it was not what had been signed off"]

    def _signed(self, store: SqlStore, peer: Peer, wish: Wish) -> SignedGrant | None:
        """The version to be added; None: the policy stays. One that only reads otherwise is a version too."""
        latest = grant_store.latest(store, peer.install_id)
        if not wish.policy or (latest is not None and latest.text == wish.policy and self._holds(latest)):
            return None
        version = latest.version + 1 if latest else 1
        return grant_store.signed(self._identity, peer.install_id, version, wish.policy, wish.by, store.now)

    def _holds(self, signed: SignedGrant) -> bool:
        try:
            signed.verify(self._identity.install_id, self._identity.trust_bundle().signing_keys)
        except SignatureInvalid:
            return False
        return True

    def policy(self, store: SqlStore, peer: Peer) -> Grant | None:
        """
        The policy in force for a peer; None: there is none.

        Raises:
            SignatureInvalid: What is stored is not what the owner signed.
            PolicyInvalid: It was written by a newer Hopper, which knew more keys.
        """
        signed = grant_store.latest(store, peer.install_id)
        if signed is None:
            return None
        bundle = self._identity.trust_bundle()
        held = self._held.get(peer.install_id)
        if held is not None and held[0] == signed and held[1] is bundle:
            return held[2]
        grant = grant_store.in_force(signed, self._identity.install_id, bundle.signing_keys)
        self._held[peer.install_id] = signed, bundle, grant
        return grant

    def policy_text(self, store: SqlStore, install_id: str) -> str:
        """The policy in force, as its owner wrote it; empty: there is none that holds."""
        signed = grant_store.latest(store, install_id)
        if signed is None or not self._holds(signed):
            return ""
        try:
            signed.read()
        except PolicyInvalid:
            return ""
        return signed.text

    def explain(self, store: SqlStore, peer: Peer, crossing: Crossing, usage: Usage) -> Ruling:
        """
        Whether something may cross, and by which rule.

        Raises:
            As `policy`.
        """
        return decide(self.policy(store, peer), peer.level, crossing, usage, store.now)


def _wanted(peer: Peer, wish: Wish) -> Level:
    if wish.level is not None:
        return wish.level
    if wish.compared:
        return Level.VERIFIED
    if wish.policy:
        return peer.level if trust.reaches(peer.level, Level.TRUSTED) else Level.TRUSTED
    raise InvalidArgument(
        violations=[
            FieldViolation(
                "level",
                "say a level, a policy (`hopper peer trust PEER --policy FILE`), or how the words were compared",
            )
        ]
    )


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How a peer is to be ended.

    Attributes:
        mode: One that is not NONE.
        drain: Of DRAIN: how long what is under way may go on.
        since: Of COMPROMISED: since when; None: now.
    """

    mode: Revocation
    drain: timedelta = DEFAULT_DRAIN
    since: datetime | None = None


def revoke(store: SqlStore, peer: Peer, ending: Ending) -> Peer:
    """End a peer. Only pairing again lets it in. A stricter end than before replaces that; a milder one is nothing."""
    mode, before = ending.mode, _STRICTNESS[peer.revocation]
    if _STRICTNESS[mode] < before:
        return peer
    again = mode is peer.revocation
    ended = replace(
        peer,
        level=Level.BLOCKED,
        revocation=mode,
        revoke_time=peer.revoke_time if again else store.now,
        drain_time=store.now + ending.drain if mode is Revocation.DRAIN else None,
        compromise_time=_since(peer, ending, store.now) if mode is Revocation.COMPROMISED else None,
    )
    if ended == peer:
        return peer
    ended = replace(ended, revision=peer.revision + 1)
    store.save_peer(ended)
    return ended


def _since(peer: Peer, ending: Ending, now: datetime) -> datetime:
    """The earliest that anybody has said."""
    return min(time for time in (peer.compromise_time, ending.since or now) if time is not None)


_STRICTNESS: Final = {Revocation.NONE: 0, Revocation.DRAIN: 1, Revocation.NOW: 2, Revocation.COMPROMISED: 3}
