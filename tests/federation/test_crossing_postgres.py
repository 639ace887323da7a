"""Two whole Hoppers, one of which has its router's and its federation's data on PostgreSQL, and each in turn away."""

from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from hopper.federation.v1.delegation_pb2 import DELEGATION_STATE_COMPLETED, DELEGATION_STATE_RUNNING
from hopper.router.v1.task_pb2 import Task
from hopper_testing.postgres import postgres_server
from hopper_testing.processes import temporary_directory
from tests.federation.hoppers import WholeHopper, found, pair
from tests.federation.test_crossing import Reviewer

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Two(NamedTuple):
    """One with its data in files, one with it on PostgreSQL; and who works at both."""

    files: WholeHopper
    server: WholeHopper
    reviewer: Reviewer
    database: str

    def sides(self, here: str) -> tuple[WholeHopper, WholeHopper]:
        """Who hands over, and who takes over."""
        return (self.files, self.server) if here == "files" else (self.server, self.files)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[Two]:
    """Paired and trusted; each can do something that the other cannot."""
    database = postgres_server().create_database()
    on_server = {"HOPPER_ROUTER_DATABASE": database, "HOPPER_FEDERATION_DATABASE": database}
    with temporary_directory() as directory:
        files, server = WholeHopper(directory / "files"), WholeHopper(directory / "server", **on_server)
        async with files.running(), server.running():
            await pair(files, server)
            reviewer = Reviewer()
            for one, other in ((files, server), (server, files)):
                await one.project("reviews", f"docs.{one.name}")
                await one.work("reviews", reviewer)
                await one.trust(other.name)
            yield Two(files, server, reviewer, database)


@pytest.mark.parametrize("side", ["files", "server"])
async def test_a_task_crosses_and_its_result_comes_back(two: Two, side: str) -> None:
    here, there = two.sides(side)
    await here.offers(f"docs.{there.name}")
    done = await here.reached(await here.submit("a paper", f"docs.{there.name}"), Task.STATE_SUCCEEDED)
    assert (done.project, done.result) == (f"projects/peer-{there.name}", b"read: a paper")
    for hopper in (here, there):
        assert (await hopper.hand_over(DELEGATION_STATE_COMPLETED)).title == "a paper"


@pytest.mark.parametrize("side", ["files", "server"])
async def test_what_is_on_the_server_is_there_when_it_was_started_anew(two: Two, side: str) -> None:
    """As who hands over, and as who takes over."""
    here, there = two.sides(side)
    two.reviewer.again()
    await here.offers(f"docs.{there.name}")
    name = await here.submit("wait for it", f"docs.{there.name}")
    await two.reviewer.begun.wait()
    await here.hand_over(DELEGATION_STATE_RUNNING)
    await two.server.stop()
    two.reviewer.may_end.set()
    await two.server.start()
    await two.server.work("reviews", two.reviewer)
    assert (await here.reached(name, Task.STATE_SUCCEEDED)).result == b"read: wait for it"


def who_leads(database: str, what: str = "max(pid)") -> int:
    """The connection that this Hopper's being the federation service hangs on."""
    name = urlsplit(database).path[1:]
    query = f"SELECT coalesce({what}, 0) FROM pg_stat_activity WHERE datname = '{name}'"
    held = "AND application_name = 'hopper federation leader'"
    return int(postgres_server().execute(f"{query} {held}"))


async def test_who_is_cut_off_from_the_database_for_a_moment_goes_on_as_after_a_start(two: Two) -> None:
    """It has lost its role with the connection, and is the federation service again once it has another one."""
    here, there, reviewer = two.files, two.server, two.reviewer

    async def leads() -> int | None:
        return who_leads(two.database) or None

    reviewer.again()
    await here.offers(f"docs.{there.name}")
    name = await here.submit("wait, it is back soon", f"docs.{there.name}")
    await reviewer.begun.wait()
    before = await found(leads)
    who_leads(two.database, "count(pg_terminate_backend(pid))")

    async def again() -> bool | None:
        return who_leads(two.database) not in (0, before) or None

    await found(again)
    reviewer.may_end.set()
    assert (await here.reached(name, Task.STATE_SUCCEEDED)).result == b"read: wait, it is back soon"
    assert (await there.hand_over(DELEGATION_STATE_COMPLETED)).title == "wait, it is back soon"
    back = await there.submit("the other way", f"docs.{here.name}")
    assert (await there.reached(back, Task.STATE_SUCCEEDED)).result == b"read: the other way"
