"""Policies as they are stored: every version, signed by their owner, and worth nothing if they are not."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hopper_common.audit.model import Decision
from hopper_common.border.grants import Crossing, Direction, Usage
from hopper_common.errors import InvalidArgument
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.store import Identity, IdentityStore
from hopper_common.startup import make_private
from hopper_federation import grant_store
from hopper_federation.errors import PeerWrongState
from hopper_federation.journal import SPOILT, TrustJournal
from hopper_federation.model import Peer, Revocation
from hopper_federation.policy_keeping import PolicyKeeper
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.tables import GRANTS
from hopper_federation.trust import Alert, Level
from hopper_federation.trust_admin import Ending, Granted, TrustAdmin, Wish, revoke
from hopper_federation.trust_snapshot import TrustSnapshots
from hopper_testing.clock import ManualClock
from tests.federation.neighbours import Noted

BOB = "b" * 32
POLICY = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "in"
capabilities = ["docs.*"]
"""
IN = Crossing(Direction.IN, capabilities=("docs.review",))


@pytest.fixture
def identity(tmp_path: Path, clock: ManualClock) -> Identity:
    make_private(tmp_path / "alice")
    return IdentityStore.open(tmp_path / "alice" / "identity", clock)


@pytest.fixture
def admin(identity: Identity) -> TrustAdmin:
    return TrustAdmin(identity)


@pytest.fixture
async def federation(federation: Federation, clock: ManualClock) -> Federation:
    """With bob, who is known."""
    await federation.write(lambda store: store.save_peer(Peer("peers/bob", BOB, Level.KNOWN, clock.now())))
    return federation


def bob(store: SqlStore) -> Peer:
    peer = store.peer_of(BOB)
    assert peer is not None
    return peer


async def grant(
    federation: Federation,
    admin: TrustAdmin,
    policy: str = "",
    *,
    level: Level | None = None,
    compared: str = "",
    dry_run: bool = False,
) -> Granted:
    wish = Wish(level, policy, compared, by="owner")
    return await federation.write(lambda store: admin.grant(store, bob(store), wish, dry_run=dry_run))


async def allowed(federation: Federation, admin: TrustAdmin) -> bool:
    ruling = await federation.read(lambda store: admin.explain(store, bob(store), IN, Usage()))
    return ruling.allowed and not ruling.quarantined


async def test_a_policy_counts_from_the_moment_it_is_granted(
    federation: Federation, admin: TrustAdmin
) -> None:
    assert not await allowed(federation, admin)
    granted = await grant(federation, admin, POLICY)
    assert (granted.peer.level, granted.peer.policy_version) == (Level.TRUSTED, 1)
    assert await allowed(federation, admin)
    assert await federation.read(lambda store: admin.policy_text(store, BOB)) == POLICY
    assert (await grant(federation, admin, POLICY)).changes == ()
    commented = await grant(federation, admin, f"# reviewed\n{POLICY}")
    assert (commented.changes, commented.peer.policy_version) == ((), 2)
    assert await federation.read(lambda store: admin.policy_text(store, "x" * 32)) == ""


async def test_a_dry_run_leaves_everything_as_it_was(federation: Federation, admin: TrustAdmin) -> None:
    assert (await grant(federation, admin, POLICY, dry_run=True)).peer.level is Level.TRUSTED
    assert (await federation.read(bob)).level is Level.KNOWN
    assert await federation.read(lambda store: grant_store.latest(store, BOB)) is None


async def test_a_policy_that_somebody_else_stored_grants_nothing(
    federation: Federation, admin: TrustAdmin, identity: Identity
) -> None:
    await grant(federation, admin, POLICY)
    wider = POLICY.replace("docs.*", "shell.*")
    await federation.write(lambda store: store.conn.execute(GRANTS.update().values(policy=wider)))
    with pytest.raises(SignatureInvalid):
        await allowed(federation, admin)
    assert await federation.read(lambda store: admin.policy_text(store, BOB)) == ""
    audit, snapshots = Noted(), TrustSnapshots()
    keeper = PolicyKeeper(federation, identity, TrustJournal(audit, snapshots))
    for _ in range(2):  # told once
        await keeper.keep()
    (decision,) = audit.decisions
    assert (decision.method, decision.resources, decision.allowed) == (SPOILT, ("peers/bob",), False)
    with pytest.raises(SignatureInvalid):
        await grant(federation, admin, compared="by phone")
    mended = await grant(federation, admin, POLICY)
    assert "not what had been signed off" in mended.changes[0]
    assert await allowed(federation, admin)


