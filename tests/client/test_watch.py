"""Watches: the books of one, and real streams that break."""

import asyncio
import itertools
from contextlib import aclosing

import pytest

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.router.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from hopper_client import AsyncHopper, HopperError, ResumeTooOld, TaskNotFound, Unreachable
from hopper_client.policy import MOST_RETRIES
from hopper_client.watch import Watch
from tests.client.router import Router, RunningRouter

Books = Watch[WatchTasksRequest, WatchTasksResponse]


def books(after: int = 0) -> Books:
    return Watch(
        WatchTasksRequest(project="projects/alpha", after_generation=after), "generation", WatchTasksResponse
    )


def task(generation: int) -> WatchTasksResponse:
    message = WatchTasksResponse(generation=generation)
    message.task.name = "instances/global/tasks/a"
    return message


def end(generation: int, count: int) -> WatchTasksResponse:
    return WatchTasksResponse(generation=generation, snapshot_complete=SnapshotComplete(count=count))


def change(generation: int) -> WatchTasksResponse:
    message = WatchTasksResponse(generation=generation)
    message.change.kind = "CLAIM"
    return message


def test_a_snapshot_is_handed_out_whole() -> None:
    watch = books()
    assert watch.request() == WatchTasksRequest(project="projects/alpha")
    assert list(watch.receive(task(7))) == []
    assert list(watch.receive(task(7))) == []
    assert list(watch.receive(end(7, 2))) == [task(7), task(7), end(7, 2)]
    assert list(watch.receive(change(8))) == [change(8)]


def test_half_a_snapshot_is_forgotten_and_begun_again() -> None:
    watch = books()
    watch.request()
    watch.receive(task(7))
    watch.pause_after(Unreachable())
    assert watch.request().after_generation == 0
    assert list(watch.receive(end(9, 0))) == [end(9, 0)]


def test_it_resumes_after_the_last_change_and_drops_what_comes_twice() -> None:
    watch = books(after=5)
    assert watch.request().after_generation == 5
    assert list(watch.receive(change(6))) == [change(6)]
    assert watch.pause_after(None) > 0
    assert watch.request().after_generation == 6
    assert list(watch.receive(change(6))) == []
    assert list(watch.receive(change(7))) == [change(7)]


def test_changes_no_longer_kept_mean_a_snapshot_at_once() -> None:
    watch = books(after=5)
    watch.request()
    assert watch.pause_after(ResumeTooOld()) == 0.0
    assert watch.request().after_generation == 0


def test_a_watch_that_begins_says_so_when_nobody_answers() -> None:
    watch = books()
    tries = itertools.count()

    def try_again() -> None:
        for _ in tries:
            watch.request()
            watch.pause_after(Unreachable())

    with pytest.raises(Unreachable):
        try_again()
    assert next(tries) == MOST_RETRIES + 1


def test_a_watch_with_a_position_waits_for_as_long_as_it_takes() -> None:
    watch = books(after=5)
    pauses = [watch.pause_after(Unreachable()) for _ in range(100)]
    assert 2.5 <= pauses[-1] <= 5.0


def test_what_will_not_pass_is_raised() -> None:
    with pytest.raises(HopperError):
        books(after=5).pause_after(TaskNotFound())


async def test_a_broken_stream_is_resumed_without_gap_or_repeat(router: Router, hopper: AsyncHopper) -> None:
    await router.add("first")
    seen: list[int] = []
    async with aclosing(hopper.watch_tasks()) as changes:
        async for message in changes:
            seen.append(message.generation)
            if message.HasField("snapshot_complete"):
                await router.add("second")
                await router.break_streams()
                await router.add("third")  # while nobody listens
            if len(seen) == 4:
                break
    assert seen == [1, 1, 2, 3]
    assert [request.after_generation for request in router.calls.requests["WatchTasks"]][:1] == [0]
    assert router.calls.requests["WatchTasks"][-1].after_generation >= 1


async def test_a_restart_of_the_server_is_survived(running: RunningRouter, hopper: AsyncHopper) -> None:
    async with aclosing(hopper.watch_tasks()) as changes:
        await running.router.add("first")
        await anext(changes)
        await anext(changes)
        await running.stop()
        running.router.put("second")
        waiting = asyncio.ensure_future(anext(changes))
        await running.start()
        message = await waiting
    assert (message.generation, message.change.task.spec.title) == (2, "second")


async def test_a_snapshot_cut_in_the_middle_is_never_seen(router: Router, hopper: AsyncHopper) -> None:
    for title in ("a", "b", "c"):
        await router.add(title)
    router.cut_snapshot_after = 2
    async with aclosing(hopper.watch_tasks()) as changes:
        seen = [await anext(changes) for _ in range(4)]
    assert [message.task.spec.title for message in seen[:3]] == ["a", "b", "c"]
    assert seen[3].snapshot_complete.count == 3
    assert router.calls.count("WatchTasks") == 2


async def test_a_position_that_is_too_old_gives_a_snapshot(router: Router, hopper: AsyncHopper) -> None:
    await router.add("a")
    await router.add("b")
    router.oldest = 2
    async with aclosing(hopper.watch_tasks(after_generation=1)) as changes:
        seen = [await anext(changes) for _ in range(3)]
    assert seen[2].snapshot_complete.count == 2


async def test_leaving_a_watch_ends_the_call(router: Router, hopper: AsyncHopper) -> None:
    await router.add("a")
    async with aclosing(hopper.watch_tasks()) as changes:
        await anext(changes)
        assert router.watchers == 1
    await router.wait_for(lambda: router.watchers == 0)
