"""
Hopper, measured like its peers: `… ADDRESS CERTIFICATES`, over mTLS.

Work is done in one of two ways: `claim`, two calls in flight that claim 100 and complete 100 each; `stream`, one Work
stream with 200 slots.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from hopper.router.v1 import task_pb2, task_service_pb2, work_service_pb2
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.rpc.channel import OPTIONS
from tests.bench import message
from tests.bench.certificates import channel_credentials
from tests.bench.peers.serving import Peer, body, sent_of, serve

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

_CLAIM: Final = 100
_IN_FLIGHT: Final = 2
_SLOTS: Final = 200
_WAIT: Final = 10
_WORKER: Final = "bench"
_SENT: Final = "key0"
"""The label that carries when a task was sent: tasks stay of one size, and are routed by their text."""


class TasksLost(Exception):
    """The router refused what the benchmark needs."""


class HopperPeer(Peer):
    """See `serving.Peer`."""

    def __init__(self, tasks: TaskServiceAsyncStub, work: WorkServiceAsyncStub) -> None:
        self._tasks = tasks
        self._work = work

    @classmethod
    async def make(cls, address: str) -> HopperPeer:
        """Connect."""
        credentials = channel_credentials(Path(sys.argv[2]))
        channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
        return cls(TaskServiceStub(channel), WorkServiceStub(channel))

    async def enqueue(self, bodies: Sequence[str]) -> None:
        if len(bodies) == 1:
            response = await self._tasks.SubmitTask(
                task_service_pb2.SubmitTaskRequest(parent=message.ROOT, spec=_spec(bodies[0]))
            )
            _check_project(response.task)
        else:
            await self._enqueue_batch(bodies)

    async def _enqueue_batch(self, bodies: Sequence[str]) -> None:
        items = [task_service_pb2.SubmitTasksItem(spec=_spec(text)) for text in bodies]
        request = task_service_pb2.SubmitTasksRequest(parent=message.ROOT, items=items)
        for result in (await self._tasks.SubmitTasks(request)).results:
            if result.HasField("error"):
                raise TasksLost(f"a task was refused: {result.error.reason}")
            _check_project(result.task)

    async def clear(self) -> None:
        raise NotImplementedError("tasks are worked off, never forgotten")

    async def work(self, count: int, started: Callable[[str], None], options: Mapping[str, Any]) -> None:
        ways = {"claim": self._claim, "stream": self._stream}
        await ways[options.get("how", "claim")](count, started)

    # Calls.

    async def _claim(self, count: int, started: Callable[[str], None]) -> None:
        left = count

        async def loop() -> None:
            nonlocal left
            while left > 0:
                most = min(_CLAIM, left)
                left -= most
                tasks = await self._claimed(most)
                left += most - len(tasks)
                for task in tasks:
                    started(_sent(task))
                if tasks:
                    await self._complete(tasks)

        await asyncio.gather(*(loop() for _ in range(_IN_FLIGHT)))

    async def _claimed(self, most: int) -> list[task_pb2.Task]:
        request = work_service_pb2.ClaimTasksRequest(queue=message.QUEUE, worker=_WORKER, max_tasks=most)
        request.wait.seconds = _WAIT
        return list((await self._work.ClaimTasks(request)).tasks)

    async def _complete(self, tasks: Sequence[task_pb2.Task]) -> None:
        _check_ended((await self._work.CompleteTasks(_completions(tasks))).results)

    # The stream.

    async def _stream(self, count: int, started: Callable[[str], None]) -> None:
        call = self._work.Work()
        opened = work_service_pb2.WorkOpen(queue=message.QUEUE, worker=_WORKER)
        await call.write(work_service_pb2.WorkRequest(open=opened))
        await call.write(_slots(min(_SLOTS, count)))
        begun = done = 0
        while done < count:
            response = await call.read()
            if not isinstance(response, work_service_pb2.WorkResponse):
                raise TasksLost("the router ended the stream")
            if response.HasField("assigned"):
                begun += len(response.assigned.tasks)
                for task in response.assigned.tasks:
                    started(_sent(task))
                complete = _completions(response.assigned.tasks)
                await call.write(work_service_pb2.WorkRequest(complete=complete))
            else:
                _check_ended(response.answer.results)
                done += len(response.answer.results)
                await call.write(_slots(min(_SLOTS - (begun - done), count - begun)))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass


def _slots(free: int) -> work_service_pb2.WorkRequest:
    return work_service_pb2.WorkRequest(slots=work_service_pb2.WorkSlots(free=max(0, free)))


def _spec(text: str) -> task_pb2.TaskSpec:
    spec = message.spec(message.HOT)
    spec.labels[_SENT] = str(sent_of(text))
    return spec


def _sent(task: task_pb2.Task) -> str:
    return body(int(task.spec.labels[_SENT]))


def _completions(tasks: Sequence[task_pb2.Task]) -> work_service_pb2.CompleteTasksRequest:
    return work_service_pb2.CompleteTasksRequest(
        completions=[
            work_service_pb2.Completion(
                claim=work_service_pb2.ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
            )
            for task in tasks
        ]
    )


def _check_ended(results: Sequence[work_service_pb2.ClaimResult]) -> None:
    for result in results:
        if result.HasField("error"):
            raise TasksLost(f"a task was not completed: {result.error.reason}")


def _check_project(task: task_pb2.Task) -> None:
    if task.project != message.QUEUE:
        raise TasksLost(f"a task was routed to {task.project or 'nobody'}, not to {message.QUEUE}")


if __name__ == "__main__":
    serve(HopperPeer.make, sys.argv[1])
