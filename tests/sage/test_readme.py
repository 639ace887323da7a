"""The Sage in the README is one: it is run as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from hopper_testing.sage_conformance import CHECKS, Started
from hopper_testing.sage_conformance.__main__ import conforms
from tests.sage.test_conformance import environment

README = Path(__file__).parents[2] / "libs" / "sage" / "README.md"


async def test_the_sage_of_the_readme_conforms(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (directory / "follower.py").write_text(program)
    data = directory / "data"
    command = [sys.executable, str(directory / "follower.py")]
    address = f"unix:{data / 'sage.sock'}"
    with Started(command, address, environment=environment(data), log=directory / "log") as stage:
        conforming = await conforms(stage, CHECKS)
    said = capsys.readouterr().out
    assert conforming, said + (directory / "log").read_text()[-4000:]
    assert [line.split()[1] for line in said.splitlines() if line.startswith("skipped")] == [
        "clarifications:",
        "permutation:",
    ]
