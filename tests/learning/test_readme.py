"""The README's examples run as they stand there."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "libs" / "learning" / "README.md"


def test_the_examples_of_the_readme_run() -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        exec(compile(program, str(README), "exec"), {})  # noqa: S102 - our own
