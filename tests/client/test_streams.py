"""The SDK on streams, against the real router: workers on Work, callers on SubmitStream."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import count as count_up
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.task_service_pb2 import (
    AnswerTaskRequest,
    SubmitStreamRequest,
    SubmitTasksItem,
    SubmitTasksRequest,
)
from hopper_client import (
    AsyncHopper,
    Hopper,
    NotFound,
    TaskContext,
    TaskFailed,
    Unreachable,
    Worker,
    WorkerStats,
)
from hopper_common.clock import SystemClock
from tests.client.test_worker import Gate, echo, working
from tests.router.harness import ROOT, Router, State, a_router, make_tables, until

QUEUE = "projects/web"


@pytest.fixture(scope="session")
def empty_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of a router, made once."""
    path = tmp_path_factory.mktemp("router") / "router.db"
    asyncio.run(make_tables(str(path)))
    return path


@pytest.fixture
async def router(empty_db: Path) -> AsyncIterator[Router]:
    """A real router, with the project of our queue."""
    async with a_router(empty_db, SystemClock()) as router, router.running():
        router.registry.project("web")
        yield router


@pytest.fixture
async def hopper(router: Router) -> AsyncIterator[AsyncHopper]:
    async with AsyncHopper(f"unix:{router._directory / 's'}") as hopper:
        yield hopper


async def add(router: Router, count: int, **fields: Any) -> list[str]:
    items = [SubmitTasksItem(spec=pb.TaskSpec(title=f"task {number}", **fields)) for number in range(count)]
    answer = await router.tasks.SubmitTasks(SubmitTasksRequest(parent=ROOT, items=items))
    return [result.task.name for result in answer.results]


async def all_in(router: Router, state: State.ValueType, names: list[str]) -> bool:
    return all([(await router.get(name)).state == state for name in names])


# ---------------------------------------------------------------- workers


@pytest.mark.parametrize("concurrency", [1, 7, 300])
async def test_a_worker_works_off_what_is_there(
    router: Router, hopper: AsyncHopper, concurrency: int
) -> None:
    names = await add(router, 400)
    stats = await Worker(hopper, QUEUE, echo, concurrency=concurrency).run(until_idle=True)
    assert stats == WorkerStats(claimed=400, succeeded=400)
    done = [await router.get(name, pb.TASK_VIEW_FULL) for name in names]
    assert [task.result for task in done] == [f"task {number}".encode() for number in range(400)]
    assert {task.attempt for task in done} == {1}


async def test_a_worker_asks_for_no_more_than_it_has_slots_for(router: Router, hopper: AsyncHopper) -> None:
    names = await add(router, 40)
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=3), max_tasks=40) as run:
        await gate.wait_for(lambda: gate.begun == 3)
        assert len(await router.found(states=[State.STATE_RUNNING])) == 3
        gate.open()
        assert (await run).succeeded == 40
    assert gate.most_at_once == 3
    assert await all_in(router, State.STATE_SUCCEEDED, names)


