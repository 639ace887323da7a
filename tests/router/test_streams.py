"""Work and SubmitStream over real gRPC: order, flow control, ends of every kind; and a thousand who wait."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as svc
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.errors import StorageUnavailable
from hopper_common.rpc.channel import OPTIONS, open_channel
from hopper_router import work_stream
from hopper_router.hot import Want
from hopper_router.hub import Hub
from hopper_router.work_stream import BATCH
from tests.router.harness import ROOT, Code, Router, State, ref, until

WINDOW = 256


class Stream:
    """A client's end of a stream of either kind."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def say(self, message: Any) -> None:
        await self.call.write(message)

    async def hear(self) -> Any:
        async with asyncio.timeout(60):
            return await self.call.read()

    async def hear_out(self) -> None:
        """Hear what is on its way, until the end."""
        with suppress(grpc.aio.AioRpcError):
            while await self.hear() is not grpc.aio.EOF:
                pass

    async def half_close(self) -> None:
        await self.call.done_writing()

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(60):
            code = await self.call.code()
        assert isinstance(code, grpc.StatusCode)
        return code


class WorkStream(Stream):
    async def work(self, **message: Any) -> None:
        await self.say(svc.WorkRequest(**message))

    async def slots(self, free: int) -> None:
        await self.work(slots=svc.WorkSlots(free=free))

    async def assigned(self, count: int) -> list[pb.Task]:
        got: list[pb.Task] = []
        while len(got) < count:
            answer = await self.hear()
            assert answer.WhichOneof("message") == "assigned", answer
            got += answer.assigned.tasks
        assert len(got) == count
        return got

    async def answered(self) -> list[svc.ClaimResult]:
        answer = await self.hear()
        assert answer.WhichOneof("message") == "answer", answer
        return list(answer.answer.results)


@asynccontextmanager
async def opened(router: Router, queue: str, worker: str = "ann") -> AsyncIterator[WorkStream]:
    stream = WorkStream(router.work.Work())
    await stream.work(open=svc.WorkOpen(queue=queue, worker=worker))
    try:
        yield stream
    finally:
        stream.call.cancel()


def channel_to(router: Router) -> grpc.aio.Channel:
    """A connection that outlives the router's stop."""
    return open_channel(f"unix:{router._directory / 's'}")


def completion(*tasks: pb.Task) -> svc.CompleteTasksRequest:
    return svc.CompleteTasksRequest(completions=[svc.Completion(claim=ref(task)) for task in tasks])


def renewal(*tasks: pb.Task) -> svc.RenewClaimsRequest:
    return svc.RenewClaimsRequest(claims=map(ref, tasks))


async def submit_many(router: Router, count: int, **fields: Any) -> None:
    for start in range(0, count, 1000):
        items = [
            task_svc.SubmitTasksItem(spec=pb.TaskSpec(title=str(number), **fields))
            for number in range(start, min(count, start + 1000))
        ]
        answer = await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))
        assert all(result.HasField("task") for result in answer.results)


async def states(router: Router, state: State.ValueType) -> list[pb.Task]:
    return await router.found(states=[state])


# ---------------------------------------------------------------- Work: what is said and answered


async def test_many_messages_in_flight_are_answered_in_order(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 40)
    async with opened(router, web) as stream:
        await stream.slots(40)
        tasks = await stream.assigned(40)
        said: list[list[str]] = []
        for pair in zip(tasks[::2], tasks[1::2], strict=True):
            await stream.work(renew=renewal(*pair))
            await stream.work(complete=completion(pair[0]))
            await stream.work(fail=svc.FailTaskRequest(claim=ref(pair[1]), failure=pb.Failure(reason="X")))
            said += [[task.name for task in pair], [pair[0].name], [pair[1].name]]
        heard = [await stream.answered() for _ in said]
    assert [[result.task for result in results] for results in heard] == said
    assert all(result.HasField("updated") for results in heard for result in results)


