"""Which process is the federation service, as its callers see it."""

import asyncio
from pathlib import Path

from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from tests.federation.harness import PATIENCE, RunningFederation
from tests.federation.test_crossing_postgres import who_leads


async def test_who_loses_the_role_and_has_it_again_refuses_nobody_meanwhile(
    place: Path, clock: ManualClock
) -> None:
    """A process that hung for some seconds, say: nobody else has the role, so nobody is told to ask another."""
    database = postgres_server().create_database()
    alice = RunningFederation(place / "alice", clock, database)
    await alice.start()
    try:
        before = who_leads(database)
        assert before
        who_leads(database, "count(pg_terminate_backend(pid))")
        async with asyncio.timeout(PATIENCE):
            while who_leads(database) in (0, before):
                assert await alice.peers() == []
    finally:
        await alice.close()
