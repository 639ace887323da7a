"""A root is replaced in four moves, each whole or not at all, and everybody who looks follows."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hopper_common.identity.backup import back_up
from hopper_common.identity.bundles import roots_of, verify_bundle
from hopper_common.identity.certificates import issued_by, key_hash
from hopper_common.identity.errors import BundleInvalid, IdentityWrongState
from hopper_common.identity.issuing import issue_into
from hopper_common.identity.rotation import SETTLE, Verb
from hopper_common.identity.store import Identity, IdentityStore
from hopper_common.rpc.errors import code_of
from hopper_testing.clock import ManualClock
from tests.common.identity.dying import CHEAP

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
ORDER = [Verb.PREPARE, Verb.ACTIVATE, Verb.TAINT, Verb.REVOKE]
KILLED = -9


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def identity(tmp_path: Path, clock: ManualClock) -> Identity:
    return IdentityStore.open(tmp_path / "data" / "identity", clock)


def keys_on_disk(identity: Identity) -> int:
    return len(list((identity.directory / "roots").iterdir()))


def test_the_four_moves(identity: Identity) -> None:
    first = identity.roots()[0]
    before = identity.leaf()

    identity.prepare()
    second = identity.roots()[1]
    assert identity.roots() == (first, second)
    assert issued_by(identity.issue("/svc/memory").certificate, [first])
    assert identity.leaf() is before

    identity.activate()
    assert issued_by(identity.issue("/svc/memory").certificate, [second])
    assert identity.leaf() is before  # still good everywhere
    assert identity.roots() == (first, second)

    identity.taint()
    assert identity.leaf() is not before
    assert issued_by(identity.leaf().certificate, [second])
    assert identity.roots() == (first, second)
    assert keys_on_disk(identity) == 2

    identity.revoke()
    assert identity.roots() == (second,)
    assert keys_on_disk(identity) == 1
    assert identity.install_id == IdentityStore.open(identity.directory, ManualClock(NOW)).install_id


def test_the_leaf_of_a_renamed_root_names_the_same_trust_domain(identity: Identity) -> None:
    domain = identity.trust_domain
    for verb in ORDER * 2:
        identity.move(verb)
    assert identity.trust_domain == domain
    assert len(identity.trust_bundle().rotations) == 2
    assert identity.trust_bundle().install_id == identity.install_id


@pytest.mark.parametrize("done", range(4))
def test_moves_are_made_in_order(identity: Identity, done: int) -> None:
    for verb in ORDER[:done]:
        identity.move(verb)
    before = identity.bundle()
    for verb in ORDER:
        if verb is ORDER[done]:
            continue
        with pytest.raises(IdentityWrongState, match=f"the next move is `hopper ca {ORDER[done]}`") as caught:
            identity.move(verb)
        assert caught.value.metadata["verb"] == verb
        assert code_of(caught.value).name == "FAILED_PRECONDITION"
    assert identity.bundle() == before
    assert identity.next_step().verb is ORDER[done]


def test_a_peer_that_is_always_there_follows_every_move(identity: Identity) -> None:
    known = identity.trust_bundle()
    for verb in ORDER * 3:
        identity.move(verb)
        following = verify_bundle(identity.bundle(), known=known, now=NOW)
        assert following.sequence == known.sequence + 1
        known = following


def test_a_peer_that_was_away_for_whole_rotations_follows_the_chain(
    identity: Identity, clock: ManualClock
) -> None:
    """F17."""
    known = identity.trust_bundle()
    for verb in ORDER * 2:
        identity.move(verb)
    clock.advance(60 * DAY)
    identity.refresh()
    following = verify_bundle(identity.bundle(), known=known, now=clock.now())
    assert roots_of(following) == list(identity.roots())
    assert len(following.roots) == 1
    assert len(identity.bundle().SerializeToString()) < 8 * 1024


def test_another_process_follows_every_move(identity: Identity, clock: ManualClock) -> None:
    other = IdentityStore.open(identity.directory, clock)
    other.leaf()
    for verb in ORDER:
        identity.move(verb)
        other.refresh()
        assert other.bundle() == identity.bundle()
        assert other.problem is None
    assert issued_by(other.leaf().certificate, identity.roots())


def test_two_processes_cannot_make_the_same_move_twice(identity: Identity, clock: ManualClock) -> None:
    other = IdentityStore.open(identity.directory, clock)
    identity.prepare()
    with pytest.raises(IdentityWrongState):
        other.prepare()
    assert other.bundle() == identity.bundle()


def test_what_was_begun_goes_on_by_itself(identity: Identity, clock: ManualClock) -> None:
    identity.prepare()
    seen = []
    for _ in range(24 * 21):
        clock.advance(HOUR)
        step = identity.next_step()
        identity.refresh()
        if identity.next_step() != step:
            seen.append((step.verb, clock.now() - NOW))
    assert seen == [(Verb.ACTIVATE, 14 * DAY), (Verb.TAINT, 17 * DAY), (Verb.REVOKE, 20 * DAY)]
    assert identity.next_step().verb is Verb.PREPARE


def test_a_revoked_root_is_told_of_for_a_month(identity: Identity, clock: ManualClock) -> None:
    for verb in ORDER:
        identity.move(verb)
    clock.advance(29 * DAY)
    identity.refresh()
    assert len(identity.trust_bundle().roots) == 2
    known = identity.trust_bundle()
    clock.advance(2 * DAY)
    identity.refresh()
    assert len(identity.trust_bundle().roots) == 1
    assert verify_bundle(identity.bundle(), known=known, now=clock.now())


def test_a_root_that_ends_in_a_year_is_rotated_by_itself(identity: Identity, clock: ManualClock) -> None:
    clock.time = identity.roots()[0].not_valid_after_utc - 366 * DAY
    identity.refresh()
    assert len(identity.roots()) == 1
    clock.advance(2 * DAY)
    identity.refresh()
    assert len(identity.roots()) == 2
    assert identity.problem is None


def test_a_hopper_that_was_off_meanwhile_goes_on_where_it_was(identity: Identity, clock: ManualClock) -> None:
    identity.prepare()
    clock.advance(90 * DAY)
    again = IdentityStore.open(identity.directory, clock)
    assert again.next_step().verb is Verb.TAINT
    assert again.leaf().valid_at(clock.now())


# Dying in the middle.


class Dying:
    """A process that forks one that changes an identity and dies, for each case."""

    def __init__(self, program: "subprocess.Popen[str]", directory: Path) -> None:
        self._program = program
        self._directory = directory

    def run(self, what: str, directory: Path, failpoints: str, now: datetime = NOW) -> int:
        case = {
            "what": what,
            "directory": str(directory),
            "failpoints": failpoints,
            "now": now.isoformat(),
            "backup": str(self._directory / "backup"),
        }
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(case) + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dying]:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.common.identity.dying"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    with program:
        yield Dying(program, tmp_path_factory.mktemp("dying"))
        assert program.stdin is not None
        program.stdin.close()


def begun(directory: Path, done: int) -> Identity:
    identity = IdentityStore.open(directory, ManualClock(NOW))
    for verb in ORDER[:done]:
        identity.move(verb)
    return identity


@pytest.mark.parametrize("done", range(4), ids=ORDER)
def test_kill_9_anywhere_in_a_move_leaves_it_made_or_not_made(
    tmp_path: Path, dying: Dying, done: int
) -> None:
    verb = ORDER[done]
    before = begun(tmp_path / "before" / "identity", done)
    outcomes = set()
    for place in ("half@1", "half@2", "rename@1", "rename@2", "keys@1", "done@1"):
        copy = tmp_path / place.replace("@", "-") / "identity"
        shutil.copytree(before.directory, copy)
        name, _, hit = place.partition("@")
        ended = dying.run(verb, copy, f"identity.{name}=kill@{hit}")
        assert ended in (KILLED, 0)  # a move writes one file or two
        after = IdentityStore.open(copy, ManualClock(NOW))
        assert after.install_id == before.install_id
        made = after.next_step().verb is not verb
        outcomes.add((made, ended == KILLED))
        for rest in ORDER[done + made :]:
            after.move(rest)
        assert len(after.roots()) == keys_on_disk(after) == 1
        assert verify_bundle(after.bundle(), known=before.trust_bundle(), now=NOW)
        assert not list(copy.rglob("*.new"))
    assert {(False, True), (True, True)} <= outcomes


def test_kill_9_in_the_first_start_leaves_no_half_identity(tmp_path: Path, dying: Dying) -> None:
    for number, place in enumerate(("half@1", "half@3", "half@4", "rename@1", "rename@4", "keys@1")):
        directory = tmp_path / f"{number}" / "identity"
        name, _, hit = place.partition("@")
        assert dying.run("open", directory, f"identity.{name}=kill@{hit}") == KILLED
        assert not directory.exists()
        identity = IdentityStore.open(directory, ManualClock(NOW))
        assert sorted(path.name for path in directory.parent.iterdir()) == ["identity", "identity.lock"]
        assert issued_by(identity.leaf().certificate, identity.roots())


def test_kill_9_while_the_signing_key_changes(tmp_path: Path, dying: Dying) -> None:
    before = begun(tmp_path / "before" / "identity", 0)
    later = NOW + 50 * DAY
    for place in ("half@1", "half@2", "rename@1", "rename@2", "keys@1", "done@1"):
        copy = tmp_path / place.replace("@", "-") / "identity"
        shutil.copytree(before.directory, copy)
        name, _, hit = place.partition("@")
        assert dying.run("open", copy, f"identity.{name}=kill@{hit}", now=later) == KILLED
        after = IdentityStore.open(copy, ManualClock(later))
        assert len(after.trust_bundle().signing_keys) == 2
        assert len(list((copy / "signing").iterdir())) == 2
        assert after.sign(b"x").key_id == before.sign(b"x").key_id


def test_kill_9_while_a_backup_takes_the_place_of_another_identity(tmp_path: Path, dying: Dying) -> None:
    wanted = begun(tmp_path / "wanted" / "identity", 1)
    (dying._directory / "backup").write_bytes(back_up(wanted, b"secret", cost=CHEAP))
    there = begun(tmp_path / "there" / "identity", 0)
    outcomes = set()
    for place in ("half@1", "rename@2", "half@5", "done@1"):
        copy = tmp_path / place.replace("@", "-") / "identity"
        shutil.copytree(there.directory, copy)
        name, _, hit = place.partition("@")
        assert dying.run("restore", copy, f"identity.{name}=kill@{hit}") == KILLED
        after = IdentityStore.open(copy, ManualClock(NOW))
        outcomes.add(after.install_id)
        if after.install_id == there.install_id:
            assert dying.run("restore", copy, "") == 0
            after = IdentityStore.open(copy, ManualClock(NOW))
        assert after.install_id == wanted.install_id
        assert after.incarnation not in (wanted.incarnation, there.incarnation)
        assert after.next_step().verb is Verb.ACTIVATE
        kept = [path for path in copy.parent.iterdir() if path.name.startswith("identity.replaced-")]
        assert [IdentityStore.open(path, ManualClock(NOW)).install_id for path in kept] == [there.install_id]
    assert outcomes == {there.install_id, wanted.install_id}


def test_a_prepared_root_that_all_peers_know_waits_for_this_hoppers_own_processes_alone(
    identity: Identity, clock: ManualClock
) -> None:
    assert not identity.peers_know(identity.trust_bundle().sequence)
    identity.prepare()
    sequence = identity.trust_bundle().sequence
    assert not identity.peers_know(sequence)
    clock.advance(SETTLE)
    assert not identity.peers_know(sequence - 1)
    assert identity.next_step().verb is Verb.ACTIVATE
    assert identity.peers_know(sequence)
    assert identity.next_step().verb is Verb.TAINT
    assert not identity.peers_know(sequence)  # another process that says it a moment later


def test_a_process_without_the_roots_key_waits_for_nobody(tmp_path: Path, identity: Identity) -> None:
    other, _ = issue_into(identity, "/svc/federation", tmp_path / "other" / "identity")
    identity.prepare()
    without = IdentityStore.open(other.parent.parent, ManualClock(NOW + SETTLE))
    assert not without.has_root
    assert not without.awaits_peers()


def test_a_bundle_that_somebody_changed_on_the_disk_is_no_identity(identity: Identity) -> None:
    signed = identity.bundle()
    signed.signatures[0].key_hash = key_hash(identity.roots()[0])[::-1]
    with pytest.raises(BundleInvalid):
        verify_bundle(signed, now=NOW)
