"""What fault tests share: a Hopper on each engine that runs, and what is needed to talk to it."""

import random
from collections.abc import Callable, Iterator

import pytest

from hopper_testing.history import Ledger
from hopper_testing.workload import prepare
from tests.faults.stage import ENGINES, Engine, Stage, stage_in_temporary_directory


@pytest.fixture(scope="module", params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A Hopper that runs, on each engine; on PostgreSQL with two routers. A module's tests share it."""
    engine: Engine = request.param
    with stage_in_temporary_directory(engine) as running:
        prepare(running.addresses[0])
        yield running
        for router in running.routers:
            print(f"{router.log.name} ends:", router.log_text()[-8000:])  # shown if a test failed


@pytest.fixture
def ledger(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger of the test's own."""
    path = stage.directory / "ledgers" / f"test-{abs(hash(request.node.name))}.jsonl"
    with Ledger(path, "test") as writing:
        yield writing


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The same numbers in each run of a test."""
    return random.Random(request.node.name)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Note a figure that was measured: it is in the test's report."""

    def note(name: str, value: object) -> None:
        record_property(f"figure: {name}", str(value))
        print(f"{name}: {value}")

    return note
