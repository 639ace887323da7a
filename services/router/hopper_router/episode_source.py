"""What `episodes` reads of the router's rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from hopper_common.database import Database
from hopper_common.eventlog import Event
from hopper_router.episodes import TOPICS, DecisionRecord
from hopper_router.model import Decision, Delegation, Task
from hopper_router.store_sql import EPISODES_SENT, EVENTS, Store, task_id


class StoredEpisodes:
    """`episodes.EpisodeSource` over the router's database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load_cursor(self) -> int:
        """How far memory has been told."""
        return await self._db.read(lambda conn: Store(conn).episodes_sent())

    async def save_cursor(self, version: int) -> None:
        """Memory has been told up to here."""
        await self._db.write(lambda conn: Store(conn).put_value(EPISODES_SENT, str(version).encode()))

    def tail(self, after: int) -> AsyncIterator[list[Event]]:
        """The events that memory hears of."""
        return EVENTS.tail(self._db, after=after, topics=TOPICS)

    async def records(self, decisions: Collection[str]) -> Sequence[DecisionRecord]:
        """Decisions with what surrounds them."""
        return await self._db.read(lambda conn: _records(Store(conn), decisions))

    async def tasks(self, names: Collection[str]) -> Mapping[str, Task]:
        """Tasks as they are now."""
        return await self._db.read(lambda conn: Store(conn).tasks(names))


def _records(store: Store, names: Collection[str]) -> list[DecisionRecord]:
    decisions = store.decisions(names)
    tasks = store.tasks({decision.task for decision in decisions.values()})
    came = store.delegations({task.delegation for task in tasks.values() if task.delegation})
    about = _by_task(store, {*tasks, *(delegation.task for delegation in came.values())})
    return [
        DecisionRecord(
            decision=decision,
            spec=tasks[decision.task].spec,
            parent_decision=_decision_behind(came.get(tasks[decision.task].delegation), about),
            earlier_decisions=_before(decision, about[decision.task]),
        )
        for decision in decisions.values()
    ]


def _by_task(store: Store, tasks: Collection[str]) -> dict[str, list[Decision]]:
    """Every decision about those tasks, oldest first."""
    found: dict[str, list[Decision]] = {task: [] for task in tasks}
    for decision in store.decisions_about(tasks):
        found[decision.task].append(decision)
    return found


def _before(decision: Decision, decisions: Sequence[Decision]) -> tuple[str, ...]:
    names = [other.name for other in decisions]
    return tuple(names[: names.index(decision.name)])


def _decision_behind(came: Delegation | None, about: Mapping[str, Sequence[Decision]]) -> str:
    """The decision in force one level up when the task was handed over."""
    if came is None:
        return ""
    earlier = [decision.name for decision in about[came.task] if task_id(decision.name) < task_id(came.name)]
    return earlier[-1] if earlier else ""
