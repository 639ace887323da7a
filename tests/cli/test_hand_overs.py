"""Handing tasks to another Hopper and taking its own, as both owners type and see it."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from hopper.federation.v1.delegation_pb2 import DelegationState
from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest, RemoteDelegation
from hopper.registry.v1.project_service_pb2 import ListProjectsRequest
from hopper_cli import complete
from hopper_cli.hand_over_text import states
from hopper_client import Hopper
from tests.cli.conftest import PATIENCE, Terminal
from tests.e2e.calls import eventually

POLICY = """
[[rule]]
name = "translations"
effect = "allow"
direction = "both"
capabilities = ["translate"]
redact = ["labels.customer"]

[[rule]]
name = "reviews"
effect = "allow"
direction = "out"
capabilities = ["review"]

[[rule]]
name = "reviews, each by a person"
effect = "allow"
direction = "in"
capabilities = ["review"]
ask = true
"""


class Pair(NamedTuple):
    """alice hands over; bob, whom she calls so, has somebody who can do it. Waiting is cheaper without a terminal."""

    alice: Terminal
    bob: Terminal
    at_alice: Hopper
    at_bob: Hopper

    def handed_over(self, capability: str, *options: str) -> str:
        """A task of alice's that only bob can have done; returns the short id of the hand-over."""
        added = self.alice.json("add", f"please {capability}", "--needs", capability, *options)
        uid = added["task"]["name"].rpartition("/")[2]

        def look() -> list[RemoteDelegation]:
            listed = self.at_alice.remote_delegations.ListRemoteDelegations(ListRemoteDelegationsRequest())
            return [each for each in listed.delegations if each.task_uid.endswith(f"/{uid}")]

        found = eventually(look, bool)
        assert len(found) == 1
        return found[0].id[-6:]

    def at(self, who: Hopper, hand_over: str, wanted: str) -> RemoteDelegation:
        """Wait until it is in that state, as one of them sees it."""

        def look() -> list[RemoteDelegation]:
            listed = who.remote_delegations.ListRemoteDelegations(ListRemoteDelegationsRequest())
            return [each for each in listed.delegations if each.id.endswith(hand_over)]

        state = DelegationState.Value(f"DELEGATION_STATE_{wanted}")
        seen = eventually(look, lambda found: [each.state for each in found] == [state])
        assert [each.state for each in seen] == [state], seen
        return seen[0]


@pytest.fixture(scope="module")
def pair(short_dir: Callable[[], Path]) -> Iterator[Pair]:
    alice, bob = Terminal(short_dir(), quick=True), Terminal(short_dir(), quick=True)
    federated = {"HOPPER_PAIRING_LISTEN": "127.0.0.1:0", "HOPPER_PEER_LISTEN": "127.0.0.1:0"}
    with (
        alice.started("up", "--json", **federated) as first,
        bob.started("up", "--json", **federated) as second,
    ):
        for up in (first, second):
            assert up.stdout is not None
            assert json.loads(up.stdout.readline())["services"]
        bob.ok("project", "add", "office", "--can", "translate", "--can", "review")
        token = alice.ok("peer", "invite", "bob").out.strip()
        bob.ok("peer", "join", "--name", "alice", stdin=f"{token}\n")
        alice.ok("peer", "trust", "bob", "--policy", "-", stdin=POLICY)
        bob.ok("peer", "trust", "alice", "--policy", "-", stdin=POLICY)
        with (
            Hopper(f"unix:{alice.data_dir}/hopper.sock", timeout=PATIENCE) as ours,
            Hopper(f"unix:{bob.data_dir}/hopper.sock", timeout=PATIENCE) as theirs,
        ):
            request = ListProjectsRequest()
            eventually(
                lambda: ours.projects.ListProjects(request).projects,
                lambda listed: any("translate" in str(each) for each in listed),
            )
            yield Pair(alice, bob, ours, theirs)


@pytest.fixture(scope="module")
def done(pair: Pair) -> str:
    """A hand-over that bob's office has done."""
    hand_over = pair.handed_over("translate", "--label", "customer=acme", "--label", "kind=report")
    pair.at(pair.at_bob, hand_over, "ACCEPTED")
    taken = pair.bob.json("next", "--queue", "office", "--wait", "30s")
    pair.bob.ok("done", taken["tasks"][0]["name"], "--result", "fertig")
    pair.at(pair.at_alice, hand_over, "COMPLETED")
    pair.at(pair.at_bob, hand_over, "COMPLETED")
    return hand_over


