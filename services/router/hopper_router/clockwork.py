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
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from hopper_common.errors import HopperError, ShuttingDown
from hopper_router import limits, placing, working
from hopper_router.directory import Directory
from hopper_router.engine import Engine
from hopper_router.model import Instance, InstanceState, Task, TaskState, WaitReason
from hopper_router.ports import RunReport
from hopper_router.store_sql import EVENTS
from hopper_router.unit import Unit, own_savepoint

SWEEP_EVERY: Final = 0.25
FOLLOW_AT_MOST_EVERY: Final = 0.1
LOOK_AGAIN_EVERY: Final = 5.0
HOUSEKEEP_EVERY: Final = 600.0
BATCH: Final = 200
KEEP_REQUESTS: Final = timedelta(days=1)
KEEP_EVENTS: Final = timedelta(days=7)
CLOCKS_APART: Final = timedelta(milliseconds=50)
"""Routers of one database read its server's clock over the network, and each is wrong by a part of a round trip."""

_WAITING: Final = (TaskState.SUBMITTED, TaskState.QUEUED)
_NEVER: Final = datetime.min
_BUSY: Final = (TaskState.RUNNING, TaskState.INPUT_REQUIRED, TaskState.DELEGATED)
_log = structlog.get_logger("hopper.router")


class Clockwork:
    """
    The router's own loops.

    Args:
        apart: How far the clocks of two routers may be apart: so much later a clock runs out, because a lease must not
            end for everybody else while it goes on for its owner.
    """

    def __init__(self, engine: Engine, *, apart: timedelta = timedelta()) -> None:
        self._engine = engine
        self._apart = apart
        self._reported: dict[str, datetime | None] = {}
        self._followed: Directory | None = None

    async def sweep_forever(self) -> None:
        """Keep the clocks."""
        while True:
            await _outlive_trouble("sweep", self.sweep)
            await asyncio.sleep(SWEEP_EVERY)

    async def sweep(self) -> int:
        """Do what every clock that has run out asks for; returns how many it was."""
        done = 0
        await self._engine.promote_due()
        while await self._engine.read(lambda unit: unit.store.anything_due(unit.now - self._apart)):
            # Whose time to get ready has come is due too; the router that would have thought of it may be gone.
            await self._engine.promote()
            step = await self._engine.run(partial(_run_clocks, self._apart))
            if (
                not step
            ):  # each that is due has been refused, and the log told: not again before the next sweep
                break
            done += step
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
        if directory is not self._followed:
            self._followed = directory
            self._engine.hub.wake_all()  # what stood still may go on
        await self.place_waiting()
        # The copy of before a restart may be older than the tasks, and lack their projects.
        if self._engine.registry.confirmed:
            await self.replace_orphans()
        for instance in directory.instances.values():
            if instance.state is InstanceState.STOPPING:
                # Each on its own: one that cannot be reported does not keep the others from stopping.
                await _outlive_trouble("drain", partial(self.drain, instance))

    async def place_waiting(self) -> int:
        """Decide once more about every task that a decision left unplaced; returns how many moved."""
        moved, after = 0, ""
        while True:
            tasks = await self._engine.read(partial(_unplaced, after=after))
            if not tasks:
                return moved
            after = tasks[-1].id
            if not self._engine.registry.confirmed:
                # In the copy of before a restart there may be one candidate alone for what two were unsure about.
                tasks = [task for task in tasks if not _is_unsure(task)]
            moved += await self._engine.run(partial(_place_again, [task.name for task in tasks]))

    async def replace_orphans(self) -> int:
        """Decide anew about queued tasks whose project is gone; returns how many it was."""
        known = self._engine.registry.current.projects
        gone = self._engine.busy_projects.difference(known)
        moved, after = 0, ""
        while gone:
            orphans = await self._engine.read(partial(_orphans, gone, after))
            if not orphans:
                break
            after = orphans[-1].id
            moved += await self._engine.run(partial(_place_orphans, [task.name for task in orphans]))
        return moved

    async def drain(self, instance: Instance) -> None:
        """Send back what a stopping instance was handed, and report it stopped when nothing runs there."""
        name, after, kept = instance.name, "", False
        while True:
            waiting = await self._engine.read(partial(_waiting_in, name, after))
            if not waiting:
                break
            after = waiting[-1].id
            handed = [task.name for task in waiting if task.delegation]
            kept = await self._engine.run(partial(_send_back, handed)) or kept
        busy = await self._engine.read(lambda unit: unit.store.in_instance(name, _BUSY, 1))
        # A run is reported once, and told from the next by its start: we may not see what is between them.
        if kept or busy or self._reported.get(name, _NEVER) == instance.start_time:
            return
        report = await self._engine.read(lambda unit: _run_report(unit, name))
        await self._engine.registry.report_stopped(report)
        self._reported[name] = instance.start_time
        _log.info("instance stopped", instance=name)

    async def housekeep_forever(self) -> None:
        """Keep the house."""
        while True:
            await _outlive_trouble("housekeep", self.housekeep)
            await asyncio.sleep(HOUSEKEEP_EVERY)

    async def housekeep(self) -> None:
        """Forget answers and events that have served their time."""

        def forget(unit: Unit) -> None:
            limits.forget_starts(unit)
            self._engine.requests.forget(unit.store.conn, before=unit.now - KEEP_REQUESTS)
            # What memory has not been told yet stays, however old it is.
            first = EVENTS.first_since(unit.store.conn, unit.now - KEEP_EVENTS)
            EVENTS.trim(unit.store.conn, before=min(first, unit.store.episodes_sent() + 1))

        await self._engine.run(forget)


