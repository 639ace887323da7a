"""The README's example runs as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "libs" / "learning" / "README.md"


def test_the_example_of_the_readme_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(program, str(README), "exec"), {})  # noqa: S102 - our own
