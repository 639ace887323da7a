"""
The registry's store over SQLAlchemy Core.

`SqlStore` is one transaction, and speaks the model (`hopper_registry.ports`). `Registry` is the database as the
servicers see it: it runs work in transactions, answers repeated requests with their first answer, and follows
the log.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, literal, select, update

from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.eventlog import Event
from hopper_common.idempotency import Requests
from hopper_common.timestamps import from_micros, to_micros
from hopper_registry.access_store import AccessRows
from hopper_registry.convert import (
    instance_from_stored,
    instance_to_proto,
    project_from_stored,
    project_to_proto,
    stored_project,
)
from hopper_registry.model import Instance, Presence, Project, ProjectSpec, State, Worker
from hopper_registry.sql_rows import LOG
from hopper_registry.tables import EVENTS, INSTANCES, PROJECT_WORDS, PROJECTS, REQUESTS, WORKERS

# The log's topics. Keys are resource names; bodies the resource as of that change, as callers see it.
PROJECT_CHANGED = "project"
PROJECT_REMOVED = "project_removed"  # no body
INSTANCE_CHANGED = "instance"

KEEP_EVENTS = 10_000
KEEP_EVENTS_FOR = timedelta(hours=1)
KEEP_REQUESTS_FOR = timedelta(days=1)
LOOK_AT_ONCE = 500

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_MICROSECOND = timedelta(microseconds=1)

# Made once, because heartbeats are many.
_REFRESH = (
    update(WORKERS)
    .where(WORKERS.c.name == bindparam("its_name"), WORKERS.c.live)
    .where(WORKERS.c.slots == bindparam("its_slots"))
    .where(WORKERS.c.running == bindparam("its_running"))
    .where(WORKERS.c.labels == bindparam("its_labels"))
    .values(
        time_to_live=bindparam("new_time_to_live"),
        heartbeat_time=bindparam("new_heartbeat_time"),
        expire_time=bindparam("new_expire_time"),
    )
)


class SqlStore(AccessRows):
    """One transaction: a `ProjectStore`, an `InstanceStore` and, in `access_store`, an `AccessStore`."""

    # Projects.

    def project(self, name: str) -> Project | None:
        row = self._conn.execute(select(PROJECTS).where(PROJECTS.c.name == name)).one_or_none()
        if row is None:
            return None
        return _project(row, self._presences([name]))

    def projects(
        self, *, after: str = "", limit: int | None = None, capability: str = "", tag: str = ""
    ) -> list[Project]:
        query = select(PROJECTS).where(PROJECTS.c.name > after).order_by(PROJECTS.c.name).limit(limit)
        for kind, word in (("capability", capability), ("tag", tag)):
            if word:
                having = select(PROJECT_WORDS.c.project).where(
                    PROJECT_WORDS.c.kind == kind, PROJECT_WORDS.c.word == word
                )
                query = query.where(PROJECTS.c.name.in_(having))
        rows = self._conn.execute(query).all()
        presences = self._presences(None if limit is None else [row.name for row in rows])
        return [_project(row, presences) for row in rows]

    def has_project(self, name: str) -> bool:
        return self._conn.scalar(select(PROJECTS.c.name).where(PROJECTS.c.name == name)) is not None

    def _presences(self, names: Collection[str] | None) -> Mapping[str, Presence]:
        """The sums of live workers, by project, of some or of all; a project without any is missing."""
        columns = WORKERS.c
        query = (
            select(columns.project, func.count(), func.sum(columns.slots), func.sum(columns.running))
            .where(columns.live)
            .group_by(columns.project)
        )
        if names is not None:
            query = query.where(columns.project.in_(names))
        rows = self._conn.execute(query)
        return {project: Presence(live, slots, running) for project, live, slots, running in rows}

    def save_project(self, project: Project) -> None:
        body = stored_project(project).SerializeToString()
        self._put(PROJECTS, {"name": project.name, "revision": project.revision, "body": body})
        self._put_words(project.name, project.spec)
        self._tell_project(project)

    def _put_words(self, name: str, spec: ProjectSpec) -> None:
        self._conn.execute(delete(PROJECT_WORDS).where(PROJECT_WORDS.c.project == name))
        words = [("capability", word) for word in set(spec.capabilities)]
        words += [("tag", word) for word in set(spec.tags)]
        if words:
            rows = [{"kind": kind, "word": word, "project": name} for kind, word in words]
            self._conn.execute(insert(PROJECT_WORDS), rows)

    def delete_project(self, name: str) -> None:
        self._conn.execute(delete(WORKERS).where(WORKERS.c.project == name))
        self._conn.execute(delete(PROJECT_WORDS).where(PROJECT_WORDS.c.project == name))
        self._conn.execute(delete(PROJECTS).where(PROJECTS.c.name == name))
        self._tell(PROJECT_REMOVED, name, b"")

    def tell_presence(self, project: str) -> None:
        current = self.project(project)
        if current is not None:
            self._tell_project(current)

    def _tell_project(self, project: Project) -> None:
        self._tell(PROJECT_CHANGED, project.name, project_to_proto(project).SerializeToString())

    # Workers.

    def refresh_worker(self, worker: Worker) -> bool:
        row = self._worker_row(worker)
        parameters = {
            "its_name": row["name"],
            "its_slots": row["slots"],
            "its_running": row["running"],
            "its_labels": row["labels"],
            "new_time_to_live": row["time_to_live"],
            "new_heartbeat_time": row["heartbeat_time"],
            "new_expire_time": row["expire_time"],
        }
        return self._conn.execute(_REFRESH, parameters).rowcount == 1

    def save_worker(self, worker: Worker) -> None:
        self._put(WORKERS, self._worker_row(worker))

    def _worker_row(self, worker: Worker) -> dict[str, Any]:
        return {
            "name": worker.name,
            "project": worker.project,
            "slots": worker.slots,
            "running": worker.running,
            "labels": json.dumps(dict(worker.labels), sort_keys=True),
            "time_to_live": worker.time_to_live // _MICROSECOND,
            "heartbeat_time": to_micros(self._now),
            "expire_time": to_micros(self._now + worker.time_to_live),
            "live": True,
        }

    def workers(self, project: str, *, after: str = "", limit: int | None = None) -> list[Worker]:
        query = select(WORKERS).where(WORKERS.c.project == project, WORKERS.c.name > after)
        return [_worker(row) for row in self._conn.execute(query.order_by(WORKERS.c.name).limit(limit))]

    def expire_workers(self) -> list[str]:
        dead = (WORKERS.c.live, WORKERS.c.expire_time <= to_micros(self._now))
        projects = list(self._conn.scalars(select(WORKERS.c.project).where(*dead).distinct()))
        if projects:
            self._conn.execute(update(WORKERS).where(*dead).values(live=False))
        return sorted(projects)

    def next_expiry(self) -> datetime | None:
        """When the first live worker's time to live runs out, if there is one."""
        first: int | None = self._conn.scalar(select(func.min(WORKERS.c.expire_time)).where(WORKERS.c.live))
        return from_micros(first)

    def forget_workers(self, *, before: datetime) -> int:
        old = (~WORKERS.c.live, WORKERS.c.expire_time < to_micros(before))
        return self._conn.execute(delete(WORKERS).where(*old)).rowcount

    # Instances.

    def instance(self, name: str) -> Instance | None:
        row = self._conn.execute(select(INSTANCES).where(INSTANCES.c.name == name)).one_or_none()
        return None if row is None else _instance(row)

    def instance_for(self, project: str) -> str:
        return self._conn.scalar(select(INSTANCES.c.name).where(INSTANCES.c.serves == project)) or ""

    def instances(self, *, after: str = "", limit: int | None = None, parent: str = "") -> list[Instance]:
        query = select(INSTANCES).where(INSTANCES.c.name > after).order_by(INSTANCES.c.name).limit(limit)
        if parent:
            query = query.where(INSTANCES.c.parent == parent)
        return [_instance(row) for row in self._conn.execute(query)]

    def subtree(self, name: str, *, limit: int | None = None, terminated: bool = True) -> list[Instance]:
        columns = INSTANCES.c
        below = (
            select(columns.name, literal(0).label("depth")).where(columns.name == name).cte(recursive=True)
        )
        children = select(columns.name, below.c.depth + 1).join(below, columns.parent == below.c.name)
        if not terminated:  # everything under a terminated instance is terminated too
            children = children.where(~columns.terminated)
        below = below.union_all(children)
        query = select(INSTANCES).join(below, columns.name == below.c.name)
        rows = self._conn.execute(query.order_by(below.c.depth, columns.name).limit(limit))
        return [_instance(row) for row in rows]

    def save_instance(self, instance: Instance) -> None:
        body = instance_to_proto(instance).SerializeToString()
        terminated = instance.state is State.TERMINATED
        row = {
            "name": instance.name,
            "revision": instance.revision,
            "parent": instance.spec.parent,
            "terminated": terminated,
            "serves": None if terminated else instance.spec.project or None,
            "body": body,
        }
        self._put(INSTANCES, row)
        self._tell(INSTANCE_CHANGED, instance.name, body)


