"""
Callers that use a Hopper hard, through the real SDK, and write down everything in ledgers (`hopper_testing.history`).

    python -m hopper_testing.workload --address unix:/tmp/h/hopper.sock --ledger w1.jsonl --seed 7 --seconds 20 worker*3

runs three workers in one process, which may be killed at any moment. `drain` then finishes what they left. Roles:

| role | does, again and again |
|---|---|
| submitter | submits one task, a batch, or some on a stream, each until it is acknowledged |
| worker | claims a few, and completes, renews, fails or releases them; hangs; completes after its lease |
| streamer | works on a `Work` stream, and completes there |
| canceller | calls off a task that waits or runs |
| watcher | follows all changes |

What gets no answer is asked again with the same `request_id`, until it is answered or time is up. Chances are drawn
from the seed; what comes of them depends on the machine's time as well. Several callers may have the same name.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from google.protobuf.message import Message

from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import GetProjectRequest, RegisterProjectRequest
from hopper.router.v1.task_pb2 import Failure, ItemError, RetryPolicy, Task, TaskSpec
from hopper.router.v1.task_service_pb2 import (
    CancelTaskRequest,
    ListTasksRequest,
    SubmitStreamRequest,
    SubmitTaskRequest,
    SubmitTasksItem,
    SubmitTasksRequest,
)
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    ClaimResult,
    ClaimTasksRequest,
    CompleteTasksRequest,
    Completion,
    FailTaskRequest,
    ReleaseTaskRequest,
    RenewClaimsRequest,
    WorkOpen,
    WorkRequest,
    WorkResponse,
    WorkSlots,
)
from hopper_client import AsyncHopper, Hopper
from hopper_common.errors import AlreadyExists, HopperError, Unavailable
from hopper_common.rpc.errors import DeadlineExceeded
from hopper_testing.dump import micros
from hopper_testing.history import Grant, Kind, Ledger, Seen

M = TypeVar("M", bound=Message)

ROOT: Final = "instances/global"
PROJECT: Final = "projects/crew"

_CALL_SECONDS: Final = 4.0  # a call's deadline: short, so that a caller is soon back with a repeat
_PAUSE: Final = (0.05, 0.25)  # seconds until the next attempt, besides those the SDK makes
_PASSING: Final = frozenset(
    code.value[0] for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
)  # of one item: it may have been done
_OPEN_STATES: Final = (Task.STATE_SUBMITTED, Task.STATE_QUEUED, Task.STATE_RUNNING)


def task_spec(title: str, *, key: str = "") -> TaskSpec:
    """A task for the crew that may fail as often as it likes, and is ready again at once."""
    retry = RetryPolicy(max_attempts=1000)
    retry.first_backoff.FromTimedelta(timedelta(0))
    return TaskSpec(title=title, project=PROJECT, retry=retry, fairness_key=key)


def claim_request(
    worker: str,
    most: int = 1,
    *,
    lease: float = 60.0,
    wait: float = 0.0,
    request_id: str = "",
    task: str = "",
) -> ClaimTasksRequest:
    """Work for one of the crew."""
    request = ClaimTasksRequest(
        queue=PROJECT, worker=worker, max_tasks=most, request_id=request_id, task=task
    )
    request.lease_duration.FromTimedelta(timedelta(seconds=lease))
    request.wait.FromTimedelta(timedelta(seconds=wait))
    return request


def grant_of(task: Task) -> Grant:
    """A claimed task's claim, as a ledger has it."""
    claim = task.claim
    return Grant(
        task.name,
        claim.fencing_token,
        claim.worker,
        micros(claim.start_time),
        micros(claim.lease_expire_time),
    )


@dataclass(frozen=True, slots=True)
class Habits:
    """
    How callers behave.

    Attributes:
        lease: Seconds that workers ask for.
        pause: Seconds between two things that one caller does, at most.
        batch: Most tasks in one call.
    """

    lease: float = 1.0
    pause: float = 0.1
    batch: int = 4


