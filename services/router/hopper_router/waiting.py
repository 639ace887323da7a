"""
Why an open task is not running: one function over what is known about it.

The reasons are looked at in the order of `WaitReason`; the first that applies is the answer, because removing it
is the next thing anybody can do about the task.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from hopper_router.model import Task, TaskState, Wait, WaitReason

MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What waiting depends on besides the task.

    Attributes:
        now: For what waits for a time.
        blockers: Names of the dependencies that have not succeeded; of those, `dead` can never succeed.
        delegations: Names of the open delegations of a DELEGATED task.
        halted_by: The nearest instance that is not running, of the task's and those above it; "": none.
        paused: The projects that are paused.
        limited: What a limit keeps it from, where that was looked at: see limits.
    """

    now: datetime
    blockers: tuple[str, ...]
    dead: tuple[str, ...]
    delegations: tuple[str, ...]
    halted_by: str
    paused: Collection[str]
    limited: Wait | None = None


def why_waiting(task: Task, facts: Facts) -> Wait | None:
    """Say what an open task waits for; None when it is running or over."""
    if task.state.final or task.state is TaskState.RUNNING:
        return None
    if task.state is TaskState.INPUT_REQUIRED:
        return _for_answer(task)
    if task.state is TaskState.DELEGATED:
        return Wait(WaitReason.DELEGATION, facts.delegations[:MOST_NAMES], message="another instance has it")
    return _before_placing(task, facts) or _before_claiming(task, facts)


def _for_answer(task: Task) -> Wait:
    who = task.input.from_ if task.input else ""
    return Wait(
        WaitReason.PERSON, (who,) if who else (), message=f"waits for an answer from {who or 'somebody'}"
    )


def _before_placing(task: Task, facts: Facts) -> Wait | None:
    """What keeps a task back wherever it is placed."""
    if task.offered:
        return Wait(WaitReason.APPROVAL, (task.instance,), message=f"{task.instance} has not accepted it yet")
    if task.blockers:
        return _for_dependencies(task, facts)
    if task.hold is not None:
        who = task.hold.by or "somebody"
        return Wait(WaitReason.PERSON, (task.hold.by,) if task.hold.by else (), message=f"blocked by {who}")
    if task.ready_time > facts.now:
        if task.failures:
            return Wait(
                WaitReason.BACKOFF, until=task.ready_time, message="backing off after a failed attempt"
            )
        return Wait(WaitReason.SCHEDULE, until=task.ready_time, message="scheduled for later")
    return None


def _for_dependencies(task: Task, facts: Facts) -> Wait:
    if facts.dead:
        message = f"{len(facts.dead)} of the tasks it depends on ended without success: update or cancel it"
        return Wait(WaitReason.DEPENDENCY, facts.dead[:MOST_NAMES], message=message)
    message = f"waits for {task.blockers} other task(s)"
    return Wait(WaitReason.DEPENDENCY, facts.blockers[:MOST_NAMES], message=message)


def _before_claiming(task: Task, facts: Facts) -> Wait:
    """What keeps workers from a task that is ready."""
    if task.state is TaskState.SUBMITTED:
        return task.wait or Wait(WaitReason.UNSURE, message="not decided yet")
    if facts.halted_by:
        return Wait(WaitReason.INSTANCE, (facts.halted_by,), message=f"{facts.halted_by} is not running")
    if task.project in facts.paused:
        return Wait(WaitReason.PROJECT, (task.project,), message=f"{task.project} is paused")
    if facts.limited is not None:
        return facts.limited
    queue = task.project or task.instance
    return Wait(WaitReason.WORKER, (queue,), message=f"ready: waits for a worker of {queue}")
