"""What scripts rely on: exit codes, error objects, completion."""

import os
import socket
import subprocess
import sys

import pytest

from tests.cli.conftest import HOPPER, PATIENCE, Terminal
from tests.e2e.calls import eventually


def test_nobody_answers_is_exit_code_4(alone: Terminal) -> None:
    """With how to start one."""
    ran = alone("list")
    assert ran.code == 4
    assert ran.out == ""
    assert "no Hopper answers" in ran.err
    assert "hopper up" in ran.err
    assert len(ran.err.splitlines()) == 1
    told = alone("--json", "list")
    assert (told.code, told.error["exit_code"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("show", "zzzzzz"), "TASK_NOT_FOUND"),
        (("project", "show", "nosuch"), "PROJECT_NOT_FOUND"),
        (("instance", "show", "nosuch"), "INSTANCE_NOT_FOUND"),
        (("accept", "0" * 26), "DELEGATION_NOT_FOUND"),
        (("next", "--queue", "nosuch"), "INSTANCE_NOT_FOUND"),
        (("add", "x", "--project", "nosuch"), "PROJECT_NOT_FOUND"),
    ],
)
def test_what_is_not_there_is_exit_code_3(real: Terminal, arguments: tuple[str, ...], reason: str) -> None:
    """Whatever it is."""
    ran = real(*arguments, "--json")
    assert (ran.code, ran.error["reason"], ran.out) == (3, reason, "")


def test_an_empty_queue_is_exit_code_5(real: Terminal, project: str) -> None:
    """Which is no failure, and no task."""
    assert real("next", "-q", project).code == 5
    waited = real("next", "-q", project, "--wait", "1s", "--json")
    assert (waited.code, waited.error["reason"]) == (5, "NOTHING_TO_DO")


def test_what_the_server_finds_wrong_is_exit_code_2(real: Terminal) -> None:
    """What was typed cannot be right, whoever notices: the field is named."""
    ran = real("add", "x" * 301, "--json")
    assert ran.code == 2
    assert [violation["field"] for violation in ran.error["violations"]] == ["spec.title"]
    assert real("show", "ab").code == 2


def test_a_refusal_is_exit_code_1(real: Terminal, task: str) -> None:
    """It was understood, and is not possible."""
    real.ok("cancel", task)
    ran = real("block", task, "--json")
    assert (ran.code, ran.error["reason"]) == (1, "TASK_WRONG_STATE")


def test_a_reader_that_leaves_is_no_error(hopper: Terminal, project: str) -> None:
    """`hopper watch | head -1`: no traceback, no complaint."""
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [*HOPPER, "project", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=hopper.environment(),
        check=False,
        timeout=PATIENCE,
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_silent_server_is_given_up(alone: Terminal) -> None:
    """After the time that was allowed, as exit code 4."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ran = alone("list", "--address", f"127.0.0.1:{listening.getsockname()[1]}", "--timeout", "500ms")
    assert ran.code == 4
    assert "127.0.0.1" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(alone: Terminal, shell: str) -> None:
    """For each shell, and where to keep it; no Hopper is needed."""
    script = alone.ok("completion", shell)
    assert "_HOPPER_COMPLETE" in script.out
    assert "hopper" in script.err
    assert alone.json("completion", shell)["script"] == script.out.rstrip("\n")


def complete(terminal: Terminal, words: str) -> list[str]:
    """What bash would offer for the last of *words*."""
    ran = subprocess.run(
        HOPPER,
        capture_output=True,
        text=True,
        env=terminal.environment(
            _HOPPER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
        ),
        check=False,
        timeout=PATIENCE,
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def offered(terminal: Terminal, words: str, wanted: str) -> bool:
    """Whether it is offered sooner or later: who does not get an answer at once is offered nothing, and asks again."""
    return wanted in eventually(lambda: complete(terminal, words), lambda offers: wanted in offers)


def test_the_shell_is_offered_what_there_is(hopper: Terminal, project: str, task: str) -> None:
    """Commands, options, and what the Hopper that answers has."""
    assert {"feedback", "watch"} <= set(complete(hopper, "hopper "))
    assert "--due" in complete(hopper, "hopper add --d")
    assert offered(hopper, f"hopper show {task[:2]}", task)
    assert offered(hopper, f"hopper project show {project[:3]}", project)
    assert offered(hopper, "hopper next --queue projects/", f"projects/{project}")
    assert offered(hopper, "hopper instance show g", "global")
    assert "succeeded" in complete(hopper, "hopper list --state su")


def test_the_shell_is_offered_nothing_when_nobody_answers(alone: Terminal) -> None:
    """Instead of an error in the middle of the prompt."""
    assert complete(alone, "hopper show a") == []


def test_everything_has_a_document(real: Terminal, task: str) -> None:
    """One JSON document on standard output, nothing on standard error, for every command that reads."""
    for arguments in (
        ("list",),
        ("show", task),
        ("search", "fence"),
        ("why", task),
        ("delegations", task),
        ("project", "list"),
        ("instance", "tree"),
        ("instance", "list"),
        ("instance", "show", "global"),
        ("rules", "show"),
        ("stats",),
        ("doctor",),
    ):
        ran = real.ok(*arguments, "--json")
        assert isinstance(ran.json, dict), arguments
        assert ran.err == "", arguments


def test_the_console_script_is_the_same_command(alone: Terminal) -> None:
    """`hopper` and `python -m hopper_cli`."""
    from pathlib import Path

    script = Path(sys.executable).parent / "hopper"
    ran = subprocess.run(
        [script, "--version"], capture_output=True, text=True, check=True, env=alone.environment()
    )
    assert ran.stdout == alone.ok("--version").out