def test_what_was_handed_over_is_listed_and_shown_with_its_chain(pair: Pair, done: str) -> None:
    row = next(line for line in pair.alice.ok("delegation", "list").out.splitlines() if done in line)
    assert "to bob" in row
    assert "completed" in row
    shown = pair.alice.ok("delegation", "show", done).out
    assert "this Hopper hands it over to bob" in shown
    assert "bob has done it" in shown
    assert shown.count("verified") == 3
    theirs = pair.bob.ok("delegation", "show", done).out
    assert "from alice" in theirs
    assert "this Hopper has done it" in theirs


def test_what_the_rule_keeps_back_has_not_left(pair: Pair, done: str) -> None:
    task = pair.bob.json("delegation", "show", done)["delegation"]["task"]
    labels = pair.bob.json("show", task)["task"]["spec"]["labels"]
    assert labels["kind"] == "report"
    assert "customer" not in labels


def test_why_tells_the_chain_on_either_side(pair: Pair, done: str) -> None:
    """Of the task that the work began with, too."""
    uid = pair.alice.json("delegation", "show", done)["delegation"]["task_uid"]
    told = pair.alice.ok("why", f"instances/global/tasks/{uid.rpartition('/')[2]}").out
    assert "Between Hoppers" in told
    assert "bob has done it" in told
    task = pair.bob.json("delegation", "show", done)["delegation"]["task"]
    (crossed,) = pair.bob.json("why", task)["hand_overs"]
    assert [link["kind"] for link in crossed["custody"]] == ["task", "hop", "result"]


def test_why_says_nothing_of_it_where_nothing_crossed(hopper: Terminal, task: str) -> None:
    assert "Between Hoppers" not in hopper.ok("why", task).out
    assert hopper.json("why", task)["hand_overs"] == []


def test_who_has_done_it_is_told_how_well(pair: Pair, done: str) -> None:
    """Unless the policy keeps it here, which does not keep memory from noting it."""
    uid = pair.alice.json("delegation", "show", done)["delegation"]["task_uid"]
    said = ("feedback", f"instances/global/tasks/{uid.rpartition('/')[2]}", "--good", "-m", "well done")
    assert "and told bob" in pair.alice.ok(*said).out
    kept = POLICY.replace('"labels.customer"', '"labels.customer", "feedback"')
    pair.alice.ok("peer", "trust", "bob", "--policy", "-", stdin=kept)
    try:
        ran = pair.alice.ok(*said)
        assert "noted for the decision in force" in ran.out
        assert "keeps feedback here (CAPABILITY_DENIED)" in ran.err
        document = pair.alice.json(*said)
        assert (document["told"], document["not_told"]) == ("", "CAPABILITY_DENIED")
    finally:
        pair.alice.ok("peer", "trust", "bob", "--policy", "-", stdin=POLICY)


def test_every_signature_is_verified_again(pair: Pair, done: str) -> None:
    for who, peer in ((pair.alice, "bob"), (pair.bob, "alice")):
        assert "signatures verified" in who.ok("peer", "audit", peer).out
        found = who.json("peer", "audit")
        assert found["verified"] >= 3
        assert (found["claimed"], found["refused"]) == (0, [])


def test_an_audit_finds_what_somebody_has_changed_in_the_database(pair: Pair, done: str) -> None:
    def set_epoch(epoch: int) -> None:
        with closing(sqlite3.connect(pair.alice.data_dir / "federation.db", timeout=30)) as db:
            db.execute("UPDATE delegations SET epoch = ? WHERE id LIKE ?", (epoch, f"%{done}"))
            db.commit()

    set_epoch(7)
    try:
        ran = pair.alice("peer", "audit", "bob")
        assert ran.code == 1
        assert "another hand-over is kept under this name" in ran.out
        assert "1 hand-over does not hold" in ran.out
        refused = pair.alice("peer", "audit", "--json").json["refused"]
        assert [each["delegation"]["id"][-6:] for each in refused] == [done]
    finally:
        set_epoch(1)


