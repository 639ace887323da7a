"""What files have to know of the tasks that they are beside: asked of this Hopper's router."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

import grpc.aio

from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.delegation_service_pb2 import ListDelegationsRequest
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2 import GetTaskRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_common.errors import NotFound, ServiceUnavailable, Unavailable
from hopper_common.rpc.errors import DeadlineExceeded
from hopper_common.timestamps import from_proto
from hopper_federation.artifacts.errors import TaskOver
from hopper_federation.delegation.calls import CALL_SECONDS, made

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceAsyncStub
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub

_OVER: Final = frozenset({Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_REJECTED, Task.STATE_CANCELLED})


class Tasks(Protocol):
    """What is asked of tasks."""

    async def require_open(self, task: str) -> None:
        """
        Check that a task is not over.

        Raises:
            TaskOver: It is.
            NotFound: There is none of that name.
            ServiceUnavailable: The router does not answer.
        """

    async def below(self, task: str) -> Sequence[str]:
        """
        The task, and all that were made of it by handing it over, the nearest first.

        Raises:
            NotFound: There is none of that name.
            ServiceUnavailable: The router does not answer.
        """

    async def over_before(self, task: str, moment: datetime) -> bool:
        """
        Whether the task ended before a moment, or is not known any more.

        Raises:
            ServiceUnavailable: The router does not answer.
        """


class RouterTasks:
    """`Tasks`, over a channel to the router."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._tasks: TaskServiceAsyncStub = TaskServiceStub(channel)
        self._delegations: DelegationServiceAsyncStub = DelegationServiceStub(channel)

    async def require_open(self, task: str) -> None:
        """See `Tasks`."""
        found = await self._get(task)
        if found.state in _OVER:
            raise TaskOver(
                f"{task} is over: files are put beside a task before it ends",
                task=task,
                state=Task.State.Name(found.state).removeprefix("STATE_"),
                verb="put an artifact",
            )

    async def below(self, task: str) -> Sequence[str]:
        """See `Tasks`."""
        request = ListDelegationsRequest(task=task)
        try:
            chain = await made(self._delegations.ListDelegations(request, timeout=CALL_SECONDS))
        except (Unavailable, DeadlineExceeded) as error:
            raise ServiceUnavailable(service="router") from error
        return made_of(task, chain.delegations)

    async def over_before(self, task: str, moment: datetime) -> bool:
        """See `Tasks`."""
        try:
            found = await self._get(task)
        except NotFound:
            return True
        return found.state in _OVER and from_proto(found.finish_time) < moment

    async def _get(self, task: str) -> Task:
        try:
            request = GetTaskRequest(name=task)
            return (await made(self._tasks.GetTask(request, timeout=CALL_SECONDS))).task
        except (Unavailable, DeadlineExceeded) as error:
            raise ServiceUnavailable(service="router") from error


def made_of(task: str, chain: Sequence[Delegation]) -> Sequence[str]:
    """The task and what was made of it, the nearest first, by the delegations of its chain."""
    found, level = {task: None}, [task]
    while level:
        level = [
            child
            for delegation in chain
            if delegation.task in level
            for child in delegation.child_tasks
            if child not in found
        ]
        found |= dict.fromkeys(level)
    return list(found)
