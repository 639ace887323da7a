"""`hopper identity` and `hopper ca`, as their owner types them, on files of their own."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hopper_cli.commands import identity as commands
from hopper_common.clock import SystemClock
from hopper_common.identity import backup
from hopper_common.identity.sealing import Cost
from hopper_common.identity.spiffe import read_shown
from hopper_common.identity.store import Identity, IdentityStore
from tests.cli.conftest import Terminal

Secret = Callable[[str], str]


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "FOR_BACKUPS", Cost(4))


@pytest.fixture
def here(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "data", quick=True)


@pytest.fixture
def identity(here: Terminal) -> Identity:
    return IdentityStore.open(here.data_dir / "identity", SystemClock())


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    """Makes a file with a passphrase."""

    def make(passphrase: str) -> str:
        file = tmp_path / f"{passphrase}.secret"
        file.touch(mode=0o600)
        file.write_text(passphrase + "\n")
        return str(file)

    return make


def test_where_no_hopper_was_ever_started_there_is_no_identity(here: Terminal) -> None:
    for arguments in (
        ("identity", "show"),
        ("ca", "status"),
        ("ca", "rotate"),
        ("identity", "issue", "router"),
    ):
        ran = here(*arguments, "--json")
        assert (ran.code, ran.error["reason"]) == (3, "IDENTITY_NOT_FOUND")
        assert "hopper up" in ran.error["remedy"]
    assert not (here.data_dir / "identity").exists()


def test_show_says_who_this_hopper_is(here: Terminal, identity: Identity) -> None:
    shown = here.json("identity", "show")
    assert shown["install_id"] == identity.install_id
    assert shown["trust_domain"] == identity.trust_domain
    assert read_shown(shown["shown"]) == identity.install_id
    assert shown["incarnation"] == identity.incarnation
    assert (shown["root_key"], shown["sequence"], shown["next"]["verb"]) == ("here", 1, "prepare")
    assert [root["stage"] for root in shown["roots"]] == ["active"]
    assert shown["signing_key"]["key_id"] == identity.sign(b"").key_id
    text = here.ok("identity", "show").out
    assert shown["shown"] in text
    assert str(identity.directory) in text
    assert "PRIVATE" not in text


def test_a_rotation_move_by_move_and_another_process_follows(here: Terminal, identity: Identity) -> None:
    for verb, stages in (
        ("prepare", ["active", "prepared"]),
        ("activate", ["active", "active"]),
        ("taint", ["tainted", "active"]),
    ):
        shown = here.json("ca", verb)
        assert [root["stage"] for root in shown["roots"]] == stages
        identity.refresh()
        assert identity.trust_bundle().sequence == shown["sequence"]
    ran = here("ca", "revoke", "--json")
    assert (ran.code, ran.error["remedy"]) == (2, "say --yes")
    assert [root["stage"] for root in here.json("ca", "revoke", "--yes")["roots"]] == ["revoked", "active"]
    text = here.ok("ca", "status").out
    assert "nothing is being rotated" in text
    identity.refresh()
    assert len(identity.roots()) == 1


def test_a_move_out_of_turn_names_the_one_that_is_next(here: Terminal, identity: Identity) -> None:
    ran = here("ca", "taint", "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_WRONG_STATE")
    assert "`hopper ca prepare`" in ran.error["message"]
    ran = here("ca", "revoke", "--json")
    assert ran.error["reason"] == "IDENTITY_WRONG_STATE"  # before anybody is asked whether to
    assert identity.bundle().payload == IdentityStore.open(identity.directory, SystemClock()).bundle().payload


def test_rotate_makes_the_next_move_when_it_is_due_or_at_once(here: Terminal, identity: Identity) -> None:
    assert here.json("ca", "rotate")["next"]["verb"] == "activate"
    ran = here("ca", "rotate", "--json")
    assert (ran.code, ran.error["reason"]) == (5, "NOTHING_TO_DO")
    assert "the next move, activate, is due" in ran.error["message"]
    for verb in ("taint", "revoke", "prepare"):
        assert here.json("ca", "rotate", "--now", "--yes")["next"]["verb"] == verb


def test_a_backup_brings_the_same_hopper_back_elsewhere(
    here: Terminal, identity: Identity, tmp_path: Path, secret: Secret
) -> None:
    file = str(tmp_path / "b.backup")
    made = here.json("identity", "backup", file, "--passphrase-file", secret("horse"))
    assert (made["install_id"], made["bytes"]) == (identity.install_id, os.stat(file).st_size)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600

    there = Terminal(tmp_path / "there", quick=True)
    ran = there("identity", "restore", file, "--passphrase-file", secret("donkey"), "--json")
    assert (ran.code, ran.error["reason"]) == (1, "WRONG_PASSPHRASE")
    restored = there.json("identity", "restore", file, "--passphrase-file", "-", stdin="horse\n")
    assert restored["install_id"] == identity.install_id
    assert restored["incarnation"] != identity.incarnation
    assert there.json("identity", "show") == restored

    ran = there("identity", "restore", file, "--passphrase-file", secret("horse"), "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_EXISTS")
    assert "--overwrite" in ran.error["message"]
    text = there.ok("identity", "restore", file, "--passphrase-file", secret("horse"), "--overwrite").out
    assert restored["shown"] in text
    assert len(list(there.data_dir.glob("identity.replaced-*"))) == 1


def test_a_backup_does_not_take_the_place_of_a_file(
    here: Terminal, identity: Identity, tmp_path: Path, secret: Secret
) -> None:
    file = tmp_path / "b.backup"
    file.write_text("dear")
    ran = here("identity", "backup", str(file), "--passphrase-file", secret("horse"), "--json")
    assert (ran.code, ran.error["reason"]) == (1, "FILE_EXISTS")
    assert file.read_text() == "dear"
    here.ok("identity", "backup", str(file), "--passphrase-file", secret("horse"), "--force")
    assert file.read_text(errors="replace") != "dear"
    ran = here(
        "identity", "backup", str(tmp_path / "no" / "b"), "--passphrase-file", secret("horse"), "--json"
    )
    assert (ran.code, ran.error["reason"]) == (1, "FILE_NOT_WRITTEN")


def test_a_passphrase_is_asked_for_or_given_and_never_empty(
    here: Terminal, identity: Identity, tmp_path: Path, secret: Secret
) -> None:
    file = str(tmp_path / "b.backup")
    assert "--passphrase-file" in here("identity", "backup", file, "--json").error["remedy"]
    ran = here("identity", "backup", file, "--passphrase-file", "-", "--json", stdin="\n")
    assert (ran.code, ran.error["message"]) == (2, "the passphrase is empty")
    shared = secret("horse")
    os.chmod(shared, 0o644)
    ran = here("identity", "backup", file, "--passphrase-file", shared, "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_SHARED")
    assert shared in ran.error["message"]
    assert not os.path.exists(file)


def test_what_is_no_backup_is_refused(here: Terminal, tmp_path: Path, secret: Secret) -> None:
    file = tmp_path / "b.backup"
    ran = here("identity", "restore", str(file), "--passphrase-file", secret("horse"), "--json")
    assert (ran.code, ran.error["reason"]) == (2, "USAGE")
    file.write_text("no backup at all")
    ran = here("identity", "restore", str(file), "--passphrase-file", secret("horse"), "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_DAMAGED")
    assert str(file) in ran.error["message"]


def test_a_certificate_for_another_process(here: Terminal, identity: Identity, tmp_path: Path) -> None:
    issued = here.json("identity", "issue", "registry")
    assert issued["path"] == "/svc/registry"
    assert Path(issued["file"]) == identity.directory / "leaves" / "svc+registry.pem"
    assert [leaf["path"] for leaf in here.json("identity", "show")["leaves"]] == ["/svc/registry"]

    elsewhere = tmp_path / "elsewhere" / "identity"
    text = here.ok("identity", "issue", "/agent/a1", "--to", str(elsewhere), "--lifetime", "7d").out
    assert "/agent/a1" in text
    assert (
        IdentityStore.open(elsewhere, SystemClock()).leaf("/agent/a1").not_after > identity.leaf().not_after
    )
    ran = here("identity", "issue", "/svc/../router", "--json")
    assert (ran.code, ran.error["reason"]) == (2, "USAGE")


def test_a_sealed_root_needs_its_passphrase(here: Terminal, identity: Identity, secret: Secret) -> None:
    sealed = {"HOPPER_IDENTITY_PASSPHRASE_FILE": secret("horse")}
    assert here("identity", "show", "--json", **sealed).json["root_key"] == "sealed"
    assert here.json("identity", "show")["root_key"] == "sealed, and no passphrase for it"
    ran = here("ca", "prepare", "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_WRONG_STATE")
    assert "HOPPER_IDENTITY_PASSPHRASE_FILE" in ran.error["message"]
    assert here("ca", "prepare", "--json", **sealed).code == 0


def test_a_bad_file_is_named(here: Terminal, identity: Identity) -> None:
    (file,) = (identity.directory / "roots").iterdir()
    file.chmod(0o644)
    ran = here("identity", "show", "--json")
    assert (ran.code, ran.error["reason"]) == (1, "IDENTITY_SHARED")
    assert str(file) in ran.error["message"]
    assert ran.out == ""


def test_the_doctor_looks_at_the_files_and_changes_nothing(here: Terminal, identity: Identity) -> None:
    def said() -> dict[str, str]:
        found = here("doctor", "--json").json["checks"]
        made: dict[str, str] = next(check for check in found if check["name"] == "identity")
        return made

    assert said()["status"] == "ok"
    assert here.json("identity", "show")["shown"] in said()["detail"]
    (file,) = (identity.directory / "signing").iterdir()
    file.chmod(0o640)
    assert said()["status"] == "fail"
    assert str(file) in said()["detail"]
    assert "chmod 600" in said()["remedy"]
    file.chmod(0o600)
    identity.directory.rename(identity.directory.with_name("gone"))
    assert (said()["status"], identity.directory.exists()) == ("ok", False)


def test_services_are_offered_for_completion() -> None:
    assert "registry" in commands._services("r")
    assert "/svc/registry" in commands._services("/svc/r")
    assert commands._services("x") == []
