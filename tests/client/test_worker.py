"""Workers, against a router that keeps the contract and fails on demand."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from hopper.router.v1.task_pb2 import Task
from hopper_client import (
    AsyncHopper,
    LostRace,
    NotFound,
    TaskContext,
    TaskFailed,
    Unreachable,
    Worker,
    WorkerStats,
    polling,
)
from hopper_client.claims import Claims
from tests.client.router import Down, Router, RunningRouter, raising

QUEUE = "projects/alpha"


async def echo(context: TaskContext) -> str:
    return context.task.spec.title


class Gate:
    """A handler that begins, and waits to be let through."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.through = 0
        self.most_at_once = 0
        self.contexts: list[TaskContext] = []
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()
        self._inside = 0

    async def __call__(self, context: TaskContext) -> str:
        self.contexts.append(context)
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        try:
            await self._count("begun")
            await self._open.wait()
        except asyncio.CancelledError:
            await self._count("cancelled")
            raise
        finally:
            self._inside -= 1
        await self._count("through")
        return "through"

    async def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        async with self._changed:
            self._changed.notify_all()

    def open(self) -> None:
        self._open.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)


@asynccontextmanager
async def working(worker: Worker, **options: Any) -> AsyncIterator["asyncio.Task[WorkerStats]"]:
    run = asyncio.create_task(worker.run(**options))
    try:
        yield run
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_until_idle_works_off_what_is_there(router: Router, hopper: AsyncHopper) -> None:
    names = [await router.add(f"task {number}") for number in range(25)]
    stats = await Worker(hopper, QUEUE, echo, concurrency=4).run(until_idle=True)
    assert stats == WorkerStats(claimed=25, succeeded=25)
    assert [router.tasks[name].result for name in names] == [f"task {n}".encode() for n in range(25)]
    assert {router.tasks[name].attempt for name in names} == {1}


async def test_until_idle_sees_what_the_last_task_made_ready(router: Router, hopper: AsyncHopper) -> None:
    await router.add("first")

    async def handler(context: TaskContext) -> None:
        if context.task.spec.title == "first":
            await router.calls.wait_for("ClaimTasks", 3)  # the second has come back empty
            await router.add("second")

    stats = await Worker(hopper, QUEUE, handler, concurrency=2).run(until_idle=True)
    assert stats.succeeded == 2


async def test_as_many_run_at_once_as_there_are_slots(router: Router, hopper: AsyncHopper) -> None:
    for number in range(10):
        await router.add(str(number))
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=3), until_idle=True) as run:
        await gate.wait_for(lambda: gate.begun == 3)
        assert len(router.in_state(Task.STATE_RUNNING)) == 3
        gate.open()
        stats = await run
    assert stats.succeeded == 10
    assert gate.most_at_once == 3
    assert all(claim.max_tasks <= 3 for claim in router.calls.requests["ClaimTasks"])


async def test_so_many_tasks_and_no_more(router: Router, hopper: AsyncHopper) -> None:
    for number in range(5):
        await router.add(str(number))
    stats = await Worker(hopper, QUEUE, echo, concurrency=4).run(max_tasks=3)
    assert stats.succeeded == 3
    assert len(router.in_state(Task.STATE_QUEUED)) == 2


async def test_a_waiting_worker_gets_a_task_at_once(router: Router, hopper: AsyncHopper) -> None:
    async with working(Worker(hopper, QUEUE, echo), max_tasks=1) as run:
        await router.calls.wait_for("ClaimTasks", 1)
        await router.add("late")
        assert (await run).succeeded == 1
    assert router.calls.requests["ClaimTasks"][0].wait.seconds == 20
    assert router.calls.count("ClaimTasks") == 1


async def test_results_that_come_together_travel_together(router: Router, hopper: AsyncHopper) -> None:
    for number in range(8):
        await router.add(str(number))
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=8), until_idle=True) as run:
        await gate.wait_for(lambda: gate.begun == 8)
        gate.open()
        await run
    assert router.completed_in_batches == [8]


