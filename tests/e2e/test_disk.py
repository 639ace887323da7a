"""
Disks that are full, and databases that are not what they should be.

The disk is made full for real: a file system of a few megabytes where this user may mount one, and always a limit
on how far a file may grow, set on the running process from outside.
"""

import resource
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import ClaimRef, CompleteTasksRequest, Completion
from hopper_common.errors import StorageFull
from hopper_common.rpc.errors import code_of, from_rpc_error
from hopper_testing import disks
from hopper_testing.processes import HopperProcess, NotStarted, temporary_directory
from tests.e2e.calls import (
    Stubs,
    all_tasks,
    claim_request,
    connected,
    crew_episodes,
    eventually,
    register_crew,
    submit_request,
)

SERVICES = ("registry", "router", "memory")

# ---------------------------------------------------------------- full


class Disk(Protocol):
    """Where a Hopper keeps its data, with a say in how much room there is."""

    data_dir: Path

    def fill(self, process: HopperProcess) -> None:
        """Leave hardly any room."""

    def free(self, process: HopperProcess) -> None:
        """Make room again."""


class SmallDisk:
    """A file system of a few megabytes, filled with a file of no use."""

    def __init__(self, mounted: Path) -> None:
        self.data_dir = mounted / "data"
        self._ballast = mounted / "ballast"

    def fill(self, process: HopperProcess) -> None:
        free = shutil.disk_usage(self._ballast.parent).free
        self._ballast.write_bytes(bytes(max(0, free - 128 * 1024)))

    def free(self, process: HopperProcess) -> None:
        self._ballast.unlink()


class LimitedFiles:
    """Any file system, of which this process may not make a file longer than the router's log is."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"

    def fill(self, process: HopperProcess) -> None:
        longest = max(path.stat().st_size for path in self.data_dir.iterdir())
        self._limit(process, longest + 128 * 1024)

    def free(self, process: HopperProcess) -> None:
        self._limit(process, resource.RLIM_INFINITY)

    def _limit(self, process: HopperProcess, size: int) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def small_disk(directory: Path) -> Iterator[Disk]:
    with disks.small_disk(directory, megabytes=8):
        yield SmallDisk(directory)


@contextmanager
def limited_files(directory: Path) -> Iterator[Disk]:
    yield LimitedFiles(directory)


@pytest.fixture(params=[limited_files, small_disk] if disks.may_mount() else [limited_files])
def disk(request: pytest.FixtureRequest, directory: Path) -> Iterator[Disk]:
    make: Callable[[Path], AbstractContextManager[Disk]] = request.param
    point = directory / "disk"
    point.mkdir()
    with make(point) as made:
        yield made


@pytest.fixture
def cramped(disk: Disk, processes: list[HopperProcess]) -> Iterator[HopperProcess]:
    """A Hopper on that disk, killed before the disk goes."""
    process = HopperProcess(disk.data_dir)
    process.log = disk.data_dir.parent.parent / "hopper.log"  # it must be able to say what is wrong
    processes.append(process)
    yield process.start()
    process.close()


def submit_until_full(stubs: Stubs) -> tuple[dict[str, str], StorageFull]:
    """Submit large tasks until one is refused; those that were acknowledged, by title, and the refusal."""
    acknowledged: dict[str, str] = {}
    for _ in range(1000):
        request = submit_request(str(uuid.uuid4()))
        request.spec.payload = bytes(60_000)
        try:
            acknowledged[request.spec.title] = stubs.tasks.SubmitTask(request, timeout=60).task.name
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            assert isinstance(refusal, StorageFull), refusal
            assert code_of(refusal) is grpc.StatusCode.RESOURCE_EXHAUSTED
            return acknowledged, refusal
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_told_and_survived(disk: Disk, cramped: HopperProcess) -> None:
    with connected(cramped.address) as stubs:
        register_crew(stubs)
        before = stubs.tasks.SubmitTask(submit_request("before"), timeout=60).task
        (claimed,) = stubs.work.ClaimTasks(claim_request("w"), timeout=60).tasks
        disk.fill(cramped)
        acknowledged, refusal = submit_until_full(stubs)
        acknowledged["before"] = before.name
        assert refusal.retry_after is not None
        assert dict(refusal.metadata) == {"service": "router"}
        # Reading goes on, and what was refused is not there.
        assert {task.spec.title: task.name for task in all_tasks(stubs)} == acknowledged
        # It stays so, and is no reason to fall over: the router's own loops write too.
        _, refusal = submit_until_full(stubs)
        assert cramped.running
        disk.free(cramped)
        acknowledged["after"] = works_again(stubs)
        complete(stubs, claimed)
    cramped.kill()
    cramped.start()
    with connected(cramped.address) as stubs:
        there = {task.spec.title: task for task in all_tasks(stubs)}
        assert there.keys() >= acknowledged.keys()
        assert there["before"].state == Task.STATE_SUCCEEDED
    assert '"level": "error"' not in cramped.log_text()


def works_again(stubs: Stubs) -> str:
    """Submit until it is taken; the task's name."""
    request = submit_request("after", str(uuid.uuid4()))

    def outcome() -> str:
        try:
            return stubs.tasks.SubmitTask(request, timeout=60).task.name
        except grpc.RpcError as error:
            return from_rpc_error(error).reason

    name = eventually(outcome, lambda outcome: outcome != StorageFull.reason)
    assert name.startswith("instances/global/tasks/")
    return name


