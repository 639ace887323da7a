"""`hopper auth`: people, agents, keys."""

import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from hopper_cli import access_complete
from hopper_cli.access_names import ROLES, bindings_of, grants_text, key_name, place_name, principal_name
from hopper_cli.commands import auth_keys
from hopper_cli.problems import UsageProblem
from hopper_common.auth import api_keys
from hopper_common.auth.model import Role
from tests.cli.conftest import Terminal

Person = Callable[..., str]


@pytest.fixture
def person(hopper: Terminal) -> Person:
    """Adds somebody of this test's own."""

    def add(*options: str) -> str:
        who = f"p{uuid.uuid4().hex[:8]}"
        hopper.ok("auth", "person", "add", who, *options)
        return who

    return add


# The first admin.


def test_the_first_admin_is_made_once_and_the_key_goes_where_it_is_wanted(
    hopper: Terminal, tmp_path: Path
) -> None:
    """A file that is there already is not touched, and then nobody is made, either."""
    file = tmp_path / "admin.key"
    file.write_text("something else")
    refused = hopper("auth", "init", "root-admin", "--save", str(file))
    assert (refused.code, file.read_text()) == (2, "something else")
    file.unlink()
    made = hopper.ok("auth", "init", "root-admin", "--save", str(file))
    key = file.read_text().strip()
    assert api_keys.id_of(key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in made.out + made.err
    assert "root-admin is the first admin" in made.out
    again = hopper("auth", "init", "--save", str(tmp_path / "again.key"), "--json")
    assert (again.code, again.error["reason"]) == (1, "ALREADY_BOOTSTRAPPED")
    assert not (tmp_path / "again.key").exists()


def test_the_owner_is_told_who_they_are(hopper: Terminal) -> None:
    """On this machine's own socket."""
    assert "everything" in hopper.ok("auth", "whoami").out
    assert hopper.json("auth", "whoami")["credential"] == "socket"


def test_the_owner_needs_no_token(hopper: Terminal) -> None:
    """And is told what would get one."""
    refused = hopper("auth", "token", "--for", "memory")
    assert refused.code == 1
    assert "use a key" in refused.err


# People and agents.


def test_a_person_is_added_shown_and_removed(hopper: Terminal, person: Person) -> None:
    """With a table for people, and a document for programs."""
    who = person("--name", "Ada L.", "--role", "member@global", "-r", "auditor@instances/global")
    shown = hopper.ok("auth", "person", "show", who).out
    assert "member@global, auditor@global" in shown
    assert "Ada L." in shown
    names = [each["name"] for each in hopper.json("auth", "person", "list")["principals"]]
    assert f"principals/{who}" in names
    assert who in hopper.ok("auth", "person", "list").out
    assert hopper("auth", "person", "remove", who).code == 2  # nobody to ask
    assert hopper.json("auth", "person", "remove", who, "--yes") == {"revoked_keys": 0}
    assert hopper("auth", "person", "show", who).code == 3


def test_roles_are_given_and_taken(hopper: Terminal, person: Person, project: str) -> None:
    """One by one, whatever else there is."""
    who = person("-r", "viewer@global")
    hopper.ok("auth", "person", "grant", who, f"member@projects/{project}", "viewer@global")
    taken = hopper.json("auth", "person", "revoke-role", who, "viewer@global")
    assert taken["principal"]["bindings"] == [{"role": "ROLE_MEMBER", "resource": f"projects/{project}"}]
    again = hopper("auth", "person", "revoke-role", who, "viewer@global")
    assert again.code == 2
    assert "is not viewer@global" in again.err


def test_an_agent_acts_for_a_person_and_goes_with_them(hopper: Terminal, person: Person) -> None:
    """And is an agent to every command."""
    who = person()
    bot = f"{who}-bot"
    hopper.ok("auth", "agent", "add", bot, "--for", who, "--role", "agent@global")
    row = next(line for line in hopper.ok("auth", "agent", "list").out.splitlines() if bot in line)
    assert row.split()[:4] == [bot, who, "active", "agent@global"]
    wrong = hopper("auth", "person", "show", bot)
    assert (wrong.code, "hopper auth agent" in wrong.err) == (2, True)
    hopper.ok("auth", "key", "create", bot)
    removed = hopper.ok("auth", "person", "remove", who, "--yes").out
    assert "keys ended: 1" in removed
    assert hopper("auth", "agent", "show", bot).code == 3


def test_somebody_is_shut_out_and_let_in_again(hopper: Terminal, person: Person) -> None:
    """Without losing anything."""
    who = person("-r", "viewer@global")
    assert "disabled" in hopper.ok("auth", "person", "disable", who).out
    assert hopper.json("auth", "person", "show", who)["principal"]["disabled"]
    assert "viewer@global" in hopper.ok("auth", "person", "enable", who).out


# Keys.


def test_a_key_alone_is_on_standard_output(hopper: Terminal, person: Person) -> None:
    """So that it can be piped; all else is beside it."""
    who = person()
    made = hopper.ok("auth", "key", "create", who, "-d", "laptop", "--expires", "30d")
    key_id = api_keys.id_of(made.out.strip())
    assert key_id
    assert f"{who}/{key_id}" in made.err
    listed = hopper.ok("auth", "key", "list", who).out
    assert f"{who}/{key_id}" in listed
    assert "laptop" in listed
    assert made.out.strip() not in listed


def test_a_key_is_replaced_and_ended(hopper: Terminal, person: Person, tmp_path: Path) -> None:
    """By the name that the list shows."""
    who = person("-r", "viewer@global")
    made = hopper.json("auth", "key", "create", who, "--scope", "viewer@global")
    name = made["key"]["name"]
    assert made["key"]["scopes"] == [{"role": "ROLE_VIEWER", "resource": "instances/global"}]
    file = tmp_path / "new.key"
    shown = f"{who}/{name.rpartition('/')[2]}"
    rotated = hopper.json("auth", "key", "rotate", shown, "--overlap", "1h", "--save", str(file))
    assert file.read_text().strip() == rotated["secret"]
    full = hopper("auth", "key", "create", who, "--json")
    assert full.error["reason"] == "TOO_MANY_API_KEYS"
    assert hopper("auth", "key", "revoke", shown).code == 2  # nobody to ask
    hopper.ok("auth", "key", "revoke", name, "--yes")
    assert "revoked" in hopper.ok("auth", "key", "list", who).out


def test_a_key_that_is_not_made_leaves_no_file(hopper: Terminal, tmp_path: Path) -> None:
    """Nor does one for somebody who is not there."""
    file = tmp_path / "none.key"
    assert hopper("auth", "key", "create", "nobody-here", "--save", str(file)).code == 3
    assert not file.exists()
    assert hopper("auth", "key", "create", "nobody-here", "--save", str(tmp_path / "no" / "dir")).code == 2


def test_where_somebody_is_there_a_file_is_offered(
    hopper: Terminal, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for them alone, and in their Hopper's directory."""
    asked = []

    def confirm(question: str, **options: object) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(auth_keys, "somebody_is_there", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirm)
    who = person()
    key = hopper.ok("auth", "key", "create", who).out.strip()
    (file,) = hopper.data_dir.glob(f"{who}-*.key")
    assert str(file) in asked[0]
    assert file.read_text().strip() == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# Names.


def test_names_are_read_as_they_are_typed() -> None:
    """Short or full."""
    assert principal_name("ada") == principal_name("principals/ada") == "principals/ada"
    assert key_name("ada/1") == key_name("principals/ada/keys/1") == "principals/ada/keys/1"
    assert [place_name(each) for each in ("moodle", "instances/moodle", "projects/web")] == [
        "instances/moodle",
        "instances/moodle",
        "projects/web",
    ]
    assert grants_text(bindings_of(["Member@moodle", "admin@projects/web"])) == (
        "member@moodle, admin@projects/web"
    )
    for read, wrong in (
        (principal_name, "a/b"),
        (principal_name, ""),
        (key_name, "ada"),
        (place_name, "peers/x"),
        (place_name, ""),
    ):
        with pytest.raises(UsageProblem):
            read(wrong)
    for grant in ("member", "boss@global", "owner@global"):
        with pytest.raises(UsageProblem):
            bindings_of([grant])


def test_all_roles_that_can_be_given_are_offered() -> None:
    """All but the owner's."""
    assert set(ROLES) == {role.name.lower() for role in Role} - {"owner"}


class Context:
    """The part of typer's context that completions read."""

    def __init__(self, path: str, address: str) -> None:
        self.command_path = path
        self.params = {"_address": address}

    def find_root(self) -> "Context":
        """There is one command."""
        return self


def test_names_are_completed(hopper: Terminal, person: Person, project: str) -> None:
    """Each kind where it is asked for."""
    who = person()
    hopper.ok("auth", "agent", "add", f"{who}-bot", "--for", who)
    key = hopper.json("auth", "key", "create", who, "-d", "laptop")["key"]["name"]
    address = f"unix:{hopper.data_dir}/hopper.sock"

    def offered(complete: Callable[..., list[tuple[str, str]]], path: str, word: str) -> set[str]:
        return {name for name, _ in complete(Context(path, address), word)}

    people = offered(access_complete.principals, "hopper auth person show", "")
    assert (who in people, f"{who}-bot" in people) == (True, False)
    assert f"{who}-bot" in offered(access_complete.principals, "hopper auth agent show", "")
    assert f"principals/{who}" in offered(access_complete.people, "hopper", "principals/")
    assert f"{who}/" in offered(access_complete.keys, "hopper", "")
    assert f"{who}/{key.rpartition('/')[2]}" in offered(access_complete.keys, "hopper", f"{who}/")
    assert "member@" in offered(access_complete.grants, "hopper", "")
    assert f"member@projects/{project}" in offered(access_complete.grants, "hopper", "member@")
    assert "router" in offered(access_complete.services, "hopper", "")
