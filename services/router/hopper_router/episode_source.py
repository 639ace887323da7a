"""
What `episodes` reads of the router's rows: no more columns than it tells, in one statement for many.

A decision and a spec are handed on as the bytes they are stored as.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from hopper_common.database import Database
from hopper_common.eventlog import Event
from hopper_router.episodes import TOPICS, DecisionRecord, EndedTask
from hopper_router.model import Project, TaskState
from hopper_router.rows import live_from_json
from hopper_router.store_sql import EPISODES_SENT, EVENTS, Store, task_id


class StoredEpisodes:
    """
    `episodes.EpisodeSource` over the router's database.

    Args:
        projects: The registered projects, by name, by now: what they promise. Default: nobody promises anything.
    """

    def __init__(self, db: Database, projects: Callable[[], Mapping[str, Project]] = dict) -> None:
        self._db = db
        self._projects = projects

    async def load_cursor(self) -> int:
        """How far memory has been told."""
        return await self._db.read(lambda conn: Store(conn).episodes_sent())

    async def save_cursor(self, version: int) -> None:
        """Memory has been told up to here."""
        await self._db.write(lambda conn: Store(conn).put_value(EPISODES_SENT, str(version).encode()))

    def tail(self, after: int) -> AsyncIterator[list[Event]]:
        """The events that memory hears of."""
        return EVENTS.tail(self._db, after=after, topics=TOPICS)

    async def records(
        self, decisions: Collection[str], first: Collection[str]
    ) -> Mapping[str, DecisionRecord]:
        """Decisions with what surrounds them."""
        return await self._db.read(lambda conn: _records(conn, decisions, first))

    async def ended(self, tasks: Collection[str]) -> Mapping[str, EndedTask]:
        """Tasks as they are now."""
        projects = self._projects()
        return await self._db.read(lambda conn: _ended(conn, tasks, projects))


def _records(conn: Connection, names: Collection[str], first: Collection[str]) -> dict[str, DecisionRecord]:
    decisions = [(id_, task_id(task), body) for id_, task, body in _rows(conn, _DECISIONS, names)]
    tasks = {
        id_: (task_id(delegation), spec)
        for id_, delegation, spec in _rows(conn, _TASKS, [task for _, task, _ in decisions])
    }
    replaced = _decisions(conn, _REPLACED, set(names).difference(first))
    parents = _decisions(conn, _PARENTS, {delegation for delegation, _ in tasks.values()} - {""})
    records: dict[str, DecisionRecord] = {}
    for id_, task, body in decisions:
        if task in tasks:
            delegation, spec = tasks[task]
            parent = parents.get(delegation, "")
            records[f"decisions/{id_}"] = DecisionRecord(body, spec, parent, replaced.get(id_, ""))
    return records


def _decisions(
    conn: Connection, statement: Mapping[str, TextClause], names: Collection[str]
) -> dict[str, str]:
    """By ids, the names of the decisions that a statement finds for them."""
    return {id_: f"decisions/{decision}" for id_, decision in _rows(conn, statement, names) if decision}


def _ended(conn: Connection, names: Collection[str], projects: Mapping[str, Project]) -> dict[str, EndedTask]:
    ended: dict[str, EndedTask] = {}
    for name, state, decision, end, attempts, live, worker, *times, project, finish_by in _rows(
        conn, _ENDED, names
    ):
        claimed, queued, started = times
        due = _due(finish_by, queued, projects.get(project))
        ended[name] = EndedTask(
            _STATES[state], decision, end, attempts, _reason(live), worker, claimed, queued, started, due
        )
    return ended


def _due(finish_by: int | None, queued: int | None, project: Project | None) -> int | None:
    """When a task was to be done: by its deadline, and within what its project promises."""
    promised = None
    if queued is not None and project is not None and project.sla is not None:
        promised = queued + project.sla // _MICROSECOND
    return min((due for due in (finish_by, promised) if due is not None), default=None)


_MICROSECOND: Final = timedelta(microseconds=1)


def _reason(live: str) -> str:
    """Why a task failed, of the JSON document of its row; that of others is not read."""
    failure = live_from_json(live).get("failure")
    return failure.reason if failure else ""


_STATES: Final = {state.value: state for state in TaskState}


# ---------------------------------------------------------------- statements


def _rows(conn: Connection, statement: Mapping[str, TextClause], names: Collection[str]) -> Iterable[Any]:
    """What a statement finds for the ids of these names."""
    if not names:
        return ()
    dialect = conn.dialect.name
    ids = [task_id(name) for name in names]
    return conn.execute(statement[dialect], {"ids": json.dumps(ids) if dialect == "sqlite" else ids}).all()


def _by_id(query: str) -> dict[str, TextClause]:
    """A query of those rows whose id is one of a list, by dialect. The list is one parameter, however long it is."""
    return {
        "sqlite": text(f"{query} WHERE id IN (SELECT value FROM json_each(:ids))"),
        "postgresql": text(f"{query} WHERE id = ANY(CAST(:ids AS TEXT[]))"),
    }


def _last_before(alias: str) -> str:
    """The last decision about the task of a row, of those whose ids are less than the row's: they grow with time."""
    return (
        f"(SELECT max(d.id) FROM routing_decisions d WHERE d.task = {alias}.task AND d.id < {alias}.id)"
        " AS decision"
    )


_DECISIONS: Final = _by_id("SELECT id, task, body FROM routing_decisions")
_TASKS: Final = _by_id("SELECT id, delegation, spec FROM tasks")
_REPLACED: Final = _by_id(f"SELECT id, {_last_before('made')} FROM routing_decisions made")
_PARENTS: Final = _by_id(f"SELECT id, {_last_before('handed')} FROM task_delegations handed")
_ENDED: Final = _by_id(
    "SELECT instance || '/tasks/' || id, state, decision, coalesce(finish_time, update_time), attempt, "
    "CASE WHEN state IN ('FAILED', 'REJECTED') THEN live ELSE '' END, worker, claim_time, queue_time, first_start, "
    "project, finish_by "
    "FROM tasks"
)
