"""
How much there is to do, for how long, and why it waits: counts of open tasks, kept in memory.

    commits ─► follow ─► a Delta ─┐
    peers ─────────────► a Delta ─┴─► merge ─► Backlog ─► numbers, when somebody asks

Tasks that are alike are one number: same project, instance and fairness key, and the same *standing*, which is a
function of the task alone. So a change is a step at one place and a step at another, in whatever order they come, and
nothing is to be done when time passes: what depends on the time (SCHEDULE, BACKOFF, ready) or on the registry
(INSTANCE, PROJECT, CAPACITY) is worked out for the one who asks. That takes as long as there are different places and
keys, and seconds for which tasks are scheduled, however many tasks there are.

What a process cannot know of itself, it counts from the rows (`Backlog.recounted`), at its start and now and then.
"""

from __future__ import annotations

import heapq
import operator
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias

from hopper_router.directory import Directory
from hopper_router.hot import Row
from hopper_router.model import Task, TaskState, WaitReason
from hopper_router.transitions import Event

STAGES: Final = (
    ("SUBMITTED", "APPROVAL"),
    ("SUBMITTED", "DEPENDENCY"),
    ("SUBMITTED", "PERSON"),
    ("SUBMITTED", "NO_ELIGIBLE_EXECUTOR"),
    ("SUBMITTED", "UNSURE"),
    ("QUEUED", "APPROVAL"),
    ("QUEUED", "DEPENDENCY"),
    ("QUEUED", "PERSON"),
    ("QUEUED", "SCHEDULE"),  # until its time has come; then it is ready
    ("QUEUED", "BACKOFF"),  # the same
    ("QUEUED", "WORKER"),  # ready as it was placed
    ("RUNNING", ""),
    ("INPUT_REQUIRED", "PERSON"),
    ("DELEGATED", "DELEGATION"),
)
"""State of an open task, and what it waits for as far as the task itself says."""
STAGE_OF: Final = {stage: slot for slot, stage in enumerate(STAGES)}
_SCHEDULE: Final = STAGE_OF["QUEUED", "SCHEDULE"]
_BACKOFF: Final = STAGE_OF["QUEUED", "BACKOFF"]
READY: Final = STAGE_OF["QUEUED", "WORKER"]
_RUNNING: Final = STAGE_OF["RUNNING", ""]
_ASKS: Final = STAGE_OF["INPUT_REQUIRED", "PERSON"]
_DELEGATED: Final = STAGE_OF["DELEGATED", "DELEGATION"]
ADDED: Final = len(STAGES)
STARTED: Final = ADDED + 1
ENDED: Final = ADDED + 2
FAILED: Final = ADDED + 3
SINCE: Final = ADDED + 4
"""Beside READY, by project and instance only: when the tasks got ready, cut to `SPAN` seconds."""
SPAN: Final = 10
WIDER: Final = ((3_600, 600, 1), (86_400, 14_400, 2))
"""
So old, in seconds, so wide is a span when a recount makes it, and so it is marked, in its last digit: a million tasks
that wait are not to be a million spans.
"""
_SLOTS: Final = SINCE

MINUTE: Final = 60
_SECOND_MICROS: Final = 1_000_000
_SPAN_MICROS: Final = SPAN * _SECOND_MICROS
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = 86_400

Spot: TypeAlias = tuple[str, str, str, int, int]
"""Project, instance, fairness key; a stage, flow or SINCE; for what is ready some time, that second, else 0."""
Delta: TypeAlias = dict[Spot, int]
"""How many more, or fewer, there are at each spot."""


class Moved(Protocol):
    """One move of one task: as it was, if it was, and as it is."""

    before: Task | None
    after: Task
    event: Event


# ---------------------------------------------------------------- where a task stands


def standing(task: Task) -> tuple[int, int]:
    """The stage of an open task, and the second at which it is, or was, ready; 0: something else keeps it."""
    match task.state:
        case TaskState.QUEUED:
            return _queued(task)
        case TaskState.RUNNING:
            return _RUNNING, 0
        case TaskState.INPUT_REQUIRED:
            return _ASKS, 0
        case TaskState.DELEGATED:
            return _DELEGATED, 0
    return STAGE_OF["SUBMITTED", _kept(task) or _undecided(task)], 0


