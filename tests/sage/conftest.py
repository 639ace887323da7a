from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.sage.harness")

from hopper_testing.processes import temporary_directory  # noqa: E402 - after the rewriting is asked for


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory of the test's own: the path of a Unix socket must be."""
    with temporary_directory() as path:
        yield path
