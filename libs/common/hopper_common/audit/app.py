"""Opens the audit log of a process, and closes it at the end."""

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hopper.common.v1 import audit_service_pb2, audit_service_pb2_grpc
from hopper_common.audit.servicer import AuditServicer
from hopper_common.audit.sink import AuditSink
from hopper_common.audit.store import AuditStore
from hopper_common.audit.tables import METADATA
from hopper_common.clock import Clock
from hopper_common.database import Database, dialect_of
from hopper_common.rpc.server import Registered
from hopper_common.settings import HostSettings
from hopper_common.startup import StartupError

log = structlog.get_logger(__name__)

NAME: Final = "audit"
MIGRATIONS: Final = "hopper_common.audit.migrations"

_CHAIN: Final = re.compile(r"[a-z0-9-]{1,60}")


class ChainUnnamed(StartupError):
    """The file that names a process's chain says something else."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Audit:
    """
    The audit log of a process.

    Attributes:
        sink: Takes decisions in; `ready` and `on_ready` say whether they can be written.
        registered: What the process's server offers of it.
        tasks: What has to run as long as calls are answered. The log is closed after they have ended.
    """

    sink: AuditSink
    registered: Registered
    tasks: Sequence[Callable[[], Awaitable[None]]]


@asynccontextmanager
async def open_audit(settings: HostSettings, clock: Clock) -> AsyncIterator[Audit]:
    """
    Open the log of the process that *settings* are of.

    Raises:
        StorageFull, StorageUnavailable: It cannot be written, so nothing should be let in.
    """
    where = settings.audit_database_url
    chain = settings.process
    if dialect_of(where) != "sqlite":
        chain = _own_chain(settings.data_dir / f"audit_{chain}.chain", chain)
    database = await Database.open(where, metadata=METADATA, migrations=MIGRATIONS, service=NAME)
    try:
        async with open_chain(database, chain, clock) as audit:
            yield audit
    finally:
        await database.close()


@asynccontextmanager
async def open_chain(database: Database, chain: str, clock: Clock) -> AsyncIterator[Audit]:
    """Open one chain of an open database, which stays open."""
    store = AuditStore(database, chain)
    sink = AuditSink(store, clock, head=await store.head())
    await sink.open()
    registered = Registered.of(
        audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
        AuditServicer(store, sink),
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
    )
    try:
        yield Audit(sink, registered, [sink.keep])
    finally:
        await sink.close()


def _own_chain(path: Path, process: str) -> str:
    """
    The name of this process's chain in a database that others share, who may be of the same kind: kept beside its
    other data, of which no two processes have the same.
    """
    try:
        name = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        name = f"{process}-{secrets.token_hex(4)}"
        whole = path.with_suffix(".new")
        whole.write_text(f"{name}\n", encoding="ascii")
        whole.replace(path)
        log.info("a new audit chain", chain=name)
    if _CHAIN.fullmatch(name) is None:
        raise ChainUnnamed(f"{path} does not name an audit chain: remove it, and a new one begins")
    return name
