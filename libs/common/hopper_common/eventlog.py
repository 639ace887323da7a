"""
The log of what changed in a service: written in the transaction of the change, read by everyone who watches.

It is both the outbox (what other services must hear of) and the source of `Watch` (what clients want to hear
of). Its version is the service's resume token: whoever has seen version 7 asks for what came after 7 and gets
each change once, in order, across reconnects and restarts.

Versions are given in commit order, because whoever writes has the right to write alone (see
`hopper_common.database`). So whoever has seen `head` has seen everything before it, and a tail has nothing to
wait for but the next commit. In SQLite an insert that is rolled back gives its version back, and there are no
gaps; a sequence of PostgreSQL's does not, and there are.

Old events are trimmed, never the newest: the log always knows how far it has come. Where there are gaps, it
does not follow from the oldest event that is left what the newest trimmed one was; so that one is kept, without
its content and with an empty topic, as a marker that no reader is given. A reader whose place has
been trimmed away, or who is ahead of the log because the database was restored from a backup, is told so
(`ResumeTooOld`) and starts again from a snapshot. Skipping silently what it missed is the one thing that must
not happen.
"""

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from hopper_common.database import Database
from hopper_common.errors import ResumeTooOld
from hopper_common.timestamps import from_micros, to_micros

_TRIMMED: Final = ""  # the topic of a marker; no event has it


@dataclass(frozen=True, slots=True)
class Event:
    """
    One change.

    Attributes:
        version: Its place in the log, from 1.
        topic: What kind of thing changed, e.g. "task".
        key: Which one: its resource name.
        body: What is to be told about it, usually a serialized message.
        create_time: When the log got it; UTC.
    """

    version: int
    topic: str
    key: str
    body: bytes
    create_time: datetime