class Caller:
    """
    One connection, one ledger, and a way to ask until there is an answer.

    Args:
        name: The worker's name.
        chance: Drawn from for everything that is left to chance.
        over: Set when it is time to stop.
    """

    def __init__(
        self,
        address: str,
        ledger: Ledger,
        name: str,
        chance: random.Random,
        over: asyncio.Event,
        *,
        timeout: float = _CALL_SECONDS,
    ) -> None:
        self.hopper = AsyncHopper(address, timeout=timeout)
        self.ledger = ledger
        self.name = name
        self.chance = chance
        self.over = over
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hopper.close()

    async def reconnect(self) -> None:
        """Begin again with a new connection: a lost one backs off, and short lives would pass in silence."""
        await self.hopper.close()
        self.hopper = AsyncHopper(self.hopper.address, timeout=self._timeout)

    def new_id(self) -> str:
        """A request_id from the seed."""
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    async def ask(
        self, note: Callable[[], Sequence[int]], call: Callable[[], Awaitable[M]]
    ) -> tuple[Sequence[int], M | None]:
        """
        Ask until there is an answer, or time is up; returns the last calls' numbers and the answer, if it is not no.

        Args:
            note: Writes down what is asked; returns the numbers. Called before each attempt.
        """
        while True:
            calls = note()
            try:
                return calls, await call()
            except HopperError as error:
                if not _is_unknown(error):
                    for number in calls:
                        self.ledger.refused(number, error.reason)
                    return calls, None
                for number in calls:
                    self.ledger.unknown(number, error.reason)
            if self.over.is_set():
                return calls, None
            await self.pause(self.chance.uniform(*_PAUSE))
            await self.reconnect()


def _is_unknown(error: HopperError) -> bool:
    """Whether the call may have been done nevertheless. A server's own INTERNAL is an answer, and a bad one."""
    ours = isinstance(error, Unavailable | DeadlineExceeded)
    return ours or (error.reason == "UNSPECIFIED" and not error.metadata)  # grpc's own: a broken stream


# ---------------------------------------------------------------- submitting