def complete(stubs: Stubs, task: Task) -> None:
    claim = ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
    answer = stubs.work.CompleteTasks(CompleteTasksRequest(completions=[Completion(claim=claim)]), timeout=60)
    assert answer.results[0].updated.state == Task.STATE_SUCCEEDED


# ---------------------------------------------------------------- damaged


@pytest.fixture(scope="module")
def closed_data() -> Iterator[Path]:
    """The data of a Hopper with tasks and a project that has been stopped. To be copied, not used."""
    with temporary_directory() as directory, HopperProcess(directory / "data") as process:
        with connected(process.address) as stubs:
            register_crew(stubs)
            for number in range(50):
                stubs.tasks.SubmitTask(submit_request(f"task {number}"), timeout=60)
            eventually(lambda: crew_episodes(stubs), lambda episodes: len(episodes) == 50)
        assert process.stop() == 0
        yield process.data_dir


def overwrite_a_page(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xa5" * 4096)


def cut_in_half(database: Path) -> None:
    with database.open("r+b") as file:
        file.truncate(database.stat().st_size // 2)


def empty(database: Path) -> None:
    with database.open("r+b") as file:
        file.truncate(0)


def replace_by_text(database: Path) -> None:
    database.write_text("once upon a time\n" * 1000, encoding="ascii")


def replace_by_another_programs(database: Path) -> None:
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()


@pytest.mark.parametrize(
    ("damage", "service"),
    [
        *((overwrite_a_page, service) for service in SERVICES),
        (cut_in_half, "router"),
        (empty, "router"),
        (replace_by_text, "memory"),
        (replace_by_another_programs, "registry"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_database_is_refused_by_name(
    closed_data: Path, data_dir: Path, damage: Callable[[Path], None], service: str
) -> None:
    shutil.copytree(closed_data, data_dir)
    database = data_dir / f"{service}.db"
    damage(database)
    after = database.read_bytes()
    message = refusal_of(data_dir)
    assert message.startswith(f"hopper: cannot open {service}: {database} is damaged (")
    assert message.endswith("): restore it from a backup, or move it away to start with an empty one")
    assert database.read_bytes() == after  # there may be something in it to save


@pytest.mark.parametrize("service", SERVICES)
def test_a_database_of_a_newer_hopper_is_refused_by_name(
    closed_data: Path, data_dir: Path, service: str
) -> None:
    shutil.copytree(closed_data, data_dir)
    database = data_dir / f"{service}.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"UPDATE alembic_version_{service} SET version_num = '9999'")
        connection.commit()
    assert refusal_of(data_dir) == (
        f"hopper: cannot open {service}: {database} is at {service} revision 9999, which this Hopper does not know: "
        "run the newer Hopper that wrote it, or restore the backup from before the upgrade"
    )


def refusal_of(data_dir: Path) -> str:
    """What a Hopper says that does not start on this data: one line, exit code 5, and no traceback."""
    process = HopperProcess(data_dir)
    with pytest.raises(NotStarted) as refused:
        process.start()
    assert refused.value.exit_code == 5
    assert "Traceback" not in process.log_text()
    assert "\n" not in refused.value.message
    return refused.value.message


def test_moving_a_damaged_database_away_is_a_remedy(closed_data: Path, hopper: HopperProcess) -> None:
    shutil.copytree(closed_data, hopper.data_dir)
    memory = hopper.data_dir / "memory.db"
    cut_in_half(memory)
    refusal_of(hopper.data_dir)
    memory.rename(memory.with_suffix(".damaged"))
    with connected(hopper.start().address) as stubs:
        assert len(all_tasks(stubs)) == 50