def event_table(metadata: MetaData, name: str) -> Table:
    """The table of one log, to be made by the service's migrations."""
    return Table(
        name,
        metadata,
        # Wide enough for ever in PostgreSQL; SQLite counts up without reuse only in a plain INTEGER.
        Column("version", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("topic", String, nullable=False),
        Column("key", String, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("create_time", BigInteger, nullable=False),  # microseconds
        sqlite_autoincrement=True,
    )


class EventLog:
    """Reading and writing one log. The methods that take `conn` run in the caller's unit of work."""

    def __init__(self, table: Table) -> None:
        self._columns = table.c
        self._table = table
        self._insert = insert(table)
        self._newest = select(func.max(table.c.version))
        self._oldest = select(func.min(table.c.version)).where(table.c.topic != _TRIMMED)
        self._ends = select(
            select(table.c.version).order_by(table.c.version).limit(1).scalar_subquery().label("first"),
            select(table.c.topic).order_by(table.c.version).limit(1).scalar_subquery().label("topic"),
            self._newest.scalar_subquery().label("head"),
        )

    def append(self, conn: Connection, *, topic: str, key: str, body: bytes, now: datetime) -> int:
        """Add a change to the log, in the transaction that makes it; returns its version."""
        row = {"topic": topic, "key": key, "body": body, "create_time": to_micros(now)}
        (version,) = cast("tuple[int]", conn.execute(self._insert, row).inserted_primary_key)
        return version

    def amend(self, conn: Connection, version: int, body: bytes) -> None:
        """Replace what is to be told about a change, in the transaction that made it: nobody has seen it yet."""
        conn.execute(self._table.update().where(self._columns.version == version).values(body=body))

    def head(self, conn: Connection) -> int:
        """The version of the newest event, 0 if there never was one."""
        return conn.execute(self._newest).scalar() or 0

    def newest_time(self, conn: Connection) -> datetime | None:
        """When the newest event was logged, by the clock of whoever did; None if there never was one."""
        newest = select(self._columns.create_time).order_by(self._columns.version.desc()).limit(1)
        return from_micros(conn.execute(newest).scalar())

    def oldest(self, conn: Connection) -> int:
        """The version of the oldest event still kept, 1 if there never was one."""
        return conn.execute(self._oldest).scalar() or 1

    def read(self, conn: Connection, *, after: int, limit: int, topics: Collection[str] = ()) -> list[Event]:
        """
        The first *limit* events after a version, in order.

        Args:
            after: The last version seen; 0 for the beginning.
            topics: Only these, or all if empty.

        Raises:
            ResumeTooOld: Some of what came after that version is no longer there, or that version never was.
        """
        events, _ = self._read(conn, after, limit, topics)
        return events

    def _read(
        self, conn: Connection, after: int, limit: int, topics: Collection[str]
    ) -> tuple[list[Event], int]:
        """See `read`; and the version of the newest event."""
        head = self._check_place(conn, after)
        query = select(self._table).where(self._columns.version > after)
        if topics:
            query = query.where(self._columns.topic.in_(sorted(topics)))
        rows = conn.execute(query.order_by(self._columns.version).limit(limit))
        return [
            Event(version, topic, key, body, from_micros(time)) for version, topic, key, body, time in rows
        ], head

    def between(self, conn: Connection, first: int, last: int) -> list[Event]:
        """The events of those versions that are still kept, in order."""
        query = select(self._table).where(
            self._columns.version.between(first, last), self._columns.topic != _TRIMMED
        )
        rows = conn.execute(query.order_by(self._columns.version))
        return [
            Event(row.version, row.topic, row.key, row.body, from_micros(row.create_time)) for row in rows
        ]

    def first_since(self, conn: Connection, time: datetime) -> int:
        """
        The version of the first event that is not older than *time*; if all are, the one that comes next.

        Looks at those that are older, one by one: they are few where the log is trimmed.
        """
        column = self._columns
        query = select(column.version).where(column.create_time >= to_micros(time)).order_by(column.version)
        found = conn.scalar(query.limit(1))
        return self.head(conn) + 1 if found is None else int(found)

    def trim(self, conn: Connection, *, before: int) -> int:
        """Forget the events below a version, but never the newest; returns how many."""
        keep_from = min(before, self.head(conn))
        old = self._columns.version < keep_from
        if conn.dialect.name == "sqlite":
            return conn.execute(delete(self._table).where(old)).rowcount
        last = conn.scalar(self._newest.where(old))
        if last is None:
            return 0
        blank = {"topic": _TRIMMED, "key": "", "body": b""}
        older = (self._columns.version < last, self._columns.topic != _TRIMMED)
        trimmed = conn.scalar(select(func.count()).where(*older)) or 0
        conn.execute(delete(self._table).where(self._columns.version < last))
        marked = update(self._table).where(self._columns.version == last, self._columns.topic != _TRIMMED)
        return trimmed + conn.execute(marked.values(blank)).rowcount

    async def tail(
        self, db: Database, *, after: int, topics: Collection[str] = (), batch: int = 500
    ) -> AsyncGenerator[list[Event], None]:
        """
        Every event after a version, for ever: what is there, then each commit's as it comes.

        Yields lists of 1 to *batch* events, in order, without a gap and without a repetition. Ends when the
        caller stops; a slow caller holds up nobody.

        Raises:
            ResumeTooOld: The log was trimmed past the caller; it has seen everything it was given, and no
            more. ShuttingDown: The database was closed.
        """

        def next_batch(conn: Connection) -> tuple[list[Event], int]:
            events, head = self._read(conn, after, batch, topics)
            # A full batch may have more behind it. One that is not full has looked at everything up to the
            # head, and moves there, past the topics it skipped, so that it does not fall behind on a log that
            # trims them.
            return events, events[-1].version if len(events) == batch else head

        while True:
            commits = db.committed.count  # before the read: a commit during it is not lost
            events, after = await db.read(next_batch)
            if events:
                yield events
            if len(events) < batch:
                await db.committed.wait(after=commits)

    def _check_place(self, conn: Connection, after: int) -> int:
        ends = conn.execute(self._ends).one()
        if ends.topic == _TRIMMED:
            trimmed = ends.first
        elif conn.dialect.name == "sqlite" and ends.first is not None:
            trimmed = ends.first - 1
        else:
            trimmed = 0
        head = ends.head or 0
        if not trimmed <= after <= head:
            raise ResumeTooOld(oldest=str(self.oldest(conn)), asked=str(after))
        return head
