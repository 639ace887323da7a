"""Lessons and models in SQL: written with what teaches them, in one order; whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import hopper_memory.migrations
from hopper_common import sqlite_file
from hopper_common.database import Database
from hopper_common.errors import RequestTooLarge, ResumeTooOld, StorageFull
from hopper_common.timestamps import to_micros
from hopper_memory import convert
from hopper_memory.app import MIGRATIONS
from hopper_memory.errors import ModelInvalid, ModelNotFound
from hopper_memory.lessons import Lesson, Teaching, Truth
from hopper_memory.model import Candidate, Feedback, Match, Outcome
from hopper_memory.ports import StoredModel, Taught
from hopper_memory.store_lessons import MOST_FORGOTTEN, MOST_LESSONS, SqlLessonStore, SqlModelStore
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import LESSONS, METADATA, MODEL_PARTS
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase, temporary_database
from tests.memory.samples import START, decision, episode, outcome
from tests.memory.suite_episodes import BAD, GOOD, chain, give

WEB, OPS = "projects/web", "projects/ops"
RIGHT, WRONG, NONE = Truth.RIGHT, Truth.WRONG, Truth.NONE


@pytest.fixture
async def database() -> AsyncIterator[FaultyDatabase]:
    async with temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="memory") as database:
        yield database


@pytest.fixture
def store(database: FaultyDatabase) -> SqlEpisodeStore:
    return SqlEpisodeStore(database, ManualClock())


def decided(number: int, **fields: Any) -> Any:
    return episode(number, strategy="rules", **fields)


async def lessons(database: Database, after: int = 0) -> list[Lesson]:
    """Everything that was taught, by now."""
    found: list[Lesson] = []
    async with aclosing(SqlLessonStore(database).tail(after=after)) as batches:
        async for taught in batches:
            found += taught.lessons
            if not taught.lessons or taught.lessons[-1].position == taught.head:
                return found
    raise AssertionError("a tail has no end")


async def teachings(database: Database) -> list[tuple[str, Truth, str, float]]:
    return [
        (at.decision, at.teaching.truth, at.teaching.project, at.teaching.weight)
        for at in await lessons(database)
    ]


# Teaching.


async def test_a_lesson_comes_with_the_text_it_is_about(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    await store.record([decided(1, title="login", description="fails", tags=("a", "b"))], [])
    given = await give(store, 1, Feedback(match=Match.GOOD, author="ann"))
    assert given.lesson == 1
    assert await lessons(database) == [
        Lesson(
            position=1,
            instance="instances/global",
            decision=decision(1),
            title="login",
            description="fails",
            tags=("a", "b"),
            teaching=Teaching(RIGHT, WEB, "ann", 1.0),
            create_time=START,
            sent_to=WEB,
        )
    ]


async def test_a_lesson_comes_with_what_was_weighed(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    """Where there is something to learn of it; it is kept as it came."""
    weighed = (
        Candidate(WEB, 0.6, 1.25, (("workload", 0.5), ("cost", 1.0))),
        Candidate(OPS, 0.4, -0.5, (("workload", 0.75),)),
    )
    plain = (Candidate(WEB, 0.6), Candidate(OPS, 0.4))
    await store.record(
        [
            episode(1, strategy="learned", candidates=weighed),
            episode(2, strategy="learned", candidates=plain),
        ],
        [outcome(1, Outcome.FAILED), outcome(2, failure_reason="LATE")],
    )
    assert (await store.get(decision(1))).candidates == weighed
    assert (await store.get(decision(2))).candidates == plain
    failed, late = await lessons(database)
    assert (failed.teaching.truth, failed.sent_to, failed.candidates) == (Truth.FAILED, WEB, weighed)
    assert (late.teaching.truth, late.sent_to, late.candidates) == (Truth.LATE, WEB, ())
    told = convert.lesson_to_proto(failed)
    assert [(c.project, c.rest) for c in told.candidates] == [(WEB, 1.25), (OPS, -0.5)]
    assert [(f.name, f.value) for f in told.candidates[0].factors] == [("workload", 0.5), ("cost", 1.0)]


async def test_every_level_that_feedback_comes_to_learns_from_it(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    top, middle, kept = chain(1, 2, 3, strategy="learned")
    candidates = (Candidate(WEB, 0.6), Candidate(OPS, 0.4))
    await store.record(
        [
            episode(1, strategy="learned", candidates=candidates),
            middle,
            episode(3, strategy="scope", parent_decision=kept.parent_decision),
        ],
        [],
    )
    assert top.decision == decision(1)
    given = await give(store, 3, Feedback(match=Match.BAD, better_project=OPS))
    # The lowest had nothing to choose; the middle one could not see the better project; the top one could.
    assert await teachings(database) == [(decision(2), WRONG, WEB, 1.0), (decision(1), RIGHT, OPS, 1.0)]
    assert given.lesson == 2


async def test_a_repeated_request_teaches_once(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([decided(1)], [])
    assert (await give(store, 1, GOOD, request_id="r")).lesson == 1
    assert (await give(store, 1, GOOD, request_id="r")).lesson == 0
    assert len(await lessons(database)) == 1


async def test_outcomes_teach_when_they_are_joined_and_once(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    late = outcome(2, finish_time=START + timedelta(minutes=2))
    await store.record([decided(1)], [late, outcome(1)])
    assert await teachings(database) == [(decision(1), RIGHT, WEB, 0.5)]
    await store.record([decided(2), decided(3)], [outcome(1), outcome(3, Outcome.CANCELLED)])
    await store.record([decided(2)], [late, outcome(2, Outcome.FAILED, failure_reason="NOT_MINE")])
    assert await teachings(database) == [(decision(1), RIGHT, WEB, 0.5), (decision(2), RIGHT, WEB, 0.5)]


async def test_what_came_together_is_learned_in_the_order_in_which_it_happened(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    numbers = [5, 3, 9, 1, 7]
    ends = [outcome(number, finish_time=START + timedelta(seconds=number)) for number in numbers]
    await store.record([decided(number) for number in numbers], ends)
    assert [at.decision for at in await lessons(database)] == [decision(number) for number in sorted(numbers)]


async def test_where_it_was_rerouted_to_is_kept_and_teaches(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    elsewhere = outcome(1, Outcome.REROUTED, rerouted_to=OPS)
    await store.record([decided(1)], [elsewhere])
    assert (await store.get(decision(1))).outcome == elsewhere
    await store.record([], [outcome(1)])
    assert await teachings(database) == [(decision(1), WRONG, WEB, 0.25), (decision(1), RIGHT, WEB, 0.5)]


async def test_an_end_after_a_verdict_teaches_nothing(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    await store.record([decided(1), decided(2)], [])
    await give(store, 1, BAD)
    await give(store, 2, Feedback(comment="no match is no verdict"))
    await store.record([], [outcome(1), outcome(2)])
    assert await teachings(database) == [(decision(1), WRONG, WEB, 1.0), (decision(2), RIGHT, WEB, 0.5)]


async def test_what_is_not_recorded_is_not_taught(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([decided(1)], [])
    database.set_next_error(StorageFull(service="memory"))
    with pytest.raises(StorageFull):
        await give(store, 1, GOOD)
    assert await lessons(database) == []


# Following.


async def test_who_follows_is_told_of_every_lesson_once_and_in_order(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    numbers = range(60)
    await store.record([decided(number) for number in numbers], [])
    followed = SqlLessonStore(database)

    async def follow(after: int) -> list[int]:
        seen: list[int] = []
        async with aclosing(followed.tail(after=after)) as batches:
            async for taught in batches:
                seen += [lesson.position for lesson in taught.lessons]
                assert taught.head >= max(seen, default=0)
                if seen and seen[-1] == 60:
                    return seen
        raise AssertionError("a tail has no end")

    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow(0)) for _ in range(3)]
        for number in numbers:
            group.create_task(give(store, number, GOOD))
        group.create_task(store.record([decided(1000)], []))  # a commit that teaches nothing
    assert all(follower.result() == list(range(1, 61)) for follower in followers)
    assert await follow(57) == [58, 59, 60]


async def test_many_come_in_parts(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    numbers = range(MOST_LESSONS + 1)
    await store.record([decided(number) for number in numbers], [outcome(number) for number in numbers])
    async with aclosing(SqlLessonStore(database).tail(after=0)) as batches:
        sizes = [
            (len(taught.lessons), taught.head) for taught in [await anext(batches), await anext(batches)]
        ]
    assert sizes == [(MOST_LESSONS, MOST_LESSONS + 1), (1, MOST_LESSONS + 1)]


async def test_who_is_up_to_date_hears_so_at_once(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    async with aclosing(SqlLessonStore(database).tail(after=0)) as batches:
        assert await anext(batches) == Taught([], 0)
        await store.record([decided(1)], [outcome(1)])
        assert [lesson.position for lesson in (await anext(batches)).lessons] == [1]
    async with aclosing(SqlLessonStore(database).tail(after=1)) as batches:
        assert await anext(batches) == Taught([], 1)


async def test_who_is_ahead_is_told_so(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([decided(1)], [outcome(1)])
    with pytest.raises(ResumeTooOld) as refused:
        await anext(SqlLessonStore(database).tail(after=2))
    assert dict(refused.value.metadata) == {"oldest": "1", "asked": "2"}


# Models.


def a_model(position: int, *parts: bytes, model_format: str = "f/1") -> StoredModel:
    return StoredModel(model_format, position, hashlib.sha256(b"".join(parts)).digest())


async def streamed(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.fixture
async def models(database: FaultyDatabase, store: SqlEpisodeStore) -> SqlModelStore:
    """With lessons up to 100."""
    numbers = range(100)
    await store.record([decided(number) for number in numbers], [outcome(number) for number in numbers])
    return SqlModelStore(database, ManualClock(), most_bytes=20)


async def save(models: SqlModelStore, position: int, *parts: bytes, model_format: str = "f/1") -> int:
    return await models.save(a_model(position, *parts, model_format=model_format), streamed(parts))


async def load(models: SqlModelStore, model_format: str = "f/1", before: int = 0) -> tuple[int, list[bytes]]:
    model, parts = await models.newest(model_format, before=before)
    found = [part async for part in parts]
    assert hashlib.sha256(b"".join(found)).digest() == model.sha256
    return model.position, found


async def part_count(database: Database) -> int:
    count = sa.select(sa.func.count()).select_from(MODEL_PARTS)
    return await database.read(lambda conn: conn.scalar(count) or 0)


async def test_a_model_comes_back_as_it_was_saved(models: SqlModelStore) -> None:
    assert await save(models, 7, b"one", b"", b"two") == 7
    assert await load(models) == (7, [b"one", b"", b"two"])


async def test_a_format_that_nobody_saved_is_not_found(models: SqlModelStore) -> None:
    await save(models, 7, b"one")
    with pytest.raises(ModelNotFound) as missing:
        await models.newest("f/2")
    assert dict(missing.value.metadata) == {"format": "f/2"}


async def test_of_each_format_the_three_newest_are_kept(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    await save(models, 1, b"other", model_format="g/1")
    for position in (10, 20, 30, 40, 50):
        assert await save(models, position, b"%d" % position, b"!") == position
    assert [(await load(models, before=before))[0] for before in (0, 50, 40)] == [50, 40, 30]
    with pytest.raises(ModelNotFound):
        await models.newest("f/1", before=30)
    assert (await load(models, "g/1"))[0] == 1
    assert await part_count(database) == 3 * 2 + 1


async def test_an_older_one_changes_nothing_and_is_not_read(models: SqlModelStore) -> None:
    await save(models, 10, b"ten")

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("nobody wants it")
        yield b""

    for position in (9, 10):
        assert await models.save(a_model(position, b"x"), unread()) == 10
    assert await load(models) == (10, [b"ten"])


async def test_of_two_at_the_same_time_the_newer_is_kept(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    older_is_taken, newer_is_in = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"old"
        older_is_taken.set()
        await newer_is_in.wait()

    older = asyncio.ensure_future(models.save(a_model(10, b"old"), slowly()))
    await older_is_taken.wait()
    assert await save(models, 20, b"new") == 20
    newer_is_in.set()
    assert await older == 20
    assert await load(models) == (20, [b"new"])
    assert await part_count(database) == 1


async def test_what_is_not_what_it_says_is_refused(models: SqlModelStore) -> None:
    with pytest.raises(ModelInvalid) as broken:
        await models.save(a_model(5, b"this"), streamed([b"that"]))
    assert dict(broken.value.metadata) == {"format": "f/1", "position": "5"}
    with pytest.raises(ModelInvalid, match="the last is 100"):
        await save(models, 101, b"ahead")
    with pytest.raises(RequestTooLarge) as large:
        await save(models, 5, b"x" * 20, b"y")
    assert dict(large.value.metadata) == {"bytes": "21", "max_bytes": "20"}
    with pytest.raises(ModelNotFound):
        await models.newest("f/1")


async def test_what_a_broken_upload_left_goes_with_the_next(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await models.save(a_model(5, b"half", b"half"), breaks_off())
    with pytest.raises(ModelNotFound):
        await models.newest("f/1")
    assert await part_count(database) == 1
    await save(models, 6, b"whole")
    assert await part_count(database) == 1


async def test_one_that_goes_while_it_is_read_is_not_found(models: SqlModelStore) -> None:
    await save(models, 1, b"a", b"b")
    _, parts = await models.newest("f/1")
    assert await anext(parts) == b"a"
    for position in (2, 3, 4):
        await save(models, position, b"c")
    with pytest.raises(ModelNotFound):
        await anext(parts)


# What was there before there were lessons.


def released(path: Path) -> sa.Engine:
    """A file as release 0001 made it."""
    sqlite_file.prepare(path)
    engine = sa.create_engine(f"sqlite:///{path}")
    script = ScriptDirectory(str(Path(hopper_memory.migrations.__path__[0])))
    options: dict[str, Any] = {
        "version_table": "alembic_version_memory",
        "fn": lambda revision, _context: script._upgrade_revs("0001", revision),
    }
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts=options)
        with Operations.context(context):
            context.run_migrations()
    return engine


def row_of_episode(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "decision": decision(number),
        "task": f"instances/global/tasks/t{number}",
        "instance": "instances/global",
        "parent_decision": "",
        "title": f"title {number}",
        "description": "",
        "tags": "",
        "project": WEB,
        "confidence": 0.5,
        "strategy": "rules",
        "decide_time": number,
        "candidates": "[]",
        "outcome": None,
        "finish_time": None,
        "attempts": 0,
        "worker": "",
        "failure_reason": "",
        "verdict": None,
        **fields,
    }


def row_of_feedback(number: int, on: int, match: str | None, at: int, **fields: Any) -> dict[str, Any]:
    return {
        "feedback": f"f{number}",
        "decision": decision(on),
        "match": match,
        "better_project": "",
        "rework": False,
        "blockers": "[]",
        "comment": "",
        "author": "",
        "from_decision": "",
        "create_time": at,
        **fields,
    }


def insert(engine: sa.Engine, table: str, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        for row in rows:
            columns, values = ", ".join(f'"{name}"' for name in row), ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)


async def test_what_is_known_already_becomes_lessons(tmp_path: Path) -> None:
    engine = released(tmp_path / "memory.db")
    same_task = {"task": "instances/global/tasks/moved"}
    rerouted = {"outcome": "REROUTED", "finish_time": 500, **same_task}
    insert(
        engine,
        "episodes",
        [
            row_of_episode(1, outcome="SUCCEEDED", finish_time=900, worker="ann"),
            row_of_episode(2, outcome="SUCCEEDED", finish_time=100),
            row_of_episode(3, outcome="FAILED", finish_time=200, failure_reason="NO_NETWORK"),
            row_of_episode(4, outcome="FAILED", finish_time=300, failure_reason="NOT_MINE", worker="bob"),
            row_of_episode(5, outcome="CANCELLED", finish_time=310),
            row_of_episode(6, strategy="scope", outcome="SUCCEEDED", finish_time=320),
            row_of_episode(7, **rerouted),  # to the same project: 8
            row_of_episode(8, **rerouted),  # to another: 9
            row_of_episode(9, project=OPS, **same_task),
            row_of_episode(10, project=""),
            row_of_episode(11, outcome="SUCCEEDED", finish_time=950),
        ],
    )
    insert(
        engine,
        "task_feedback",
        [
            row_of_feedback(1, 2, "BAD", 150, author="cid"),
            row_of_feedback(2, 3, "BAD", 250, better_project=OPS),
            row_of_feedback(3, 10, "GOOD", 350),
            row_of_feedback(4, 10, "NONE", 400),
            row_of_feedback(5, 6, "GOOD", 410),
            row_of_feedback(6, 9, None, 420),
            row_of_feedback(7, 9, "BAD", 430, better_project=OPS),
            row_of_feedback(8, 11, "GOOD", 600),
        ],
    )
    engine.dispose()

    database = await Database.open(
        tmp_path / "memory.db", metadata=METADATA, migrations=MIGRATIONS, service="memory"
    )
    try:
        found = await lessons(database)
        moved = await SqlEpisodeStore(database, ManualClock()).get(decision(8))
    finally:
        await database.close()

    assert [(at.decision, at.teaching, to_micros(at.create_time)) for at in found] == [
        (decision(2), Teaching(RIGHT, WEB, "router", 0.5), 100),
        (decision(2), Teaching(WRONG, WEB, "cid", 1.0), 150),
        (decision(3), Teaching(RIGHT, OPS, "anonymous", 1.0), 250),
        (decision(4), Teaching(WRONG, WEB, "bob", 0.5), 300),
        (decision(10), Teaching(NONE, "", "anonymous", 1.0), 400),
        (decision(8), Teaching(WRONG, WEB, "router", 0.25), 500),
        (decision(11), Teaching(RIGHT, WEB, "anonymous", 1.0), 600),
        (decision(1), Teaching(RIGHT, WEB, "ann", 0.5), 900),
    ]
    assert [at.position for at in found] == list(range(1, 9))
    assert moved.outcome is not None
    assert moved.outcome.rerouted_to == OPS


async def test_positions_are_never_given_twice(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([decided(1), decided(2)], [outcome(1)])
    await database.write(lambda conn: conn.execute(sa.delete(LESSONS)))
    await store.record([], [outcome(2)])
    assert await kept(database) == [2]


# What is forgotten.


DAY = timedelta(days=1)


async def kept(database: FaultyDatabase) -> list[int]:
    return await database.read(lambda conn: list(conn.scalars(sa.select(LESSONS.c.position))))


async def saved_until(models: SqlModelStore, *positions: int, format_: str = "f/1") -> None:
    for position in positions:
        await save(models, position, b"x", model_format=format_)


async def test_old_lessons_are_forgotten_once_every_kept_model_has_them(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    clock = ManualClock(START + 10 * DAY)
    keeping = SqlModelStore(database, clock, keep_lessons=30 * DAY)
    await saved_until(keeping, 10, 20, 30)
    assert await kept(database) == list(range(1, 101))  # they are young
    clock.advance(30 * DAY)
    await saved_until(keeping, 40)
    assert await kept(database) == list(range(21, 101))  # 20, 30 and 40 are kept
    with pytest.raises(ResumeTooOld) as refused:
        await anext(SqlLessonStore(database).tail(after=19))
    assert dict(refused.value.metadata) == {"oldest": "21", "asked": "19"}
    async with aclosing(SqlLessonStore(database).tail(after=20)) as batches:
        assert [lesson.position for lesson in (await anext(batches)).lessons] == list(range(21, 101))


async def test_the_last_lesson_stays_so_that_nobody_seems_to_be_ahead(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    clock = ManualClock(START + 100 * DAY)
    keeping = SqlModelStore(database, clock, keep_lessons=DAY)
    await saved_until(keeping, 98, 99, 100)
    assert await kept(database) == [99, 100]
    async with aclosing(SqlLessonStore(database).tail(after=100)) as batches:
        assert await anext(batches) == Taught([], 100)


async def test_nothing_is_forgotten_that_an_older_router_may_need(
    database: FaultyDatabase, models: SqlModelStore
) -> None:
    clock = ManualClock(START + 100 * DAY)
    keeping = SqlModelStore(database, clock, keep_lessons=30 * DAY)
    await saved_until(keeping, 5, 6, format_="old/1")  # fewer than are kept: it may have to begin anew
    await saved_until(keeping, 50, 60, 70)
    assert len(await kept(database)) == 100
    await saved_until(keeping, 7, format_="old/1")
    assert await kept(database) == list(range(6, 101))
    clock.advance(31 * DAY)  # nobody has saved one of the old format since
    await saved_until(keeping, 80)
    assert await kept(database) == list(range(61, 101))


async def test_without_a_limit_all_are_kept(database: FaultyDatabase, models: SqlModelStore) -> None:
    clock = ManualClock(START + 10_000 * DAY)
    await saved_until(SqlModelStore(database, clock), 70, 80, 90)
    assert len(await kept(database)) == 100


async def test_a_million_lessons_hold_nobody_up(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    """Whoever begins with a model reads what follows it, and no more; a transaction forgets some at a time."""
    await store.record([decided(1)], [])
    many = """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
        INSERT INTO lessons (position, decision, truth, project, source, weight, create_time)
        SELECT i, :decision, 'RIGHT', 'projects/web', 'ann', 1.0, :time FROM n
    """
    values = {"decision": decision(1), "time": to_micros(START)}
    await database.write(lambda conn: conn.execute(sa.text(many), values) and None)
    clock = ManualClock(START + 400 * DAY)
    keeping = SqlModelStore(database, clock, keep_lessons=DAY)
    for position in (999_700, 999_800, 999_900):
        await keeping.save(a_model(position, b"x"), streamed([b"x"]))
    first, last = sa.func.min(LESSONS.c.position), sa.func.max(LESSONS.c.position)
    ends = await database.read(lambda conn: tuple(conn.execute(sa.select(first, last)).one()))
    assert ends == (MOST_FORGOTTEN + 1, 1_000_000)
    async with aclosing(SqlLessonStore(database).tail(after=999_900)) as batches:
        taught = await anext(batches)
    assert (len(taught.lessons), taught.head) == (100, 1_000_000)