async def test_renewals_keep_a_lease_of_a_second_for_longer(router: Router, hopper: AsyncHopper) -> None:
    for number in range(3):
        await router.add(str(number))
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, concurrency=3, lease=timedelta(seconds=1))
    async with working(worker, until_idle=True) as run:
        await router.calls.wait_for("RenewClaims", 4)  # a third of a second each
        gate.open()
        stats = await run
    assert stats.succeeded == 3
    assert {task.attempt for task in router.tasks.values()} == {1}
    assert {len(request.claims) for request in router.calls.requests["RenewClaims"]} == {3}


async def test_a_shorter_heartbeat_clock_is_kept(router: Router, hopper: AsyncHopper) -> None:
    await router.add("strict", heartbeat=timedelta(seconds=1))
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, lease=timedelta(hours=1)), until_idle=True) as run:
        await router.calls.wait_for("RenewClaims", 1)
        gate.open()
        assert (await run).succeeded == 1


async def test_a_renewal_that_fails_is_tried_again(router: Router, hopper: AsyncHopper) -> None:
    await router.add("sweep")
    router.calls.before["RenewClaims"].extend([raising(Down())] * 6)  # more than one call's retries
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, lease=timedelta(seconds=3)), until_idle=True) as run:
        await router.calls.wait_for("RenewClaims", 7)
        gate.open()
        assert (await run).succeeded == 1


async def test_a_lost_claim_cancels_its_handler_and_nothing_else(router: Router, hopper: AsyncHopper) -> None:
    lost, kept = [await router.add(title) for title in ("lost", "kept")]
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, concurrency=2, lease=timedelta(seconds=1))
    async with working(worker, max_tasks=2) as run:
        await gate.wait_for(lambda: gate.begun == 2)
        router.expire(lost)
        await gate.wait_for(lambda: gate.cancelled == 1)
        gate.open()
        stats = await run
    assert stats == WorkerStats(claimed=2, succeeded=1, lost=1)
    assert router.tasks[lost].state == Task.STATE_QUEUED
    assert router.tasks[kept].state == Task.STATE_SUCCEEDED
    assert [context.lost.is_set() for context in gate.contexts] == [True, False]


async def test_a_handler_that_will_not_be_cancelled_counts_for_nothing(
    router: Router, hopper: AsyncHopper
) -> None:
    name = await router.add("stubborn")

    async def stubborn(context: TaskContext) -> str:
        router.expire(name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"
        return "never"

    worker = Worker(hopper, QUEUE, stubborn, lease=timedelta(seconds=1))
    assert (await worker.run(max_tasks=1)).lost == 1
    assert router.calls.count("CompleteTasks") == 0


async def test_a_result_whose_token_is_stale_is_dropped(router: Router, hopper: AsyncHopper) -> None:
    name = await router.add("slow")

    async def slow(context: TaskContext) -> str:
        router.expire(name)
        return "late"

    assert await Worker(hopper, QUEUE, slow).run(max_tasks=1) == WorkerStats(claimed=1, lost=1)
    assert router.tasks[name].state == Task.STATE_QUEUED


async def test_a_handler_says_how_it_failed(router: Router, hopper: AsyncHopper) -> None:
    name = await router.add("sweep")

    async def handler(context: TaskContext) -> None:
        raise TaskFailed("NO_BROOM", "there is no broom", permanent=True)

    assert (await Worker(hopper, QUEUE, handler).run(max_tasks=1)).failed == 1
    failure = router.tasks[name].failure
    assert (failure.reason, failure.message, failure.permanent) == ("NO_BROOM", "there is no broom", True)


async def test_what_a_handler_raises_stays_out_of_failures_and_logs(
    router: Router, hopper: AsyncHopper, caplog: pytest.LogCaptureFixture
) -> None:
    name = await router.add("a secret title")

    async def handler(context: TaskContext) -> None:
        raise LookupError(context.task.spec.title)

    with caplog.at_level(logging.DEBUG, "hopper_client"):
        assert (await Worker(hopper, QUEUE, handler).run(max_tasks=1)).failed == 1
    failure = router.tasks[name].failure
    assert (failure.reason, failure.message, failure.permanent) == ("HANDLER_ERROR", "LookupError", False)
    assert "LookupError at" in caplog.text
    assert "test_worker.py" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("returned", "reason"),
    [(42, "HANDLER_ERROR"), (b"x" * (1024 * 1024 + 1), "RESULT_TOO_LARGE")],
    ids=["no bytes", "too many"],
)
async def test_a_result_that_cannot_be_one_fails_the_task(
    router: Router, hopper: AsyncHopper, returned: Any, reason: str
) -> None:
    name = await router.add("odd")

    async def handler(context: TaskContext) -> Any:
        return returned

    assert (await Worker(hopper, QUEUE, handler).run(max_tasks=1)).failed == 1
    assert router.tasks[name].failure.reason == reason


