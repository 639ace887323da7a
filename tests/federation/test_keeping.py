"""What is done without being asked: the snapshot follows the store, and grows old when the store is silent."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hopper_common.database import Database
from hopper_common.errors import StorageUnavailable
from hopper_federation.keeping import Housekeeper, TrustKeeper
from hopper_federation.model import Peer
from hopper_federation.pairing import TIME_TO_LIVE, Session, Step
from hopper_federation.store_sql import Federation
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import STALE_AFTER, TrustSnapshots
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase
from tests.federation.harness import PATIENCE


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[FaultyDatabase]:
    path = tmp_path / "federation.db"
    db = FaultyDatabase(
        await Database.open(path, metadata=METADATA, migrations=MIGRATIONS, service="federation")
    )
    yield db
    await db.close()


def bob(clock: ManualClock) -> Peer:
    return Peer("peers/bob", "b" * 32, Level.KNOWN, clock.now())


async def test_the_snapshot_follows_each_commit(db: FaultyDatabase, clock: ManualClock) -> None:
    federation, snapshots = Federation(db, clock), TrustSnapshots()
    keeper = TrustKeeper(federation, snapshots, clock)
    changed = asyncio.Event()
    snapshots.on_change(lambda snapshot: changed.set())
    running = asyncio.create_task(keeper.run())
    try:
        for level in (Level.KNOWN, Level.TRUSTED, Level.BLOCKED):
            peer = replace(bob(clock), level=level)
            changed.clear()
            await federation.write(lambda store, peer=peer: store.save_peer(peer))  # type: ignore[misc]  # bound now
            async with asyncio.timeout(PATIENCE):
                await changed.wait()
            assert snapshots.current.peers["b" * 32].level is level
    finally:
        running.cancel()


async def test_a_store_that_is_silent_makes_the_snapshot_old_and_not_empty(
    db: FaultyDatabase, clock: ManualClock
) -> None:
    federation, snapshots = Federation(db, clock), TrustSnapshots()
    keeper = TrustKeeper(federation, snapshots, clock)
    await federation.write(lambda store: store.save_peer(bob(clock)))
    await keeper.look()
    clock.advance(STALE_AFTER)
    db.set_next_error(StorageUnavailable(service="federation"), at="read")
    with pytest.raises(StorageUnavailable):
        await keeper.look()
    clock.advance(timedelta(seconds=1))
    assert list(snapshots.current.peers) == ["b" * 32]
    assert not snapshots.current.fresh(clock.monotonic())
    await keeper.look()
    assert snapshots.current.fresh(clock.monotonic())


async def test_pairings_that_nobody_answers_are_ended(db: FaultyDatabase, clock: ManualClock) -> None:
    federation = Federation(db, clock)
    waiting = Session(
        id="p1",
        session=b"s" * 16,
        outgoing=False,
        install_id="b" * 32,
        claimed_name="bob",
        address="",
        create_time=clock.now(),
        expire_time=clock.now() + TIME_TO_LIVE,
    )
    await federation.write(lambda store: store.save_session(waiting))
    keeper = Housekeeper(federation, clock)
    await keeper.keep()
    assert await federation.read(lambda store: store.session("pairings/p1")) == waiting
    clock.advance(TIME_TO_LIVE)
    await keeper.keep()
    over = await federation.read(lambda store: store.session("pairings/p1"))
    assert over is not None
    assert (over.step, over.end_time) == (Step.FAILED, clock.now())
