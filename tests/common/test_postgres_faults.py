"""
Connections cut around COMMIT, servers stopped and crashed under load: nothing acknowledged is lost, nothing is
done twice, and callers hear what happened or that it is not known.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import asyncpg
import pytest
from sqlalchemy import Connection

from hopper_common import failpoints, postgres_connection
from hopper_common.errors import HopperError, StorageUnavailable
from hopper_common.postgres import READERS, PostgresDatabase
from hopper_testing.postgres import OwnServer, postgres_server, private_server
from tests.common.toy import add_note, held_writer, migrate_toy, notes, open_toy
from tests.common.toy.cut import Moment, cable


async def open_replica(url: str) -> PostgresDatabase:
    return cast("PostgresDatabase", await open_toy(url))


@pytest.fixture
def url() -> str:
    return postgres_server().create_database(made_by=migrate_toy)


@pytest.fixture
async def db(url: str) -> AsyncIterator[PostgresDatabase]:
    db = await open_replica(url)
    yield db
    await db.close()


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """One that may be stopped and crashed."""
    with private_server(max_connections="20") as server:
        yield server


@pytest.fixture
async def fragile(server: OwnServer) -> AsyncIterator[PostgresDatabase]:
    db = await open_replica(server.create_database(made_by=migrate_toy))
    yield db
    await db.close()


def adding(text: str) -> Callable[[Connection], str]:
    def work(conn: Connection) -> str:
        add_note(conn, text)
        return text

    return work


# Around COMMIT


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("texts", [("a",), ("a", "b", "c")])
async def test_a_commit_that_nobody_answered_is_found_out_about(
    url: str, moment: Moment, texts: tuple[str, ...]
) -> None:
    """The network is cut before the server gets the COMMIT, and after it has answered it."""
    async with cable(url) as (wire, through):
        db = await open_replica(through)
        wire.cut = moment
        before = db.committed.count
        assert await asyncio.gather(*(db.write(adding(text)) for text in texts)) == list(texts)
        assert wire.cuts == 1
        assert db.committed.count > before
        assert sorted(await db.read(notes)) == list(texts)
        await db.close()


@pytest.mark.parametrize("place", ["transaction.begun", "unit.after", "commit.before", "commit.sent"])
@pytest.mark.parametrize("texts", [("a",), ("a", "b", "c")])
async def test_a_connection_that_is_lost_anywhere_costs_nothing(
    db: PostgresDatabase, place: str, texts: tuple[str, ...]
) -> None:
    async with held_writer(db):
        tasks = [asyncio.create_task(db.write(adding(text))) for text in texts]
        await asyncio.sleep(0)
        # The holder has begun already; whatever else is hit is hit by its transaction first.
        number = 1 if place == "transaction.begun" else 2
        armed: AbstractContextManager[None] = failpoints.active(f"{place}=drop@{number}")
        armed.__enter__()
    try:
        assert await asyncio.gather(*tasks) == list(texts)
    finally:
        armed.__exit__(None, None, None)
    assert await db.read(notes) == list(texts)


async def test_a_failure_in_the_middle_of_nothing_is_reported(db: PostgresDatabase) -> None:
    with (
        failpoints.active("commit.before=error@1"),
        pytest.raises(StorageUnavailable, match="nothing was done"),
    ):
        await db.write(adding("a"))
    assert await db.read(notes) == []
    with failpoints.active("commit.sent=error@1"):
        assert await db.write(adding("b")) == "b"
    assert await db.read(notes) == ["b"]


async def test_ids_given_again_after_a_crash_are_not_taken_for_ours(
    db: PostgresDatabase, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What recovery does to the unlogged table is done by hand, while the writer has lost its connection."""
    admin = await asyncpg.connect(url)
    discard = postgres_connection.Link.discard

    async def discard_and_recover(link: postgres_connection.Link) -> None:
        await discard(link)
        await admin.execute("TRUNCATE hopper_toy.hopper_server_run")

    monkeypatch.setattr(postgres_connection.Link, "discard", discard_and_recover)
    with (
        failpoints.active("commit.sent=drop@1"),
        pytest.raises(StorageUnavailable, match="not known whether this was done"),
    ):
        await db.write(adding("a"))
    await admin.close()
    await db.write(adding("b"))


async def test_a_crash_of_the_server_empties_the_table_that_tells_and_a_stop_does_not(
    server: OwnServer, fragile: PostgresDatabase
) -> None:
    async def run() -> str:
        await fragile.write(adding(f"{time.monotonic_ns()}"))  # on a connection that is known to be good
        return str(await fragile.statement(lambda c: c.fetchval("SELECT id FROM hopper_server_run")))

    first = await run()
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    assert await run() == first
    await asyncio.to_thread(server.crash)
    await asyncio.to_thread(server.start)
    assert await run() != first


