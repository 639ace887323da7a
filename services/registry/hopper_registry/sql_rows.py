"""What all rows of the registry have in common: one transaction, one time, one log."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Table, insert, update

from hopper_common.eventlog import EventLog
from hopper_registry.tables import EVENTS

LOG: Final = EventLog(EVENTS)


class Rows:
    """
    One transaction.

    Args:
        conn: Of the unit of work.
        now: When it happens.
    """

    def __init__(self, conn: Connection, now: datetime) -> None:
        self._conn = conn
        self._now = now

    @property
    def now(self) -> datetime:
        return self._now

    @property
    def version(self) -> int:
        """The version of the newest change in the log."""
        return LOG.head(self._conn)

    def _put(self, table: Table, row: Mapping[str, Any]) -> None:
        """Insert or replace. Two statements, because the one that does both is every database's own."""
        if self._conn.execute(update(table).where(table.c.name == row["name"]).values(row)).rowcount == 0:
            self._conn.execute(insert(table), row)

    def _tell(self, topic: str, key: str, body: bytes) -> None:
        LOG.append(self._conn, topic=topic, key=key, body=body, now=self._now)
