"""Files beside tasks in the service's database. `ArtifactStore` is one transaction; `Artifacts` runs work in such."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, delete, func, insert, select, tuple_, update

from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.timestamps import from_micros, to_micros
from hopper_federation.artifacts.model import File, Problem
from hopper_federation.artifacts.tables import ARTIFACTS

T = TypeVar("T")

_C: Final = ARTIFACTS.c


class ArtifactStore:
    """
    Rows as they are inside one transaction.

    Attributes:
        now: When it happens; UTC, aware.
    """

    def __init__(self, conn: Connection, now: datetime) -> None:
        self.conn = conn
        self.now = now

    def file(self, task: str, name: str) -> File | None:
        """The file of that name beside a task."""
        row = self.conn.execute(select(ARTIFACTS).where(*_key(task, name))).one_or_none()
        return None if row is None else _file(row)

    def beside(self, tasks: Collection[str]) -> list[File]:
        """All files beside some tasks, by name."""
        query = select(ARTIFACTS).where(_C.task.in_(tasks)).order_by(_C.name, _C.task)
        return [_file(row) for row in self.conn.execute(query)]

    def save(self, file: File) -> None:
        """Insert or replace it."""
        row = _row(file)
        changed = update(ARTIFACTS).where(*_key(file.task, file.name)).values(row)
        if self.conn.execute(changed).rowcount == 0:
            self.conn.execute(insert(ARTIFACTS), row)

    def drop(self, tasks: Collection[str]) -> None:
        """Forget all files beside some tasks."""
        self.conn.execute(delete(ARTIFACTS).where(_C.task.in_(tasks)))

    def expected(self, delegation: str) -> bool:
        """Whether what the result of a hand-over names has been written down."""
        query = select(func.count()).where(_C.delegation == delegation)
        return bool(self.conn.scalar(query))

    # How much there is.

    def used(self, peer: str | None = None) -> int:
        """Bytes of all files that are here; only of those that came from a peer."""
        query = select(func.coalesce(func.sum(_C.size), 0)).where(_C.stored)
        if peer is not None:
            query = query.where(_C.peer == peer)
        return int(self.conn.scalar(query) or 0)

    def named(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Which of some hashes are of files that are here, or are to be."""
        query = select(_C.sha256).where(_C.sha256.in_(hashes), _C.stored | _C.wanted).distinct()
        return {bytes(sha256) for sha256 in self.conn.scalars(query)}

    def coming(self, sha256: bytes) -> bool:
        """Whether the bytes of that hash are to be pulled, and are not here yet."""
        rows = self.conn.execute(select(_C.stored, _C.wanted).where(_C.sha256 == sha256)).all()
        return any(row.wanted for row in rows) and not any(row.stored for row in rows)

    # What is to be pulled.

    def wanted_from(self) -> list[str]:
        """Install ids of peers from which files are to be pulled."""
        return list(self.conn.scalars(select(_C.peer).where(_C.peer != "", _C.wanted).distinct()))

    def wanted(self, peer: str) -> list[File]:
        """Files that are to be pulled from a peer, the oldest first."""
        query = select(ARTIFACTS).where(_C.peer == peer, _C.wanted)
        return [_file(row) for row in self.conn.execute(query.order_by(_C.create_time, _C.task, _C.name))]

    # What may be forgotten.

    def old_tasks(self, before: datetime, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        """
        Tasks beside which files have been since before a moment, each with the oldest one's time.

        Args:
            after: Only those after this one of an earlier answer.
        """
        query = (
            select(func.min(_C.create_time), _C.task)
            .where(_C.create_time < to_micros(before))
            .group_by(_C.task)
            .having(tuple_(func.min(_C.create_time), _C.task) > tuple_(*after))
            .order_by(func.min(_C.create_time), _C.task)
            .limit(limit)
        )
        return [(int(time), str(task)) for time, task in self.conn.execute(query)]


class Artifacts:
    """
    The files of one Hopper, as its database knows them.

    Args:
        db: Open, with the tables of the federation service. Whoever opened it closes it.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def read(self, work: Callable[[ArtifactStore], T]) -> T:
        """Run *work* on one snapshot."""
        return await self._db.read(lambda conn: work(ArtifactStore(conn, self._clock.now())))

    async def write(self, work: Callable[[ArtifactStore], T]) -> T:
        """Run *work* in one transaction; return its result once that is durable."""
        return await self._db.write(lambda conn: work(ArtifactStore(conn, self._clock.now())))


def nearest(files: Iterable[File], tasks: Sequence[str]) -> dict[str, File]:
    """By name; of several of one name, the one beside the task that stands first."""
    rank = {task: place for place, task in enumerate(tasks)}
    found: dict[str, File] = {}
    for file in sorted(files, key=lambda file: (file.name, rank[file.task])):
        found.setdefault(file.name, file)
    return found


def _key(task: str, name: str) -> tuple[Any, Any]:
    return _C.task == task, _C.name == name


def _row(file: File) -> dict[str, Any]:
    return {
        "task": file.task,
        "name": file.name,
        "sha256": file.sha256,
        "size": file.size,
        "media_type": file.media_type,
        "stored": file.stored,
        "wanted": file.wanted,
        "problem": file.problem,
        "peer": file.peer,
        "delegation": file.delegation,
        "create_time": to_micros(file.create_time),
    }


def _file(row: Row[Any]) -> File:
    return File(
        task=row.task,
        name=row.name,
        sha256=bytes(row.sha256),
        size=row.size,
        media_type=row.media_type,
        create_time=from_micros(row.create_time),
        stored=row.stored,
        problem=Problem(row.problem),
        peer=row.peer,
        delegation=row.delegation,
    )
