"""A database or an identity that was brought back from a copy is noticed at the next start, whichever way it came."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from hopper_common.identity.store import IdentityStore
from hopper_federation.delegation.model import Delegation, Role, State
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.incarnation import Incarnation, Mark, Restored, at_start
from hopper_federation.incarnation_keeping import FILE, IncarnationKeeper
from hopper_federation.model import Peer
from hopper_federation.store_sql import Federation
from hopper_federation.trust import Level
from hopper_testing.clock import ManualClock
from tests.federation.harness import RunningFederation

NOW = 2_000_000_000
THERE = Incarnation("abc", 1_900_000_000, tick=7)


def test_a_first_start_is_no_restore() -> None:
    assert at_start(None, None, "abc", NOW) == Incarnation("abc", NOW)


@pytest.mark.parametrize("tick", [5, 7])
def test_a_mark_may_be_behind(tick: int) -> None:
    """Whoever was killed had no time to write it."""
    assert at_start(THERE, Mark(THERE.number, tick), "abc", NOW) is THERE


@pytest.mark.parametrize(
    ("stored", "mark", "identity", "why"),
    [
        (THERE, Mark(THERE.number, 8), "abc", Restored.EARLIER),
        (THERE, Mark(THERE.number, 7), "def", Restored.IDENTITY),
        (THERE, None, "abc", Restored.UNMARKED),
        (None, Mark(THERE.number, 7), "abc", Restored.EMPTY),
    ],
)
def test_what_was_restored(
    stored: Incarnation | None, mark: Mark | None, identity: str, why: Restored
) -> None:
    found = at_start(stored, mark, identity, NOW)
    assert (found.restored, found.identity, found.number) == (why, identity, NOW)
    assert found.tick > max(each.tick for each in (stored, mark) if each is not None)


def test_a_number_is_never_given_twice() -> None:
    """The clock may have been set back, and the same copy may be restored again."""
    first = at_start(THERE, Mark(THERE.number, 9), "abc", 0)
    again = at_start(THERE, Mark(first.number, first.tick), "abc", 0)
    assert THERE.number < first.number < again.number


def said(running: RunningFederation) -> Any:
    """What its mark says."""
    return json.loads((running.directory / FILE).read_bytes())


def loud(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What is said of a restore."""
    return [each for each in logs if each["log_level"] == "error" and "incarnation" in each]


def changed_by_hand(directory: Path, change: str) -> None:
    """Do to the database or the identity what somebody with a backup would."""
    database, copy = directory / "federation.db", directory / "copy.db"
    match change:
        case "earlier":
            shutil.copy(copy, database)
        case "gone":
            database.unlink()
        case "identity":
            (directory / "identity" / "incarnation").write_text("0" * 32 + "\n")
        case "elsewhere":
            (directory / FILE).unlink()


@pytest.mark.parametrize("change", ["earlier", "gone", "identity", "elsewhere"])
async def test_a_restore_is_noticed_said_once_and_lasts(
    alice: RunningFederation, bob: RunningFederation, change: str
) -> None:
    await alice.join(await bob.invite("alice"), "bob")
    await alice.restart()
    before = said(alice)
    assert before["restored"] == ""
    with (
        closing(sqlite3.connect(alice.directory / "federation.db")) as database,
        closing(sqlite3.connect(alice.directory / "copy.db")) as copy,
    ):
        database.backup(copy)
    await alice.invite("carol")  # is not in the copy
    await alice.stop()
    changed_by_hand(alice.directory, change)
    with structlog.testing.capture_logs() as logs:
        await alice.start()
    errors = loud(logs)
    assert [each["incarnation"] for each in errors] == [said(alice)["incarnation"]]
    after = said(alice)
    assert after["incarnation"] > before["incarnation"]
    assert after["restored"] == errors[0]["cause"] != ""
    assert after["unsynced"] == ([] if change == "gone" else ["peers/bob"])
    with structlog.testing.capture_logs() as logs:
        await alice.restart()
    assert loud(logs) == []
    assert said(alice)["incarnation"] == after["incarnation"]
    assert said(alice)["restored"] == after["restored"]


async def test_who_was_killed_was_not_restored(federation: Federation, tmp_path: Path) -> None:
    """However far the mark is behind."""
    clock = ManualClock()
    identity = IdentityStore.open(tmp_path / "identity", clock)

    async def started() -> IncarnationKeeper:
        keeper = IncarnationKeeper(federation, identity, tmp_path / FILE, clock)
        await keeper.begin()
        return keeper

    def change(name: str) -> Callable[[Any], None]:
        return lambda store: store.save_peer(Peer(f"peers/{name}", name * 32, Level.KNOWN, clock.now()))

    keeper = await started()
    mark = (tmp_path / FILE).read_bytes()
    await keeper.keep()
    assert (tmp_path / FILE).read_bytes() == mark  # nothing has changed
    await federation.write(change("b"))
    await keeper.keep()
    assert (tmp_path / FILE).read_bytes() != mark
    await federation.write(change("c"))
    (tmp_path / FILE).write_bytes(mark)
    await started()
    assert (federation.resync, federation.incarnation) == (False, json.loads(mark)["incarnation"])


async def test_each_peer_is_compared_with_once_and_what_is_open_is_marked(
    federation: Federation, tmp_path: Path
) -> None:
    clock = ManualClock()
    await federation.write(lambda store: store.save_incarnation(Incarnation("another", 5, 1, Restored.NO)))
    for name in "bc":
        peer = Peer(f"peers/{name}", name * 32, Level.KNOWN, clock.now())
        await federation.write(lambda store, peer=peer: store.save_peer(peer))  # type: ignore[misc]  # bound now
    taken = Delegation("d1", Role.IN, "b" * 32, "b/t1", 1, State.QUARANTINED, 900.0, exclusive=True)
    await federation.write(lambda store: SqlDelegations(store.conn).save(taken))
    keeper = IncarnationKeeper(
        federation, IdentityStore.open(tmp_path / "identity", clock), tmp_path / FILE, clock
    )
    assert not await federation.read(lambda store: store.must_sync("b" * 32))
    await keeper.begin()
    from_copy = await federation.read(lambda store: SqlDelegations(store.conn).delegation(Role.IN, "d1"))
    assert from_copy == replace(taken, from_copy=True, unconfirmed=True)
    assert federation.resync
    assert await federation.read(lambda store: store.unsynced()) == ["peers/b", "peers/c"]
    await federation.write(lambda store: store.note_synced("b" * 32))
    await federation.write(lambda store: store.acknowledge("c" * 32, 9))
    assert await federation.read(lambda store: store.unsynced()) == ["peers/c"]
    assert await federation.read(lambda store: store.acknowledged("b" * 32)) == 0