class Submitter:
    """Takes care that tasks are there."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        self._caller = caller
        self._habits = habits

    async def step(self) -> None:
        """Submit some, in one of the three ways."""
        way = self._caller.chance.choices((self.one, self.batch, self.stream), weights=(6, 3, 1))[0]
        await way()
        await self._caller.pause(self._caller.chance.uniform(0, self._habits.pause))

    async def one(self) -> None:
        """One task in one call."""
        caller, request_id = self._caller, self._caller.new_id()
        spec = self._spec(request_id)
        request = SubmitTaskRequest(parent=ROOT, spec=spec, request_id=request_id)
        (number,), answer = await caller.ask(
            lambda: self._note([spec.title], request_id), lambda: caller.hopper.tasks.SubmitTask(request)
        )
        if answer is not None:
            caller.ledger.told(number, task=answer.task.name)

    async def batch(self) -> None:
        """A few in one call."""
        caller, request_id = self._caller, self._caller.new_id()
        count = caller.chance.randint(1, self._habits.batch)
        specs = [self._spec(f"{request_id}/{position}") for position in range(count)]
        request = SubmitTasksRequest(
            parent=ROOT, items=[SubmitTasksItem(spec=spec) for spec in specs], request_id=request_id
        )
        titles = [spec.title for spec in specs]
        while True:
            numbers, answer = await caller.ask(
                lambda: self._note(titles, request_id), lambda: caller.hopper.tasks.SubmitTasks(request)
            )
            results = zip(numbers, answer.results if answer else (), strict=answer is not None)
            known = [self._told(number, result.task, result.error) for number, result in results]
            if all(known) or caller.over.is_set():
                return
            await caller.pause(caller.chance.uniform(*_PAUSE))

    async def stream(self) -> None:
        """A few on one stream; those that got no answer go again, each with its own `request_id`."""
        caller = self._caller
        left = {request_id: self._spec(request_id) for request_id in (caller.new_id() for _ in range(3))}
        while left:
            numbers = {
                request_id: self._note([spec.title], request_id)[0] for request_id, spec in left.items()
            }
            await self._send(left, numbers)
            if caller.over.is_set():
                return
            await caller.pause(caller.chance.uniform(*_PAUSE))

    async def _send(self, left: dict[str, TaskSpec], numbers: dict[str, int]) -> None:
        """Send what is left, and take off what was answered."""
        caller, order = self._caller, list(left)

        async def requests() -> AsyncIterator[SubmitStreamRequest]:
            for request_id in order:
                yield SubmitStreamRequest(parent=ROOT, spec=left[request_id], request_id=request_id)

        waiting = list(order)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                async for response in caller.hopper.tasks.SubmitStream(requests()):
                    request_id = waiting.pop(0)
                    if self._told(numbers[request_id], response.task, response.error):
                        del left[request_id]
        except (HopperError, TimeoutError) as error:
            if isinstance(error, HopperError) and not _is_unknown(error):
                for request_id in waiting:
                    caller.ledger.refused(numbers[request_id], error.reason)
                    del left[request_id]
                return
            for request_id in waiting:
                caller.ledger.unknown(numbers[request_id], type(error).__name__)
            await caller.reconnect()

    def _spec(self, title: str) -> TaskSpec:
        return task_spec(title, key=self._caller.chance.choice(("ann", "bob", "")))

    def _note(self, titles: Sequence[str], request_id: str) -> Sequence[int]:
        ledger = self._caller.ledger
        return [ledger.asks(Kind.SUBMIT, title=title, request_id=request_id) for title in titles]

    def _told(self, number: int, task: Task, error: ItemError) -> bool:
        """Write down what became of one; whether that is known."""
        if not error.code:
            self._caller.ledger.told(number, task=task.name)
        elif error.code in _PASSING:
            self._caller.ledger.unknown(number, error.reason)
        else:
            self._caller.ledger.refused(number, error.reason)
        return error.code not in _PASSING


# ---------------------------------------------------------------- working


class Crew:
    """Claims and ends, as a worker's ledger has them. Used by workers, and to finish what they left."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        self._caller = caller
        self._habits = habits

    async def claim(self, most: int, *, wait: float = 0.2) -> list[Task]:
        """Claim up to so many."""
        caller = self._caller
        request = claim_request(
            caller.name, most, lease=self._habits.lease, wait=wait, request_id=caller.new_id()
        )
        (number,), answer = await caller.ask(
            lambda: [self._note_claim(request.request_id)], lambda: caller.hopper.work.ClaimTasks(request)
        )
        if answer is None:
            return []
        caller.ledger.told(number, grants=[grant_of(task) for task in answer.tasks])
        return list(answer.tasks)

    async def complete(self, tasks: Sequence[Task]) -> None:
        """Complete in one call, each with a result of its own."""
        caller = self._caller
        request = CompleteTasksRequest(
            completions=[Completion(claim=ref(task), result=caller.chance.randbytes(4)) for task in tasks],
            request_id=caller.new_id(),
        )
        await self.complete_again(request)

    async def complete_again(self, request: CompleteTasksRequest) -> None:
        """Send a completion, until it is known of each what became of it."""
        caller = self._caller
        while True:
            numbers, answer = await caller.ask(
                lambda: self.note_completions(request), lambda: caller.hopper.work.CompleteTasks(request)
            )
            if answer is None or self.note_results(numbers, answer.results) or caller.over.is_set():
                return
            await caller.pause(caller.chance.uniform(*_PAUSE))

    async def fail(self, task: Task) -> None:
        """Say that it went wrong."""
        caller = self._caller
        request = FailTaskRequest(
            claim=ref(task), failure=Failure(reason="PLANNED"), request_id=caller.new_id()
        )
        (number,), answer = await caller.ask(
            lambda: [self._note(Kind.FAIL, task, request.request_id)],
            lambda: caller.hopper.work.FailTask(request),
        )
        if answer is not None:
            caller.ledger.told(number)

    async def release(self, task: Task) -> None:
        """Give it back."""
        caller = self._caller
        request = ReleaseTaskRequest(claim=ref(task), request_id=caller.new_id())
        (number,), answer = await caller.ask(
            lambda: [self._note(Kind.RELEASE, task, request.request_id)],
            lambda: caller.hopper.work.ReleaseTask(request),
        )
        if answer is not None:
            caller.ledger.told(number)

    async def renew(self, task: Task) -> None:
        """Keep it for another lease."""
        caller, lease = self._caller, self._habits.lease
        request = RenewClaimsRequest(claims=[ref(task)])
        request.lease_duration.FromTimedelta(timedelta(seconds=lease))
        numbers, answer = await caller.ask(
            lambda: [self._note(Kind.RENEW, task, lease=lease)],
            lambda: caller.hopper.work.RenewClaims(request),
        )
        if answer is not None:
            self.note_results(numbers, answer.results)

    def note_completions(self, request: CompleteTasksRequest) -> list[int]:
        """Write down what is about to be completed."""
        return [
            self._caller.ledger.asks(
                Kind.COMPLETE,
                task=one.claim.task,
                token=one.claim.fencing_token,
                result=one.result.hex(),
                request_id=request.request_id,
            )
            for one in request.completions
        ]

    def note_results(self, numbers: Sequence[int], results: Sequence[ClaimResult]) -> bool:
        """Write down what became of each; whether that is known of all."""
        ledger = self._caller.ledger
        for number, result in zip(numbers, results, strict=True):
            if not result.HasField("error"):
                ledger.told(number, lease_end=micros(result.updated.claim.lease_expire_time))
            elif result.error.code in _PASSING:
                ledger.unknown(number, result.error.reason)
            else:
                ledger.refused(number, result.error.reason)
        return all(result.error.code not in _PASSING for result in results)

    def _note_claim(self, request_id: str) -> int:
        caller = self._caller
        return caller.ledger.asks(
            Kind.CLAIM, worker=caller.name, lease=self._habits.lease, request_id=request_id
        )

    def _note(self, kind: Kind, task: Task, request_id: str = "", *, lease: float = 0.0) -> int:
        token = task.claim.fencing_token
        return self._caller.ledger.asks(kind, task=task.name, token=token, request_id=request_id, lease=lease)


