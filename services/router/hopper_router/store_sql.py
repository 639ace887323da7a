"""
The router's rows: read into the nouns of `model`, and written back.

A `Store` works inside one transaction (`hopper_common.database`): it is made for a connection, used, and thrown away.
It decides nothing, and speaks both dialects. What runs once a task on the busiest paths is in `hot_sqlite` and
`hot_postgres`; how a task is a row, in `rows`.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)

from hopper_common.eventlog import Event, EventLog
from hopper_common.timestamps import from_micros, to_micros
from hopper_router import tables
from hopper_router.convert import decision_from_bytes
from hopper_router.fairness import Turns, lane
from hopper_router.hot import Repeat
from hopper_router.load import Load
from hopper_router.model import (
    OPEN_STATES,
    ROOT_INSTANCE,
    Attempt,
    Decision,
    Delegation,
    DelegationKind,
    DelegationState,
    Failure,
    Task,
    TaskState,
    Word,
)
from hopper_router.rows import SHORT_ID, short_id, task_from_row, task_to_row

_T = tables.tasks
_D = tables.delegations
EVENTS: Final = EventLog(tables.events)
EPISODES_SENT: Final = "episodes_sent"
_FTS_DESCRIPTION: Final = 2000  # bytes beyond this are not searched: they are logs more often than words


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list shows; empty fields do not filter."""

    instance: str = ""
    states: Collection[TaskState] = OPEN_STATES
    project: str = ""
    tag: str = ""
    requester: str = ""
    id_suffix: str = ""


@dataclass(frozen=True, slots=True)
class ParkedFilter:
    """Which parked tasks: that failed for that reason; empty fields do not filter."""

    reason: str
    instance: str = ""
    project: str = ""


@dataclass(frozen=True, slots=True)
class ReadyQuery:
    """
    Which ready tasks may be claimed: of one project or one instance, without what stands still or is full.

    Attributes:
        without_keys: By project, concurrency keys.
        most_slots: Tasks that take more are left out.
        worker: Whose the claim is, if tasks may be left alone for other workers.
        own: Only tasks that are the worker's by affinity; otherwise only others.
        left_alone_since: Tasks that are another worker's by affinity, and changed after that, are left out.
        after: Only what is claimed after a task of that priority, rank and id.
    """

    column: str
    value: str
    without_instances: Collection[str] = ()
    without_projects: Collection[str] = ()
    without_keys: Mapping[str, Collection[str]] = field(default_factory=dict)
    most_slots: int = 0
    worker: str = ""
    own: bool = False
    left_alone_since: datetime | None = None
    after: tuple[int, int, str] | None = None


@dataclass(slots=True)
class PolicyRow:
    """A policy as stored; an empty source is one that was removed."""

    instance: str
    version: int
    source: str
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Blockers:
    """The dependencies of a task that have not succeeded; the dead ones never will."""

    names: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


@dataclass(slots=True)
class OpenCounts:
    """Open tasks that somebody is to work on, by project and by instance."""

    by_project: Load = field(default_factory=Load)
    by_instance: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, project: str, instance: str, step: int) -> None:
        """Count open tasks in, or out. From any thread."""
        self.by_project.add(project, step)
        with self._lock:
            self.by_instance[instance] += step

    def correct(self, counted: OpenCounts, before: OpenCounts) -> None:
        """
        Take over what was counted from the rows; *before* is what this was when that began, so that what came since
        stays.

        What was under way then, decided about and not yet stored, is forgotten: a few, until it is counted again.
        """
        for project in {*counted.by_project, *before.by_project}:
            step = counted.by_project[project] - before.by_project[project]
            if step:
                self.by_project.add(project, step)
        with self._lock:
            for instance in {*counted.by_instance, *before.by_instance}:
                self.by_instance[instance] += counted.by_instance[instance] - before.by_instance[instance]

    def copy(self) -> OpenCounts:
        """The same counts, to go on with."""
        return OpenCounts(self.by_project.copy(), defaultdict(int, self.by_instance))