async def test_messages_about_one_task_take_effect_in_order(live_router: Router) -> None:
    """A renewal is one set, a report one transaction: left to themselves they would overtake each other."""
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 10)
    async with opened(router, web) as stream:
        await stream.slots(10)
        tasks = await stream.assigned(10)
        for task in tasks:
            progress = svc.ReportProgressRequest(claim=ref(task), progress=pb.Progress(fraction=0.5))
            await stream.work(progress=progress)
            await stream.work(complete=completion(task))
            await stream.work(renew=renewal(task))
        for _ in tasks:
            for expected in ("updated", "updated", "error"):
                (result,) = await stream.answered()
                assert result.WhichOneof("result") == expected
        assert result.error.reason == "STALE_TOKEN"


async def test_tasks_come_while_an_answer_is_awaited(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 3)
    complete, go_on = router.engine.hot.complete, asyncio.Event()

    async def slow(ends: Any) -> Any:
        await go_on.wait()
        return await complete(ends)

    monkeypatch.setattr(router.engine.hot, "complete", slow)
    async with opened(router, web) as stream:
        await stream.slots(1)
        (first,) = await stream.assigned(1)
        await stream.work(complete=completion(first))
        await stream.work(renew=renewal(first))  # waits for its turn
        await stream.slots(2)
        await stream.assigned(2)
        go_on.set()
        (done,) = await stream.answered()
        assert done.updated.state == State.STATE_SUCCEEDED
        (late,) = await stream.answered()
        assert late.error.reason == "STALE_TOKEN"


async def test_a_stream_outlives_calls_that_are_refused(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 2)
    complete = router.engine.hot.complete
    troubles = [StorageUnavailable("the disk is gone")]

    async def troubled(ends: Any) -> Any:
        if troubles:
            raise troubles.pop()
        return await complete(ends)

    monkeypatch.setattr(router.engine.hot, "complete", troubled)
    async with opened(router, web) as stream:
        await stream.slots(2)
        tasks = await stream.assigned(2)
        await stream.work(complete=completion(*tasks))
        refused = await stream.answered()
        assert [result.error.reason for result in refused] == ["STORAGE_UNAVAILABLE"] * 2
        await stream.work(complete=completion(*tasks))
        assert all(result.HasField("updated") for result in await stream.answered())


async def test_answers_to_what_came_before_a_bad_message_arrive(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 1)
    async with opened(router, web) as stream:
        await stream.slots(1)
        (task,) = await stream.assigned(1)
        await stream.work(complete=completion(task))
        await stream.work(renew=svc.RenewClaimsRequest())
        (done,) = await stream.answered()
        assert done.HasField("updated")
        assert await stream.code() == Code.INVALID_ARGUMENT


async def test_a_stream_that_is_half_closed_is_answered_and_ends(live_router: Router) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 50)
    async with opened(router, web) as stream:
        await stream.slots(50)
        tasks = await stream.assigned(50)
        for task in tasks:
            await stream.work(complete=completion(task))
        await stream.half_close()
        for task in tasks:
            (result,) = await stream.answered()
            assert (result.task, result.updated.state) == (task.name, State.STATE_SUCCEEDED)
        assert await stream.hear() is grpc.aio.EOF
        assert await stream.code() == Code.OK


# ---------------------------------------------------------------- Work: what is assigned


