"""WatchTasks: a snapshot and then every change, once, in order, however often the watcher comes and goes."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.router.v1 import delegation_service_pb2 as delegation_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_router.model import Scope
from hopper_router.store_sql import EVENTS
from tests.router.harness import MINUTE, ROOT, Code, Router, State, refusal

FINAL = {State.STATE_SUCCEEDED, State.STATE_FAILED, State.STATE_REJECTED, State.STATE_CANCELLED}


class Watch:
    """One stream."""

    def __init__(self, router: Router, **fields: Any) -> None:
        self._call = router.tasks.WatchTasks(svc.WatchTasksRequest(**fields))

    async def next(self) -> svc.WatchTasksResponse:
        async with asyncio.timeout(60):
            message = await self._call.read()
        assert isinstance(message, svc.WatchTasksResponse)
        return message

    async def snapshot(self) -> tuple[list[pb.Task], int]:
        """The tasks of the snapshot, and its generation."""
        tasks: list[pb.Task] = []
        while True:
            message = await self.next()
            if message.WhichOneof("event") == "snapshot_complete":
                assert message.snapshot_complete.count == len(tasks)
                return tasks, message.generation
            assert message.WhichOneof("event") == "task"
            tasks.append(message.task)

    async def change(self) -> svc.TaskEvent:
        message = await self.next()
        assert message.WhichOneof("event") == "change"
        assert message.change.task.generation == message.generation
        return message.change

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def watching(router: Router, **fields: Any) -> AsyncIterator[Watch]:
    watch = Watch(router, **fields)
    try:
        yield watch
    finally:
        watch.cancel()


async def test_a_snapshot_and_then_every_change(router: Router) -> None:
    web = router.registry.project("web")
    open_, done = await router.submit("open"), await router.submit("done")
    await router.cancel(done)
    async with watching(router) as watch:
        tasks, generation = await watch.snapshot()
        assert tasks == [await router.get(open_)]
        assert generation >= open_.generation
        claimed = await router.claim_one(web)
        await router.complete(claimed)
        changes = [await watch.change() for _ in range(2)]
        assert [change.kind for change in changes] == ["CLAIM", "COMPLETE"]
        assert [change.from_state for change in changes] == [State.STATE_QUEUED, State.STATE_RUNNING]
        assert changes[0].task.claim.worker == "ann"
        assert changes[0].task.claim.fencing_token == 0  # nobody but the claimant sees it
        assert changes[1].task.state == State.STATE_SUCCEEDED
        await router.submit("new")
        submitted = await watch.change()
        assert (submitted.kind, submitted.from_state) == ("SUBMIT", State.STATE_UNSPECIFIED)
        assert submitted.task.state == State.STATE_QUEUED  # placed as it was taken in: one change


async def test_an_empty_snapshot_is_complete(router: Router) -> None:
    async with watching(router) as watch:
        assert await watch.snapshot() == ([], 0)


async def test_a_watch_is_filtered(router: Router) -> None:
    web = router.registry.project("web", "html")
    router.registry.project("app", "swift")
    desk = router.registry.instance("desk", Scope.PERSONAL)
    a = await router.submit("a", required_capabilities=["html"])
    await router.submit("b", required_capabilities=["swift"])
    c = await router.submit("c", parent=desk)
    for fields, wanted in (({"project": web}, a), ({"parent": desk}, c), ({"task": a.name}, a)):
        async with watching(router, **fields) as watch:
            tasks, _ = await watch.snapshot()
            assert [task.name for task in tasks] == [wanted.name]
            await router.submit("other", required_capabilities=["swift"])
            await router.update(wanted, priority=3)
            change = await watch.change()
            while change.kind != "QUEUE":
                assert change.task.name == wanted.name
                change = await watch.change()
            assert change.task.name == wanted.name
    ghost = f"{ROOT}/tasks/none"
    async with watching(router, task=ghost) as watch:
        await refusal(watch.next(), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost)


async def test_who_follows_a_project_is_told_when_a_task_leaves_it(router: Router) -> None:
    web, app = router.registry.project("web", "html"), router.registry.project("app", "swift")
    task = await router.submit(required_capabilities=["html"])
    async with watching(router, project=web) as watch:
        assert [each.name for each in (await watch.snapshot())[0]] == [task.name]
        await router.update(task, required_capabilities=["swift"])
        assert (await watch.change()).kind == "UPDATE"
        left = await watch.change()
        assert (left.kind, left.from_project, left.task.project) == ("DECIDE", web, "")
        await router.submit(required_capabilities=["html"])  # what comes next is not the other project's
        assert (await watch.change()).task.name != task.name
    assert (await router.get(task)).project == app


async def test_a_watch_resumes_where_it_was(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit()
    async with watching(router) as watch:
        _, generation = await watch.snapshot()
    claimed = await router.claim_one(web)
    await router.complete(claimed)
    async with watching(router, after_generation=generation) as watch:
        assert [(await watch.change()).kind for _ in range(2)] == ["CLAIM", "COMPLETE"]
    async with watching(router, after_generation=generation + 1) as watch:
        assert (await watch.change()).kind == "COMPLETE"
    await router.stop()
    await router.start()
    async with watching(router, after_generation=generation) as watch:
        assert (await watch.change()).task.name == task.name


async def test_a_place_that_is_no_longer_there_is_refused(router: Router) -> None:
    router.registry.project("web")
    for _ in range(5):
        await router.submit()
    head = await router.db.read(EVENTS.head)
    async with watching(router, after_generation=head + 1) as watch:  # a database restored from a backup
        await refusal(watch.next(), Code.OUT_OF_RANGE, "RESUME_TOO_OLD", oldest="1", asked=str(head + 1))
    await router.db.write(lambda conn: EVENTS.trim(conn, before=head - 2))
    async with watching(router, after_generation=1) as watch:
        await refusal(watch.next(), Code.OUT_OF_RANGE, "RESUME_TOO_OLD", oldest=str(head - 2), asked="1")
    async with watching(router, after_generation=head - 3) as watch:
        assert (await watch.next()).generation == head - 2


async def test_a_big_snapshot_is_whole(router: Router) -> None:
    """More than one page of it, and nothing twice."""
    router.registry.project("web")
    items = [svc.SubmitTasksItem(spec=pb.TaskSpec(title="x"))] * 280
    for _ in range(2):
        await router.tasks.SubmitTasks(svc.SubmitTasksRequest(parent=ROOT, items=items))
    async with watching(router) as watch:
        tasks, _ = await watch.snapshot()
    assert len({task.name for task in tasks}) == len(tasks) == 560


async def test_a_slow_watcher_gets_everything(router: Router) -> None:
    router.registry.project("web")
    async with watching(router) as watch:
        await watch.snapshot()
        items = [svc.SubmitTasksItem(spec=pb.TaskSpec(title="x", description="y" * 500))] * 300
        await router.tasks.SubmitTasks(svc.SubmitTasksRequest(parent=ROOT, items=items))
        generations = [(await watch.next()).generation for _ in range(300)]
    assert generations == list(range(1, 301))


# ---------------------------------------------------------------- under fire


class Writer:
    """Does at random whatever can be done to tasks."""

    def __init__(self, router: Router, chance: random.Random) -> None:
        self._router = router
        self._chance = chance
        self._known: list[pb.Task] = []
        self._claimed: list[pb.Task] = []

    async def step(self) -> None:
        moves: list[Any] = [self._submit, self._submit, self._claim, self._claim, self._complete, self._fail]
        moves += [self._cancel, self._hold, self._update, self._pass_time, self._reject]
        try:
            await self._chance.choice(moves)()
        except grpc.aio.AioRpcError as refused:
            assert refused.code() in (Code.FAILED_PRECONDITION, Code.ABORTED)  # noqa: PT017 - the move was not possible

    async def _submit(self) -> None:
        capability = self._chance.choice(["html", "swift", "rust", "team"])
        depends = (
            [self._chance.choice(self._known).name] if self._known and self._chance.random() < 0.2 else []
        )
        retry = pb.RetryPolicy(first_backoff=Duration(seconds=self._chance.randint(0, 30)))
        self._known.append(
            await self._router.submit(required_capabilities=[capability], dependencies=depends, retry=retry)
        )

    async def _claim(self) -> None:
        queue = self._chance.choice(["projects/web", "projects/app", "projects/team"])
        self._claimed += await self._router.claim(queue, max_tasks=self._chance.randint(1, 3))

    def _one_claimed(self) -> pb.Task | None:
        return self._chance.choice(self._claimed) if self._claimed else None

    async def _complete(self) -> None:
        if (task := self._one_claimed()) is not None:
            await self._router.complete(task)

    async def _fail(self) -> None:
        if (task := self._one_claimed()) is not None:
            await self._router.fail(task)

    async def _cancel(self) -> None:
        if self._known:
            await self._router.cancel(self._chance.choice(self._known))

    async def _hold(self) -> None:
        if self._known:
            name = self._chance.choice(self._known).name
            await self._router.tasks.BlockTask(svc.BlockTaskRequest(name=name, hold=pb.Hold(by="cleo")))
            await self._router.tasks.UnblockTask(svc.UnblockTaskRequest(name=name))

    async def _update(self) -> None:
        if self._known:
            await self._router.update(self._chance.choice(self._known), priority=self._chance.randint(0, 100))

    async def _pass_time(self) -> None:
        await self._router.pass_time(MINUTE)

    async def _reject(self) -> None:
        task = self._chance.choice(self._known) if self._known else None
        for made in await self._router.chain(task) if task is not None else []:
            await self._router.delegations.RejectDelegation(
                delegation_svc.RejectDelegationRequest(name=made.name)
            )


def comparable(task: pb.Task) -> pb.Task:
    """A task without what changes with no event: what it waits for, and renewed leases."""
    same = pb.Task()
    same.CopyFrom(task)
    same.ClearField("wait")
    same.claim.ClearField("lease_expire_time")
    same.claim.ClearField("fencing_token")
    return same


class Replica:
    """What a watcher makes of what it is told, from wherever it was when it left."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.tasks: dict[str, pb.Task] = {}
        self.generation = 0
        self.generations: list[int] = []

    async def follow(self, count: int, writing: asyncio.Future[None]) -> None:
        """Follow for so many messages, or until nobody writes any more."""
        snapshot: dict[str, pb.Task] = {}
        async with watching(self._router, after_generation=self.generation) as watch:
            for _ in range(count):
                coming = asyncio.ensure_future(watch.next())
                either: set[asyncio.Future[Any]] = {coming, writing}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait({coming})
                    return
                self._take(await coming, snapshot)

    async def catch_up(self) -> None:
        """Follow until there is no more."""
        head = await self._router.db.read(EVENTS.head)
        snapshot: dict[str, pb.Task] = {}
        async with watching(self._router, after_generation=self.generation) as watch:
            while self.generation < head:
                self._take(await watch.next(), snapshot)

    def _take(self, message: svc.WatchTasksResponse, snapshot: dict[str, pb.Task]) -> None:
        kind = message.WhichOneof("event")
        if kind == "task":
            assert not self.generation
            snapshot[message.task.name] = message.task  # void if it is left half-way
            return
        if kind == "snapshot_complete":
            self.tasks = dict(snapshot)
        else:
            self.generations.append(message.generation)
            self.tasks[message.change.task.name] = message.change.task
        self.generation = message.generation


