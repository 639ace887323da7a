"""
Tasks between this Hopper's router and the border: what of one is offered, and what is made of one that came.

Labels that begin with `hopper.` are marks of this Hopper's own: they do not leave, and those of others do not come in.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1.task_pb2 import RetryPolicy, TaskSpec
from hopper_common.border.grants import Crossing, Direction
from hopper_common.timestamps import duration_field, time_field, to_proto
from hopper_federation.delegation.model import Delegation

MARK: Final = "hopper."
PEER: Final = "hopper.peer"
DELEGATION: Final = "hopper.delegation"
TASK_UID: Final = "hopper.task_uid"
PATH: Final = "hopper.path"
"""Install ids of the Hoppers it came through, the last ones that fit, with commas."""

_MOST_LABELS: Final = 64
_MOST_LABEL: Final = 100
_MOST_REQUESTER: Final = 63


def body_of(spec: TaskSpec) -> dpb.TaskBody:
    """What of a task is there to be offered."""
    body = dpb.TaskBody(
        title=spec.title,
        description=spec.description,
        tags=spec.tags,
        required_capabilities=spec.required_capabilities,
        labels=_without_marks({**spec.required_labels, **spec.labels}),
        priority=spec.priority,
        payload=spec.payload,
        requester=spec.requester,
    )
    if spec.HasField("estimated_effort"):
        body.estimated_effort.CopyFrom(spec.estimated_effort)
    if spec.clocks.HasField("run_for"):
        body.run_for.CopyFrom(spec.clocks.run_for)
    return body


def crossing_of(body: dpb.TaskBody, *, exclusive: bool, origin: str) -> Crossing:
    """
    A task that would leave, as policies see it.

    Args:
        origin: Install id of the third Hopper it is of; empty: it is this one's own.
    """
    labels = [f"{key}={value}" for key, value in sorted(body.labels.items())]
    return Crossing(
        Direction.OUT,
        capabilities=tuple(body.required_capabilities),
        labels=(*body.tags, *labels),
        priority=body.priority,
        bytes=body.ByteSize(),
        exclusive=exclusive,
        origin=origin,
    )


def spec_of(
    body: dpb.TaskBody, delegation: Delegation, *, peer: str, path: Iterable[str], close_by: datetime | None
) -> TaskSpec:
    """
    What is made of a task that came.

    A failed attempt is not tried again here: whoever handed it over has its retry policy, and does that.

    Args:
        peer: What whoever handed it over is called here: `peers/{id}`.
        path: Install ids of every Hopper it came through, oldest first.
        close_by: When it must have ended.
    """
    marks = {
        PEER: peer,
        DELEGATION: delegation.id,
        TASK_UID: delegation.task_uid,
        PATH: _fitting(path),
    }
    labels = _without_marks(body.labels)
    for key in sorted(labels)[_MOST_LABELS - len(marks) :]:
        del labels[key]
    spec = TaskSpec(
        title=body.title,
        description=body.description,
        tags=body.tags,
        required_capabilities=body.required_capabilities,
        labels={**labels, **marks},
        priority=body.priority,
        payload=body.payload,
        requester=f"peer.{peer.removeprefix('peers/')}"[:_MOST_REQUESTER],
        retry=RetryPolicy(max_attempts=1),
        exclusive=delegation.exclusive,
    )
    _set_clocks(spec, body, close_by)
    return spec


def _set_clocks(spec: TaskSpec, body: dpb.TaskBody, close_by: datetime | None) -> None:
    if (effort := duration_field(body, "estimated_effort")) is not None:
        spec.estimated_effort.CopyFrom(to_proto(effort))
    if (run_for := duration_field(body, "run_for")) is not None:
        spec.clocks.run_for.CopyFrom(to_proto(run_for))
    if close_by is not None:
        spec.clocks.finish_by.CopyFrom(to_proto(close_by))


def time_left(spec: TaskSpec, clock: str, now: datetime) -> timedelta | None:
    """How long a task has until one of its clocks runs out; None: it does not run."""
    time = time_field(spec.clocks, clock)
    return None if time is None else max(timedelta(seconds=1), time - now)


def _without_marks(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(MARK)}


def _fitting(path: Iterable[str]) -> str:
    fitting = ""
    for install_id in reversed(list(path)):
        longer = f"{install_id},{fitting}" if fitting else install_id
        if len(longer) > _MOST_LABEL:
            break
        fitting = longer
    return fitting
