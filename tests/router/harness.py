"""
A router for one test: the real engine, servicers and server, on a real database and a Unix socket.

Only the registry is not there: `FakeRegistry` is the router's port to it, holding a real `Directory` that the test
changes at will. Nothing runs by itself unless a test asks for it (`running`): `sweep` and `follow` are called where the
test wants them, and time is a `ManualClock`.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import pytest

from hopper.router.v1 import delegation_service_pb2 as delegation_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper.router.v1.queue_service_pb2_grpc import QueueServiceStub
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.clock import Clock
from hopper_common.database import Database, Signal
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.rpc.server import build_server
from hopper_router import tables
from hopper_router.app import _registered
from hopper_router.clockwork import Clockwork
from hopper_router.directory import EMPTY_DIRECTORY
from hopper_router.engine import Engine
from hopper_router.model import Instance, InstanceState, Project, Scope
from hopper_router.ports import RunReport
from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from tests.channels import separate_channel

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceAsyncStub
    from hopper.router.v1.queue_service_pb2_grpc import QueueServiceAsyncStub
    from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub
    from hopper.router.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

T = TypeVar("T")

ROOT = "instances/global"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
Code = grpc.StatusCode
State = pb.Task.State
Reason = pb.Wait.Reason


class FakeRegistry:
    """
    `ports.Registry` over a `Directory` in the test's hand.

    Attributes:
        hidden: Projects and instances that the registry has and the copy has not heard of: found by asking.
        asked: What was asked for, in order.
        reports: What was reported.
        trouble: Raised by the next report.
    """

    def __init__(self) -> None:
        root = Instance(ROOT, Scope.GLOBAL, InstanceState.RUNNING, start_time=NOW)
        self.current = EMPTY_DIRECTORY.with_projects([], 1).with_instances([root], 1).completed()
        self.confirmed = True
        self.changed = Signal()
        self.hidden: dict[str, Project | Instance] = {}
        self.asked: list[str] = []
        self.reports: list[RunReport] = []
        self.trouble: HopperError | None = None

    def put(self, item: Project | Instance) -> str:
        """Add or change one; returns its name."""
        if isinstance(item, Project):
            self.current = self.current.with_project(item, self.current.projects_version + 1)
        else:
            self.current = self.current.with_instance(item, self.current.instances_version + 1)
        self.changed.fire()
        return item.name

    def project(self, id_: str, *capabilities: str, **fields: Any) -> str:
        """Register a project that has those capabilities; returns its name."""
        return self.put(Project(f"projects/{id_}", capabilities=frozenset(capabilities), **fields))

    def instance(self, id_: str, scope: Scope, parent: str = ROOT, **fields: Any) -> str:
        """Create a running instance; returns its name."""
        made = Instance(f"instances/{id_}", scope, InstanceState.RUNNING, parent=parent, start_time=NOW)
        return self.put(replace(made, **fields))

    def team(self, id_: str, *capabilities: str, **fields: Any) -> tuple[str, str]:
        """A project and the PROJECT instance that stands for it; returns both names."""
        project = self.project(id_, *capabilities)
        return project, self.instance(id_, Scope.PROJECT, project=project, **fields)

    def change(self, name: str, **fields: Any) -> None:
        """Change some fields of a project or instance."""
        known: Any = self.current.projects.get(name) or self.current.instances[name]
        self.put(replace(known, **fields))

    def remove(self, project: str) -> None:
        """Unregister a project."""
        self.current = self.current.without_project(project, self.current.projects_version + 1)
        self.changed.fire()

    # The port.

    async def refresh_project(self, name: str) -> bool:
        return self._found(name)

    async def refresh_instance(self, name: str) -> bool:
        return self._found(name)

    def _found(self, name: str) -> bool:
        self.asked.append(name)
        item = self.hidden.pop(name, None)
        if item is not None:
            self.put(item)
        return item is not None

    async def report_stopped(self, report: RunReport) -> None:
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble
        self.reports.append(report)
        self.change(report.instance, state=InstanceState.STOPPED)


class Router:
    """
    A router, with stubs to call it.

    `stop` and `start` may alternate: the database stays. Channels stay open until `close`, so that whoever reads while
    the server stops hears it from the server, not from a channel that is closed meanwhile.
    """

    tasks: "TaskServiceAsyncStub"
    work: "WorkServiceAsyncStub"
    routing: "RoutingServiceAsyncStub"
    delegations: "DelegationServiceAsyncStub"
    queues: "QueueServiceAsyncStub"
    schedules: "ScheduleServiceAsyncStub"
    db: Database
    engine: Engine
    clockwork: Clockwork

    def __init__(self, directory: Path, clock: Clock, url: str = "") -> None:
        self.registry = FakeRegistry()
        self.url = url or str(directory / "router.db")
        self._clock = clock
        self._directory = directory
        self._stack = AsyncExitStack()
        self._channels = AsyncExitStack()

    async def start(self) -> None:
        """Open the database, and serve."""
        await self.open()
        address = self._directory / "s"
        server = build_server(_registered(self.engine))
        listen_unix(server, address)
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        channel = await self._channels.enter_async_context(separate_channel(f"unix:{address}"))
        self.tasks = TaskServiceStub(channel)
        self.work = WorkServiceStub(channel)
        self.routing = RoutingServiceStub(channel)
        self.delegations = DelegationServiceStub(channel)
        self.queues = QueueServiceStub(channel)
        self.schedules = ScheduleServiceStub(channel)

    async def open(self) -> None:
        """Only the engine, without a server."""
        self.db = await Database.open(
            self.url,
            metadata=tables.metadata,
            migrations="hopper_router.migrations",
            service="router",
        )
        self._stack.push_async_callback(self.db.close)
        self.engine = await Engine.open(self.db, self.registry, self._clock)
        self.clockwork = Clockwork(self.engine)

    async def stop(self) -> None:
        """Stop serving, and close the database; what is durable stays."""
        await self._stack.aclose()

    async def close(self) -> None:
        """Stop, and close the channels."""
        await self.stop()
        await self._channels.aclose()

    @property
    def clock(self) -> ManualClock:
        """The hands of the clock."""
        assert isinstance(self._clock, ManualClock)
        return self._clock

    async def pass_time(self, length: timedelta) -> None:
        """Let time pass, and the router notice."""
        self.clock.advance(length)
        await self.clockwork.sweep()

    async def follow(self) -> None:
        """Let the router follow what changed in the registry."""
        await self.clockwork.follow()

    async def followed(self) -> None:
        """Wait until its loop has heard of what changed in the registry, which wakes everybody who waits."""

        async def caught_up() -> bool:
            return self.clockwork._followed is self.registry.current

        await until(caught_up)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The router's loops run by themselves meanwhile."""
        loops = [
            asyncio.ensure_future(loop())
            for loop in (self.clockwork.sweep_forever, self.clockwork.follow_forever)
        ]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    # The calls that nearly every test makes.

    async def submit(self, title: str = "work", parent: str = ROOT, **fields: Any) -> pb.Task:
        """Submit a task; returns it in FULL view."""
        return (await self.submitted(title, parent, **fields)).task

    async def submitted(
        self, title: str = "work", parent: str = ROOT, **fields: Any
    ) -> task_svc.SubmitTaskResponse:
        """Submit a task; returns the whole answer."""
        return await self.tasks.SubmitTask(
            task_svc.SubmitTaskRequest(parent=parent, spec=pb.TaskSpec(title=title, **fields))
        )

    async def get(self, task: pb.Task | str, view: pb.TaskView.ValueType = pb.TASK_VIEW_BASIC) -> pb.Task:
        """A task as it is now."""
        name = task if isinstance(task, str) else task.name
        return (await self.tasks.GetTask(task_svc.GetTaskRequest(name=name, view=view))).task

    async def found(self, **fields: Any) -> list[pb.Task]:
        """Every open task that matches, newest first."""
        request, found = task_svc.ListTasksRequest(page_size=1000, **fields), list[pb.Task]()
        while True:
            page = await self.tasks.ListTasks(request)
            found += page.tasks
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def claim(self, queue: str, worker: str = "ann", **fields: Any) -> list[pb.Task]:
        """Claim what is ready."""
        request = work_svc.ClaimTasksRequest(queue=queue, worker=worker, **fields)
        return list((await self.work.ClaimTasks(request)).tasks)

    async def claim_one(self, queue: str, worker: str = "ann", **fields: Any) -> pb.Task:
        """Claim exactly one."""
        (claimed,) = await self.claim(queue, worker, **fields)
        return claimed

    async def complete(self, *claimed: pb.Task, result: bytes = b"") -> list[work_svc.ClaimResult]:
        """Complete claims."""
        completions = [work_svc.Completion(claim=ref(task), result=result) for task in claimed]
        return list(
            (await self.work.CompleteTasks(work_svc.CompleteTasksRequest(completions=completions))).results
        )

    async def fail(self, claimed: pb.Task, reason: str = "BUSY", **fields: Any) -> pb.Task:
        """Fail a claim."""
        failure = pb.Failure(reason=reason, **fields)
        return (await self.work.FailTask(work_svc.FailTaskRequest(claim=ref(claimed), failure=failure))).task

    async def cancel(self, task: pb.Task | str, reason: str = "") -> pb.Task:
        """Cancel a task."""
        name = task if isinstance(task, str) else task.name
        return (await self.tasks.CancelTask(task_svc.CancelTaskRequest(name=name, reason=reason))).task

    async def update(self, task: pb.Task, *paths: str, etag: str = "", **fields: Any) -> pb.Task:
        """Change some fields of a spec."""
        request = task_svc.UpdateTaskRequest(
            task=pb.Task(name=task.name, etag=etag, spec=pb.TaskSpec(**fields))
        )
        request.update_mask.paths.extend(paths or [f"spec.{field}" for field in fields])
        return (await self.tasks.UpdateTask(request)).task

    async def delegate(
        self, task: pb.Task, kind: Any, to: str = "", **fields: Any
    ) -> delegation_svc.DelegateTaskResponse:
        """Hand a task over."""
        return await self.delegations.DelegateTask(
            delegation_svc.DelegateTaskRequest(task=task.name, kind=kind, to_instance=to, **fields)
        )

    async def chain(self, task: pb.Task | str) -> list[Any]:
        """Every delegation of the task's chain."""
        name = task if isinstance(task, str) else task.name
        request = delegation_svc.ListDelegationsRequest(task=name)
        return list((await self.delegations.ListDelegations(request)).delegations)

    async def child_of(self, task: pb.Task | str) -> pb.Task:
        """What a task was handed over as, last."""
        name = task if isinstance(task, str) else task.name
        last = [delegation for delegation in await self.chain(name) if delegation.task == name][-1]
        return await self.get(last.child_tasks[0])


