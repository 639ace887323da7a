"""What end-to-end tests share: processes that are gone when their test is, and the figures that tests measure."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hopper_client import Hopper
from hopper_testing.processes import HopperProcess, temporary_directory

Figure = Callable[[str, object], None]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory of the test's own."""
    with temporary_directory() as path:
        yield path


@pytest.fixture
def data_dir(directory: Path) -> Path:
    """A data directory that is not there yet."""
    return directory / "data"


@pytest.fixture
def processes() -> Iterator[list[HopperProcess]]:
    """Whatever the test appends is killed at its end."""
    started: list[HopperProcess] = []
    yield started
    for process in started:
        process.close()
        if process.log.exists():
            print(f"{process.log.name} ends:", process.log_text()[-8000:])  # shown if the test failed


@pytest.fixture
def hopper(data_dir: Path, processes: list[HopperProcess]) -> HopperProcess:
    """A whole Hopper on a socket and a port, not started."""
    process = HopperProcess(data_dir, listen="127.0.0.1:0")
    processes.append(process)
    return process


@pytest.fixture
def client(hopper: HopperProcess) -> Iterator[Hopper]:
    """A client of `hopper`, which it starts."""
    hopper.start()
    with Hopper(hopper.address, timeout=60) as connected:
        yield connected


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Note a figure that was measured: it is printed at the end of the run."""

    def note(name: str, value: object) -> None:
        record_property(f"figure: {name}", str(value))
        print(f"{name}: {value}")

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name.startswith("figure: ") and report.when == "call":
                terminalreporter.write_line(f"{name.removeprefix('figure: ')}: {value}")