def task_id(name: str) -> str:
    """The last segment of a name."""
    return name.rpartition("/")[2]


class Store:
    """The router's rows, inside one transaction."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.dialect = conn.dialect.name

    # ------------------------------------------------------------ tasks

    def tasks(self, names: Collection[str]) -> dict[str, Task]:
        """Those tasks that exist, by name."""
        if not names:
            return {}
        rows = self.conn.execute(_BY_IDS, {"ids": [task_id(name) for name in names]})
        found = {task.name: task for task in map(_task, rows)}
        return {name: found[name] for name in names if name in found}

    def insert_tasks(self, tasks: Sequence[Task], now: datetime) -> None:
        """Add tasks and their dependencies."""
        self.conn.execute(_INSERT_TASK, [task_to_row(task, now) for task in tasks])
        for task in tasks:
            self.set_dependencies(task.name, task.spec.dependencies)

    def update_task(self, task: Task, now: datetime) -> None:
        """Write a task back."""
        row = task_to_row(task, now)
        del row["awaited"]
        row["b_id"] = row.pop("id")
        self.conn.execute(_UPDATE_TASK, row)

    def replace_dependencies(self, task: Task) -> None:
        """Replace a task's dependencies after its spec changed."""
        self.conn.execute(tables.dependencies.delete().where(tables.dependencies.c.task == task.name))
        self.set_dependencies(task.name, task.spec.dependencies)

    def set_dependencies(self, name: str, depends_on: Iterable[str]) -> None:
        """Add rows for what a task depends on."""
        rows = [{"task": name, "depends_on": other} for other in dict.fromkeys(depends_on)]
        if rows:
            self.conn.execute(insert(tables.dependencies), rows)
            self.conn.execute(_AWAIT, {"ids": [task_id(row["depends_on"]) for row in rows]})

    def dependents(self, name: str) -> list[str]:
        """The tasks that depend on that one."""
        column = tables.dependencies.c
        query = select(column.task).where(column.depends_on == name).order_by(column.task)
        return list(self.conn.execute(query).scalars())

    def blockers(self, names: Collection[str]) -> dict[str, Blockers]:
        """What each of those tasks still waits for."""
        if not names:
            return {}
        column = tables.dependencies.c
        query = (
            select(column.task, column.depends_on).where(column.task.in_(names)).order_by(column.depends_on)
        )
        edges = [(row.task, row.depends_on) for row in self.conn.execute(query)]
        states = self.states({other for _, other in edges})
        open_: dict[str, list[str]] = defaultdict(list)
        dead: dict[str, list[str]] = defaultdict(list)
        for name, other in edges:
            state = states.get(other)
            if state is not TaskState.SUCCEEDED:
                open_[name].append(other)
            if state is not None and state.final and state is not TaskState.SUCCEEDED:
                dead[name].append(other)
        return {name: Blockers(tuple(open_[name]), tuple(dead[name])) for name in names}

    def states(self, names: Collection[str]) -> dict[str, TaskState]:
        """The state of each of those tasks that exists."""
        if not names:
            return {}
        query = select(_T.c.id, _T.c.instance, _T.c.state).where(
            _T.c.id.in_([task_id(name) for name in names])
        )
        rows = self.conn.execute(query)
        return {f"{row.instance}/tasks/{row.id}": TaskState(row.state) for row in rows}

    def ready(self, query: ReadyQuery, limit: int) -> list[Task]:
        """The tasks that may be claimed now, in the order of claiming."""
        statement = _ready_where(query, self.dialect).order_by(_T.c.priority.desc(), _T.c.rank, _T.c.id)
        return [_task(row) for row in self.conn.execute(statement.limit(limit))]

    def promote(self, now: datetime, turns: Turns) -> list[tuple[str, str]]:
        """
        Put those whose time has come into their queues, behind who was ready before; returns project and instance of
        each, at most 1,000.
        """
        rows = self.conn.execute(_DUE_TO_BE_READY, {"now": to_micros(now)}).all()
        if rows:
            ranked = [
                {
                    "id": row.id,
                    "rank": turns.take(
                        lane(row.project or row.instance, row.priority), row.fairness_key, 1.0, row.slots
                    ),
                }
                for row in rows
            ]
            self.conn.execute(_PROMOTE, ranked)
        return [(row.project, row.instance) for row in rows]

    def next_ready_time(self) -> datetime | None:
        """When the next of those that wait for their time gets ready."""
        return from_micros(self.conn.execute(_NEXT_READY_TIME).scalar())

    def left_alone_until(self, column: str, value: str, since: datetime) -> datetime | None:
        """When the first of the tasks that are left alone for another worker was last changed; None: there is none."""
        query = select(func.min(_T.c.update_time)).where(
            text("tasks.ready AND tasks.affinity <> ''"),
            _few(column, value),
            _T.c.attempt == 0,
            _T.c.update_time > to_micros(since),
        )
        return from_micros(self.conn.execute(query).scalar())

    def running_by_key(self, project: str) -> dict[str, int]:
        """How many tasks of a project run, by their concurrency key."""
        rows = self.conn.execute(_RUNNING_BY_KEY, {"project": project})
        return {row[0]: row[1] for row in rows}

    def start(self, project: str, key: str) -> int:
        """The state of a start rate's bucket: see rates."""
        column = tables.starts.c
        query = select(column.used_until).where(column.project == project, column.key == key)
        return int(self.conn.execute(query).scalar() or 0)

    def starts_between(self, project: str, low: int, high: int) -> list[str]:
        """The keys of a project whose buckets' states are greater than *low*, and not than *high*."""
        column = tables.starts.c
        query = select(column.key).where(
            column.project == project, column.used_until > low, column.used_until <= high, column.key != ""
        )
        return list(self.conn.execute(query).scalars())

    def put_start(self, project: str, key: str, used_until: int) -> None:
        """Keep a bucket's state."""
        self.conn.execute(_PUT_START, {"project": project, "key": key, "used_until": used_until})

    def forget_starts(self, before: int) -> None:
        """Drop the buckets whose states are not greater."""
        self.conn.execute(tables.starts.delete().where(tables.starts.c.used_until <= before))

    def running(self, column: str, values: Collection[str]) -> dict[str, int]:
        """How many tasks each of those projects, or instances, runs."""
        if not values:
            return {}
        key = _T.c[column]
        query = (
            select(key, func.count())
            .where(_T.c.state == TaskState.RUNNING.value, key.in_(values))
            .group_by(key)
        )
        return {row[0]: row[1] for row in self.conn.execute(query)}

    def anything_due(self, now: datetime) -> bool:
        """Whether a clock of any task or offer has run out."""
        micros = to_micros(now)
        tasks = select(_T.c.id).where(_T.c.wake_time <= micros).limit(1)
        offers = select(_D.c.id).where(_D.c.offer_end <= micros).limit(1)
        return any(self.conn.execute(query).first() for query in (tasks, offers))

    def due(self, now: datetime, limit: int) -> list[Task]:
        """Tasks one of whose clocks has run out, the longest overdue first."""
        # Of those due at once the oldest first: what was handed over before what it was handed over as.
        query = (
            select(_T).where(_T.c.wake_time <= to_micros(now)).order_by(_T.c.wake_time, _T.c.id).limit(limit)
        )
        return [_task(row) for row in self.conn.execute(query)]

    def unplaced(self, limit: int, after: str) -> list[Task]:
        """Tasks that a decision left unplaced, oldest first, after that id."""
        query = select(_T).where(*_of_states({TaskState.SUBMITTED}), _T.c.offered.is_(False), _T.c.id > after)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id).limit(limit))]

    def asking(self, limit: int) -> list[Task]:
        """Tasks about which somebody is to be asked, oldest first."""
        asked = _T.c.live.contains('"wait":["UNSURE",["', autoescape=True)
        query = select(_T).where(*_of_states({TaskState.SUBMITTED}), _T.c.offered.is_(False), asked)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id).limit(limit))]

    def queued_for(self, projects: Collection[str], limit: int, after: str) -> list[Task]:
        """Queued tasks of those projects, oldest first, after that id."""
        query = select(_T).where(*_of_states({TaskState.QUEUED}), _T.c.project.in_(projects), _T.c.id > after)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id).limit(limit))]

    def in_instance(
        self, instance: str, states: Collection[TaskState], limit: int, after: str = ""
    ) -> list[Task]:
        """Tasks of an instance in those states, oldest first, after that id."""
        query = select(_T).where(*_of_instance(instance), *_of_states(states), _T.c.id > after)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id).limit(limit))]

    def ended_in(self, instance: str, since: datetime | None) -> dict[TaskState, int]:
        """How many tasks of an instance ended how, since a time."""
        query = select(_T.c.state, func.count()).where(*_of_instance(instance), _T.c.finish_time.is_not(None))
        if since is not None:
            query = query.where(_T.c.finish_time >= to_micros(since))
        return {TaskState(row[0]): row[1] for row in self.conn.execute(query.group_by(_T.c.state))}

    def list_tasks(self, wanted: TaskFilter, *, before_id: str, limit: int) -> list[Task]:
        """A page of tasks, newest first, of those older than *before_id* (empty: from the newest)."""
        query = _filtered(select(_T), wanted)
        if before_id:
            query = query.where(_T.c.id < before_id)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id.desc()).limit(limit))]

    def search(self, words: Sequence[str], *, instance: str, finished: bool, limit: int) -> list[Task]:
        """Tasks that have all those words (of letters and digits; the last may be unfinished), best first."""
        # Quoted, so that nothing a caller types is query syntax.
        match = (
            " AND ".join(f'"{word}"' for word in words) + "*"
            if self.dialect == "sqlite"
            else " & ".join(f"'{word}'" for word in words) + ":*"
        )
        parameters = {"match": match, "instance": instance, "finished": finished, "limit": limit}
        ids = list(self.conn.execute(_SEARCH[self.dialect], parameters).scalars())
        found = {task.id: task for task in map(_task, self.conn.execute(_BY_IDS, {"ids": ids}))}
        return [found[id_] for id_ in ids]

    def add_attempt(self, before: Task, failure: Failure, now: datetime) -> None:
        """Keep an attempt that failed."""
        claim = before.claim
        row = {
            "task": before.id,
            "token": before.token,
            "attempt": before.attempt,
            "worker": claim.worker if claim else "",
            "start_time": to_micros(claim.start) if claim else None,
            "end_time": to_micros(now),
            "reason": failure.reason,
            "message": failure.message,
            "permanent": failure.permanent,
        }
        self.conn.execute(insert(tables.attempts), row)

    def attempts(self, task: str, limit: int) -> list[Attempt]:
        """The attempts of a task that failed, newest first."""
        column = tables.attempts.c
        query = select(tables.attempts).where(column.task == task_id(task)).order_by(column.token.desc())
        return [
            Attempt(
                row.attempt,
                row.worker,
                from_micros(row.start_time),
                from_micros(row.end_time),
                Failure(row.reason, row.message, bool(row.permanent)),
            )
            for row in self.conn.execute(query.limit(limit))
        ]

    def parked(self, wanted: ParkedFilter, limit: int) -> list[Task]:
        """Tasks that failed for a reason, oldest first."""
        query = select(_T).where(
            *_of_states({TaskState.FAILED, TaskState.REJECTED}),
            _T.c.delegation == "",
            _T.c.live.contains(f'"failure":["{wanted.reason}",', autoescape=True),
        )
        if wanted.instance:
            query = query.where(*_of_instance(wanted.instance))
        if wanted.project:
            query = query.where(_T.c.project == wanted.project)
        return [_task(row) for row in self.conn.execute(query.order_by(_T.c.id).limit(limit))]

    # ------------------------------------------------------------ the log

    def repeat(self, request_id: str) -> Repeat | None:
        """What the hot path keeps of a call that it answered before."""
        if not request_id:
            return None
        row = self.conn.execute(_FIND_REPEAT, {"request_id": request_id}).one_or_none()
        return Repeat(*row) if row else None

    def events(self, first: int, count: int) -> list[Event]:
        """Events of the log by their generations, those that are still there."""
        return EVENTS.between(self.conn, first, first + count - 1)

    def waiting_turns(self) -> list[tuple[str, str, int, int]]:
        """Lane, fairness key, smallest and greatest rank of what waits in each queue."""
        queue = case((_T.c.project == "", _T.c.instance), else_=_T.c.project)
        among = (queue, _T.c.priority, _T.c.fairness_key)
        query = select(*among, func.min(_T.c.rank), func.max(_T.c.rank))
        query = query.where(_T.c.state == text("'QUEUED'")).group_by(*among)
        return [(lane(row[0], row[1]), row[2], row[3], row[4]) for row in self.conn.execute(query)]

    # ------------------------------------------------------------ decisions

    def insert_decision(self, decision: Decision, body: bytes) -> None:
        """Record a decision, whose serialized message is *body*."""
        row = {
            "id": task_id(decision.name),
            "task": decision.task,
            "instance": decision.instance,
            "project": decision.project,
            "body": body,
        }
        self.conn.execute(_INSERT_DECISION, row)

    def decisions(self, names: Collection[str]) -> dict[str, Decision]:
        """Those decisions that exist, by name."""
        column = tables.decisions.c
        query = select(column.body).where(column.id.in_([task_id(name) for name in names]))
        found = map(decision_from_bytes, self.conn.execute(query).scalars())
        return {decision.name: decision for decision in found}

    def list_decisions(
        self, *, task: str = "", instance: str = "", project: str = "", before_id: str = "", limit: int
    ) -> list[Decision]:
        """A page of decisions, newest first."""
        column = tables.decisions.c
        query = select(column.body).order_by(column.id.desc()).limit(limit)
        for key, value in ((column.task, task), (column.instance, instance), (column.project, project)):
            if value:
                query = query.where(key == value)
        if before_id:
            query = query.where(column.id < before_id)
        return [decision_from_bytes(body) for body in self.conn.execute(query).scalars()]

    # ------------------------------------------------------------ delegations

    def insert_delegation(self, delegation: Delegation) -> None:
        """Add a delegation."""
        self.conn.execute(insert(_D), _delegation_row(delegation))

    def update_delegation(self, delegation: Delegation) -> None:
        """Write a delegation back."""
        row = _delegation_row(delegation)
        self.conn.execute(update(_D).where(_D.c.id == row["id"]).values(row))

    def delegations(self, names: Collection[str]) -> dict[str, Delegation]:
        """Those delegations that exist, by name."""
        query = select(_D).where(_D.c.id.in_([task_id(name) for name in names]))
        found = map(_delegation, self.conn.execute(query))
        return {delegation.name: delegation for delegation in found}

    def delegations_of(self, tasks: Collection[str]) -> list[Delegation]:
        """Every delegation that handed one of those tasks over, oldest first."""
        query = select(_D).where(_D.c.task.in_(tasks)).order_by(_D.c.id)
        return [_delegation(row) for row in self.conn.execute(query)]

    def overdue_offers(self, now: datetime, limit: int) -> list[Delegation]:
        """Offers that nobody answered in time."""
        query = select(_D).where(_D.c.offer_end <= to_micros(now)).order_by(_D.c.offer_end).limit(limit)
        return [_delegation(row) for row in self.conn.execute(query)]

    # ------------------------------------------------------------ policies and values

    def policies(self) -> list[PolicyRow]:
        """Every policy."""
        rows = self.conn.execute(select(tables.policies))
        return [
            PolicyRow(row.instance, row.version, row.source, from_micros(row.update_time)) for row in rows
        ]

    def put_policy(self, row: PolicyRow) -> None:
        """Add or replace an instance's policy."""
        values = {"version": row.version, "source": row.source, "update_time": to_micros(row.update_time)}
        changed = update(tables.policies).where(tables.policies.c.instance == row.instance).values(values)
        if not self.conn.execute(changed).rowcount:
            self.conn.execute(insert(tables.policies), {"instance": row.instance, **values})

    def put_advice(self, decision: Decision) -> None:
        """Note what those who were asked chose, and where the task was sent."""
        rows = [
            {
                "stage": opinion.stage,
                "task": decision.task,
                "decision": decision.name,
                "decided": decision.project,
                "model": opinion.model,
                "project": opinion.project,
                "stated": opinion.stated,
            }
            for opinion in decision.opinions
            if opinion.word is Word.CHOICE and opinion.stage in ("llm", "sage")
        ]
        if rows:
            self.conn.execute(_PUT_ADVICE, rows)

    def put_feedback(self, decision: str, *, fits: bool, author: str) -> None:
        """Keep what somebody said of a decision until memory has been told."""
        row = {"decision": decision, "fits": fits, "author": author}
        self.conn.execute(insert(tables.advice_feedback), row)

    def episodes_sent(self) -> int:
        """How far in the log memory has been told."""
        return int(self.value(EPISODES_SENT) or 0)

    def value(self, key: str) -> bytes | None:
        """A small thing the router kept for itself."""
        return self.conn.execute(select(tables.values.c.value).where(tables.values.c.key == key)).scalar()

    def put_value(self, key: str, value: bytes) -> None:
        """Keep a small thing."""
        changed = update(tables.values).where(tables.values.c.key == key).values(value=value)
        if not self.conn.execute(changed).rowcount:
            self.conn.execute(insert(tables.values), {"key": key, "value": value})


