"""
Keeps a `queue_stats.Backlog` near the rows: counted at the start and now and then, followed from commit to commit, and
told to the other routers on the same database. Each count sets right the load that is decided by, too.

    {"o": origin, "g": [first generation, last], "q": [[project, instance, key, slot, second, step], ...]}

is a line of what a router has done in the last second; with `null` for the list it was too much to tell, and the others
count anew when somebody asks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, text

from hopper_common.clock import Clock
from hopper_common.database import PAYLOAD_LIMIT, Database, notify
from hopper_common.errors import HopperError, ShuttingDown
from hopper_router import tables
from hopper_router.directory import Directory
from hopper_router.queue_stats import SINCE, SPAN, STAGE_OF, WIDER, Answer, Backlog, Delta
from hopper_router.store_sql import EVENTS, OpenCounts
from hopper_router.unit import WORKABLE

TELL_EVERY: Final = 1.0
MOST_LINES: Final = 100
RECOUNT_EVERY: Final = 600.0
RECOUNT_SHARE: Final = 20
"""Counting because of a doubt takes at most this part of the time, so that it slows nothing down."""
_ATTEMPTS: Final = 3
_log = structlog.get_logger("hopper.router")


class Counted(NamedTuple):
    """All that is open, as one snapshot has it, and where its log ended."""

    backlog: Backlog
    load: OpenCounts
    head: int


class QueueCounts:
    """
    The counts of one process. From the event loop only.

    Attributes:
        backlog: The counts.
    """

    def __init__(self, db: Database, clock: Clock, origin: str, load: OpenCounts) -> None:
        self.backlog = Backlog()
        self._load = load
        self._db = db
        self._clock = clock
        self._origin = origin
        self._shared = db.dialect == "postgresql"
        self._doubtful = False
        self._turn = asyncio.Lock()
        self._next_recount = 0.0
        self._outgoing: Delta = {}
        self._generations: tuple[int, int] = (0, 0)
        if self._shared:
            db.on_notify(self._heard)

    # ------------------------------------------------------------ following

    def follow(self, delta: Delta, generation: int) -> None:
        """Count what a commit of this process has changed, of whose events one has that generation."""
        self.backlog.merge(delta, self._clock.now(), generation=generation)
        if self._shared and delta:
            outgoing = self._outgoing
            for spot, step in delta.items():
                outgoing[spot] = outgoing.get(spot, 0) + step
            self._generations = self._generations[0] or generation, generation

    def doubt(self) -> None:
        """Something may have happened that was not followed: count soon."""
        self._doubtful = True

    def numbers(self, directory: Directory, *, queue: str = "", limit: int) -> Answer:
        """See Backlog."""
        return self.backlog.numbers(directory, self._clock.now(), queue=queue, limit=limit)

    # ------------------------------------------------------------ counting

    async def recount(self) -> None:
        """Count from the rows, of a snapshot; what happens meanwhile is added, and nobody waits."""
        async with self._turn:
            started = self._clock.monotonic()
            self._doubtful = False
            for _ in range(_ATTEMPTS):
                if await self._recount():
                    break
            took = self._clock.monotonic() - started
            self._next_recount = self._clock.monotonic() + took * RECOUNT_SHARE

    async def _recount(self) -> bool:
        self.backlog.begin_recount()
        before = self._load.copy()
        now = int(self._clock.now().timestamp())
        try:
            fresh = await self._db.read(partial(count_open, now=now))
        except BaseException:
            self.backlog.give_up_recount()
            self._doubtful = True
            raise
        self._load.correct(fresh.load, before)
        return self.backlog.recounted(fresh.backlog, fresh.head)

    async def catch_up(self) -> None:
        """Count again if the counts may be wrong, unless that was done a moment ago."""
        if self._doubtful and self._clock.monotonic() >= self._next_recount:
            await self.recount()

    # ------------------------------------------------------------ other routers on the same database

    async def run(self) -> None:
        """Tell the others, every second; and count now and then, and when there is doubt."""
        counted = self._clock.monotonic()
        while True:
            try:
                if self._shared:
                    await self.tell()
                if self._clock.monotonic() - counted >= RECOUNT_EVERY:
                    counted = self._clock.monotonic()
                    await self.recount()
                await self.catch_up()
            except ShuttingDown:
                raise
            except HopperError as error:
                _log.warning("trouble, will try again", what="tell of counts", reason=error.reason)
            await asyncio.sleep(TELL_EVERY)

    async def tell(self) -> None:
        """Tell the others what was done here since the last time."""
        delta = {spot: step for spot, step in self._outgoing.items() if step}
        generations = self._generations
        self._outgoing, self._generations = {}, (0, 0)
        if not delta:
            return
        lines = list(_lines(delta, generations, self._origin))

        def work(conn: Connection) -> None:
            for line in lines:
                notify(conn, line)

        await self._db.write(work)

    def _heard(self, line: str) -> None:
        if not line:  # something was missed
            self._doubtful = True
            return
        said = json.loads(line)
        if "q" not in said or said["o"] == self._origin:
            return
        first, last = said["g"]
        if said["q"] is None or first <= self.backlog.counted_through < last:  # too much; or seen in part
            self._doubtful = True
            return
        delta: Delta = {tuple(spot): step for *spot, step in said["q"]}
        self.backlog.merge(delta, self._clock.now(), generation=last)


def _lines(delta: Delta, generations: tuple[int, int], origin: str) -> Iterator[str]:
    def line(steps: Any) -> str:
        said = {"o": origin, "g": generations, "q": steps}
        return json.dumps(said, separators=(",", ":"))

    room = PAYLOAD_LIMIT - len(line([]))
    steps = [[*spot, step] for spot, step in delta.items()]
    sizes = [len(json.dumps(step, separators=(",", ":"))) + 1 for step in steps]
    cuts, used = [0], 0
    for position, size in enumerate(sizes):
        if used and used + size > room:
            cuts.append(position)
            used = 0
        used += size
    if len(cuts) > MOST_LINES or max(sizes) > room:
        yield line(None)
        return
    for first, last in pairwise([*cuts, len(steps)]):
        yield line(steps[first:last])


# ---------------------------------------------------------------- the rows


def count_open(conn: Connection, now: int = 0) -> Counted:
    """
    Count the open tasks: one look at each, however many there are.

    Args:
        now: Seconds since 1970, by which to see what has been ready for long; 0: nothing has.
    """
    delta: Delta = {}
    load = OpenCounts()
    rows = conn.execute(_COUNT[conn.dialect.name], _widths(now))
    for project, instance, key, state, wait, second, count, since in rows:
        delta[project, instance, key, STAGE_OF[state, wait], second] = count
        for span, part in json.loads(since or "{}").items():
            spot = (project, instance, "", SINCE, int(span))
            delta[spot] = delta.get(spot, 0) + part
        if state in _WORKABLE:
            load.add(project, instance, count)
    return Counted(Backlog.of(delta), load, EVENTS.head(conn))


def _widths(now: int) -> dict[str, int]:
    """Before which times, in microseconds, which spans are: none that begins before one of them ends after it."""
    return {f"before_{width}": (now - age) // width * width * 1_000_000 for age, width, _ in WIDER}


_WORKABLE: Final = frozenset(state.value for state in WORKABLE)
# What `queue_stats.standing` says of one task, of all of them.
_WAIT: Final = """
    CASE
        WHEN state = 'RUNNING' THEN ''
        WHEN state = 'INPUT_REQUIRED' THEN 'PERSON'
        WHEN state = 'DELEGATED' THEN 'DELEGATION'
        WHEN offered THEN 'APPROVAL'
        WHEN blockers > 0 THEN 'DEPENDENCY'
        WHEN held THEN 'PERSON'
        WHEN state = 'QUEUED' AND ready_time <= queue_time THEN 'WORKER'
        WHEN state = 'QUEUED' AND failures > 0 THEN 'BACKOFF'
        WHEN state = 'QUEUED' THEN 'SCHEDULE'
        WHEN live LIKE '%"wait"\\:["NO_ELIGIBLE_EXECUTOR"%' THEN 'NO_ELIGIBLE_EXECUTOR'
        ELSE 'UNSURE'
    END
