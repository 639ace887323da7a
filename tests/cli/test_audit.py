"""The audit log, at a real Hopper and offline."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopper.common.v1.audit_service_pb2 import AuditRecord, ListAuditRecordsResponse
from hopper_cli import methods
from hopper_cli.problems import UsageProblem
from tests.cli.conftest import Terminal
from tests.cli.test_answers import complete, offered

CANARY = "canarytext7f3a"


@pytest.fixture
def exported(hopper: Terminal, tmp_path: Path) -> Path:
    """An export of three records and more."""
    hopper.ok("audit", "verify")  # which is recorded itself
    file = tmp_path / "audit.jsonl"
    file.write_text(hopper.ok("audit", "export").out)
    return file


def methods_of(found: Any) -> list[str]:
    return [record["method"] for record in found["records"]]


# list


def test_what_was_changed_is_listed_newest_first(hopper: Terminal, project: str) -> None:
    hopper.ok("project", "pause", project)
    found = hopper.json("audit", "list", "--principal", "owner", "--since", "5m")
    assert "/hopper.registry.v1.ProjectService/RegisterProject" in methods_of(found)
    sequences = [int(record["sequence"]) for record in found["records"]]
    assert sequences == sorted(sequences, reverse=True)
    text = hopper.ok("audit", "list").out
    assert "ProjectService/RegisterProject" in text
    assert "allowed" in text


def test_records_are_found_by_method_and_service(hopper: Terminal, project: str) -> None:
    for asked in (
        "RegisterProject",
        "ProjectService/RegisterProject",
        "/hopper.registry.v1.ProjectService/R",
    ):
        found = hopper.json("audit", "list", "--method", asked, "--limit", "2")
        assert set(methods_of(found)) == {"/hopper.registry.v1.ProjectService/RegisterProject"}
    found = hopper.json("audit", "list", "--method", "AuditLog", "--principal", "process")
    assert methods_of(found)[-1] == "/hopper.common.v1.AuditLog/Opened"


def test_there_are_more_than_are_asked_for(hopper: Terminal, exported: Path) -> None:
    assert len(hopper.json("audit", "list", "--limit", "2")["records"]) == 2
    assert "there are more: --limit 20" in hopper("audit", "list", "--limit", "2").err


def test_nothing_is_found_where_nothing_was(hopper: Terminal) -> None:
    ran = hopper.ok("audit", "list", "--refused", "--principal", "nobody")
    assert (ran.out, ran.err) == ("", "nothing was refused\n")
    assert hopper.json("audit", "list", "--until", "2020-01-01")["records"] == []


def test_no_text_of_a_task_is_in_it(hopper: Terminal, project: str) -> None:
    """Neither in what is shown, nor in what is kept."""
    payload = "--payload=-"
    hopper.ok(
        "add", f"{CANARY} title", "--description", f"{CANARY} description", "--tag", CANARY, "--label",
        f"{CANARY}={CANARY}", "--project", project, payload, stdin=CANARY,
    )  # fmt: skip
    hopper.ok("project", "edit", project, "--description", f"{CANARY} description")
    assert '"method":"/hopper.router.v1.TaskService/SubmitTask"' in (
        exported := hopper.ok("audit", "export").out
    )
    assert CANARY not in exported
    kept = [path for path in hopper.data_dir.glob("audit.db*") if CANARY.encode() in path.read_bytes()]
    assert kept == []
    assert (
        CANARY.encode()
        in (hopper.data_dir / "router.db-wal").read_bytes() + (hopper.data_dir / "router.db").read_bytes()
    )


def test_what_others_call_themselves_is_no_markup_and_no_escape(
    hopper: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from hopper_cli.cli import Cli, Shared
    from hopper_cli.commands.audit import _table

    record = AuditRecord(principal="[red]x\x1b[2J", method="/a.B/C", reason="[bold]", rule="\x1b]0;x\x07")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(_table(Cli(Shared()), ListAuditRecordsResponse(records=[record]).records))
    assert "[red]x" in captured.get()
    assert "\x1b[2J" not in captured.get()
    assert "\x07" not in captured.get()


# verify


def test_an_untouched_log_is_intact_and_gives_an_anchor(hopper: Terminal) -> None:
    ran = hopper.ok("audit", "verify")
    assert ran.out.startswith("intact: ")
    anchor = ran.out.partition("anchor  ")[2].strip()
    assert hopper.ok("audit", "verify", "--anchor", anchor).out.startswith("intact: ")
    sequence = anchor.partition(":")[0]
    wrong = hopper("audit", "verify", "--anchor", f"{sequence}:{'0' * 64}")
    assert wrong.code == 1
    assert f"broken at record {sequence}: it has another hash than was noted" in wrong.out
    assert hopper.json("audit", "verify")["intact"]


def test_an_anchor_that_is_none_is_a_wrong_command_line(alone: Terminal) -> None:
    ran = alone("audit", "verify", "--anchor", "7")
    assert ran.code == 2
    assert "SEQUENCE:HASH" in ran.err


def test_an_export_is_checked_without_a_hopper(alone: Terminal, exported: Path) -> None:
    lines = exported.read_text().splitlines(keepends=True)
    assert alone.ok("audit", "verify", "--file", str(exported)).out.startswith(
        f"intact: {len(lines)} records"
    )
    assert alone.ok("audit", "verify", "--file", "-", stdin="".join(lines[1:])).out.startswith("intact: ")


@pytest.mark.parametrize("what", ["changed", "removed", "moved", "cut off", "no record", "put twice"])
def test_whatever_was_done_to_an_export_is_found(
    hopper: Terminal, alone: Terminal, exported: Path, what: str
) -> None:
    lines = exported.read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])
    match what:
        case "changed":
            lines[1] = lines[1].replace('"allowed":true', '"allowed":false')
        case "removed":
            del lines[1]
        case "moved":
            lines[0], lines[1] = lines[1], lines[0]
        case "cut off":
            del lines[-1]
        case "no record":
            lines[1] = "{}\n"
        case "put twice":
            lines.insert(1, lines[0])
    anchor = f"{last['sequence']}:{last['hash']}"
    ran = hopper("audit", "verify", "--file", "-", "--anchor", anchor, "--json", stdin="".join(lines))
    assert ran.code == 1
    assert not ran.json["intact"]
    assert ran.json["problem"]
    assert (
        "broken at record"
        in hopper("audit", "verify", "--file", "-", "--anchor", anchor, stdin="".join(lines)).out
    )


def test_a_file_that_is_not_there_is_a_wrong_command_line(hopper: Terminal, tmp_path: Path) -> None:
    assert hopper("audit", "verify", "--file", str(tmp_path / "none")).code == 2


# export


def test_an_export_goes_on_where_the_last_one_ended(hopper: Terminal, exported: Path) -> None:
    last = json.loads(exported.read_text().splitlines()[-1])
    hopper.ok("audit", "verify")
    more = hopper.ok("audit", "export", "--after", str(last["sequence"]))
    assert more.out.count("\n") >= 1
    assert "anchor" in more.err
    assert json.loads(more.out.splitlines()[0])["previous_hash"] == last["hash"]
    with exported.open("a") as file:
        file.write(more.out)
    hopper.ok("audit", "verify", "--file", str(exported))
    assert "there is no record after 999999" in hopper.ok("audit", "export", "--after", "999999").err


# The names of methods.


def test_methods_are_known_by_any_part_of_their_names() -> None:
    assert "/hopper.router.v1.TaskService/CancelTask" in methods.all_methods()
    assert "/hopper.common.v1.AuditService/VerifyAudit" in methods.all_methods()
    assert methods.method_prefix("TaskService") == "/hopper.router.v1.TaskService/"
    assert methods.method_prefix("CancelTask") == "/hopper.router.v1.TaskService/CancelTask"
    assert methods.method_prefix("/x") == "/x"
    for wrong in ("Cancel", "nosuch", "TaskService/nosuch", ""):
        with pytest.raises(UsageProblem):
            methods.method_prefix(wrong)


def test_the_shell_offers_methods_and_whoever_called(hopper: Terminal, exported: Path) -> None:
    assert offered(hopper, "hopper audit list --principal ", "owner")
    assert "TaskService/CancelTask" in complete(hopper, "hopper audit list --method TaskService/C")