# Under load


class Load:
    """Writers that go on whatever happens; what they were told is kept."""

    def __init__(self, db: PostgresDatabase, writers: int = 16) -> None:
        self.acknowledged: list[str] = []
        self.refused: dict[str, BaseException] = {}
        self._db = db
        self._stop = False
        self._tasks = [asyncio.create_task(self._write(writer)) for writer in range(writers)]

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._stop:
            text = f"{writer}-{number}"
            try:
                await self._db.write(adding(text))
            except Exception as error:
                self.refused[text] = error
            else:
                self.acknowledged.append(text)
            number += 1

    async def grown(self, count: int) -> None:
        """Until so many more have been acknowledged."""
        enough = len(self.acknowledged) + count
        async with asyncio.timeout(60):
            while len(self.acknowledged) < enough:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Stop, and compare what was told with what is there."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        kept = await self._db.read(notes)
        assert len(kept) == len(set(kept))
        assert set(self.acknowledged) <= set(kept)
        for text, error in self.refused.items():
            assert isinstance(error, HopperError), repr(error)
            if "not known" not in error.message:
                assert text not in kept, error.message
        assert set(kept) <= set(self.acknowledged) | self.refused.keys()


async def test_backends_killed_under_load_cost_nothing(
    db: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 60)  # whatever the machine takes to recover
    load = Load(db)
    for _ in range(10):
        await load.grown(random.Random(7).randint(20, 60))
        (pid,) = {await db.statement(lambda c: c.fetchval("SELECT pg_backend_pid()"))}
        postgres_server().kill_backend(pid)
    await load.grown(50)
    await load.check()
    assert load.refused == {}


@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
async def test_a_server_that_restarts_under_load_loses_nothing_it_acknowledged(
    server: OwnServer, fragile: PostgresDatabase, how: str
) -> None:
    load = Load(fragile)
    for _ in range(3):
        await load.grown(100)
        if how == "crash":
            await asyncio.to_thread(server.crash)
        else:
            await asyncio.to_thread(server.stop, "fast" if how == "fast" else "immediate")
        await asyncio.to_thread(server.start)
    await load.grown(100)
    await load.check()


async def test_a_server_that_stays_away_is_reported_soon_and_served_again_when_it_is_back(
    server: OwnServer, fragile: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 0.5)
    bearable = postgres_connection.Outage._bearable
    waited: list[bool] = []

    def noted(outage: postgres_connection.Outage, error: BaseException, began: float) -> bool:
        waited.append(bearable(outage, error, began))
        return waited[-1]

    monkeypatch.setattr(postgres_connection.Outage, "_bearable", noted)
    await fragile.read(notes)
    seen = fragile.committed.count
    await asyncio.to_thread(server.stop)
    for _ in range(2):
        waited.clear()
        outcomes = await asyncio.gather(
            fragile.write(adding("a")),
            fragile.read(notes),
            fragile.statement(lambda c: c.fetchval("SELECT 1")),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 3
    assert waited  # the first wait a little, in case; these do not wait with them
    assert not any(waited)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(60):
        assert await fragile.write(adding("b")) == "b"
        assert await fragile.read(notes) == ["b"]
        await fragile.committed.wait(after=seen + 1)  # the listener's, beside the write's


async def all_connections(server: OwnServer) -> list[asyncpg.Connection]:
    """Every connection that is to be had."""
    connections: list[asyncpg.Connection] = []
    while True:
        try:
            connections.append(await asyncpg.connect(server.url("postgres")))
        except asyncpg.TooManyConnectionsError:
            return connections


async def test_a_server_without_a_free_connection_is_waited_for_and_then_reported(
    server: OwnServer, fragile: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 0.5)
    hogs = await all_connections(server)
    with pytest.raises(StorageUnavailable, match=r"too many|connection slots"):
        await fragile.read(notes)
    await fragile.write(adding("a"))  # it has its connection
    monkeypatch.setattr(postgres_connection, "PATIENCE_SECONDS", 60)
    reading = asyncio.create_task(fragile.read(notes))
    await hogs.pop().close()
    assert await reading == ["a"]
    # With one connection for all, reads take turns.
    assert await asyncio.gather(*(fragile.read(notes) for _ in range(READERS))) == [["a"]] * READERS
    for hog in hogs:
        await hog.close()