# ---------------------------------------------------------------- statements


def _earlier(one: str, other: str) -> str:
    """The lesser of two columns that may be NULL, in both dialects."""
    return f"CASE WHEN {one} IS NULL OR {other} < {one} THEN {other} ELSE {one} END"


_MOST: Final = frozenset({TaskState.QUEUED, TaskState.RUNNING, TaskState.SUCCEEDED})
_BY_IDS: Final = select(_T).where(_T.c.id.in_(bindparam("ids", expanding=True)))
_INSERT_TASK: Final = insert(_T)
_UPDATE_TASK: Final = (
    update(_T)
    .where(_T.c.id == bindparam("b_id"))
    .values({column.name: bindparam(column.name) for column in _T.c if column.name not in ("id", "awaited")})
)
_AWAIT: Final = update(_T).where(_T.c.id.in_(bindparam("ids", expanding=True))).values(awaited=True)
_FIND_REPEAT: Final = select(
    tables.requests.c.digest, tables.requests.c.response, tables.requests.c.generation
).where(tables.requests.c.request_id == bindparam("request_id"), tables.requests.c.generation.is_not(None))
_INSERT_DECISION: Final = insert(tables.decisions)
_PROMOTE: Final = text(
    f"""
    UPDATE tasks SET ready = true, rank = :rank,
        wake_time = {_earlier("finish_by", "CASE WHEN attempt = 0 THEN start_by END")}
    WHERE id = :id
    """
)
_DUE_TO_BE_READY: Final = text(
    "SELECT id, project, instance, priority, fairness_key, slots FROM tasks "
    "WHERE wake_time <= :now AND ready_time <= :now "
    "AND state = 'QUEUED' AND NOT ready AND blockers = 0 AND NOT held ORDER BY ready_time, id LIMIT 1000"
)
_NEXT_READY_TIME: Final = text(
    "SELECT min(ready_time) FROM tasks "
    "WHERE wake_time IS NOT NULL AND state = 'QUEUED' AND NOT ready AND blockers = 0 AND NOT held"
)
_RUNNING_BY_KEY: Final = text(
    "SELECT concurrency_key, count(*) FROM tasks "
    "WHERE state = 'RUNNING' AND project = :project AND concurrency_key <> '' GROUP BY concurrency_key"
)
_PUT_ADVICE: Final = text(
    "INSERT INTO advice_given (stage, task, decision, decided, model, project, stated) "
    "VALUES (:stage, :task, :decision, :decided, :model, :project, :stated) "
    "ON CONFLICT (stage, task) DO UPDATE SET decision = excluded.decision, decided = excluded.decided, "
    "model = excluded.model, project = excluded.project, stated = excluded.stated"
)
_PUT_START: Final = text(
    "INSERT INTO task_starts (project, key, used_until) VALUES (:project, :key, :used_until) "
    "ON CONFLICT (project, key) DO UPDATE SET used_until = excluded.used_until"
)
# One parameter however many keys there are, looked up in a hash and not one after the other.
_KEYS_IN: Final = {
    "sqlite": "SELECT value FROM json_each(:{name})",
    "postgresql": "SELECT jsonb_array_elements_text(CAST(:{name} AS jsonb))",
}
# Filtered before it is cut to the limit: thousands of finished tasks must not hide an open one.
_SEARCH: Final = {
    "sqlite": text(
        "SELECT tasks_fts.id FROM tasks_fts JOIN tasks ON tasks.id = tasks_fts.id "
        "WHERE tasks_fts MATCH :match AND (:instance = '' OR tasks.instance = :instance) "
        "AND (:finished OR tasks.finish_time IS NULL) ORDER BY bm25(tasks_fts, 0, 4, 1, 2) LIMIT :limit"
    ),
    "postgresql": text(
        "SELECT task_words.id FROM task_words JOIN tasks ON tasks.id = task_words.id, "
        "to_tsquery('words', :match) AS wanted "
        "WHERE words @@ wanted AND (CAST(:instance AS TEXT) = '' OR tasks.instance = :instance) "
        "AND (:finished OR tasks.finish_time IS NULL) ORDER BY ts_rank(words, wanted, 1) DESC, tasks.id LIMIT :limit"
    ),
}