def _project(row: Row[Any], presences: Mapping[str, Presence]) -> Project:
    return project_from_stored(row.body, row.revision, presences.get(row.name, Presence()))


def _instance(row: Row[Any]) -> Instance:
    return instance_from_stored(row.body, row.revision)


def _worker(row: Row[Any]) -> Worker:
    return Worker(
        name=row.name,
        slots=row.slots,
        running=row.running,
        labels=json.loads(row.labels),
        time_to_live=row.time_to_live * _MICROSECOND,
        last_heartbeat_time=from_micros(row.heartbeat_time),
        live=row.live,
    )


class Registry:
    """
    The registry's database.

    Args:
        db: Open, with the tables of `hopper_registry.tables`. Whoever opened it closes it.

    Attributes:
        after_change: Called after every `change` and `answer`, before the caller hears of it.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._requests = Requests(REQUESTS, clock)
        self.after_change: Callable[[], Awaitable[None]] | None = None

    async def read(self, work: Callable[[SqlStore], T]) -> T:
        """Run *work* on one snapshot."""
        return await self._db.read(lambda conn: work(self._store(conn)))

    async def write(self, work: Callable[[SqlStore], T]) -> T:
        """Run *work* in one transaction; return its result once that is durable."""
        return await self._db.write(lambda conn: work(self._store(conn)))

    async def change(self, work: Callable[[SqlStore], T]) -> T:
        """`write`, for changes that this process itself has to know of before they are answered."""
        result = await self.write(work)
        await self._changed()
        return result

    async def _changed(self) -> None:
        if self.after_change is not None:
            await self.after_change()

    async def answer(
        self,
        request: Message,
        response: type[M],
        effect: Callable[[SqlStore], M],
        *,
        check: Callable[[SqlStore], None] | None = None,
    ) -> M:
        """
        Answer a mutation: carry it out in one transaction, or give the first answer again to a request that was
        carried out.

        Args:
            check: Raises for callers who may not have an answer, not even one that was given to somebody else.

        Raises:
            IdempotencyConflict: The request's id was used for another request.
        """
        method = request.DESCRIPTOR.name.removesuffix("Request")

        def work(conn: Connection) -> M:
            store = self._store(conn)
            if check is not None:
                check(store)
            return self._requests.once(conn, method, request, response, lambda: effect(store))

        result = await self._db.write(work)
        await self._changed()
        return result

    def _store(self, conn: Connection) -> SqlStore:
        return SqlStore(conn, self._clock.now())

    def changes(self, *, after: int, topics: Collection[str]) -> AsyncGenerator[list[Event], None]:
        """Every change after a version, for ever. See `hopper_common.eventlog.EventLog.tail`."""
        return LOG.tail(self._db, after=after, topics=topics)

    async def look(self, *, after: int, topics: Collection[str]) -> tuple[list[Event], int, bool]:
        """
        The changes after a version as the store has them now.

        Returns:
            Some of them, in order; the version they lead to; and whether there may be more behind it.

        Raises:
            ResumeTooOld: They are not kept.
        """

        def work(conn: Connection) -> tuple[list[Event], int, bool]:
            events = LOG.read(conn, after=after, limit=LOOK_AT_ONCE, topics=topics)
            more = len(events) == LOOK_AT_ONCE
            return events, events[-1].version if more else LOG.head(conn), more

        return await self._db.read(work)

    @property
    def commits(self) -> int:
        """How many there have been, for `committed_after`."""
        return self._db.committed.count

    async def committed_after(self, commits: int, *, most: timedelta) -> None:
        """Wait for one more commit, by anybody who shares the database, or until that long has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most.total_seconds()):
                await self._db.committed.wait(after=commits)

    async def forget(self) -> None:
        """
        Drop the answers that are older than callers may repeat their requests, and the changes that are older
        than watchers may resume from: more than `KEEP_EVENTS` ago and more than `KEEP_EVENTS_FOR`.
        """
        now = self._clock.now()

        def work(conn: Connection) -> None:
            self._requests.forget(conn, before=now - KEEP_REQUESTS_FOR)
            LOG.trim(conn, before=_trim_point(conn, now))

        await self._db.write(work)


def _trim_point(conn: Connection, now: datetime) -> int:
    head = LOG.head(conn)
    young = EVENTS.c.create_time >= to_micros(now - KEEP_EVENTS_FOR)
    # In the log's order, so that only what is to be dropped is looked at.
    oldest_young = conn.scalar(select(EVENTS.c.version).where(young).order_by(EVENTS.c.version).limit(1))
    return min(head - KEEP_EVENTS + 1, head if oldest_young is None else oldest_young)