def test_what_waits_for_a_person_is_taken_or_not(pair: Pair) -> None:
    wanted = pair.handed_over("review", "--description", "all ten pages")
    unwanted = pair.handed_over("review")
    for each in (wanted, unwanted):
        pair.at(pair.at_bob, each, "QUARANTINED")
        assert each in pair.bob.ok("delegation", "list", "--waiting").out
        assert f"hopper delegation accept {each}" in pair.bob.ok("delegation", "show", each).err
        assert each in [offer for offer, _ in offered(pair.bob, complete.waiting_hand_overs)]
    assert "all ten pages" in pair.bob.ok("delegation", "show", wanted).out
    said = {check["name"]: check for check in pair.bob.json("doctor")["checks"]}["hand-overs"]
    assert (said["status"], said["detail"]) == ("warn", "2 wait for you")
    pair.at(pair.at_alice, wanted, "QUARANTINED")
    assert "bob's owner has to accept it there" in pair.alice.ok("delegation", "show", wanted).err
    assert "`hopper delegation cancel" in pair.alice.ok("why", child_of(pair.alice, wanted)).out
    assert "accepted" in pair.bob.ok("delegation", "accept", wanted).out
    assert "rejected" in pair.bob.ok("delegation", "discard", unwanted, "-m", "not our trade").out
    assert pair.bob.ok("delegation", "list", "--waiting").err.strip() == "nothing waits for you"
    pair.at(pair.at_alice, wanted, "ACCEPTED")
    assert pair.at(pair.at_alice, unwanted, "REJECTED").detail == "not our trade"
    again = pair.bob("delegation", "accept", unwanted, "--json")
    assert (again.code, again.error["reason"]) == (1, "DELEGATION_WRONG_STATE")
    assert "--waiting" in again.error["remedy"]
    pair.alice.ok("delegation", "cancel", wanted)


def test_what_came_back_is_sent_there_again_by_hand(pair: Pair) -> None:
    """`why` says how."""
    hand_over = pair.handed_over("review")
    pair.at(pair.at_bob, hand_over, "QUARANTINED")
    pair.bob.ok("delegation", "discard", hand_over)
    uid = pair.alice.json("delegation", "show", hand_over)["delegation"]["task_uid"]
    task = f"instances/global/tasks/{uid.rpartition('/')[2]}"
    typed = f"hopper delegate {task[-6:]} --to peer-bob"
    told = eventually(lambda: pair.alice.ok("why", task).out, lambda out: typed in out)
    assert typed in told
    pair.alice.ok(*typed.split()[1:])
    listed = eventually(
        lambda: pair.alice.json("delegation", "list")["delegations"],
        lambda found: len([each for each in found if each["task_uid"] == uid]) == 2,
    )
    assert {each["epoch"] for each in listed if each["task_uid"] == uid} == {"1", "2"}
    pair.alice.ok("cancel", task)


def test_what_is_called_off_is_stopped_there(pair: Pair) -> None:
    hand_over = pair.handed_over("translate")
    pair.at(pair.at_bob, hand_over, "ACCEPTED")
    assert f"{hand_over} to bob" in pair.alice.ok("delegation", "cancel", hand_over, "-m", "by hand").out
    pair.at(pair.at_alice, hand_over, "CANCELLED")
    pair.at(pair.at_bob, hand_over, "CANCELLED")
    assert pair.alice("delegation", "cancel", hand_over).code == 1


def test_a_list_is_narrowed_by_state(pair: Pair, done: str) -> None:
    completed = pair.alice.json("delegation", "list", "--state", "completed")["delegations"]
    assert done in [each["id"][-6:] for each in completed]
    assert done not in pair.alice.ok("delegation", "list", "--state", "suspect").out
    assert len(pair.alice.json("delegation", "list", "--limit", "1")["delegations"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "zzzzzz"), "none of the hand-overs ends in 'zzzzzz'"),
        (("list", "--state", "happy"), "'happy' is no state of a hand-over"),
    ],
)
def test_what_was_mistyped_is_named(pair: Pair, arguments: tuple[str, ...], said: str) -> None:
    ran = pair.alice("delegation", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_what_is_not_there_is_not_found(pair: Pair) -> None:
    assert pair.alice("delegation", "show", "0" * 26).code == 3
    assert pair.alice("delegation", "list", "--peer", "nobody").code == 3


def test_how_a_peer_is_says_what_lies_between(pair: Pair, done: str) -> None:
    status = pair.alice.json("peer", "status", "bob")["status"]
    assert status["last_reached"]
    assert all(title in pair.alice.ok("peer", "status").out for title in ("OUT", "IN", "OUTBOX", "SLOTS"))


def child_of(who: Terminal, hand_over: str) -> str:
    """The task here of a hand-over."""
    return str(who.json("delegation", "show", hand_over)["delegation"]["task"])


def offered(
    who: Terminal, completion: Callable[[typer.Context, str], list[complete.Offer]]
) -> list[complete.Offer]:
    """What the shell offers."""
    context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)))
    context.params["_address"] = f"unix:{who.data_dir}/hopper.sock"
    return completion(context, "")


def test_states_are_completed() -> None:
    assert "quarantined" in states()
    assert "unspecified" not in states()
