"""Recurring and parked tasks, as a person at a terminal meets them."""

import os
import uuid
from pathlib import Path

import pytest

from hopper_cli import inputs
from tests.cli.conftest import Terminal, add
from tests.cli.test_answers import offered


def new_id() -> str:
    return f"s{uuid.uuid4().hex[:8]}"


def test_from_add_to_rm(hopper: Terminal, project: str) -> None:
    """A schedule is made, looked at, run, paused, resumed and removed."""
    name = new_id()
    added = hopper.ok(
        "schedule", "add", "tidy up", "--id", name, "--cron", "0 3 1 6 *", "--zone", "Europe/Berlin", "-p", project,
        "--overlap", "3", "--catch-up", "none", "--jitter", "5m", "--within", "2h", "-d", "all of it",
    ).out  # fmt: skip
    first, *times = added.splitlines()
    assert first == f"{name} comes"
    assert len(times) == 5
    assert all("(in " in time for time in times)

    listed = hopper.ok("schedule", "list", "--limit", "1000").out
    (line,) = [line for line in listed.splitlines() if line.startswith(name)]
    assert "active" in line
    assert "0 3 1 6 *" in line

    short = hopper.ok("schedule", "run", name).out.split()[0]
    assert project in hopper.ok("show", short).out
    shown = hopper.ok("schedule", "show", name).out
    for part in (
        "tidy up",
        "Europe/Berlin",
        "until 3 are open",
        "5 min",
        "1 submitted",
        "all of it",
        short,
        "by hand",
    ):
        assert part in shown
    assert all(time.partition("(in ")[0].strip() in shown for time in times)  # it is nearer by now

    assert "stands still" in hopper.ok("schedule", "pause", name, "-m", "holidays").out
    paused = hopper.ok("schedule", "show", name).out
    assert "paused  holidays" in paused
    assert "would come" in paused
    assert len(hopper.ok("schedule", "resume", name).out.splitlines()) == 6

    assert "is gone" in hopper.ok("schedule", "rm", name).out
    gone = hopper("schedule", "show", name)
    assert (gone.code, "hopper schedule list" in gone.err) == (3, True)


def test_scripts_get_the_contract(hopper: Terminal, project: str) -> None:
    name = new_id()
    made = hopper.json(
        "schedule", "add", "x", "--id", name, "--cron", "@daily", "-p", project, "--zone", "UTC"
    )
    assert made["schedule"]["name"] == f"schedules/{name}"
    assert len(made["schedule"]["next_times"]) == 5
    assert hopper.json("schedule", "show", f"schedules/{name}") == made
    assert name in {each["name"][10:] for each in hopper.json("schedule", "list", "-n", "1000")["schedules"]}
    ran = hopper.json("schedule", "run", name)
    assert ran["task"]["spec"]["labels"]["hopper.schedule"] == name
    assert hopper.json("schedule", "pause", name)["schedule"]["state"] == "STATE_PAUSED"
    assert hopper.json("schedule", "resume", name)["schedule"]["state"] == "STATE_ACTIVE"
    assert hopper.json("schedule", "rm", name) == {}


def test_a_dry_run_makes_nothing(hopper: Terminal) -> None:
    name = new_id()
    told = hopper.ok("schedule", "add", "x", "--id", name, "--cron", "0 9 L * *", "--dry-run").out
    assert told.startswith("would come\n")
    assert len(told.splitlines()) == 6
    assert hopper("schedule", "show", name).code == 3


def test_what_is_no_cron_expression_is_told(hopper: Terminal) -> None:
    refused = hopper("schedule", "add", "x", "--cron", "61 * * * *")
    assert (refused.code, "bad minute" in refused.err) == (2, True)
    twice = new_id()
    hopper.ok("schedule", "add", "x", "--cron", "@daily", "--id", twice)
    taken = hopper("schedule", "add", "x", "--cron", "@daily", "--id", twice, "--json")
    assert (taken.code, taken.error["reason"]) == (1, "SCHEDULE_EXISTS")


@pytest.mark.parametrize(
    ("tz", "zone"),
    [
        ("Europe/Paris", "Europe/Paris"),
        (":America/New_York", "America/New_York"),
        ("/etc/localtime", None),
        ("", None),
    ],
)
def test_the_zone_is_that_of_whoever_types(
    monkeypatch: pytest.MonkeyPatch, tz: str, zone: str | None
) -> None:
    monkeypatch.setenv("TZ", tz)
    linked = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    expected = zone or (linked if "/" in linked else "UTC")
    assert inputs.local_zone() == expected
    assert expected == "UTC" or Path("/usr/share/zoneinfo", expected).exists()


def park(hopper: Terminal, project: str, reason: str) -> str:
    """A task that failed for good; returns its short id."""
    short = add(hopper, project, "--retry", "0")
    hopper.ok("next", "--queue", project, "--task", short)
    hopper.ok("fail", short, "--reason", reason, "-m", "sold out")
    return short


def test_parked_tasks_are_listed_shown_and_tried_again(hopper: Terminal, project: str) -> None:
    """With the reason, and the attempts that failed."""
    wood, nails = park(hopper, project, "NO_WOOD"), park(hopper, project, "NO_NAILS")
    listed = hopper.ok("parked", "--project", project).out
    assert all(part in listed for part in (wood, nails, "NO_WOOD", "NO_NAILS", "sold out", "failed"))
    only = hopper.json("parked", "--project", project, "--reason", "NO_WOOD")
    assert [task["name"][-6:] for task in only["tasks"]] == [wood]
    cut = hopper("parked", "--project", project, "--limit", "1")
    assert (nails in cut.out, wood in cut.out, "there are more" in cut.err) == (True, False, True)

    shown = hopper.ok("show", wood).out
    assert "ATTEMPT" in shown
    assert "NO_WOOD" in shown
    (attempt,) = hopper.json("show", wood)["attempts"]
    assert (attempt["attempt"], attempt["failure"]["reason"]) == (1, "NO_WOOD")

    assert f"{wood}  queued, {project}" in hopper.ok("replay", wood).out
    again = hopper("replay", wood, nails)
    assert again.code == 1
    assert f"{nails}  queued" in again.out
    assert hopper.ok("parked", "--project", project).out == ""


def test_all_that_failed_for_a_reason_are_tried_again(hopper: Terminal, project: str) -> None:
    shorts = [park(hopper, project, "NO_GLUE") for _ in range(2)]
    told = hopper.json("replay", "--reason", "NO_GLUE", "--project", project)
    assert [result["name"][-6:] for result in told["results"]] == shorts
    assert "no task is parked" in hopper("replay", "--reason", "NO_GLUE", "--project", project).err


def test_a_task_without_a_failed_attempt_shows_none(hopper: Terminal, task: str) -> None:
    assert "ATTEMPT" not in hopper.ok("show", task).out
    assert hopper.json("show", task)["attempts"] == []


@pytest.mark.parametrize(
    ("words", "kind"), [("hopper schedule show ", "schedule"), ("hopper replay ", "parked")]
)
def test_the_shell_offers_them(hopper: Terminal, project: str, words: str, kind: str) -> None:
    if kind == "schedule":
        wanted = new_id()
        hopper.ok("schedule", "add", "tidy up", "--id", wanted, "--cron", "@daily")
    else:
        wanted = park(hopper, project, "NO_WOOD")
    assert offered(hopper, words, wanted)
