"""
When schedules come, and what is to be done about it: pure, time is an argument.

**Cron.** Expressions are read and walked by cronsim, in the manner of Debian's cron. It is used as a calendar of local
times that knows no zones; how local times become moments is here:

    hour field is    a time in the gap          a time that comes twice      meant as
    not `*`          comes at the gap's end,    the first of them            the clock on the wall: once a day is
                     several together once                                   once a day
    `*`              does not come              both                         hours that pass: once an hour is once
                                                                             an hour

So "30 2 * * *" in Berlin comes at 3:00 on the day when clocks are put forward, and at the first 2:30 on the day when
they are put back; "30 * * * *" comes 23 and 25 times on these days, an hour apart. (cronsim's own rule looks at the
minute, too, and would take "*/30 2 * * *" four times in autumn and not at all in spring.)

**Occurrences** are counted, not guessed: a schedule keeps the one it waits for (`next_time`), and `plan` says which of
those since then, up to now, are to be run. The plan is carried out in the transaction in which `next_time` moves on.

    next_time ──┬── late ──────────┬── on time ──┬─► now
                │ as `catch_up`    │ run         │ the next one
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from functools import lru_cache
from itertools import islice, pairwise
from typing import Final

from cronsim import CronSim, CronSimError

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.time_zones import ZoneUnknown, zone_of
from hopper_router.model import Clocks, TaskSpec

LATE: Final = timedelta(minutes=1)
"""An occurrence that is found later than this was missed, and is made up for as the schedule says."""
MOST_COUNTED: Final = 1000
"""Missed occurrences that are looked at: who was away for a year is not told about half a million minutes."""
DEFAULT_CATCH_UP: Final = 10
LABEL_SCHEDULE: Final = "hopper.schedule"
LABEL_TIME: Final = "hopper.scheduled_time"

_MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_LAST_YEAR: Final = 9900
"""Calendars end in 9999, and an expression may look half a century ahead."""


class Overlap(Enum):
    """What to do about an occurrence when earlier tasks of the schedule are open."""

    SKIP = "SKIP"
    QUEUE = "QUEUE"
    LIMIT = "LIMIT"


class CatchUp(Enum):
    """What to do about occurrences that were missed."""

    NONE = "NONE"
    ONE = "ONE"
    ALL = "ALL"


# ---------------------------------------------------------------- expressions


class CronInvalid(ValueError):
    """That is no cron expression; the text says what is wrong, for people."""


@dataclass(frozen=True, slots=True)
class Cron:
    """
    A cron expression in a time zone: see the module's text. Made by `parse_cron`.

    Attributes:
        fields: The five fields.
        by_wall: Follows the clock on the wall rather than the hours that pass.
    """

    fields: str
    zone: tzinfo
    by_wall: bool

    def after(self, time: datetime) -> Iterator[datetime]:
        """The moments it names after *time*: UTC, ascending, each once; endless unless nothing matches any more."""
        last = time
        for moment in self._walk(time):
            if moment.year > _LAST_YEAR:
                return
            if moment > last:
                yield moment
                last = moment

    def _walk(self, time: datetime) -> Iterator[datetime]:
        if time.year > _LAST_YEAR:
            return iter(())
        return self._by_wall(time) if self.by_wall else self._by_hours(time)

    def _by_wall(self, time: datetime) -> Iterator[datetime]:
        # Whatever comes twice on the wall is taken the first time: when it is there the second time, what is ahead
        # on the wall may be over already, and is dropped by the caller.
        local = time.astimezone(self.zone).replace(tzinfo=None, fold=0)
        for naive in CronSim(self.fields, local):
            yield _moment(naive, self.zone)

    def _by_hours(self, time: datetime) -> Iterator[datetime]:
        for moment in CronSim(self.fields, time.astimezone(self.zone)):
            yield moment.astimezone(UTC)

    def last_until(self, time: datetime, *, since: datetime, most: int) -> list[datetime]:
        """The last *most* of the moments it names from *since* to *time*, both included; ascending."""
        found: list[datetime] = []
        for day in self._days_until(time):
            begin = max(_moment(day, self.zone), since)
            found = [*self._between(begin, min(_moment(day + _DAY, self.zone) - _SECOND, time)), *found]
            if len(found) >= most or begin == since:
                break
        return found[-most:]

    def _days_until(self, time: datetime) -> Iterator[datetime]:
        """The days on which it may come, backwards: local midnights."""
        *_, day, month, weekday = self.fields.split()
        local = time.astimezone(self.zone).replace(tzinfo=None, fold=0)
        yield from CronSim(f"0 0 {day} {month} {weekday}", local + _DAY, reverse=True)

    def _between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        for moment in self.after(first - _SECOND):
            if moment > last:
                return
            yield moment


def _moment(naive: datetime, zone: tzinfo) -> datetime:
    """
    The moment at which a clock on the wall shows that time: the first, if it does twice.

    If it never does, the end of the gap: the moment when clocks are put forward.
    """
    local = naive.replace(tzinfo=zone, fold=0)
    moment = local.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == naive:
        return moment
    # In a gap, the two offsets of fold 0 and 1 are those of before and after it. Between the two moments that they
    # give is the end of the gap; it is on a whole minute.
    low, high = local.replace(fold=1).astimezone(UTC), moment
    before = low.astimezone(zone).utcoffset()
    while high - low > _SECOND:
        middle = low + (high - low) // 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


@lru_cache(maxsize=4096)
def parse_cron(expression: str, time_zone: str) -> Cron:
    """
    A cron expression in the zone of that name; an empty name is UTC.

    Raises:
        CronInvalid, ZoneUnknown.
    """
    fields = _MACROS.get(expression.strip().lower(), expression).strip()
    if fields.startswith("@"):
        raise CronInvalid(
            f"there is no {fields.split()[0]}: write one of {', '.join(_MACROS)}, or five fields"
        )
    if len(fields.split()) != 5:
        raise CronInvalid(
            "must have five fields: minute, hour, day of the month, month, day of the week, e.g. 0 3 * * 1-5"
        )
    try:
        parsed = CronSim(fields, datetime(2000, 1, 1))
    except CronSimError as error:
        raise CronInvalid(str(error).replace("Bad ", "has a bad ").removesuffix(".")) from None
    by_wall = len(parsed.hours) < 24
    if not by_wall:  # in cronsim, too, an hour like 0-23 is to mean every hour that passes
        minute, _, *days = fields.split()
        fields = " ".join([minute, "*", *days])
    return Cron(fields, zone_of(time_zone), by_wall)


# ---------------------------------------------------------------- schedules


@dataclass(frozen=True, slots=True)
class Definition:
    """What people say about a schedule; see the contract for each."""

    instance: str
    spec: TaskSpec
    cron: str
    time_zone: str = "UTC"
    start_time: datetime | None = None
    end_time: datetime | None = None
    overlap: Overlap = Overlap.SKIP
    max_open: int = 0
    catch_up: CatchUp = CatchUp.ONE
    max_catch_up: int = DEFAULT_CATCH_UP
    jitter: timedelta = timedelta()
    start_within: timedelta | None = None
    finish_within: timedelta | None = None

    @property
    def timing(self) -> tuple[object, ...]:
        """All that says when it comes: if this changes, it is counted anew."""
        return self.cron, self.time_zone, self.start_time, self.end_time, self.jitter

    @property
    def open_limit(self) -> int | None:
        """With how many open tasks an occurrence is left out; None: never."""
        return {Overlap.SKIP: 1, Overlap.QUEUE: None, Overlap.LIMIT: self.max_open}[self.overlap]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an occurrence got no task, as it would be told to a caller."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    A schedule as it stands.

    Attributes:
        next_time: The occurrence it waits for; None: none, it is paused or has ended.
        due_time: When that one is submitted: `next_time` and its jitter.
    """

    id: str
    definition: Definition
    create_time: datetime
    update_time: datetime
    paused: bool = False
    pause_reason: str = ""
    next_time: datetime | None = None
    due_time: datetime | None = None
    runs: int = 0
    skips: int = 0
    misses: int = 0
    errors: int = 0
    error: Refusal | None = None
    error_time: datetime | None = None
    version: int = 1

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"schedules/{self.id}"

    @property
    def etag(self) -> str:
        """Changes with every change by a call."""
        return str(self.version)