def _undecided(task: Task) -> str:
    nobody = task.wait is not None and task.wait.reason is WaitReason.NO_ELIGIBLE_EXECUTOR
    return "NO_ELIGIBLE_EXECUTOR" if nobody else "UNSURE"


def _queued(task: Task) -> tuple[int, int]:
    kept = _kept(task)
    return (STAGE_OF["QUEUED", kept], 0) if kept else _placed(task)


def _kept(task: Task) -> str:
    """What keeps a task back wherever it is placed, but time; in the order of `waiting`."""
    if task.offered:
        return "APPROVAL"
    if task.blockers:
        return "DEPENDENCY"
    return "PERSON" if task.hold is not None else ""


def _placed(task: Task) -> tuple[int, int]:
    if task.queue_time is not None and task.ready_time <= task.queue_time:
        return READY, ready_span(task.queue_time)
    return _BACKOFF if task.failures else _SCHEDULE, ready_second(task.ready_time)


def ready_second(time: datetime) -> int:
    """The second since 1970 in which what waits for a time has become ready."""
    until = time - _EPOCH
    return until.days * _DAY + until.seconds + (until.microseconds > 0)


def ready_span(time: datetime) -> int:
    """The second since 1970 of a time, cut to `SPAN`."""
    since = time - _EPOCH
    return (since.days * _DAY + since.seconds) // SPAN * SPAN


def spots_of(task: Task) -> Sequence[Spot]:
    """Where an open task is counted."""
    return _spots(task, *standing(task))


def _spots(task: Task, slot: int, time: int) -> Sequence[Spot]:
    return _spots_at(task.project, task.instance, task.spec.turn_of, slot, time)


def _spots_at(project: str, instance: str, key: str, slot: int, time: int) -> Sequence[Spot]:
    if slot == READY:
        return (project, instance, key, READY, 0), (project, instance, "", SINCE, time)
    return ((project, instance, key, slot, time),)


def delta_of(changes: Iterable[Moved]) -> Delta:
    """What changes of tasks do to the counts."""
    delta: Delta = {}
    for change in changes:
        before, after = change.before, change.after
        if before is not None and not before.state.final:
            _add_all(delta, spots_of(before), -1)
        if not after.state.final:
            _add_all(delta, spots_of(after), 1)
        for flow in _flows(before, after, change.event):
            _add(delta, (after.project, after.instance, after.spec.turn_of, flow, 0), 1)
    return delta


def delta_of_admitted(tasks: Iterable[Task]) -> Delta:
    """What new tasks in queues, which nothing but time keeps back, do to the counts."""
    delta: Delta = {}
    moment: datetime | None = None  # a set shares one: worked out once
    span = 0
    for task in tasks:
        project, instance, key = task.project, task.instance, task.spec.turn_of
        if task.ready_time is not task.queue_time:
            _add_all(delta, _spots(task, *_placed(task)), 1)
        else:
            if task.ready_time is not moment:
                moment = task.ready_time
                span = ready_span(moment)
            _add(delta, (project, instance, key, READY, 0), 1)
            _add(delta, (project, instance, "", SINCE, span), 1)
        _add(delta, (project, instance, key, ADDED, 0), 1)
    return delta


def delta_of_claimed(rows: Iterable[Row]) -> Delta:
    """What the hot path's claims do to the counts; *rows* have the columns of `hot.CLAIMED_ROW`."""
    claims: Counter[tuple[str, str, str, int, int]] = Counter(
        [(row["project"], row["instance"], row["fairness_key"], *_placed_row(row)) for row in rows]
    )
    delta: Delta = {}
    for (project, instance, key, slot, time), count in claims.items():
        _add_all(delta, _spots_at(project, instance, key, slot, time), -count)
        _add(delta, (project, instance, key, _RUNNING, 0), count)
        _add(delta, (project, instance, key, STARTED, 0), count)
    return delta