async def test_a_thousand_slots_are_filled_in_large_claims(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    web = router.registry.project("web")
    await submit_many(router, 1000)
    claims = watched_claims(router, monkeypatch)
    async with opened(router, web) as stream:
        await stream.slots(1000)
        tasks = await stream.assigned(1000)
        assert len({task.name for task in tasks}) == 1000
        await stream.work(complete=completion(*tasks))
        assert {result.updated.state for result in await stream.answered()} == {State.STATE_SUCCEEDED}
    assert [want.most for wants in claims for want in wants] == [BATCH] * (1000 // BATCH)


async def test_slots_may_be_said_at_any_time(live_router: Router) -> None:
    """Whatever is said meanwhile, no more comes than was ever free, and in the end all that is there."""
    router = live_router
    web = router.registry.project("web")
    chance = random.Random(7)
    async with opened(router, web) as stream:
        total = 0
        for _ in range(30):
            count = chance.randrange(1, 8)
            for _ in range(chance.randrange(3)):
                await stream.slots(chance.randrange(4) and 0)
            await stream.slots(count)
            await submit_many(router, count)
            tasks = await stream.assigned(count)
            total += len(tasks)
            await stream.work(complete=completion(*tasks))
            await stream.answered()
    assert len(await states(router, State.STATE_SUCCEEDED)) == total
    assert await router.found() == []


def watched_claims(router: Router, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Want]]:
    """Every claim statement from now on, with what was wanted by it."""
    seen: list[Sequence[Want]] = []
    store: Any = router.engine.hot._store
    claim = store.claim

    async def watched(wants: Sequence[Want], *more: Any) -> Any:
        seen.append(wants)
        return await claim(wants, *more)

    monkeypatch.setattr(store, "claim", watched)
    return seen


async def test_a_claim_under_way_when_its_worker_goes_is_released(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    web = router.registry.project("web")
    task = await router.submit()
    claim, claimed, go_on = router.engine.hot.claim, asyncio.Event(), asyncio.Event()

    async def slow(want: Want) -> Any:
        tasks = await claim(want)
        claimed.set()
        await go_on.wait()
        return tasks

    stop_assigning, left = work_stream.WorkStream._stop_assigning, asyncio.Event()

    def leaving(stream: work_stream.WorkStream) -> None:
        left.set()
        stop_assigning(stream)

    monkeypatch.setattr(router.engine.hot, "claim", slow)
    monkeypatch.setattr(work_stream.WorkStream, "_stop_assigning", leaving)
    async with opened(router, web) as stream:
        await stream.slots(1)
        await claimed.wait()
        assert (await router.get(task)).state == State.STATE_RUNNING
        stream.call.cancel()
        await left.wait()  # before that, what is claimed may still be delivered
    go_on.set()

    async def free_again() -> bool:
        return (await router.get(task)).state == State.STATE_QUEUED

    await until(free_again)
    assert (await router.get(task)).attempt == 0
    assert (await router.claim_one(web, "bob")).name == task.name


async def test_what_was_not_sent_is_released_and_the_rest_lives_on(live_router: Router) -> None:
    """A worker that does not read gets what fits on the way; the others get the rest as soon as it goes."""
    router = live_router
    web = router.registry.project("web")
    payload = b"x" * 60_000
    for _ in range(4):
        items = [task_svc.SubmitTasksItem(spec=pb.TaskSpec(title="big", payload=payload)) for _ in range(50)]
        await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))
    narrow = (("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    address = f"unix:{router._directory / 's'}"
    async with grpc.aio.insecure_channel(address, options=[*OPTIONS, *narrow]) as channel:
        stream = WorkStream(WorkServiceStub(channel).Work())
        await stream.work(open=svc.WorkOpen(queue=web, worker="ann"))
        await stream.slots(200)

        async def all_claimed() -> bool:
            return len(await states(router, State.STATE_RUNNING)) == 200

        await until(all_claimed)
        (first, *_) = (await stream.hear()).assigned.tasks
        stream.call.cancel()

    async def some_released() -> bool:
        return len(await states(router, State.STATE_QUEUED)) > 0

    await until(some_released)
    queued, running = await states(router, State.STATE_QUEUED), await states(router, State.STATE_RUNNING)
    assert len(queued) + len(running) == 200
    assert first.name in {task.name for task in running}
    assert (
        len(running) > 100
    )  # of three parts: also the one whose writing was cut short, for it may have arrived
    assert {task.attempt for task in queued} == {0}
    async with opened(router, web) as stream:
        await stream.work(renew=renewal(first))
        (kept,) = await stream.answered()
        assert kept.HasField("updated")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_server_that_stops_tells_streams_and_their_claims_live_on(router: Router, busy: bool) -> None:
    web = router.registry.project("web")
    await submit_many(router, 10)
    async with channel_to(router) as channel:
        stream = WorkStream(WorkServiceStub(channel).Work())
        await stream.work(open=svc.WorkOpen(queue=web, worker="ann"))
        await stream.slots(10)
        tasks = await stream.assigned(10)
        if busy:
            for task in tasks[:5]:
                await stream.work(renew=renewal(task))
        router.engine.stop()
        await router.stop()
        await stream.hear_out()
        assert await stream.code() == Code.UNAVAILABLE
    await router.start()
    async with opened(router, web) as again:
        await again.work(renew=renewal(*tasks))
        assert all(result.HasField("updated") for result in await again.answered())


# ---------------------------------------------------------------- waiting for work


async def test_of_hundreds_who_wait_one_gets_the_task_and_one_looks(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    web = router.registry.project("web")
    await router.followed()  # which wakes everybody: before they wait
    polls = [
        asyncio.ensure_future(router.claim(web, f"w{number}", wait=Duration(seconds=30)))
        for number in range(300)
    ]

    async def all_wait() -> bool:
        return len(router.engine.hub._waiting.get(web, ())) == 300

    await until(all_wait, timeout=60)
    await router.engine.hot._claims.close()  # they register before they look: until all have looked
    claims = watched_claims(router, monkeypatch)
    tasks = [await router.submit() for _ in range(3)]

    async def three_done() -> bool:
        return sum(poll.done() for poll in polls) == 3

    await until(three_done)
    got = [task.name for poll in polls if poll.done() for task in poll.result()]
    assert sorted(got) == sorted(task.name for task in tasks)
    # One each, with room for a look or two that come to nothing.
    assert 3 <= sum(map(len, claims)) <= 6
    router.engine.stop()
    async with asyncio.timeout(60):
        rest = await asyncio.gather(*polls)
    assert sum(map(len, rest)) == 3


async def test_as_many_are_woken_as_can_take_what_is_ready() -> None:
    hub = Hub()
    small, large, last = hub.waiting("q"), hub.waiting("q", 10), hub.waiting("q", 10)
    hub.wake({"q": 8})
    assert (small.result(), large.result(), last.done()) == (1, 7, False)
    hub.leave("q", large, looks_again=False)  # it goes, and its seven are for the next
    assert last.result() == 7
    hub.leave("q", small, looks_again=True)
    hub.leave("q", last, looks_again=True)
    assert hub._waiting == {}


async def test_the_safety_net_sends_one_to_look_and_the_next_if_that_finds_something() -> None:
    hub = Hub(safety_net=0.01, jitter=lambda: 0.5)
    waiters = [hub.waiting("q") for _ in range(3)]
    async with asyncio.timeout(60):
        assert await waiters[0] == 1
    assert not waiters[1].done()
    again = hub.waiting("q")  # it has looked again,
    hub.leave("q", waiters[0], looks_again=True)
    hub.leave("q", again, looks_again=False, found=True)  # and found something
    assert waiters[1].done()
    for waiter in waiters[1:]:
        hub.leave("q", waiter, looks_again=True)
    assert hub._waiting == {}


# ---------------------------------------------------------------- SubmitStream


def request(title: str, **fields: Any) -> task_svc.SubmitStreamRequest:
    return task_svc.SubmitStreamRequest(
        parent=ROOT, spec=pb.TaskSpec(title=title, **fields), request_id=str(uuid4())
    )


@asynccontextmanager
async def submitting(router: Router) -> AsyncIterator[Stream]:
    stream = Stream(router.tasks.SubmitStream())
    try:
        yield stream
    finally:
        stream.call.cancel()


async def test_answers_come_in_the_order_of_the_requests(live_router: Router) -> None:
    """Some are taken in one by one and some in sets, some are refused; each answer is in its place."""
    router = live_router
    router.registry.project("web")
    first = await router.submit("first")
    async with submitting(router) as stream:
        kinds = []
        for number in range(300):
            kind = ("plain", "waits", "refused")[number % 3]
            kinds.append(kind)
            fields: dict[str, Any] = {
                "waits": {"dependencies": [first.name]},
                "refused": {"project": "projects/no"},
            }
            await stream.say(request(f"{number}", **fields.get(kind, {})))
        await stream.half_close()
        answers = [await stream.hear() for _ in range(300)]
        assert await stream.hear() is grpc.aio.EOF
        assert await stream.code() == Code.OK
    for number, (kind, answer) in enumerate(zip(kinds, answers, strict=True)):
        if kind == "refused":
            assert (answer.error.code, answer.error.reason) == (5, "PROJECT_NOT_FOUND")
            assert dict(answer.error.metadata) == {"project": "projects/no"}
        else:
            assert answer.task.spec.title == str(number)
            assert answer.task.state == State.STATE_QUEUED
    assert len(await router.found()) == 201


async def test_a_repeat_on_another_stream_is_the_first_answer_again(live_router: Router) -> None:
    router = live_router
    router.registry.project("web")
    requests = [request(str(number)) for number in range(20)]
    names = []
    for _ in range(2):
        async with submitting(router) as stream:
            for each in requests:
                await stream.say(each)
            names.append([(await stream.hear()).task.name for _ in requests])
    assert names[0] == names[1]
    unary = task_svc.SubmitTaskRequest(parent=ROOT, spec=requests[0].spec, request_id=requests[0].request_id)
    assert (await router.tasks.SubmitTask(unary)).task.name == names[0][0]
    assert len(await router.found()) == 20


async def test_no_more_than_the_window_is_in_work(
    live_router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = live_router
    router.registry.project("web")
    submit, go_on = router.engine.hot.submit, asyncio.Event()
    in_work = 0

    async def slow(call: Any) -> Any:
        nonlocal in_work
        in_work += 1
        await go_on.wait()
        return await submit(call)

    monkeypatch.setattr(router.engine.hot, "submit", slow)
    async with submitting(router) as stream:
        for number in range(2 * WINDOW):
            await stream.say(request(str(number)))

        async def full() -> bool:
            return in_work >= WINDOW

        await until(full)
        for _ in range(50):
            await router.db.read(lambda conn: None)
        assert in_work == WINDOW
        go_on.set()
        assert [(await stream.hear()).task.spec.title for _ in range(2 * WINDOW)] == [
            str(number) for number in range(2 * WINDOW)
        ]


async def test_who_does_not_read_is_not_read(live_router: Router) -> None:
    router = live_router
    router.registry.project("web")
    # Far more than fits on the way, there and back: an answer has the tags, and not the description.
    count, tags = 4000, [f"{'x' * 97}{number:03}" for number in range(64)]
    async with submitting(router) as stream:

        async def write() -> None:
            for number in range(count):
                await stream.say(request(str(number), tags=tags))
            await stream.half_close()

        writing = asyncio.ensure_future(write())
        seen = -1

        async def stands_still() -> bool:
            nonlocal seen
            before, seen = seen, await open_tasks(router)
            for _ in range(200):
                await router.db.read(lambda conn: None)
            return before == seen > 0

        await until(stands_still, timeout=60)
        assert seen < count
        assert not writing.done()
        for number in range(count):
            assert (await stream.hear()).task.spec.title == str(number)
        await writing
        assert await stream.hear() is grpc.aio.EOF
    assert await open_tasks(router) == count


async def open_tasks(router: Router) -> int:
    return await router.engine.read(lambda unit: sum(unit.world.load.by_instance.values()))


async def test_a_stream_that_is_cancelled_leaves_whole_tasks_only(live_router: Router) -> None:
    router = live_router
    router.registry.project("web")
    async with submitting(router) as stream:
        for number in range(200):
            await stream.say(request(str(number)))
        heard = [(await stream.hear()).task.name for _ in range(10)]
        stream.call.cancel()
        assert await stream.code() == Code.CANCELLED
    await router.engine.hot.close()
    found = {task.name: task for task in await router.found()}
    assert found.keys() >= set(heard)
    assert {task.state for task in found.values()} == {State.STATE_QUEUED}
    for name in found:
        assert (await router.get(name)).decision


async def test_a_bad_request_ends_the_stream_after_the_answers_before_it(live_router: Router) -> None:
    router = live_router
    router.registry.project("web")
    async with submitting(router) as stream:
        for number in range(5):
            await stream.say(request(str(number)))
        await stream.say(task_svc.SubmitStreamRequest(parent=ROOT))
        assert [(await stream.hear()).task.spec.title for _ in range(5)] == list("01234")
        assert await stream.code() == Code.INVALID_ARGUMENT


async def test_a_server_that_stops_tells_who_submits(router: Router) -> None:
    router.registry.project("web")
    async with channel_to(router) as channel:
        stream = Stream(TaskServiceStub(channel).SubmitStream())
        await stream.say(request("first"))
        name = (await stream.hear()).task.name
        router.engine.stop()
        await router.stop()
        assert await stream.code() == Code.UNAVAILABLE
    await router.start()
    assert (await router.get(name)).state == State.STATE_QUEUED
