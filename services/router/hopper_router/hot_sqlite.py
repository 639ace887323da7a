"""The hot path's statements for SQLite: plain driver calls, in the group of the one writer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection

from hopper_common.database import Database
from hopper_common.timestamps import to_micros
from hopper_router import tables
from hopper_router.hot import (
    AFFINITY_GRACE,
    CLAIMED,
    CLAIMED_ROW,
    COMPLETED_ROW,
    RENEWED_ROW,
    Admission,
    End,
    Keep,
    Left,
    Repeat,
    Row,
    Want,
    submitted_body,
)
from hopper_router.rows import length, task_to_row
from hopper_router.store_sql import task_id

T = TypeVar("T")

_COLUMNS: Final = tuple(column.name for column in tables.tasks.c)
_INSERT_TASK: Final = (
    f"INSERT INTO tasks ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + name for name in _COLUMNS)})"
)
_INSERT_EVENT: Final = (
    "INSERT INTO task_events (version, topic, key, body, create_time) VALUES (?, ?, ?, ?, ?)"
)
_INSERT_DECISION: Final = (
    "INSERT INTO routing_decisions (id, task, instance, project, body) VALUES (?, ?, ?, ?, ?)"
)
_INSERT_REQUEST: Final = (
    "INSERT INTO requests (request_id, digest, response, create_time, generation) VALUES (?, ?, ?, ?, ?)"
)
_FIND_REQUEST: Final = "SELECT digest, response, generation FROM requests WHERE request_id = ?"
_HEAD: Final = "SELECT coalesce(max(version), 0) FROM task_events"

_NEVER: Final = 9223372036854775807
_GRACE: Final = length(AFFINITY_GRACE) or 0

_SPECIAL: Final = "slots > 1 OR (affinity <> '' AND attempt = 0 AND update_time > :alone)"
_PICK: Final = {
    "project": f"SELECT id, {_SPECIAL} FROM tasks WHERE ready AND project = :queue "
    "ORDER BY priority DESC, rank, id LIMIT :most",
    "instance": f"SELECT id, {_SPECIAL} FROM tasks WHERE ready AND instance = :queue AND {tables.BELOW_ROOT} "
    "ORDER BY priority DESC, rank, id LIMIT :most",
}
_OWN: Final = {
    column: f"SELECT 1 FROM tasks INDEXED BY tasks_ready_for "
    f"WHERE ready AND affinity <> '' AND affinity = ? AND {column} = ? LIMIT 1"
    for column in ("project", "instance")
}
# As in hot_postgres: what happens to a task happens after what has happened to it.
_NOW: Final = "max(:now, update_time)"
_LEASE: Final = "min(:lease, coalesce(heartbeat, :lease))"
_CLAIM: Final = f"""
UPDATE tasks SET state = 'RUNNING', ready = 0, token = token + 1, attempt = attempt + 1, worker = :worker,
    lease = {_LEASE}, lease_end = {_NOW} + {_LEASE}, claim_time = {_NOW}, update_time = {_NOW},
    first_start = coalesce(first_start, {_NOW}), generation = :generation,
    wake_time = nullif(min({_NOW} + {_LEASE}, coalesce(finish_by, {_NEVER}),
        coalesce({_NOW} + run_for, {_NEVER})), {_NEVER})
WHERE id = :id RETURNING {", ".join(dict.fromkeys((*CLAIMED_ROW, *CLAIMED)))}
"""
_RENEW: Final = f"""
UPDATE tasks SET lease = {_LEASE},
    lease_end = max(lease_end, :now + {_LEASE}),
    wake_time = nullif(min(max(lease_end, :now + {_LEASE}),
        coalesce(finish_by, {_NEVER}), coalesce(claim_time + run_for, {_NEVER})), {_NEVER})
WHERE id = :id AND token = :token AND state = 'RUNNING' AND lease_end > :now
RETURNING {", ".join(RENEWED_ROW)}
"""
_COMPLETE: Final = f"""
UPDATE tasks SET state = 'SUCCEEDED', result = :result, finish_time = {_NOW}, update_time = {_NOW}, wake_time = NULL,
    generation = :generation,
    live = CASE WHEN live = '' THEN '' ELSE replace(json_remove(live, '$.failure', '$.progress'), '{{}}', '') END
WHERE id = :id AND token = :token AND state = 'RUNNING' AND lease_end > :now AND delegation = ''
    AND NOT awaited
