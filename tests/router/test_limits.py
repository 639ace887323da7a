"""What projects limit, what tasks cost, whose they are: claims over real gRPC, on both engines."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as svc
from hopper_router.model import InstanceState, RateLimit, Scope
from tests.router.harness import MINUTE, ROOT, SECOND, Code, Reason, Router, State, ref, refusal, until
from tests.router.test_work import Stream, ask, opened, release


def titles(tasks: list[pb.Task]) -> list[str]:
    return [task.spec.title for task in tasks]


async def submit_all(router: Router, *specs: pb.TaskSpec, parent: str = ROOT) -> None:
    items = [task_svc.SubmitTasksItem(spec=spec) for spec in specs]
    request = task_svc.SubmitTasksRequest(parent=parent, items=items)
    for result in (await router.tasks.SubmitTasks(request)).results:
        assert not result.HasField("error")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("queue_of", ["project", "instance"])
async def test_no_more_of_a_key_run_than_may(router: Router, queue_of: str) -> None:
    web = router.registry.project("web", max_running_per_key=2)
    team = router.registry.instance("web", Scope.ORCHESTRATION, project=web)
    queue = web if queue_of == "project" else team
    specs = [pb.TaskSpec(title=f"a{n}", concurrency_key="a") for n in range(5)]
    specs += [pb.TaskSpec(title=f"b{n}", concurrency_key="b") for n in range(3)]
    specs += [pb.TaskSpec(title=f"free{n}") for n in range(3)]
    await submit_all(router, *specs, parent=team)
    first = await router.claim(queue, max_tasks=100)
    assert titles(first) == ["a0", "a1", "b0", "b1", "free0", "free1", "free2"]
    assert await router.claim(queue, max_tasks=9) == []
    waiting = next(task for task in await router.found() if task.spec.title == "a2")
    assert (waiting.wait.reason, list(waiting.wait.on)) == (Reason.REASON_CAPACITY, [web])
    assert "key a" in waiting.wait.message
    await refusal(
        router.claim(queue, task=waiting.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=waiting.name,
        wait="CAPACITY",
    )
    await router.complete(first[2])
    assert titles(await router.claim(queue, max_tasks=9)) == ["b2"]
    await ask(router, first[0])  # who waits for an answer runs nothing
    assert (await router.claim_one(queue, task=waiting.name)).spec.title == "a2"


async def test_a_full_key_in_front_holds_nobody_up(router: Router) -> None:
    """However many wait for it: they are left out by the query, not looked at one by one."""
    web = router.registry.project("web", max_running_per_key=1)
    await submit_all(router, *(pb.TaskSpec(title="blocked", concurrency_key="a", priority=90),) * 600)
    await submit_all(router, *(pb.TaskSpec(title=f"t{n}", concurrency_key=f"k{n}") for n in range(20)))
    assert titles(await router.claim(web, max_tasks=3)) == ["blocked", "t0", "t1"]
    assert titles(await router.claim(web)) == ["t2"]


async def test_many_full_keys_in_front_cost_a_few_looks(router: Router) -> None:
    """A claim hands out less than it could rather than look forever; the next goes on."""
    web = router.registry.project("web", max_running_per_key=1)
    for key in range(40):
        await submit_all(router, *(pb.TaskSpec(title="t", concurrency_key=f"k{key}"),) * 30)
    got: Counter[str] = Counter()
    for _ in range(40):
        claimed = await router.claim(web, max_tasks=100)
        got.update(task.spec.concurrency_key for task in claimed)
        if not claimed:
            break
    assert got == {f"k{key}": 1 for key in range(40)}


async def test_keys_count_by_project(router: Router) -> None:
    for name in ("web", "app"):
        router.registry.project(name, name, max_running_per_key=1)
        await submit_all(
            router, *(pb.TaskSpec(title=name, concurrency_key="a", required_capabilities=[name]),) * 2
        )
    assert titles(await router.claim("projects/web", max_tasks=5)) == ["web"]
    assert titles(await router.claim("projects/app", max_tasks=5)) == ["app"]


# ---------------------------------------------------------------- rates


async def test_no_more_start_in_a_period_than_may(router: Router) -> None:
    web = router.registry.project("web", start_rate=RateLimit(3, MINUTE))
    await submit_all(router, *(pb.TaskSpec(title="t"),) * 9)
    first = await router.claim(web, max_tasks=9)
    assert len(first) == 3
    waiting = (await router.found(states=[State.STATE_QUEUED]))[0]
    assert (waiting.wait.reason, list(waiting.wait.on)) == (Reason.REASON_RATE_LIMIT, [web])
    assert waiting.wait.until.ToDatetime() == (router.clock.now() + MINUTE / 3).replace(tzinfo=None)
    await refusal(
        router.claim(web, task=waiting.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=waiting.name,
        wait="RATE_LIMIT",
    )
    await release(router, first[0])  # a start is a start, also of what was given back
    assert await router.claim(web, max_tasks=9) == []
    await router.pass_time(MINUTE / 3)
    assert len(await router.claim(web, max_tasks=9)) == 1
    await router.pass_time(10 * MINUTE)
    assert len(await router.claim(web, max_tasks=9)) == 3


async def test_starts_are_remembered_over_a_restart(router: Router) -> None:
    web = router.registry.project("web", start_rate=RateLimit(2, MINUTE))
    await submit_all(router, *(pb.TaskSpec(title="t"),) * 4)
    assert len(await router.claim(web)) == 1
    (named,) = [task.name for task in await router.found(states=[State.STATE_QUEUED])][:1]
    await router.claim_one(web, task=named)
    await router.stop()
    await router.start()
    assert await router.claim(web, max_tasks=9) == []
    await router.pass_time(MINUTE / 2)
    await router.clockwork.housekeep()
    assert len(await router.claim(web, max_tasks=9)) == 1


async def test_each_key_has_its_own_rate(router: Router) -> None:
    web = router.registry.project("web", start_rate_per_key=RateLimit(1, MINUTE / 2))
    specs = [pb.TaskSpec(title=key, concurrency_key=key) for key in "aaab"]
    await submit_all(router, *specs, pb.TaskSpec(title="free"), pb.TaskSpec(title="free"))
    assert titles(await router.claim(web, max_tasks=9)) == ["a", "b", "free", "free"]
    waiting = (await router.found(states=[State.STATE_QUEUED]))[0]
    assert waiting.wait.reason == Reason.REASON_RATE_LIMIT
    assert "key a" in waiting.wait.message
    await router.pass_time(MINUTE / 2)
    assert titles(await router.claim(web, max_tasks=9)) == ["a"]
    assert await router.claim(web, max_tasks=9) == []


async def test_a_claim_that_is_refused_costs_no_start(router: Router) -> None:
    web = router.registry.project("web", start_rate=RateLimit(1, MINUTE))
    task = await router.submit()
    later = await router.submit()
    await router.tasks.BlockTask(task_svc.BlockTaskRequest(name=task.name, hold=pb.Hold(by="cleo")))
    await refusal(
        router.claim(web, task=task.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=task.name,
        wait="PERSON",
    )
    assert (await router.claim_one(web)).name == later.name


@pytest.mark.parametrize("of", ["key", "rate", "rate per key"])
async def test_waiting_workers_are_woken_as_room_is_made(live_router: Router, of: str) -> None:
    router = live_router
    limits: dict[str, dict[str, Any]] = {
        "key": {"max_running_per_key": 1},
        "rate": {"start_rate": RateLimit(5, SECOND)},
        "rate per key": {"start_rate_per_key": RateLimit(5, SECOND)},
    }
    web = router.registry.project("web", **limits[of])
    count = 3 if of == "key" else 9
    await submit_all(router, *(pb.TaskSpec(title="t", concurrency_key="a"),) * count)
    started = time.perf_counter()
    done: list[pb.Task] = []
    all_done = asyncio.Event()

    async def worker(name: str) -> None:
        while True:
            tasks = await router.claim(web, name, wait=Duration(seconds=30))
            await router.complete(*tasks)
            done.extend(tasks)
            if len(done) >= count:
                all_done.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        workers = [group.create_task(worker(f"w{n}")) for n in range(3)]
        await all_done.wait()
        for one in workers:
            one.cancel()
    assert len({task.name for task in done}) == len(done) == count
    if of != "key":
        assert time.perf_counter() - started > 0.75  # four tokens had to come back


# ---------------------------------------------------------------- slots


async def test_a_task_takes_its_slots_of_a_claim(router: Router) -> None:
    web = router.registry.project("web")
    await submit_all(router, *(pb.TaskSpec(title=str(slots), slots=slots) for slots in (1, 2, 3, 1, 4, 1)))
    assert titles(await router.claim(web, max_tasks=6)) == ["1", "2", "3"]
    assert titles(await router.claim(web, max_tasks=2)) == ["1", "1"]
    assert await router.claim(web, max_tasks=3) == []  # never to who has fewer in all
    assert titles(await router.claim(web, max_tasks=4)) == ["4"]


async def test_smaller_tasks_may_pass_a_large_one_but_not_for_long(router: Router) -> None:
    web = router.registry.project("web")
    await submit_all(router, pb.TaskSpec(title="large", slots=4), *(pb.TaskSpec(title="small"),) * 5)
    busy = await router.claim(web, max_tasks=2, worker_slots=4)
    assert titles(busy) == ["small", "small"]
    await router.pass_time(timedelta(seconds=5))
    assert (
        await router.claim(web, max_tasks=2, worker_slots=4) == []
    )  # its other two get free for the large one
    assert titles(await router.claim(web, "bob", max_tasks=2)) == [
        "small",
        "small",
    ]  # who could never have it
    await router.complete(*busy)
    assert titles(await router.claim(web, max_tasks=4, worker_slots=4)) == ["large"]
    assert titles(await router.claim(web, max_tasks=4, worker_slots=4)) == ["small"]


async def test_slots_on_a_stream(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_all(
        router, pb.TaskSpec(title="3", slots=3), pb.TaskSpec(title="1"), pb.TaskSpec(title="2", slots=2)
    )
    stream = await opened(router, web)
    await stream.say(slots=svc.WorkSlots(free=4))
    got = await stream.assigned()
    while len(got) < 2:
        got += await stream.assigned()
    assert titles(got) == ["3", "1"]
    question = svc.RequestInputRequest(claim=ref(got[0]), input=pb.InputRequest(question="?"))
    await stream.say(ask=question)
    heard = await said_and_assigned(stream)
    assert heard["answer"].updated.state == State.STATE_INPUT_REQUIRED
    assert titles(heard["assigned"]) == ["2"]
    stream.cancel()


async def said_and_assigned(stream: Stream) -> dict[str, Any]:
    """One answer and one assignment, in whatever order they come."""
    heard: dict[str, Any] = {}
    while len(heard) < 2:
        message = await stream.hear()
        kind = message.WhichOneof("message")
        assert kind is not None
        heard[kind] = message.answer.results[0] if kind == "answer" else list(message.assigned.tasks)
    return heard


# ---------------------------------------------------------------- affinity


async def a_chain(router: Router, web: str, worker: str) -> None:
    """Others' work, and a step that follows what that worker has done."""
    first = await router.submit("first")
    await router.submit("second", dependencies=[first.name])
    for title in ("x", "y", "z"):
        await router.submit(title)
    await router.complete(await router.claim_one(web, worker, task=first.name))