async def _outlive_trouble(what: str, step: Callable[[], Awaitable[object]]) -> None:
    """Storage and neighbours come back; the loop must be there when they do. A defect ends the process, loudly."""
    try:
        await step()
    except ShuttingDown:
        raise
    except HopperError as error:
        _log.warning("trouble, will try again", what=what, reason=error.reason)


def _each(unit: Unit, what: str, names: Iterable[str], step: Callable[[Unit, str], object]) -> int:
    """Do a step for each, on its own: one that is refused is told to the log, and keeps no other from its turn."""
    done = 0
    for name in names:
        try:
            own_savepoint(unit, partial(step, unit, name))
            done += 1
        except HopperError as error:
            _log.warning("refused, will try again", what=what, name=name, reason=error.reason)
    return done


def _run_clocks(apart: timedelta, unit: Unit) -> int:
    then = unit.now - apart
    tasks = [task.name for task in unit.store.due(then, BATCH)]
    done = _each(unit, "clock", tasks, working.run_clock)
    offers = [offer.name for offer in unit.store.overdue_offers(then, BATCH)]
    return done + _each(unit, "offer", offers, working.run_offer)


def _unplaced(unit: Unit, after: str) -> list[Task]:
    return unit.store.unplaced(BATCH, after)


def _is_unsure(task: Task) -> bool:
    return task.wait is not None and task.wait.reason is WaitReason.UNSURE


def _place_again(names: list[str], unit: Unit) -> int:
    moved = 0

    def step(unit: Unit, name: str) -> None:
        nonlocal moved
        task = unit.task(name)
        if task.state is TaskState.SUBMITTED and not task.offered:
            moved += placing.place_again(unit, [task])

    _each(unit, "place", names, step)
    return moved


def _orphans(gone: Collection[str], after: str, unit: Unit) -> list[Task]:
    return unit.store.queued_for(gone, BATCH, after)


def _place_orphans(names: list[str], unit: Unit) -> int:
    moved = 0

    def step(unit: Unit, name: str) -> None:
        nonlocal moved
        task = unit.task(name)
        if task.state is TaskState.QUEUED:
            moved += placing.place_orphan(unit, task)

    _each(unit, "place", names, step)
    return moved


def _waiting_in(instance: str, after: str, unit: Unit) -> list[Task]:
    return unit.store.in_instance(instance, _WAITING, BATCH, after)


def _send_back(names: list[str], unit: Unit) -> bool:
    """Returns whether any stays: what it came with is worked on, or whoever had it has to say whether it has begun."""
    kept = False

    def step(unit: Unit, name: str) -> None:
        nonlocal kept
        task = unit.task(name)
        if task.state in _WAITING:
            kept = not placing.send_back(unit, task, f"{task.instance} is being stopped") or kept

    return _each(unit, "send back", names, step) < len(names) or kept


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
