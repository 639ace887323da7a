"""
A small router and registry, in memory, that keep the contract as far as clients can tell: claims with leases
and fencing tokens, first answers for repeated requests, watches that resume. They run behind the real server
(`build_server`), so that limits and errors are the real ones, and every fault a network has can be ordered.
"""

import asyncio
import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.memory.v1 import working_service_pb2, working_service_pb2_grpc
from hopper.registry.v1 import project_pb2, project_service_pb2, project_service_pb2_grpc
from hopper.router.v1 import (
    task_pb2,
    task_service_pb2,
    task_service_pb2_grpc,
    work_service_pb2,
    work_service_pb2_grpc,
)
from hopper.router.v1.task_pb2 import Task
from hopper_common.errors import (
    HopperError,
    IdempotencyConflict,
    LostRace,
    NotFound,
    ResumeTooOld,
    Unavailable,
)
from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.errors import code_of
from hopper_common.rpc.server import HopperServer, Registered, build_server

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

TICK = 0.02

OPEN = {Task.STATE_SUBMITTED, Task.STATE_QUEUED, Task.STATE_RUNNING, Task.STATE_INPUT_REQUIRED}


class Down(Unavailable):
    """It cannot be done now."""

    reason = "STORAGE_UNAVAILABLE"


class DownUntil(Down):
    """It cannot be done now; come back soon."""

    retry_after = timedelta(milliseconds=20)


class StaleToken(LostRace):
    """The claim was lost."""

    reason = "STALE_TOKEN"


class NoSuchTask(NotFound):
    """No task of that name."""

    reason = "TASK_NOT_FOUND"


class NoSuchProject(NotFound):
    """No project of that name."""

    reason = "PROJECT_NOT_FOUND"


Fault = Callable[[], Awaitable[None]]


def raising(error: HopperError) -> Fault:
    """A fault: the call fails."""

    async def fault() -> None:
        raise error

    return fault


def waiting(event: asyncio.Event) -> Fault:
    """A fault: the call takes until *event*."""

    async def fault() -> None:
        await event.wait()

    return fault


@dataclass
class Calls:
    """What was called, with what deadline; and what shall go wrong."""

    requests: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    remaining: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    before: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    after: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def count(self, method: str) -> int:
        return len(self.requests[method])

    async def begin(self, method: str, request: Any, context: Context) -> None:
        self.requests[method].append(request)
        self.remaining[method].append(context.time_remaining())
        async with self.changed:
            self.changed.notify_all()
        if self.before[method]:
            await self.before[method].popleft()()

    async def end(self, method: str) -> None:
        """After the effect, before the answer."""
        if self.after[method]:
            await self.after[method].popleft()()

    async def wait_for(self, method: str, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.count(method) >= count)


