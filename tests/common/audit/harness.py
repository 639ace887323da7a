"""An audit log on a database of its own, and looks into it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select, update

from hopper_common.audit.app import MIGRATIONS, NAME, Audit, open_chain
from hopper_common.audit.chain import ChainCheck, Head, Verdict
from hopper_common.audit.model import Decision, Handling, Record
from hopper_common.audit.sink import AuditSink
from hopper_common.audit.store import AuditStore
from hopper_common.audit.tables import METADATA, RECORDS
from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase

CHAIN = "hopper"
PATIENCE = 30
DECISION = Decision(
    principal="principals/ann",
    acting_for="",
    credential="key:7k2m9q",
    source="10.0.0.1",
    method="/hopper.router.v1.TaskService/CancelTask",
    allowed=True,
    rule="operator on instances/moodle",
    resources=("instances/moodle/tasks/01j",),
)
REFUSED = DECISION._replace(
    method="/hopper.registry.v1.InstanceService/TerminateInstance",
    allowed=False,
    reason="PERMISSION_DENIED",
    rule="no role of hers names it",
    resources=("instances/moodle",),
)
HOT = DECISION._replace(method="/hopper.router.v1.WorkService/ClaimTasks", resources=("projects/web",))


async def open_audit_database(url: str) -> Database:
    return await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service=NAME)


@dataclass(frozen=True, slots=True)
class Log:
    """An open log. Nothing is written by the passing of time unless the clock is moved."""

    audit: Audit
    database: FaultyDatabase
    clock: Any

    @property
    def sink(self) -> AuditSink:
        return self.audit.sink

    async def put(self, decision: Decision, handling: Handling) -> None:
        """Record, and wait where that is due."""
        if ticket := self.sink.record(decision, handling):
            await self.sink.flushed(ticket)

    async def records(self) -> list[Record]:
        """What is written of calls, oldest first."""
        return [record for record in await self.all_records() if record.decision.principal != "process"]

    async def all_records(self) -> list[Record]:
        """What is written, oldest first."""
        return await AuditStore(self.database, self.sink.chain).after(0, limit=100_000)

    async def verdict(self, *anchors: Head) -> Verdict:
        """Whether the chain holds."""
        check = ChainCheck(anchors=anchors)
        for record in await self.all_records():
            check.add(record)
        return check.result()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* is true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - it is about more than one event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def open_log(
    url: str, clock: Clock | None = None, *, chain: str = CHAIN, keep: bool = True
) -> AsyncIterator[Log]:
    """
    Open a chain, and close it at the end.

    Args:
        keep: Whether its task runs.
    """
    clock = clock or ManualClock()
    database = FaultyDatabase(await open_audit_database(url))
    try:
        async with open_chain(database, chain, clock) as audit:
            tasks = [asyncio.create_task(_run(task)) for task in audit.tasks if keep]
            try:
                yield Log(audit, database, clock)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await database.close()


async def _run(task: Callable[[], Any]) -> None:
    await task()


def tamper(where: ColumnElement[bool], **values: Any) -> Callable[[Connection], None]:
    """Change rows behind the log's back."""

    def work(conn: Connection) -> None:
        assert conn.execute(update(RECORDS).where(where).values(**values)).rowcount

    return work


def remove(where: ColumnElement[bool]) -> Callable[[Connection], None]:
    """Delete rows behind the log's back."""

    def work(conn: Connection) -> None:
        assert conn.execute(delete(RECORDS).where(where)).rowcount

    return work


def row(conn: Connection, sequence: int) -> dict[str, Any]:
    """A row as it is in the table."""
    return dict(conn.execute(select(RECORDS).where(RECORDS.c.sequence == sequence)).mappings().one())