RETURNING {", ".join(COMPLETED_ROW)}
"""


class SqliteHotStore:
    """`hot.HotStore` on SQLite."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def admit(self, calls: Sequence[Admission], origin: str) -> Sequence[int | Repeat]:
        """See HotStore."""
        return await self._write(lambda driver: [_admit(driver, call) for call in calls])

    async def claim(
        self, wants: Sequence[Want], now: datetime, origin: str
    ) -> Sequence[list[Row] | Repeat | Left]:
        """See HotStore."""
        return await self._write(lambda driver: [_claim(driver, want, to_micros(now)) for want in wants])

    async def renew(self, keeps: Sequence[Keep], now: datetime) -> Sequence[Row | None]:
        """See HotStore."""

        def work(driver: sqlite3.Connection) -> list[Row | None]:
            return [
                _one(
                    driver,
                    _RENEW,
                    {"id": keep.id, "token": keep.token, "lease": length(keep.lease), "now": to_micros(now)},
                )
                for keep in keeps
            ]

        return await self._write(work)

    async def complete(self, ends: Sequence[End], now: datetime, origin: str) -> Sequence[Row | None]:
        """See HotStore."""
        return await self._write(lambda driver: _complete(driver, ends, to_micros(now)))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def unit(conn: Connection) -> T:
            return work(cast("sqlite3.Connection", conn.connection.dbapi_connection))

        return await self._db.write(unit)


def _rows(cursor: sqlite3.Cursor) -> list[Row]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _one(driver: sqlite3.Connection, statement: str, values: dict[str, Any]) -> Row | None:
    found = _rows(driver.execute(statement, values))
    return found[0] if found else None


def _repeat(driver: sqlite3.Connection, request_id: str) -> Repeat | None:
    row = driver.execute(_FIND_REQUEST, (request_id,)).fetchone() if request_id else None
    return Repeat(*row) if row else None


def _next_generation(driver: sqlite3.Connection) -> int:
    (head,) = driver.execute(_HEAD).fetchone()
    return int(head) + 1


def _admit(driver: sqlite3.Connection, call: Admission) -> int | Repeat:
    repeat = _repeat(driver, call.request_id)
    if repeat is not None:
        return repeat
    first, now = _next_generation(driver), to_micros(call.now)
    if call.request_id:
        driver.execute(_INSERT_REQUEST, (call.request_id, call.digest, call.answer, now, first))
    rows = [task_to_row(task, call.now) for task in call.tasks]
    for generation, row in enumerate(rows, first):
        row["generation"] = generation
    driver.executemany(_INSERT_TASK, rows)
    driver.executemany(
        _INSERT_EVENT,
        [
            (generation, "SUBMIT", task.name, submitted_body(task), now)
            for generation, task in enumerate(call.tasks, first)
        ],
    )
    driver.executemany(
        _INSERT_DECISION,
        [
            (task_id(decision.name), decision.task, decision.instance, decision.project, record)
            for decision, record in zip(call.decisions, call.records, strict=True)
        ],
    )
    return first


def _claim(driver: sqlite3.Connection, want: Want, now: int) -> list[Row] | Repeat | Left:
    repeat = _repeat(driver, want.request_id)
    if repeat is not None:
        return repeat
    picked = _pick(driver, want, now)
    if any(special for _, special in picked):
        return Left.COLD
    ids = [id_ for id_, _ in picked]
    if not ids:
        return []
    first = _next_generation(driver)
    values = {"worker": want.worker, "lease": length(want.lease), "now": now}
    rows: list[Row] = []
    for generation, id_ in enumerate(ids, first):
        rows += _rows(driver.execute(_CLAIM, {**values, "id": id_, "generation": generation}))
    driver.executemany(
        _INSERT_EVENT,
        [
            (
                row["generation"],
                "CLAIM",
                f"{row['instance']}/tasks/{row['id']}",
                _claimed_body(row),
                row["claim_time"],
            )
            for row in rows
        ],
    )
    if want.request_id:
        answer = str(len(rows)).encode()
        driver.execute(_INSERT_REQUEST, (want.request_id, want.digest, answer, now, first))
    return rows


def _pick(driver: sqlite3.Connection, want: Want, now: int) -> list[tuple[str, bool]]:
    """What is next, and whether a unit has to look at it."""
    if driver.execute(_OWN[want.column], (want.worker, want.queue)).fetchone():
        return [("", True)]
    values = {"queue": want.queue, "most": want.most, "alone": now - _GRACE}
    return driver.execute(_PICK[want.column], values).fetchall()


def _claimed_body(row: Row) -> bytes:
    return json.dumps([row[name] for name in CLAIMED]).encode()


def _complete(driver: sqlite3.Connection, ends: Sequence[End], now: int) -> list[Row | None]:
    generation = _next_generation(driver)
    done: list[Row | None] = []
    for end in ends:
        values = {
            "id": end.id,
            "token": end.token,
            "result": end.result,
            "now": now,
            "generation": generation,
        }
        row = _one(driver, _COMPLETE, values)
        done.append(row)
        generation += row is not None
    driver.executemany(
        _INSERT_EVENT,
        [
            (row["generation"], "COMPLETE", f"{row['instance']}/tasks/{row['id']}", b"[]", row["finish_time"])
            for row in done
            if row is not None
        ],
    )
    return done