async def test_many_large_results_are_sent_in_parts(router: Router, hopper: AsyncHopper) -> None:
    for number in range(6):
        await router.add(str(number))
    gate = Gate()

    async def handler(context: TaskContext) -> bytes:
        await gate(context)
        return b"x" * (1024 * 1024)

    async with working(Worker(hopper, QUEUE, handler, concurrency=6), max_tasks=6) as run:
        await gate.wait_for(lambda: gate.begun == 6)
        gate.open()
        assert (await run).succeeded == 6
    assert router.completed_in_batches == [2, 2, 2]


def test_a_reason_is_one_word() -> None:
    for reason in ("", "two words", "x" * 101, "tab\there"):
        with pytest.raises(ValueError, match="one printable word"):
            TaskFailed(reason)


async def test_stop_drains(router: Router, hopper: AsyncHopper) -> None:
    for number in range(3):
        await router.add(str(number))
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, concurrency=2)
    async with working(worker) as run:
        await gate.wait_for(lambda: gate.begun == 2)
        worker.stop()
        gate.open()
        stats = await run
    assert stats == WorkerStats(claimed=2, succeeded=2)
    assert len(router.in_state(Task.STATE_QUEUED)) == 1


async def test_what_a_claim_brings_after_stop_is_released(
    router: Router, hopper: AsyncHopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "POLL_GRACE", 60.0)
    async with working(worker := Worker(hopper, QUEUE, echo)) as run:
        await router.calls.wait_for("ClaimTasks", 1)
        worker.stop()
        await router.add("just now")
        stats = await run
    assert stats == WorkerStats(claimed=1, released=1)
    assert len(router.in_state(Task.STATE_QUEUED)) == 1


async def test_stop_before_run_is_a_run_of_nothing(router: Router, hopper: AsyncHopper) -> None:
    await router.add("sweep")
    worker = Worker(hopper, QUEUE, echo)
    worker.stop()
    assert await worker.run() == WorkerStats()
    assert await worker.run(until_idle=True) == WorkerStats(claimed=1, succeeded=1)


async def test_a_cancelled_run_releases_what_it_has(router: Router, hopper: AsyncHopper) -> None:
    await router.add("sweep")
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate)) as run:
        await gate.wait_for(lambda: gate.begun == 1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert gate.cancelled == 1
    assert router.calls.count("ReleaseTask") == 1
    assert len(router.in_state(Task.STATE_QUEUED)) == 1


async def test_a_restart_of_the_server_costs_nothing(running: RunningRouter, hopper: AsyncHopper) -> None:
    router = running.router
    await router.add("before")
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=2)) as run:
        await gate.wait_for(lambda: gate.begun == 1)
        await running.stop()
        gate.open()  # it ends while nobody answers
        router.put("after")
        await running.start()
        await router.wait_for(lambda: len(router.in_state(Task.STATE_SUCCEEDED)) == 2)
        assert not run.done()
    assert {task.attempt for task in router.tasks.values()} == {1}


