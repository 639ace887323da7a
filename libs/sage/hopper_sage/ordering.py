"""
The order of a queue: what would be late comes first, then what matters most, then what is quickly done.

A task's *slack* is the time left until it must be begun to be done in time: until `finish_by`, less what the work
takes. That is what its requester thinks it takes, else what tasks like it took, else `USUAL`. Of two tasks that matter
the same and are not urgent the shorter comes first, so that the least is waited for; then the older.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from hopper_sage.model import Ranked, Remembered, Task

USUAL: Final = timedelta(minutes=30)
"""What work is thought to take of which nothing is known."""
SOON: Final = timedelta(hours=4)
"""With less slack than this a task is urgent, whatever its priority."""


def in_order(tasks: Sequence[Task], past: Mapping[str, Sequence[Remembered]], now: datetime) -> list[Ranked]:
    """
    All tasks, first to be done first, each with the reason for its place.

    Args:
        past: Tasks like them, by the name of the task.
        now: UTC, aware.
    """
    seen = [_look(task, past.get(task.name, ()), place, now) for place, task in enumerate(tasks)]
    return [Ranked(one.task.name, one.reason()) for one in sorted(seen, key=_Seen.key)]


@dataclass(frozen=True, slots=True)
class _Seen:
    task: Task
    takes: timedelta
    takes_because: str
    slack: timedelta | None
    place: int

    @property
    def urgent(self) -> bool:
        return self.slack is not None and self.slack < SOON

    def key(self) -> tuple[int, timedelta, int, timedelta, int]:
        slack = self.slack if self.urgent and self.slack is not None else timedelta()
        return (not self.urgent, slack, -self.task.priority, self.takes, self.place)

    def reason(self) -> str:
        takes = f"takes about {_spoken(self.takes)} ({self.takes_because})"
        if self.slack is None:
            return f"priority {self.task.priority}, {takes}"
        if self.slack < timedelta():
            return f"{_spoken(-self.slack)} too late already, {takes}"
        return f"must be begun within {_spoken(self.slack)}, priority {self.task.priority}, {takes}"


def _look(task: Task, past: Sequence[Remembered], place: int, now: datetime) -> _Seen:
    durations = [one.duration.total_seconds() for one in past if one.duration is not None]
    if task.estimated_effort is not None:
        takes, because = task.estimated_effort, "as estimated"
    elif durations:
        takes, because = timedelta(seconds=median(durations)), f"as {len(durations)} like it did"
    else:
        takes, because = USUAL, "as most work"
    slack = None if task.finish_by is None else task.finish_by - now - takes
    return _Seen(task, takes, because, slack, place)


def _spoken(length: timedelta) -> str:
    seconds = length.total_seconds()
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
