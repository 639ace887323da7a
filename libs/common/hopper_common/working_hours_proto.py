"""Working hours between the contract's message and `working_hours`, both directions side by side."""

from __future__ import annotations

from hopper.registry.v1 import project_pb2
from hopper_common.working_hours import Stretch, WorkingHours


def hours_from_proto(project: project_pb2.Project) -> WorkingHours | None:
    """What a project says; None: it always works."""
    if not project.HasField("working_hours"):
        return None
    hours = project.working_hours
    return WorkingHours(
        tuple(Stretch(each.weekday, each.from_minute, each.to_minute) for each in hours.stretches),
        hours.time_zone or "UTC",
    )


def hours_to_proto(hours: WorkingHours | None) -> project_pb2.WorkingHours | None:
    """The field's value; None leaves it unset."""
    if hours is None:
        return None
    return project_pb2.WorkingHours(
        time_zone=hours.time_zone,
        stretches=[project_pb2.WorkingStretch(**each._asdict()) for each in hours.stretches],
    )