class Router:
    """
    The state, which outlives its servers.

    Attributes:
        age: Seconds that leases have aged. It grows by ticks of the event loop that the workers share, so that no lease
            runs out because this process was held up: a worker could have done nothing about that.
    """

    def __init__(self) -> None:
        self.calls = Calls()
        self.tasks: dict[str, Task] = {}
        self.events: list[task_service_pb2.WatchTasksResponse] = []
        self.oldest = 0
        self.projects = {"projects/alpha"}
        self.workers: dict[str, project_pb2.Worker] = {}
        self.heartbeat_interval = timedelta(seconds=10)
        self.broken_streams: Counter[str] = Counter()
        self.cut_snapshot_after: int | None = None
        self.completed_in_batches: list[int] = []
        self.watchers = 0
        self.changed = asyncio.Condition()
        self._answers: dict[str, tuple[bytes, Any]] = {}
        self._leases: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._generation = 0
        self.breaks = asyncio.Event()
        self.age = 0.0

    async def grow_older(self) -> NoReturn:
        """Let leases age, for ever."""
        while True:
            await asyncio.sleep(TICK)
            self.age += TICK

    # Tasks.

    def put(self, title: str, **clocks: timedelta) -> str:
        number = len(self.tasks)
        name = f"instances/global/tasks/{number:026d}"
        task = Task(name=name, project="projects/alpha", state=Task.STATE_QUEUED)
        task.spec.title = title
        for clock, length in clocks.items():
            getattr(task.spec.clocks, clock).FromTimedelta(length)
        self.tasks[name] = task
        self.record("SUBMIT", task)
        return name

    def record(self, kind: str, task: Task) -> None:
        self._generation += 1
        task.generation = self._generation
        event = task_service_pb2.TaskEvent(kind=kind)
        event.task.CopyFrom(task)
        self.events.append(task_service_pb2.WatchTasksResponse(generation=self._generation, change=event))

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def add(self, title: str, **clocks: timedelta) -> str:
        name = self.put(title, **clocks)
        await self.notify()
        return name

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    def in_state(self, state: "Task.State.ValueType") -> list[Task]:
        return [task for task in self.tasks.values() if task.state == state]

    def expire(self, name: str) -> None:
        """Let the lease of a task run out now."""
        self._leases[name] = self.age
        self._expire()

    def _expire(self) -> None:
        for name, end in list(self._leases.items()):
            task = self.tasks[name]
            if end <= self.age and task.state == Task.STATE_RUNNING:
                self._drop_claim(task, "EXPIRE")

    def _drop_claim(self, task: Task, kind: str) -> None:
        task.state = Task.STATE_QUEUED
        task.ClearField("claim")
        self._leases.pop(task.name, None)
        self._tokens[task.name] += 1
        self.record(kind, task)

    def ready(self, queue: str) -> list[Task]:
        self._expire()
        return [task for task in self.in_state(Task.STATE_QUEUED) if task.project == queue]

    def has_answered(self, request_id: str) -> bool:
        return request_id in self._answers

    def claim(self, request: work_service_pb2.ClaimTasksRequest) -> list[Task]:
        claimed = []
        for task in self.ready(request.queue)[: request.max_tasks or 1]:
            self._tokens[task.name] = self._tokens.get(task.name, 0) + 1
            task.state = Task.STATE_RUNNING
            task.attempt += 1
            task.claim.worker = request.worker
            self._extend(task, request.lease_duration)
            self.record("CLAIM", task)
            shown = Task()
            shown.CopyFrom(task)
            shown.claim.fencing_token = self._tokens[task.name]
            claimed.append(shown)
        return claimed

    def _extend(self, task: Task, lease: Duration) -> None:
        self._leases[task.name] = self.age + lease.ToTimedelta().total_seconds()

    def held(self, claim: work_service_pb2.ClaimRef) -> Task:
        self._expire()
        task = self.tasks.get(claim.task)
        if task is None:
            raise NoSuchTask(task=claim.task)
        working = (Task.STATE_RUNNING, Task.STATE_INPUT_REQUIRED)
        if task.state not in working or self._tokens[task.name] != claim.fencing_token:
            raise StaleToken(task=task.name)
        return task

    def renew(self, claim: work_service_pb2.ClaimRef, lease: Duration) -> Task:
        task = self.held(claim)
        self._extend(task, lease)
        return task

    def finish(self, claim: work_service_pb2.ClaimRef, state: "Task.State.ValueType", kind: str) -> Task:
        task = self.held(claim)
        task.state = state
        task.ClearField("claim")
        self._leases.pop(task.name, None)
        self.record(kind, task)
        return task

    def release(self, claim: work_service_pb2.ClaimRef) -> Task:
        task = self.held(claim)
        self._drop_claim(task, "RELEASE")
        return task

    def ask(self, claim: work_service_pb2.ClaimRef, asked: task_pb2.InputRequest) -> Task:
        task = self.held(claim)
        task.state = Task.STATE_INPUT_REQUIRED
        task.input.CopyFrom(asked)
        self._leases.pop(task.name, None)
        self.record("ASK", task)
        return task

    async def answer(self, name: str, text: str) -> None:
        task = self.tasks[name]
        task.state = Task.STATE_RUNNING
        task.input.answer = text
        self._leases[name] = self.age + 60
        self.record("ANSWER", task)
        await self.notify()

    async def cancel(self, name: str) -> None:
        task = self.tasks[name]
        task.state = Task.STATE_CANCELLED
        task.ClearField("claim")
        self.record("CANCEL", task)
        await self.notify()

    def once(self, request: Any, effect: Callable[[], M]) -> M:
        """The first answer again, for the same `request_id`."""
        content = type(request)()
        content.CopyFrom(request)
        content.ClearField("request_id")
        digest = content.SerializeToString(deterministic=True)
        if request.request_id and request.request_id in self._answers:
            first, answer = self._answers[request.request_id]
            if first != digest:
                raise IdempotencyConflict(request_id=request.request_id)
            return answer  # type: ignore[no-any-return]  # what was stored under this id
        answer = effect()
        if request.request_id:
            self._answers[request.request_id] = (digest, answer)
        return answer

    async def break_streams(self) -> None:
        """End all watches with UNAVAILABLE, as a lost connection does."""
        self.breaks.set()
        await self.notify()
        await self.wait_for(lambda: self.watchers == 0)
        self.breaks.clear()


