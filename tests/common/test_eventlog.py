"""Whoever reads on from where they were gets every event once, in order, or is told that they cannot."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from hopper_common.database import Database
from hopper_common.errors import NotFound, ResumeTooOld, ShuttingDown
from hopper_common.eventlog import Event, EventLog
from hopper_testing.database import WrappedDatabase
from tests.common.toy import EVENTS, EngineKind, held_writer, open_toy, toy_database

T = TypeVar("T")

NOW = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
LOG = EventLog(EVENTS)


class ChangedMyMindError(NotFound):
    reason = "CHANGED_MY_MIND"


class WatchedDatabase(WrappedDatabase):
    """Counts its reads, and can have something happen between the next one and its answer."""

    reads = 0
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def read(self, work: Callable[[Connection], T]) -> T:
        self.reads += 1
        result = await super().read(work)
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return result


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = await open_toy(database_url)
    yield db
    await db.close()


@pytest.fixture
async def watched(database_url: str) -> AsyncIterator[WatchedDatabase]:
    db = WatchedDatabase(await open_toy(database_url))
    yield db
    await db.close()


def append(conn: Connection, topic: str = "task", key: str = "k", body: bytes = b"") -> int:
    return LOG.append(conn, topic=topic, key=key, body=body, now=NOW)


async def appended(db: Database, count: int, topic: str = "task") -> None:
    await db.write(lambda conn: [append(conn, topic) for _ in range(count)])


async def trimmed(db: Database, before: int) -> int:
    return await db.write(lambda conn: LOG.trim(conn, before=before))


async def first_of_tail(
    db: Database, after: int, topics: tuple[str, ...] = (), batch: int = 500
) -> list[int]:
    tail = LOG.tail(db, after=after, topics=topics, batch=batch)
    events = await anext(tail)
    await tail.aclose()
    return [event.version for event in events]


async def test_an_event_is_read_as_it_was_written(db: Database) -> None:
    version = await db.write(lambda conn: append(conn, "task", "tasks/1", b"\x00body"))
    assert await db.read(lambda conn: LOG.read(conn, after=0, limit=10)) == [
        Event(version=version, topic="task", key="tasks/1", body=b"\x00body", create_time=NOW)
    ]


async def test_a_read_goes_on_after_a_version_up_to_a_limit_and_by_topic(db: Database) -> None:
    await db.write(lambda conn: [append(conn, topic) for topic in ("task", "claim", "task", "claim", "task")])

    def versions(after: int, limit: int, *topics: str) -> Callable[[Connection], list[int]]:
        return lambda conn: [e.version for e in LOG.read(conn, after=after, limit=limit, topics=topics)]

    assert await db.read(versions(0, 10)) == [1, 2, 3, 4, 5]
    assert await db.read(versions(2, 2)) == [3, 4]
    assert await db.read(versions(1, 10, "task")) == [3, 5]
    assert await db.read(versions(0, 3, "claim", "task")) == [1, 2, 3]
    assert await db.read(versions(5, 10)) == []


async def test_an_empty_log_has_a_head_before_its_first_event(db: Database) -> None:
    assert await db.read(lambda conn: (LOG.head(conn), LOG.oldest(conn))) == (0, 1)


async def test_the_time_of_the_newest_event_is_known(db: Database) -> None:
    assert await db.read(LOG.newest_time) is None
    later = NOW + timedelta(seconds=1)
    await db.write(append)
    await db.write(lambda conn: LOG.append(conn, topic="task", key="k", body=b"", now=later))
    assert await db.read(LOG.newest_time) == later


async def test_a_unit_that_fails_leaves_nothing_and_in_sqlite_no_hole(db: Database) -> None:
    def fail(conn: Connection) -> None:
        append(conn)
        raise ChangedMyMindError

    async with held_writer(db):
        tasks = [
            asyncio.create_task(db.write(append)),
            asyncio.create_task(db.write(fail)),
            asyncio.create_task(db.write(append)),
        ]
        await asyncio.sleep(0)
    first, _, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, last) == (1, 2 if db.dialect == "sqlite" else 3)
    assert [event.version for event in await db.read(lambda conn: LOG.read(conn, after=0, limit=9))] == [
        first,
        last,
    ]


async def test_a_gap_is_not_taken_for_something_that_was_trimmed(db: Database) -> None:
    def fail(conn: Connection) -> None:
        append(conn)
        raise ChangedMyMindError

    async def gap() -> None:
        with pytest.raises(ChangedMyMindError):
            await db.write(fail)

    await gap()
    first = await db.write(append)
    assert await first_of_tail(db, after=0) == [first]
    await gap()
    last = await db.write(append)
    assert await trimmed(db, before=last) == 1
    assert await trimmed(db, before=last) == 0
    assert await first_of_tail(db, after=first) == [last]
    assert await db.read(lambda conn: [event.version for event in LOG.between(conn, 0, 100)]) == [last]
    with pytest.raises(ResumeTooOld):
        await first_of_tail(db, after=0)


async def test_trimming_keeps_the_newest_and_versions_are_never_used_again(db: Database) -> None:
    await appended(db, 5)
    assert await trimmed(db, before=3) == 2
    assert await db.read(lambda conn: (LOG.oldest(conn), LOG.head(conn))) == (3, 5)
    assert await trimmed(db, before=100) == 2
    assert await db.read(lambda conn: (LOG.oldest(conn), LOG.head(conn))) == (5, 5)
    assert await db.write(append) == 6


@pytest.mark.parametrize("after", [0, 1, 6, 100])
async def test_a_place_that_is_not_in_the_log_is_refused(db: Database, after: int) -> None:
    """Trimmed away, or from a future that a restored backup does not know."""
    await appended(db, 5)
    await trimmed(db, before=3)
    with pytest.raises(ResumeTooOld) as caught:
        await first_of_tail(db, after)
    assert caught.value.metadata == {"oldest": "3", "asked": str(after)}


async def test_the_place_before_the_oldest_event_is_in_the_log(db: Database) -> None:
    await appended(db, 5)
    await trimmed(db, before=3)
    assert await first_of_tail(db, after=2) == [3, 4, 5]


async def test_a_tail_gives_what_is_there_in_batches_and_then_what_comes(db: Database) -> None:
    await appended(db, 5)
    tail = LOG.tail(db, after=1, batch=3)
    assert [event.version for event in await anext(tail)] == [2, 3, 4]
    assert [event.version for event in await anext(tail)] == [5]
    coming = asyncio.ensure_future(anext(tail))
    await appended(db, 2)
    assert [event.version for event in await coming] == [6, 7]


async def test_what_is_old_ends_before_the_first_that_is_not(db: Database) -> None:
    def write(conn: Connection) -> list[int]:
        times = [NOW + timedelta(seconds=second) for second in (0, 1, 3, 2, 4)]  # clocks differ a little
        return [LOG.append(conn, topic="task", key="k", body=b"", now=time) for time in times]

    versions = await db.write(write)

    async def first_since(second: int) -> int:
        return await db.read(lambda conn: LOG.first_since(conn, NOW + timedelta(seconds=second)))

    assert [await first_since(second) for second in (-1, 1, 2, 4)] == [
        versions[0], versions[1], versions[2], versions[4],
    ]  # fmt: skip
    assert await first_since(5) == versions[-1] + 1


async def test_a_tail_of_one_topic_does_not_fall_behind_when_the_others_are_trimmed(db: Database) -> None:
    tail = LOG.tail(db, after=0, topics=["rare"])
    await db.write(lambda conn: [append(conn, topic) for topic in ("frequent", "rare", *["frequent"] * 10)])
    assert [event.version for event in await anext(tail)] == [2]
    await trimmed(db, before=10)
    await appended(db, 1, "rare")
    assert [event.version for event in await anext(tail)] == [13]


async def test_a_tail_that_is_overtaken_by_trimming_is_told_so(db: Database) -> None:
    await appended(db, 5)
    tail = LOG.tail(db, after=0, batch=2)
    assert [event.version for event in await anext(tail)] == [1, 2]
    await trimmed(db, before=5)
    with pytest.raises(ResumeTooOld):
        await anext(tail)


async def test_a_tail_that_has_seen_everything_does_not_poll(watched: WatchedDatabase) -> None:
    waiting = asyncio.ensure_future(anext(LOG.tail(watched, after=0)))
    for _ in range(50):  # each passes through the same threads that a poll would
        await watched.read(LOG.head)
    assert watched.reads == 50 + 1
    await appended(watched, 1)
    assert [event.version for event in await waiting] == [1]
    assert watched.reads <= 50 + 2  # its first look may take so long that it sees the event already


async def test_a_commit_while_a_tail_reads_is_not_lost(watched: WatchedDatabase) -> None:
    async def commit_meanwhile() -> None:
        await appended(watched, 1)

    watched.meanwhile = commit_meanwhile
    assert await first_of_tail(watched, after=0) == [1]


async def test_closing_the_database_ends_its_tails(db: Database) -> None:
    waiting = asyncio.ensure_future(anext(LOG.tail(db, after=0)))
    await asyncio.sleep(0)
    await db.close()
    with pytest.raises(ShuttingDown):
        await waiting


async def watch(db: Database, until: int, seed: int) -> list[int]:
    """Everything up to a version, by someone whose connection breaks again and again."""
    rng = random.Random(seed)
    seen: list[int] = []
    while not seen or seen[-1] < until:
        patience = rng.randint(1, 5)
        async for events in LOG.tail(db, after=seen[-1] if seen else 0, batch=rng.choice([1, 7, 500])):
            seen += [event.version for event in events]
            patience -= 1
            if patience == 0 or seen[-1] >= until:
                break
    return seen


async def test_watchers_who_reconnect_while_many_write_get_each_version_once(db: Database) -> None:
    async def write(writer: int) -> None:
        for i in range(40):
            await db.write(lambda conn, i=i: append(conn, key=f"{writer}-{i}"))  # type: ignore[misc]

    watchers = [asyncio.create_task(watch(db, until=800, seed=seed)) for seed in range(8)]
    await asyncio.gather(*(write(writer) for writer in range(20)))
    for seen in await asyncio.gather(*watchers):
        assert seen == list(range(1, 801))


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "fail", "trim"]), st.sampled_from("ab"), st.integers(1, 5)),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@settings(max_examples=30, deadline=None)
@given(steps=STEPS, topics=st.sampled_from([(), ("a",), ("a", "b")]), batch=st.integers(1, 4))
async def test_a_tail_gives_exactly_what_was_committed_whatever_happens_around_it(
    kind: EngineKind, steps: list[tuple[str, str, int]], topics: tuple[str, ...], batch: int
) -> None:
    """Against a list: events appended, units that fail after appending, trims of what the tail has seen."""

    def fail(conn: Connection) -> None:
        append(conn)
        raise ChangedMyMindError

    async with toy_database(kind) as db:
        expected: list[tuple[int, str]] = []
        seen: list[tuple[int, str]] = []
        for what, topic, count in steps:
            match what:
                case "append":
                    versions = await db.write(lambda conn: [append(conn, topic) for _ in range(count)])  # noqa: B023
                    expected += [(version, topic) for version in versions if not topics or topic in topics]
                case "fail":
                    with pytest.raises(ChangedMyMindError):
                        await db.write(fail)
                case "trim":
                    await drain(db, seen, expected, topics, batch)
                    await trimmed(db, before=(seen[-1][0] if seen else 0) + 1)
        await drain(db, seen, expected, topics, batch)
        assert seen == expected


async def drain(
    db: Database,
    seen: list[tuple[int, str]],
    expected: list[tuple[int, str]],
    topics: tuple[str, ...],
    batch: int,
) -> None:
    """Tail on from the last version seen until as much has come as was written."""
    if len(seen) < len(expected):
        async for events in LOG.tail(db, after=seen[-1][0] if seen else 0, topics=topics, batch=batch):
            assert len(events) <= batch
            seen += [(event.version, event.topic) for event in events]
            if len(seen) >= len(expected):
                break
