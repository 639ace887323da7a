"""
Finished tasks, out of the way of the others: each becomes one row of `tasks_archive`, with all that belongs to it.

    scan (reader) ─► what may go ─► body: row, decisions, dependencies, attempts, delegations ─► move (writer, short)

A scan goes through the tasks in the order of their ids, which is that of their making, and has no place to remember:
what is moved is moved, and the next scan finds the rest. Nothing goes that somebody still needs:

* the end has not been told to memory yet
* an open task depends on it
* it came by a delegation that is open, or what it was handed over as is still here (it goes first)

What is looked at once more in the transaction that moves it, so nobody has to be kept from anything meanwhile.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Boolean, Connection, LargeBinary, Table, Text, bindparam, delete, insert, select, text

from hopper_common.timestamps import to_micros
from hopper_router import tables
from hopper_router.convert import decision_from_bytes
from hopper_router.model import FINAL_STATES, Decision, Task
from hopper_router.rows import task_from_row
from hopper_router.store_sql import Store, task_id

WINDOW: Final = 1000
STEP: Final = 200
WORDS_WINDOW: Final = 2000

_T = tables.tasks
_FINAL: Final = [state.value for state in FINAL_STATES]
_OPEN_DELEGATION: Final = ["OFFERED", "ACCEPTED"]


class Found(NamedTuple):
    """
    What a look at some tasks found.

    Attributes:
        ids: Those that may be archived.
        last: The last task that was looked at: the next look begins after it; "": there is no more.
    """

    ids: Sequence[str]
    last: str


@dataclass(frozen=True, slots=True)
class Packed:
    """A task as it is to be archived, if its generation is still that."""

    name: str
    generation: int
    row: Mapping[str, Any]


# ---------------------------------------------------------------- what may go


def look(conn: Connection, *, after: str, until: datetime) -> Found:
    """Which of the next tasks after that id ended by *until*, and are needed by nobody."""
    cutoff, told = to_micros(until), Store(conn).episodes_sent()
    rows = conn.execute(_NEXT, {"after": after, "limit": WINDOW}).all()
    ended = [
        row
        for row in rows
        if row.finish_time is not None and row.finish_time <= cutoff and row.generation <= told
    ]
    # Ids grow with time: who came after the time cannot have ended before it.
    more = len(rows) == WINDOW and rows[-1].create_time <= cutoff
    return Found(_not_needed(conn, ended), rows[-1].id if more else "")


def _not_needed(conn: Connection, rows: Sequence[Any]) -> list[str]:
    """The ids of those finished tasks that nobody needs here any more."""
    names = {f"{row.instance}/tasks/{row.id}": row for row in rows}
    needed = _awaited(conn, [name for name, row in names.items() if row.awaited])
    needed |= _handed_over(conn, names)
    came = {name: task_id(row.delegation) for name, row in names.items() if row.delegation}
    column = tables.delegations.c
    query = select(column.id).where(column.id.in_(set(came.values())), column.state.in_(_OPEN_DELEGATION))
    open_ = set(conn.execute(query).scalars()) if came else set()
    return [row.id for name, row in names.items() if name not in needed and came.get(name) not in open_]


def _awaited(conn: Connection, names: Collection[str]) -> set[str]:
    """Those that an open task depends on."""
    if not names:
        return set()
    column = tables.dependencies.c
    edges = conn.execute(select(column.task, column.depends_on).where(column.depends_on.in_(names))).all()
    open_ = _still(conn, {task for task, _ in edges}, open_only=True)
    return {other for task, other in edges if task in open_}


def _handed_over(conn: Connection, names: Collection[str]) -> set[str]:
    """Those that were handed over as tasks that are still here."""
    column = tables.delegations.c
    made = conn.execute(select(column.task, column.child_tasks).where(column.task.in_(names))).all()
    children = {task: json.loads(child_tasks) for task, child_tasks in made}
    here = _still(conn, {child for made_of in children.values() for child in made_of})
    return {task for task, made_of in children.items() if not here.isdisjoint(made_of)}


def _still(conn: Connection, names: Collection[str], *, open_only: bool = False) -> set[str]:
    """Those that are here; or here and open."""
    if not names:
        return set()
    query = select(_T.c.id, _T.c.instance).where(_T.c.id.in_([task_id(name) for name in names]))
    if open_only:
        query = query.where(_T.c.state.not_in(_FINAL))
    return {f"{row.instance}/tasks/{row.id}" for row in conn.execute(query)}


# ---------------------------------------------------------------- packing, and moving


def pack(conn: Connection, ids: Sequence[str]) -> list[Packed]:
    """Those tasks with all that belongs to them, as rows of the archive."""
    rows = [dict(row._mapping) for row in conn.execute(_BY_IDS, {"ids": list(ids)})]
    names = {row["id"]: f"{row['instance']}/tasks/{row['id']}" for row in rows}
    parts = {
        "decisions": _belonging(conn, tables.decisions, "task", names.values()),
        "dependencies": _belonging(conn, tables.dependencies, "task", names.values()),
        "delegations": _belonging(conn, tables.delegations, "task", names.values()),
        "attempts": _belonging(conn, tables.attempts, "task", names),
    }
    return [
        Packed(
            names[row["id"]],
            row["generation"],
            {
                **{column: row[column] for column in ("finish_time", "id", "instance", "project", "state")},
                "body": _body(
                    row,
                    {
                        part: found.get(row["id"] if part == "attempts" else names[row["id"]], [])
                        for part, found in parts.items()
                    },
                ),
            },
        )
        for row in rows
    ]


def _belonging(
    conn: Connection, table: Table, column: str, keys: Iterable[str]
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    query = select(table).where(table.c[column].in_(list(keys)))
    for row in conn.execute(query.order_by(*table.primary_key.columns)):
        found[row._mapping[column]].append(dict(row._mapping))
    return found


def _body(row: Mapping[str, Any], parts: Mapping[str, Any]) -> bytes:
    document = {"task": row, **{name: part for name, part in parts.items() if part}}
    return zlib.compress(json.dumps(document, default=_as_text, separators=(",", ":")).encode())


def _as_text(value: Any) -> str:
    return base64.b64encode(bytes(value)).decode()


def move(conn: Connection, packed: Sequence[Packed]) -> int:
    """Move tasks to the archive, but those that have changed since, or are needed now; returns how many it was."""
    ids = [one.row["id"] for one in packed]
    now_here = conn.execute(_FACTS, {"ids": ids}).all()
    may_go = set(_not_needed(conn, [row for row in now_here if row.finish_time is not None]))
    generations = {row.id: row.generation for row in now_here}
    going = [
        one for one in packed if one.row["id"] in may_go and generations[one.row["id"]] == one.generation
    ]
    if not going:
        return 0
    conn.execute(insert(tables.archive), [dict(one.row) for one in going])
    _remove(conn, [one.row["id"] for one in going], [one.name for one in going])
    return len(going)


def _remove(conn: Connection, ids: Sequence[str], names: Sequence[str]) -> None:
    for table in (tables.decisions, tables.dependencies, tables.delegations):
        conn.execute(delete(table).where(table.c.task.in_(names)))
    conn.execute(delete(tables.attempts).where(tables.attempts.c.task.in_(ids)))
    if conn.dialect.name == "postgresql":
        conn.execute(_FORGET_WORDS, {"ids": list(ids)})
    conn.execute(delete(_T).where(_T.c.id.in_(ids)))


# ---------------------------------------------------------------- words


def dead_words(conn: Connection, after: int) -> tuple[list[int], int]:
    """
    Of the next rows of SQLite's word index those whose tasks are gone, and the last that was looked at; 0: no more.

    The index knows no ids, so they are not removed with their tasks, but in a round of its own. Nobody finds them
    meanwhile: who searches joins them with the tasks.
    """
    rows = conn.execute(_WORDS, {"after": after, "limit": WORDS_WINDOW}).all()
    return [row.rowid for row in rows if row.task is None], rows[-1].rowid if len(rows) == WORDS_WINDOW else 0


def forget_words(conn: Connection, rowids: Sequence[int]) -> None:
    """Remove rows of SQLite's word index."""
    conn.execute(text("DELETE FROM tasks_fts WHERE rowid = :rowid"), [{"rowid": rowid} for rowid in rowids])


