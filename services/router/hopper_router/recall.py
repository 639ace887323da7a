"""
The log, told again: each event as a TaskEvent message.

What a unit of work logs is the message itself. What the hot path logs is a short JSON list of what later events change
(`[project, decision, ready time]` of a SUBMIT, the claim of a CLAIM, nothing of a COMPLETE); the rest of the task is
read from its row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.task_service_pb2 import (
    SubmitTaskResponse,
    SubmitTasksResponse,
    SubmitTasksResult,
    TaskEvent,
)
from hopper.router.v1.work_service_pb2 import ClaimTasksResponse
from hopper_common.eventlog import Event
from hopper_common.timestamps import from_micros
from hopper_router import archive
from hopper_router.convert import STATE_TO_PROTO, decision_to_proto, event_from_bytes, task_to_proto
from hopper_router.hot import CLAIMED, Repeat
from hopper_router.model import Claim, Task, TaskState
from hopper_router.rows import live_from_json
from hopper_router.unit import Unit, wait_as_logged

M = TypeVar("M", bound=Message)
_FROM = {"CLAIM": TaskState.QUEUED, "COMPLETE": TaskState.RUNNING}


def told(unit: Unit, events: Sequence[Event]) -> list[TaskEvent]:
    """Those events as messages, in order; one of a task that is gone for good is left out."""
    tasks = _tasks(unit, {event.key for event in events if is_short(event)})
    return [
        _again(unit, event, tasks[event.key])
        if is_short(event)
        else event_from_bytes(event.body, event.version)
        for event in events
        if not is_short(event) or event.key in tasks
    ]


def is_short(event: Event) -> bool:
    """Whether the hot path logged it."""
    return event.body.startswith(b"[")


def decision_of(event: Event) -> str:
    """The decision in force after an event that the hot path logged."""
    # Of `["project", "decision", ...`: names have no quotes in them, and this is a tenth of parsing it.
    return event.body.split(b'"', 4)[3].decode()


def task_at(event: Event, task: Task) -> Task:
    """The task right after an event that the hot path logged, from the task as it is now."""
    body = json.loads(event.body)
    if event.topic == "SUBMIT":
        return _submitted(event, task, *body)
    if event.topic == "CLAIM":
        return _claimed(event, task, dict(zip(CLAIMED, body, strict=True)))
    return task  # it was the end


def answer(unit: Unit, method: str, repeat: Repeat, response_type: type[M]) -> M:
    """The first answer to a call that was answered before: as it is stored, or told from the log."""
    if repeat.generation is None:  # a unit answered, and it is there whole
        return response_type.FromString(repeat.answer)
    response = _ANSWERS[method](unit, repeat)
    if not isinstance(response, response_type):
        raise TypeError(f"{method} is not answered with a {response_type.__name__}")
    return response


def _submit_again(unit: Unit, repeat: Repeat) -> SubmitTaskResponse:
    (task,) = _tasks_at(unit, repeat, 1)
    found = unit.store.decisions([task.decision]).values() or archive.decisions(unit.store.conn, task.name)
    decision = next(decision for decision in found if decision.name == task.decision)
    return SubmitTaskResponse(
        task=task_to_proto(task, view=pb.TASK_VIEW_FULL, wait=wait_as_logged(unit, task, task.update_time)),
        decision=decision_to_proto(decision),
    )


def _submits_again(unit: Unit, repeat: Repeat) -> SubmitTasksResponse:
    """An item that was left to a unit has an empty result here."""
    names = [result.task.name for result in SubmitTasksResponse.FromString(repeat.answer).results]
    tasks = {task.name: task for task in _tasks_at(unit, repeat, sum(map(bool, names)))}
    return SubmitTasksResponse(results=[_result_again(unit, name, tasks.get(name)) for name in names])


def _result_again(unit: Unit, name: str, task: Task | None) -> SubmitTasksResult:
    if task is None:  # gone since, or never the hot path's
        return SubmitTasksResult(task=pb.Task(name=name)) if name else SubmitTasksResult()
    wait = wait_as_logged(unit, task, task.update_time)
    return SubmitTasksResult(task=task_to_proto(task, view=pb.TASK_VIEW_BASIC, wait=wait))


def _claims_again(unit: Unit, repeat: Repeat) -> ClaimTasksResponse:
    tasks = _tasks_at(unit, repeat, int(repeat.answer))
    return ClaimTasksResponse(
        tasks=[task_to_proto(task, view=pb.TASK_VIEW_FULL, wait=None, show_token=True) for task in tasks]
    )


_ANSWERS: Final = {
    "SubmitTask": _submit_again,
    "SubmitTasks": _submits_again,
    "ClaimTasks": _claims_again,
}


def _tasks_at(unit: Unit, repeat: Repeat, count: int) -> list[Task]:
    events = unit.store.events(repeat.generation or 0, count)
    tasks = _tasks(unit, {event.key for event in events})
    return [task_at(event, tasks[event.key]) for event in events if event.key in tasks]


def _tasks(unit: Unit, names: Collection[str]) -> dict[str, Task]:
    """Those of the tasks that exist, archived ones too."""
    found = unit.store.tasks(names)
    if len(found) < len(names):
        found |= archive.tasks(unit.store.conn, [name for name in names if name not in found])
    return found


def _again(unit: Unit, event: Event, task: Task) -> TaskEvent:
    then = task_at(event, task)
    told = TaskEvent(kind=event.topic)
    told.task.CopyFrom(
        task_to_proto(then, view=pb.TASK_VIEW_BASIC, wait=wait_as_logged(unit, then, then.update_time))
    )
    before = _FROM.get(event.topic)
    if before is not None:
        told.from_state = STATE_TO_PROTO[before]
        told.from_project = then.project
    return told


def _submitted(event: Event, task: Task, project: str, decision: str, ready_time: int) -> Task:
    return Task(
        name=task.name,
        instance=task.instance,
        spec=task.spec,
        state=TaskState.QUEUED,
        create_time=task.create_time,
        update_time=event.create_time,
        ready_time=from_micros(ready_time),
        generation=event.version,
        project=project,
        decision=decision,
        queue_time=event.create_time,
        rank=task.rank,
    )


def _claimed(event: Event, task: Task, was: dict[str, Any]) -> Task:
    live = live_from_json(was["live"])
    lease = timedelta(microseconds=was["lease"])
    return replace(
        task,
        state=TaskState.RUNNING,
        update_time=event.create_time,
        generation=event.version,
        project=was["project"],
        decision=was["decision"],
        claim=Claim(was["worker"], was["token"], lease, from_micros(was["lease_end"]), event.create_time),
        token=was["token"],
        attempt=was["attempt"],
        first_start=from_micros(was["first_start"]),
        failure=live.get("failure"),
        input=live.get("input"),
        progress=None,
        result=b"",
        hold=None,
        wait=None,
        finish_time=None,
    )
