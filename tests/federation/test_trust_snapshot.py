"""Whom the guard trusts: whole, immutable, and only as long as the store has confirmed it."""

from datetime import UTC, datetime, timedelta

import pytest

from hopper_federation.model import Revocation
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import (
    STALE_AFTER,
    TOMBSTONE_FOR,
    TrustedPeer,
    TrustSnapshot,
    TrustSnapshots,
    accepts_roots,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOB = TrustedPeer("peers/bob", "b" * 32, Level.TRUSTED, roots=(b"root",))
EVE = TrustedPeer("peers/eve", "e" * 32, Level.BLOCKED, Revocation.NOW, NOW)


def test_nobody_is_trusted_before_the_store_has_spoken() -> None:
    snapshot = TrustSnapshot()
    assert snapshot.age(1e9) is None
    assert not snapshot.fresh(0.0)


def test_a_snapshot_goes_stale() -> None:
    snapshots = TrustSnapshots()
    snapshots.replace([BOB], 100.0)
    limit = STALE_AFTER.total_seconds()
    assert snapshots.current.fresh(100.0 + limit)
    assert not snapshots.current.fresh(100.1 + limit)
    snapshots.replace([BOB], 130.0)
    assert snapshots.current.fresh(130.0 + limit)


def test_the_generation_grows_with_changes_only() -> None:
    snapshots = TrustSnapshots()
    told: list[TrustSnapshot] = []
    stop = snapshots.on_change(told.append)
    assert snapshots.replace([BOB], 1.0)
    first = snapshots.current
    assert not snapshots.replace([BOB], 2.0)
    assert (snapshots.current.generation, snapshots.current.confirmed) == (first.generation, 2.0)
    assert snapshots.replace([BOB, EVE], 3.0)
    assert snapshots.current.generation == first.generation + 1
    assert dict(first.peers) == {BOB.install_id: BOB}
    stop()
    snapshots.replace([], 4.0)
    assert [len(snapshot.peers) for snapshot in told] == [1, 2]


def test_a_snapshot_cannot_be_changed() -> None:
    snapshots = TrustSnapshots()
    snapshots.replace([BOB], 1.0)
    with pytest.raises(TypeError):
        snapshots.current.peers["x"] = EVE  # type: ignore[index]  # that is what is tried


def test_a_blocked_peer_may_do_nothing() -> None:
    assert BOB.may(Level.KNOWN)
    assert not BOB.may(Level.VERIFIED)
    assert not EVE.may(Level.UNTRUSTED)


def test_a_revoked_peer_hears_of_it_for_a_month_and_a_compromised_one_never() -> None:
    assert accepts_roots(Revocation.NONE, None, NOW)
    assert accepts_roots(Revocation.DRAIN, NOW, NOW + timedelta(days=365))
    assert accepts_roots(Revocation.NOW, NOW, NOW + TOMBSTONE_FOR - timedelta(seconds=1))
    assert not accepts_roots(Revocation.NOW, NOW, NOW + TOMBSTONE_FOR)
    assert not accepts_roots(Revocation.COMPROMISED, NOW, NOW)