def _of_states(states: Collection[TaskState]) -> list[ColumnElement[bool]]:
    """
    That it is in one of those states, in the words of the indexes that serve.

    The states are not parameters: with those a plan is made for any states, and leaves partial indexes alone.
    """
    conditions: list[str] = []
    if OPEN_STATES.issuperset(states):
        conditions.append(f"tasks.{tables.OPEN}")
    if not _MOST.intersection(states):
        conditions.append(f"tasks.{tables.SELDOM}")
    if set(states) not in (OPEN_STATES, set(TaskState)):
        among = ", ".join(f"'{name}'" for name in sorted(state.value for state in states))
        conditions.append(f"tasks.state IN ({among})")
    return [cast("ColumnElement[bool]", text(condition)) for condition in conditions]


def _of_instance(name: str) -> list[ColumnElement[bool]]:
    """That it is in that instance, so that the index serves, which leaves the root out."""
    same = _T.c.instance == name
    return [same] if name == ROOT_INSTANCE else [same, text(f"tasks.{tables.BELOW_ROOT}")]  # type: ignore[list-item]


def _ready_where(query: ReadyQuery, dialect: str) -> Select[Any]:
    statement = select(_T).where(
        _few(query.column, query.value) if query.own else _T.c[query.column] == query.value,
        text("tasks.ready"),  # as it stands there, so that the partial index serves
    )
    if query.column == "instance":
        statement = statement.where(text(f"tasks.{tables.BELOW_ROOT}"))
    if query.without_instances:
        statement = statement.where(_T.c.instance.not_in(sorted(query.without_instances)))
    if query.without_projects:
        statement = statement.where(_T.c.project.not_in(sorted(query.without_projects)))
    for number, (project, keys) in enumerate(query.without_keys.items()):
        among = _KEYS_IN[dialect].format(name=f"keys_{number}")
        closed = text(f"NOT (tasks.project = :project_{number} AND tasks.concurrency_key IN ({among}))")
        statement = statement.where(
            closed.bindparams(**{f"project_{number}": project, f"keys_{number}": json.dumps(sorted(keys))})
        )
    if query.most_slots:
        statement = statement.where(_T.c.slots <= query.most_slots)
    if query.worker:
        statement = statement.where(*_affinity(query))
    if query.after:
        priority, rank, id_ = query.after
        # Two conditions that say the same of the priority: the first is one an index serves.
        statement = statement.where(
            _T.c.priority <= priority,
            or_(_T.c.priority < priority, tuple_(_T.c.rank, _T.c.id) > tuple_(literal(rank), literal(id_))),
        )
    return statement