async def test_anothers_policy_is_not_taken_for_a_peers_own(
    federation: Federation, admin: TrustAdmin
) -> None:
    await grant(federation, admin, POLICY)
    carol = replace(await federation.read(bob), name="peers/carol", install_id="c" * 32)

    def move(store: SqlStore) -> None:
        store.save_peer(carol)
        store.conn.execute(GRANTS.update().values(install_id=carol.install_id))

    await federation.write(move)
    with pytest.raises(SignatureInvalid):
        await federation.read(lambda store: admin.policy(store, carol))


async def test_a_policy_outlives_the_key_that_signed_it(
    federation: Federation, admin: TrustAdmin, identity: Identity, clock: ManualClock
) -> None:
    await grant(federation, admin, POLICY)
    first = await federation.read(lambda store: grant_store.latest(store, BOB))
    keeper = PolicyKeeper(federation, identity, TrustJournal(Noted(), TrustSnapshots()))
    for _ in range(40):  # nearly a year, in steps that a Hopper that runs would see
        clock.advance(timedelta(days=9))
        identity.refresh()
        await keeper.keep()
        assert await allowed(federation, admin)
    last = await federation.read(lambda store: grant_store.latest(store, BOB))
    assert first is not None
    assert last is not None
    assert first.signature.key_id not in {key.key_id for key in identity.trust_bundle().signing_keys}
    assert (last.text, last.set_by, last.set_time) == (first.text, first.set_by, first.set_time)


async def test_a_comparison_from_before_an_alert_does_not_verify_afterwards(
    federation: Federation, admin: TrustAdmin
) -> None:
    await grant(federation, admin, POLICY)
    await grant(federation, admin, compared="in person")
    await federation.write(lambda store: store.save_peer(bob(store).alerted(Alert.KEY_CHANGED)))
    with pytest.raises(PeerWrongState):
        await grant(federation, admin, level=Level.VERIFIED)
    assert (await grant(federation, admin, compared="by phone")).peer.level is Level.VERIFIED
    assert (await federation.read(bob)).alert == ""


async def test_a_wish_for_nothing_is_refused(federation: Federation, admin: TrustAdmin) -> None:
    with pytest.raises(InvalidArgument):
        await grant(federation, admin)


async def test_a_stricter_end_replaces_a_milder_one_and_never_the_other_way(
    federation: Federation, clock: ManualClock
) -> None:
    async def end(mode: Revocation, drain: timedelta = timedelta(days=1)) -> Peer:
        return await federation.write(lambda store: revoke(store, bob(store), Ending(mode, drain)))

    drained = await end(Revocation.DRAIN, drain=timedelta(hours=2))
    assert drained.drain_time == clock.now() + timedelta(hours=2)
    clock.advance(timedelta(minutes=5))
    shorter = await end(Revocation.DRAIN, drain=timedelta())
    assert (shorter.drain_time, shorter.revoke_time) == (clock.now(), drained.revoke_time)
    ended = await end(Revocation.NOW)
    assert (ended.drain_time, ended.level, ended.revoke_time) == (None, Level.BLOCKED, clock.now())
    assert await end(Revocation.DRAIN) == ended
    assert await end(Revocation.NOW) == ended


async def test_of_two_times_of_a_compromise_the_earlier_counts(
    federation: Federation, clock: ManualClock
) -> None:
    async def end(ago: timedelta) -> Peer:
        ending = Ending(Revocation.COMPROMISED, since=clock.now() - ago)
        return await federation.write(lambda store: revoke(store, bob(store), ending))

    await end(timedelta(days=1))
    await end(timedelta(days=3))
    assert (await end(timedelta(hours=1))).compromise_time == clock.now() - timedelta(days=3)
    assert (await federation.read(bob)).compromise_time == clock.now() - timedelta(days=3)


async def test_what_changes_in_trust_is_written_down_once(federation: Federation, admin: TrustAdmin) -> None:
    audit, snapshots = Noted(), TrustSnapshots()

    async def look() -> list[Decision]:
        audit.decisions.clear()
        snapshots.replace(await federation.read(lambda store: store.trusted_peers()), 0.0)
        return list(audit.decisions)

    await look()
    TrustJournal(audit, snapshots)
    await grant(federation, admin, POLICY)
    assert [decision.rule for decision in await look()] == [
        "level KNOWN -> TRUSTED",
        "policy version 0 -> 1",
    ]
    await federation.write(lambda store: store.save_peer(bob(store).alerted(Alert.KEY_CHANGED)))
    (fallen,) = await look()
    assert (fallen.rule, fallen.principal) == ("level TRUSTED -> KNOWN (key_changed)", "process")
    assert await look() == []
