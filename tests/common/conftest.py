"""What is collected here, and where; and the engines that tests run on."""

from pathlib import Path

import pytest

from hopper_testing.disks import may_mount
from tests.common.toy import EngineKind, new_toy

# Without the right to mount, a full disk is a file that may not grow: test_durability.py.
collect_ignore = [] if may_mount() else ["test_small_disk.py"]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """Each engine in turn: what is promised of one is promised of the other."""
    kind: EngineKind = request.param
    return kind


@pytest.fixture
def database_url(engine_kind: EngineKind, tmp_path: Path) -> str:
    """Where a toy's database can be opened, empty."""
    return new_toy(engine_kind, tmp_path)
