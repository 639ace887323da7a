"""
A task as a row, and back.

What SQL filters, sorts or sets by is a column; the spec is a serialized message, because nobody filters by it; what
only the task's own readers look at (failure, progress, question, hold, what deciding left it waiting for) is one small
JSON document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from hopper_common.timestamps import from_micros, to_micros
from hopper_router.convert import spec_from_bytes, spec_to_bytes
from hopper_router.model import (
    Claim,
    Clocks,
    Failure,
    Hold,
    InputRequest,
    Progress,
    Task,
    TaskState,
    Wait,
    WaitReason,
)
from hopper_router.transitions import claimable, wake_time, watched_run

SHORT_ID: Final = 6
_MICROSECOND: Final = timedelta(microseconds=1)


def short_id(id_: str) -> str:
    """What people type of an id."""
    return id_[-SHORT_ID:]


def tag_column(tags: tuple[str, ...]) -> str:
    """Tags with a line break before, between and after, so that one can be looked for exactly."""
    return "\n" + "\n".join(tags) + "\n" if tags else ""


def length(value: timedelta | None) -> int | None:
    """A length of time in microseconds."""
    return None if value is None else value // _MICROSECOND


def next_wake(task: Task, now: datetime) -> datetime | None:
    """When somebody must look at a task: one of its clocks has run out, or it gets ready."""
    wake = wake_time(task)
    waits_for_time = (
        task.state is TaskState.QUEUED and not task.blockers and task.hold is None and task.ready_time > now
    )
    if not waits_for_time:
        return wake
    return task.ready_time if wake is None else min(wake, task.ready_time)


def task_to_row(task: Task, now: datetime) -> dict[str, Any]:
    """A task as its columns; *now* says whether it is ready."""
    spec, clocks, claim = task.spec, task.spec.clocks, task.claim
    return {
        "id": task.id,
        "short_id": short_id(task.id),
        "instance": task.instance,
        "project": task.project,
        "state": task.state.value,
        "ready": claimable(task, now),
        "priority": spec.priority,
        "rank": task.rank,
        "fairness_key": spec.turn_of,
        "concurrency_key": spec.concurrency_key,
        "slots": spec.slots,
        "affinity": task.affinity,
        "ready_time": to_micros(task.ready_time),
        "blockers": task.blockers,
        "awaited": False,  # set by those who come to depend on it, and never written back
        "held": task.hold is not None,
        "offered": task.offered,
        "wake_time": to_micros(next_wake(task, now)),
        "start_by": to_micros(clocks.start_by),
        "finish_by": to_micros(clocks.finish_by),
        "run_for": length(watched_run(task)),
        "heartbeat": length(clocks.heartbeat),
        "token": task.token,
        "worker": claim.worker if claim else "",
        "lease": length(claim.lease) if claim else None,
        "lease_end": to_micros(claim.lease_end) if claim else None,
        "claim_time": to_micros(claim.start) if claim else None,
        "first_start": to_micros(task.first_start),
        "attempt": task.attempt,
        "failures": task.failures,
        "generation": task.generation,
        "spec_version": task.spec_version,
        "decision": task.decision,
        "delegation": task.delegation,
        "requester": spec.requester,
        "tags": tag_column(spec.tags),
        "create_time": to_micros(task.create_time),
        "update_time": to_micros(task.update_time),
        "queue_time": to_micros(task.queue_time),
        "finish_time": to_micros(task.finish_time),
        "spec": spec_to_bytes(spec),
        "live": _live_to_json(task),
        "result": task.result,
    }


NEW: Final = (
    "id", "instance", "project", "ready", "priority", "rank", "fairness_key", "concurrency_key", "slots",
    "ready_time", "wake_time", "start_by", "finish_by", "run_for", "heartbeat", "decision", "requester", "tags", "spec",
)  # fmt: skip
"""The columns in which new tasks of the hot path differ; in the others they are all the same."""
_NO_CLOCKS: Final = Clocks()


def new_row(task: Task, now: datetime) -> tuple[Any, ...]:
    """What `task_to_row` gives for a new task in a queue, in the columns of `NEW` alone."""
    spec = task.spec
    common = (
        spec.priority, task.rank, spec.fairness_key or spec.requester, spec.concurrency_key, spec.slots,
        to_micros(task.ready_time),
    )  # fmt: skip
    rest = (task.decision, spec.requester, tag_column(spec.tags), spec_to_bytes(spec))
    place = (task.name.rpartition("/")[2], task.instance, task.project)
    clocks = spec.clocks
    if clocks == _NO_CLOCKS:
        return (*place, True, *common, None, None, None, None, None, *rest)
    times = (to_micros(clocks.start_by), to_micros(clocks.finish_by))
    lengths = (length(clocks.run_for), length(clocks.heartbeat))
    wake = to_micros(next_wake(task, now))
    return (*place, claimable(task, now), *common, wake, *times, *lengths, *rest)


def task_from_row(row: Mapping[str, Any]) -> Task:
    """The task that a row holds; *row* maps column names to values, as drivers give them."""
    return Task(
        name=f"{row['instance']}/tasks/{row['id']}",
        instance=row["instance"],
        spec=spec_from_bytes(row["spec"]),
        state=TaskState(row["state"]),
        create_time=from_micros(row["create_time"]),
        update_time=from_micros(row["update_time"]),
        ready_time=from_micros(row["ready_time"]),
        generation=row["generation"],
        spec_version=row["spec_version"],
        project=row["project"],
        decision=row["decision"],
        claim=_claim(row),
        token=row["token"],
        attempt=row["attempt"],
        failures=row["failures"],
        result=row["result"],
        delegation=row["delegation"],
        blockers=row["blockers"],
        offered=bool(row["offered"]),
        queue_time=from_micros(row["queue_time"]),
        first_start=from_micros(row["first_start"]),
        finish_time=from_micros(row["finish_time"]),
        rank=row["rank"],
        affinity=row["affinity"],
        **live_from_json(row["live"]),
    )


def _claim(row: Mapping[str, Any]) -> Claim | None:
    if not row["worker"]:
        return None
    return Claim(
        worker=row["worker"],
        token=row["token"],
        lease=row["lease"] * _MICROSECOND,
        lease_end=from_micros(row["lease_end"]),
        start=from_micros(row["claim_time"]),
    )


def _live_to_json(task: Task) -> str:
    live: dict[str, Any] = {}
    if task.failure:
        live["failure"] = [task.failure.reason, task.failure.message, task.failure.permanent]
    if task.progress:
        live["progress"] = [task.progress.fraction, task.progress.message]
    if task.input:
        question = task.input
        live["input"] = [question.question, question.from_, question.answer, question.answered_by]
        if question.answer_by:
            live["input"].append(to_micros(question.answer_by))
    if task.hold:
        live["hold"] = [task.hold.by, task.hold.reason]
    if task.wait:
        wait = task.wait
        live["wait"] = [wait.reason.value, list(wait.on), wait.message, dict(wait.exclusions)]
    return json.dumps(live, separators=(",", ":")) if live else ""


def _input(
    question: str, from_: str, answer: str, answered_by: str, answer_by: int | None = None
) -> InputRequest:
    return InputRequest(question, from_, answer, answered_by, from_micros(answer_by))


def live_from_json(document: str) -> dict[str, Any]:
    """What the JSON document of a row holds, as fields of a Task."""
    if not document:
        return {}
    live = json.loads(document)
    made: dict[str, Any] = {
        name: noun(*live[name])
        for name, noun in (
            ("failure", Failure),
            ("progress", Progress),
            ("input", _input),
            ("hold", Hold),
        )
        if name in live
    }
    if "wait" in live:
        reason, on, message, exclusions = live["wait"]
        made["wait"] = Wait(WaitReason(reason), tuple(on), None, message, exclusions)
    return made
