"""The records of one chain in a database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select

from hopper_common.audit.chain import START, Head, head_of, link_all
from hopper_common.audit.model import DIVERGED, PROCESS, UNREADABLE, Decision, Happened, Record
from hopper_common.audit.tables import RECORDS
from hopper_common.database import Database
from hopper_common.timestamps import from_micros, to_micros

C = RECORDS.c


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    Which records to list.

    Attributes:
        principal: Exactly this one; empty: all.
        method_prefix: How the method begins.
        after_time, before_time: Not before the first, before the second.
    """

    principal: str = ""
    method_prefix: str = ""
    refused_only: bool = False
    after_time: datetime | None = None
    before_time: datetime | None = None


class AuditStore:
    """
    One chain.

    Args:
        chain: Its name. Several can be in one database; only one process at a time may write one.
    """

    def __init__(self, database: Database, chain: str) -> None:
        self.chain = chain
        self._database = database
        self._ours = C.chain == chain
        self._newest = select(C.sequence, C.hash).where(self._ours).order_by(C.sequence.desc()).limit(1)

    async def append(self, happened: Sequence[Happened], *, after: Head) -> Head:
        """
        Add records to the chain, durably, all or none; returns its new end.

        It may be called again with the same arguments, after an error that leaves open what was done: what is there
        already is not added twice. Where the chain does not end with *after*, somebody else has changed it; that is
        made a record, before the others.

        Raises:
            StorageFull, StorageUnavailable: See `Database.write`.
        """

        def work(conn: Connection) -> Head:
            found, records = self._head(conn), link_all(after, happened)
            if found != after:
                if found == head_of(records[-1]):
                    return found
                records = link_all(found, [_diverged(after, found, happened[0].time), *happened])
            conn.execute(insert(RECORDS), [self._row(record) for record in records])
            return head_of(records[-1])

        return await self._database.write(work)

    async def head(self) -> Head:
        """The end of the chain."""
        return await self._database.read(self._head)

    async def last(self) -> Record | None:
        """The newest record."""
        found = await self.page(Wanted(), before_sequence=None, limit=1)
        return found[0] if found else None

    async def page(self, wanted: Wanted, *, before_sequence: int | None, limit: int) -> list[Record]:
        """Records, newest first."""
        conditions = [self._ours, *_conditions(wanted)]
        if before_sequence is not None:
            conditions.append(C.sequence < before_sequence)
        query = select(RECORDS).where(and_(*conditions)).order_by(C.sequence.desc()).limit(limit)
        return await self._database.read(
            lambda conn: [_record(row) for row in conn.execute(query).mappings()]
        )

    async def after(self, sequence: int, *, limit: int) -> list[Record]:
        """Records, oldest first."""
        query = select(RECORDS).where(self._ours, C.sequence > sequence).order_by(C.sequence).limit(limit)
        return await self._database.read(
            lambda conn: [_record(row) for row in conn.execute(query).mappings()]
        )

    def _head(self, conn: Connection) -> Head:
        row = conn.execute(self._newest).first()
        return START if row is None else Head(row.sequence, bytes(row.hash))

    def _row(self, record: Record) -> dict[str, Any]:
        fields: dict[str, Any] = record.decision._asdict()
        return {
            **fields,
            "resources": " ".join(record.decision.resources),
            "chain": self.chain,
            "sequence": record.sequence,
            "time": to_micros(record.time),
            "count": record.count,
            "previous_hash": record.previous_hash,
            "hash": record.hash,
        }


def _conditions(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.principal:
        yield C.principal == wanted.principal
    if wanted.method_prefix:
        yield C.method.startswith(wanted.method_prefix, autoescape=True)
    if wanted.refused_only:
        yield C.allowed.is_(False)
    if wanted.after_time is not None:
        yield C.time >= to_micros(wanted.after_time)
    if wanted.before_time is not None:
        yield C.time < to_micros(wanted.before_time)


def _diverged(expected: Head, found: Head, time: datetime) -> Happened:
    rule = f"the log ended with record {expected}, and now ends with {found}"
    return Happened(time, Decision(PROCESS, "", "none", "", DIVERGED, allowed=True, rule=rule))


def _record(row: RowMapping) -> Record:
    try:
        return Record(
            sequence=row["sequence"],
            time=from_micros(row["time"]),
            decision=Decision(
                principal=row["principal"],
                credential=row["credential"],
                source=row["source"],
                method=row["method"],
                allowed=row["allowed"],
                rule=row["rule"],
                reason=row["reason"],
                acting_for=row["acting_for"],
                resources=tuple(row["resources"].split()),
            ),
            count=row["count"],
            previous_hash=bytes(row["previous_hash"]),
            hash=bytes(row["hash"]),
        )
    except (TypeError, ValueError, OverflowError, AttributeError):
        return _unreadable(row["sequence"])


def _unreadable(sequence: object) -> Record:
    """A row that this program did not write, and SQLite took; no hash is right for it."""
    found = sequence if isinstance(sequence, int) else 0
    decision = Decision(UNREADABLE, "", UNREADABLE, UNREADABLE, UNREADABLE, allowed=False)
    return Record(found, from_micros(0), decision, 0, b"", b"")
