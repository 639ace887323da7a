import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hopper_cli.claims import FILE, ClaimsFile, HeldClaim
from hopper_cli.problems import CommandError
from hopper_common.startup import DirectoryShared


def claim(task: str, token: int = 7) -> HeldClaim:
    """A claim on a task."""
    return HeldClaim(task, token, "me", "projects/p", "unix:/s", "2026-01-01T00:00:00Z")


def test_a_claim_is_kept_until_it_is_dropped(tmp_path: Path) -> None:
    """Over objects, as it is over commands."""
    ClaimsFile(tmp_path).keep(claim("a"))
    ClaimsFile(tmp_path).keep(claim("b"))
    assert ClaimsFile(tmp_path).get("a") == claim("a")
    ClaimsFile(tmp_path).drop("a")
    ClaimsFile(tmp_path).drop("never")
    assert ClaimsFile(tmp_path).all() == [claim("b")]


def test_a_later_claim_replaces_the_earlier(tmp_path: Path) -> None:
    """Only the last token is worth anything."""
    claims = ClaimsFile(tmp_path)
    claims.keep(claim("a", 1))
    claims.keep(claim("a", 2))
    assert claims.all() == [claim("a", 2)]


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """A token ends a task. The directory is made when it is not there, for its owner alone."""
    directory = tmp_path / "new"
    ClaimsFile(directory).keep(claim("a"))
    assert stat.S_IMODE((directory / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in directory.iterdir() if path.suffix == ".new"] == []


def test_it_is_not_written_where_others_may_write(tmp_path: Path) -> None:
    """They could put a file of theirs in its place."""
    tmp_path.chmod(0o777)
    with pytest.raises(DirectoryShared):
        ClaimsFile(tmp_path).keep(claim("a"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"claims": [{}]}', '{"claims": [{"task": "a", "x": 1}]}']
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, content: str) -> None:
    """It is never silently taken for empty: the claims in it would be lost."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CommandError) as caught:
        ClaimsFile(tmp_path).get("a")
    assert caught.value.reason == "CLAIMS_UNREADABLE"
    assert FILE in caught.value.message
    assert "remove it" in caught.value.remedy


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Each reads what the one before has written."""
    names = [f"t{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: ClaimsFile(tmp_path).keep(claim(name)), names))
    assert sorted(each.task for each in ClaimsFile(tmp_path).all()) == sorted(names)
