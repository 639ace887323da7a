"""What every run says about itself."""

import signal

import pytest

from hopper_testing.postgres import which_server


def pytest_sessionstart(session: pytest.Session) -> None:
    # What was started in the background by a shell ignores Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"PostgreSQL for tests: {which_server()}")
