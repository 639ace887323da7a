"""`hopper up`, `hopper doctor` and `hopper demo`."""

import json
import os
import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hopper_cli import checkup
from hopper_cli.demo.data import path_of
from hopper_testing.processes import HopperProcess
from tests.cli.conftest import PATIENCE, Terminal


def checks(ran: dict[str, Any]) -> dict[str, str]:
    """What each check of a doctor said."""
    return {check["name"]: check["status"] for check in ran["checks"]}


def test_it_says_how_to_go_on_and_stops_when_asked(alone: Terminal) -> None:
    """Ctrl-C is how it is meant to end."""
    with alone.started("up", "--listen", "127.0.0.1:0") as up:
        assert up.stdout is not None
        seen = ""
        while "Ctrl-C" not in seen:
            line = up.stdout.readline()
            assert line, f"it ended: {seen}"
            seen += line
        assert str(alone.data_dir / "hopper.sock") in seen
        assert "hopper add" in seen
        port = next(word for word in seen.split() if word.startswith("127.0.0.1:"))
        refused = alone("list", "--address", port)
        assert "HOPPER_API_KEY" in refused.err
        key = json.loads(alone("auth", "init", "--json").out)["secret"]
        assert alone("list", "--address", port, HOPPER_API_KEY=key).code == 0
        second = alone("up")
        assert second.code == 3
        assert "runs on" in second.err
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=PATIENCE) == 0
    assert alone("list").code == 4


def test_it_refuses_what_it_cannot_do(alone: Terminal) -> None:
    """With the exit codes of its own table."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = alone("up", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert refused.code == 4
    assert "is taken" in refused.err
    assert alone("up", HOPPER_LOG_LEVEL="loud").code == 2


def test_the_doctor_works_when_nothing_runs(alone: Terminal) -> None:
    """What has to be mended first is that nobody answers."""
    ran = alone("doctor", "--json")
    assert ran.code == 1
    said = checks(ran.json)
    assert (said["socket"], said["Hopper"], said["versions"], said["clock"]) == ("fail", "fail", "ok", "ok")
    assert not ran.json["ok"]
    assert "hopper up" in alone("doctor").out


def test_the_doctor_finds_a_fresh_machine_fresh(alone: Terminal, tmp_path: Path) -> None:
    """A data directory that is not there yet is no failure of its own."""
    fresh = Terminal(tmp_path / "none")
    assert checks(fresh("doctor", "--json").json)["data directory"] == "warn"
    assert not (tmp_path / "none").exists()


def test_the_doctor_looks_at_everything(hopper: Terminal, project: str) -> None:
    """All is well with a Hopper that runs; what others have left in it is not looked at here."""
    ran = hopper("doctor", "--json")
    assert ran.code == 0, ran.out
    said = checks(ran.json)
    assert set(said) >= {
        "registry",
        "router",
        "memory",
        "directory",
        "projects",
        "instances",
        "learning",
        "router.db",
    }
    left_over = {"tasks", "peers", "hand-overs"}
    assert left_over < set(said)
    assert {status for name, status in said.items() if name not in left_over} == {"ok"}


def test_the_doctor_names_what_nobody_can_take(hopper: Terminal, project: str) -> None:
    """With the command that says why; and that says what to do."""
    task = hopper.json("add", "something odd", "--needs", "alchemy")["task"]["name"][-6:]
    said = {check["name"]: check for check in hopper.json("doctor")["checks"]}["tasks"]
    assert said["status"] == "warn"
    assert task in said["detail"]
    assert "hopper why" in said["remedy"]
    hopper.ok("cancel", task)


def test_the_doctor_finds_what_is_wrong(alone: Terminal) -> None:
    """Each with its remedy."""
    directory = alone.data_dir
    (directory / "router.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    sqlite3.connect(directory / "memory.db").execute("CREATE TABLE t (a)").connection.close()
    (directory / "hopper.sock").write_text("no socket")
    (directory / "claims.json").write_text("{")
    for name in ("router.db", "claims.json"):
        (directory / name).chmod(0o600)
    (directory / "memory.db").chmod(0o644)
    directory.chmod(0o777)
    ran = alone("doctor", "--json", HOPPER_LOG_LEVEL="loud")
    assert ran.code == 1
    wrong = {check["name"]: check for check in ran.json["checks"] if check["status"] == "fail"}
    assert set(wrong) == {
        "settings",
        "data directory",
        "socket",
        "Hopper",
        "router.db",
        "memory.db",
        "claims",
    }
    assert all(check["remedy"] for check in wrong.values())
    assert "chmod 700" in wrong["data directory"]["remedy"]


def test_the_doctor_finds_a_changed_audit_log(
    short_dir: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it looks at all of it or at its end; a change before that end is for `hopper audit verify` to find."""
    terminal = Terminal(short_dir() / "data", quick=True)

    def audit() -> tuple[str, str]:
        said = {check["name"]: check for check in terminal("doctor", "--json").json["checks"]}
        return said["audit"]["status"], f"{said['audit']['detail']} {said['audit']['remedy']}"

    with HopperProcess(terminal.data_dir):
        for count in range(6):
            terminal.ok("project", "add", f"p{count}")
        status, detail = audit()
        assert (status, "newest" in detail) == ("ok", False), detail
        newest = int(terminal.json("audit", "list", "--limit", "1")["records"][0]["sequence"])
        monkeypatch.setattr(checkup, "_MOST_RECORDS", newest - 2)
        tamper(terminal.data_dir / "audit.db", 2)
        status, detail = audit()
        assert (status, f"intact: {newest - 2} records of" in detail) == ("ok", True), detail
        tamper(terminal.data_dir / "audit.db", newest)
        status, detail = audit()
        assert (status, f"record {newest}: " in detail, "move" in detail) == ("fail", True, True), detail
        monkeypatch.setattr(checkup, "_MOST_RECORDS", 10_000)
        status, detail = audit()
        assert (status, "record 2: " in detail) == ("fail", True), detail


