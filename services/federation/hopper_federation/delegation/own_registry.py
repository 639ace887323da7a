"""The registry of this Hopper, as it is: its projects and instances, for those who read them again and again."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc.aio
import structlog

from hopper.registry.v1.instance_pb2 import Instance
from hopper.registry.v1.instance_service_pb2 import WatchInstancesRequest
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import WatchProjectsRequest
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper_common.database import Signal
from hopper_common.errors import HopperError
from hopper_federation.delegation.calls import Followed

log = structlog.get_logger(__name__)

_AGAIN_AFTER: Final = 1.0


class OwnRegistry:
    """
    Runs beside the server. While the registry is away, what it said last holds.

    Attributes:
        projects, instances: By name.
        changed: Fires after each change, but for who works there now: that changes all the time.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.projects: dict[str, Project] = {}
        self.instances: dict[str, Instance] = {}
        self.changed = Signal()
        self._whole: set[str] = set()
        self._watch_projects = ProjectServiceStub(channel).WatchProjects
        self._watch_instances = InstanceServiceStub(channel).WatchInstances

    @property
    def known(self) -> bool:
        """Whether it has told all of both."""
        return {"projects", "instances"} == self._whole

    async def run(self) -> None:
        """Follow it for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._follow("projects", lambda: self._watch_projects(WatchProjectsRequest()), self.projects)
            )
            group.create_task(
                self._follow(
                    "instances", lambda: self._watch_instances(WatchInstancesRequest()), self.instances
                )
            )

    async def _follow(self, what: str, watch: Callable[[], Any], held: dict[str, Any]) -> None:
        while True:
            try:
                await self._take(what, Followed(watch()), held)
            except HopperError as error:
                log.info("the registry is not followed", what=what, reason=error.reason)
            await asyncio.sleep(_AGAIN_AFTER)

    async def _take(self, what: str, stream: Followed, held: dict[str, Any]) -> None:
        """Take over all that there is, once all of it has come, and then each change."""
        whole: dict[str, Any] | None = {}
        async for message in stream:
            event = message.WhichOneof("event")
            if whole is not None and event == "changed":
                whole[message.changed.name] = message.changed
                continue
            if event == "snapshot_complete":
                held.clear()
                held.update(whole or {})
                whole = None
                self._whole.add(what)
            elif event == "changed":
                before = held.get(message.changed.name)
                held[message.changed.name] = message.changed
                if before is not None and _same_but_for_presence(before, message.changed):
                    continue
            elif event == "removed":
                held.pop(message.removed, None)
            self.changed.fire()


def _same_but_for_presence(before: Project | Instance, after: Project | Instance) -> bool:
    if not isinstance(before, Project) or not isinstance(after, Project):
        return before == after
    one, other = Project(), Project()
    one.CopyFrom(before)
    other.CopyFrom(after)
    one.ClearField("presence")
    other.ClearField("presence")
    return one == other
