"""
The two services of the registry, one method per RPC: convert, call, convert, answer.

Who may call, and the limits of every field, have been checked before a method is reached
(`hopper_common.rpc`); domain errors pass through to be answered there.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.registry.v1 import instance_pb2 as ipb
from hopper.registry.v1 import instance_service_pb2 as isvc
from hopper.registry.v1 import project_pb2 as ppb
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceServicer
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceServicer
from hopper_common import fieldmask
from hopper_common.auth.current import current
from hopper_common.auth.model import Kind, Principal, Service
from hopper_common.errors import FieldViolation, InvalidArgument, PermissionDenied
from hopper_common.eventlog import Event
from hopper_common.pagination import PageTokens
from hopper_common.rpc.limits import check_limits
from hopper_common.timestamps import to_proto
from hopper_registry import access, instances, projects
from hopper_registry.convert import (
    instance_spec_from_proto,
    instance_spec_to_proto,
    instance_to_proto,
    project_spec_from_proto,
    project_spec_to_proto,
    project_to_proto,
    run_from_proto,
    worker_from_proto,
    worker_to_proto,
)
from hopper_registry.model import Instance, InstanceSpec, ProjectSpec
from hopper_registry.paging import page_of, place_of
from hopper_registry.store_sql import (
    INSTANCE_CHANGED,
    PROJECT_CHANGED,
    PROJECT_REMOVED,
    Registry,
    SqlStore,
)

MUTABLE_OF_PROJECT = (
    "display_name",
    "description",
    "capabilities",
    "tags",
    "labels",
    "examples",
    "velocity_per_day",
    "sla",
    "capacity",
    "cost_per_task",
    "executor",
    "priority_boosts",
    "state",
    "working_hours",
    "border",
)
MUTABLE_OF_INSTANCE = ("display_name", "project", "config")

_Context = grpc.aio.ServicerContext[Any, Any]


class ProjectServicer(ProjectServiceServicer):
    """`hopper.registry.v1.ProjectService`."""

    def __init__(self, registry: Registry, tokens: PageTokens) -> None:
        self._registry = registry
        self._tokens = tokens

    async def RegisterProject(
        self, request: psvc.RegisterProjectRequest, context: _Context
    ) -> psvc.RegisterProjectResponse:
        spec = project_spec_from_proto(request.project)
        if spec.border is not None:
            _require_keeper_of_borders(current())

        def effect(store: SqlStore) -> psvc.RegisterProjectResponse:
            project = projects.register(store, f"projects/{request.project_id}", spec)
            return psvc.RegisterProjectResponse(project=project_to_proto(project))

        return await self._registry.answer(request, psvc.RegisterProjectResponse, effect)

    async def GetProject(self, request: psvc.GetProjectRequest, context: _Context) -> psvc.GetProjectResponse:
        project = await self._registry.read(lambda store: projects.get(store, request.name))
        return psvc.GetProjectResponse(project=project_to_proto(project))

    async def ListProjects(
        self, request: psvc.ListProjectsRequest, context: _Context
    ) -> psvc.ListProjectsResponse:
        after, size = place_of(self._tokens, request)
        found = await self._registry.read(
            lambda store: store.projects(
                after=after, limit=size + 1, capability=request.capability, tag=request.tag
            )
        )
        page, token = page_of(map(project_to_proto, found), size, self._tokens, request)
        return psvc.ListProjectsResponse(projects=page, next_page_token=token)

    async def UpdateProject(
        self, request: psvc.UpdateProjectRequest, context: _Context
    ) -> psvc.UpdateProjectResponse:
        _require_name(request.project.name, "project.name")
        caller = current()

        def change(spec: ProjectSpec) -> ProjectSpec:
            changed = _merge_project(request, spec)
            if changed.border != spec.border:
                _require_keeper_of_borders(caller)
            return changed

        def effect(store: SqlStore) -> psvc.UpdateProjectResponse:
            project = projects.update(store, request.project.name, request.project.etag, change)
            return psvc.UpdateProjectResponse(project=project_to_proto(project))

        return await self._registry.answer(request, psvc.UpdateProjectResponse, effect)

    async def UnregisterProject(
        self, request: psvc.UnregisterProjectRequest, context: _Context
    ) -> psvc.UnregisterProjectResponse:
        def effect(store: SqlStore) -> psvc.UnregisterProjectResponse:
            projects.unregister(store, request.name, request.etag)
            access.unbind(store, request.name)
            return psvc.UnregisterProjectResponse()

        return await self._registry.answer(request, psvc.UnregisterProjectResponse, effect)

    async def Heartbeat(self, request: psvc.HeartbeatRequest, context: _Context) -> psvc.HeartbeatResponse:
        worker = worker_from_proto(request.worker)
        heard = await self._registry.write(lambda store: projects.heartbeat(store, worker))
        return psvc.HeartbeatResponse(
            worker=worker_to_proto(heard), next_heartbeat=to_proto(heard.next_heartbeat)
        )

    async def ListWorkers(
        self, request: psvc.ListWorkersRequest, context: _Context
    ) -> psvc.ListWorkersResponse:
        after, size = place_of(self._tokens, request)
        found = await self._registry.read(
            lambda store: projects.workers(store, request.project, after=after, limit=size + 1)
        )
        page, token = page_of(map(worker_to_proto, found), size, self._tokens, request)
        return psvc.ListWorkersResponse(workers=page, next_page_token=token)

    async def WatchProjects(
        self, request: psvc.WatchProjectsRequest, context: _Context
    ) -> AsyncIterator[psvc.WatchProjectsResponse]:
        after = request.after_version
        if not after:
            after, found = await self._registry.read(lambda store: (store.version, store.projects()))
            for project in found:
                yield psvc.WatchProjectsResponse(version=after, changed=project_to_proto(project))
            yield psvc.WatchProjectsResponse(
                version=after, snapshot_complete=SnapshotComplete(count=len(found))
            )
        topics = (PROJECT_CHANGED, PROJECT_REMOVED)
        async with aclosing(self._registry.changes(after=after, topics=topics)) as batches:
            async for batch in batches:
                for event in batch:
                    yield _project_event(event)


class InstanceServicer(InstanceServiceServicer):
    """`hopper.registry.v1.InstanceService`."""

    def __init__(self, registry: Registry, tokens: PageTokens) -> None:
        self._registry = registry
        self._tokens = tokens

    async def CreateInstance(
        self, request: isvc.CreateInstanceRequest, context: _Context
    ) -> isvc.CreateInstanceResponse:
        spec = instance_spec_from_proto(request.instance)

        def effect(store: SqlStore) -> isvc.CreateInstanceResponse:
            instance = instances.create(store, f"instances/{request.instance_id}", spec)
            return isvc.CreateInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.CreateInstanceResponse, effect)

    async def GetInstance(
        self, request: isvc.GetInstanceRequest, context: _Context
    ) -> isvc.GetInstanceResponse:
        instance = await self._registry.read(lambda store: instances.get(store, request.name))
        return isvc.GetInstanceResponse(instance=instance_to_proto(instance))

    async def ListInstances(
        self, request: isvc.ListInstancesRequest, context: _Context
    ) -> isvc.ListInstancesResponse:
        after, size = place_of(self._tokens, request)
        found = await self._registry.read(
            lambda store: store.instances(after=after, limit=size + 1, parent=request.parent)
        )
        page, token = page_of(map(instance_to_proto, found), size, self._tokens, request)
        return isvc.ListInstancesResponse(instances=page, next_page_token=token)

    async def UpdateInstance(
        self, request: isvc.UpdateInstanceRequest, context: _Context
    ) -> isvc.UpdateInstanceResponse:
        _require_name(request.instance.name, "instance.name")

        def effect(store: SqlStore) -> isvc.UpdateInstanceResponse:
            name, etag = request.instance.name, request.instance.etag
            instance = instances.update(store, name, etag, lambda spec: _merge_instance(request, spec))
            return isvc.UpdateInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.UpdateInstanceResponse, effect)

    async def GetTree(self, request: isvc.GetTreeRequest, context: _Context) -> isvc.GetTreeResponse:
        nodes = await self._registry.read(
            lambda store: instances.tree(store, request.root, terminated=request.show_terminated)
        )
        return isvc.GetTreeResponse(root=_tree(nodes))

    async def StartInstance(
        self, request: isvc.StartInstanceRequest, context: _Context
    ) -> isvc.StartInstanceResponse:
        def effect(store: SqlStore) -> isvc.StartInstanceResponse:
            instance = instances.start(store, request.name)
            return isvc.StartInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.StartInstanceResponse, effect)

    async def PauseInstance(
        self, request: isvc.PauseInstanceRequest, context: _Context
    ) -> isvc.PauseInstanceResponse:
        def effect(store: SqlStore) -> isvc.PauseInstanceResponse:
            instance = instances.pause(store, request.name, request.reason)
            return isvc.PauseInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.PauseInstanceResponse, effect)

    async def ResumeInstance(
        self, request: isvc.ResumeInstanceRequest, context: _Context
    ) -> isvc.ResumeInstanceResponse:
        def effect(store: SqlStore) -> isvc.ResumeInstanceResponse:
            instance = instances.resume(store, request.name)
            return isvc.ResumeInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.ResumeInstanceResponse, effect)

    async def StopInstance(
        self, request: isvc.StopInstanceRequest, context: _Context
    ) -> isvc.StopInstanceResponse:
        def effect(store: SqlStore) -> isvc.StopInstanceResponse:
            instance = instances.stop(store, request.name, request.reason)
            return isvc.StopInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.StopInstanceResponse, effect)

    async def TerminateInstance(
        self, request: isvc.TerminateInstanceRequest, context: _Context
    ) -> isvc.TerminateInstanceResponse:
        def effect(store: SqlStore) -> isvc.TerminateInstanceResponse:
            instance = instances.terminate(store, request.name)
            return isvc.TerminateInstanceResponse(instance=instance_to_proto(instance))

        return await self._registry.answer(request, isvc.TerminateInstanceResponse, effect)

    async def ReportInstance(
        self, request: isvc.ReportInstanceRequest, context: _Context
    ) -> isvc.ReportInstanceResponse:
        report = _report(request)

        def effect(store: SqlStore) -> isvc.ReportInstanceResponse:
            return isvc.ReportInstanceResponse(instance=instance_to_proto(report(store)))

        return await self._registry.answer(request, isvc.ReportInstanceResponse, effect)

    async def WatchInstances(
        self, request: isvc.WatchInstancesRequest, context: _Context
    ) -> AsyncIterator[isvc.WatchInstancesResponse]:
        after = request.after_version
        if not after:
            after, found = await self._registry.read(lambda store: (store.version, store.instances()))
            for instance in found:
                yield isvc.WatchInstancesResponse(version=after, changed=instance_to_proto(instance))
            yield isvc.WatchInstancesResponse(
                version=after, snapshot_complete=SnapshotComplete(count=len(found))
            )
        async with aclosing(self._registry.changes(after=after, topics=(INSTANCE_CHANGED,))) as batches:
            async for batch in batches:
                for event in batch:
                    changed = ipb.Instance.FromString(event.body)
                    yield isvc.WatchInstancesResponse(version=event.version, changed=changed)


def _project_event(event: Event) -> psvc.WatchProjectsResponse:
    if event.topic == PROJECT_REMOVED:
        return psvc.WatchProjectsResponse(version=event.version, removed=event.key)
    return psvc.WatchProjectsResponse(version=event.version, changed=ppb.Project.FromString(event.body))


# Updates.


def _require_keeper_of_borders(caller: Principal) -> None:
    """Refuse who says what may leave for a peer, and is neither the federation service nor the owner."""
    if caller.kind is not Kind.OWNER and caller.service is not Service.FEDERATION:
        raise PermissionDenied(
            "what may leave for a peer follows from its policy: see `hopper peer policy`",
            rule="a border is the federation service's to set",
        )


def _require_name(name: str, path: str) -> None:
    if not name:
        raise InvalidArgument(violations=[FieldViolation(path, "is required")])


def _merge_project(request: psvc.UpdateProjectRequest, spec: ProjectSpec) -> ProjectSpec:
    merged = project_spec_to_proto(spec)
    fieldmask.merge(request.update_mask, request.project, merged, mutable=MUTABLE_OF_PROJECT)
    check_limits(psvc.UpdateProjectRequest(project=merged))
    return project_spec_from_proto(merged)


def _merge_instance(request: isvc.UpdateInstanceRequest, spec: InstanceSpec) -> InstanceSpec:
    merged = instance_spec_to_proto(spec)
    fieldmask.merge(request.update_mask, request.instance, merged, mutable=MUTABLE_OF_INSTANCE)
    check_limits(isvc.UpdateInstanceRequest(instance=merged))
    return instance_spec_from_proto(merged)


# Reports.


def _report(request: isvc.ReportInstanceRequest) -> Callable[[SqlStore], Instance]:
    if request.state == ipb.Instance.STATE_STOPPED:
        run = run_from_proto(request.run) if request.HasField("run") else None
        return lambda store: instances.report_stopped(store, request.name, request.reason, run)
    if violations := list(_violations_of_failure(request)):
        raise InvalidArgument(violations=violations)
    return lambda store: instances.report_failed(store, request.name, request.reason)


def _violations_of_failure(request: isvc.ReportInstanceRequest) -> Iterable[FieldViolation]:
    if request.state != ipb.Instance.STATE_ERROR:
        yield FieldViolation("state", "must be STOPPED or ERROR: the other states are reached by verbs")
        return
    if not request.reason:
        yield FieldViolation("reason", "is required with ERROR")
    if request.HasField("run"):
        yield FieldViolation("run", "goes with STOPPED only")


# Trees.


def _tree(nodes: Sequence[Instance]) -> isvc.TreeNode:
    """Hang nodes, of which the upper levels come first, below the first of them."""
    top = isvc.TreeNode(instance=instance_to_proto(nodes[0]))
    placed = {nodes[0].name: top}
    for node in nodes[1:]:
        placed[node.name] = placed[node.spec.parent].children.add(instance=instance_to_proto(node))
    return top
