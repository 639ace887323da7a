"""
What the owner's policy says of a task at this Hopper's border, either way, within one transaction: what crossed
before is counted in the same transaction as what crosses now.

A policy that does not hold, because its signature or its form does not, lets nothing cross.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hopper_common.border.grants import (
    Crossing,
    Direction,
    Effect,
    Grant,
    Rule,
    Ruling,
    Usage,
    decide,
    kept_back,
)
from hopper_common.errors import PolicyInvalid
from hopper_common.identity.errors import SignatureInvalid
from hopper_federation.delegation.model import CLOCKS_APART, OfferFacts
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.errors import CapabilityDenied, TrustLevelTooLow
from hopper_federation.model import Peer
from hopper_federation.store_sql import SqlStore
from hopper_federation.trust import Level, reaches
from hopper_federation.trust_admin import TrustAdmin

MOST_OPEN: Final = 100
"""How many hand-overs of one peer may be open here, whatever its policy says."""

BUSY_SECONDS: Final = 60.0

_FEEDBACK: Final = "feedback"


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    A `ports.Ruling`.

    Attributes:
        transit: Install ids of the third Hoppers that the rule lets take part; None: any.
        redact: Fields that do not leave by the rule.
    """

    allowed: bool
    quarantined: bool
    rule: str
    reason: str
    detail: str
    retry_after: float | None
    transit: frozenset[str] | None = frozenset()
    redact: tuple[str, ...] = ()


class Border:
    """
    A `ports.BorderControl`. Lives as long as the transaction.

    Args:
        now: Seconds of the steady clock.

    Attributes:
        refused_by: Which rule let an offer not come in, by the uid of its task.
    """

    def __init__(self, trust: TrustAdmin, store: SqlStore, rows: SqlDelegations, now: float) -> None:
        self._trust = trust
        self._store = store
        self._rows = rows
        self._now = now
        self.refused_by: dict[str, str] = {}
        self._standings: dict[str, tuple[Peer | None, Grant | None]] = {}

    def rule_on(self, peer: str, facts: OfferFacts) -> Verdict:
        """Whether an offer of a peer may come in."""
        verdict = self._rule_on(peer, facts)
        if not verdict.allowed:
            self.refused_by[facts.task_uid] = verdict.rule
        return verdict

    def _rule_on(self, peer: str, facts: OfferFacts) -> Verdict:
        if self._rows.used(peer, {}, self._now).open >= MOST_OPEN:
            return _no("the most of any peer", "QUOTA", f"{MOST_OPEN} hand-overs are open", BUSY_SECONDS)
        crossing = Crossing(
            Direction.IN,
            capabilities=facts.capabilities,
            labels=facts.labels,
            priority=facts.priority,
            bytes=facts.size,
            exclusive=facts.exclusive,
            origin="" if facts.origin == peer else facts.origin,
        )
        return self.rule(peer, crossing)

    def may_have_been_here(self, facts: OfferFacts) -> bool:
        """Whether an offer that is not known here may have been taken before this Hopper was restored from a copy."""
        incarnation = self._store.incarnation()
        if incarnation is None or not incarnation.restored:
            return False
        return facts.made <= incarnation.number + CLOCKS_APART

    def rule(self, peer: str, crossing: Crossing) -> Verdict:
        """Whether something may cross between this Hopper and a peer."""
        try:
            known, grant = self._standing(peer)
        except (SignatureInvalid, PolicyInvalid):
            return _no("the policy does not hold", "CAPABILITY_DENIED", "the stored policy does not hold")
        if known is None:
            return _no("no peer", "PEER_UNKNOWN", "it is not paired")
        ruling = decide(grant, known.level, crossing, self._used(known, grant), self._store.now)
        return _verdict(ruling, grant)

    def check_feedback(self, peer: str, rule: str) -> None:
        """
        Check that a peer may hear how well it did what crossed to it.

        Args:
            rule: By which it crossed.

        Raises:
            TrustLevelTooLow: The peer, as it is now, is not TRUSTED, or not as far as its policy needs.
            CapabilityDenied: The rule, as it is now, keeps feedback here, or lets nothing out any more.
        """
        try:
            known, grant = self._standing(peer)
        except (SignatureInvalid, PolicyInvalid):
            known, grant = self._store.peer_of(peer), None
        level = Level.UNTRUSTED if known is None else known.level
        needed = Level.TRUSTED if grant is None else grant.level
        if not reaches(level, needed):
            raise TrustLevelTooLow(level=level.value, needed=needed.value)
        found = None if grant is None else _lets_out(grant, rule, self._store.now)
        if found is None or kept_back(found.redact, _FEEDBACK):
            why = "lets nothing out any more" if found is None else "keeps feedback here"
            raise CapabilityDenied(
                f"the rule that it crossed by {why}",
                rule=rule,
                capability=_FEEDBACK,
                direction=Direction.OUT.value,
            )

    def _standing(self, peer: str) -> tuple[Peer | None, Grant | None]:
        """A peer and its policy, which stay as they are for as long as the transaction lasts."""
        if peer not in self._standings:
            known = self._store.peer_of(peer)
            self._standings[peer] = known, None if known is None else self._trust.policy(self._store, known)
        return self._standings[peer]

    def _used(self, peer: Peer, grant: Grant | None) -> Usage:
        rules = () if grant is None else grant.rules
        windows = {rule.name: rule.rate.per.total_seconds() for rule in rules if rule.rate is not None}
        used = self._rows.used(peer.install_id, windows, self._now)
        return Usage(pending=used.pending, in_flight=used.in_flight, recent=used.recent)


def _lets_out(grant: Grant, name: str, now: datetime) -> Rule | None:
    """The rule of that name, if something may still leave by it."""
    for rule in grant.rules:
        if rule.name == name and rule.effect is Effect.ALLOW and Direction.OUT in rule.directions:
            return rule if rule.expires is None or now < rule.expires else None
    return None


def _no(rule: str, reason: str, detail: str, retry_after: float | None = None) -> Verdict:
    return Verdict(False, False, rule, reason, detail, retry_after)


def _verdict(ruling: Ruling, grant: Grant | None) -> Verdict:
    wait = ruling.retry_after
    rules = {} if grant is None else {rule.name: rule for rule in grant.rules}
    rule = rules.get(ruling.rule)
    return Verdict(
        ruling.allowed,
        ruling.quarantined,
        ruling.rule,
        ruling.reason,
        ruling.detail,
        None if wait is None else wait.total_seconds(),
        frozenset() if rule is None else rule.transit,
        () if rule is None else rule.redact,
    )
