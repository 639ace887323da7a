"""A backup brings back the same Hopper, once the passphrase is right, and tells apart what else can be wrong."""

import fcntl
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hopper_common.identity import sealing
from hopper_common.identity.backup import back_up, restore
from hopper_common.identity.bundles import verify_bundle
from hopper_common.identity.errors import (
    IdentityDamaged,
    IdentityExists,
    IdentityLocked,
    IdentityNewer,
    IdentityRefused,
    WrongPassphrase,
)
from hopper_common.identity.issuing import issue_into
from hopper_common.identity.store import Identity, IdentityStore
from hopper_testing.clock import ManualClock
from tests.common.identity.dying import CHEAP

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SECRET = b"correct horse"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def identity(tmp_path: Path, clock: ManualClock) -> Identity:
    return IdentityStore.open(tmp_path / "data" / "identity", clock)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return tmp_path / "other machine" / "data" / "identity"


def test_a_restored_hopper_is_the_same_and_known_to_be_restored(
    identity: Identity, clock: ManualClock, elsewhere: Path
) -> None:
    made = back_up(identity, SECRET, cost=CHEAP)
    assert b"PRIVATE" not in made
    restored = restore(made, SECRET, elsewhere, clock)
    assert restored.install_id == identity.install_id
    assert restored.roots() == identity.roots()
    assert restored.sign(b"x").key_id == identity.sign(b"x").key_id
    assert restored.incarnation != identity.incarnation
    assert restored.leaf().valid_at(NOW)


def test_peers_believe_the_bundle_of_a_restored_hopper_whatever_they_knew(
    identity: Identity, clock: ManualClock, elsewhere: Path
) -> None:
    made = back_up(identity, SECRET, cost=CHEAP)
    clock.advance(timedelta(days=200))
    identity.refresh()  # tells of signing keys that the backup does not know
    known = identity.trust_bundle()
    restored = restore(made, SECRET, elsewhere, clock)
    assert verify_bundle(restored.bundle(), known=known, now=clock.now()).sequence > known.sequence
    first = restored.trust_bundle()
    clock.advance(timedelta(seconds=5))
    again = restore(made, SECRET, elsewhere, clock, overwrite=True)
    assert verify_bundle(again.bundle(), known=first, now=clock.now())


def test_nothing_is_overwritten_unless_told_and_then_it_is_kept(
    identity: Identity, clock: ManualClock, elsewhere: Path
) -> None:
    made = back_up(identity, SECRET, cost=CHEAP)
    there = IdentityStore.open(elsewhere, clock)
    with pytest.raises(IdentityExists, match=f"{elsewhere} is an identity already: --overwrite"):
        restore(made, SECRET, elsewhere, clock)
    assert IdentityStore.open(elsewhere, clock).install_id == there.install_id
    restored = restore(made, SECRET, elsewhere, clock, overwrite=True)
    assert restored.install_id == identity.install_id
    (kept,) = elsewhere.parent.glob("identity.replaced-*")
    assert IdentityStore.open(kept, clock).install_id == there.install_id