"""
_SECOND: Final = """
    CASE
        WHEN state <> 'QUEUED' OR offered OR blockers > 0 OR held THEN 0
        WHEN ready_time <= queue_time THEN 0
        ELSE (ready_time + 999999) / 1000000
    END
"""
_SPANS: Final = " ".join(
    f"WHEN queue_time < :before_{width} THEN queue_time / 1000000 / {width} * {width} + {mark}"
    for _, width, mark in reversed(WIDER)
)
_SINCE: Final = f"""
    CASE
        WHEN state <> 'QUEUED' OR offered OR blockers > 0 OR held OR ready_time > queue_time THEN NULL
        {_SPANS}
        ELSE queue_time / 1000000 / {SPAN} * {SPAN}
    END
"""
# The spans of a place as one document: there may be a hundred thousand of them in all.
_OBJECT: Final = {"sqlite": "json_group_object", "postgresql": "json_object_agg"}
_COUNT: Final = {
    dialect: text(
        "SELECT project, instance, fairness_key, state, waits, second, CAST(sum(tasks) AS BIGINT), "  # noqa: S608
        f"CAST({group}(since, tasks) FILTER (WHERE since IS NOT NULL) AS TEXT) FROM ("
        f"SELECT project, instance, fairness_key, state, {_WAIT} AS waits, {_SECOND} AS second, {_SINCE} AS since, "
        f"count(*) AS tasks FROM tasks WHERE {tables.OPEN} GROUP BY 1, 2, 3, 4, 5, 6, 7"
        ") counted GROUP BY 1, 2, 3, 4, 5, 6"
    )
    for dialect, group in _OBJECT.items()
}
