"""With whom hand-overs end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from hopper_federation.delegation.model import Gone
from hopper_federation.delegation.parting import departed
from hopper_federation.model import Revocation
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOB = TrustedPeer("peers/bob", "b" * 32, Level.BLOCKED)


def gone(peer: TrustedPeer) -> list[Gone]:
    snapshot = TrustSnapshot(1, MappingProxyType({peer.install_id: peer}), 0.0)
    return [why for _, why in departed(snapshot, NOW)]


def test_who_is_blocked_is_gone_however_that_came_about() -> None:
    assert gone(BOB) == [Gone.REVOKED]
    assert gone(replace(BOB, revocation=Revocation.NOW)) == [Gone.REVOKED]
    assert gone(replace(BOB, revocation=Revocation.COMPROMISED)) == [Gone.COMPROMISED]


def test_who_is_drained_is_gone_when_its_time_has_come() -> None:
    drained = replace(BOB, revocation=Revocation.DRAIN, drain_time=NOW + timedelta(seconds=1))
    assert gone(drained) == []
    assert gone(replace(drained, drain_time=NOW)) == [Gone.REVOKED]


def test_who_is_trusted_less_is_not_gone() -> None:
    for level in (Level.UNTRUSTED, Level.KNOWN, Level.TRUSTED, Level.VERIFIED):
        assert gone(replace(BOB, level=level)) == []
