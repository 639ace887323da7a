"""Several routers on one PostgreSQL database: one router, as far as anybody can tell."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest

from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.decision_pb2 import Policy
from hopper_common.clock import SystemClock
from hopper_common.eventlog import EventLog
from hopper_common.postgres import PostgresDatabase
from hopper_common.postgres_connection import Server, connect
from hopper_common.rpc.errors import from_rpc_error
from hopper_router import tables
from hopper_router.model import Scope
from hopper_router.queue_counts import count_open
from tests.router.harness import ROOT, SECOND, Router, State, a_database, ref, until
from tests.router.test_work import seconds

EVENTS = EventLog(tables.events)


@asynccontextmanager
async def routers(count: int) -> AsyncIterator[list[Router]]:
    """That many routers in real time, with the same projects."""
    async with AsyncExitStack() as stack:
        url = stack.enter_context(a_database("postgresql"))
        made = []
        for _ in range(count):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hopper-"))
            router = Router(Path(directory), SystemClock(), url)
            router.registry.project("web")
            await router.start()
            stack.push_async_callback(router.close)
            made.append(router)
        yield made


@pytest.fixture
async def pair() -> AsyncIterator[list[Router]]:
    """Two routers."""
    async with routers(2) as made:
        yield made


@pytest.mark.usefixtures("no_safety_net")
async def test_what_one_takes_in_a_worker_of_the_other_has_at_once(pair: list[Router]) -> None:
    here, there = pair
    waiting = asyncio.ensure_future(there.claim("projects/web", wait=seconds(30)))
    await until(lambda: _waits(there))
    submitted = await here.submit("a")
    (claimed,) = await waiting
    assert claimed.name == submitted.name
    assert (await here.get(submitted)).claim.worker == "ann"
    (done,) = await here.complete(claimed)  # any router ends what another handed out
    assert done.updated.state == State.STATE_SUCCEEDED


async def _waits(router: Router) -> bool:
    return bool(router.engine.hub._waiting)


@pytest.mark.parametrize("workers", [2, 8, 32, 64])
async def test_a_race_has_one_winner_and_every_loser_is_told_who(pair: list[Router], workers: int) -> None:
    for _ in range(3):
        task = await pair[0].submit("wanted")

        async def race(number: int, name: str = task.name) -> tuple[str, str]:
            request = work_svc.ClaimTasksRequest(queue="projects/web", worker=f"w{number}", task=name)
            try:
                (won,) = (await pair[number % 2].work.ClaimTasks(request)).tasks
            except grpc.aio.AioRpcError as error:
                return "lost", from_rpc_error(error).metadata["holder"]
            return "won", won.claim.worker

        results = await asyncio.gather(*(race(number) for number in range(workers)))
        winners = [who for how, who in results if how == "won"]
        assert len(winners) == 1
        assert {who for how, who in results if how == "lost"} <= set(winners)


async def test_everything_is_handed_out_once(pair: list[Router]) -> None:
    submitted = [
        task.name
        for tasks in await asyncio.gather(*(_submit(router, 100) for router in pair))
        for task in tasks
    ]
    claimed: Counter[str] = Counter()

    async def work(router: Router, worker: str) -> None:
        while found := await router.claim("projects/web", worker, max_tasks=7):
            claimed.update(task.name for task in found)
            results = await router.complete(*found)
            assert all(result.updated.state == State.STATE_SUCCEEDED for result in results)

    await asyncio.gather(*(work(router, f"{n}{w}") for n, router in enumerate(pair) for w in range(8)))
    assert claimed == Counter(submitted)


async def _submit(router: Router, count: int) -> list[pb.Task]:
    return list(await asyncio.gather(*(router.submit(str(n)) for n in range(count))))


async def test_the_same_request_at_both_is_one_task(pair: list[Router]) -> None:
    for _ in range(10):
        request = task_svc.SubmitTaskRequest(
            parent=ROOT, spec=pb.TaskSpec(title="once"), request_id=str(uuid4())
        )
        calls = [router.tasks.SubmitTask(request) for router in pair * 3]
        answers = await asyncio.gather(*calls)
        assert {answer.task.name for answer in answers} == {answers[0].task.name}
        assert {answer.task.generation for answer in answers} == {answers[0].task.generation}
    assert len(await pair[0].found()) == 10


async def test_a_watcher_of_one_sees_what_both_write_in_order(pair: list[Router]) -> None:
    here, there = pair
    watch = here.tasks.WatchTasks(task_svc.WatchTasksRequest())
    messages = aiter(watch)
    assert (await anext(messages)).HasField("snapshot_complete")
    await asyncio.gather(_submit(here, 60), _submit(there, 60))
    seen = [(await anext(messages)).generation for _ in range(120)]
    assert seen == sorted(set(seen))
    logged = await there.db.read(lambda conn: EVENTS.read(conn, after=0, limit=1000))
    assert seen == [event.version for event in logged]
    watch.cancel()


async def test_a_policy_that_one_is_given_binds_the_other(pair: list[Router]) -> None:
    here, there = pair
    policy = Policy(name=f"{ROOT}/policy", source="threshold: 0.1\n")
    request = routing_svc.UpdatePolicyRequest(policy=policy)
    version = (await here.routing.UpdatePolicy(request)).policy.version

    async def known() -> bool:
        directory = there.registry.current
        return there.engine.policies.in_force(ROOT, directory).version == version

    await until(known)


async def test_they_agree_on_who_is_how_busy(pair: list[Router]) -> None:
    here, there = pair
    await asyncio.gather(_submit(here, 25), _submit(there, 25))
    claimed = await there.claim("projects/web", max_tasks=10)
    await here.complete(*claimed)
    await here.cancel((await here.found())[0])
    fresh = (await here.db.read(count_open)).load

    async def agree() -> bool:
        return all(
            router.engine._load.by_project["projects/web"] == fresh.by_project["projects/web"]
            for router in pair
        )

    assert fresh.by_project["projects/web"] == 39
    await until(agree)


async def test_a_limit_holds_over_both(pair: list[Router]) -> None:
    for router in pair:
        router.registry.change("projects/web", max_running=3)
    await _submit(pair[0], 20)
    claims = [router.claim("projects/web", f"w{n}", max_tasks=2) for n, router in enumerate(pair * 5)]
    claimed = [task for tasks in await asyncio.gather(*claims) for task in tasks]
    assert len(claimed) == 3
    await pair[1].complete(claimed[0])
    assert len(await pair[0].claim("projects/web", "next", max_tasks=5)) == 1


async def test_clocks_go_on_when_the_one_who_keeps_them_is_gone() -> None:
    async with routers(2) as (first, second):
        roles = [
            asyncio.ensure_future(router.db.lead("sweep", router.clockwork.sweep_forever))
            for router in (first, second)
        ]
        try:
            task = await first.submit("left lying")
            await second.claim_one("projects/web", lease_duration=seconds(1))
            roles[0].cancel()
            await asyncio.wait([roles[0]])

            async def free() -> bool:
                return (await second.get(task)).state == State.STATE_QUEUED

            await until(free)
        finally:
            for role in roles:
                role.cancel()
            await asyncio.gather(*roles, return_exceptions=True)


async def test_what_waits_for_its_time_gets_ready_though_who_took_it_in_is_gone(pair: list[Router]) -> None:
    here, there = pair
    clocks = pb.Clocks()
    clocks.start_after.FromDatetime(datetime.now(UTC) + SECOND)
    task = await there.submit("later", clocks=clocks)
    await there.stop()

    async def claimed() -> list[pb.Task]:
        await here.clockwork.sweep()
        return await here.claim("projects/web")

    assert [found.name for found in await until(claimed)] == [task.name]


async def test_an_end_and_a_new_dependent_never_miss_each_other(pair: list[Router]) -> None:
    """One router ends a task while the other takes in one that depends on it: the dependent gets ready, always."""
    for _ in range(15):
        await pair[0].submit("first")
        first = await pair[0].claim_one("projects/web")
        request: Any = task_svc.SubmitTaskRequest(
            parent=ROOT, spec=pb.TaskSpec(title="second", dependencies=[first.name])
        )
        _, answer = await asyncio.gather(pair[0].complete(first), pair[1].tasks.SubmitTask(request))
        second = await pair[0].claim_one("projects/web")
        assert second.name == answer.task.name
        await pair[1].work.CompleteTasks(
            work_svc.CompleteTasksRequest(completions=[work_svc.Completion(claim=ref(second))])
        )


async def test_a_desk_is_one_queue_over_both(pair: list[Router]) -> None:
    for router in pair:
        router.registry.instance("desk", Scope.PERSONAL)
    await asyncio.gather(*(router.submit(parent="instances/desk") for router in pair))
    assert len(await pair[0].claim("instances/desk", max_tasks=5)) == 2


async def test_more_than_a_notification_holds_is_looked_up(pair: list[Router]) -> None:
    """A unit that touches hundreds of projects tells the others to look, and is none the worse for it."""
    here, there = pair
    projects = [f"p{number:03}-with-a-name-that-takes-its-room" for number in range(100)]
    for router in pair:
        for project in projects:
            router.registry.project(project)
    first = await here.submit("first", project="projects/web")
    items = [
        task_svc.SubmitTasksItem(
            spec=pb.TaskSpec(title=project, project=f"projects/{project}", dependencies=[first.name])
        )
        for project in projects
    ]
    answer = await here.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))
    assert all(result.task.name for result in answer.results)

    async def looks() -> bool:
        await there.engine.queues.catch_up()
        load = there.engine._load.by_project
        return {load[f"projects/{project}"] for project in projects} == {1}

    await until(looks)


async def test_what_is_told_is_told_to_others_only() -> None:
    """NOTIFY costs as much as a small insert, and most routers are the only one of their database."""
    async with routers(1) as (alone,):
        heard: list[str] = []
        database = cast(PostgresDatabase, alone.db)
        stranger = await connect(Server(alone.url, "router"), "listener")
        await stranger.add_listener(database.channel, lambda *event: heard.append(event[-1]))
        try:
            await alone.submit("by the hot path")
            await alone.complete(await alone.claim_one("projects/web"))
            await stranger.execute("SELECT 1")  # what was told before is heard before its answer
            assert heard == []
        finally:
            await stranger.close()