async def test_a_result_is_sent_until_it_is_answered_and_counts_once(
    router: Router, hopper: AsyncHopper
) -> None:
    await router.add("sweep")
    router.calls.after["CompleteTasks"].extend([raising(Down())] * 7)
    stats = await Worker(hopper, QUEUE, echo).run(max_tasks=1)
    assert stats == WorkerStats(claimed=1, succeeded=1)
    assert router.completed_in_batches == [1]
    assert len({request.request_id for request in router.calls.requests["CompleteTasks"]}) == 1


async def test_claims_whose_answer_was_lost_come_with_the_repeat(router: Router, hopper: AsyncHopper) -> None:
    await router.add("sweep")
    router.calls.after["ClaimTasks"].extend([raising(Down())] * 7)
    async with working(Worker(hopper, QUEUE, echo), max_tasks=1) as run:
        assert (await run).succeeded == 1
    assert len({request.request_id for request in router.calls.requests["ClaimTasks"]}) == 1
    assert next(iter(router.tasks.values())).attempt == 1


async def test_a_queue_that_is_not_there_is_raised_after_what_runs(
    router: Router, hopper: AsyncHopper
) -> None:
    await router.add("sweep")
    gate = Gate()
    async with working(Worker(hopper, QUEUE, gate, concurrency=2)) as run:
        await router.calls.wait_for("ClaimTasks", 2)
        router.projects.clear()
        await router.add("the last")  # ends the poll under way
        await gate.wait_for(lambda: gate.begun == 2)
        gate.open()
        with pytest.raises(NotFound) as caught:
            await run
    assert caught.value.reason == "PROJECT_NOT_FOUND"
    assert len(router.in_state(Task.STATE_SUCCEEDED)) == 2


async def test_until_idle_does_not_wait_for_a_hopper_that_is_not_there(
    running: RunningRouter, hopper: AsyncHopper
) -> None:
    await running.stop()
    with pytest.raises(Unreachable, match="hopper up"):
        await Worker(hopper, QUEUE, echo).run(until_idle=True)


