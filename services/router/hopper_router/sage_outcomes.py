"""
Tells Sages what came of the tasks they were asked about, so that they learn.

The router's own log is the outbox, as it is for memory (`episodes`): whatever ends a task is in it, and a cursor says
how far it was read. It moves when the Sage has acknowledged, so nothing is lost while one is down; some may be told
twice, which changes nothing for a Sage. What the log does not keep any more (a week) is not told.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Connection

from hopper_common.errors import HopperError, ResumeTooOld, ShuttingDown
from hopper_common.eventlog import Event
from hopper_router.advice import Sages
from hopper_router.backoff import Backoff
from hopper_router.cascade import Use
from hopper_router.engine import Engine
from hopper_router.model import Decision, Task, TaskState, Word
from hopper_router.sage.advisor import Outcome, TaskOutcome
from hopper_router.sage.errors import SageRefused
from hopper_router.store_sql import EVENTS, Store
from hopper_router.transitions import TABLE
from hopper_router.unit import Unit

CURSOR: Final = "sage_outcomes_told"
LOOK_EVERY: Final = 1.0
BATCH: Final = 500
_ENDS: Final = frozenset(event.value for (_, event), state in TABLE.items() if state.final)
_MOST_DECISIONS: Final = 20
_OUTCOMES: Final = {
    TaskState.SUCCEEDED: Outcome.SUCCEEDED,
    TaskState.FAILED: Outcome.FAILED,
    TaskState.CANCELLED: Outcome.CANCELLED,
    TaskState.REJECTED: Outcome.REJECTED,
}

_log = structlog.get_logger("hopper.router")


class SageOutcomes:
    """Tells the Sages that policies name."""

    def __init__(self, engine: Engine, sages: Sages) -> None:
        self._engine = engine
        self._sages = sages
        self._backoff = Backoff(
            "outcomes for Sages", first=timedelta(seconds=1), longest=timedelta(minutes=1)
        )

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            try:
                more = await self.tell()
                self._backoff.worked()
            except ShuttingDown:
                raise
            except HopperError as error:
                await asyncio.sleep(self._backoff.failed(error.reason))
                continue
            if not more:
                await asyncio.sleep(LOOK_EVERY)

    async def tell(self) -> bool:
        """
        Tell what the next part of the log says; returns whether there is more of it.

        Raises:
            HopperError: Somebody did not listen, or the storage is in trouble: the same part is told again.
        """
        if not any(map(self._sages.where, self._engine.policies.sages)):
            return False
        cursor, head = await self._engine.db.read(_place)
        if cursor is None:  # who begins does not begin with the past
            await self._move(head)
            return False
        try:
            events = await self._engine.db.read(
                lambda conn: EVENTS.read(conn, after=cursor, limit=BATCH, topics=_ENDS)
            )
        except ResumeTooOld as error:
            _log.error("the log does not go on where Sages were told", cursor=cursor)
            await self._move(int(error.metadata["oldest"]) - 1)
            return True
        found = await self._engine.read(lambda unit: _outcomes(unit, events))
        for address, outcomes in found.items():
            if not self._sages.where(address):
                continue
            try:
                await self._sages.at(address).record(outcomes)
            except SageRefused as error:  # and would for ever
                _log.warning("a Sage refuses outcomes", reason=error.reason, count=len(outcomes))
        reached = events[-1].version if len(events) == BATCH else head
        if reached != cursor:
            await self._move(reached)
        return len(events) == BATCH

    async def _move(self, cursor: int) -> None:
        await self._engine.db.write(lambda conn: Store(conn).put_value(CURSOR, str(cursor).encode()))


def _place(conn: Connection) -> tuple[int | None, int]:
    """How far Sages have been told, None if they never were; and where the log ends."""
    stored = Store(conn).value(CURSOR)
    return int(stored) if stored else None, EVENTS.head(conn)


def _outcomes(unit: Unit, events: Iterable[Event]) -> Mapping[str, list[TaskOutcome]]:
    """What is to be told, by the Sages' addresses."""
    found: dict[str, list[TaskOutcome]] = defaultdict(list)
    for task in unit.tasks(dict.fromkeys(event.key for event in events)):
        address = _address(unit, task.instance)
        if address is not None and task.state.final:
            decisions = unit.store.list_decisions(task=task.name, limit=_MOST_DECISIONS)
            found[address] += _of_task(task, decisions)
    return found


def _address(unit: Unit, instance: str) -> str | None:
    policy = unit.world.policies.in_force(instance, unit.world.directory).policy
    return next((stage.address for stage in policy.stages if stage.use is Use.SAGE), None)


def _of_task(task: Task, decisions: list[Decision]) -> Iterable[TaskOutcome]:
    """What came of the questions that were asked about a task; *decisions*: newest first."""
    heard = {
        opinion.stage
        for decision in decisions
        for opinion in decision.opinions
        if opinion.word is not Word.FAILED
    }
    if Use.SAGE.value not in heard:
        return
    duration = task.finish_time - task.first_start if task.finish_time and task.first_start else None
    for decision in decisions[1:]:  # a question is named after the decision that left the task unsure
        if decision.opinions and not decision.project:
            yield TaskOutcome(
                decision.name,
                _OUTCOMES[task.state],
                final_project=decisions[0].project,
                duration=max(duration, timedelta(0)) if duration is not None else None,
                revision=task.generation,
            )