def ref(task: Task) -> ClaimRef:
    """A claim, as its worker names it."""
    return ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)


class Worker:
    """Claims, and does with each task what comes to its mind."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        self._caller = caller
        self._habits = habits
        self._crew = Crew(caller, habits)

    async def step(self) -> None:
        """Claim some and deal with them."""
        chance, crew = self._caller.chance, self._crew
        together: list[Task] = []
        for task in await crew.claim(chance.randint(1, self._habits.batch)):
            match chance.choices(
                ("complete", "renew", "fail", "release", "hang", "late"), weights=(60, 10, 10, 8, 7, 5)
            )[0]:
                case "complete":
                    together.append(task)
                case "renew":
                    await crew.renew(task)
                    await self._caller.pause(chance.uniform(0, self._habits.lease))
                    await crew.complete([task])
                case "fail":
                    await crew.fail(task)
                case "release":
                    await crew.release(task)
                case "late":
                    await self._caller.pause(self._habits.lease * chance.uniform(0.9, 1.6))
                    await crew.complete([task])
                case _:  # hangs: its lease is left to run out
                    pass
        if together:
            await crew.complete(together)
        await self._caller.pause(chance.uniform(0, self._habits.pause))


class Streamer:
    """Works on streams, each for a few tasks; what was completed on one that broke is completed again by a call."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        self._caller = caller
        self._habits = habits
        self._crew = Crew(caller, habits)
        self._unanswered: list[tuple[list[int], CompleteTasksRequest]] = []
        self._unclear: list[CompleteTasksRequest] = []

    async def step(self) -> None:
        """One stream, from open to its end."""
        try:
            async with asyncio.timeout(self._caller.chance.uniform(0.3, 1.5)):
                await self._stream()
        except TimeoutError:
            pass  # as planned: a stream is left without a word
        except HopperError as error:
            if not _is_unknown(error):
                raise
            await self._caller.reconnect()
        unanswered, self._unanswered = self._unanswered, []
        for numbers, request in unanswered:
            for number in numbers:
                self._caller.ledger.unknown(number, "the stream broke")
            await self._crew.complete_again(request)
        unclear, self._unclear = self._unclear, []
        for request in unclear:
            await self._crew.complete_again(request)
        await self._caller.pause(self._caller.chance.uniform(0, self._habits.pause))

    async def _stream(self) -> None:
        outbox: asyncio.Queue[WorkRequest] = asyncio.Queue()
        opened = WorkOpen(queue=PROJECT, worker=self._caller.name)
        opened.lease_duration.FromTimedelta(timedelta(seconds=self._habits.lease))
        outbox.put_nowait(WorkRequest(open=opened))

        async def requests() -> AsyncIterator[WorkRequest]:
            while True:
                yield await outbox.get()

        stream = self._caller.hopper.work.Work(requests())
        began = time.monotonic()
        try:
            outbox.put_nowait(WorkRequest(slots=WorkSlots(free=self._habits.batch)))
            async for response in stream:
                request = self._received(response, began)
                if request is not None:
                    outbox.put_nowait(WorkRequest(complete=request))
                    outbox.put_nowait(WorkRequest(slots=WorkSlots(free=self._habits.batch)))
        finally:
            stream.cancel()

    def _received(self, response: WorkResponse, began: float) -> CompleteTasksRequest | None:
        """Note what came; what was assigned is to be completed."""
        if response.HasField("answer"):
            numbers, request = self._unanswered.pop(0)
            if not self._crew.note_results(numbers, response.answer.results):
                self._unclear.append(request)
            return None
        tasks = response.assigned.tasks
        ledger = self._caller.ledger
        # Nothing asks for this one claim: what is known is that it was granted since the stream began.
        claim = ledger.asks(Kind.CLAIM, worker=self._caller.name, lease=self._habits.lease, asked_at=began)
        ledger.told(claim, grants=[grant_of(task) for task in tasks])
        request = CompleteTasksRequest(
            completions=[
                Completion(claim=ref(task), result=self._caller.chance.randbytes(4)) for task in tasks
            ],
            request_id=self._caller.new_id(),
        )
        self._unanswered.append((self._crew.note_completions(request), request))
        return request


