"""
What callers were told, and whether a Hopper keeps to it.

Callers write down everything they asked for and every answer they got, in a `History`. `problems` compares it
with the tasks that are there in the end. It knows nothing of how Hopper works: only what an answer promises.
What was asked for without an answer may have been done or not, but not twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from hopper.router.v1.task_pb2 import Task


@dataclass(slots=True)
class Submission:
    """A task that was submitted. Its title is its own; `task` is its name, "" until an answer came."""

    title: str
    request_id: str
    task: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was answered. The times are those of the server."""

    task: str
    worker: str
    token: int
    start: datetime
    lease_end: datetime


@dataclass(slots=True)
class Completion:
    """A completion that was asked for; `done` when it was answered, `refused` when the answer was no."""

    task: str
    token: int
    result: bytes
    request_id: str
    done: bool = False
    refused: bool = False


@dataclass(slots=True)
class History:
    """Everything that callers know. Lists are only appended to, so that threads may share one."""

    submissions: list[Submission] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)


def problems(history: History, tasks: Iterable[Task]) -> list[str]:
    """
    Everything that is not as it was promised, in words; empty if nothing is.

    Args:
        tasks: Every task there is, of every state, in FULL view.
    """
    there = list(tasks)
    by_name = {task.name: task for task in there}
    return [
        *_submissions(history, there, by_name),
        *_completions(history, by_name),
        *_claims(history, by_name),
    ]


def _submissions(history: History, tasks: list[Task], by_name: Mapping[str, Task]) -> Iterator[str]:
    asked_for = {submission.title for submission in history.submissions}
    for title, count in Counter(task.spec.title for task in tasks).items():
        if count > 1:
            yield f"{title} is there {count} times"
        if title not in asked_for:
            yield f"{title} is there, and nobody asked for it"
    for submission in history.submissions:
        if not submission.task:
            continue
        task = by_name.get(submission.task)
        if task is None:
            yield f"{submission.task} was acknowledged, and is gone"
        elif task.spec.title != submission.title:
            yield f"{submission.task} was {submission.title}, and is {task.spec.title}"


def _completions(history: History, by_name: Mapping[str, Task]) -> Iterator[str]:
    by_task: dict[str, list[Completion]] = defaultdict(list)
    for completion in history.completions:
        by_task[completion.task].append(completion)
    for name, completions in by_task.items():
        done = [completion for completion in completions if completion.done]
        task = by_name.get(name)
        if len({completion.token for completion in done}) > 1:
            yield f"{name} was completed under {len(done)} claims"
        if done and (task is None or task.state != Task.STATE_SUCCEEDED):
            yield f"{name} was completed, and is {Task.State.Name(task.state) if task else 'gone'}"
        elif done and task is not None and task.result != done[0].result:
            yield f"{name} was completed, and has another result"
    for name, task in by_name.items():
        possible = [completion.result for completion in by_task[name] if not completion.refused]
        if task.state == Task.STATE_SUCCEEDED and task.result not in possible:
            yield f"{name} has succeeded, and nobody completed it so"


def _claims(history: History, by_name: Mapping[str, Task]) -> Iterator[str]:
    by_task: dict[str, set[Claim]] = defaultdict(set)
    for claim in history.claims:
        by_task[claim.task].add(claim)
    for name, claims in by_task.items():
        if name not in by_name:
            yield f"{name} was claimed, and is gone"
        in_order = sorted(claims, key=lambda claim: claim.start)
        for earlier, later in pairwise(in_order):
            if later.token <= earlier.token:
                yield f"{name} was claimed with token {earlier.token} and then with {later.token}"
            if later.start < earlier.lease_end:
                yield f"{name} was claimed by {later.worker} while {earlier.worker} had it"
