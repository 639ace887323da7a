"""
The processes of a run, each started when a bar first needs it, and all ended with the run.

    this process: the load     echo      router ──► registry (1,000 projects), memory
         │   mTLS               ▲          │  ▲
         └──────────────────────┴──────────┼──┘
                                           └──► PostgreSQL, or a file

Registry and memory are the real ones and are shared; each bar gets a router of its own, on an empty database.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc.aio

from hopper.registry.v1 import project_service_pb2
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import Hopper
from hopper_common.rpc.channel import OPTIONS
from hopper_testing.postgres import OwnServer, private_server
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.bench import certificates, message
from tests.bench.load import Bench, Pace

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
ENGINE: Final = os.environ.get("HOPPER_BENCH_ENGINE", POSTGRESQL)
"""What the router keeps its tasks in, in the bars that are about both."""
MEMORY: Final = os.environ.get("HOPPER_BENCH_MEMORY", "on") != "off"


@dataclass(frozen=True, slots=True)
class Target:
    """Something to put load on: a router, or the bare echo."""

    address: str
    pid: int
    tasks: TaskServiceAsyncStub
    work: WorkServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Router(Target):
    """
    A router with a database of its own.

    Attributes:
        url: Of its database, where that is PostgreSQL; else "".
        socket: Where it is reached without TLS.
    """

    url: str
    socket: str

    def processes(self, rig: Rig) -> dict[str, int]:
        """Whose processor time an operation costs."""
        return {"router": self.pid} | ({"postgres": rig.postgres.pid} if self.url else {})


class _TlsRouter(HopperProcess):
    def __init__(self, data_dir: Path, certs: Path, group_limit: int, environment: Mapping[str, str]) -> None:
        super().__init__(data_dir, service="router", environment=environment)
        self._arguments = [str(certs), str(group_limit)]

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.router_process", *self._arguments]


class Rig:
    """
    See the module's text.

    Args:
        pace: Default: as the environment says.
        memory: Whether there is a memory to tell of every task, as in a whole Hopper.
    """

    def __init__(
        self, pace: Pace | None = None, *, projects: int = message.PROJECTS, memory: bool = MEMORY
    ) -> None:
        self.pace = pace or Pace.of_environment()
        self.projects = projects
        self._places = 0
        self._memory = memory
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def bench(self) -> Bench:
        """What measures."""
        return Bench(self.pace)

    @cached_property
    def directory(self) -> Path:
        """For everything that has to be a file."""
        return self._stack.enter_context(temporary_directory())

    @cached_property
    def certificates(self) -> Path:
        """Of this run."""
        directory = self.directory / "certificates"
        certificates.make(directory)
        return directory

    @cached_property
    def postgres(self) -> OwnServer:
        """The one server for Hopper, peers and floors, with initdb's own settings."""
        return self._stack.enter_context(private_server(checkpoint_completion_target="0.9"))

    def place(self, engine: str) -> str:
        """For a router's tasks: the URL of an empty database, or a directory for it to make."""
        if engine == POSTGRESQL:
            return self.database()
        self._places += 1
        return str(self.directory / f"data{self._places}")

    def database(self) -> str:
        """The URL of an empty database."""
        return self.postgres.create_database()

    @cached_property
    def registry(self) -> HopperProcess:
        """The registry, with all projects in it."""
        process = self._start(HopperProcess(self.directory / "registry", service="registry"))
        with Hopper(process.address) as client:
            for number in range(self.projects):
                client.projects.RegisterProject(
                    project_service_pb2.RegisterProjectRequest(
                        project_id=f"p{number}", project=message.project(number)
                    )
                )
        return process

    @cached_property
    def memory(self) -> HopperProcess:
        """Where the router's episodes go."""
        same = {"HOPPER_IDENTITY_DIR": str(self.registry.identity_dir)}
        return self._start(HopperProcess(self.directory / "memory", service="memory", environment=same))

    def _start(self, process: HopperProcess) -> HopperProcess:
        return self._stack.enter_context(process)

    @cached_property
    def echo(self) -> Target:
        """The bare echo."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.echo", str(self.certificates)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the echo server did not start")
        channel = self.channel(address)
        self._stack.push_async_callback(channel.close)
        return Target(address, process.pid, TaskServiceStub(channel), WorkServiceStub(channel))

    def channel(self, address: str) -> grpc.aio.Channel:
        """One channel, with a connection of its own."""
        credentials = certificates.channel_credentials(self.certificates)
        return grpc.aio.secure_channel(
            address, credentials, options=(*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        )

    @asynccontextmanager
    async def router(
        self, engine: str = ENGINE, *, group_limit: int = 0, place: str = ""
    ) -> AsyncIterator[Router]:
        """
        A router while the block lasts.

        Args:
            engine: `postgresql` or `sqlite`.
            group_limit: How many requests may share a commit; 0: as many as it likes.
            place: Where its tasks are, if another router has been there; see `place`.
        """
        place = place or self.place(engine)
        url = place if engine == POSTGRESQL else ""
        data = self.place(SQLITE) if url else place
        process = _TlsRouter(Path(data), self.certificates, group_limit, self._environment(url))
        with process:
            async with self.channel(process.tcp_address) as channel:
                tasks, work = TaskServiceStub(channel), WorkServiceStub(channel)
                router = Router(process.tcp_address, process.pid, tasks, work, url, process.address)
                try:
                    await _knows_projects(router)
                    yield router
                except Exception:
                    print(process.log_text()[-4000:], file=sys.stderr)  # it is gone with the directory
                    raise

    def _environment(self, url: str) -> dict[str, str]:
        nobody = f"unix:{self.directory}/nobody"
        environment = {
            "HOPPER_IDENTITY_DIR": str(self.registry.identity_dir),
            "HOPPER_REGISTRY_ADDRESS": self.registry.services_address(),
            "HOPPER_MEMORY_ADDRESS": self.memory.services_address() if self._memory else nobody,
            "HOPPER_LOG_LEVEL": "warning",
        }
        return environment | ({"HOPPER_ROUTER_DATABASE": url} if url else {})


async def _knows_projects(router: Router) -> None:
    """Wait until the router has heard of the projects: it takes tasks in before, and places none."""
    async with asyncio.timeout(120):
        # Nothing tells when.
        while not (await router.tasks.SubmitTask(message.submit(0))).task.project:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
