"""
Schedules kept and carried out: units of work, and the loop that runs them when their time has come.

    Scheduler ─► the ids that are due ─► for each a Unit:   read the row; is it (still) due?
                                                             plan: which occurrences, what next      (schedules)
                                                             for each: note the run, submit the task (placing)
                                                             write the row: the next time, the counts
                                                           ─ one commit

A task is taken in by the transaction in which its schedule moves on, so a crash leaves both or neither; and of each
occurrence the table of runs holds one, so that whoever looks at an old row makes no second task. The loop is led by one
process only to spare the others the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final

import structlog

from hopper_common.database import Signal, notify
from hopper_common.errors import (
    EtagMismatch,
    HopperError,
    LostRace,
    ResourceExhausted,
    ShuttingDown,
    Unavailable,
)
from hopper_common.time_zones import ZoneUnknown
from hopper_router import intake, placing, schedules
from hopper_router.engine import Engine
from hopper_router.errors import ScheduleExists, ScheduleNotFound
from hopper_router.model import Task
from hopper_router.schedule_convert import Run, refusal_of
from hopper_router.schedule_rows import ScheduleStore
from hopper_router.schedules import Definition, Plan, Schedule
from hopper_router.servicer import up_to_date
from hopper_router.unit import Unit, own_savepoint

BATCH: Final = 50
"""Schedules that are carried out at once."""
MOST_AT_ONCE: Final = 20
"""Occurrences of one schedule that one transaction carries out."""
LOOK_AGAIN_EVERY: Final = 1.0
"""Seconds after which the loop looks again whatever it knows: a clock may be changed."""
NEWS: Final = '{"o":"schedules"}'
"""What processes tell each other when a schedule was changed: in the form of `replicas`, as news of nothing."""
UPCOMING: Final = 5

_MICROSECOND: Final = timedelta(microseconds=1)
_log = structlog.get_logger("hopper.router")


# ---------------------------------------------------------------- what callers ask for


def find(unit: Unit, name: str) -> Schedule:
    """
    A schedule.

    Raises:
        ScheduleNotFound: There is none of that name.
    """
    found = ScheduleStore(unit.store.conn).get(name.removeprefix("schedules/"))
    if found is None:
        raise ScheduleNotFound(f"there is no schedule {name}", schedule=name)
    return found


def draft(unit: Unit, id_: str, definition: Definition) -> Schedule:
    """
    A new schedule as it would be, not stored yet; without an id it is given one.

    Raises:
        InvalidArgument, InstanceNotFound, ProjectNotFound.
    """
    _check(unit, definition)
    id_ = id_ or unit.new_name("schedules").removeprefix("schedules/")
    made = Schedule(id=id_, definition=definition, create_time=unit.now, update_time=unit.now)
    return _awaiting(made, unit.now)


def create(unit: Unit, id_: str, definition: Definition) -> Schedule:
    """
    Make a schedule.

    Raises:
        ScheduleExists, and as `draft`.
    """
    made = draft(unit, id_, definition)
    store = ScheduleStore(unit.store.conn)
    if store.get(made.id) is not None:
        raise ScheduleExists(
            f"there is a schedule {made.name}: change it, or choose another id", schedule=made.name
        )
    store.insert(made)
    notify(unit.store.conn, NEWS)
    return made


def change(unit: Unit, name: str, edit: Callable[[Definition], Definition], *, etag: str) -> Schedule:
    """
    Change what is said about a schedule. If that changes its times, they are counted from now.

    Raises:
        EtagMismatch, ScheduleNotFound, and as `draft`.
    """
    before = find(unit, name)
    _require_etag(before, etag)
    definition = edit(before.definition)
    _check(unit, definition)
    after = replace(before, definition=definition)
    if definition.timing != before.definition.timing and not before.paused:
        after = _awaiting(after, unit.now)
    return _changed(unit, after)


def pause(unit: Unit, name: str, reason: str) -> Schedule:
    """Let a schedule stand still; a repeat changes nothing."""
    schedule = find(unit, name)
    if schedule.paused:
        return schedule
    return _changed(unit, _paused(schedule, reason))


def resume(unit: Unit, name: str) -> Schedule:
    """Let a schedule go on from now; a repeat changes nothing."""
    schedule = find(unit, name)
    if not schedule.paused:
        return schedule
    schedules.check(schedule.definition)  # its time zone may not be known any more
    return _changed(unit, _awaiting(replace(schedule, paused=False, pause_reason=""), unit.now))


def remove(unit: Unit, name: str, *, etag: str) -> None:
    """Remove a schedule; its tasks stay."""
    schedule = find(unit, name)
    _require_etag(schedule, etag)
    ScheduleStore(unit.store.conn).delete(schedule.id)


def trigger(unit: Unit, name: str) -> tuple[Task, Schedule]:
    """
    Submit a schedule's task now.

    Raises:
        ScheduleNotFound, and as `placing.submit`.
    """
    schedule = find(unit, name)
    task = _submit(unit, schedule, unit.now, by_hand=True)
    if task is None:
        raise RuntimeError("a run by hand was taken for one that was before")
    schedule = replace(schedule, runs=schedule.runs + 1)
    ScheduleStore(unit.store.conn).update(schedule)
    return task, schedule


def upcoming(schedule: Schedule, now: datetime) -> list[datetime]:
    """The next occurrences; of a paused one those that would come."""
    after = now if schedule.next_time is None else schedule.next_time - _MICROSECOND
    try:
        return list(islice(schedules.coming(schedule.definition, after), UPCOMING))
    except ZoneUnknown:  # any more; running it says so
        return []


def _check(unit: Unit, definition: Definition) -> None:
    schedules.check(definition)
    unit.instance(definition.instance)
    intake.require_project(unit, definition.spec.project)


def _require_etag(schedule: Schedule, etag: str) -> None:
    if etag and etag != schedule.etag:
        raise EtagMismatch(resource=schedule.name, etag=schedule.etag)


def _awaiting(schedule: Schedule, after: datetime) -> Schedule:
    """The schedule, waiting for its first occurrence after a time."""
    due = schedules.following(schedule.id, schedule.definition, after)
    return replace(schedule, next_time=due.time if due else None, due_time=due.due if due else None)


def _paused(schedule: Schedule, reason: str) -> Schedule:
    return replace(schedule, paused=True, pause_reason=reason, next_time=None, due_time=None)


def _changed(unit: Unit, schedule: Schedule) -> Schedule:
    """Store a change by a call."""
    schedule = replace(schedule, version=schedule.version + 1, update_time=unit.now)
    ScheduleStore(unit.store.conn).update(schedule)
    notify(unit.store.conn, NEWS)
    return schedule


# ---------------------------------------------------------------- what their time asks for


def run_due(unit: Unit, id_: str, *, keep_refusals: bool) -> int:
    """
    Carry out what is due of a schedule, and move it on; returns how many occurrences that were.

    Args:
        keep_refusals: Write down that an occurrence is refused and go on; else the refusal is raised, and nothing done.

    Raises:
        HopperError: A refusal; or trouble that passes, in which no occurrence must be lost.
    """
    store = ScheduleStore(unit.store.conn)
    schedule = store.get(id_)
    if schedule is None:
        return 0
    try:
        plan = schedules.plan(schedule, unit.now, most=MOST_AT_ONCE)
    except ZoneUnknown as error:
        store.update(_paused(schedule, f"its time zone {schedule.definition.time_zone} {error}"))
        _log.warning("schedule paused: its time zone is not known here", schedule=schedule.name)
        return 0
    if plan is None:
        return 0
    for time in plan.run:
        schedule = _carry_out(unit, schedule, time, keep_refusals=keep_refusals)
    store.update(_moved_on(schedule, plan))
    store.forget_old_runs(schedule.id)
    return len(plan.run)


def _moved_on(schedule: Schedule, plan: Plan) -> Schedule:
    return replace(
        schedule,
        misses=schedule.misses + plan.missed,
        next_time=plan.next.time if plan.next else None,
        due_time=plan.next.due if plan.next else None,
    )


def _carry_out(unit: Unit, schedule: Schedule, time: datetime, *, keep_refusals: bool) -> Schedule:
    """Submit the task of an occurrence, unless others are open; returns the schedule with its counts."""
    limit = schedule.definition.open_limit
    if limit is not None and ScheduleStore(unit.store.conn).open_tasks(schedule.id, limit) >= limit:
        return replace(schedule, skips=schedule.skips + 1)
    try:
        task = own_savepoint(unit, lambda: _submit(unit, schedule, time, by_hand=False))
    except (Unavailable, ResourceExhausted, LostRace):
        raise
    except HopperError as error:
        if not keep_refusals:
            raise
        return _refused(unit, schedule, time, error)
    if task is None:
        return schedule
    return replace(schedule, runs=schedule.runs + 1, error=None, error_time=None)


def _submit(unit: Unit, schedule: Schedule, time: datetime, *, by_hand: bool) -> Task | None:
    """Submit the task of an occurrence; None: that was done before."""
    store = ScheduleStore(unit.store.conn)
    run = _new_run(unit, schedule, time, by_hand=by_hand)
    if not store.begin_run(run):
        return None
    definition = schedule.definition
    task, _ = placing.submit(unit, definition.instance, schedules.task_spec(schedule, time, unit.now))
    store.end_run(run.id, task=task.name, instance=task.instance)
    return task


def _refused(unit: Unit, schedule: Schedule, time: datetime, error: HopperError) -> Schedule:
    refusal = refusal_of(error)
    store = ScheduleStore(unit.store.conn)
    run = _new_run(unit, schedule, time, by_hand=False)
    if not store.begin_run(run):
        return schedule
    store.end_run(run.id, error=refusal)
    _log.warning("occurrence refused", schedule=schedule.name, reason=error.reason)
    return replace(schedule, errors=schedule.errors + 1, error=refusal, error_time=unit.now)


def _new_run(unit: Unit, schedule: Schedule, time: datetime, *, by_hand: bool) -> Run:
    id_ = unit.new_name("runs").removeprefix("runs/")
    return Run(id_, schedule.id, time, by_hand, unit.now)


# ---------------------------------------------------------------- the loop


class Scheduler:
    """Carries schedules out when their time has come."""

    def __init__(self, engine: Engine, *, look_again_every: float = LOOK_AGAIN_EVERY) -> None:
        self._engine = engine
        self._look_again_every = look_again_every
        self._changed = Signal()
        engine.db.on_notify(self._heard)

    def _heard(self, line: str) -> None:
        if line in ("", NEWS):  # empty: something was missed
            self._changed.fire()

    async def schedule_forever(self) -> None:
        """Carry out what is due, then sleep until something is, or is changed."""
        while True:
            seen = self._changed.count
            try:
                upcoming = await self._step()
            except ShuttingDown:
                raise
            except HopperError as error:  # storage comes back; the loop must be there when it does
                _log.warning("trouble, will try again", what="schedule", reason=error.reason)
                upcoming = None
            await self._sleep(upcoming, seen)

    async def _step(self) -> datetime | None:
        await self.run_due()
        return await self._engine.read(lambda unit: ScheduleStore(unit.store.conn).next_due_time())

    async def run_due(self) -> int:
        """
        Carry out everything that is due; returns how many occurrences that were.

        Raises:
            HopperError: Trouble that passes: what it is about stays due.
        """
        done = 0
        while self._engine.registry.current.complete:  # else every submit would be refused, for a moment
            due = await self._engine.read(lambda unit: ScheduleStore(unit.store.conn).due(unit.now, BATCH))
            if not due:
                break
            # Each in a unit of its own; they share commits. One in trouble keeps no other from its turn.
            outcomes = await asyncio.gather(*map(self._run, due), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                done += outcome
        return done

    async def _run(self, id_: str) -> int:
        try:
            # A refusal counts only after the registry has been asked whether the copy is right.
            return await up_to_date(self._engine, lambda: self._engine.run(partial(_run_or_refuse, id_)))
        except (Unavailable, ResourceExhausted, LostRace):
            raise
        except HopperError:
            return await self._engine.run(partial(run_due, id_=id_, keep_refusals=True))

    async def _sleep(self, upcoming: datetime | None, seen: int) -> None:
        length = self._look_again_every
        if upcoming is not None:
            length = min(length, max(0.0, (upcoming - self._engine.clock.now()).total_seconds()))
        if not self._engine.registry.current.complete:
            length = self._look_again_every
        waiting = asyncio.ensure_future(self._changed.wait(after=seen))
        try:
            await asyncio.wait([waiting], timeout=length)
        finally:
            waiting.cancel()


def _run_or_refuse(id_: str, unit: Unit) -> int:
    return run_due(unit, id_, keep_refusals=False)
