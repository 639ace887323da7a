"""Projects, instances, rules, hand-overs."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

from hopper_cli.demo.data import path_of
from hopper_common.working_hours import DAYS
from tests.cli.conftest import Terminal, add

POLICY = """\
strategy: rules
rules:
  - name: one
    when: {{keyword: [{word}]}}
    then: {{project: {project}, weight: 5}}
"""


def test_a_project_from_birth_to_end(hopper: Terminal) -> None:
    """Added, changed, paused, resumed, removed."""
    name = f"q{uuid.uuid4().hex[:8]}"
    made = hopper.json(
        *(
            "project",
            "add",
            name,
            "--name",
            "Quality",
            "-d",
            "-",
            "--can",
            "java",
            "--tag",
            "x",
            "--label",
            "a=b",
        ),
        *("--example", "Fix it", "--boost", "x=1.5", "--velocity", "3", "--sla", "2d", "--max-running", "4"),
        *("--max-per-key", "2", "--start-rate", "10/s", "--start-rate-per-key", "5/1m30s"),
        *("--hours", "mon-sun 00:00-24:00 Asia/Tokyo"),
        *("--max-open", "9", "--cost", "0.5", "--executor", "agent", "--requires-live-worker"),
        stdin="checks things",
    )["project"]
    assert made["description"] == "checks things"
    assert made["capacity"] == {
        "max_running": 4,
        "max_open": 9,
        "max_running_per_key": 2,
        "start_rate": {"count": 10, "period": "1s"},
        "start_rate_per_key": {"count": 5, "period": "90s"},
    }
    shown = hopper.ok("project", "show", name).out
    assert "5 in 1 min 30 s" in shown
    assert "mon-sun 00:00-24:00 Asia/Tokyo, now too" in shown
    assert made["working_hours"]["time_zone"] == "Asia/Tokyo"
    assert len(made["working_hours"]["stretches"]) == 7
    assert made["executor"]["type"] == "TYPE_AGENT"
    assert made["sla"] == "172800s"
    changed = hopper.json(
        *("project", "edit", name, "--can", "sql", "--cannot", "java", "--max-open", "0"),
        *("--max-per-key", "0", "--start-rate", "none", "--hours", "none"),
    )["project"]
    assert changed["capabilities"] == ["sql"]
    assert changed["capacity"] == {
        "max_running": 4,
        "max_open": 0,
        "max_running_per_key": 0,
        "start_rate_per_key": {"count": 5, "period": "90s"},
    }
    assert not changed.get("working_hours")
    assert "10/s" in hopper("project", "edit", name, "--start-rate", "often").err
    assert "days and hours" in hopper("project", "edit", name, "--hours", "often").err
    assert "working_hours.time_zone" in hopper("project", "edit", name, "--hours", "mon 9-17 Mars/Base").err
    in_three_days = DAYS[(datetime.now(UTC).weekday() + 3) % 7]
    hopper.ok("project", "edit", name, "--hours", f"{in_three_days} 09:00-17:00 UTC")
    assert f"{in_three_days} 09:00-17:00 UTC, opens in " in hopper.ok("project", "show", name).out
    assert changed["tags"] == ["x"]
    assert hopper.json("project", "pause", name)["project"]["state"] == "STATE_PAUSED"
    assert hopper.json("project", "resume", name)["project"]["state"] == "STATE_ACTIVE"
    shown = hopper.ok("project", "show", name).out
    assert "Quality" in shown
    assert "sql" in shown
    assert name in hopper.ok("project", "list", "--can", "sql").out
    assert hopper.json("project", "workers", name) == {"workers": [], "next_page_token": ""}
    assert "--yes" in hopper("project", "remove", name).err
    hopper.ok("project", "remove", name, "--yes")
    assert hopper("project", "show", name).code == 3


def test_a_file_of_projects(hopper: Terminal, tmp_path: Path) -> None:
    """All of them, each said."""
    names = [f"f{uuid.uuid4().hex[:8]}" for _ in range(2)]
    file = tmp_path / "projects.yaml"
    file.write_text("".join(f"- {{id: {name}, capabilities: [x]}}\n" for name in names))
    assert hopper.ok("project", "add", "--file", str(file)).out == "".join(
        f"{name} added\n" for name in names
    )
    again = hopper("project", "add", "--file", str(file), "--json")
    assert again.code == 1
    assert again.error["reason"] == "PROJECT_EXISTS"


def test_instances_and_hand_overs(hopper: Terminal, project: str) -> None:
    """A project's instance, a run under it, and a task that goes down, is split, and comes back."""
    run = f"run-{project}"
    hopper.ok("instance", "create", project, "--scope", "project", "--project", project, "--start")
    hopper.ok(
        "instance", "create", run, "--scope", "orchestration", "--parent", project, "--max-workers", "2"
    )
    assert hopper.json("instance", "start", run)["instance"]["state"] == "STATE_RUNNING"
    tree = hopper.ok("instance", "tree").out
    assert tree.index(project) < tree.index(run)
    assert (
        hopper.json("instance", "edit", run, "--max-workers", "3")["instance"]["config"]["max_workers"] == 3
    )
    assert [each["name"] for each in hopper.json("instance", "list", "--parent", project)["instances"]] == [
        f"instances/{run}"
    ]

    here = hopper.json("add", "build it", "--instance", project)["task"]["name"]
    handed = hopper.json("delegate", here, "--to", run, "--reason", "complex")
    assert handed["delegation"]["kind"] == "KIND_ROUTE"
    assert handed["task"]["state"] == "STATE_DELEGATED"
    (child,) = handed["delegation"]["child_tasks"]
    chain = hopper.json("delegations", child)["delegations"]
    assert [each["to_instance"] for each in chain] == [f"instances/{run}"]
    assert f"{project} → {run}" in hopper.ok("delegations", here).out
    assert "Handed over" in hopper.ok("why", here).out
    returned = hopper.json("escalate", child, "-m", "too big")
    assert returned["delegation"]["state"] == "STATE_RETURNED"
    hopper.ok("cancel", here)

    whole = hopper.json("add", "ship it", "--instance", project)["task"]["name"]
    parts = "- {id: a, title: design}\n- {title: build, after: a}\n"
    split = hopper.json("decompose", whole, "--file", "-", stdin=parts)["delegation"]
    assert len(split["child_tasks"]) == 2
    for _ in range(2):
        taken = hopper.json("next", "-q", f"instances/{project}")["tasks"][0]["name"]
        assert taken in split["child_tasks"]
        hopper.ok("done", taken)
    assert hopper.json("show", whole)["task"]["state"] == "STATE_SUCCEEDED"

    hopper.ok("instance", "stop", project)
    assert hopper("instance", "terminate", project).code == 2