@dataclass(frozen=True, slots=True)
class Due:
    """An occurrence, and when its task is to be submitted."""

    time: datetime
    due: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is to be done about a schedule now.

    Attributes:
        run: The occurrences to be run, oldest first.
        missed: How many are left out, because nobody was there.
        next: What to wait for then; None: nothing comes any more.
    """

    run: tuple[datetime, ...]
    missed: int
    next: Due | None


def check(definition: Definition) -> None:
    """
    Refuse what can never work.

    Raises:
        InvalidArgument: With every violation; fields as in the contract's Schedule.
    """
    wrong = [*_wrong_times(definition), *_wrong_numbers(definition), *_wrong_clocks(definition.spec.clocks)]
    wrong += [
        (name, "is required")
        for name, value in (("instance", definition.instance), ("spec.title", definition.spec.title))
        if not value
    ]
    if len(definition.spec.labels.keys() - {LABEL_SCHEDULE, LABEL_TIME}) > 62:
        wrong.append(("spec.labels", "must have at most 62 pairs: two are added"))
    if wrong:
        raise InvalidArgument(
            violations=[FieldViolation(f"schedule.{name}", problem) for name, problem in wrong]
        )


def _wrong_times(definition: Definition) -> Iterator[tuple[str, str]]:
    try:
        parse_cron(definition.cron, definition.time_zone)
    except CronInvalid as error:
        yield "cron", str(error)
    except ZoneUnknown as error:
        yield "time_zone", str(error)
    start, end = definition.start_time, definition.end_time
    if start is not None and end is not None and end <= start:
        yield "end_time", "must be after start_time"


def _wrong_numbers(definition: Definition) -> Iterator[tuple[str, str]]:
    if (definition.overlap is Overlap.LIMIT) != bool(definition.max_open):
        yield "max_open", "is required with OVERLAP_LIMIT, and with nothing else"


def _wrong_clocks(clocks: Clocks) -> Iterator[tuple[str, str]]:
    for name in ("start_after", "start_by", "finish_by"):
        if getattr(clocks, name) is not None:
            yield (
                f"spec.clocks.{name}",
                "must not be set: it is a moment, and the tasks of a schedule are many",
            )


# ---------------------------------------------------------------- what comes when


def coming(definition: Definition, after: datetime) -> Iterator[datetime]:
    """
    The occurrences after a time, ascending.

    Raises:
        CronInvalid, ZoneUnknown: What was known when it was made is not any more.
    """
    start, end = definition.start_time, definition.end_time
    if start is not None and start > after:
        after = start - timedelta(microseconds=1)
    for time in parse_cron(definition.cron, definition.time_zone).after(after):
        if end is not None and time >= end:
            return
        yield time


def following(schedule_id: str, definition: Definition, after: datetime) -> Due | None:
    """The next occurrence after a time; None: nothing comes any more. Raises as `coming`."""
    time, other = [*islice(coming(definition, after), 2), None, None][:2]
    return Due(time, _submitted(schedule_id, definition, time, other)) if time is not None else None


def _submitted(schedule_id: str, definition: Definition, time: datetime, other: datetime | None) -> datetime:
    """When an occurrence is submitted: with its jitter, but not after the *other*, which follows."""
    if not definition.jitter:
        return time
    room = definition.jitter if other is None else min(definition.jitter, other - time)
    # As if by chance, and the same for everyone who asks.
    digest = hashlib.sha256(f"{schedule_id} {time.isoformat()}".encode()).digest()
    return time + room * (int.from_bytes(digest[:6]) / (1 << 48))


def plan(schedule: Schedule, now: datetime, *, most: int) -> Plan | None:
    """
    What is to be done about a schedule at a time; None: nothing is due. Raises as `coming`.

    Args:
        most: Most occurrences to run at once, 1 or more. If there are more, the plan's `next` is the first that is
            left, and is due as well.
    """
    definition, first, due_time = schedule.definition, schedule.next_time, schedule.due_time
    if schedule.paused or first is None or due_time is None or due_time > now:
        return None
    cron = parse_cron(definition.cron, definition.time_zone)
    later = cron.last_until(now, since=first + _SECOND, most=MOST_COUNTED)
    times = [first, *(time for time in later if definition.end_time is None or time < definition.end_time)]
    dues = [Due(first, due_time), *_dues(schedule, times[1:])]
    # Of the last one, the time may be over, and with jitter its time to be submitted still to come.
    over = [due for due in dues if due.due <= now]
    on_time = [due.time for due in over if now - due.due <= LATE]
    late = [due.time for due in over if now - due.due > LATE]
    run = [*_made_up_for(definition, late, on_time), *on_time]
    if len(run) > most:
        left = run[most]
        missed = len([time for time in late if time < left and time not in run])
        return Plan(tuple(run[:most]), missed, _due_at(schedule, left))
    return Plan(tuple(run), len(over) - len(run), following(schedule.id, definition, over[-1].time))


def _dues(schedule: Schedule, times: Sequence[datetime]) -> Iterator[Due]:
    """When each of some occurrences, one after the other, is to be submitted."""
    for time, other in pairwise(times):
        yield Due(time, _submitted(schedule.id, schedule.definition, time, other))
    if times:
        yield _due_at(schedule, times[-1])


def _due_at(schedule: Schedule, time: datetime) -> Due:
    other = next(coming(schedule.definition, time), None)
    return Due(time, _submitted(schedule.id, schedule.definition, time, other))


def _made_up_for(
    definition: Definition, late: Sequence[datetime], on_time: Sequence[datetime]
) -> Sequence[datetime]:
    match definition.catch_up:
        case CatchUp.NONE:
            return ()
        case CatchUp.ONE:
            return () if on_time else late[-1:]
        case CatchUp.ALL:
            return late[-definition.max_catch_up :]


def task_spec(schedule: Schedule, time: datetime, now: datetime) -> TaskSpec:
    """What is asked for when an occurrence is submitted."""
    definition = schedule.definition
    labels = {
        **definition.spec.labels,
        LABEL_SCHEDULE: schedule.id,
        LABEL_TIME: time.isoformat(timespec="microseconds" if time.microsecond else "seconds").replace(
            "+00:00", "Z"
        ),
    }
    clocks = replace(
        definition.spec.clocks,
        start_by=None if definition.start_within is None else now + definition.start_within,
        finish_by=None if definition.finish_within is None else now + definition.finish_within,
    )
    return replace(definition.spec, labels=labels, clocks=clocks)
