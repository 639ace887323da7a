"""
A policy's shadow: a second policy that decides about the same tasks, beside the one in force, and never acts.

    log ── SUBMIT, DECIDE ──► Shadow ── decides again ──► shadow_decisions
                                 cursor ◄── in the same transaction

It follows the log, as `episodes` does: what it does comes after the commit of the decision, on none of its paths, and
where no policy has a shadow there is nothing to follow. It decides with the projects, the load and what was learned as
they are then, a moment later. Of several routers on one database, one does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Connection, select, text

from hopper_common.errors import HopperError, ResumeTooOld, ShuttingDown
from hopper_common.eventlog import Event
from hopper_router import placing, recall, routing, tables
from hopper_router.backoff import Backoff
from hopper_router.convert import event_from_bytes
from hopper_router.engine import Engine
from hopper_router.model import Basis, Decision, Outcome, TaskSpec
from hopper_router.rules import Policy
from hopper_router.store_sql import EVENTS, Store, task_id
from hopper_router.transitions import Event as Transition
from hopper_router.unit import Unit

TOPICS: Final = frozenset({Transition.DECIDE.value, Transition.SUBMIT.value})
CURSOR: Final = "shadow"
"""Where the router keeps how far the shadow has come; none, or nothing: there was no shadow."""
LOOK_EVERY: Final = 1.0
_S: Final = tables.shadow_decisions.c
_INSERT: Final = text(
    "INSERT INTO shadow_decisions (id, instance, strategy, project, confidence) "
    "VALUES (:id, :instance, :strategy, :project, :confidence) ON CONFLICT DO NOTHING"
)
_FORGET: Final = text(
    "DELETE FROM shadow_decisions WHERE id <= "
    "(SELECT id FROM shadow_decisions ORDER BY id DESC LIMIT 1 OFFSET :most)"
)


class Row(NamedTuple):
    """What a shadow would have decided; `decision` names what was."""

    decision: str
    instance: str
    strategy: str
    project: str
    confidence: float


def begin(unit: Unit) -> None:
    """Let the shadow look at everything that is decided from now on, unless it does already."""
    if not unit.store.value(CURSOR):
        unit.store.put_value(CURSOR, str(EVENTS.head(unit.store.conn)).encode())


def latest(conn: Connection, instance: str, limit: int) -> list[Row]:
    """What shadows would have decided for an instance, the newest first."""
    query = select(tables.shadow_decisions).where(_S.instance == instance)
    rows = conn.execute(query.order_by(_S.id.desc()).limit(limit))
    return [
        Row(f"decisions/{row.id}", row.instance, row.strategy, row.project, row.confidence) for row in rows
    ]


class Shadow:
    """
    Decides beside the policies in force that have a shadow; let `run` run.

    Args:
        most: About so many of its choices are kept, the newest.
    """

    def __init__(self, engine: Engine, *, most: int = 100_000) -> None:
        self._engine = engine
        self._most = most
        self._kept = 0  # since the oldest were last forgotten
        self._backoff = Backoff(
            "the shadow", first=timedelta(milliseconds=200), longest=timedelta(seconds=10)
        )

    async def run(self) -> None:
        """Decide until cancelled, or until the log is closed."""
        while not self._engine.stopping.is_set():
            try:
                if self._engine.policies.have_shadows:
                    await self._follow()
                else:
                    await self._forget()
            except ShuttingDown:
                return
            except HopperError as error:
                await asyncio.sleep(self._backoff.failed(error.reason))
                continue
            self._backoff.worked()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.stopping.wait(), LOOK_EVERY)

    async def _follow(self) -> None:
        cursor = await self._engine.read(lambda unit: unit.store.value(CURSOR))
        head = await self._engine.read(lambda unit: EVENTS.head(unit.store.conn))
        after = int(cursor) if cursor else head
        try:
            async with aclosing(self._tail(after)) as tail:
                async for events in tail:
                    await self.look(events)
                    if not self._engine.policies.have_shadows:
                        return
        except ResumeTooOld as error:  # trimmed past us: what is still there is looked at
            oldest = error.metadata["oldest"]
            await self._engine.db.write(lambda conn: Store(conn).put_value(CURSOR, oldest.encode()))

    async def _tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        async for events in EVENTS.tail(self._engine.db, after=after, topics=TOPICS):
            yield events

    async def _forget(self) -> None:
        """A shadow that comes later begins anew."""
        if await self._engine.read(lambda unit: unit.store.value(CURSOR)):
            await self._engine.db.write(lambda conn: Store(conn).put_value(CURSOR, b""))

    async def catch_up(self) -> int:
        """Look at everything that was decided since; returns how far it has come."""
        cursor = int(await self._engine.read(lambda unit: unit.store.value(CURSOR)) or 0)
        while True:
            events = await self._engine.db.read(
                lambda conn, after=cursor: EVENTS.read(conn, after=after, limit=500, topics=TOPICS)  # type: ignore[misc]
            )
            if not events:
                return cursor
            await self.look(events)
            cursor = events[-1].version

    async def look(self, events: Sequence[Event]) -> None:
        """Decide about the tasks of some events, and record that."""
        names = list(dict.fromkeys(filter(None, map(_decision_of, events))))
        asked = await self._engine.read(lambda unit: _asked(unit, names)) if names else []
        rows = await asyncio.to_thread(lambda: [each.answer() for each in asked])

        def keep(conn: Connection) -> None:
            if rows:
                conn.execute(_INSERT, [row._asdict() | {"id": task_id(row.decision)} for row in rows])
            Store(conn).put_value(CURSOR, str(events[-1].version).encode())

        await self._engine.db.write(keep)
        self._kept += len(rows)
        if self._kept >= self._most / 10:
            self._kept = 0
            await self._engine.db.write(lambda conn: conn.execute(_FORGET, {"most": self._most}).rowcount)


def _decision_of(event: Event) -> str:
    """The decision that an event is about; "": none."""
    if recall.is_short(event):
        return recall.decision_of(event)
    return event_from_bytes(event.body, event.version).task.decision


class _Asked(NamedTuple):
    """What a shadow decides about."""

    unit: Unit
    decision: Decision
    spec: TaskSpec
    refused: dict[str, str]
    policy: Policy

    def answer(self) -> Row:
        world = self.unit.world
        made = routing.decide(
            self.spec,
            world.directory.candidates,
            self.policy,
            load=world.load.by_project,
            refused=self.refused,
            basis=Basis(),
            strategies=world.strategies(self.decision.instance),
            now=self.decision.create_time,
        )
        return Row(
            self.decision.name, self.decision.instance, self.policy.strategy, made.project, made.confidence
        )


def _asked(unit: Unit, names: Sequence[str]) -> list[_Asked]:
    world = unit.world
    decisions = [
        decision
        for decision in unit.store.decisions(names).values()
        if decision.outcome is not Outcome.QUEUED
    ]
    tasks = {task.name: task for task in unit.tasks({decision.task for decision in decisions})}
    asked = []
    for decision in decisions:
        policy = world.policies.in_force(decision.instance, world.directory).policy.shadow
        if policy is not None and decision.task in tasks:
            refused = placing.refused_then(unit, decision, tasks[decision.task].spec)
            asked.append(_Asked(unit, decision, tasks[decision.task].spec, refused, policy))
    return asked
