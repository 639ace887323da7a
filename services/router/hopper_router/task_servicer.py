"""`hopper.router.v1.TaskService`: tasks taken in, followed, called off, explained."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, cast
from uuid import UUID, uuid5

from hopper.common.v1 import watch_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper.router.v1.task_service_pb2_grpc import TaskServiceServicer
from hopper_common import fieldmask
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.eventlog import Event
from hopper_common.idempotency import digest_of
from hopper_router import archive, explain, intake, placing, recall, wire, working
from hopper_router.convert import (
    attempt_to_proto,
    decision_to_proto,
    event_from_bytes,
    hold_from_proto,
    item_error,
    spec_from_proto,
    spec_to_proto,
    state_from_proto,
)
from hopper_router.engine import Engine
from hopper_router.hot import Left, Repeat
from hopper_router.hot_path import Call, Taken
from hopper_router.lookout import Alike, Arrivals, review
from hopper_router.model import OPEN_STATES, Task, TaskSpec
from hopper_router.servicer import Context, Page, each, up_to_date
from hopper_router.store_sql import EVENTS, ParkedFilter, TaskFilter
from hopper_router.unit import Unit, own_savepoint
from hopper_router.views import BASIC, FULL, duplicate_view, task_view, task_views

_WORD: Final = re.compile(r"\w+")
_DEFAULT_FOUND: Final = 20
_SHORTEST_SUFFIX: Final = 4
_SNAPSHOT: Final = 500
_MOST_REPLAYED: Final = 1000
_MOST_ATTEMPTS: Final = 1000
_WINDOW: Final = 256
"""Requests of a stream that are in work at once; the stream waits for room, which is its flow control."""


class TaskServicer(TaskServiceServicer):
    """Translates; `placing` and `explain` do the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # ------------------------------------------------------------ taking in

    async def SubmitTask(self, request: svc.SubmitTaskRequest, context: Context) -> svc.SubmitTaskResponse:
        taken = await self._submit(request)
        if isinstance(taken, Taken):
            task = self._engine.view(taken.task, FULL, generation=taken.generation)
            answer = wire.submitted(task.SerializeToString(), taken.record)
            return cast("svc.SubmitTaskResponse", answer)  # bytes go out as they are
        return taken

    async def _submit(self, request: svc.SubmitTaskRequest) -> Taken | svc.SubmitTaskResponse:
        """Take a task in: by the hot path, if that may and nothing looks like the same work."""
        spec = spec_from_proto(request.spec)
        async with self._engine.lookout.arrivals(request.parent, (spec,)) as arrivals:
            alike = await arrivals.alike(0)
            taken = None if alike else await self._take(request, spec)
            if taken is not None:
                arrivals.taken(0, taken.task.name)
                return taken
            answer = await self._submit_by_unit(request, spec, arrivals, alike)
        return await self._advised(answer)  # meanwhile tasks like it may come

    async def _take(
        self, request: svc.SubmitTaskRequest, spec: TaskSpec
    ) -> Taken | svc.SubmitTaskResponse | None:
        """Take a task in by the hot path; None: it is for a unit."""
        digest = digest_of("SubmitTask", request) if request.request_id else b""
        call = Call("SubmitTask", request.parent, (spec,), request.request_id, digest, _names_of_one)
        taken = await self._engine.hot.submit(call)
        if isinstance(taken, Repeat):
            return await self._engine.told_again("SubmitTask", taken, svc.SubmitTaskResponse)
        return None if isinstance(taken, Left) else taken[0]

    async def _submit_by_unit(
        self, request: svc.SubmitTaskRequest, spec: TaskSpec, arrivals: Arrivals, alike: list[Alike]
    ) -> svc.SubmitTaskResponse:
        def effect(unit: Unit) -> svc.SubmitTaskResponse:
            found = arrivals.still_open(unit, alike)
            wanted = review(unit, request.parent, spec, found, allow=request.allow_duplicate)
            task, decision = placing.submit(unit, request.parent, wanted)
            recorded = unit.recorded.get(decision.name) or decision_to_proto(decision)
            return svc.SubmitTaskResponse(
                task=task_view(unit, task, FULL), decision=recorded, duplicates=map(duplicate_view, found)
            )

        response = await up_to_date(
            self._engine,
            lambda: self._engine.mutate("SubmitTask", request, svc.SubmitTaskResponse, effect),
        )
        arrivals.taken(0, response.task.name)
        return response

    async def _advised(self, response: svc.SubmitTaskResponse) -> svc.SubmitTaskResponse:
        """The answer once the task has been placed by what others advised, if the policy says to wait for that."""
        task = response.task
        if task.state != pb.Task.STATE_SUBMITTED or not await self._engine.wait_for_advice(task.name):
            return response

        def look(unit: Unit) -> svc.SubmitTaskResponse:
            placed = unit.task(task.name)
            decision = unit.store.decisions([placed.decision])[placed.decision]
            return svc.SubmitTaskResponse(
                task=task_view(unit, placed, FULL),
                decision=decision_to_proto(decision),
                duplicates=response.duplicates,
            )

        return await self._engine.read(look)

    async def SubmitTasks(self, request: svc.SubmitTasksRequest, context: Context) -> svc.SubmitTasksResponse:
        specs = [spec_from_proto(item.spec) for item in request.items]
        async with self._engine.lookout.arrivals(request.parent, specs) as arrivals:
            alike = await arrivals.all_alike()
            response = await self._submit_many(request, specs, arrivals, alike)
            arrivals.all_taken(result.task.name for result in response.results)
            return response

    async def _submit_many(
        self,
        request: svc.SubmitTasksRequest,
        specs: list[TaskSpec],
        arrivals: Arrivals,
        alike: Mapping[int, list[Alike]],
    ) -> svc.SubmitTasksResponse:
        """Take tasks in: those of the simple kind in one set, the rest by a unit."""
        response = await self._submit_hot(request, specs, alike.keys())
        if response is None:
            response = await self._submit_rest(request, specs, {}, arrivals, alike)
        # Also of a repeat that went to a unit, and was answered with what the hot path did then.
        rest = [place for place, result in enumerate(response.results) if not result.WhichOneof("result")]
        if rest:
            others = svc.SubmitTasksRequest()
            others.CopyFrom(request)
            if request.request_id:  # what a unit does of the call is remembered under an id of its own
                others.request_id = str(uuid5(UUID(request.request_id), "rest"))
            done = {place: result for place, result in enumerate(response.results) if place not in rest}
            answer = await self._submit_rest(others, specs, done, arrivals, alike)
            for place, result in zip(rest, answer.results, strict=True):
                response.results[place].CopyFrom(result)
        return response

    async def _submit_rest(
        self,
        request: svc.SubmitTasksRequest,
        specs: list[TaskSpec],
        done: Mapping[int, svc.SubmitTasksResult],
        arrivals: Arrivals,
        alike: Mapping[int, list[Alike]],
    ) -> svc.SubmitTasksResponse:
        """The items that are not done yet, by a unit; one result for each of these, in order."""
        await self._learn_of({spec.project for spec in specs if spec.project})

        def effect(unit: Unit) -> svc.SubmitTasksResponse:
            # The same for all of them, so it is nobody's own error.
            intake.require_accepting(unit, request.parent)
            names = {place: one.task.name for place, one in done.items()}
            batch = _Batch(unit, request, specs, names, arrivals, alike)
            results = each(
                [place for place in range(len(specs)) if place not in done],
                batch.submit,
                lambda _, error: svc.SubmitTasksResult(error=item_error(error)),
            )
            return svc.SubmitTasksResponse(results=results)

        return await up_to_date(
            self._engine,
            lambda: self._engine.mutate("SubmitTasks", request, svc.SubmitTasksResponse, effect),
        )

    async def _submit_hot(
        self, request: svc.SubmitTasksRequest, specs: list[TaskSpec], alike: Collection[int]
    ) -> svc.SubmitTasksResponse | None:
        """
        The items of the simple kind, in one set; the others have an empty result, and so have those that are *alike*
        something. None: there are none.
        """
        digest = digest_of("SubmitTasks", request) if request.request_id else b""
        call = Call(
            "SubmitTasks",
            request.parent,
            specs,
            request.request_id,
            digest,
            partial(_names_of_many, len(specs)),
            partial=True,
            others={place for place, item in enumerate(request.items) if item.after or place in alike},
        )
        taken = await self._engine.hot.submit(call)
        if isinstance(taken, Repeat):
            return await self._engine.told_again("SubmitTasks", taken, svc.SubmitTasksResponse)
        if taken is Left.COLD:
            return None
        view = self._engine.view
        return svc.SubmitTasksResponse(
            results=[
                svc.SubmitTasksResult(task=view(one.task, BASIC, generation=one.generation))
                if one
                else svc.SubmitTasksResult()
                for one in taken
            ]
        )

    async def SubmitStream(
        self, request_iterator: AsyncIterator[svc.SubmitStreamRequest], context: Context
    ) -> AsyncIterator[svc.SubmitStreamResponse]:
        answers: asyncio.Queue[asyncio.Future[svc.SubmitStreamResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(_WINDOW)

        async def read() -> None:
            async for request in request_iterator:
                await room.acquire()
                answers.put_nowait(asyncio.ensure_future(self._submit_of_stream(request, context)))

        reading = asyncio.ensure_future(read())
        reading.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()  # not before it is written: who does not read, is not read
            await reading  # raises what broke the stream
        finally:
            reading.cancel()

    async def _submit_of_stream(
        self, request: svc.SubmitStreamRequest, context: Context
    ) -> svc.SubmitStreamResponse:
        call = svc.SubmitTaskRequest(
            parent=request.parent,
            spec=request.spec,
            request_id=request.request_id,
            allow_duplicate=request.allow_duplicate,
        )
        try:
            taken = await self._submit(call)
        except HopperError as error:
            return svc.SubmitStreamResponse(error=item_error(error))
        if isinstance(taken, Taken):
            task = self._engine.view(taken.task, BASIC, generation=taken.generation)
            return svc.SubmitStreamResponse(task=task)
        return svc.SubmitStreamResponse(task=_basic(taken.task), duplicates=taken.duplicates)

    async def _learn_of(self, projects: set[str]) -> None:
        """Ask once for projects that the copy of the registry lacks: they may have been registered a moment ago."""
        registry = self._engine.registry
        unknown = projects.difference(registry.current.projects) if registry.current.complete else set()
        await asyncio.gather(*map(registry.refresh_project, unknown))

    # ------------------------------------------------------------ looking up

    async def GetTask(self, request: svc.GetTaskRequest, context: Context) -> svc.GetTaskResponse:
        view = request.view or BASIC

        def look(unit: Unit) -> pb.Task:
            archived = {}
            if not unit.tasks([request.name]):
                archived = archive.tasks(unit.store.conn, [request.name])
            return task_view(unit, archived.get(request.name) or unit.task(request.name), view)

        return svc.GetTaskResponse(task=await self._engine.read(look))

    async def ListTasks(self, request: svc.ListTasksRequest, context: Context) -> svc.ListTasksResponse:
        if request.id_suffix and len(request.id_suffix) < _SHORTEST_SUFFIX:
            problem = f"must have {_SHORTEST_SUFFIX} characters or more"
            raise InvalidArgument(violations=[FieldViolation("id_suffix", problem)])
        page = Page.of(request)
        wanted = TaskFilter(
            instance=request.parent,
            states=[state_from_proto(state, field="states") for state in request.states] or OPEN_STATES,
            project=request.project,
            tag=request.tag,
            requester=request.requester,
            id_suffix=request.id_suffix,
        )

        def look(unit: Unit) -> svc.ListTasksResponse:
            found = unit.store.list_tasks(wanted, before_id=page.before_id, limit=page.size + 1)
            tasks, token = page.cut(found, request, lambda task: task.id)
            return svc.ListTasksResponse(
                tasks=task_views(unit, tasks, request.view or BASIC), next_page_token=token
            )

        return await self._engine.read(look)

    async def SearchTasks(self, request: svc.SearchTasksRequest, context: Context) -> svc.SearchTasksResponse:
        words = _WORD.findall(request.query)
        if not words:
            raise InvalidArgument(violations=[FieldViolation("query", "has no word to search for")])
        await self._engine.words.catch_up()

        def look(unit: Unit) -> svc.SearchTasksResponse:
            found = unit.store.search(
                words,
                instance=request.parent,
                finished=request.include_finished,
                limit=request.limit or _DEFAULT_FOUND,
            )
            return svc.SearchTasksResponse(tasks=task_views(unit, found))

        return await self._engine.read(look)

    # ------------------------------------------------------------ changing

    async def UpdateTask(self, request: svc.UpdateTaskRequest, context: Context) -> svc.UpdateTaskResponse:
        name = request.task.name
        if not name:
            raise InvalidArgument(violations=[FieldViolation("task.name", "is required")])

        def effect(unit: Unit) -> svc.UpdateTaskResponse:
            spec = _merged(request, unit.task(name).spec)
            task = placing.change_spec(unit, name, spec, etag=request.task.etag)
            return svc.UpdateTaskResponse(task=task_view(unit, task))

        return await up_to_date(
            self._engine,
            lambda: self._engine.mutate("UpdateTask", request, svc.UpdateTaskResponse, effect),
        )

    async def CancelTask(self, request: svc.CancelTaskRequest, context: Context) -> svc.CancelTaskResponse:
        def effect(unit: Unit) -> svc.CancelTaskResponse:
            return svc.CancelTaskResponse(
                task=task_view(unit, placing.cancel(unit, request.name, request.reason))
            )

        return await self._engine.mutate("CancelTask", request, svc.CancelTaskResponse, effect)

    async def BlockTask(self, request: svc.BlockTaskRequest, context: Context) -> svc.BlockTaskResponse:
        def effect(unit: Unit) -> svc.BlockTaskResponse:
            task = placing.block(unit, request.name, hold_from_proto(request.hold))
            return svc.BlockTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("BlockTask", request, svc.BlockTaskResponse, effect)

    async def UnblockTask(self, request: svc.UnblockTaskRequest, context: Context) -> svc.UnblockTaskResponse:
        def effect(unit: Unit) -> svc.UnblockTaskResponse:
            return svc.UnblockTaskResponse(task=task_view(unit, placing.unblock(unit, request.name)))

        return await self._engine.mutate("UnblockTask", request, svc.UnblockTaskResponse, effect)

    async def ReplayTasks(self, request: svc.ReplayTasksRequest, context: Context) -> svc.ReplayTasksResponse:
        if not request.names and not request.reason:
            raise InvalidArgument(
                violations=[FieldViolation("names", "name tasks, or the reason of those that failed for it")]
            )
        wanted = ParkedFilter(request.reason, request.parent, request.project)

        def effect(unit: Unit) -> svc.ReplayTasksResponse:
            names = list(request.names) or [task.name for task in unit.store.parked(wanted, _MOST_REPLAYED)]
            return svc.ReplayTasksResponse(results=[_replayed(unit, name) for name in names])

        return await self._engine.mutate("ReplayTasks", request, svc.ReplayTasksResponse, effect)

    async def ListAttempts(
        self, request: svc.ListAttemptsRequest, context: Context
    ) -> svc.ListAttemptsResponse:
        def look(unit: Unit) -> svc.ListAttemptsResponse:
            attempts = unit.store.attempts(unit.task(request.task).name, _MOST_ATTEMPTS)
            return svc.ListAttemptsResponse(attempts=[attempt_to_proto(attempt) for attempt in attempts])

        return await self._engine.read(look)

    async def AnswerTask(self, request: svc.AnswerTaskRequest, context: Context) -> svc.AnswerTaskResponse:
        def effect(unit: Unit) -> svc.AnswerTaskResponse:
            task = working.answer(unit, request.name, request.answer, request.answered_by)
            return svc.AnswerTaskResponse(task=task_view(unit, task))

        return await self._engine.mutate("AnswerTask", request, svc.AnswerTaskResponse, effect)

    # ------------------------------------------------------------ following

    async def WatchTasks(
        self, request: svc.WatchTasksRequest, context: Context
    ) -> AsyncIterator[svc.WatchTasksResponse]:
        after = request.after_generation
        if not after:
            tasks, after = await self._engine.read(lambda unit: _snapshot(unit, request))
            for task in tasks:
                yield svc.WatchTasksResponse(generation=after, task=task)
            complete = watch_pb2.SnapshotComplete(count=len(tasks))
            yield svc.WatchTasksResponse(generation=after, snapshot_complete=complete)
        async for events in EVENTS.tail(self._engine.db, after=after):
            for change in await self._told([event for event in events if _may_concern(request, event.key)]):
                if _concerns(request, change.task, change.from_project):
                    yield svc.WatchTasksResponse(generation=change.task.generation, change=change)

    async def _told(self, events: list[Event]) -> list[svc.TaskEvent]:
        if any(recall.is_short(event) for event in events):
            return await self._engine.read(lambda unit: recall.told(unit, events))
        return [event_from_bytes(event.body, event.version) for event in events]

    async def ExplainTask(self, request: svc.ExplainTaskRequest, context: Context) -> svc.ExplainTaskResponse:
        return await up_to_date(
            self._engine,
            lambda: self._engine.read(
                lambda unit: explain.explain(
                    unit, request.name, request.not_project, self._engine.learned.explain
                )
            ),
        )


class _Batch:
    """The items of one SubmitTasks call; an item may wait for earlier ones."""

    def __init__(
        self,
        unit: Unit,
        request: svc.SubmitTasksRequest,
        specs: list[TaskSpec],
        names: Mapping[int, str],
        arrivals: Arrivals,
        alike: Mapping[int, list[Alike]],
    ) -> None:
        self._unit = unit
        self._request = request
        self._specs = specs
        self._names = dict(names)
        self._arrivals = arrivals
        self._alike = alike

    def submit(self, position: int) -> svc.SubmitTasksResult:
        request = self._request
        found = self._arrivals.still_open(self._unit, self._alike.get(position, ()), self._names)
        spec = review(self._unit, request.parent, self._specs[position], found, allow=request.allow_duplicate)
        spec = replace(spec, dependencies=self._dependencies(position))
        task, _ = own_savepoint(self._unit, lambda: placing.submit(self._unit, request.parent, spec))
        self._names[position] = task.name
        return svc.SubmitTasksResult(task=task_view(self._unit, task), duplicates=map(duplicate_view, found))

    def _dependencies(self, position: int) -> tuple[str, ...]:
        earlier: list[str] = []
        for other in self._request.items[position].after:
            if other >= position or other not in self._names:
                field = f"items[{position}].after"
                problem = (
                    f"item {other} does not come before this one"
                    if other >= position
                    else f"item {other} was refused"
                )
                raise InvalidArgument(violations=[FieldViolation(field, problem)])
            earlier.append(self._names[other])
        return tuple(dict.fromkeys((*self._specs[position].dependencies, *earlier)))


def _merged(request: svc.UpdateTaskRequest, current: TaskSpec) -> TaskSpec:
    """The spec with the changes that an update asks for."""
    target = pb.Task(spec=spec_to_proto(current))
    mask = request.update_mask
    if not mask.paths:
        mask = type(mask)(paths=[f"spec.{field.name}" for field, _ in request.task.spec.ListFields()])
    fieldmask.merge(mask, request.task, target, mutable=("spec",))
    if not target.spec.title:
        raise InvalidArgument(violations=[FieldViolation("task.spec.title", "is required")])
    return spec_from_proto(target.spec)


def _snapshot(unit: Unit, request: svc.WatchTasksRequest) -> tuple[list[pb.Task], int]:
    """Every open task that is followed, and the place in the log at which that was so."""
    if request.task:
        unit.task(request.task)
    wanted = TaskFilter(instance=request.parent, project=request.project)
    tasks: list[pb.Task] = []
    before = ""
    while True:
        found = unit.store.list_tasks(wanted, before_id=before, limit=_SNAPSHOT)
        tasks += [view for view in task_views(unit, found) if _concerns(request, view)]
        if len(found) < _SNAPSHOT:
            return tasks, EVENTS.head(unit.store.conn)
        before = found[-1].id


def _replayed(unit: Unit, name: str) -> svc.ReplayTasksResult:
    try:
        task = own_savepoint(unit, lambda: placing.replay(unit, name))
    except HopperError as error:
        return svc.ReplayTasksResult(name=name, error=item_error(error))
    return svc.ReplayTasksResult(name=name, task=task_view(unit, task))


def _names_of_one(tasks: Mapping[int, Task]) -> bytes:
    return wire.submitted_name(tasks[0].name)


def _names_of_many(count: int, tasks: Mapping[int, Task]) -> bytes:
    return wire.submitted_names(tasks[place].name if place in tasks else "" for place in range(count))


def _basic(task: pb.Task) -> pb.Task:
    """A task in FULL view, in BASIC view."""
    for field in ("description", "payload"):
        task.spec.ClearField(field)
    task.ClearField("result")
    return task


def _may_concern(request: svc.WatchTasksRequest, name: str) -> bool:
    """Whether a follower may have asked for a task of that name."""
    if request.task:
        return name == request.task
    return not request.parent or name.startswith(f"{request.parent}/tasks/")


def _concerns(request: svc.WatchTasksRequest, task: pb.Task, from_project: str = "") -> bool:
    """Whether a follower asked for this task; one that leaves a project still concerns who follows that."""
    if request.task and task.name != request.task:
        return False
    if request.parent and not task.name.startswith(f"{request.parent}/tasks/"):
        return False
    return not request.project or request.project in (task.project, from_project)