# ---------------------------------------------------------------- looking up


def tasks(conn: Connection, names: Collection[str]) -> dict[str, Task]:
    """Those of the tasks that are archived, by name, as they were."""
    found = (task_from_row(_row(document)) for document in _documents(conn, names))
    return {task.name: task for task in found if task.name in set(names)}


def decisions(conn: Connection, name: str) -> list[Decision]:
    """The decisions about an archived task, oldest first."""
    return [
        decision_from_bytes(base64.b64decode(row["body"]))
        for document in _documents(conn, [name])
        for row in document.get("decisions", ())
    ]


def _documents(conn: Connection, names: Collection[str]) -> list[dict[str, Any]]:
    if not names:
        return []
    query = select(tables.archive.c.body).where(tables.archive.c.id.in_([task_id(name) for name in names]))
    return [json.loads(zlib.decompress(body)) for body in conn.execute(query).scalars()]


def _row(document: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `tasks` as it would be now: columns that have come since have nothing in them."""
    stored = document["task"]
    return {
        column.name: _from_text(column.type, stored.get(column.name, _nothing(column.type, column.nullable)))
        for column in _T.c
    }


def _nothing(kind: Any, nullable: bool | None) -> Any:
    if nullable:
        return None
    return "" if isinstance(kind, Text | LargeBinary) else False if isinstance(kind, Boolean) else 0


def _from_text(kind: Any, value: Any) -> Any:
    return base64.b64decode(value) if isinstance(kind, LargeBinary) else value


# ---------------------------------------------------------------- statements

_NEEDED = (
    _T.c.id, _T.c.instance, _T.c.delegation, _T.c.awaited, _T.c.finish_time, _T.c.create_time, _T.c.generation
)  # fmt: skip
_NEXT: Final = (
    select(*_NEEDED).where(_T.c.id > bindparam("after")).order_by(_T.c.id).limit(bindparam("limit"))
)
_FACTS: Final = select(*_NEEDED).where(_T.c.id.in_(bindparam("ids", expanding=True)))
_BY_IDS: Final = select(_T).where(_T.c.id.in_(bindparam("ids", expanding=True))).order_by(_T.c.id)
_FORGET_WORDS: Final = text("DELETE FROM task_words WHERE id = ANY(:ids)")
_WORDS: Final = text(
    "SELECT tasks_fts.rowid AS rowid, tasks.id AS task FROM tasks_fts LEFT JOIN tasks ON tasks.id = tasks_fts.id "
    "WHERE tasks_fts.rowid > :after ORDER BY tasks_fts.rowid LIMIT :limit"
)