async def test_no_call_is_made_for_a_task_alone(
    router: Router, hopper: AsyncHopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks come, and are completed, on the stream; those that end together are completed together."""
    batches: list[int] = []
    complete = router.engine.hot.complete

    async def counted(ends: Any) -> Any:
        batches.append(len(ends))
        return await complete(ends)

    monkeypatch.setattr(router.engine.hot, "complete", counted)
    await add(router, 1000)
    stats = await Worker(hopper, QUEUE, echo, concurrency=100).run(max_tasks=1000)
    assert stats.succeeded == 1000
    assert sum(batches) == 1000
    assert len(batches) < 200


async def test_failures_lost_claims_and_results_each_go_their_way(
    router: Router, hopper: AsyncHopper
) -> None:
    fails, lost, done = await add(router, 3)
    gate = Gate()

    async def handler(context: TaskContext) -> str:
        if context.task.name == fails:
            raise TaskFailed("NO_BROOM", "there is no broom", permanent=True)
        return await gate(context)

    worker = Worker(hopper, QUEUE, handler, concurrency=3, lease=timedelta(seconds=6))
    async with working(worker, max_tasks=3) as run:
        await gate.wait_for(lambda: gate.begun == 2)
        await router.cancel(lost)
        await gate.wait_for(lambda: gate.cancelled == 1)  # within a third of the lease
        gate.open()
        assert await run == WorkerStats(claimed=3, succeeded=1, failed=1, lost=1)
    assert (await router.get(fails)).state == State.STATE_FAILED
    assert (await router.get(done)).state == State.STATE_SUCCEEDED
    assert sorted(context.lost.is_set() for context in gate.contexts) == [False, True]


async def test_leases_are_renewed_on_the_stream(router: Router, hopper: AsyncHopper) -> None:
    names = await add(router, 5)
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, concurrency=5, lease=timedelta(seconds=6))
    async with working(worker, max_tasks=5) as run:
        await gate.wait_for(lambda: gate.begun == 5)
        claimed = {name: (await router.get(name)).claim.lease_expire_time.ToDatetime() for name in names}

        async def renewed_twice() -> bool:
            now = [(await router.get(name)).claim.lease_expire_time.ToDatetime() for name in names]
            return all(
                end > claimed[name] + timedelta(seconds=3) for name, end in zip(names, now, strict=True)
            )

        await until(renewed_twice)
        gate.open()
        assert (await run).succeeded == 5
    assert {(await router.get(name)).attempt for name in names} == {1}


async def test_a_restart_keeps_the_claims_and_brings_the_results_home(
    router: Router, hopper: AsyncHopper
) -> None:
    names = await add(router, 6)
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=4), max_tasks=6) as run:
        await gate.wait_for(lambda: gate.begun == 4)
        router.engine.stop()
        await router.stop()
        gate.open()  # four end while nobody answers
        await gate.wait_for(lambda: gate.through == 4)
        await router.start()
        async with asyncio.timeout(30):
            assert await run == WorkerStats(claimed=6, succeeded=6)
    assert {(await router.get(name)).attempt for name in names} == {1}


async def test_a_claim_that_was_lost_while_away_is_found_out_at_once(
    router: Router, hopper: AsyncHopper
) -> None:
    """The lease is an hour: only the first message of the new stream can tell so soon."""
    (name,) = await add(router, 1)
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, lease=timedelta(hours=1)), max_tasks=1) as run:
        await gate.wait_for(lambda: gate.begun == 1)
        router.engine.stop()
        await router.stop()
        await router.open()
        await router.engine.run(lambda unit: _cancel(unit, name))
        await router.stop()
        await router.start()
        async with asyncio.timeout(30):
            assert (await run).lost == 1
    assert gate.cancelled == 1


def _cancel(unit: Any, name: str) -> None:
    from hopper_router import placing  # the router's own side

    placing.cancel(unit, name, "")


async def test_stop_lets_what_runs_finish(router: Router, hopper: AsyncHopper) -> None:
    names = await add(router, 5)
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, concurrency=2)
    async with working(worker) as run:
        await gate.wait_for(lambda: gate.begun == 2)
        worker.stop()
        gate.open()
        async with asyncio.timeout(60):
            stats = await run
    assert stats.succeeded == 2
    assert len(await router.found(states=[State.STATE_QUEUED])) == len(names) - 2


async def test_an_idle_worker_stops_at_once(router: Router, hopper: AsyncHopper) -> None:
    worker = Worker(hopper, QUEUE, echo)
    async with working(worker) as run:

        async def waits() -> bool:
            return bool(router.engine.hub._waiting.get(QUEUE))

        await until(waits)
        worker.stop()
        async with asyncio.timeout(15):
            assert await run == WorkerStats()


async def test_a_cancelled_run_gives_its_tasks_back(router: Router, hopper: AsyncHopper) -> None:
    names = await add(router, 3)
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=3)) as run:
        await gate.wait_for(lambda: gate.begun == 3)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert await all_in(router, State.STATE_QUEUED, names)


async def test_a_slot_is_for_others_while_its_task_waits_for_an_answer(
    router: Router, hopper: AsyncHopper
) -> None:
    (asks,) = await add(router, 1)
    began: list[str] = []

    async def handler(context: TaskContext) -> str:
        began.append(context.task.name)
        return await context.ask("which colour?") if context.task.name == asks else "done"

    async with working(Worker(hopper, QUEUE, handler, concurrency=1)) as run:

        async def asked() -> bool:
            return (await router.get(asks)).state == State.STATE_INPUT_REQUIRED

        await until(asked)
        others = await add(router, 3)

        async def others_done() -> bool:
            return await all_in(router, State.STATE_SUCCEEDED, others)

        await until(others_done)
        await router.tasks.AnswerTask(AnswerTaskRequest(name=asks, answer="blue"))

        async def answered() -> bool:
            return (await router.get(asks)).state == State.STATE_SUCCEEDED

        await until(answered)
        assert not run.done()
    assert (await router.get(asks, pb.TASK_VIEW_FULL)).result == b"blue"


async def test_tasks_of_several_slots_share_them(router: Router, hopper: AsyncHopper) -> None:
    await add(router, 4, slots=3)
    await add(router, 8)
    now = most = 0

    async def handler(context: TaskContext) -> None:
        nonlocal now, most
        slots = context.task.spec.slots or 1
        now += slots
        most = max(most, now)
        for _ in range(3):
            await router.db.read(lambda conn: None)
        now -= slots

    stats = await Worker(hopper, QUEUE, handler, concurrency=4).run(max_tasks=12)
    assert stats.succeeded == 12
    assert most <= 4


async def test_a_queue_that_is_not_there_is_raised(router: Router, hopper: AsyncHopper) -> None:
    for options in ({}, {"until_idle": True}):
        with pytest.raises(NotFound) as caught:
            await Worker(hopper, "projects/none", echo).run(**options)
        assert caught.value.reason == "PROJECT_NOT_FOUND"


# ---------------------------------------------------------------- submitting


Submit = Any


@pytest.fixture(params=["async", "blocking"])
def submit_many(request: pytest.FixtureRequest, hopper: AsyncHopper) -> Submit:
    """Submit with either client; returns the answers."""

    async def by_async(items: Any, **options: Any) -> list[Any]:
        return [answer async for answer in hopper.submit_many(items, **options)]

    def by_blocking(items: Any, **options: Any) -> list[Any]:
        with Hopper(hopper.address) as blocking:
            return list(blocking.submit_many(items, **options))

    if request.param == "async":
        return by_async
    return lambda items, **options: asyncio.to_thread(by_blocking, items, **options)


async def test_many_are_submitted_and_answered_in_order(router: Router, submit_many: Submit) -> None:
    answers = await submit_many(f"task {number}" for number in range(1200))
    assert [answer.task.spec.title for answer in answers] == [f"task {number}" for number in range(1200)]
    assert await open_tasks(router) == 1200


async def test_one_that_is_refused_leaves_the_others_alone(router: Router, submit_many: Submit) -> None:
    """Whether by the router, or before it gets there: that one ends the stream, which is not seen."""
    items = [pb.TaskSpec(title=str(number)) for number in range(20)]
    items[5].project = "projects/none"
    items[7].title = ""
    items[19].title = "x" * 10_000
    answers = await submit_many(items)
    reasons = {
        number: answer.error.reason for number, answer in enumerate(answers) if answer.HasField("error")
    }
    assert reasons == {5: "PROJECT_NOT_FOUND", 7: "INVALID_REQUEST", 19: "INVALID_REQUEST"}
    assert answers[7].error.message == "spec.title: is required"
    assert [answer.task.spec.title for answer in answers[8:19]] == [str(number) for number in range(8, 19)]
    assert await open_tasks(router) == 17


async def test_a_repeat_with_the_same_request_ids_adds_nothing(router: Router, submit_many: Submit) -> None:
    requests = [
        SubmitStreamRequest(spec=pb.TaskSpec(title=str(number)), request_id=str(uuid4()))
        for number in range(10)
    ]
    first, second = await submit_many(requests), await submit_many(requests)
    assert [answer.task.name for answer in first] == [answer.task.name for answer in second]
    assert await open_tasks(router) == 10


async def test_a_restart_in_the_middle_loses_and_doubles_nothing(router: Router, hopper: AsyncHopper) -> None:
    count, names, half = 600, [], asyncio.Event()

    async def items() -> AsyncIterator[str]:
        for number in range(count):
            if number == count // 2:
                half.set()
            yield f"task {number}"

    async def submit() -> None:
        async for answer in hopper.submit_many(items()):
            names.append(answer.task.name)

    submitting = asyncio.ensure_future(submit())
    await half.wait()
    router.engine.stop()
    await router.stop()
    await router.start()
    async with asyncio.timeout(60):
        await submitting
    assert len(set(names)) == count
    assert await open_tasks(router) == count


async def open_tasks(router: Router) -> int:
    return await router.engine.read(lambda unit: sum(unit.world.load.by_instance.values()))


async def test_what_the_items_raise_is_raised(router: Router, submit_many: Submit) -> None:
    def items() -> Iterator[str]:
        yield "first"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await submit_many(items())


async def test_nobody_there_is_said_at_once(submit_many: Submit, router: Router) -> None:
    await router.stop()
    with pytest.raises(Unreachable):
        await submit_many(["first"])
    await router.start()


async def test_a_generator_that_is_closed_ends_its_stream(router: Router, hopper: AsyncHopper) -> None:
    endless = (str(number) for number in count_up())
    answers = hopper.submit_many(endless)
    async for answer in answers:
        assert answer.task.spec.title == "0"
        break
    await answers.aclose()
    assert await open_tasks(router) <= 257


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "blocking"])
async def test_a_batch_is_split_and_keeps_its_order_and_its_dependencies(
    router: Router, hopper: AsyncHopper, blocking: bool
) -> None:
    items = [SubmitTasksItem(spec=pb.TaskSpec(title=str(number))) for number in range(1200)]
    items[1].spec.project = "projects/none"
    items[900].after.append(3)
    items[1100].after.extend([4, 1099])
    items[1101].after.append(1)
    if blocking:
        with Hopper(hopper.address) as other:
            results = await asyncio.to_thread(other.submit_batch, items)
    else:
        results = await hopper.submit_batch(items)
    names = [result.task.name for result in results]
    assert [result.task.spec.title for result in results[2:1101]] == [
        str(number) for number in range(2, 1101)
    ]
    assert [number for number, result in enumerate(results) if result.HasField("error")] == [1, 1101]
    assert list(results[900].task.spec.dependencies) == [names[3]]
    assert sorted(results[1100].task.spec.dependencies) == sorted([names[4], names[1099]])


async def test_a_batch_of_large_tasks_is_split_by_size(router: Router, hopper: AsyncHopper) -> None:
    specs = [pb.TaskSpec(title=str(number), payload=b"x" * 60_000) for number in range(150)]
    results = await hopper.submit_batch(specs)
    assert [result.task.spec.title for result in results] == [str(number) for number in range(150)]