class TaskServicer(task_service_pb2_grpc.TaskServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    async def SubmitTask(
        self, request: task_service_pb2.SubmitTaskRequest, context: Context
    ) -> task_service_pb2.SubmitTaskResponse:
        await self._router.calls.begin("SubmitTask", request, context)

        def effect() -> task_service_pb2.SubmitTaskResponse:
            name = self._router.put(request.spec.title)
            self._router.tasks[name].spec.CopyFrom(request.spec)
            return task_service_pb2.SubmitTaskResponse(task=self._router.tasks[name])

        response = self._router.once(request, effect)
        await self._router.notify()
        await self._router.calls.end("SubmitTask")
        return response

    async def GetTask(
        self, request: task_service_pb2.GetTaskRequest, context: Context
    ) -> task_service_pb2.GetTaskResponse:
        await self._router.calls.begin("GetTask", request, context)
        task = self._router.tasks.get(request.name)
        if task is None:
            raise NoSuchTask(task=request.name)
        return task_service_pb2.GetTaskResponse(task=task)

    async def ListTasks(
        self, request: task_service_pb2.ListTasksRequest, context: Context
    ) -> task_service_pb2.ListTasksResponse:
        await self._router.calls.begin("ListTasks", request, context)
        found = [task for task in self._router.tasks.values() if task.name.endswith(request.id_suffix)]
        return task_service_pb2.ListTasksResponse(tasks=found[: request.page_size or 50])

    async def WatchTasks(
        self, request: task_service_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[task_service_pb2.WatchTasksResponse]:
        await self._router.calls.begin("WatchTasks", request, context)
        router = self._router
        router.watchers += 1
        await router.notify()
        try:
            after = request.after_generation
            if after and after < router.oldest:
                raise ResumeTooOld(oldest=str(router.oldest), asked=str(after))
            if not after:
                after = len(router.events)
                for message in self._snapshot(after):
                    yield message
            while True:
                for event in router.events[after:]:
                    if request.task in ("", event.change.task.name):
                        yield event
                after = len(router.events)
                if router.breaks.is_set():
                    raise Down
                await router.wait_for(lambda: len(router.events) > after or router.breaks.is_set())  # noqa: B023  read at once
        finally:
            router.watchers -= 1
            await router.notify()

    def _snapshot(self, generation: int) -> list[task_service_pb2.WatchTasksResponse]:
        router = self._router
        messages = [
            task_service_pb2.WatchTasksResponse(generation=generation, task=task)
            for task in router.tasks.values()
            if task.state in OPEN
        ]
        if router.cut_snapshot_after is not None:
            messages = messages[: router.cut_snapshot_after]
            router.cut_snapshot_after = None
            router.breaks.set()
            return messages
        router.breaks.clear()
        end = SnapshotComplete(count=len(messages))
        return [*messages, task_service_pb2.WatchTasksResponse(generation=generation, snapshot_complete=end)]


class WorkServicer(work_service_pb2_grpc.WorkServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    async def ClaimTasks(
        self, request: work_service_pb2.ClaimTasksRequest, context: Context
    ) -> work_service_pb2.ClaimTasksResponse:
        await self._router.calls.begin("ClaimTasks", request, context)
        if request.queue not in self._router.projects:
            raise NoSuchProject(project=request.queue)

        def effect() -> work_service_pb2.ClaimTasksResponse:
            return work_service_pb2.ClaimTasksResponse(tasks=self._router.claim(request))

        response = work_service_pb2.ClaimTasksResponse()
        try:
            async with asyncio.timeout(request.wait.ToTimedelta().total_seconds()):
                async with self._router.changed:
                    while not response.tasks:
                        if self._router.ready(request.queue) or self._router.has_answered(request.request_id):
                            response = self._router.once(request, effect)
                        if not response.tasks:
                            await self._router.changed.wait()
        except TimeoutError:
            pass  # nothing was ready in time
        await self._router.notify()
        await self._router.calls.end("ClaimTasks")
        return response

    def _each(
        self, claims: Sequence[work_service_pb2.ClaimRef], change: Callable[[int], Task]
    ) -> list[work_service_pb2.ClaimResult]:
        results = []
        for index, claim in enumerate(claims):
            result = work_service_pb2.ClaimResult(task=claim.task)
            try:
                result.updated.CopyFrom(change(index))
            except HopperError as error:
                result.error.code = code_of(error).value[0]
                result.error.reason = error.reason
                result.error.message = error.message
            results.append(result)
        return results

    async def RenewClaims(
        self, request: work_service_pb2.RenewClaimsRequest, context: Context
    ) -> work_service_pb2.RenewClaimsResponse:
        await self._router.calls.begin("RenewClaims", request, context)
        results = self._each(
            request.claims, lambda index: self._router.renew(request.claims[index], request.lease_duration)
        )
        await self._router.notify()
        return work_service_pb2.RenewClaimsResponse(results=results)

    async def ReportProgress(
        self, request: work_service_pb2.ReportProgressRequest, context: Context
    ) -> work_service_pb2.ReportProgressResponse:
        await self._router.calls.begin("ReportProgress", request, context)
        task = self._router.renew(request.claim, request.lease_duration)
        task.progress.CopyFrom(request.progress)
        self._router.record("PROGRESS", task)
        await self._router.notify()
        return work_service_pb2.ReportProgressResponse(task=task)

    async def CompleteTasks(
        self, request: work_service_pb2.CompleteTasksRequest, context: Context
    ) -> work_service_pb2.CompleteTasksResponse:
        await self._router.calls.begin("CompleteTasks", request, context)
        done = request.completions

        def complete(index: int) -> Task:
            task = self._router.finish(done[index].claim, Task.STATE_SUCCEEDED, "COMPLETE")
            task.result = done[index].result
            return task

        def effect() -> work_service_pb2.CompleteTasksResponse:
            self._router.completed_in_batches.append(len(done))
            results = self._each([each.claim for each in done], complete)
            return work_service_pb2.CompleteTasksResponse(results=results)

        response = self._router.once(request, effect)
        await self._router.notify()
        await self._router.calls.end("CompleteTasks")
        return response

    async def FailTask(
        self, request: work_service_pb2.FailTaskRequest, context: Context
    ) -> work_service_pb2.FailTaskResponse:
        await self._router.calls.begin("FailTask", request, context)

        def effect() -> work_service_pb2.FailTaskResponse:
            task = self._router.finish(request.claim, Task.STATE_FAILED, "FAIL")
            task.failure.CopyFrom(request.failure)
            return work_service_pb2.FailTaskResponse(task=task)

        response = self._router.once(request, effect)
        await self._router.notify()
        return response

    async def ReleaseTask(
        self, request: work_service_pb2.ReleaseTaskRequest, context: Context
    ) -> work_service_pb2.ReleaseTaskResponse:
        await self._router.calls.begin("ReleaseTask", request, context)
        response = self._router.once(
            request, lambda: work_service_pb2.ReleaseTaskResponse(task=self._router.release(request.claim))
        )
        await self._router.notify()
        return response

    async def RequestInput(
        self, request: work_service_pb2.RequestInputRequest, context: Context
    ) -> work_service_pb2.RequestInputResponse:
        await self._router.calls.begin("RequestInput", request, context)
        response = self._router.once(
            request,
            lambda: work_service_pb2.RequestInputResponse(
                task=self._router.ask(request.claim, request.input)
            ),
        )
        await self._router.notify()
        return response


class ProjectServicer(project_service_pb2_grpc.ProjectServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    async def Heartbeat(
        self, request: project_service_pb2.HeartbeatRequest, context: Context
    ) -> project_service_pb2.HeartbeatResponse:
        await self._router.calls.begin("Heartbeat", request, context)
        self._router.workers[request.worker.name] = request.worker
        await self._router.notify()
        interval = Duration()
        interval.FromTimedelta(self._router.heartbeat_interval)
        return project_service_pb2.HeartbeatResponse(worker=request.worker, next_heartbeat=interval)


class MemoryServicer(working_service_pb2_grpc.WorkingMemoryServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    async def PutContext(
        self, request: working_service_pb2.PutContextRequest, context: Context
    ) -> working_service_pb2.PutContextResponse:
        await self._router.calls.begin("PutContext", request, context)
        return working_service_pb2.PutContextResponse(context=request.context)


class RunningRouter:
    """A router on a socket, which can be stopped and started again."""

    def __init__(self, socket: Path) -> None:
        self.router = Router()
        self.socket = socket
        self.address = f"unix:{socket}"
        self._server: HopperServer | None = None
        self._ageing: asyncio.Task[NoReturn] | None = None

    async def start(self) -> None:
        router = self.router
        services: list[tuple[Any, object, Any]] = [
            (
                task_service_pb2.DESCRIPTOR.services_by_name["TaskService"],
                TaskServicer(router),  # type: ignore[abstract]  # the rest is METHOD_NOT_OFFERED
                task_service_pb2_grpc.add_TaskServiceServicer_to_server,
            ),
            (
                work_service_pb2.DESCRIPTOR.services_by_name["WorkService"],
                WorkServicer(router),  # type: ignore[abstract]  # the rest is METHOD_NOT_OFFERED
                work_service_pb2_grpc.add_WorkServiceServicer_to_server,
            ),
            (
                project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"],
                ProjectServicer(router),  # type: ignore[abstract]  # the rest is METHOD_NOT_OFFERED
                project_service_pb2_grpc.add_ProjectServiceServicer_to_server,
            ),
            (
                working_service_pb2.DESCRIPTOR.services_by_name["WorkingMemoryService"],
                MemoryServicer(router),  # type: ignore[abstract]  # the rest is METHOD_NOT_OFFERED
                working_service_pb2_grpc.add_WorkingMemoryServiceServicer_to_server,
            ),
        ]
        self._server = build_server([Registered.of(*service) for service in services])
        listen_unix(self._server, self.socket)
        await self._server.start()
        self._ageing = asyncio.create_task(router.grow_older())

    async def stop(self) -> None:
        """Stop at once: calls under way are cut."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        if self._ageing is not None:
            self._ageing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ageing
            self._ageing = None
