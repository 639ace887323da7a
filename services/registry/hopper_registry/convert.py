"""
Between the contract's messages and the model, both directions side by side.

`..._from_proto` reads what a caller may say and nothing else: output-only fields are not looked at.
`..._to_proto` makes what a caller sees. `stored_...` and `..._from_stored` are the same for the database.
"""

from typing import Any, TypeVar

from google.protobuf.struct_pb2 import Struct

from hopper.common.v1.options_pb2 import TrustLevel
from hopper.registry.v1 import instance_pb2 as ipb
from hopper.registry.v1 import project_pb2 as ppb
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.timestamps import duration_field, from_proto, time_field, to_proto
from hopper_common.working_hours_proto import hours_from_proto, hours_to_proto
from hopper_registry.model import (
    DEFAULT_PERIOD,
    DEFAULT_TIME_TO_LIVE,
    Border,
    Capacity,
    Executor,
    ExecutorType,
    Instance,
    InstanceConfig,
    InstanceSpec,
    Presence,
    Project,
    ProjectSpec,
    ProjectState,
    RateLimit,
    RunSummary,
    Scope,
    State,
    Worker,
)

_E = TypeVar("_E", ProjectState, ExecutorType, Scope, State)

# The names in an enum of the contract are ours behind a prefix.


def _from_enum(kind: type[_E], enum: Any, prefix: str, number: int) -> _E:
    return kind(enum.Name(number).removeprefix(prefix))


def _to_enum(enum: Any, prefix: str, value: str) -> Any:
    return enum.Value(f"{prefix}{value}")


# Projects.


def project_spec_from_proto(proto: ppb.Project) -> ProjectSpec:
    """What a caller says about a project. Unset means the default."""
    return ProjectSpec(
        display_name=proto.display_name,
        description=proto.description,
        capabilities=tuple(proto.capabilities),
        tags=tuple(proto.tags),
        labels=dict(proto.labels),
        examples=tuple(proto.examples),
        velocity_per_day=proto.velocity_per_day,
        sla=duration_field(proto, "sla"),
        capacity=_capacity_from_proto(proto.capacity),
        cost_per_task=proto.cost_per_task,
        executor=_executor_from_proto(proto.executor),
        priority_boosts=dict(proto.priority_boosts),
        state=_from_enum(ProjectState, ppb.Project.State, "STATE_", proto.state)
        if proto.state
        else ProjectState.ACTIVE,
        working_hours=hours_from_proto(proto),
        border=_border_from_proto(proto.border) if proto.HasField("border") else None,
    )


def project_spec_to_proto(spec: ProjectSpec) -> ppb.Project:
    """The whole spec: for merging updates into, and for the database."""
    return ppb.Project(
        display_name=spec.display_name,
        description=spec.description,
        capabilities=spec.capabilities,
        tags=spec.tags,
        labels=spec.labels,
        examples=spec.examples,
        velocity_per_day=spec.velocity_per_day,
        sla=to_proto(spec.sla),
        capacity=_capacity_to_proto(spec.capacity),
        cost_per_task=spec.cost_per_task,
        executor=_executor_to_proto(spec.executor),
        priority_boosts=spec.priority_boosts,
        state=_to_enum(ppb.Project.State, "STATE_", spec.state),
        working_hours=hours_to_proto(spec.working_hours),
        border=_border_to_proto(spec.border),
    )


def _border_from_proto(proto: ppb.Border) -> Border:
    return Border(peer=proto.peer, policy=proto.policy, level=proto.level)


def _border_to_proto(border: Border | None) -> ppb.Border | None:
    if border is None:
        return None
    level = TrustLevel.ValueType(border.level)
    return ppb.Border(peer=border.peer, policy=border.policy, level=level)


def _capacity_from_proto(proto: ppb.Capacity) -> Capacity:
    return Capacity(
        max_running=proto.max_running,
        max_open=proto.max_open,
        max_running_per_key=proto.max_running_per_key,
        start_rate=_rate_from_proto(proto.start_rate) if proto.HasField("start_rate") else None,
        start_rate_per_key=_rate_from_proto(proto.start_rate_per_key)
        if proto.HasField("start_rate_per_key")
        else None,
    )


def _capacity_to_proto(capacity: Capacity) -> ppb.Capacity:
    return ppb.Capacity(
        max_running=capacity.max_running,
        max_open=capacity.max_open,
        max_running_per_key=capacity.max_running_per_key,
        start_rate=_rate_to_proto(capacity.start_rate),
        start_rate_per_key=_rate_to_proto(capacity.start_rate_per_key),
    )


def _rate_from_proto(proto: ppb.RateLimit) -> RateLimit:
    return RateLimit(proto.count, duration_field(proto, "period") or DEFAULT_PERIOD)


def _rate_to_proto(limit: RateLimit | None) -> ppb.RateLimit | None:
    return None if limit is None else ppb.RateLimit(count=limit.count, period=to_proto(limit.period))


def _executor_from_proto(proto: ppb.Executor) -> Executor:
    return Executor(
        type=_from_enum(ExecutorType, ppb.Executor.Type, "TYPE_", proto.type)
        if proto.type
        else ExecutorType.WORKERS,
        config=proto.config.SerializeToString(deterministic=True),
        requires_live_worker=proto.requires_live_worker,
    )


def _executor_to_proto(executor: Executor) -> ppb.Executor:
    return ppb.Executor(
        type=_to_enum(ppb.Executor.Type, "TYPE_", executor.type),
        config=Struct.FromString(executor.config) if executor.config else None,
        requires_live_worker=executor.requires_live_worker,
    )


