"""What every run says about itself."""

import pytest

from hopper_testing.postgres import which_server


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"PostgreSQL for tests: {which_server()}")
