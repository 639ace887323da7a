"""Databases for audit logs, on each engine in turn."""

from pathlib import Path

import pytest

from hopper_testing.postgres import postgres_server
from tests.common.audit.harness import open_audit_database


async def _migrate(url: str) -> None:
    await (await open_audit_database(url)).close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a log can be opened."""
    if request.param == "sqlite":
        return str(tmp_path / "audit.db")
    return postgres_server().create_database(made_by=_migrate)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """The same, for what has nothing to do with the engine."""
    return str(tmp_path / "audit.db")
