from pathlib import Path

import pytest

from hopper_cli import inputs
from hopper_cli.problems import UsageProblem


@pytest.mark.parametrize(
    ("text", "priority"), [("low", 25), ("NORMAL", 50), ("high", 75), ("urgent", 95), ("0", 0), ("100", 100)]
)
def test_priorities_have_names(text: str, priority: int) -> None:
    """Normal is what a task without one has."""
    assert inputs.parse_priority(text) == priority


@pytest.mark.parametrize("text", ["101", "-1", "", "asap", "5.5"])
def test_other_priorities_are_refused(text: str) -> None:
    """With a word about what would be right."""
    with pytest.raises(UsageProblem, match="priority"):
        inputs.parse_priority(text)


def test_pairs() -> None:
    """The first equals sign parts key and value; there has to be one."""
    assert inputs.parse_pairs(["a=b", "c=d=e", "f="], "--label") == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(UsageProblem, match="KEY=VALUE"):
            inputs.parse_pairs([wrong], "--label")


def test_boosts_are_numbers() -> None:
    """Also negative ones."""
    assert inputs.parse_boosts(["php=1.5", "perl=-2"]) == {"php": 1.5, "perl": -2.0}
    with pytest.raises(UsageProblem, match="much"):
        inputs.parse_boosts(["php=much"])


def test_lists_are_changed_in_order() -> None:
    """Added at the end, taken off, never twice."""
    assert inputs.changed(["a", "b"], ["c", "a"], ["b", "z"]) == ["a", "c"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Each with its own reason."""
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, why in (("gone", "there is no file"), (".", "directory"), ("latin", "not UTF-8")):
        with pytest.raises(UsageProblem, match=why):
            inputs.read_file_text(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "worker"),
    [("jane", "jane"), ("Jane Doe", "Jane-Doe"), ("-x", "x"), ("///", "me"), ("x" * 99, "x" * 63)],
)
def test_whoever_types_has_a_worker_id(monkeypatch: pytest.MonkeyPatch, name: str, worker: str) -> None:
    """Login names may have letters that worker ids may not."""
    monkeypatch.setenv("HOPPER_WORKER", name)
    assert inputs.me() == worker


def test_the_data_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same as that of `hopper up`."""
    monkeypatch.setenv("HOPPER_DATA_DIR", str(tmp_path))
    assert inputs.data_dir() == tmp_path
    monkeypatch.delenv("HOPPER_DATA_DIR")
    assert inputs.data_dir() == Path.home() / ".hopper"
