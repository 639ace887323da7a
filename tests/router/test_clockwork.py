"""Housekeeping: what has served its time is forgotten, and nothing that somebody still needs."""

import uuid
from datetime import timedelta

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_router.clockwork import CLOCKS_APART, KEEP_EVENTS, KEEP_REQUESTS, Clockwork
from hopper_router.store_sql import EPISODES_SENT, EVENTS, Store
from tests.router.harness import ROOT, Router
from tests.router.test_work import seconds


async def log(router: Router) -> tuple[int, int]:
    """The oldest and the newest version of the log."""
    return await router.db.read(lambda conn: (EVENTS.oldest(conn), EVENTS.head(conn)))


async def told(router: Router, version: int) -> None:
    """Memory has been told up to there."""
    await router.db.write(lambda conn: Store(conn).put_value(EPISODES_SENT, str(version).encode()))


def request(title: str, request_id: str) -> svc.SubmitTaskRequest:
    return svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title=title), request_id=request_id)


async def test_old_events_stay_until_memory_was_told(router: Router) -> None:
    router.registry.project("web")
    await router.submit()
    _, old = await log(router)
    router.clock.advance(KEEP_EVENTS + timedelta(seconds=1))
    await router.submit()
    _, newest = await log(router)

    await router.clockwork.housekeep()
    assert await log(router) == (1, newest)

    await told(router, old - 1)
    await router.clockwork.housekeep()
    assert await log(router) == (old, newest)


async def test_young_events_stay_though_memory_was_told(router: Router) -> None:
    router.registry.project("web")
    await router.submit()
    _, old = await log(router)
    router.clock.advance(KEEP_EVENTS + timedelta(seconds=1))
    await router.submit()
    _, newest = await log(router)

    await told(router, newest)
    await router.clockwork.housekeep()
    assert await log(router) == (old + 1, newest)


async def test_a_request_is_answered_again_for_a_day(router: Router) -> None:
    router.registry.project("web")
    repeated = request("work", str(uuid.uuid4()))
    first = await router.tasks.SubmitTask(repeated)

    router.clock.advance(KEEP_REQUESTS - timedelta(seconds=1))
    await router.clockwork.housekeep()
    assert await router.tasks.SubmitTask(repeated) == first

    router.clock.advance(timedelta(seconds=2))
    await router.clockwork.housekeep()
    assert (await router.tasks.SubmitTask(repeated)).task.name != first.task.name


async def test_a_lease_ends_when_it_has_for_its_owner_too_whose_clock_may_be_behind(router: Router) -> None:
    router.registry.project("web")
    await router.submit("a")
    await router.claim_one("projects/web", lease_duration=seconds(10))
    clockwork = Clockwork(router.engine, apart=CLOCKS_APART)
    router.clock.advance(timedelta(seconds=10) + CLOCKS_APART - timedelta(milliseconds=1))
    assert await clockwork.sweep() == 0
    router.clock.advance(timedelta(milliseconds=1))
    assert await clockwork.sweep() == 1