def test_an_offer_is_accepted_or_rejected_by_hand(hopper: Terminal, project: str) -> None:
    """By the task it brought, because that is what people see in their list."""
    run = f"run-{project}"
    hopper.ok("instance", "create", project, "--scope", "project", "--project", project, "--start")
    hopper.ok(
        "instance",
        "create",
        run,
        "--scope",
        "orchestration",
        "--parent",
        project,
        "--manual-accept",
        "--start",
    )
    for verb, state in (("accept", "STATE_ACCEPTED"), ("reject", "STATE_RETURNED")):
        task = hopper.json("add", "build it", "--instance", project)["task"]["name"]
        (child,) = hopper.json("delegate", task, "--to", run)["delegation"]["child_tasks"]
        assert hopper.json(verb, child[-6:])["delegation"]["state"] == state
    assert hopper("accept", add(hopper, project)).code == 1


def test_rules_are_checked_line_by_line(hopper: Terminal, tmp_path: Path) -> None:
    """As compilers do: editors jump to file:line:column."""
    file = tmp_path / "rules.yaml"
    file.write_text(
        "strategy: rules\nrules:\n  - name: one\n    when: {keywrod: [x]}\n    then: {project: p}\n"
    )
    ran = hopper("rules", "check", str(file))
    assert ran.code == 1
    assert ran.out.startswith(f"{file}:4:")
    assert "keywrod" in ran.out
    applied = hopper("rules", "apply", str(file))
    assert applied.code == 1
    assert applied.out.startswith(f"{file}:4:")
    told = hopper("rules", "apply", str(file), "--json")
    assert (told.code, told.error["reason"]) == (1, "POLICY_INVALID")
    good = hopper.ok("rules", "check", str(path_of("rules.yaml")))
    assert "41 rules" in good.out


def test_rules_of_an_instance(hopper: Terminal, project: str) -> None:
    """Tried on what was decided, switched on, shown, taken away; the root's are another matter."""
    source = POLICY.format(word="fence", project=project)
    hopper.ok("instance", "create", project, "--scope", "project", "--project", project, "--start")
    replayed = hopper.json("rules", "replay", "-", "--instance", "global", stdin=source)
    assert replayed["changed"] <= replayed["replayed"]
    applied = hopper.json("rules", "apply", "-", "--instance", project, stdin=source)["policy"]
    assert applied["rule_count"] == 1
    assert hopper.ok("rules", "show", "--instance", project).out == source
    hopper.ok("rules", "remove", "--instance", project)
    assert hopper.json("rules", "show", "--instance", project)["policy"]["name"] != applied["name"]
