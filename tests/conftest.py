"""What every run says about itself."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from hopper_testing.postgres import which_server

# The same examples every time, however slow the machine is: a run that fails can be run again.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


def pytest_sessionstart(session: pytest.Session) -> None:
    # What was started in the background by a shell ignores Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"PostgreSQL for tests: {which_server()}")
