"""
The months of the archive: in PostgreSQL a partition each, so that the oldest are dropped whole; in SQLite only rows.

A partition is made before the first task of its month is moved, and for the next months ahead. What is archived of a
month that has none goes to the partition `tasks_archive_rest`, and moves when it gets one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, TextClause, text

from hopper_common.timestamps import from_micros, to_micros

AHEAD: Final = 2
REST: Final = "tasks_archive_rest"
DELETE_STEP: Final = 500


class Month(NamedTuple):
    """A month of UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, time: datetime) -> Month:
        """The month of a time."""
        return cls(time.astimezone(UTC).year, time.astimezone(UTC).month)

    def next(self, count: int = 1) -> Month:
        """That many months later."""
        years, month = divmod(self.month - 1 + count, 12)
        return Month(self.year + years, month + 1)

    @property
    def start(self) -> int:
        """Its first microsecond since 1970."""
        return to_micros(datetime(self.year, self.month, 1, tzinfo=UTC))

    @property
    def partition(self) -> str:
        """Its table."""
        return f"tasks_archive_{self.year:04}_{self.month:02}"


def partitions(conn: Connection) -> set[Month]:
    """The months that have a partition."""
    names = conn.execute(_PARTITIONS).scalars()
    return {_month(name) for name in names if name != REST}


def _month(partition: str) -> Month:
    year, month = partition.removeprefix("tasks_archive_").split("_")
    return Month(int(year), int(month))


def ensure(conn: Connection, finish_times: Iterable[int], now: datetime) -> list[Month]:
    """Make the partitions of those times and of the months ahead, as far as they lack; returns what was made."""
    if conn.dialect.name != "postgresql":
        return []
    this = Month.of(now)
    wanted = {Month.of(from_micros(time)) for time in finish_times}
    wanted |= {this.next(count) for count in range(AHEAD + 1)}
    made = sorted(wanted - partitions(conn))
    for month in made:
        _make(conn, month)
    return made


def _make(conn: Connection, month: Month) -> None:
    name, bounds = month.partition, {"start": month.start, "end": month.next().start}
    conn.execute(text(f"CREATE TABLE {name} (LIKE tasks_archive INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    conn.execute(
        text(
            f"WITH moved AS (DELETE FROM {REST} WHERE finish_time >= :start AND finish_time < :end RETURNING *) "  # noqa: S608
            f"INSERT INTO {name} SELECT * FROM moved"
        ),
        bounds,
    )
    # Bounds of a partition cannot be parameters; these are numbers of our own.
    conn.execute(
        text(
            f"ALTER TABLE tasks_archive ATTACH PARTITION {name} "
            f"FOR VALUES FROM ({bounds['start']}) TO ({bounds['end']})"
        )
    )


def drop(conn: Connection, before: datetime) -> int:
    """
    Forget what ended before a time: whole months where there are partitions, so that up to a month more is kept; else
    the oldest rows, some at a time. Returns how many months or rows it was; again until it is 0.
    """
    if conn.dialect.name == "postgresql":
        old = sorted(month for month in partitions(conn) if month.next().start <= to_micros(before))
        for month in old:
            conn.execute(text(f"DROP TABLE {month.partition}"))
        return len(old) + conn.execute(_DELETE_REST, {"before": to_micros(before)}).rowcount
    return conn.execute(_DELETE, {"before": to_micros(before)}).rowcount


_PARTITIONS: Final = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = CAST('tasks_archive' AS regclass)"
)


def _delete(table: str) -> TextClause:
    oldest = (
        f"SELECT finish_time, id FROM {table} WHERE finish_time < :before ORDER BY 1, 2 LIMIT {DELETE_STEP}"  # noqa: S608
    )
    return text(f"DELETE FROM {table} WHERE (finish_time, id) IN ({oldest})")  # noqa: S608


_DELETE: Final = _delete("tasks_archive")
_DELETE_REST: Final = _delete(REST)
