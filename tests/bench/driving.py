"""Calls on a router: what a load is made of."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import grpc.aio

from hopper.router.v1 import task_pb2, task_service_pb2, work_service_pb2
from tests.bench import message
from tests.bench.load import Load, closed_loop
from tests.bench.rig import Target

WINDOW: Final = 256
"""Tasks in flight on a stream."""
BATCH: Final = 1000
CLAIM: Final = 100
FILLERS: Final = 2


class Refused(Exception):
    """The router did not do what the load needs."""


async def submit(target: Target, callers: int, seconds: float) -> Load:
    """One task a call."""
    return await closed_loop(lambda number: target.tasks.SubmitTask(message.submit(number)), callers, seconds)


async def submit_new(target: Target, callers: int, seconds: float) -> Load:
    """One task a call, and no text twice."""
    run = time.time_ns()
    return await closed_loop(
        lambda number: target.tasks.SubmitTask(message.submit_new(number, f"{run:x}x{number}")),
        callers,
        seconds,
    )


async def submit_batches(target: Target, size: int, in_flight: int, seconds: float) -> Load:
    """Many tasks a call, spread over all projects."""

    async def one(_: int) -> None:
        check_batch(await target.tasks.SubmitTasks(message.batch(size)))

    return await closed_loop(one, in_flight, seconds, each=size)


def check_batch(response: task_service_pb2.SubmitTasksResponse) -> None:
    """
    Raises:
        Refused: One of them was not taken in.
    """
    for result in response.results:
        if result.HasField("error"):
            raise Refused(f"a task of a batch was refused: {result.error.reason}")


async def submit_stream(target: Target, seconds: float, *, window: int = WINDOW) -> Load:
    """One task a message on one stream, so many in flight."""
    call = target.tasks.SubmitStream()
    room = asyncio.Semaphore(window)
    sent: list[float] = []
    latencies: list[float] = []
    start = time.perf_counter()

    async def send() -> None:
        for number in itertools.count():
            await room.acquire()
            if time.perf_counter() >= start + seconds:
                break
            sent.append(time.perf_counter())
            await call.write(message.submit_stream(number))
        await call.done_writing()

    sending = asyncio.ensure_future(send())
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            _check_streamed(response)
            latencies.append(time.perf_counter() - sent[len(latencies)])
            room.release()
        await sending
    finally:
        sending.cancel()
    if len(latencies) != len(sent):
        raise Refused(f"{len(sent)} tasks were sent on a stream, {len(latencies)} answered")
    return Load(len(latencies), time.perf_counter() - start, latencies)


def _check_streamed(response: object) -> None:
    assert isinstance(response, task_service_pb2.SubmitStreamResponse)
    if response.HasField("error"):
        raise Refused(f"a task of a stream was refused: {response.error.reason}")


# ---------------------------------------------------------------- working


def completion(task: task_pb2.Task) -> work_service_pb2.Completion:
    """The end of a claim, with nothing as its result."""
    ref = work_service_pb2.ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
    return work_service_pb2.Completion(claim=ref)


async def claim(target: Target, worker: str, most: int, *, queue: str = message.QUEUE) -> list[task_pb2.Task]:
    """Claim what is ready, at once."""
    request = work_service_pb2.ClaimTasksRequest(queue=queue, worker=worker, max_tasks=most)
    return list((await target.work.ClaimTasks(request)).tasks)


async def complete(target: Target, tasks: list[task_pb2.Task]) -> None:
    """
    End claims with success.

    Raises:
        Refused: One of them was lost.
    """
    request = work_service_pb2.CompleteTasksRequest(completions=[completion(task) for task in tasks])
    for result in (await target.work.CompleteTasks(request)).results:
        if result.HasField("error"):
            raise Refused(f"a task was not completed: {result.error.reason}")


@dataclass(slots=True)
class Queue:
    """
    The queue of one worker, kept filled before each round.

    Attributes:
        rate: What it was worked off with at the best, tasks a second; says how much is filled in.
        ready: Tasks in it that nobody has claimed.
    """

    target: Target
    rate: float = 500.0
    ready: int = field(default=0)

    async def fill(self, count: int) -> None:
        """Let at least so many be ready; all are routed here among all projects."""
        missing = count - self.ready
        sizes = iter(_parts(missing))

        async def filler() -> None:
            for size in sizes:
                response = await self.target.tasks.SubmitTasks(message.batch(size, topic=message.HOT))
                check_batch(response)
                strays = {result.task.project for result in response.results} - {message.QUEUE}
                if strays:
                    raise Refused(f"tasks for {message.QUEUE} were routed to {sorted(strays)}")
                self.ready += size

        await asyncio.gather(*(filler() for _ in range(FILLERS)))

    async def fill_for(self, seconds: float) -> None:
        """Fill in more than can be worked off in that time, as far as is known."""
        await self.fill(int(self.rate * seconds * 1.3) + 2 * CLAIM)

    async def work_off(self, seconds: float, *, workers: int, batch: int) -> Load:
        """
        Workers that each claim a batch and complete it, until time is up or not enough is left for all.

        Latencies are of a claim and its completion together.
        """
        done = 0
        floor = self.ready - self.ready // batch * batch + (workers - 1) * batch
        latencies: list[float] = []
        start = time.perf_counter()

        async def worker(number: int) -> None:
            nonlocal done
            name = f"bench-{number}"
            while self.ready > floor and (begin := time.perf_counter()) < start + seconds:
                self.ready -= batch
                tasks = await claim(self.target, name, batch)
                self.ready += batch - len(tasks)
                if not tasks:
                    raise Refused(f"nothing to claim, though {self.ready} tasks should be ready")
                await complete(self.target, tasks)
                done += len(tasks)
                latencies.append(time.perf_counter() - begin)

        await asyncio.gather(*(worker(number) for number in range(workers)))
        load = Load(done, time.perf_counter() - start, latencies)
        self.rate = max(self.rate, load.count / load.seconds)
        return load


def _parts(whole: int) -> Iterator[int]:
    full, rest = divmod(max(0, whole), BATCH)
    return itertools.chain(itertools.repeat(BATCH, full), [rest] if rest else [])
