"""Fairness under a flood, and `hopper next` past ten thousand tasks that wait for a key of theirs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from hopper.registry.v1 import project_pb2, project_service_pb2
from hopper.router.v1 import task_pb2, task_service_pb2, work_service_pb2
from hopper_client import Hopper
from tests.bench import driving, message
from tests.bench.bar import Result, at_most, bar, quantiles
from tests.bench.cpu import look_around, settle
from tests.bench.load import BUSY, QUIET
from tests.bench.rig import POSTGRESQL, SQLITE, Rig, Router

FLOOD: Final = 20_000
TRICKLE: Final = 200
WORKERS: Final = 4
BLOCKED: Final = 10_000
READY: Final = 10_000
CALLS: Final = 300
_WORK_SECONDS: Final = 0.002
PATIENCE: Final = 30.0


@bar
async def fairness(rig: Rig) -> Sequence[Result]:
    """What one requester's tasks wait beside a hundred times as many of another's, against alone."""
    _register(rig, "fair", project_pb2.Capacity())
    return [await _fairness(rig, engine) for engine in (POSTGRESQL, SQLITE)]


async def _fairness(rig: Rig, engine: str) -> Result:
    async with rig.router(engine) as router:
        await _known(router, "projects/fair")
        run = _Run(router)
        alone = await run.trickle_with_workers()
        await _fill(router, [_spec("projects/fair", requester="flood")] * FLOOD)
        # What follows from so many submits, their index of words for one, is no matter of whose turn it is.
        before = await settle([os.getpid()], patience=PATIENCE)
        beside = await run.trickle_with_workers()
        after = await look_around([os.getpid()])
    busy = max(before.others, after.others) > QUIET
    sides = {"alone": quantiles(alone), f"beside {FLOOD:,} of another": quantiles(beside)}
    ratio = quantiles(beside)["p99_ms"] / quantiles(alone)["p99_ms"]
    note = (
        f"{TRICKLE} tasks one by one, {WORKERS} workers that take {_WORK_SECONDS * 1000:g} ms a task; "
        "from submit to claim"
    )
    name = f"fairness: p99 wait beside a flood / alone ({engine})"
    return at_most(2, 1.5).judge(name, ratio, sides, note=note, skipped=BUSY if busy else "")


class _Run:
    """Tasks submitted one by one, and when a worker has them."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._claimed: dict[str, float] = {}
        self._news = asyncio.Event()

    async def work(self, worker: str) -> None:
        """Claim one, take a while, complete it; for ever."""
        request = work_service_pb2.ClaimTasksRequest(
            queue="projects/fair", worker=worker, wait=Duration(seconds=5)
        )
        while True:
            for task in (await self._router.work.ClaimTasks(request)).tasks:
                if task.spec.requester == "mine":
                    self._claimed[task.name] = time.perf_counter()
                    self._news.set()
                await asyncio.sleep(_WORK_SECONDS)
                await driving.complete(self._router, [task])

    async def trickle_with_workers(self) -> list[float]:
        """How long each waited, of tasks that workers take."""
        workers = [asyncio.ensure_future(self.work(f"w{number}")) for number in range(WORKERS)]
        try:
            return await self.trickle()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def trickle(self) -> list[float]:
        """How long each waited."""
        waits: list[float] = []
        request = task_service_pb2.SubmitTaskRequest(
            parent=message.ROOT, spec=_spec("projects/fair", requester="mine")
        )
        for _ in range(TRICKLE):
            begin = time.perf_counter()
            name = (await self._router.tasks.SubmitTask(request)).task.name
            while name not in self._claimed:
                self._news.clear()
                await self._news.wait()
            waits.append(self._claimed.pop(name) - begin)
        return waits


@bar
async def next_past_keys(rig: Rig) -> Sequence[Result]:
    """B22 with a limit per key: as many tasks as are ready wait for a full key, before all of them."""
    _register(rig, "keyed", project_pb2.Capacity(max_running_per_key=1))
    return [await _next_past_keys(rig, engine) for engine in (POSTGRESQL, SQLITE)]


async def _next_past_keys(rig: Rig, engine: str) -> Result:
    queue = "projects/keyed"
    async with rig.router(engine) as router:
        await _known(router, queue)
        await _fill(
            router, [_spec(queue, requester="a", priority=90, concurrency_key="full")] * (BLOCKED + 1)
        )
        await driving.claim(router, "holder", 1, queue=queue)
        await _fill(router, [_spec(queue, requester="b")] * (READY + CALLS))
        before = await settle([os.getpid()], patience=PATIENCE)
        taken = await asyncio.to_thread(_call_next, router.socket, queue)
        after = await look_around([os.getpid()])
    busy = max(before.others, after.others) > QUIET
    figures = quantiles(taken)
    name = f"B22 hopper next past {BLOCKED:,} tasks of a full key, {READY:,} ready, p99 ({engine})"
    limit = at_most(30, 15, "ms")
    return limit.judge(name, figures["p99_ms"], {f"{CALLS} calls": figures}, skipped=BUSY if busy else "")


def _call_next(address: str, queue: str) -> list[float]:
    taken: list[float] = []
    with Hopper(address) as hopper:
        for number in range(CALLS):
            request = work_service_pb2.ClaimTasksRequest(queue=queue, worker=f"person-{number}", max_tasks=1)
            begin = time.perf_counter()
            claimed = hopper.work.ClaimTasks(request).tasks
            taken.append(time.perf_counter() - begin)
            if [task.spec.concurrency_key for task in claimed] != [""]:
                raise driving.Refused("not the task behind those of the full key")
    return taken


def _register(rig: Rig, project_id: str, capacity: project_pb2.Capacity) -> None:
    with Hopper(rig.registry.address) as hopper:
        hopper.projects.RegisterProject(
            project_service_pb2.RegisterProjectRequest(
                project_id=project_id, project=project_pb2.Project(capacity=capacity)
            )
        )


async def _known(router: Router, project: str) -> None:
    """Wait until the router has heard of a project: a claim of its queue asks the registry."""
    async with asyncio.timeout(30):
        await driving.claim(router, "nobody", 1, queue=project)


def _spec(
    project: str, *, requester: str, priority: int = 50, concurrency_key: str = ""
) -> task_pb2.TaskSpec:
    made = task_pb2.TaskSpec(
        project=project, requester=requester, priority=priority, concurrency_key=concurrency_key
    )
    made.MergeFrom(task_pb2.TaskSpec(title="one of many", description=message.spec(0).description))
    return made


async def _fill(router: Router, specs: Sequence[task_pb2.TaskSpec]) -> None:
    for begin in range(0, len(specs), driving.BATCH):
        items = [task_service_pb2.SubmitTasksItem(spec=spec) for spec in specs[begin : begin + driving.BATCH]]
        request = task_service_pb2.SubmitTasksRequest(parent=message.ROOT, items=items)
        driving.check_batch(await router.tasks.SubmitTasks(request))