async def test_the_next_step_is_for_the_worker_of_the_last(router: Router) -> None:
    web = router.registry.project("web")
    await a_chain(router, web, "ann")
    assert titles(await router.claim(web, "bob")) == ["x"]
    assert titles(await router.claim(web, "ann", max_tasks=2)) == ["second", "y"]


async def test_nobody_waits_long_for_that_worker(router: Router) -> None:
    web = router.registry.project("web")
    await a_chain(router, web, "ann")
    assert titles(await router.claim(web, "bob", max_tasks=9)) == ["x", "y", "z"]
    await router.pass_time(timedelta(seconds=2))
    assert titles(await router.claim(web, "bob", max_tasks=9)) == ["second"]


async def test_priority_comes_before_affinity(router: Router) -> None:
    web = router.registry.project("web")
    await a_chain(router, web, "ann")
    await router.submit("urgent", priority=90)
    assert titles(await router.claim(web, "ann", max_tasks=2)) == ["urgent", "second"]


async def test_affinity_in_an_instance_that_stands_still_is_nothing(router: Router) -> None:
    web = router.registry.project("web")
    run = router.registry.instance("run", Scope.ORCHESTRATION, project=web)
    first = await router.submit("first", parent=run)
    await router.submit("second", parent=run, dependencies=[first.name])
    await router.complete(await router.claim_one(web))
    router.registry.change(run, state=InstanceState.PAUSED)
    assert await router.claim(web) == []
    router.registry.change(run, state=InstanceState.RUNNING)
    assert titles(await router.claim(web)) == ["second"]


async def test_a_waiting_worker_has_what_another_leaves(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    first = await router.submit("first")
    await router.submit("second", dependencies=[first.name])
    claimed = await router.claim_one(web, "ann")
    waiting = asyncio.ensure_future(router.claim(web, "bob", wait=Duration(seconds=30)))
    started = time.perf_counter()
    await router.complete(claimed)
    assert titles(await waiting) == ["second"]
    assert time.perf_counter() - started > 1.9


async def test_a_waiting_worker_has_its_own_at_once(live_router: Router) -> None:
    """Though others have waited longer."""
    router = live_router
    web = router.registry.project("web")
    first = await router.submit("first")
    await router.submit("second", dependencies=[first.name])
    claimed = await router.claim_one(web, "ann")
    await router.followed()  # which wakes everybody: before they wait
    others = [asyncio.ensure_future(router.claim(web, f"w{n}", wait=Duration(seconds=30))) for n in range(3)]
    waiting = asyncio.ensure_future(router.claim(web, "ann", wait=Duration(seconds=30)))

    async def all_wait() -> bool:
        return len(router.engine.hub._waiting.get(web, ())) == 4

    await until(all_wait)
    await router.complete(claimed)
    assert titles(await waiting) == ["second"]
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
