import json
from pathlib import Path

import pytest

import hopper_cli
from hopper.router.v1.task_pb2 import Task, TaskSpec
from hopper_cli.exits import MEANINGS, Exit, epilog
from hopper_cli.output import Output, clean, one_line, to_json
from hopper_cli.problems import REMEDIES, CommandError, Problem, exit_code_of, of_command, of_hopper
from hopper_client import AmbiguousTask, DeadlineExceeded, TaskNotFound, Unreachable
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument, LostRace, ServiceUnavailable
from tests.cli.reasons import catalogue


def test_a_terminal_is_never_given_escape_sequences() -> None:
    """Titles come from anywhere; one could clear the screen, or write backwards."""
    assert clean("a\x1b[2Jb\x9bc\u202ed\te\nf") == "a\ufffd[2Jb\ufffdc\ufffdd\te\nf"
    assert one_line(" a\n b\t\x07c ") == "a b \ufffdc"


def test_json_has_the_contracts_names_and_no_holes() -> None:
    """A program need not ask whether a list is there."""
    made = to_json(Task(name="instances/global/tasks/x", spec=TaskSpec(title="t"), generation=2**40))
    assert made["spec"]["required_capabilities"] == []
    assert made["state"] == "STATE_UNSPECIFIED"
    assert made["generation"] == str(2**40)
    assert "claim" not in made
    assert "requiredCapabilities" not in made["spec"]


class _Stale(LostRace):
    """The claim was lost."""

    reason = "STALE_TOKEN"


class _BadPolicy(InvalidArgument):
    """The policy does not load."""

    reason = "POLICY_INVALID"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TaskNotFound(), Exit.NOT_FOUND),
        (Unreachable(), Exit.NO_HOPPER),
        (DeadlineExceeded("late", address="unix:/x"), Exit.NO_HOPPER),
        (DeadlineExceeded("late", method="/m", seconds="3"), Exit.FAILED),
        (AmbiguousTask("abcd", ["a", "b"]), Exit.USAGE),
        (InvalidArgument(violations=[FieldViolation("spec.title", "too long")]), Exit.USAGE),
        (_BadPolicy(), Exit.FAILED),
        (_Stale(), Exit.FAILED),
        (ServiceUnavailable(), Exit.FAILED),
    ],
)
def test_every_error_has_an_exit_code(error: HopperError, code: Exit) -> None:
    """Scripts tell a wrong command line from a missing task, and both from a Hopper that is down."""
    assert exit_code_of(error) is code


def test_an_error_is_told_with_its_remedy() -> None:
    """Unless its message names one."""
    told = of_hopper(_Stale("lost", task="t"))
    assert (told.reason, told.remedy, dict(told.metadata)) == (
        "STALE_TOKEN",
        REMEDIES["STALE_TOKEN"],
        {"task": "t"},
    )
    assert not of_hopper(TaskNotFound("no task ends in 'x': see `hopper list`")).remedy


def test_remedies_are_for_reasons_of_the_catalogue() -> None:
    """A remedy under a name that is never sent would never be seen."""
    assert set(REMEDIES) <= catalogue()


def test_an_error_is_one_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, so that standard output stays what was asked for."""
    Output(json=True).complain(of_command(CommandError("no", remedy="yes", exit_code=Exit.NOTHING_TO_DO)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {
        "error": {
            "reason": "COMMAND_FAILED",
            "message": "no",
            "remedy": "yes",
            "metadata": {},
            "violations": [],
            "exit_code": 5,
        }
    }


def test_an_error_is_a_line_and_a_remedy_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Violations that the message does not have get lines of their own; markup is text."""
    problem = Problem("[red]x\x1b[0m", "R", Exit.USAGE, "do y", violations=(("a.b", "too long"),))
    Output(json=False).complain(problem)
    assert capsys.readouterr().err.splitlines() == ["hopper: [red]x\ufffd[0m", "  a.b: too long", "  do y"]


def test_the_readme_has_the_same_exit_codes() -> None:
    """Line by line."""
    readme = Path(hopper_cli.__file__).parents[1] / "README.md"
    rows = [f"| {code:d} | {meaning} | {of_up} |".replace("|  |", "| |") for code, meaning, of_up in MEANINGS]
    assert "\n".join(rows) in readme.read_text(encoding="utf-8")


def test_every_exit_code_is_in_the_help() -> None:
    """One table, of which the help and the README are copies."""
    assert [code for code, _, _ in MEANINGS] == list(Exit)
    assert all(f"{code:d}  {meaning}" in epilog() for code, meaning, _ in MEANINGS)
