"""`hopper add` where the policy looks out for duplicates."""

import json
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Terminal

PATIENCE = 60


@pytest.fixture
def desk(hopper: Terminal) -> Iterator[str]:
    """An instance of this test's own, by id."""
    name = f"i{uuid.uuid4().hex[:8]}"
    hopper.ok("instance", "create", name, "--scope", "personal", "--member", "tester", "--start")
    yield name
    hopper.ok("rules", "remove", "--instance", name)


def look_out(hopper: Terminal, desk: str, kind: str) -> str:
    """Set the policy; returns the short id of a task that is found by now."""
    hopper.ok("rules", "apply", "-", "--instance", desk, stdin=f"duplicates: {kind}\n")
    first = hopper.json("add", "Refund invoice 1001 for ACME", "-i", desk)["task"]["name"]
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:  # until the router has read what is open
        found = hopper("add", "refund Invoice 1001 for acme", "-i", desk, "--json")
        if found.code:
            return str(first[-6:])
        if found.json.get("duplicates"):
            hopper.ok("cancel", found.json["task"]["name"])
            return str(first[-6:])
        hopper.ok("cancel", found.json["task"]["name"])
    raise AssertionError("nothing was found")


def test_a_task_that_looks_like_another_is_told(hopper: Terminal, desk: str) -> None:
    first = look_out(hopper, desk, "link")
    ran = hopper.ok("add", "Refund the invoice 1001 for ACME", "-i", desk)
    head, line = ran.out.splitlines()
    assert "→" in head
    assert line.startswith(f"  looks like {first} (queued, 100% alike: ")
    assert {"1001", "invoice", "acme"} <= set(line.rstrip(")").split("alike: ")[1].split(", "))
    shown = hopper.json("list", "--instance", desk)["tasks"]
    links = [task["spec"]["labels"].get("duplicate-of", "")[-6:] for task in shown]  # the newest first
    assert links == [first, ""]
    assert len(hopper.ok("add", "Write the annual report", "-i", desk).out.splitlines()) == 1


def test_a_refusal_names_the_task_and_the_remedy(hopper: Terminal, desk: str) -> None:
    first = look_out(hopper, desk, "refuse")
    ran = hopper("add", "refund invoice 1001 for acme", "-i", desk, "--json")
    assert (ran.code, ran.error["reason"]) == (1, "DUPLICATE_TASK")
    assert ran.error["metadata"]["task"].endswith(first)
    assert "--allow-duplicate" in ran.error["remedy"]
    allowed = hopper.json("add", "refund invoice 1001 for acme", "-i", desk, "--allow-duplicate")
    (found,) = allowed["duplicates"]
    assert found["task"].endswith(first)


def test_a_file_is_compared_with_itself(hopper: Terminal, desk: str) -> None:
    first = look_out(hopper, desk, "refuse")
    titles = ["Refund invoice 1001 for ACME", "Send the newsletter", "send the newsletter!"]
    lines = "".join(json.dumps(title) + "\n" for title in titles)
    ran = hopper("add", "--file", "-", "-i", desk, "--json", stdin=lines)
    assert [next(iter(line)) for line in ran.lines] == ["error", "task", "error"]
    allowed = hopper.ok("add", "--file", "-", "-i", desk, "--allow-duplicate", stdin=lines)
    assert allowed.out.count("looks like") == 4
    assert f"looks like {first}" in allowed.out


def test_the_sdk_allows_too(hopper: Terminal, desk: str) -> None:
    from hopper_client import Hopper
    from hopper_common.errors import WrongState

    look_out(hopper, desk, "refuse")
    title, instance = "Refund invoice 1001 for ACME", f"instances/{desk}"
    with Hopper(f"unix:{hopper.data_dir}/hopper.sock") as client:
        with pytest.raises(WrongState) as refused:
            client.submit(title, instance=instance)
        assert refused.value.reason == "DUPLICATE_TASK"
        assert client.submit(title, instance=instance, allow_duplicate=True).duplicates


def test_a_dry_run_tells_too_and_adds_nothing(hopper: Terminal, desk: str) -> None:
    first = look_out(hopper, desk, "warn")
    tried = hopper.ok("add", "refund Invoice 1001 for acme", "-i", desk, "--dry-run").out
    assert f"looks like {first} (queued, " in tried
    told = hopper.json("add", "refund Invoice 1001 for acme", "-i", desk, "--dry-run")["duplicates"]
    assert [each["task"][-6:] for each in told] == [first]
    assert hopper.json("add", "paint the shed", "-i", desk, "--dry-run")["duplicates"] == []
    assert len(hopper.json("list", "-i", desk)["tasks"]) == 1