def tamper(database: Path, sequence: int) -> None:
    """Change a record as somebody would who may write the file."""
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("UPDATE audit_records SET principal = 'mallory' WHERE sequence = ?", (sequence,))


def test_the_doctor_says_what_was_restored(alone: Terminal) -> None:
    """As the federation service has noted it beside its database."""
    terminal = replace(alone, quick=True)

    def restored(content: str) -> tuple[str, str]:
        (alone.data_dir / "federation.mark").write_text(content)
        said = {check["name"]: check for check in terminal("doctor", "--json").json["checks"]}
        return said["restored"]["status"], said["restored"]["detail"]

    mark = {"incarnation": 5, "tick": 1, "restored": "", "unsynced": ["peers/new"]}
    assert restored(json.dumps(mark))[0] == "ok"
    mark["restored"] = "the database is an earlier one"
    status, detail = restored(json.dumps(mark))
    assert (status, "earlier" in detail, "peers/new" in detail) == ("warn", True, True)
    mark["unsynced"] = []
    assert restored(json.dumps(mark))[0] == "ok"
    assert restored("{")[0] == "warn"


def test_the_doctor_sees_a_clock_that_went_back(alone: Terminal) -> None:
    """What Hopper has stored cannot be younger than now."""
    path = alone.data_dir / "router.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    path.chmod(0o600)
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))
    said = {check["name"]: check for check in alone("doctor", "--json").json["checks"]}
    assert said["clock"]["status"] == "fail"
    assert said["router.db"]["status"] == "ok"


def test_the_demo_from_end_to_end(alone: Terminal) -> None:
    """Sixty tasks: all of them done, judged and joined; nothing is left behind."""
    scratch = alone.data_dir / "t"  # short, because the path of a Unix socket is
    scratch.mkdir(parents=True)
    sample = str(path_of("sample.jsonl"))
    ran = alone("demo", "--tasks", "60", "--data", sample, "--json", TMPDIR=str(scratch))
    assert ran.code == 0, ran.err + ran.out
    made = ran.json
    assert made["ok"]
    assert made["failures"] == {}
    assert made["tasks"] == sum(each["tasks"] for each in made["projects"]) == 60
    assert made["right"] == sum(each["right"] for each in made["projects"])
    assert made["joined"] == made["decisions"] >= 60
    assert made["accuracy"] > made["majority_accuracy"] > 0
    assert [step["learned"] for step in made["curve"]] == [False] * 4 + [True] * 4
    assert made["learned_accuracy"] > made["majority_accuracy"]
    assert int(made["memory"]["judged"]) >= 60
    assert len(made["examples"]) == 3
    assert all(example["sentences"] for example in made["examples"])
    for measured in made["latencies"].values():
        assert measured["count"] >= 60
        assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    assert list(scratch.iterdir()) == []


def test_the_demo_tells_people_everything(alone: Terminal) -> None:
    """Plain lines where there is no terminal: progress beside the answer, not in it."""
    ran = alone.ok("demo", "-n", "15", "--data", str(path_of("sample.jsonl")))
    for words in (
        "What went where",
        "to the right team",
        "How it learned",
        "Three decisions",
        "P50",
        "15/15",
        "hopper up",
    ):
        assert words in ran.out
    assert "15 joined" in ran.err


def test_an_interrupted_demo_cleans_up(alone: Terminal) -> None:
    """Its own Hopper and its directory, and nobody else's."""
    with alone.started("demo", "--tasks", "5000", "--data", str(path_of("sample.jsonl"))) as demo:
        assert demo.stderr is not None
        line = ""
        while "it listens on" not in line:
            line = demo.stderr.readline()
            assert line
        directory = Path(line.split("unix:")[1].split("/hopper.sock")[0])
        assert directory.is_dir()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=PATIENCE) == 130
        assert "Traceback" not in demo.stderr.read()
    assert not directory.exists()


def test_a_demo_that_cannot_start_says_why(alone: Terminal, tmp_path: Path) -> None:
    """The end of the log of its Hopper, and exit code 1."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'up' in sys.argv:\n    sys.stderr.write('no room on the disk')\n    sys.exit(1)\n"
    )
    ran = alone("demo", "-n", "5", "--json", PYTHONPATH=str(tmp_path))
    assert ran.code == 1
    assert json.loads(ran.err.splitlines()[-1])["error"]["reason"] == "DEMO_NOT_STARTED"
    assert "no room on the disk" in ran.err
