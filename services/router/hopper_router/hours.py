"""
Who works now, and how long the others keep a task waiting: what the factor `hours` of `scoring` is made of. Pure.

Working hours begin and end at whole minutes. So who works when is looked up once a minute for each set of candidates,
and once for all projects that have the same hours; within the minute nobody begins or ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np

from hopper_common.working_hours import WorkingHours, opens_in
from hopper_router.candidates import Candidates, FloatArray, IntArray
from hopper_router.kept import Kept
from hopper_router.model import DEFAULT_PRIORITY, Project, TaskSpec

LEAST_HURRY: Final = 0.02
"""Where nothing is urgent, opening on Monday counts about as much as one more open task."""
MIDDLE: Final = 8 * 3600.0
"""Seconds: who opens in a working day is half way from who works now to who never does."""
_MOST_HURRY: Final = 100 - DEFAULT_PRIORITY
_KNOWN: Final = timedelta(days=365)
"""How far ahead hours are taken to be as they are."""
_MINUTE: Final = 60
_MOST_MINUTES: Final = 16
_ALWAYS: Final = -math.inf


class Roster:
    """The working hours of one set of candidates; see `of`."""

    def __init__(self, projects: Sequence[Project]) -> None:
        self._size = len(projects)
        self._rows = _rows_by_hours(projects)
        self._minutes: Kept[int, _Minute] = Kept(_MOST_MINUTES)

    @classmethod
    def of(cls, candidates: Candidates) -> Roster:
        """The roster, kept with the candidates."""
        roster: Roster = candidates.kept.get("hours", lambda: cls(candidates.projects))
        return roster

    def waits(self, eligible: IntArray, now: datetime) -> FloatArray | None:
        """How many seconds until each of the eligible rows works, 0 for who does; None: all of them do."""
        if not self._rows:
            return None
        seconds = now.timestamp()
        number = int(seconds // _MINUTE)
        minute = self._minutes.get(number, lambda: self._look(number))
        if not minute.anybody_closed:
            return None
        waits = np.maximum(minute.opens[eligible] - seconds, 0.0)
        return waits if waits.any() else None

    def _look(self, number: int) -> _Minute:
        begin = datetime.fromtimestamp(number * _MINUTE, UTC)
        opens = np.full(self._size, _ALWAYS)
        anybody_closed = False
        for hours, rows in self._rows.items():
            if wait := opens_in(hours, begin):
                opens[rows] = (begin + wait).timestamp()
                anybody_closed = True
        return _Minute(anybody_closed, opens)


class _Minute(NamedTuple):
    """Of each row when it opens, in seconds since 1970; long ago if it works."""

    anybody_closed: bool
    opens: FloatArray


def _rows_by_hours(projects: Sequence[Project]) -> dict[WorkingHours, IntArray]:
    rows: dict[WorkingHours, list[int]] = {}
    for row, project in enumerate(projects):
        if project.working_hours is not None:
            rows.setdefault(project.working_hours, []).append(row)
    return {hours: np.array(found, dtype=np.intp) for hours, found in rows.items()}


class AtWork(NamedTuple):
    """
    Who of the eligible works, and how much it matters.

    Attributes:
        share: 1 for who works now. For others it falls with how long they keep the task waiting, the faster the more
            urgent it is; and to 0 for who opens when it has to be begun.
        waits: How many seconds until each works.
        left: How many seconds there are until it has to be begun; None: nobody said.
        then: All this is not of now, but of when it may be begun.
    """

    share: FloatArray
    waits: FloatArray
    left: float | None
    then: bool

    @classmethod
    def of(cls, task: TaskSpec, candidates: Candidates, eligible: IntArray, now: datetime) -> AtWork | None:
        """None: all work, which says nothing about anybody; or nobody knows yet who will."""
        begin = max(now, task.clocks.start_after or now)
        if begin - now > _KNOWN:
            return None
        waits = Roster.of(candidates).waits(eligible, begin)
        if waits is None:
            return None
        left = _left(task, begin)
        share = 1.0 - _hurry(task, left) * waits / (waits + MIDDLE)
        if left is not None and left > 0:
            share = np.minimum(share, np.maximum(1.0 - waits / left, 0.0))
        return cls(share, waits, left, begin > now)

    def said(self, at: int) -> str:
        """What is so about one of them, for people."""
        wait = self.waits.item(at)
        if not wait:
            return "works then" if self.then else "works now"
        opens = f"opens {_seconds(wait)} later" if self.then else f"opens in {_seconds(wait)}"
        if self.left is None:
            return opens
        return f"{opens}, {f'to be begun in {_seconds(self.left)}' if self.left > 0 else 'late already'}"


def _left(task: TaskSpec, begin: datetime) -> float | None:
    clocks, effort = task.clocks, task.estimated_effort or timedelta()
    left = [] if clocks.start_by is None else [clocks.start_by - begin]
    if clocks.finish_by is not None:
        left.append(clocks.finish_by - begin - effort)
    return min(left).total_seconds() if left else None


def _hurry(task: TaskSpec, left: float | None) -> float:
    """How much waiting counts beside a deadline, to 1: by priority above the middle; all, where it is late."""
    if left is not None and left <= 0:
        return 1.0
    return max((task.priority - DEFAULT_PRIORITY) / _MOST_HURRY, LEAST_HURRY)


def duration(length: timedelta) -> str:
    """A length of time, for people."""
    return _seconds(length.total_seconds())


def _seconds(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:.3g} days"