def _few(column: str, value: str) -> ColumnElement[bool]:
    """That it is in that queue, where the index by affinity is to find the few, and not that of the long queue."""
    return _T.c[column].concat("") == value


def _affinity(query: ReadyQuery) -> list[ColumnElement[bool]]:
    if query.own:
        return [_T.c.affinity == query.worker, text("tasks.affinity <> ''")]  # type: ignore[list-item]
    others = _T.c.affinity != query.worker
    if query.left_alone_since is None:
        return [others]
    return [
        others,
        or_(_T.c.affinity == "", _T.c.attempt > 0, _T.c.update_time <= to_micros(query.left_alone_since)),
    ]


def _filtered(query: Select[Any], wanted: TaskFilter) -> Select[Any]:
    if wanted.id_suffix:
        query = query.where(_T.c.id.endswith(wanted.id_suffix, autoescape=True))
        if len(wanted.id_suffix) >= SHORT_ID:  # what people copy from a list: an index serves it
            query = query.where(_T.c.short_id == short_id(wanted.id_suffix))
    else:
        query = query.where(*_of_states(wanted.states))
    if wanted.instance:
        query = query.where(*_of_instance(wanted.instance))
    if wanted.project:
        query = query.where(_T.c.project == wanted.project)
    if wanted.requester:
        query = query.where(_T.c.requester == wanted.requester)
    if wanted.tag:
        query = query.where(func.replace(_T.c.tags, f"\n{wanted.tag}\n", "") != _T.c.tags)
    return query