@pytest.mark.parametrize("seed", range(4))
async def test_however_often_a_watcher_comes_and_goes_it_misses_nothing(router: Router, seed: int) -> None:
    """
    A writer writes; a watcher leaves at random, in the middle of snapshots too, and resumes from what it saw last.

    Each generation comes once and in order; replayed over the snapshot, they make what the router has in the end.
    """
    chance = random.Random(seed)
    router.registry.project("web", "html", max_open=5)
    router.registry.project("app", "swift")
    router.registry.team("team", "team")
    writer, replica = Writer(router, chance), Replica(router)
    for _ in range(20):
        await writer.step()

    async def write() -> None:
        for _ in range(120):
            await writer.step()

    writing = asyncio.ensure_future(write())
    while not writing.done():
        await replica.follow(chance.choice([1, 2, 3, 10, 40]), writing)
    await writing
    await replica.catch_up()
    await router.submit("last")  # however late its first snapshot was, it has something to hear
    await replica.catch_up()
    head = await router.db.read(EVENTS.head)
    first = replica.generations[0]
    logged = await router.db.read(lambda conn: EVENTS.between(conn, first, head))
    assert replica.generations == [event.version for event in logged]
    for name, task in replica.tasks.items():
        assert comparable(await router.get(name)) == comparable(task)
    open_ = {name for name, task in replica.tasks.items() if task.state not in FINAL}
    assert open_ == {task.name for task in await router.found()}


async def test_watchers_and_writers_at_the_same_time(router: Router) -> None:
    """Many watchers see the same."""
    web = router.registry.project("web")
    watches = [Watch(router) for _ in range(5)]
    for watch in watches:
        await watch.snapshot()
    await asyncio.gather(*(router.submit(str(n)) for n in range(20)))
    assert len(await router.claim(web, max_tasks=20)) == 20
    head = await router.db.read(EVENTS.head)
    stories = []
    for watch in watches:
        stories.append([await watch.next() for _ in range(head)])
        watch.cancel()
    assert all(story == stories[0] for story in stories)
    assert [message.generation for message in stories[0]] == list(range(1, head + 1))
