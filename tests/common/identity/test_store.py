"""An identity is made once, found again, kept private, and renewed in time."""

import asyncio
import os
import re
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hopper_common.clock import SystemClock
from hopper_common.identity import signing
from hopper_common.identity.bundles import verify_bundle, verify_data
from hopper_common.identity.certificates import install_id_of, issued_by, spiffe_id_of
from hopper_common.identity.errors import (
    IdentityDamaged,
    IdentityExists,
    IdentityLocked,
    IdentityNewer,
    IdentityRefused,
    IdentityShared,
    IdentityWrongState,
    WrongPassphrase,
)
from hopper_common.identity.issuing import issue_into
from hopper_common.identity.store import Identity, IdentityStore, read_passphrase, renew_time
from hopper_testing.clock import ManualClock

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROUTER = "/svc/router"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "identity"


@pytest.fixture
def identity(directory: Path, clock: ManualClock) -> Identity:
    return IdentityStore.open(directory, clock)


def files_of(directory: Path) -> dict[str, int]:
    found = [directory, *directory.rglob("*")]
    return {str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode) for path in found}


def only(paths: Iterable[Path]) -> Path:
    (path,) = paths
    return path


def root_file(directory: Path) -> Path:
    return only((directory / "roots").iterdir())


def signing_file(directory: Path) -> Path:
    return only((directory / "signing").iterdir())


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it is for a thread to bring about
            await asyncio.sleep(0.005)


# Made and found.


def test_the_first_start_makes_an_identity_and_the_next_finds_it(directory: Path, clock: ManualClock) -> None:
    first = IdentityStore.open(directory, clock)
    again = IdentityStore.open(directory, clock)
    assert first.install_id == again.install_id == install_id_of(first.roots()[0])
    assert first.trust_domain == f"{first.install_id}.hopper"
    assert first.incarnation == again.incarnation
    assert len(first.incarnation) == 32
    assert first.bundle() == again.bundle()
    assert verify_bundle(first.bundle(), now=NOW).install_id == first.install_id


def test_two_hoppers_are_two(tmp_path: Path, clock: ManualClock) -> None:
    one, other = (IdentityStore.open(tmp_path / name / "identity", clock) for name in "ab")
    assert one.install_id != other.install_id


def test_everything_belongs_to_its_owner_alone(directory: Path, identity: Identity) -> None:
    identity.prepare()
    modes = files_of(directory)
    directories = {".", "roots", "signing", "leaves"}
    assert {name: mode for name, mode in modes.items() if name in directories} == dict.fromkeys(
        directories, 0o700
    )
    assert {mode for name, mode in modes.items() if name not in directories} == {0o600}
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700


def test_no_leaf_of_a_process_that_has_the_root_is_ever_on_the_disk(
    directory: Path, identity: Identity
) -> None:
    identity.leaf()
    assert list((directory / "leaves").iterdir()) == []


def test_where_nothing_may_be_made_nothing_is(directory: Path, clock: ManualClock) -> None:
    with pytest.raises(IdentityDamaged, match=f"{directory} is missing"):
        IdentityStore.open(directory, clock, create=False)
    assert not directory.exists()


def test_leaves_are_issued_for_any_path_and_stay(identity: Identity) -> None:
    leaf = identity.leaf("/svc/memory")
    assert str(spiffe_id_of(leaf.certificate)) == f"spiffe://{identity.trust_domain}/svc/memory"
    assert issued_by(leaf.certificate, identity.roots())
    assert identity.leaf("/svc/memory") is leaf
    assert identity.held_leaf("/svc/memory") is leaf
    assert identity.held_leaf("/svc/registry") is None


def test_it_signs_envelopes_and_with_its_root(identity: Identity) -> None:
    made = identity.sign(b"task")
    signing.verify_signature(identity.trust_bundle().signing_keys, made, b"task", at=NOW)
    root = identity.roots()[0]
    assert verify_data(root, identity.sign_with_root(b"words"), b"words")
    assert not verify_data(root, identity.sign_with_root(b"words"), b"other words")


# Bad files: F19.


def world_readable(path: Path) -> None:
    path.chmod(0o604)