# ---------------------------------------------------------------- rows


def _task(row: Row[Any]) -> Task:
    return task_from_row(cast("Mapping[str, Any]", row._mapping))


def _delegation_row(delegation: Delegation) -> dict[str, Any]:
    return {
        "id": task_id(delegation.name),
        "kind": delegation.kind.value,
        "state": delegation.state.value,
        "task": delegation.task,
        "from_instance": delegation.from_instance,
        "to_instance": delegation.to_instance,
        "path": json.dumps(delegation.path),
        "child_tasks": json.dumps(delegation.child_tasks),
        "depth": delegation.depth,
        "reason": delegation.reason,
        "offer_end": to_micros(delegation.offer_end),
        "create_time": to_micros(delegation.create_time),
        "update_time": to_micros(delegation.update_time),
    }


def _delegation(row: Row[Any]) -> Delegation:
    return Delegation(
        name=f"delegations/{row.id}",
        kind=DelegationKind(row.kind),
        state=DelegationState(row.state),
        task=row.task,
        from_instance=row.from_instance,
        to_instance=row.to_instance,
        path=tuple(json.loads(row.path)),
        child_tasks=tuple(json.loads(row.child_tasks)),
        depth=row.depth,
        reason=row.reason,
        offer_end=from_micros(row.offer_end),
        create_time=from_micros(row.create_time),
        update_time=from_micros(row.update_time),
    )