class Warned(logging.Handler):
    """An event for the first warning of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


async def test_a_worker_waits_for_a_hopper_that_comes_later(
    running: RunningRouter, hopper: AsyncHopper
) -> None:
    await running.stop()
    running.router.put("early")
    warned = Warned()
    logging.getLogger("hopper_client.shift").addHandler(warned)
    async with working(Worker(hopper, QUEUE, echo), max_tasks=1) as run:
        await warned.event.wait()
        await running.start()
        assert (await run).succeeded == 1
    logging.getLogger("hopper_client.shift").removeHandler(warned)


async def test_a_defect_in_a_worker_s_own_loops_ends_it_loudly(
    router: Router, hopper: AsyncHopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await router.add("sweep")
    gate = Gate()

    async def broken(self: Claims) -> None:
        await gate.wait_for(lambda: gate.begun == 1)
        raise ZeroDivisionError

    monkeypatch.setattr(Claims, "keep", broken)
    with pytest.raises(ZeroDivisionError):
        await Worker(hopper, QUEUE, gate).run()
    assert len(router.in_state(Task.STATE_QUEUED)) == 1


async def test_the_registry_hears_of_a_worker_until_it_goes(router: Router, hopper: AsyncHopper) -> None:
    router.heartbeat_interval = timedelta(milliseconds=100)
    await router.add("sweep")
    gate = Gate()
    worker = Worker(hopper, QUEUE, gate, worker_id="w1", concurrency=3, labels={"model": "small"})
    async with working(worker) as run:
        await gate.wait_for(lambda: gate.begun == 1)
        worker.labels["battery"] = "low"
        await router.wait_for(lambda: "battery" in _labels(router))
        seen = router.workers["projects/alpha/workers/w1"]
        assert (seen.slots, seen.running, dict(seen.labels)) == (3, 1, {"model": "small", "battery": "low"})
        worker.stop()
        gate.open()
        await run
    last = router.workers["projects/alpha/workers/w1"]
    assert (last.running, last.time_to_live.seconds) == (0, 1)


def _labels(router: Router) -> dict[str, str]:
    worker = router.workers.get("projects/alpha/workers/w1")
    return dict(worker.labels) if worker else {}


async def test_a_worker_of_an_instance_sends_no_heartbeats(router: Router, hopper: AsyncHopper) -> None:
    router.projects.add("instances/home")
    assert await Worker(hopper, "instances/home", echo).run(until_idle=True) == WorkerStats()
    assert router.calls.count("Heartbeat") == 0


async def test_a_worker_works_though_no_heartbeat_gets_through(router: Router, hopper: AsyncHopper) -> None:
    await router.add("sweep")
    router.calls.before["Heartbeat"].extend([raising(Down())] * 50)
    assert (await Worker(hopper, QUEUE, echo).run(max_tasks=1)).succeeded == 1


async def test_progress_is_reported_and_survives_an_outage(router: Router, hopper: AsyncHopper) -> None:
    name = await router.add("sweep")

    async def handler(context: TaskContext) -> None:
        await context.progress(0.5, "half-way " + "é" * 400)
        router.calls.before["ReportProgress"].extend([raising(Down())] * 5)
        await context.progress(0.9)

    assert (await Worker(hopper, QUEUE, handler).run(max_tasks=1)).succeeded == 1
    progress = router.tasks[name].progress
    assert progress.fraction == 0.5
    assert len(progress.message.encode()) <= 500


async def test_progress_on_a_lost_claim_cancels_the_handler(router: Router, hopper: AsyncHopper) -> None:
    name = await router.add("sweep")

    async def handler(context: TaskContext) -> None:
        router.expire(name)
        with pytest.raises(LostRace):
            await context.progress(0.5)
        assert context.lost.is_set()
        await asyncio.Event().wait()

    assert (await Worker(hopper, QUEUE, handler).run(max_tasks=1)).lost == 1


async def test_a_question_is_answered_after_a_broken_stream(router: Router, hopper: AsyncHopper) -> None:
    name = await router.add("paint")

    async def handler(context: TaskContext) -> str:
        return "painted " + await context.ask("which colour?", from_="jane")

    async with working(Worker(hopper, QUEUE, handler), max_tasks=1) as run:
        await router.calls.wait_for("WatchTasks", 1)
        assert router.tasks[name].state == Task.STATE_INPUT_REQUIRED
        assert getattr(router.tasks[name].input, "from") == "jane"
        await router.wait_for(lambda: router.watchers == 1)
        await router.break_streams()
        await router.answer(name, "blue")
        assert (await run).succeeded == 1
    assert router.tasks[name].result == b"painted blue"


@pytest.mark.parametrize("too_old", [False, True], ids=["change", "snapshot"])
async def test_a_task_cancelled_while_it_waits_for_an_answer_is_lost(
    router: Router, hopper: AsyncHopper, too_old: bool
) -> None:
    name = await router.add("paint")
    raised: list[BaseException] = []

    async def handler(context: TaskContext) -> str:
        try:
            return await context.ask("which colour?")
        except LostRace as error:
            raised.append(error)
            raise

    async with working(Worker(hopper, QUEUE, handler), max_tasks=1) as run:
        await router.calls.wait_for("WatchTasks", 1)
        if too_old:
            await router.wait_for(lambda: router.watchers == 1)
            router.tasks[name].state = Task.STATE_CANCELLED
            router.oldest = 1000
            await router.break_streams()
        else:
            await router.cancel(name)
        assert (await run).lost == 1
    assert raised


async def test_a_worker_runs_once_at_a_time(router: Router, hopper: AsyncHopper) -> None:
    worker = Worker(hopper, QUEUE, echo)
    async with working(worker):
        await router.calls.wait_for("ClaimTasks", 1)
        with pytest.raises(RuntimeError, match="runs already"):
            await worker.run()


async def test_worker_ids_are_made_unique(hopper: AsyncHopper) -> None:
    ids = {Worker(hopper, QUEUE, echo).worker_id for _ in range(3)}
    assert len(ids) == 3
    assert all(len(worker_id) <= 63 for worker_id in ids)