class Canceller:
    """Calls off what others are busy with."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        self._caller = caller
        self._habits = habits

    async def step(self) -> None:
        """Call one off."""
        caller = self._caller
        await caller.pause(caller.chance.uniform(0, 4 * self._habits.pause))
        try:
            page = await caller.hopper.tasks.ListTasks(ListTasksRequest(states=_OPEN_STATES, page_size=20))
        except HopperError as error:
            if not _is_unknown(error):
                raise
            await caller.reconnect()
            return
        if not page.tasks:
            return
        name = caller.chance.choice(page.tasks).name
        request = CancelTaskRequest(name=name, request_id=caller.new_id())
        (number,), answer = await caller.ask(
            lambda: [caller.ledger.asks(Kind.CANCEL, task=name, request_id=request.request_id)],
            lambda: caller.hopper.tasks.CancelTask(request),
        )
        if answer is not None:
            caller.ledger.told(number)


class Watcher:
    """Follows everything, from a snapshot on, across whatever happens to the server."""

    def __init__(self, caller: Caller, habits: Habits) -> None:
        del habits
        self._caller = caller
        self._watches = 0

    async def step(self) -> None:
        """Watch for as long as it goes; the SDK gives up only where it never reached anybody."""
        try:
            await self._watch()
        except HopperError as error:
            if not _is_unknown(error):
                raise
            await self._caller.pause(self._caller.chance.uniform(*_PAUSE))
            await self._caller.reconnect()

    async def _watch(self) -> None:
        ledger, watch = self._caller.ledger, self._watches
        async for response in self._caller.hopper.watch_tasks():
            if response.HasField("snapshot_complete"):
                watch = self._watches
                self._watches += 1
                ledger.watches(watch, response.generation)
            elif response.HasField("change"):
                change = response.change
                ledger.sees(watch, Seen(response.generation, change.task.name, change.kind))


ROLES: Final[dict[str, type[Submitter | Worker | Streamer | Canceller | Watcher]]] = {
    "submitter": Submitter,
    "worker": Worker,
    "streamer": Streamer,
    "canceller": Canceller,
    "watcher": Watcher,
}


# ---------------------------------------------------------------- running them


async def run(
    addresses: Sequence[str],
    ledger: Ledger,
    roles: Sequence[str],
    *,
    seed: int,
    seconds: float,
    habits: Habits,
    names: Sequence[str] = (),
    over: asyncio.Event | None = None,
) -> None:
    """
    Let callers of these roles loose until time is up, or *over* is set.

    Args:
        addresses: Callers take turns at them.
        names: Of the workers, in turn; default: one of its own for each.

    Raises:
        ExceptionGroup: A caller met with what none should.
    """
    over = over or asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)

    async def act(number: int, role: str) -> None:
        name = names[number % len(names)] if names else f"{ledger.client}-{number}"
        chance = random.Random(f"{seed}/{ledger.client}/{number}")
        async with Caller(addresses[number % len(addresses)], ledger, name, chance, over) as caller:
            actor = ROLES[role](caller, habits)
            while not over.is_set():
                await _until(over, actor.step()) if role == "watcher" else await actor.step()

    async with asyncio.TaskGroup() as group:
        for number, role in enumerate(roles):
            group.create_task(act(number, role))


async def _until(over: asyncio.Event, step: Awaitable[None]) -> None:
    """What never ends by itself, until it is time."""
    task, end = asyncio.ensure_future(step), asyncio.ensure_future(over.wait())
    await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if task.done():
        task.result()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def prepare(address: str) -> int:
    """
    Register the crew, and show that it works; returns the log's generation when all is at rest again.

    May be called again.
    """
    with Hopper(address, timeout=30.0) as hopper:
        project = Project(description="does everything")
        with suppress(AlreadyExists):
            hopper.projects.RegisterProject(RegisterProjectRequest(project_id="crew", project=project))
        hopper.projects.GetProject(GetProjectRequest(name=PROJECT))
        first = SubmitTaskRequest(parent=ROOT, spec=task_spec("the first"))
        name = hopper.tasks.SubmitTask(first).task.name
        return hopper.tasks.CancelTask(CancelTaskRequest(name=name)).task.generation


async def drain(address: str, ledger: Ledger, *, seconds: float, seed: int = 0) -> int:
    """
    Complete everything that is open, as one more worker; returns how many are left when time is up: 0, if all is well.
    """
    habits = Habits(lease=5.0)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.call_later(seconds, over.set)
    chance = random.Random(f"{seed}/drain")
    async with Caller(address, ledger, "finisher", chance, over, timeout=30.0) as caller:
        crew = Crew(caller, habits)
        while True:
            tasks = await crew.claim(100, wait=0.2)
            if tasks:
                await crew.complete(tasks)
                continue
            left = (await caller.hopper.tasks.ListTasks(ListTasksRequest(page_size=1000))).tasks
            if not left or over.is_set():
                return len(left)


def now_micros() -> int:
    """The machine's time of day, as servers on it tell it."""
    return round(datetime.now(UTC).timestamp() * 1e6)