def group_readable(path: Path) -> None:
    path.chmod(0o640)


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def junk(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


BAD: list[tuple[Callable[[Path], None], type[IdentityRefused]]] = [
    (world_readable, IdentityShared),
    (group_readable, IdentityShared),
    (cut_short, IdentityDamaged),
    (empty, IdentityDamaged),
    (missing, IdentityDamaged),
    (junk, IdentityDamaged),
    (a_link, IdentityDamaged),
    (a_directory, IdentityDamaged),
]
WHICH: list[Callable[[Path], Path]] = [root_file, signing_file, lambda directory: directory / "identity.json"]


@pytest.mark.parametrize(("spoil", "kind"), BAD, ids=lambda value: value.__name__)
@pytest.mark.parametrize("which", WHICH, ids=["root", "signing key", "identity.json"])
def test_a_bad_file_stops_the_start_and_is_named(
    directory: Path,
    identity: Identity,
    clock: ManualClock,
    which: Callable[[Path], Path],
    spoil: Callable[[Path], None],
    kind: type[IdentityRefused],
) -> None:
    path = which(directory)
    spoil(path)
    before = files_of(directory)
    with pytest.raises(kind) as caught:
        IdentityStore.open(directory, clock)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 5
    assert files_of(directory) == before
    assert identity.problem is None  # it has not looked yet


@pytest.mark.parametrize("name", [".", "roots", "signing", "leaves"])
def test_a_directory_that_others_may_look_into_is_refused(
    directory: Path, identity: Identity, clock: ManualClock, name: str
) -> None:
    path = directory / name
    path.chmod(0o750)
    with pytest.raises(IdentityShared, match=f"{path} .*0750.*chmod 700"):
        IdentityStore.open(directory, clock)
    path.chmod(0o700)
    assert IdentityStore.open(directory, clock).install_id == identity.install_id


def test_another_roots_key_is_refused(
    tmp_path: Path, directory: Path, identity: Identity, clock: ManualClock
) -> None:
    other = tmp_path / "other" / "identity"
    IdentityStore.open(other, clock)
    path = root_file(directory)
    path.write_bytes(root_file(other).read_bytes())
    with pytest.raises(IdentityDamaged, match=f"{path} has another key"):
        IdentityStore.open(directory, clock)
    path = signing_file(directory)
    path.write_bytes(signing_file(other).read_bytes())


def test_another_signing_key_is_refused(
    tmp_path: Path, directory: Path, identity: Identity, clock: ManualClock
) -> None:
    other = tmp_path / "other" / "identity"
    IdentityStore.open(other, clock)
    path = signing_file(directory)
    path.write_bytes(signing_file(other).read_bytes())
    with pytest.raises(IdentityDamaged, match=f"{path} has another key"):
        IdentityStore.open(directory, clock)


def test_files_of_a_newer_hopper_are_left_alone(
    directory: Path, identity: Identity, clock: ManualClock
) -> None:
    path = directory / "identity.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(IdentityNewer, match=f"{path} .*newer Hopper"):
        IdentityStore.open(directory, clock)


@pytest.mark.parametrize(("spoil", "kind"), BAD, ids=lambda value: value.__name__)
def test_a_running_process_keeps_what_it_had_and_says_what_is_wrong(
    directory: Path, identity: Identity, clock: ManualClock, spoil: Callable[[Path], None], kind: object
) -> None:
    told: list[str | None] = []
    identity.on_change(lambda: told.append(identity.problem))
    leaf, path = identity.leaf(), root_file(directory)
    good = path.read_bytes()
    identity.refresh()
    told.clear()
    spoil(path)
    for _ in range(2):
        identity.refresh()
        assert identity.problem is not None
        assert str(path) in identity.problem
    assert identity.leaf() is leaf
    assert len(identity.roots()) == 1
    clock.advance(2 * DAY)
    identity.refresh()
    assert identity.leaf().issue_time == NOW + 2 * DAY
    mend(path, good)
    identity.refresh()
    assert identity.problem is None
    assert told[0] is not None
    assert told[-1] is None


def mend(path: Path, content: bytes) -> None:
    for each in (path, path.with_name("elsewhere")):
        if each.is_dir():
            each.rmdir()
        else:
            each.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def test_a_running_process_does_not_become_another_hopper(
    tmp_path: Path, directory: Path, identity: Identity, clock: ManualClock
) -> None:
    IdentityStore.open(tmp_path / "other" / "identity", clock)
    directory.rename(tmp_path / "old")
    (tmp_path / "other" / "identity").rename(directory)
    identity.refresh()
    assert identity.problem is not None
    assert "another Hopper's identity" in identity.problem
    assert identity.roots()[0] == identity.roots()[0]
    with pytest.raises(IdentityDamaged):
        identity.prepare()


def test_a_directory_that_is_gone_is_a_problem_until_it_is_back(
    tmp_path: Path, directory: Path, identity: Identity
) -> None:
    directory.rename(tmp_path / "away")
    identity.refresh()
    assert identity.problem is not None
    assert f"{directory} is missing" in identity.problem
    (tmp_path / "away").rename(directory)
    identity.refresh()
    assert identity.problem is None


# Time.


def test_a_leaf_is_renewed_about_half_through_its_life_each_at_its_own_time(identity: Identity) -> None:
    leaves = [identity.issue(ROUTER) for _ in range(12)]
    times = [renew_time(leaf) - NOW for leaf in leaves]
    assert min(times) >= timedelta(hours=72) * 0.45
    assert max(times) <= timedelta(hours=72) * 0.55
    assert len(set(times)) > 1


def test_a_leaf_is_renewed_without_a_restart(identity: Identity, clock: ManualClock) -> None:
    first = identity.leaf()
    generation, told = identity.generation, []
    identity.on_change(lambda: told.append(identity.generation))
    clock.time = renew_time(first) - timedelta(seconds=1)
    identity.refresh()
    assert identity.leaf() is first
    clock.time = renew_time(first)
    identity.refresh()
    renewed = identity.leaf()
    assert renewed.issue_time == clock.now().replace(microsecond=0)
    assert renewed.certificate.public_key() != first.certificate.public_key()
    assert told == [identity.generation]
    assert identity.generation > generation


def test_a_leaf_that_is_not_valid_yet_is_replaced_after_a_step_back(
    identity: Identity, clock: ManualClock
) -> None:
    identity.leaf()
    clock.time = NOW - timedelta(hours=1)
    assert identity.leaf().valid_at(clock.now())


def test_a_machine_that_learns_the_time_late_has_leaves_of_the_right_time(directory: Path) -> None:
    """F50: started by a clock that is months behind, which is then set: TLS goes by that, and so do leaves."""
    wall = [10**18]
    identity = IdentityStore.open(directory, SystemClock(wall=lambda: wall[0], passed=lambda: 1))
    assert identity.leaf().valid_at(datetime.fromtimestamp(1e9, UTC))
    for step in (300, -1, 400):
        wall[0] += step * 86_400 * 10**9
        identity.refresh()
        assert identity.leaf().valid_at(datetime.fromtimestamp(wall[0] / 1e9, UTC))
        assert identity.problem is None


async def test_keep_fresh_renews_when_the_time_has_come(identity: Identity, clock: ManualClock) -> None:
    first, loops = identity.leaf(), []
    identity.on_change(lambda: loops.append(asyncio.get_running_loop()))
    keeping = asyncio.create_task(identity.keep_fresh(look_every=0.005))
    clock.time = renew_time(first)
    await eventually(lambda: identity.held_leaf(ROUTER) is not first and bool(loops))
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert set(loops) == {asyncio.get_running_loop()}


async def test_what_another_process_changes_is_taken_over(
    directory: Path, identity: Identity, clock: ManualClock
) -> None:
    keeping = asyncio.create_task(identity.keep_fresh(look_every=0.005))
    IdentityStore.open(directory, clock).prepare()
    await eventually(lambda: len(identity.roots()) == 2)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


def test_back_after_ninety_days_with_no_hands(
    directory: Path, identity: Identity, clock: ManualClock
) -> None:
    """F18: everything short-lived has run out; the name and the root are the same."""
    before = identity.leaf()
    key = identity.sign(b"x").key_id
    clock.advance(95 * DAY)
    again = IdentityStore.open(directory, clock)
    assert again.install_id == identity.install_id
    assert again.leaf().valid_at(clock.now())
    assert again.leaf().certificate != before.certificate
    assert again.sign(b"x").key_id != key
    bundle = verify_bundle(again.bundle(), known=identity.trust_bundle(), now=clock.now())
    assert len(bundle.signing_keys) == 2  # what the old one signed can still be verified


def test_a_process_that_runs_for_half_a_year_always_has_a_leaf_and_a_signing_key(
    identity: Identity, clock: ManualClock
) -> None:
    known, keys = identity.trust_bundle(), set()
    for _ in range(180):
        clock.advance(DAY)
        identity.refresh()
        assert identity.leaf().not_after - clock.now() > DAY
        made = identity.sign(b"task")
        signing.verify_signature(known.signing_keys, made, b"task", at=clock.now())  # told the day before
        known = verify_bundle(identity.bundle(), known=known, now=clock.now())
        keys.add(made.key_id)
    assert len(keys) == 4
    assert len(known.signing_keys) <= 4
    assert len(list((identity.directory / "signing").iterdir())) <= 2
    assert identity.problem is None


# A root that is sealed, or elsewhere.


def test_a_passphrase_seals_the_root_from_then_on(
    directory: Path, identity: Identity, clock: ManualClock
) -> None:
    assert b"PRIVATE KEY" in root_file(directory).read_bytes()
    IdentityStore.open(directory, clock, passphrase=b"secret")
    assert b"PRIVATE KEY" not in root_file(directory).read_bytes()
    again = IdentityStore.open(directory, clock, passphrase=b"secret")
    assert (again.install_id, again.has_root) == (identity.install_id, True)
    again.prepare()
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in (directory / "roots").iterdir())
    with pytest.raises(WrongPassphrase, match=str(directory / "roots")):
        IdentityStore.open(directory, clock, passphrase=b"other")


