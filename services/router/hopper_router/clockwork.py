"""
What the router does on its own: four loops, each of which can be stopped and started at any moment without harm.

    sweep       leases, deadlines and offers that have run out, every quarter of a second
    follow      tasks that nobody could take before, when the registry changes or room is made; instances that are
                being stopped, until nothing runs in them
    housekeep   answers, events and counts that have served their time

The fourth, sending episodes to memory, is in `episodes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy import func, select

from hopper_common.errors import HopperError, ShuttingDown
from hopper_common.timestamps import to_micros
from hopper_router import handover, placing, tables, working
from hopper_router.engine import Engine
from hopper_router.model import DelegationState, InstanceState, Task, TaskState
from hopper_router.ports import RunReport
from hopper_router.store_sql import EVENTS
from hopper_router.unit import Unit

SWEEP_EVERY: Final = 0.25
FOLLOW_AT_MOST_EVERY: Final = 0.1
LOOK_AGAIN_EVERY: Final = 5.0
HOUSEKEEP_EVERY: Final = 600.0
BATCH: Final = 200
KEEP_REQUESTS: Final = timedelta(days=1)
KEEP_EVENTS: Final = timedelta(days=7)

_WAITING: Final = (TaskState.SUBMITTED, TaskState.QUEUED)
_BUSY: Final = (TaskState.RUNNING, TaskState.INPUT_REQUIRED, TaskState.DELEGATED)
_log = structlog.get_logger("hopper.router")


class Clockwork:
    """The router's own loops."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reported: set[str] = set()

    async def sweep_forever(self) -> None:
        """Keep the clocks."""
        while True:
            await _outlive_trouble("sweep", self.sweep)
            await asyncio.sleep(SWEEP_EVERY)

    async def sweep(self) -> int:
        """Do what every clock that has run out asks for; returns how many it was."""
        done = 0
        while await self._engine.read(lambda unit: unit.store.anything_due(unit.now)):
            done += await self._engine.run(lambda unit: working.run_clocks(unit, BATCH))
        return done

    async def follow_forever(self) -> None:
        """Follow the registry, and the room that is made."""
        changed, room = self._engine.registry.changed, self._engine.room_made
        while True:
            seen = changed.count, room.count
            await _outlive_trouble("follow", self.follow)
            await asyncio.sleep(FOLLOW_AT_MOST_EVERY)
            waits = [
                asyncio.ensure_future(changed.wait(after=seen[0])),
                asyncio.ensure_future(room.wait(after=seen[1])),
            ]
            try:
                await asyncio.wait(waits, timeout=LOOK_AGAIN_EVERY, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def follow(self) -> None:
        """Look again at what waits, and at what is being stopped."""
        directory = self._engine.registry.current
        if not directory.complete:
            return
        self._engine.hub.wake_all()
        await self.place_waiting()
        # The copy of before a restart may be older than the tasks, and lack their projects.
        if self._engine.registry.confirmed:
            await self.replace_orphans()
        for instance in directory.instances.values():
            if instance.state is InstanceState.STOPPING:
                await self.drain(instance.name)
            else:
                self._reported.discard(instance.name)

    async def place_waiting(self) -> int:
        """Decide once more about every task that a decision left unplaced; returns how many moved."""
        moved, after = 0, ""
        while True:
            tasks = await self._engine.read(partial(_unplaced, after=after))
            if not tasks:
                return moved
            after = tasks[-1].id
            moved += await self._engine.run(partial(_place_again, names=[task.name for task in tasks]))

    async def replace_orphans(self) -> int:
        """Decide anew about queued tasks whose project is gone; returns how many it was."""
        known = self._engine.registry.current.projects
        gone = {
            name
            for name in await self._engine.read(lambda unit: unit.store.queued_projects())
            if name not in known
        }
        moved = 0
        while gone:
            orphans = await self._engine.read(lambda unit: unit.store.queued_for(gone, BATCH))
            step = await self._engine.run(partial(_place_again, names=[task.name for task in orphans]))
            moved += step
            if len(orphans) < BATCH or not step:
                break
        return moved

    async def drain(self, instance: str) -> None:
        """Send back what a stopping instance was handed, and report it stopped when nothing runs there."""
        await self._engine.run(lambda unit: _send_back(unit, instance))
        busy = await self._engine.read(lambda unit: unit.store.in_instance(instance, _BUSY, 1))
        if busy or instance in self._reported:
            return
        report = await self._engine.read(lambda unit: _run_report(unit, instance))
        await self._engine.registry.report_stopped(report)
        self._reported.add(instance)
        _log.info("instance stopped", instance=instance)

    async def housekeep_forever(self) -> None:
        """Keep the house."""
        while True:
            await _outlive_trouble("housekeep", self.housekeep)
            await asyncio.sleep(HOUSEKEEP_EVERY)

    async def housekeep(self) -> None:
        """Forget answers and events that have served their time, and count open work anew."""

        def forget(unit: Unit) -> None:
            self._engine.requests.forget(unit.store.conn, before=unit.now - KEEP_REQUESTS)
            versions = tables.events.c
            old = select(func.max(versions.version)).where(
                versions.create_time < to_micros(unit.now - KEEP_EVENTS)
            )
            newest_old = unit.store.conn.execute(old).scalar() or 0
            # What memory has not been told yet stays, however old it is.
            EVENTS.trim(unit.store.conn, before=min(newest_old, unit.store.episodes_sent()) + 1)

        await self._engine.run(forget)
        await self._engine.recount()


async def _outlive_trouble(what: str, step: Callable[[], Awaitable[object]]) -> None:
    """Storage and neighbours come back; the loop must be there when they do. A defect ends the process, loudly."""
    try:
        await step()
    except ShuttingDown:
        raise
    except HopperError as error:
        _log.warning("trouble, will try again", what=what, reason=error.reason)


def _unplaced(unit: Unit, after: str) -> list[Task]:
    return unit.store.unplaced(BATCH, after)


def _place_again(unit: Unit, names: list[str]) -> int:
    waiting = [task for task in unit.tasks(names) if task.state in _WAITING and not task.offered]
    return placing.place_again(unit, waiting)


def _send_back(unit: Unit, instance: str) -> None:
    for task in unit.known(unit.store.in_instance(instance, _WAITING, BATCH)):
        current = unit.task(task.name)
        if current.state in _WAITING and current.delegation:
            _give_back_if_idle(unit, current)


def _give_back_if_idle(unit: Unit, task: Task) -> None:
    delegation = unit.delegation(task.delegation)
    siblings = unit.tasks(delegation.child_tasks)
    running = any(sibling.state in (TaskState.RUNNING, TaskState.INPUT_REQUIRED) for sibling in siblings)
    if delegation.state.open and not running:
        handover.give_back(unit, delegation, DelegationState.RETURNED, f"{task.instance} is being stopped")


def _run_report(unit: Unit, instance: str) -> RunReport:
    start_time = unit.instance(instance).start_time
    ended = unit.store.ended_in(instance, start_time)
    returned = ended.get(TaskState.CANCELLED, 0) + ended.get(TaskState.REJECTED, 0)
    return RunReport(
        instance=instance,
        succeeded=ended.get(TaskState.SUCCEEDED, 0),
        failed=ended.get(TaskState.FAILED, 0),
        returned=returned,
        start_time=start_time,
        end_time=unit.now,
    )