def _roles(text: str) -> list[str]:
    role, _, count = text.partition("*")
    if role not in ROLES:
        raise argparse.ArgumentTypeError(f"{role!r} is none of {', '.join(ROLES)}")
    return [role] * int(count or 1)


async def _main(arguments: argparse.Namespace) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    roles = [role for group in arguments.roles for role in group]
    with Ledger(arguments.ledger, arguments.ledger.stem) as ledger:
        print("ready", flush=True)
        await run(
            arguments.address,
            ledger,
            roles,
            seed=arguments.seed,
            seconds=arguments.seconds,
            habits=Habits(lease=arguments.lease, pause=arguments.pause, batch=arguments.batch),
            names=arguments.name,
            over=over,
        )


def main() -> int:
    """Run callers as this process, until time is up or SIGTERM."""
    usual = Habits()
    parser = argparse.ArgumentParser(description="callers that use a Hopper hard, and write down everything")
    parser.add_argument("roles", nargs="+", type=_roles, help=f"{', '.join(ROLES)}; worker*3: three of them")
    parser.add_argument("--address", action="append", required=True, help="several: callers take turns")
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--lease", type=float, default=usual.lease)
    parser.add_argument("--pause", type=float, default=usual.pause)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--name", action="append", default=[], help="of the workers, in turn")
    asyncio.run(_main(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
