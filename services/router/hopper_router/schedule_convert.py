"""Schedules between the contract's messages and the core's nouns, both directions side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final

from hopper.router.v1 import schedule_pb2 as pb
from hopper.router.v1 import task_pb2
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.timestamps import duration_field, time_field, to_proto
from hopper_router.convert import item_error, spec_from_proto, spec_to_proto
from hopper_router.schedules import DEFAULT_CATCH_UP, CatchUp, Definition, Overlap, Refusal, Schedule

MUTABLE: Final = (
    "instance", "spec", "cron", "time_zone", "start_time", "end_time", "overlap", "max_open", "catch_up",
    "max_catch_up", "jitter", "start_within", "finish_within",
)  # fmt: skip
"""What people say about a schedule; the rest of the message is output only."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as it is stored, and where its task is now; an empty state: nobody knows."""

    id: str
    schedule: str
    time: datetime
    by_hand: bool
    run_time: datetime
    task: str = ""
    error: Refusal | None = None
    task_state: str = ""


def definition_from_proto(message: pb.Schedule) -> Definition:
    """
    What was said about a schedule, with the contract's defaults where nothing was said.

    Raises:
        InvalidArgument: An enum's value that there is not, or a time outside the years 1 to 9999.
    """
    overlap = _known(pb.Schedule.Overlap, message.overlap, "OVERLAP_", "overlap") or "SKIP"
    catch_up = _known(pb.Schedule.CatchUp, message.catch_up, "CATCH_UP_", "catch_up") or "ONE"
    return Definition(
        instance=message.instance,
        spec=spec_from_proto(message.spec),
        cron=message.cron.strip(),
        time_zone=message.time_zone or "UTC",
        start_time=time_field(message, "start_time"),
        end_time=time_field(message, "end_time"),
        overlap=Overlap(overlap),
        max_open=message.max_open,
        catch_up=CatchUp(catch_up),
        max_catch_up=message.max_catch_up or DEFAULT_CATCH_UP,
        jitter=duration_field(message, "jitter") or timedelta(),
        start_within=duration_field(message, "start_within"),
        finish_within=duration_field(message, "finish_within"),
    )


def _known(enum: type[object], value: int, prefix: str, name: str) -> str:
    """The value's name without its prefix; empty: it is not set."""
    if value not in enum.values():  # type: ignore[attr-defined]  # of the generated enums
        raise InvalidArgument(violations=[FieldViolation(f"schedule.{name}", "is none that there is")])
    word = str(enum.Name(value)).removeprefix(prefix)  # type: ignore[attr-defined]
    return "" if word == "UNSPECIFIED" else word


def definition_to_proto(definition: Definition) -> pb.Schedule:
    """The same as a message, with its defaults written out."""
    return pb.Schedule(
        instance=definition.instance,
        spec=spec_to_proto(definition.spec),
        cron=definition.cron,
        time_zone=definition.time_zone,
        start_time=to_proto(definition.start_time),
        end_time=to_proto(definition.end_time),
        overlap=pb.Schedule.Overlap.Value(f"OVERLAP_{definition.overlap.value}"),
        max_open=definition.max_open,
        catch_up=pb.Schedule.CatchUp.Value(f"CATCH_UP_{definition.catch_up.value}"),
        max_catch_up=definition.max_catch_up,
        jitter=to_proto(definition.jitter) if definition.jitter else None,
        start_within=to_proto(definition.start_within),
        finish_within=to_proto(definition.finish_within),
    )


def schedule_to_proto(
    schedule: Schedule, runs: Sequence[Run], *, upcoming: Iterable[datetime] = (), full: bool = True
) -> pb.Schedule:
    """
    A schedule as callers see it.

    Args:
        runs: Its last runs, newest first.
        full: With all of its runs, and its spec's description and payload.
    """
    out = definition_to_proto(schedule.definition)
    if not full:
        out.spec.ClearField("description")
        out.spec.ClearField("payload")
    out.name, out.etag = schedule.name, schedule.etag
    out.state, out.pause_reason = _state(schedule), schedule.pause_reason
    out.run_count, out.skip_count = schedule.runs, schedule.skips
    out.miss_count, out.error_count = schedule.misses, schedule.errors
    for name in ("next_time", "error_time", "create_time", "update_time"):
        time = getattr(schedule, name)
        if time is not None:
            getattr(out, name).CopyFrom(to_proto(time))
    out.next_times.extend(to_proto(time) for time in upcoming)
    if schedule.error is not None:
        out.error.CopyFrom(_refusal_to_proto(schedule.error))
    if runs:
        out.last_run.CopyFrom(_run_to_proto(runs[0]))
    if full:
        out.recent_runs.extend(map(_run_to_proto, runs))
    return out


def _state(schedule: Schedule) -> pb.Schedule.State.ValueType:
    if schedule.paused:
        return pb.Schedule.STATE_PAUSED
    return pb.Schedule.STATE_ENDED if schedule.next_time is None else pb.Schedule.STATE_ACTIVE


def _run_to_proto(run: Run) -> pb.ScheduleRun:
    return pb.ScheduleRun(
        scheduled_time=to_proto(run.time),
        run_time=to_proto(run.run_time),
        by_hand=run.by_hand,
        task=run.task,
        task_state=task_pb2.Task.State.Value(f"STATE_{run.task_state or 'UNSPECIFIED'}"),
        error=_refusal_to_proto(run.error) if run.error is not None else None,
    )


def refusal_of(error: HopperError) -> Refusal:
    """What is kept of an error: what a caller would have been told."""
    told = item_error(error)
    return Refusal(told.code, told.reason, told.message, dict(told.metadata))


def _refusal_to_proto(refusal: Refusal) -> task_pb2.ItemError:
    return task_pb2.ItemError(
        code=refusal.code, reason=refusal.reason, message=refusal.message, metadata=refusal.metadata
    )


def refusal_to_text(refusal: Refusal | None) -> str:
    """A refusal as the store keeps it."""
    return json.dumps(asdict(refusal), separators=(",", ":")) if refusal is not None else ""


def refusal_from_text(text: str) -> Refusal | None:
    """A refusal that `refusal_to_text` wrote."""
    return Refusal(**json.loads(text)) if text else None
