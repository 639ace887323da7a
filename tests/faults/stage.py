"""
What faults are done to: a Hopper on one of the engines, and callers that use it, all as processes of their own.

    sqlite       one process with all services, the router's data in a file
    postgresql   the same, with the router's data in a server of the stage's own, and a second router beside it

Everything blocks. What is started belongs to its stage, and ends with it.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import grpc

from hopper.router.v1.task_service_pb2 import GetTaskRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_testing.history import Ledger
from hopper_testing.postgres import OwnServer, private_server
from hopper_testing.processes import HopperProcess, NotStarted, temporary_directory
from hopper_testing.workload import now_micros

Engine = Literal["sqlite", "postgresql"]
ENGINES: Final[tuple[Engine, ...]] = ("sqlite", "postgresql")

_CALLERS_PATIENCE: Final = 120.0
_ENOUGH_ANSWERS: Final = 10
_WORK_SECONDS: Final = 20.0


@dataclass
class Stage:
    """
    A Hopper that runs, and how to disturb it.

    Attributes:
        routers: Processes with a router in them; each answers all calls.
        server: The PostgreSQL server; None on SQLite.
        ledger: Where outages are noted.
        busy: The ledgers of callers that are at work.
    """

    engine: Engine
    directory: Path
    routers: list[HopperProcess]
    server: OwnServer | None
    ledger: Ledger
    database: str = ""
    busy: list[Path] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        """Where the routers listen; known before they do."""
        return [
            f"unix:{router.data_dir}/{socket}.sock"
            for router, socket in zip(self.routers, _SOCKETS, strict=False)
        ]

    def start(self, router: HopperProcess, failpoints: str = "") -> None:
        """Start a router that is not running; one that a failpoint kills while it starts is started without it."""
        router.environment.pop("HOPPER_FAILPOINTS", None)
        if failpoints:
            router.environment["HOPPER_FAILPOINTS"] = failpoints
        try:
            router.start()
        except NotStarted as error:
            if not failpoints or error.exit_code != -signal.SIGKILL:
                raise
            self.start(router)
        self.answers(router)

    def answers(self, router: HopperProcess) -> None:
        """Wait until a router answers from its database."""
        address = self.addresses[self.routers.index(router)]
        deadline = time.monotonic() + 120
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = TaskServiceStub(channel)
            while True:
                try:
                    stub.GetTask(GetTaskRequest(name="instances/global/tasks/none"), timeout=10)
                except grpc.RpcError as error:
                    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                        return
                    if time.monotonic() > deadline:
                        raise
                    if not router.running:  # a failpoint
                        self.start(router)
                        return
                time.sleep(0.02)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that nothing could be expected for as long as the block takes."""
        begin = now_micros()
        try:
            yield
        finally:
            self.ledger.outage(begin, now_micros())

    def wait_for_work(self) -> None:
        """Wait until callers get answers: a round in which nothing is going on shows nothing."""
        enough = self._answers() + _ENOUGH_ANSWERS
        deadline = time.monotonic() + _WORK_SECONDS
        while self._answers() < enough and time.monotonic() < deadline:
            time.sleep(0.02)

    def _answers(self) -> int:
        return sum(path.read_bytes().count(b'"outcome":"ok"') for path in self.busy if path.exists())

    def failpoints(self, router: HopperProcess) -> str:
        """Those a router was started with."""
        return router.environment.get("HOPPER_FAILPOINTS", "")

    def dies(self, router: HopperProcess, within: float) -> bool:
        """Wait for a process to be killed by its failpoint; False: it was not, and has been killed by hand."""
        try:
            code = router.wait(within)
        except subprocess.TimeoutExpired:
            router.kill()
            return False
        assert code == -signal.SIGKILL, f"{self.failpoints(router)}: {code}\n{router.log_text()[-6000:]}"
        return True

    def calm(self) -> None:
        """Start those again that have failpoints, without."""
        for router in self.routers:
            if self.failpoints(router):
                with self.outage():
                    router.kill()
                    self.start(router)

    def all_answer(self) -> None:
        """Wait until every router answers; one that a failpoint has killed is started again."""
        for router in self.routers:
            if not router.running:
                self.start(router)
            self.answers(router)


_SOCKETS: Final = ("hopper", "router")


@contextmanager
def set_up(engine: Engine, directory: Path, *, replicas: int = 2) -> Iterator[Stage]:
    """
    A stage whose routers run.

    Args:
        directory: Short, empty; for data, logs and ledgers.
        replicas: How many routers there are on PostgreSQL, one or two.
    """
    (directory / "ledgers").mkdir()
    with ExitStack() as stack:
        server, database, environment = None, "", {}
        if engine == "postgresql":
            server = stack.enter_context(private_server(max_connections="60"))
            database = server.create_database()
            environment["HOPPER_ROUTER_DATABASE"] = database
        whole = HopperProcess(directory / "a", environment=environment)
        if replicas > 1:
            whole.environment["HOPPER_SERVICES_LISTEN"] = "sockets"
        routers = [whole]
        if engine == "postgresql" and replicas > 1:
            others = {
                "HOPPER_REGISTRY_ADDRESS": whole.services_address("registry"),
                "HOPPER_MEMORY_ADDRESS": whole.services_address("memory"),
                "HOPPER_IDENTITY_DIR": str(whole.identity_dir),
            }
            routers.append(HopperProcess(directory / "b", service="router", environment=environment | others))
        ledger = stack.enter_context(Ledger(directory / "ledgers" / "nemesis.jsonl", "nemesis"))
        stage = Stage(engine, directory, routers, server, ledger, database)
        for router in routers:
            stack.callback(router.close)
        for router in routers:
            stage.start(router)
        yield stage


class Callers:
    """
    A process of callers.

    Args:
        roles: As `python -m hopper_testing.workload` takes them.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        roles: Sequence[str],
        *,
        seed: int,
        seconds: float,
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.ledger = stage.directory / "ledgers" / f"{name}.jsonl"
        self._log = stage.directory / f"{name}.log"
        addresses = [argument for address in stage.addresses for argument in ("--address", address)]
        command = [sys.executable, "-m", "hopper_testing.workload", *roles, *addresses, *options]
        command += ["--ledger", str(self.ledger), "--seed", str(seed), "--seconds", str(seconds)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: what it was about to do, nobody knows."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait; its calls under way are answered or given up first."""
        self._wait_ready()
        self._process.terminate()
        code = self._process.wait(_CALLERS_PATIENCE)
        if code != 0:
            raise AssertionError(f"{self.name} ended with {code}:\n{self.said()}")

    def _wait_ready(self) -> None:
        """It says so when it ends in peace if it is told to; before, SIGTERM would be its death."""
        deadline = time.monotonic() + _CALLERS_PATIENCE
        while "ready" not in self._log.read_text(errors="replace").splitlines():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not ready:\n{self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        """The end of what it wrote for people."""
        return self._log.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """End it, however."""
        if self._process.poll() is None:
            self.kill()


@contextmanager
def stage_in_temporary_directory(engine: Engine, *, replicas: int = 2) -> Iterator[Stage]:
    """A stage that leaves nothing behind."""
    with temporary_directory() as directory, set_up(engine, directory, replicas=replicas) as stage:
        yield stage