def _placed_row(row: Row) -> tuple[int, int]:
    """As `_placed`, of a row."""
    queue_time, ready_time = row["queue_time"], row["ready_time"]
    if queue_time is not None and ready_time <= queue_time:
        return READY, queue_time // _SPAN_MICROS * SPAN
    return _BACKOFF if row["failures"] else _SCHEDULE, -(-ready_time // _SECOND_MICROS)


def delta_of_completed(rows: Iterable[Row]) -> Delta:
    """What the hot path's ends do to the counts; *rows* have the columns of `hot.COMPLETED_ROW`."""
    ends = Counter([(row["project"], row["instance"], row["fairness_key"]) for row in rows])
    delta: Delta = {}
    for (project, instance, key), count in ends.items():
        delta[project, instance, key, _RUNNING, 0] = -count
        delta[project, instance, key, ENDED, 0] = count
    return delta


def _add_all(delta: Delta, spots: Iterable[Spot], step: int) -> None:
    for spot in spots:
        _add(delta, spot, step)


def _add(delta: Delta, spot: Spot, step: int) -> None:
    delta[spot] = delta.get(spot, 0) + step


def _flows(before: Task | None, after: Task, event: Event) -> Iterator[int]:
    if event is Event.CLAIM:
        yield STARTED
    if after.state.final:
        if before is not None and not before.state.final:
            yield ENDED
            if after.state is TaskState.FAILED:
                yield FAILED
    elif before is None or before.state.final:  # new, or parked and tried again
        yield ADDED


# ---------------------------------------------------------------- the counts


class _Cell:
    """Counts by stage and flow (of the last minute), and of those who are ready some time, by second and stage."""

    __slots__ = ("counts", "times")

    def __init__(self) -> None:
        self.counts = [0] * _SLOTS
        self.times: dict[int, int] = {}

    def add(self, slot: int, time: int, step: int) -> None:
        self.counts[slot] += step
        if time:
            place = time * 2 + (slot == _BACKOFF)
            count = self.times.get(place, 0) + step
            if count:
                self.times[place] = count
            else:
                self.times.pop(place, None)


class _Place(_Cell):
    """The same of a project's tasks in an instance, of each key of those, and since when they have been ready."""

    __slots__ = ("_spans", "keys", "since")

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, _Cell] = {}
        self.since: dict[int, int] = {}
        self._spans: list[int] = []  # a heap of at least those that count

    def add_since(self, span: int, step: int) -> None:
        if span not in self.since:
            wider = (span // width * width + mark for _, width, mark in WIDER)
            span = next((other for other in wider if other in self.since), span)
        count = self.since.get(span, 0) + step
        if count:
            if span not in self.since:
                heapq.heappush(self._spans, span)
            self.since[span] = count
        else:
            self.since.pop(span, None)

    def oldest_span(self) -> int | None:
        """When the oldest of those got ready that were ready as they were placed."""
        while self._spans and self._spans[0] not in self.since:
            heapq.heappop(self._spans)
        return self._spans[0] // SPAN * SPAN if self._spans else None


@dataclass(slots=True)
class Numbers:
    """
    What is known of a queue or a key.

    Attributes:
        waits: By reason, e.g. `WORKER`; that of a task that is ready is INSTANCE, PROJECT, CAPACITY or WORKER.
        ready: Tasks that a worker could claim now.
        oldest: The second since 1970 at which the first of those got ready, cut to `SPAN`; None: there is none, or it
            is a key's, of which that is not known.
        added: In the last minute; and so on.
    """

    name: str = ""
    states: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    ready: int = 0
    oldest: int | None = None
    added: int = 0
    started: int = 0
    ended: int = 0
    failed: int = 0

    @property
    def backlog(self) -> int:
        """Open tasks that do not run."""
        return self.states.total() - self.states["RUNNING"]

    def count(self, cell: _Cell, now: int, when_ready: str) -> None:
        """Count what a cell has; *when_ready* is what its ready tasks wait for."""
        counts = cell.counts
        for (state, wait), count in zip(STAGES, counts, strict=False):
            if count:
                self.states[state] += count
                if wait and state != "QUEUED":
                    self.waits[wait] += count
        for slot, (_, wait) in _KEPT_QUEUED:
            if counts[slot]:
                self.waits[wait] += counts[slot]
        self._count_ready(cell, now, when_ready)
        self.added += counts[ADDED]
        self.started += counts[STARTED]
        self.ended += counts[ENDED]
        self.failed += counts[FAILED]

    def _count_ready(self, cell: _Cell, now: int, when_ready: str) -> None:
        ready, oldest = cell.counts[READY], None
        for place, count in cell.times.items():
            time = place >> 1
            if time > now:
                self.waits["BACKOFF" if place & 1 else "SCHEDULE"] += count
            else:
                ready += count
                oldest = time if oldest is None else min(oldest, time)
        if not ready:
            return
        self.waits[when_ready] += ready
        if when_ready == WaitReason.WORKER.value:
            self.ready += ready
            if isinstance(cell, _Place):
                known = (self.oldest, oldest, cell.oldest_span())
                self.oldest = min((time for time in known if time is not None), default=None)


_KEPT_QUEUED: Final = [
    (slot, stage)
    for slot, stage in enumerate(STAGES)
    if stage[0] == "QUEUED" and slot not in (_SCHEDULE, _BACKOFF, READY)
]


@dataclass(frozen=True, slots=True)
class Answer:
    """Numbers of all that was asked for, of its projects and of its fairness keys, the greatest backlog first."""

    total: Numbers
    projects: list[Numbers]
    keys: list[Numbers]


class Backlog:
    """
    The counts of one process. For one thread.

    Attributes:
        totals: Tasks added, started, ended and failed since the process began, as it knows.
        counted_through: The last count from the rows has seen the log up to here.
    """

    def __init__(self) -> None:
        self.totals = [0, 0, 0, 0]
        self.counted_through = 0
        self._places: dict[tuple[str, str], _Place] = {}
        self._minute: deque[tuple[int, Delta]] = deque()
        self._journal: list[tuple[int, Delta]] | None = None
        self._blurred = False

    # ------------------------------------------------------------ following

    def follow_quiet(self, changes: Sequence[Moved]) -> None:
        """Count what has changed without an event of its own."""
        if changes:
            self._blurred = True
            self._merge(delta_of(changes), 0)

    def merge(self, delta: Delta, now: datetime, *, generation: int) -> None:
        """Count what a commit has changed, here or elsewhere, whose events have that generation."""
        if self._journal is not None:
            self._journal.append((generation, delta))
        if generation <= self.counted_through:  # seen when counting: all that is left are the flows
            delta = {spot: step for spot, step in delta.items() if _is_flow(spot)}
        second = int(now.timestamp())
        self._expire(second)
        self._merge(delta, second)

    def _merge(self, delta: Delta, second: int) -> None:
        for spot, step in delta.items():
            if not step:
                continue
            project, instance, key, slot, time = spot
            place = self._place(project, instance)
            if slot == SINCE:
                place.add_since(time, step)
                continue
            self._count(place, spot, step)
            if slot >= ADDED:
                self.totals[slot - ADDED] += step
                _add(self._flows_of(second), spot, step)
            elif step < 0:
                self._tidy(project, instance, key)

    def _place(self, project: str, instance: str) -> _Place:
        place = self._places.get((project, instance))
        if place is None:
            place = self._places[project, instance] = _Place()
        return place

    def _count(self, place: _Place, spot: Spot, step: int) -> None:
        _, _, key, slot, time = spot
        cell = place.keys.get(key)
        if cell is None:
            cell = place.keys[key] = _Cell()
        place.add(slot, time, step)
        cell.add(slot, time, step)

    def _flows_of(self, second: int) -> Delta:
        if not self._minute or self._minute[-1][0] != second:
            self._minute.append((second, {}))
        return self._minute[-1][1]

    def _expire(self, now: int) -> None:
        """Forget what was more than a minute ago."""
        while self._minute and self._minute[0][0] <= now - MINUTE:
            for (project, instance, key, slot, _), count in self._minute.popleft()[1].items():
                place = self._places[project, instance]
                place.counts[slot] -= count
                place.keys[key].counts[slot] -= count
                self._tidy(project, instance, key)

    def _tidy(self, project: str, instance: str, key: str) -> None:
        place = self._places[project, instance]
        if key in place.keys and not any(place.keys[key].counts):
            del place.keys[key]
            if not place.keys and not place.since:
                del self._places[project, instance]

    # ------------------------------------------------------------ counting anew

    def begin_recount(self) -> None:
        """From now on remember what changes, until `recounted`; the snapshot to count is taken after this."""
        self._journal, self._blurred = [], False

    def recounted(self, fresh: Backlog, head: int) -> bool:
        """
        Take over what was counted in a snapshot whose log ended at *head*; *fresh* is used up.

        Returns:
            Whether it was: not if something has changed meanwhile of which nobody can say whether it was seen.
        """
        journal, self._journal = self._journal or [], None
        if self._blurred:
            return False
        self._places = fresh._places
        for _, flows in self._minute:
            for spot, count in flows.items():
                self._count(self._place(spot[0], spot[1]), spot, count)
        for generation, delta in journal:
            if generation > head:
                self._merge({spot: step for spot, step in delta.items() if not _is_flow(spot)}, 0)
        self.counted_through = head
        return True

    @classmethod
    def of(cls, delta: Delta) -> Backlog:
        """The counts that a delta makes from nothing."""
        backlog = cls()
        backlog._merge(delta, 0)
        return backlog

    def give_up_recount(self) -> None:
        """There will be no `recounted`."""
        self._journal = None

    # ------------------------------------------------------------ telling

    def spots(self) -> Delta:
        """All that is counted of open tasks, as one delta from nothing."""
        found: Delta = {}
        for (project, instance), place in self._places.items():
            for key, cell in place.keys.items():
                for slot, count in enumerate(cell.counts[:ADDED]):
                    if count and slot not in (_SCHEDULE, _BACKOFF):
                        found[project, instance, key, slot, 0] = count
                for time, count in cell.times.items():
                    found[project, instance, key, _BACKOFF if time & 1 else _SCHEDULE, time >> 1] = count
            for span, count in place.since.items():
                found[project, instance, "", SINCE, span] = count
        return found

    def numbers(self, directory: Directory, now: datetime, *, queue: str = "", limit: int = 20) -> Answer:
        """
        What is known now of a queue (`projects/p`, `instances/i`; empty: all), and of the *limit* projects and keys in
        it that have the greatest backlog.
        """
        second = int(now.timestamp())
        self._expire(second)
        why = _Why(directory, self._running(0), self._running(1))
        places = [
            (name[0], place, why.of(*name))
            for name, place in self._places.items()
            if not queue or queue in name
        ]
        total, projects, backlogs = Numbers(queue), dict[str, Numbers](), Counter[str]()
        for project, place, when_ready in places:
            total.count(place, second, when_ready)
            if project:
                projects.setdefault(project, Numbers(project)).count(place, second, when_ready)
            for key, cell in place.keys.items():
                backlogs[key] += sum(cell.counts[:ADDED]) - cell.counts[_RUNNING]
        keys = [
            _numbers_of(key, places, second)
            for key, _ in heapq.nlargest(limit, backlogs.items(), key=lambda at: (at[1], at[0]))
        ]
        busiest = heapq.nsmallest(limit, projects.values(), key=_greatest_first)
        return Answer(total, busiest, sorted(keys, key=_greatest_first))

    def _running(self, part: int) -> Counter[str]:
        running: Counter[str] = Counter()
        for name, place in self._places.items():
            running[name[part]] += place.counts[_RUNNING]
        return running


def _numbers_of(key: str, places: Iterable[tuple[str, _Place, str]], second: int) -> Numbers:
    """Of a key, wherever it is: added up first, as there may be thousands of places."""
    sums: dict[str, _Cell] = {}
    for _, place, when_ready in places:
        cell = place.keys.get(key)
        if cell is not None:
            together = sums.setdefault(when_ready, _Cell())
            together.counts = list(map(operator.add, together.counts, cell.counts))
            for time, count in cell.times.items():
                together.times[time] = together.times.get(time, 0) + count
    numbers = Numbers(key)
    for when_ready, cell in sums.items():
        numbers.count(cell, second, when_ready)
    return numbers


def _greatest_first(numbers: Numbers) -> tuple[int, int, str]:
    return -numbers.backlog, -numbers.states.total(), numbers.name


def _is_flow(spot: Spot) -> bool:
    return ADDED <= spot[3] < SINCE


class _Why:
    """What ready tasks wait for, by where they are: as `waiting` says of each."""

    def __init__(
        self, directory: Directory, by_project: Mapping[str, int], by_instance: Mapping[str, int]
    ) -> None:
        self._directory = directory
        self._full = {
            name
            for limits, running in (
                (directory.project_limits, by_project),
                (directory.instance_limits, by_instance),
            )
            for name, limit in limits.items()
            if running.get(name, 0) >= limit
        }

    def of(self, project: str, instance: str) -> str:
        """The reason's name."""
        if self._directory.halted_by(instance):
            return WaitReason.INSTANCE.value
        if project in self._directory.paused:
            return WaitReason.PROJECT.value
        if project in self._full or instance in self._full:
            return WaitReason.CAPACITY.value
        return WaitReason.WORKER.value
