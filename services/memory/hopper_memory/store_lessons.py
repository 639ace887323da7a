"""
Lessons and models in SQL.

**Lessons** are rows that only ever come at the end: their positions are given in the order of commits, so whoever has
learned up to one has missed nothing before it. Those who follow wait for the next commit that wrote some, which is
told with a notification, so that the many that wrote none cost them nothing.

Old ones are thrown away when a model is kept: those that every model there is has learned, and that are older than the
operator wants them kept. Whoever asks for one that is gone is told to begin with a model.

**Models** come in parts of a megabyte, and each is written as it comes: the writer is nobody's for long. The parts
are nobody's either until the last has come and the checksum is right; then one row makes them a model. What an upload
that broke off has left is thrown away with the next.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import JSON, Connection, Row, Select, bindparam, delete, func, insert, select, text

from hopper_common.clock import Clock
from hopper_common.database import Database, Signal, notify
from hopper_common.errors import RequestTooLarge, ResumeTooOld
from hopper_common.ids import new_id
from hopper_common.timestamps import from_micros, to_micros
from hopper_memory.errors import ModelInvalid, ModelNotFound
from hopper_memory.lessons import Lesson, Teaching, Truth
from hopper_memory.model import candidates_of
from hopper_memory.ports import StoredModel, Taught
from hopper_memory.tables import EPISODES, LESSONS, MODEL_PARTS, MODELS

MOST_LESSONS: Final = 500  # of one read
MODELS_KEPT: Final = 3
MOST_FORGOTTEN: Final = 20_000  # lessons, with one model: a transaction should not last
MOST_MODEL_BYTES: Final = 256 * 1024 * 1024

_TAUGHT: Final = "lessons"  # the notification

_E = EPISODES.c
_L = LESSONS.c
_M = MODELS.c
_P = MODEL_PARTS.c
_LEARNED: Final = text(
    """
    SELECT min(models) AS fewest, min(oldest) AS position FROM (
        SELECT count(*) AS models, min(position) AS oldest FROM models
        GROUP BY format HAVING max(create_time) >= :since
    )
    """
)


# Lessons.

_HEAD = select(func.max(_L.position))
_OLDEST = select(func.min(_L.position))
_NEXT = (
    select(
        LESSONS, *(_E.instance, _E.title, _E.description, _E.tags, _E.project.label("sent_to"), _E.candidates)
    )
    .join(EPISODES, _E.decision == _L.decision)
    .order_by(_L.position)
    .limit(MOST_LESSONS)
)
# All of them as one parameter, which costs the same however many they are.
_TEACH = text(
    """
    INSERT INTO lessons (decision, truth, project, source, weight, create_time)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, :now
    FROM json_each(:rows) ORDER BY key
    """
).bindparams(bindparam("rows", type_=JSON))


def teach(conn: Connection, taught: Iterable[tuple[str, Teaching | None]], now: datetime) -> int:
    """
    Write down what decisions taught, in order, in the transaction of whatever did.

    Returns:
        The position of the last; 0: none of them taught anything.
    """
    rows = [(decision, *teaching) for decision, teaching in taught if teaching is not None]
    if not rows:
        return 0
    conn.execute(_TEACH, {"rows": rows, "now": to_micros(now)})
    notify(conn, _TAUGHT)
    return _head(conn)


def _head(conn: Connection) -> int:
    return conn.scalar(_HEAD) or 0


class SqlLessonStore:
    """The lessons of one database: `ports.LessonStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._taught = Signal()
        database.on_notify(self._hear)

    def _hear(self, payload: str) -> None:
        if payload in ("", _TAUGHT):
            self._taught.fire()

    async def tail(self, *, after: int) -> AsyncGenerator[Taught, None]:
        first = True
        while True:
            seen = self._taught.count  # before the read: what is taught during it is not lost
            taught = await self._database.read(partial(_after, position=after))
            if taught.lessons or first:
                yield taught
            first = False
            if taught.lessons:
                after = taught.lessons[-1].position
            if len(taught.lessons) < MOST_LESSONS:
                await self._taught.wait(after=seen)


def _after(conn: Connection, position: int) -> Taught:
    head = _head(conn)
    if position > head:
        raise ResumeTooOld(
            "there was no lesson at that position yet: forget everything, and begin with a snapshot",
            oldest="1",
            asked=str(position),
        )
    oldest = conn.scalar(_OLDEST) or 1
    if position < oldest - 1:
        raise ResumeTooOld(
            "the lessons after that are not kept any more: forget everything, and begin with a snapshot",
            oldest=str(oldest),
            asked=str(position),
        )
    rows = conn.execute(_NEXT.where(_L.position > position)) if position < head else ()
    return Taught([_lesson(row) for row in rows], head)


def _lesson(row: Row[Any]) -> Lesson:
    return Lesson(
        position=row.position,
        instance=row.instance,
        decision=row.decision,
        title=row.title,
        description=row.description,
        tags=tuple(row.tags.split()),
        teaching=Teaching(Truth(row.truth), row.project, row.source, row.weight),
        create_time=from_micros(row.create_time),
        sent_to=row.sent_to,
        candidates=tuple([each for each in candidates_of(row.candidates) if each.factors]),
    )


# Models.


class _Newest(NamedTuple):
    """The positions of the newest model of a format, and of the last lesson; 0: there is none."""

    model: int
    lesson: int


class SqlModelStore:
    """
    The models of one database: `ports.ModelStore`.

    Args:
        most_bytes: Of one model.
        keep_lessons: How long lessons are kept that models have learned; 0: for ever.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        most_bytes: int = MOST_MODEL_BYTES,
        keep_lessons: timedelta = timedelta(0),
    ) -> None:
        self._keep_lessons = keep_lessons
        self._database = database
        self._clock = clock
        self._most_bytes = most_bytes
        self._uploads: set[str] = set()  # under way

    async def newest(self, model_format: str, *, before: int = 0) -> tuple[StoredModel, AsyncIterator[bytes]]:
        query = select(MODELS).where(_M.format == model_format).order_by(_M.position.desc()).limit(1)
        if before:
            query = query.where(_M.position < before)
        row = await self._database.read(lambda conn: conn.execute(query).one_or_none())
        if row is None:
            raise ModelNotFound(format=model_format)
        return StoredModel(row.format, row.position, row.sha256), self._parts(row)

    async def _parts(self, model: Row[Any]) -> AsyncIterator[bytes]:
        for number in range(model.parts):
            query = select(_P.data).where(_P.upload == model.upload, _P.number == number)
            data = await self._database.read(partial(_scalar, query=query))
            if data is None:
                raise ModelNotFound("newer ones have come while it was read", format=model.format)
            yield data

    async def save(self, model: StoredModel, parts: AsyncIterable[bytes]) -> int:
        newest = await self._database.read(lambda conn: _newest(conn, model.format))
        if model.position > newest.lesson:
            raise _invalid(model, f"it is of position {model.position}, and the last is {newest.lesson}")
        if model.position <= newest.model:
            return newest.model
        upload = new_id(self._clock.now())
        self._uploads.add(upload)
        try:
            count = await self._take(upload, model, parts)
            return await self._database.write(lambda conn: self._keep(conn, upload, model, count))
        finally:
            self._uploads.discard(upload)

    async def _take(self, upload: str, model: StoredModel, parts: AsyncIterable[bytes]) -> int:
        """Write the parts as they come; returns how many."""
        underway = sorted(self._uploads)
        await self._database.write(lambda conn: _throw_away_all_but(conn, underway))
        count, size, digest = 0, 0, hashlib.sha256()
        async for part in parts:
            size += len(part)
            if size > self._most_bytes:
                raise RequestTooLarge(bytes=str(size), max_bytes=str(self._most_bytes))
            digest.update(part)
            row = {"upload": upload, "number": count, "data": part}
            await self._database.write(partial(_insert_part, row=row))
            count += 1
        if digest.digest() != model.sha256:
            raise _invalid(model, "its bytes have another checksum")
        return count

    def _keep(self, conn: Connection, upload: str, model: StoredModel, count: int) -> int:
        newest = _newest(conn, model.format).model
        if model.position <= newest:  # one that came at the same time
            conn.execute(delete(MODEL_PARTS).where(_P.upload == upload))
            return newest
        row = {
            **model._asdict(),
            "upload": upload,
            "parts": count,
            "create_time": to_micros(self._clock.now()),
        }
        conn.execute(insert(MODELS), row)
        _keep_the_newest(conn, model.format)
        if self._keep_lessons:
            _throw_away_lessons(conn, before=self._clock.now() - self._keep_lessons)
        return model.position


def _scalar(conn: Connection, query: Select[Any]) -> Any:
    return conn.scalar(query)


def _insert_part(conn: Connection, row: Mapping[str, Any]) -> None:
    conn.execute(insert(MODEL_PARTS), row)


def _newest(conn: Connection, model_format: str) -> _Newest:
    newest = select(func.max(_M.position)).where(_M.format == model_format)
    return _Newest(conn.scalar(newest) or 0, _head(conn))


def _keep_the_newest(conn: Connection, model_format: str) -> None:
    ours = _M.format == model_format
    newest = select(_M.position).where(ours).order_by(_M.position.desc()).limit(MODELS_KEPT)
    old = delete(MODELS).where(ours, _M.position.not_in(newest)).returning(_M.upload)
    conn.execute(delete(MODEL_PARTS).where(_P.upload.in_(conn.scalars(old).all())))


def _throw_away_lessons(conn: Connection, before: datetime) -> None:
    """
    Forget lessons of before then that every kept model has learned, some at a time.

    A format that nobody has saved since then is nobody's any more, and waits for none. One with fewer models than are
    kept may yet have to go back to the first lesson.
    """
    learned = conn.execute(_LEARNED, {"since": to_micros(before)}).one()
    if learned.fewest is None or learned.fewest < MODELS_KEPT:
        return
    # The last always stays: by it, positions are known not to lie ahead.
    covered = min(learned.position, _head(conn) - 1)
    old = select(_L.position).where(_L.position <= covered, _L.create_time < to_micros(before))
    newest = conn.scalar(
        select(func.max(old.order_by(_L.position).limit(MOST_FORGOTTEN).subquery().c.position))
    )
    # From the first on, without a gap, though the clock may have been stepped back in between.
    kept = conn.scalar(
        select(func.min(_L.position)).where(_L.position <= covered, _L.create_time >= to_micros(before))
    )
    if newest is not None:
        conn.execute(delete(LESSONS).where(_L.position <= newest, _L.position < (kept or newest + 1)))


def _throw_away_all_but(conn: Connection, underway: Sequence[str]) -> None:
    """Forget the parts of uploads that are neither models nor under way."""
    known = _P.upload.in_(select(_M.upload)) | _P.upload.in_(underway)
    conn.execute(delete(MODEL_PARTS).where(~known))


def _invalid(model: StoredModel, why: str) -> ModelInvalid:
    return ModelInvalid(f"the snapshot is not kept: {why}", format=model.format, position=str(model.position))
