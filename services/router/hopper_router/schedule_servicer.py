"""`hopper.router.v1.ScheduleService`: recurring tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from google.protobuf.message import Message

from hopper.router.v1 import schedule_pb2 as pb
from hopper.router.v1 import schedule_service_pb2 as svc
from hopper.router.v1.schedule_service_pb2_grpc import ScheduleServiceServicer
from hopper_common import fieldmask
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.pagination import page_size
from hopper_router import scheduling
from hopper_router.engine import Engine
from hopper_router.schedule_convert import (
    MUTABLE,
    definition_from_proto,
    definition_to_proto,
    schedule_to_proto,
)
from hopper_router.schedule_rows import ScheduleStore
from hopper_router.schedules import Definition, Schedule
from hopper_router.servicer import TOKENS, Context, up_to_date
from hopper_router.unit import Unit
from hopper_router.views import task_view

M = TypeVar("M", bound=Message)
_RECENT: Final = 10


class ScheduleServicer(ScheduleServiceServicer):
    """Translates; `scheduling` does the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def CreateSchedule(
        self, request: svc.CreateScheduleRequest, context: Context
    ) -> svc.CreateScheduleResponse:
        definition = definition_from_proto(request.schedule)

        def effect(make: Callable[..., Schedule], unit: Unit) -> svc.CreateScheduleResponse:
            return svc.CreateScheduleResponse(
                schedule=_view(unit, make(unit, request.schedule_id, definition))
            )

        if request.validate_only:
            drafted = partial(effect, scheduling.draft)
            return await up_to_date(self._engine, lambda: self._engine.read(drafted))
        return await self._mutate(
            "CreateSchedule", request, svc.CreateScheduleResponse, partial(effect, scheduling.create)
        )

    async def GetSchedule(self, request: svc.GetScheduleRequest, context: Context) -> svc.GetScheduleResponse:
        return await self._engine.read(
            lambda unit: svc.GetScheduleResponse(schedule=_view(unit, scheduling.find(unit, request.name)))
        )

    async def ListSchedules(
        self, request: svc.ListSchedulesRequest, context: Context
    ) -> svc.ListSchedulesResponse:
        after = str(TOKENS.decode(request.page_token, request).get("after", ""))
        size = page_size(request.page_size)

        def look(unit: Unit) -> svc.ListSchedulesResponse:
            store = ScheduleStore(unit.store.conn)
            found = store.page(request.parent, after, size + 1)
            page, more = found[:size], len(found) > size
            runs = store.last_run_of_each([schedule.id for schedule in page])
            return svc.ListSchedulesResponse(
                schedules=[schedule_to_proto(each, runs.get(each.id, ()), full=False) for each in page],
                next_page_token=TOKENS.encode({"after": page[-1].id}, request) if more else "",
            )

        return await self._engine.read(look)

    async def UpdateSchedule(
        self, request: svc.UpdateScheduleRequest, context: Context
    ) -> svc.UpdateScheduleResponse:
        name = request.schedule.name
        if not name:
            raise InvalidArgument(violations=[FieldViolation("schedule.name", "is required")])

        def effect(unit: Unit) -> svc.UpdateScheduleResponse:
            changed = scheduling.change(unit, name, partial(_merged, request), etag=request.schedule.etag)
            return svc.UpdateScheduleResponse(schedule=_view(unit, changed))

        return await self._mutate("UpdateSchedule", request, svc.UpdateScheduleResponse, effect)

    async def PauseSchedule(
        self, request: svc.PauseScheduleRequest, context: Context
    ) -> svc.PauseScheduleResponse:
        def effect(unit: Unit) -> svc.PauseScheduleResponse:
            paused = scheduling.pause(unit, request.name, request.reason)
            return svc.PauseScheduleResponse(schedule=_view(unit, paused))

        return await self._mutate("PauseSchedule", request, svc.PauseScheduleResponse, effect)

    async def ResumeSchedule(
        self, request: svc.ResumeScheduleRequest, context: Context
    ) -> svc.ResumeScheduleResponse:
        def effect(unit: Unit) -> svc.ResumeScheduleResponse:
            return svc.ResumeScheduleResponse(schedule=_view(unit, scheduling.resume(unit, request.name)))

        return await self._mutate("ResumeSchedule", request, svc.ResumeScheduleResponse, effect)

    async def DeleteSchedule(
        self, request: svc.DeleteScheduleRequest, context: Context
    ) -> svc.DeleteScheduleResponse:
        def effect(unit: Unit) -> svc.DeleteScheduleResponse:
            scheduling.remove(unit, request.name, etag=request.etag)
            return svc.DeleteScheduleResponse()

        return await self._mutate("DeleteSchedule", request, svc.DeleteScheduleResponse, effect)

    async def TriggerSchedule(
        self, request: svc.TriggerScheduleRequest, context: Context
    ) -> svc.TriggerScheduleResponse:
        def effect(unit: Unit) -> svc.TriggerScheduleResponse:
            task, schedule = scheduling.trigger(unit, request.name)
            unit.flush()  # the schedule's runs are shown with the states of their tasks
            return svc.TriggerScheduleResponse(task=task_view(unit, task), schedule=_view(unit, schedule))

        return await self._mutate("TriggerSchedule", request, svc.TriggerScheduleResponse, effect)

    async def _mutate(
        self, method: str, request: Message, response_type: type[M], effect: Callable[[Unit], M]
    ) -> M:
        return await up_to_date(
            self._engine, lambda: self._engine.mutate(method, request, response_type, effect)
        )


def _view(unit: Unit, schedule: Schedule) -> pb.Schedule:
    runs = ScheduleStore(unit.store.conn).last_runs(schedule.id, _RECENT)
    return schedule_to_proto(schedule, runs, upcoming=scheduling.upcoming(schedule, unit.now))


def _merged(request: svc.UpdateScheduleRequest, current: Definition) -> Definition:
    """What is said about a schedule, with the changes that an update asks for."""
    target = definition_to_proto(current)
    mask = request.update_mask
    if not mask.paths:
        mask = type(mask)(paths=_set_fields(request.schedule))
    fieldmask.merge(mask, request.schedule, target, mutable=MUTABLE)
    return definition_from_proto(target)


def _set_fields(message: pb.Schedule) -> list[str]:
    """The fields of a schedule that are set and may be; of its spec each one."""
    names = [field.name for field, _ in message.ListFields() if field.name in MUTABLE]
    spec = [f"spec.{field.name}" for field, _ in message.spec.ListFields()]
    return [name for name in names if name != "spec"] + spec
