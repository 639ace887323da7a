"""
Looks out for new tasks that look like the same work as open ones, where policies ask for it.

    SubmitTask ─► Lookout.arrivals ─► Index: who is alike? ─► nobody: taken in as ever
                                                             └► a unit: are they still open? warn, link or refuse
    log ─► Lookout.run ─► Index: who is open

There is an index for each instance whose policy asks, in this router's memory. It follows the log, and so knows what
other routers on the same database took in or finished a moment later than they do. It only finds: the rows say what is
still open, in the transaction that takes the new task in. It is read from the rows in the background, and says nothing
until that is done.

A task that is being taken in is in the index already, without a name: of two that arrive at once the second waits until
it is known what became of the first. Nobody waits for who arrived later, so nobody waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from sqlalchemy import Connection, text

from hopper_common.database import Database
from hopper_common.errors import HopperError, ShuttingDown
from hopper_common.eventlog import Event
from hopper_router import tables
from hopper_router.backoff import Backoff
from hopper_router.convert import spec_from_bytes
from hopper_router.directory import Directory
from hopper_router.duplicates import MOST_OPEN, Index, Reading, read
from hopper_router.errors import DuplicateTask
from hopper_router.model import TaskSpec, TaskState
from hopper_router.policies import Policies
from hopper_router.rules import OnDuplicate
from hopper_router.store_sql import EVENTS, Store, task_id
from hopper_router.unit import Unit

PAGE: Final = 200
"""Tasks that are read, or added, at a stretch: then others have their turn."""
LINK: Final = "duplicate-of"
"""The label of a task that was linked to the one that it looks like."""
FIRST_WAIT: Final = timedelta(milliseconds=250)
LONGEST_WAIT: Final = timedelta(seconds=10)
_BEGINS: Final = frozenset({"SUBMIT", "OFFER"})
_TOPICS: Final = _BEGINS | {
    "UPDATE", "REPLAY", "REJECT", "COMPLETE", "FAIL", "EXPIRE", "TIME_OUT", "CHILDREN_DONE", "CHILD_FAILED", "CANCEL",
}  # fmt: skip
_BATCH: Final = 500
PACE: Final = 0.05
"""Seconds between two looks at the log: what arrives here is known without it."""
_MOST_LABELS: Final = 64
_MOST_LABEL_BYTES: Final = 100


class Alike(NamedTuple):
    """
    Something that looks like the same work: a task, or an earlier one of the same call, which has no name yet.

    Attributes:
        task: Its name, or empty.
        place: Its place in the call, from 0.
        score: How alike, 0 to 1.
        shared: Words that both have.
    """

    task: str
    place: int
    score: float
    shared: tuple[str, ...]


class _Arriving(NamedTuple):
    """A task that is being taken in: the turn of its call, and its name, or empty, once that is known."""

    turn: int
    name: asyncio.Future[str]


class Duplicate(NamedTuple):
    """An open task that looks like the same work as a new one; see `Alike`."""

    task: str
    score: float
    shared: tuple[str, ...]
    state: TaskState


class Arrivals:
    """
    The tasks of one call, while they are taken in.

    Used as a context: what was not said to be `taken` by its end was not.
    """

    def __init__(
        self, lookout: Lookout, index: Index | None, specs: Sequence[TaskSpec], least: float
    ) -> None:
        self._lookout = lookout
        self._index = index
        self._specs = specs
        self._least = least
        self._found: list[list[tuple[Alike, _Arriving | None]]] = []
        self._own: dict[str, int] = {}
        self._keys: list[str] = []
        self._closed: set[str] = set()

    async def __aenter__(self) -> Self:
        if self._index is not None:
            turn = self._lookout.turn()
            for place, spec in enumerate(self._specs):
                self._look(self._index, place, spec, turn)
                if place % PAGE == PAGE - 1:
                    await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._index is not None:
            for key in self._keys:
                self._lookout.settle(self._index, key, "")
            for name in self._closed:
                self._index.remove(name)

    def _look(self, index: Index, place: int, spec: TaskSpec, turn: int) -> None:
        """Find what looks like the same work; from now on this one is found itself."""
        reading = _reading(spec)
        found: list[tuple[Alike, _Arriving | None]] = []
        for key, score, shared in index.find(reading, self._least):
            arriving = self._lookout.arriving.get(key)
            if key in self._own:
                found.append((Alike("", self._own[key], score, shared), None))
            elif arriving is None:
                found.append((Alike(key, -1, score, shared), None))
            elif arriving.turn < turn:
                found.append((Alike("", -1, score, shared), arriving))
        self._found.append(found)
        key = self._lookout.arrive(index, reading, turn)
        self._own[key] = place
        self._keys.append(key)

    async def alike(self, place: int) -> list[Alike]:
        """What looks like the same work, the likest first. What is just arriving is waited for."""
        if self._index is None:
            return []
        named = [
            one if arriving is None else one._replace(task=await asyncio.shield(arriving.name))
            for one, arriving in self._found[place]
        ]
        return [one for one in named if one.task or one.place >= 0]

    def taken(self, place: int, name: str) -> None:
        """A task was taken in."""
        if self._index is not None:
            self._lookout.settle(self._index, self._keys[place], name)

    async def all_alike(self) -> dict[int, list[Alike]]:
        """The same of all tasks of the call that look like something, by their places."""
        return {place: alike for place in range(len(self._found)) if (alike := await self.alike(place))}

    def all_taken(self, names: Iterable[str]) -> None:
        """The tasks of the call were taken in, in order; empty: that one was not."""
        if self._index is not None:
            for key, name in zip(self._keys, names, strict=True):
                self._lookout.settle(self._index, key, name)

    def still_open(
        self, unit: Unit, alike: Iterable[Alike], names: Mapping[int, str] = MappingProxyType({})
    ) -> list[Duplicate]:
        """
        Those of them that are open, in that unit. From any thread.

        Args:
            names: Those of the call's tasks that are taken in already, by their places.
        """
        alike = [one._replace(task=one.task or names.get(one.place, "")) for one in alike]
        found = still_open(unit, alike)
        self._closed.update({one.task for one in alike if one.task} - {one.task for one in found})
        return found


def still_open(unit: Unit, alike: Iterable[Alike]) -> list[Duplicate]:
    """Those of them that have names, and are open, in that unit."""
    named = {one.task: one for one in alike if one.task}
    tasks = {task.name: task for task in unit.tasks(named) if not task.state.final}
    return [
        Duplicate(name, one.score, one.shared, tasks[name].state)
        for name, one in named.items()
        if name in tasks
    ]


def review(
    unit: Unit, instance: str, spec: TaskSpec, found: Sequence[Duplicate], *, allow: bool = False
) -> TaskSpec:
    """
    What is asked for, as the instance's policy has it taken in.

    Raises:
        DuplicateTask: The policy refuses it, and it is not *allowed*.
    """
    policy = unit.world.policies.about_duplicates(instance, unit.world.directory)
    if policy is None or not found:
        return spec
    if policy.duplicates is OnDuplicate.REFUSE and not allow:
        first = found[0]
        raise DuplicateTask(
            f"{first.task} looks like the same work and is open: see to that one, or submit with allow_duplicate",
            task=first.task,
            score=f"{first.score:.2f}",
            state=first.state.value,
        )
    return _linked(spec, found[0].task) if policy.duplicates is OnDuplicate.LINK else spec


def _linked(spec: TaskSpec, name: str) -> TaskSpec:
    if LINK in spec.labels or len(spec.labels) >= _MOST_LABELS:  # its requester said so; or there is no room
        return spec
    short = name if len(name) <= _MOST_LABEL_BYTES else task_id(name)
    return replace(spec, labels=MappingProxyType({**spec.labels, LINK: short}))


class Lookout:
    """
    The indexes of one router; see the module's text. From the event loop only.

    Args:
        directory: The registry's last copy.
        limit: How many tasks are remembered in all.

    Attributes:
        arriving: The tasks that are being taken in, by what they are called until they have names.
    """

    def __init__(
        self, db: Database, policies: Policies, directory: Callable[[], Directory], *, limit: int = MOST_OPEN
    ) -> None:
        self._db = db
        self._policies = policies
        self._directory = directory
        self._limit = limit
        self._wanted = asyncio.Event()
        self._asked: set[str] = set()
        self._indexes: dict[str, Index] = {}
        self._full: set[str] = set()
        self._numbers = count()
        self._nobody = Arrivals(self, None, (), 1.0)
        self.arriving: dict[str, _Arriving] = {}

    # ------------------------------------------------------------ asking

    def arrivals(self, instance: str, specs: Sequence[TaskSpec]) -> Arrivals:
        """Compare the tasks of a call with the open ones of the instance that they arrive at, if its policy asks."""
        policy = self._policies.about_duplicates(instance, self._directory())
        if policy is None:
            return self._nobody
        if instance not in self._full:
            self._asked.add(instance)
            self._wanted.set()
            return self._nobody
        return Arrivals(self, self._indexes[instance], specs, policy.duplicates_above)

    def alike(self, instance: str, spec: TaskSpec) -> list[Alike]:
        """What looks like the same work as a task that is not taken in, where the policy asks; the likest first."""
        policy = self._policies.about_duplicates(instance, self._directory())
        if policy is None:
            return []
        if instance not in self._full:
            self._asked.add(instance)
            self._wanted.set()
            return []
        found = self._indexes[instance].find(_reading(spec), policy.duplicates_above)
        return [Alike(key, -1, score, shared) for key, score, shared in found if key not in self.arriving]

    def knows(self, instance: str) -> bool:
        """Whether the open tasks of an instance have been read."""
        return instance in self._full

    def turn(self) -> int:
        """A number greater than all before."""
        return next(self._numbers)

    def arrive(self, index: Index, reading: Reading, turn: int) -> str:
        """A task is arriving; returns what it is called until it has a name."""
        key = f"arriving/{next(self._numbers)}"
        self.arriving[key] = _Arriving(turn, asyncio.get_running_loop().create_future())
        index.add(key, reading)
        return key

    def settle(self, index: Index, key: str, name: str) -> None:
        """A task that was arriving has got a name, or (empty) was not taken in; what was said first counts."""
        arriving = self.arriving.pop(key, None)
        if arriving is None:
            return
        arriving.name.set_result(name)
        if name:
            index.rename(key, name)
        else:
            index.remove(key)

    # ------------------------------------------------------------ following

    def wake(self) -> None:
        """Begin to look out, if a policy in force asks for it."""
        if self._policies.ask_for_duplicates:
            directory = self._directory()
            self._asked.update(filter(self._is_asked, directory.instances))
            self._wanted.set()

    async def run(self) -> None:
        """Follow the log, while a policy asks for it."""
        backoff = Backoff("open tasks, to find duplicates", first=FIRST_WAIT, longest=LONGEST_WAIT)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self.wake()
            try:
                await self._follow(backoff)
            except ShuttingDown:
                raise
            except HopperError as error:  # also that the log was trimmed past us: all is read anew
                self._wanted.set()
                await asyncio.sleep(backoff.failed(error.reason))
            finally:
                self._indexes.clear()
                self._full.clear()

    async def _follow(self, backoff: Backoff) -> None:
        after = await self._db.read(EVENTS.head)
        while self._policies.ask_for_duplicates:
            commits = self._db.committed.count  # before the reads: a commit during them is not lost
            await self._fill()
            events, after = await self._db.read(partial(_batch, after))
            await self._apply(events)
            if len(events) < _BATCH:
                self._full.update(self._indexes)
                backoff.worked()
                await self._db.committed.wait(after=commits)
                await asyncio.sleep(PACE)

    async def _fill(self) -> None:
        """Read the open tasks of instances that were asked about, and forget those that are asked about no more."""
        for instance in [name for name in self._indexes if not self._is_asked(name)]:
            del self._indexes[instance]
            self._full.discard(instance)
        asked, self._asked = self._asked, set()
        for instance in sorted(asked.difference(self._indexes)):
            self._indexes[instance] = await self._read(instance)
            self._forget_oldest()

    async def _read(self, instance: str) -> Index:
        index = Index(self._limit)
        after = await self._db.read(partial(_last_too_many, instance, self._limit))
        while True:
            page = await self._db.read(partial(_page, instance, after))
            for id_, reading in page:
                index.add(f"{instance}/tasks/{id_}", reading)
            if len(page) < PAGE:
                return index
            after = page[-1][0]
            await asyncio.sleep(0)

    async def _apply(self, events: Sequence[Event]) -> None:
        """Bring the indexes up to date with what happened."""
        unsure: dict[str, Index] = {}
        for event in events:
            index = self._indexes.get(event.key.rpartition("/tasks/")[0])
            if index is None:
                continue
            if event.topic == "COMPLETE":
                index.remove(event.key)
            elif event.topic not in _BEGINS or event.key not in index:
                unsure[event.key] = index
        if not unsure:
            return
        readings = await self._db.read(partial(_open_ones, list(unsure)))
        for name, index in unsure.items():
            if name in readings:
                index.add(name, readings[name])
            else:
                index.remove(name)
        self._forget_oldest()

    def _is_asked(self, instance: str) -> bool:
        return self._policies.about_duplicates(instance, self._directory()) is not None

    def _forget_oldest(self) -> None:
        indexes = self._indexes.values()
        for _ in range(sum(map(len, indexes)) - self._limit):
            max(indexes, key=len).forget_oldest()


# ---------------------------------------------------------------- rows


def _reading(spec: TaskSpec) -> Reading:
    return read(spec.title, spec.description, spec.tags)


def _batch(after: int, conn: Connection) -> tuple[list[Event], int]:
    """The next events, and how far that is."""
    head = EVENTS.head(conn)
    events = EVENTS.read(conn, after=after, limit=_BATCH, topics=_TOPICS)
    return events, events[-1].version if len(events) == _BATCH else head


def _last_too_many(instance: str, limit: int, conn: Connection) -> str:
    """The newest of the open tasks that are too old to be remembered; empty: none is."""
    return str(conn.scalar(_TOO_MANY, {"instance": instance, "limit": limit}) or "")


def _page(instance: str, after: str, conn: Connection) -> list[tuple[str, Reading]]:
    rows = conn.execute(_OPEN, {"instance": instance, "after": after, "limit": PAGE})
    return [(id_, _reading(spec_from_bytes(spec))) for id_, spec in rows]


def _open_ones(names: Sequence[str], conn: Connection) -> dict[str, Reading]:
    tasks = Store(conn).tasks(names).values()
    return {task.name: _reading(task.spec) for task in tasks if not task.state.final}


_OPEN: Final = text(
    f"SELECT id, spec FROM tasks WHERE {tables.OPEN} AND instance = :instance AND id > :after "  # noqa: S608
    "ORDER BY id LIMIT :limit"
)
_TOO_MANY: Final = text(
    f"SELECT id FROM tasks WHERE {tables.OPEN} AND instance = :instance "  # noqa: S608
    "ORDER BY id DESC LIMIT 1 OFFSET :limit"
)