def test_a_wrong_passphrase_is_told_from_damage(
    identity: Identity, clock: ManualClock, elsewhere: Path
) -> None:
    made = back_up(identity, SECRET, cost=CHEAP)
    with pytest.raises(WrongPassphrase, match=r"does not open b\.bak"):
        restore(made, b"other", elsewhere, clock, name="b.bak")
    for place in (0, 8, 9, 12, 30, 60, len(made) // 2, len(made) - 1):
        damaged = bytearray(made)
        damaged[place] ^= 0x40
        with pytest.raises((IdentityDamaged, IdentityNewer), match=r"b\.bak"):
            restore(bytes(damaged), SECRET, elsewhere, clock, name="b.bak")
    for length in (0, 5, 40, 100, len(made) - 1):
        with pytest.raises(IdentityDamaged, match=r"cut short|damaged"):
            restore(made[:length], SECRET, elsewhere, clock)
    assert not elsewhere.parent.exists()


def test_a_backup_of_a_newer_hopper_says_so(identity: Identity, clock: ManualClock, elsewhere: Path) -> None:
    made = bytearray(back_up(identity, SECRET, cost=CHEAP))
    made[8] = 2
    with pytest.raises(IdentityNewer, match="newer Hopper"):
        restore(bytes(made), SECRET, elsewhere, clock)
    newer = json.dumps({"version": 2, "files": {}}).encode()
    sealed = sealing.seal(newer, SECRET, purpose=b"hopper identity backup", cost=CHEAP)
    with pytest.raises(IdentityNewer, match="newer Hopper"):
        restore(sealed, SECRET, elsewhere, clock)


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "files": {}}',
        b'{"version": 1, "files": {"identity.json": "!"}}',
        b'{"version": 1, "files": {"identity.json": "e30=", "../x": ""}}',
        b'{"version": 1, "files": {"identity.json": "e30=", "/etc/x": ""}}',
        b'{"version": 1, "files": {"identity.json": "e30=", "roots/../../x.key": ""}}',
        b'{"version": 1, "files": {"identity.json": "e30="}}',
    ],
)
def test_what_was_sealed_but_is_no_identity_is_refused(
    clock: ManualClock, elsewhere: Path, content: bytes
) -> None:
    sealed = sealing.seal(content, SECRET, purpose=b"hopper identity backup", cost=CHEAP)
    with pytest.raises(IdentityDamaged):
        restore(sealed, SECRET, elsewhere, clock)
    assert not elsewhere.exists()
    assert not (elsewhere.parent / "x").exists()


def test_what_was_sealed_for_something_else_is_no_backup(clock: ManualClock, elsewhere: Path) -> None:
    sealed = sealing.seal(b"{}", SECRET, purpose=b"something else", cost=CHEAP)
    with pytest.raises(WrongPassphrase):
        restore(sealed, SECRET, elsewhere, clock)


def test_a_backup_that_asks_for_a_gigabyte_is_refused_without_it(clock: ManualClock, elsewhere: Path) -> None:
    sealed = bytearray(sealing.seal(b"{}", SECRET, purpose=b"hopper identity backup", cost=CHEAP))
    sealed[9] = 40
    with pytest.raises(IdentityDamaged):
        restore(bytes(sealed), SECRET, elsewhere, clock)


def test_a_sealed_root_stays_sealed_in_a_backup(tmp_path: Path, clock: ManualClock, elsewhere: Path) -> None:
    owner = IdentityStore.open(tmp_path / "data" / "identity", clock, passphrase=b"root secret")
    made = back_up(owner, SECRET, cost=CHEAP)
    with pytest.raises(IdentityLocked, match="HOPPER_IDENTITY_PASSPHRASE_FILE"):
        restore(made, SECRET, elsewhere, clock)
    with pytest.raises(WrongPassphrase):
        restore(made, SECRET, elsewhere, clock, root_passphrase=b"wrong")
    assert [path.name for path in elsewhere.parent.iterdir()] == ["identity.lock"]  # no keys are left behind
    restored = restore(made, SECRET, elsewhere, clock, root_passphrase=b"root secret")
    assert restored.has_root
    assert not IdentityStore.open(elsewhere, clock).has_root


def test_a_directory_of_leaves_is_nothing_to_back_up(
    identity: Identity, clock: ManualClock, elsewhere: Path
) -> None:
    issue_into(identity, "/svc/router", elsewhere)
    with pytest.raises(IdentityLocked, match="no key of a root"):
        back_up(IdentityStore.open(elsewhere, clock), SECRET, cost=CHEAP)


def test_a_running_hopper_is_not_replaced(identity: Identity, clock: ManualClock, elsewhere: Path) -> None:
    made = back_up(identity, SECRET, cost=CHEAP)
    elsewhere.parent.mkdir(parents=True)
    lock = elsewhere.parent / "hopper_registry.lock"
    lock.write_text("4711\n")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(IdentityExists, match="process 4711 runs on"):
            restore(made, SECRET, elsewhere, clock)
    assert restore(made, SECRET, elsewhere, clock).install_id == identity.install_id


def test_the_backup_can_be_restored_where_the_original_is_gone(
    identity: Identity, clock: ManualClock
) -> None:
    made = back_up(identity, SECRET)  # at the cost that is real
    shutil.rmtree(identity.directory)
    with pytest.raises(IdentityRefused):
        IdentityStore.open(identity.directory, clock, create=False)
    assert restore(made, SECRET, identity.directory, clock).install_id == identity.install_id
