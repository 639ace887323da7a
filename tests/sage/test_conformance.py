"""The reference Sage passes the suite that every Sage must pass, as a process of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopper_testing.processes import temporary_directory
from hopper_testing.sage_conformance import CHECKS, Check, Running, Sage, Started
from hopper_testing.sage_conformance.__main__ import conforms


def environment(directory: Path) -> dict[str, str]:
    """Of a Sage that keeps everything in *directory*."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOPPER_")}
    return inherited | {"HOPPER_DATA_DIR": str(directory), "HOPPER_LOG_FORMAT": "json"}


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    """The reference Sage; one for all checks, so that each finds the journal full of the others' questions."""
    with temporary_directory() as directory:
        data = directory / "data"
        command = [sys.executable, "-m", "hopper_sage"]
        address = f"unix:{data / 'sage.sock'}"
        with Started(command, address, environment=environment(data), log=directory / "log") as sage:
            yield sage
        print((directory / "log").read_text()[-4000:])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_the_reference_sage(started: Started, check: Check) -> None:
    async with Sage.connected(started) as sage:
        await check.run(sage)


async def test_a_sage_that_is_not_ours_is_not_restarted(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [check for check in CHECKS if check.name in ("identity", "restart")]
    assert await conforms(Running(started.address), chosen)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["ok", "skipped", "this"]


async def test_an_address_where_nobody_is_breaks_every_check(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopper_testing.sage_conformance.stage.START_SECONDS", 0.2)
    assert not await conforms(Running(f"unix:{directory / 'nobody.sock'}"), CHECKS[:1])
    assert "no Sage answers at" in capsys.readouterr().out
