"""Trusting a peer, looking at it and ending it, as its owner types it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from hopper_cli import complete
from tests.cli.conftest import Terminal

POLICY = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "both"
capabilities = ["docs.*"]

[[rule]]
name = "no customers"
effect = "deny"
direction = "both"
labels = ["customer"]
"""


@pytest.fixture(scope="module")
def alice(short_dir: Callable[[], Path], hopper: Terminal) -> Iterator[Terminal]:
    """A Hopper that peers can call; the one of all tests is its peer `bob`, and knows it as `alicia`."""
    terminal = Terminal(short_dir(), quick=True)
    federated = {"HOPPER_PAIRING_LISTEN": "127.0.0.1:0", "HOPPER_PEER_LISTEN": "127.0.0.1:0"}
    with terminal.started("up", "--json", HOPPER_STATIC_PEERS="192.0.2.7:8470", **federated) as up:
        assert up.stdout is not None
        assert json.loads(up.stdout.readline())["services"]
        token = terminal.ok("peer", "invite", "bob").out.strip()
        hopper.ok("peer", "join", "--name", "alicia", stdin=f"{token}\n")
        yield terminal


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("policies") / "bob.toml"
    file.write_text(POLICY)
    return str(file)


@pytest.fixture
def trusted(alice: Terminal, policy: str) -> Terminal:
    """The same, who trusts bob."""
    alice.ok("peer", "trust", "bob", "--policy", policy)
    return alice


def test_a_policy_is_tried_set_and_shown(alice: Terminal, policy: str) -> None:
    """What it would change is what it then changes."""
    tried = alice.ok("peer", "trust", "bob", "--policy", policy, "--dry-run")
    assert "level: known -> trusted" in tried.out
    assert "+ reviews: allow in and out docs.*" in tried.out
    assert "bob would be trusted" in tried.err
    assert "bob has no policy" in alice("peer", "policy", "bob").err
    done = alice.ok("peer", "trust", "bob", "--policy", policy)
    assert done.out == tried.out
    assert alice.ok("peer", "policy", "bob").out.strip() == POLICY.strip()
    verified = alice.json("peer", "trust", "bob", "--level", "verified", "--compared", "by phone")
    assert verified["peer"]["verified_by"] == "owner, by phone"


def test_a_policy_with_errors_is_refused_with_their_places(alice: Terminal) -> None:
    """And nothing of it is set."""
    ran = alice("peer", "trust", "bob", "--policy", "-", stdin="[[rule]]\nnmae = 'x'\n")
    assert ran.code == 1
    assert "rule 1, line 1" in ran.err


def test_the_rule_that_decides_is_explained(trusted: Terminal) -> None:
    """For work that might be, and for a task that is."""
    fits = trusted.ok("policy", "explain", "bob", "-c", "docs.review", "--direction", "in")
    assert fits.out.startswith("allowed by reviews")
    assert "deny no customers: does not fit" in fits.out
    refused = trusted.json("policy", "explain", "bob", "-c", "docs.review", "--label", "customer=acme")
    assert (refused.get("allowed", False), refused["reason"]) == (False, "LABEL_DENIED")
    added = trusted.json("add", "read it", "--needs", "docs.review", "--label", "customer=acme")
    task = added["task"]["name"]
    explained = trusted.ok("policy", "explain", "bob", task[-6:])
    assert explained.out.startswith("refused by no customers: label customer=acme  (LABEL_DENIED)")


def test_how_peers_are_is_a_table(trusted: Terminal) -> None:
    """Or all about one."""
    assert trusted.ok("peer", "status").out.splitlines()[1].split()[0] == "bob"
    assert "reached" in trusted.ok("peer", "status", "bob").out
    (only,) = trusted.json("peer", "status")["peers"]
    assert only["peer"]["name"] == "peers/bob"


def test_the_doctor_looks_at_a_peer_and_at_an_address(alice: Terminal, hopper: Terminal) -> None:
    """The first with all there is, the second with what a stranger sees."""
    checked = hopper.json("doctor", "alicia")["checks"]
    found = {check["title"]: check["outcome"] for check in checked}
    assert found["port"] == found["name"] == found["pairing"] == found["clock"] == "OUTCOME_OK"
    assert found["federation"] == "OUTCOME_WARNING"  # it is not switched on there
    address = hopper.json("peer", "show", "alicia")["peer"]["addresses"][0]
    assert f"{address} is alicia" in hopper.ok("doctor", address).out
    nowhere = alice("doctor", "bob")
    assert nowhere.code == 1
    assert "`hopper peer address PEER host:port`" in nowhere.out


def test_what_is_written_down_is_discovered(alice: Terminal) -> None:
    """And said to be unverified."""
    found = alice.ok("peer", "discover", "--wait", "0s")
    assert "192.0.2.7:8470" in found.out
    assert "unverified" in found.err
    assert alice.json("peer", "discover", "--wait", "0s")["sightings"][0]["source"] == "SOURCE_STATIC"


def test_a_revoked_peer_reads_that_it_is(alice: Terminal, hopper: Terminal, policy: str) -> None:
    """Its doctor says so. Pairing again ends that."""
    assert "bob is revoked" in alice.ok("peer", "revoke", "bob").out
    ran = hopper("doctor", "alicia")
    assert ran.code == 1
    assert "it has revoked this Hopper" in ran.out
    refused = alice("peer", "trust", "bob", "--policy", policy)
    assert refused.code == 1
    assert "pair again" in refused.err
    token = alice.ok("peer", "invite", "bob").out.strip()
    hopper.ok("peer", "join", "--name", "alicia", stdin=f"{token}\n")
    assert alice.ok("peer", "block", "bob").out.strip() == "bob is blocked"
    token = alice.ok("peer", "invite", "bob").out.strip()
    hopper.ok("peer", "join", "--name", "alicia", stdin=f"{token}\n")
    assert alice.json("peer", "show", "bob")["peer"]["level"] == "TRUST_LEVEL_KNOWN"


def test_ways_to_revoke(alice: Terminal) -> None:
    """Each with its own time."""
    for arguments in (["--drain", "2h"], ["--compromised", "3d"], ["--compromised", "now"]):
        ran = alice("peer", "revoke", "nobody", *arguments)
        assert (ran.code, "there is no peers/nobody" in ran.err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["peer", "revoke", "bob", "--now", "--drain", "1h"], "name one of"),
        (["peer", "trust", "bob", "--level", "blocked"], "none of known, trusted, verified"),
        (["policy", "explain", "bob", "--direction", "up"], "neither in nor out"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    alone: Terminal, arguments: list[str], says: str
) -> None:
    """With exit code 2."""
    ran = alone(*arguments)
    assert ran.code == 2
    assert says in ran.err


def test_levels_are_offered() -> None:
    """With what they mean."""
    context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)))
    assert [level for level, _ in complete.trust_levels(context, "")] == ["known", "trusted", "verified"]
