"""What every command has in common, seen from outside."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from hopper_cli.cli import Shared
from hopper_cli.commands import completion
from hopper_cli.main import build, main


def commands() -> dict[str, object]:
    """Every command by its full name, without the groups."""
    root = get_command(build())
    assert isinstance(root, TyperGroup)
    return _below(root)


def _below(group: TyperGroup, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= _below(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = command
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And the options that all of them share."""
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: hopper {name}" in text
    assert f"hopper {name}" in text.partition("Examples:")[2]
    for option in ("--json", "--address", "--key-file", "--timeout", "--no-color"):
        assert option in text


EXPECTED = {
    "": """up add list search show next done fail release progress ask answer block unblock cancel edit why watch
        parked replay feedback delegate escalate decompose delegations accept reject stats archive work
        doctor demo completion""",
    "project ": "add list show edit remove pause resume workers",
    "instance ": "create tree list show start pause resume stop terminate edit",
    "schedule ": "add list show pause resume run rm",
    "peer ": """invite join invitations open close request pairings approve decline list show rename address
        trust policy status audit block revoke discover""",
    "artifact ": "put list get",
    "delegation ": "list show cancel accept discard retry give-up keep",
    "rules ": "check show apply replay remove",
    "audit ": "list verify export",
    "auth ": "init whoami token",
    "auth person ": "add list show grant revoke-role disable enable remove",
    "auth agent ": "add list show grant revoke-role disable enable remove",
    "auth key ": "create list rotate revoke",
    "identity ": "show backup restore issue",
    "ca ": "status rotate prepare activate taint revoke",
    "sage ": "report",
    "policy ": "diff replay apply history rollback shadow explain",
}


def test_all_commands_are_there() -> None:
    """One that is lost in a refactoring is missed here."""
    assert sorted(commands()) == sorted(
        f"{group}{name}" for group, names in EXPECTED.items() for name in names.split()
    )


def test_the_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where people look first."""
    assert main(["--help"]) == 0
    assert "nothing to do: the queue is empty" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """One number."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hopper {version('hopper-mesh')}\n"


def test_options_after_the_command_win() -> None:
    """Those before it count where it says nothing."""
    before = Shared(address="unix:/a", timeout="1s", json=True)
    assert Shared(address="unix:/b").over(before) == Shared("unix:/b", "1s", json=True)


SLOW = ("grpc", "asyncio", "hopper_client", "pydantic", "sqlalchemy")


def test_help_is_shown_before_anything_slow_is_imported() -> None:
    """People read help while they think; it should be there when they blink."""
    code = (
        "import sys; from hopper_cli.main import main; main(['--help']);"
        f"print('imported:', *[name for name in {SLOW} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "no such command"),
        (["add"], "missing argument 'TITLE'"),
        (["list", "--limit", "many"], "--limit"),
        (["show", "--nosuch"], "no such option"),
        (["list", "--state", "lost"], "--state"),
        (["add", "x", "--priority", "asap"], "no priority"),
        (["add", "x", "--due", "someday"], "no time"),
        (["add", "x", "-d", "-", "--payload", "-"], "standard input"),
        (["list", "--timeout", "0s"], "no time"),
        (["list", "--address", "example.com:80"], "not of this machine"),
        (["feedback", "abcdef", "--good", "--bad"], "exclude each other"),
        (["project", "add"], "say either"),
        (["replay"], "say either"),
        (["replay", "abcdef", "--reason", "X"], "say either"),
        (["replay", "abcdef", "--project", "x"], "go with --reason"),
        (["schedule", "add", "x"], "missing option '--cron'"),
        (["schedule", "add", "x", "--cron", "@daily", "--overlap", "some"], "no policy"),
        (["schedule", "add", "x", "--cron", "@daily", "--catch-up", "0"], "no policy"),
        (["schedule", "add", "x", "--cron", "@daily", "--until", "someday"], "no time"),
        (["schedule", "show", "projects/x"], "not one of schedules"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback, and before anybody is asked."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hopper: ")
    assert says in captured.err
    assert "Traceback" not in captured.err


def test_groups_without_a_command_show_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    """And say by the exit code that nothing was done."""
    assert main(["project"]) == 2
    assert "workers" in capsys.readouterr().out


def test_a_defect_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a word about how to see more."""
    monkeypatch.setattr(completion, "_WHERE", None)
    assert main(["completion", "bash", "--json"]) == 1
    captured = capsys.readouterr()
    assert "a defect of this command: TypeError" in captured.err
    assert "HOPPER_DEBUG" in captured.err
