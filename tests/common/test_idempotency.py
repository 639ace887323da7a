"""A request that comes again gets its first answer, once the first one was carried out."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import Connection

from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest, RegisterProjectResponse
from hopper_common.database import Database
from hopper_common.errors import IdempotencyConflict, StorageUnavailable
from hopper_common.idempotency import Requests
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase
from tests.common.toy import REQUESTS, add_note, held_writer, notes, open_toy

METHOD = "hopper.registry.v1.ProjectService/RegisterProject"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[FaultyDatabase]:
    db = FaultyDatabase(await open_toy(database_url))
    yield db
    await db.close()


class Registry:
    """Registers a project by adding a note, and answers how many notes there are."""

    def __init__(self, db: Database) -> None:
        self.clock = ManualClock()
        self.requests = Requests(REQUESTS, self.clock)
        self._db = db

    async def register(
        self, name: str, request_id: str, method: str = METHOD, fail: bool = False
    ) -> RegisterProjectResponse:
        request = RegisterProjectRequest(project=Project(display_name=name), request_id=request_id)

        def work(conn: Connection) -> RegisterProjectResponse:
            def effect() -> RegisterProjectResponse:
                add_note(conn, f"{name} {len(notes(conn))}")
                if fail:
                    raise StorageUnavailable(service="toy")
                return RegisterProjectResponse(project=Project(name=f"projects/{len(notes(conn))}"))

            return self.requests.once(conn, method, request, RegisterProjectResponse, effect)

        return await self._db.write(work)


async def test_the_same_request_gets_the_same_answer_and_one_effect(db: Database) -> None:
    registry = Registry(db)
    first = await registry.register("a", "id-1")
    await registry.register("b", "id-2")
    assert await registry.register("a", "id-1") == first
    assert await db.read(notes) == ["a 0", "b 1"]


async def test_a_request_without_id_is_carried_out_each_time(db: Database) -> None:
    registry = Registry(db)
    await registry.register("a", "")
    await registry.register("a", "")
    assert await db.read(notes) == ["a 0", "a 1"]


@pytest.mark.parametrize(("name", "method"), [("b", METHOD), ("a", "another/Method")])
async def test_the_same_id_for_something_else_is_refused(db: Database, name: str, method: str) -> None:
    registry = Registry(db)
    await registry.register("a", "id-1")
    with pytest.raises(IdempotencyConflict) as caught:
        await registry.register(name, "id-1", method)
    assert caught.value.metadata == {"request_id": "id-1", "method": method}
    assert await db.read(notes) == ["a 0"]


async def test_repeats_that_arrive_together_have_one_effect(db: Database) -> None:
    registry = Registry(db)
    async with held_writer(db):
        tasks = [asyncio.create_task(registry.register("a", "id-1")) for _ in range(10)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*tasks)
    assert all(answer == answers[0] for answer in answers)
    assert await db.read(notes) == ["a 0"]


async def test_a_failure_is_not_remembered(db: Database) -> None:
    registry = Registry(db)
    with pytest.raises(StorageUnavailable):
        await registry.register("a", "id-1", fail=True)
    await registry.register("a", "id-1")
    assert await db.read(notes) == ["a 0"]


async def test_a_caller_whose_answer_was_lost_gets_it_on_retry(db: FaultyDatabase) -> None:
    registry = Registry(db)
    db.set_next_error(StorageUnavailable(service="toy"), at="answer")
    with pytest.raises(StorageUnavailable):
        await registry.register("a", "id-1")
    assert (await registry.register("a", "id-1")).project.name == "projects/1"
    assert await db.read(notes) == ["a 0"]


async def test_what_was_forgotten_is_carried_out_again(db: Database) -> None:
    registry = Registry(db)
    await registry.register("a", "old")
    day_later = registry.clock.advance(timedelta(days=1))
    await registry.register("b", "new")
    assert await db.write(lambda conn: registry.requests.forget(conn, before=day_later)) == 1
    await registry.register("a", "old")
    await registry.register("b", "new")
    assert await db.read(notes) == ["a 0", "b 1", "a 2"]