def project_to_proto(project: Project) -> ppb.Project:
    """A project as callers see it: with presence and etag."""
    proto = stored_project(project)
    proto.etag = project.etag
    proto.presence.CopyFrom(
        ppb.Presence(
            live_workers=project.presence.live_workers,
            slots=project.presence.slots,
            running=project.presence.running,
        )
    )
    return proto


def stored_project(project: Project) -> ppb.Project:
    """A project as the database keeps it: everything but what follows from other columns and tables."""
    proto = project_spec_to_proto(project.spec)
    proto.name = project.name
    proto.create_time.CopyFrom(to_proto(project.create_time))
    proto.update_time.CopyFrom(to_proto(project.update_time))
    return proto


def project_from_stored(body: bytes, revision: int, presence: Presence) -> Project:
    """What `stored_project` made."""
    proto = ppb.Project.FromString(body)
    return Project(
        name=proto.name,
        spec=project_spec_from_proto(proto),
        revision=revision,
        create_time=from_proto(proto.create_time),
        update_time=from_proto(proto.update_time),
        presence=presence,
    )


# Workers.


def worker_from_proto(proto: ppb.Worker) -> Worker:
    """What a worker says of itself, with the defaults filled in."""
    return Worker(
        name=proto.name,
        slots=proto.slots or 1,
        running=proto.running,
        labels=dict(proto.labels),
        time_to_live=duration_field(proto, "time_to_live") or DEFAULT_TIME_TO_LIVE,
    )


def worker_to_proto(worker: Worker) -> ppb.Worker:
    """A worker as the registry knows it."""
    return ppb.Worker(
        name=worker.name,
        slots=worker.slots,
        running=worker.running,
        labels=worker.labels,
        time_to_live=to_proto(worker.time_to_live),
        last_heartbeat_time=to_proto(worker.last_heartbeat_time),
        live=worker.live,
    )


# Instances.


def instance_spec_from_proto(proto: ipb.Instance) -> InstanceSpec:
    """
    What a caller says about an instance.

    Raises:
        InvalidArgument: It has no scope, and there is no default.
    """
    if not proto.scope:
        raise InvalidArgument(violations=[FieldViolation("instance.scope", "is required")])
    return InstanceSpec(
        scope=_from_enum(Scope, ipb.Scope, "SCOPE_", proto.scope),
        parent=proto.parent,
        display_name=proto.display_name,
        project=proto.project,
        config=_config_from_proto(proto.config),
    )


def instance_spec_to_proto(spec: InstanceSpec) -> ipb.Instance:
    """The whole spec, for merging updates into."""
    return ipb.Instance(
        scope=_to_enum(ipb.Scope, "SCOPE_", spec.scope),
        parent=spec.parent,
        display_name=spec.display_name,
        project=spec.project,
        config=_config_to_proto(spec.config),
    )


def _config_from_proto(proto: ipb.InstanceConfig) -> InstanceConfig:
    return InstanceConfig(
        max_workers=proto.max_workers,
        complex_effort=duration_field(proto, "complex_effort"),
        members=tuple(proto.members),
        event_time=time_field(proto, "event_time"),
        manual_accept=proto.manual_accept,
        offer_timeout=duration_field(proto, "offer_timeout"),
        peer=proto.peer,
    )


def _config_to_proto(config: InstanceConfig) -> ipb.InstanceConfig:
    return ipb.InstanceConfig(
        max_workers=config.max_workers,
        complex_effort=to_proto(config.complex_effort),
        members=config.members,
        event_time=to_proto(config.event_time),
        manual_accept=config.manual_accept,
        offer_timeout=to_proto(config.offer_timeout),
        peer=config.peer,
    )


def run_from_proto(proto: ipb.RunSummary) -> RunSummary:
    """How a run went."""
    return RunSummary(
        instance=proto.instance,
        succeeded=proto.succeeded,
        failed=proto.failed,
        returned=proto.returned,
        start_time=time_field(proto, "start_time"),
        end_time=time_field(proto, "end_time"),
    )


def run_to_proto(run: RunSummary) -> ipb.RunSummary:
    """How a run went."""
    return ipb.RunSummary(
        instance=run.instance,
        succeeded=run.succeeded,
        failed=run.failed,
        returned=run.returned,
        start_time=to_proto(run.start_time),
        end_time=to_proto(run.end_time),
    )


def instance_to_proto(instance: Instance) -> ipb.Instance:
    """An instance as callers see it, and as the database keeps it."""
    proto = instance_spec_to_proto(instance.spec)
    proto.name = instance.name
    proto.state = _to_enum(ipb.Instance.State, "STATE_", instance.state)
    proto.state_reason = instance.state_reason
    proto.archive.extend(run_to_proto(run) for run in instance.archive)
    proto.etag = instance.etag
    proto.create_time.CopyFrom(to_proto(instance.create_time))
    proto.update_time.CopyFrom(to_proto(instance.update_time))
    return proto


def instance_from_stored(body: bytes, revision: int) -> Instance:
    """What `instance_to_proto` made."""
    proto = ipb.Instance.FromString(body)
    return Instance(
        name=proto.name,
        spec=instance_spec_from_proto(proto),
        revision=revision,
        create_time=from_proto(proto.create_time),
        update_time=from_proto(proto.update_time),
        state=_from_enum(State, ipb.Instance.State, "STATE_", proto.state),
        state_reason=proto.state_reason,
        archive=tuple(run_from_proto(run) for run in proto.archive),
    )
