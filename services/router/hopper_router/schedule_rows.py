"""The rows of schedules and their runs: see `store_sql` for how such a store is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from hopper.router.v1 import schedule_pb2 as pb
from hopper_common.timestamps import from_micros, to_micros
from hopper_router import tables
from hopper_router.model import OPEN_STATES, TaskState
from hopper_router.schedule_convert import (
    Run,
    definition_from_proto,
    definition_to_proto,
    refusal_from_text,
    refusal_to_text,
)
from hopper_router.schedules import Refusal, Schedule
from hopper_router.store_sql import task_id

KEEP_RUNS: Final = 50
"""Runs of a schedule that are kept when their tasks have ended."""

_S = tables.schedules
_R = tables.schedule_runs
_T = tables.tasks
_OPEN: Final = sorted(state.value for state in OPEN_STATES)


class ScheduleStore:
    """Schedules and their runs, inside one transaction."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    # ------------------------------------------------------------ schedules

    def get(self, id_: str) -> Schedule | None:
        """A schedule, if there is one of that id."""
        row = self._conn.execute(select(_S).where(_S.c.id == id_)).one_or_none()
        return _schedule(row) if row is not None else None

    def insert(self, schedule: Schedule) -> None:
        """Store a new one."""
        self._conn.execute(insert(_S), _row(schedule))

    def update(self, schedule: Schedule) -> None:
        """Write a schedule back."""
        self._conn.execute(update(_S).where(_S.c.id == schedule.id), _row(schedule))

    def delete(self, id_: str) -> None:
        """Remove one, and what is known of its runs."""
        self._conn.execute(delete(_R).where(_R.c.schedule == id_))
        self._conn.execute(delete(_S).where(_S.c.id == id_))

    def page(self, instance: str, after: str, limit: int) -> list[Schedule]:
        """Schedules by id, from the first after that one; an empty instance is all."""
        query = select(_S).where(_S.c.id > after).order_by(_S.c.id).limit(limit)
        if instance:
            query = query.where(_S.c.instance == instance)
        return [_schedule(row) for row in self._conn.execute(query)]

    def due(self, now: datetime, limit: int) -> list[str]:
        """The ids of schedules whose time has come, the longest due first."""
        query = select(_S.c.id).where(_S.c.due_time <= to_micros(now)).order_by(_S.c.due_time, _S.c.id)
        return list(self._conn.execute(query.limit(limit)).scalars())

    def next_due_time(self) -> datetime | None:
        """When the next of all is due."""
        return from_micros(
            self._conn.execute(select(func.min(_S.c.due_time)).where(_S.c.due_time.is_not(None))).scalar()
        )

    # ------------------------------------------------------------ runs

    def begin_run(self, run: Run) -> bool:
        """Note that an occurrence is carried out; False: it was before, and is not again."""
        values = {
            "id": run.id,
            "schedule": run.schedule,
            "time": to_micros(run.time),
            "by_hand": run.by_hand,
            "run_time": to_micros(run.run_time),
        }
        return self._conn.execute(_BEGIN_RUN, values).rowcount == 1

    def end_run(self, id_: str, *, task: str = "", instance: str = "", error: Refusal | None = None) -> None:
        """Note what became of it."""
        values = {"task": task_id(task), "instance": instance, "error": refusal_to_text(error)}
        self._conn.execute(update(_R).where(_R.c.id == id_), values)

    def open_tasks(self, schedule: str, most: int) -> int:
        """How many tasks of a schedule are open; counts no further than *most*."""
        open_ones = (
            select(_R.c.id)
            .join(_T, _T.c.id == _R.c.task)
            .where(_R.c.schedule == schedule, _R.c.task != "", _T.c.state.in_(_OPEN))
            .limit(most)
        )
        return int(self._conn.execute(select(func.count()).select_from(open_ones.subquery())).scalar_one())

    def forget_old_runs(self, schedule: str) -> None:
        """Drop the runs of a schedule that are neither among the last nor open."""
        ids = select(_R.c.id).where(_R.c.schedule == schedule).order_by(_R.c.id.desc())
        oldest_kept = self._conn.execute(ids.offset(KEEP_RUNS - 1).limit(1)).scalar()
        if oldest_kept is None:
            return
        is_open = select(_T.c.id).where(_T.c.id == _R.c.task, _T.c.state.in_(_OPEN)).exists()
        self._conn.execute(delete(_R).where(_R.c.schedule == schedule, _R.c.id < oldest_kept, ~is_open))

    def last_runs(self, schedule: str, most: int) -> list[Run]:
        """The last runs of a schedule, newest first."""
        query = _RUNS.where(_R.c.schedule == schedule).order_by(_R.c.id.desc()).limit(most)
        return [_run(row) for row in self._conn.execute(query)]

    def last_run_of_each(self, schedules: Sequence[str]) -> dict[str, list[Run]]:
        """The last run of each, as a list of one; of those that have none an empty one."""
        last = select(func.max(_R.c.id)).where(_R.c.schedule.in_(schedules)).group_by(_R.c.schedule)
        found: dict[str, list[Run]] = defaultdict(list)
        for run in map(_run, self._conn.execute(_RUNS.where(_R.c.id.in_(last)))):
            found[run.schedule].append(run)
        return found


# ---------------------------------------------------------------- statements and rows

_BEGIN_RUN: Final = text(
    "INSERT INTO schedule_runs (id, schedule, time, by_hand, run_time, instance, task, error) "
    "VALUES (:id, :schedule, :time, :by_hand, :run_time, '', '', '') ON CONFLICT DO NOTHING"
)
_RUNS: Final = select(_R, _T.c.state).join(_T, _T.c.id == _R.c.task, isouter=True)


def _row(schedule: Schedule) -> dict[str, Any]:
    return {
        "id": schedule.id,
        "instance": schedule.definition.instance,
        "definition": definition_to_proto(schedule.definition).SerializeToString(),
        "paused": schedule.paused,
        "pause_reason": schedule.pause_reason,
        "next_time": to_micros(schedule.next_time),
        "due_time": to_micros(schedule.due_time),
        "runs": schedule.runs,
        "skips": schedule.skips,
        "misses": schedule.misses,
        "errors": schedule.errors,
        "error": refusal_to_text(schedule.error),
        "error_time": to_micros(schedule.error_time),
        "version": schedule.version,
        "create_time": to_micros(schedule.create_time),
        "update_time": to_micros(schedule.update_time),
    }


def _schedule(row: Row[Any]) -> Schedule:
    return Schedule(
        id=row.id,
        definition=definition_from_proto(pb.Schedule.FromString(row.definition)),
        paused=bool(row.paused),
        pause_reason=row.pause_reason,
        next_time=from_micros(row.next_time),
        due_time=from_micros(row.due_time),
        runs=row.runs,
        skips=row.skips,
        misses=row.misses,
        errors=row.errors,
        error=refusal_from_text(row.error),
        error_time=from_micros(row.error_time),
        version=row.version,
        create_time=from_micros(row.create_time),
        update_time=from_micros(row.update_time),
    )


def _run(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        schedule=row.schedule,
        time=from_micros(row.time),
        by_hand=bool(row.by_hand),
        run_time=from_micros(row.run_time),
        task=f"{row.instance}/tasks/{row.task}" if row.task else "",
        error=refusal_from_text(row.error),
        task_state=TaskState(row.state).value if row.state else "",
    )