def ref(claimed: pb.Task) -> work_svc.ClaimRef:
    """A claim, as its worker names it."""
    return work_svc.ClaimRef(task=claimed.name, fencing_token=claimed.claim.fencing_token)


@asynccontextmanager
async def a_router(
    template: Path, clock: Clock, *, serve: bool = True, engine: str = "sqlite"
) -> AsyncIterator[Router]:
    """A router on a copy of an empty database, which is quicker than making one; *engine*: sqlite or postgresql."""
    with tempfile.TemporaryDirectory(prefix="hopper-") as directory, a_database(engine, template) as url:
        if engine == "sqlite":
            shutil.copy(template, Path(directory) / "router.db")
        router = Router(Path(directory), clock, url)
        await (router.start() if serve else router.open())
        try:
            yield router
        finally:
            await router.close()


@contextmanager
def a_database(engine: str, template: Path | None = None) -> Iterator[str]:
    """The address of an empty PostgreSQL database with the router's tables; of SQLite: none."""
    if engine == "sqlite":
        yield ""
        return
    server = postgres_server()
    url = server.create_database(made_by=make_tables)
    try:
        yield url
    finally:
        server.drop(url)


async def make_tables(url: str) -> None:
    """Make the router's tables in an empty database."""
    db = await Database.open(
        url, metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    )
    await db.close()


async def refusal(call: Awaitable[Any], code: grpc.StatusCode, reason: str, **metadata: str) -> HopperError:
    """Make a call that must be refused so, with exactly this metadata; returns the error as clients read it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason, dict(error.metadata)) == (code, reason, metadata)
    return error


async def violations(call: Awaitable[Any]) -> dict[str, str]:
    """Make a call that must be INVALID_REQUEST; returns what is wrong, by field."""
    error = await refusal(call, Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert isinstance(error, InvalidArgument)
    return {violation.field: violation.description for violation in error.violations}


async def until(condition: Callable[[], Awaitable[T]], *, timeout: float = 60.0) -> T:
    """Wait until a condition holds; returns what it gave."""
    async with asyncio.timeout(timeout):
        while not (held := await condition()):  # noqa: ASYNC110 - of any kind, so there is no event to wait for
            await asyncio.sleep(0.005)
    return held
