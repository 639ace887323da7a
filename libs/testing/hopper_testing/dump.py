"""What is there in the end, as anybody can see it: every task, and the whole log of changes, taken over gRPC."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.router.v1.task_pb2 import Task, TaskView
from hopper.router.v1.task_service_pb2 import ListTasksRequest, WatchTasksRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub

EVERY_STATE: Final = [state for state in Task.State.values() if state != Task.STATE_UNSPECIFIED]

_PAGE: Final = 1000
_PATIENCE_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """
    A task as it is.

    Attributes:
        state: Without the prefix, e.g. `QUEUED`; of unset, "".
        result: In hexadecimal digits.
    """

    name: str
    title: str
    state: str
    generation: int
    result: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """
    A change as the log has it. Times are the server's, in microseconds; 0: unset.

    Attributes:
        worker, start, lease_end: Of the claim right after the change, where there is one.
    """

    generation: int
    task: str
    kind: str
    from_state: str
    state: str
    time: int = 0
    worker: str = ""
    start: int = 0
    lease_end: int = 0


@dataclass(slots=True)
class Dump:
    """
    Everything that can be seen.

    Attributes:
        after: Tasks that changed after this generation are given, and the log from there on.
        head: The log's last generation when the tasks were listed.
        taken: When, by the server's machine's clock.
    """

    tasks: list[TaskFacts] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    after: int = 0
    head: int = 0
    taken: int = 0


def take_dump(address: str, *, after: int = 1) -> Dump:
    """
    Look at everything. The server should be at rest: what changes meanwhile may be in one half of the dump only.

    Args:
        after: Only what changed after this generation, when no task was open. 0 cannot be asked for.
    """
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = TaskServiceStub(channel)
        grpc.channel_ready_future(channel).result(timeout=_PATIENCE_SECONDS)
        head = _head(stub)
        tasks = list(_tasks(stub, after))
        taken = datetime.now(UTC)
        return Dump(tasks, list(_events(stub, after, head)), after, head, _micros_of(taken))


def _head(stub: TaskServiceStub) -> int:
    """The log's last generation: that of a snapshot."""
    watch = stub.WatchTasks(WatchTasksRequest(), timeout=_PATIENCE_SECONDS)
    try:
        return next(iter(watch)).generation
    finally:
        watch.cancel()


def _tasks(stub: TaskServiceStub, after: int) -> Iterator[TaskFacts]:
    """Newest first; once a page has none that changed later, there is none behind it."""
    request = ListTasksRequest(page_size=_PAGE, states=EVERY_STATE, view=TaskView.TASK_VIEW_FULL)
    while True:
        page = stub.ListTasks(request, timeout=_PATIENCE_SECONDS)
        later = [task for task in page.tasks if task.generation > after]
        for task in later:
            yield TaskFacts(
                task.name, task.spec.title, state_name(task.state), task.generation, task.result.hex()
            )
        if not later or not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _events(stub: TaskServiceStub, after: int, head: int) -> Iterator[Event]:
    """The log from *after* to *head*."""
    if head <= after:
        return
    watch = stub.WatchTasks(WatchTasksRequest(after_generation=after), timeout=_PATIENCE_SECONDS)
    try:
        for response in watch:
            change = response.change
            if response.generation <= head:
                yield event_facts(
                    response.generation, change.kind, state_name(change.from_state), change.task
                )
            if response.generation >= head:
                return
    finally:
        watch.cancel()


def event_facts(generation: int, kind: str, from_state: str, task: Task) -> Event:
    """A change, as the checker wants it."""
    return Event(
        generation=generation,
        task=task.name,
        kind=kind,
        from_state=from_state,
        state=state_name(task.state),
        time=micros(task.update_time),
        worker=task.claim.worker,
        start=micros(task.claim.start_time),
        lease_end=micros(task.claim.lease_expire_time),
    )


def state_name(state: Task.State.ValueType) -> str:
    """`QUEUED` of STATE_QUEUED; "" of none."""
    return "" if state == Task.STATE_UNSPECIFIED else Task.State.Name(state).removeprefix("STATE_")


def micros(time: Timestamp) -> int:
    """Microseconds since 1970; 0 if unset."""
    return time.ToMicroseconds()


def _micros_of(time: datetime) -> int:
    return round(time.timestamp() * 1e6)
