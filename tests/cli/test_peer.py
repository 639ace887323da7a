"""Two Hoppers come to know each other, as their owners type it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from hopper_cli import complete
from hopper_cli.peering import qr_code
from tests.cli.conftest import Terminal

PATIENCE = 60.0


@pytest.fixture(scope="module")
def alice(short_dir: Callable[[], Path]) -> Iterator[Terminal]:
    """A Hopper that may be paired with. The one of all tests is the other."""
    terminal = Terminal(short_dir(), quick=True)
    federated = {"HOPPER_PAIRING_LISTEN": "127.0.0.1:0", "HOPPER_NAME": "alice's"}
    with terminal.started("up", "--json", **federated) as up:
        assert up.stdout is not None
        assert json.loads(up.stdout.readline())["services"]
        yield terminal


def eventually(look: Callable[[], Any]) -> Any:
    """What *look* finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come")


@pytest.fixture(scope="module")
def paired(alice: Terminal, hopper: Terminal) -> str:
    """The words that the one who waits and the one who joins are shown."""
    with alice.started("peer", "invite", "bob", "--wait") as inviting:
        assert inviting.stdout is not None
        token = inviting.stdout.readline().strip()
        assert token.startswith("hopper1:")
        joined = hopper.ok("peer", "join", "--name", "alice", stdin=f"{token}\n")
        out, _ = inviting.communicate(timeout=PATIENCE)
        assert inviting.returncode == 0
    words = joined.out.strip().removeprefix("paired with alice:").strip()
    assert out.strip() == f"paired with bob:  {words}"
    return words


def test_two_commands_and_both_see_the_same_words(alice: Terminal, hopper: Terminal, paired: str) -> None:
    """And see them again whenever they look."""
    assert len(paired.split()) == 6
    assert paired in alice.ok("peer", "show", "bob").out
    assert paired in hopper.ok("peer", "list").out
    (invitation,) = alice.json("peer", "invitations")["invitations"]
    assert (invitation["peer"], invitation["state"]) == ("peers/bob", "STATE_REDEEMED")
    shown = alice.json("peer", "show", "bob")["peer"]
    assert shown["level"] == "TRUST_LEVEL_KNOWN"
    assert " ".join(shown["words"]) == paired


def test_six_digits_pair_too(alice: Terminal, hopper: Terminal, paired: str) -> None:
    """Each types what the other sees."""
    where = alice.json("peer", "open", "--for", "5m")["address"]
    asked = eventually(lambda: _pairing(hopper("peer", "request", where, "--name", "alice", "--json")))
    (here,) = [each for each in alice.json("peer", "pairings")["pairings"] if not each["outgoing"]]
    assert here["code"] == asked["code"]
    code = here["code"]
    assert f"{code[:3]} {code[3:]}" in alice.ok("peer", "pairings").out
    short = here["name"][-6:]
    approved = alice.ok("peer", "approve", short, f"{code[:3]} {code[3:]}", "--name", "bob")
    assert approved.out.strip() == f"{short} approved here"
    hopper.ok("peer", "approve", asked["name"], code)
    eventually(lambda: "STATE_DONE" in _states(hopper))
    eventually(lambda: _words(alice, "bob") == _words(hopper, "alice"))
    assert paired not in alice.ok("peer", "show", "bob").out
    assert alice.ok("peer", "close").out == "nobody can ask to pair now\n"


def _pairing(ran: Any) -> Any:
    # The port of strangers counts calls by network, and everybody here is of one.
    return ran.json["pairing"] if ran.code == 0 else None


def _words(hopper: Terminal, peer: str) -> Any:
    return hopper.json("peer", "show", peer)["peer"]["words"]


def _states(hopper: Terminal) -> list[str]:
    return [each["state"] for each in hopper.json("peer", "pairings")["pairings"]]


def test_digits_that_differ_are_an_error_and_the_end(alice: Terminal, hopper: Terminal, paired: str) -> None:
    """So is a pairing that is turned down."""
    where = alice.json("peer", "open")["address"]
    asked = eventually(lambda: _pairing(hopper("peer", "request", where, "--name", "alice", "--json")))
    wrong = f"{(int(asked['code']) + 1) % 1_000_000:06}"
    ran = hopper("peer", "approve", asked["name"][-6:], wrong)
    assert ran.code == 2
    assert "somebody may be in between" in ran.err
    ran = hopper("peer", "decline", asked["name"])
    assert ran.code == 1
    assert hopper("peer", "approve", "zzzzzz", "123456").code == 2


def test_names_and_addresses_are_the_owners(alice: Terminal, paired: str) -> None:
    """What the other calls itself does not matter."""
    assert alice.ok("peer", "rename", "bob", "robert").out == "bob is robert now\n"
    moved = alice.ok("peer", "address", "robert", "192.0.2.7:8470", "[2001:db8::7]:8470")
    assert moved.out == "robert is at 192.0.2.7:8470, [2001:db8::7]:8470\n"
    assert alice("peer", "show", "bob").code == 3
    assert alice("peer", "address", "robert", "nowhere").code == 2
    alice.ok("peer", "rename", "robert", "bob")


def test_an_invitation_is_ended(alice: Terminal) -> None:
    """By the end of its id, as it is listed."""
    made = alice.json("peer", "invite", "carol", "--expires", "1h", "--host", "192.0.2.7", "--host", "home")
    short = made["invitation"]["name"][-6:]
    listed = [line.split()[:3] for line in alice.ok("peer", "invitations").out.splitlines()]
    assert [short, "carol", "open"] in listed
    assert alice.ok("peer", "invitations", "--end", short).out == f"{short} is over\n"
    (ended,) = [
        each
        for each in alice.json("peer", "invitations")["invitations"]
        if each["name"] == made["invitation"]["name"]
    ]
    assert ended["state"] == "STATE_DEAD"


def test_what_is_no_token_is_refused(hopper: Terminal) -> None:
    """With what is wrong with it, and without repeating it."""
    ran = hopper("peer", "join", "hopper1:abc", "--name", "x")
    assert ran.code == 2
    assert "cut short" in ran.err
    assert "abc" not in ran.err


def test_where_federation_is_off_the_remedy_is_named(hopper: Terminal) -> None:
    """Nothing listens until somebody asked for it."""
    ran = hopper("peer", "invite", "carol")
    assert (ran.code, "HOPPER_FEDERATION=1" in ran.err) == (1, True)


def test_a_token_fits_on_a_terminal_as_a_qr_code() -> None:
    """Half blocks, two rows of dots a line."""
    lines = qr_code("hopper1:" + "A" * 170).splitlines()
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 64


class Context:
    """The part of typer's context that completions read."""

    def __init__(self, hopper: Terminal) -> None:
        self.params = {"_address": f"unix:{hopper.data_dir}/hopper.sock"}

    def find_root(self) -> "Context":
        """There is one command."""
        return self


def test_names_are_completed(alice: Terminal, hopper: Terminal, paired: str) -> None:
    """Peers with how far each is trusted, invitations with whom they are for."""
    here, there = cast("typer.Context", Context(alice)), cast("typer.Context", Context(hopper))
    assert ("alice", "known") in complete.peers(there, "")
    assert ("peers/alice", "known") in complete.peers(there, "peers/")
    assert "bob" in {peer for _, peer in complete.invitations(here, "")}