def test_a_sealed_root_without_its_passphrase_issues_nothing(directory: Path, clock: ManualClock) -> None:
    owner = IdentityStore.open(directory, clock, passphrase=b"secret")
    locked = IdentityStore.open(directory, clock)
    assert not locked.has_root
    assert locked.bundle() == owner.bundle()
    with pytest.raises(IdentityLocked, match="HOPPER_IDENTITY_PASSPHRASE_FILE"):
        locked.leaf()
    for attempt in (locked.prepare, lambda: locked.issue(ROUTER), lambda: locked.sign_with_root(b"")):
        with pytest.raises(IdentityWrongState, match="not at hand"):
            attempt()


def test_whoever_can_open_the_root_renews_the_leaves_of_those_who_cannot(
    directory: Path, clock: ManualClock
) -> None:
    owner = IdentityStore.open(directory, clock, passphrase=b"secret")
    issue_into(owner, ROUTER, directory)
    locked = IdentityStore.open(directory, clock)
    first = locked.leaf()
    clock.time = renew_time(first)
    locked.refresh()
    assert locked.leaf() is first
    owner.refresh()
    locked.refresh()
    assert locked.leaf().issue_time > first.issue_time
    assert locked.problem is None


def test_a_process_with_a_leaf_only_serves_and_does_no_more(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    elsewhere = tmp_path / "router" / "identity"
    file, _ = issue_into(identity, ROUTER, elsewhere)
    assert file == elsewhere / "leaves" / "svc+router.pem"
    assert set(files_of(elsewhere).values()) == {0o700, 0o600}
    assert list((elsewhere / "roots").iterdir()) == list((elsewhere / "signing").iterdir()) == []
    other = IdentityStore.open(elsewhere, clock)
    assert other.install_id == identity.install_id
    assert other.bundle() == identity.bundle()
    assert other.incarnation != identity.incarnation
    assert issued_by(other.leaf().certificate, identity.roots())
    with pytest.raises(IdentityLocked, match="hopper identity issue /svc/memory"):
        other.leaf("/svc/memory")
    with pytest.raises(IdentityWrongState, match="no signing key"):
        other.sign(b"task")


def test_a_leaf_that_has_run_out_elsewhere_is_named_with_the_remedy(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    elsewhere = tmp_path / "router" / "identity"
    file, _ = issue_into(identity, ROUTER, elsewhere)
    other = IdentityStore.open(elsewhere, clock)
    first = other.leaf()
    clock.advance(4 * DAY)
    other.refresh()
    assert other.problem is not None
    assert f"{file} is good from" in other.problem
    with pytest.raises(IdentityLocked, match="hopper identity issue /svc/router"):
        IdentityStore.open(elsewhere, clock).leaf()
    identity.prepare()
    issue_into(identity, ROUTER, elsewhere)
    other.refresh()
    assert other.problem is None
    assert other.leaf().issue_time > first.issue_time
    assert len(other.roots()) == 2  # the bundle came with it


def test_a_leaf_whose_key_is_anothers_is_refused(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    elsewhere = tmp_path / "router" / "identity"
    file, _ = issue_into(identity, ROUTER, elsewhere)
    wrong = identity.issue(ROUTER)
    file.write_bytes(wrong.key_pem + identity.issue(ROUTER).chain_pem)
    with pytest.raises(IdentityDamaged, match=f"{re.escape(str(file))} has a key that is not its"):
        IdentityStore.open(elsewhere, clock).leaf()
    stranger = IdentityStore.open(tmp_path / "stranger" / "identity", clock).issue(ROUTER)
    file.write_bytes(stranger.key_pem + stranger.chain_pem)
    with pytest.raises(IdentityDamaged, match="not issued by this Hopper"):
        IdentityStore.open(elsewhere, clock).leaf()


def test_leaves_are_not_put_into_an_identity_of_its_own(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    other = IdentityStore.open(tmp_path / "other" / "identity", clock)
    with pytest.raises(IdentityExists, match="identity of its own"):
        issue_into(identity, ROUTER, other.directory)


def test_the_passphrase_file_is_private_too(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(b"se cret \r\n")
    assert read_passphrase(path) == b"se cret "
    path.write_bytes(b"\n")
    with pytest.raises(IdentityDamaged, match="no passphrase"):
        read_passphrase(path)
    path.chmod(0o644)
    with pytest.raises(IdentityShared, match=str(path)):
        read_passphrase(path)


def test_many_processes_that_start_at_once_have_one_identity(directory: Path, clock: ManualClock) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: IdentityStore.open(directory, clock), range(8)))
    assert len({each.install_id for each in opened}) == 1
    assert len({each.bundle().payload for each in opened}) == 1
