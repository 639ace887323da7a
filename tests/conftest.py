"""What every run says about itself."""

import signal
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from hopper_testing.postgres import which_server

# The same examples every time, however slow the machine is: a run that fails can be run again.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

_NO_PARAMETERS = SimpleNamespace(params={})


def pytest_sessionstart(session: pytest.Session) -> None:
    # What was started in the background by a shell ignores Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"PostgreSQL for tests: {which_server()}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests named after a set: its order differs between workers, which then do not collect the same."""
    for item in items:
        for value in getattr(item, "callspec", _NO_PARAMETERS).params.values():
            if isinstance(value, set | frozenset) and str(value) in item.name:
                raise pytest.UsageError(f"{item.nodeid}: named after a set; give a tuple, or ids")
