"""
`python -m tests.bench.full_table DIRECTORY [--finished N] [--open N]`: a router's full table, to measure on.

It makes a PostgreSQL server's data directory, once; B20 measures on it when `HOPPER_BENCH_TABLE=DIRECTORY` is set, as
often as one likes. At full size (10,000,000 finished and 1,000,000 open tasks, the default) that takes some ten minutes
and 20 GB.

A router makes one task of 1 KB for each of 1,000 projects, and 100 finished ones with short specs and decisions; the
server copies them, each copy with its own ids, times, rank and decision, the finished in all projects. Nothing is
synced or indexed before all is there.

    11 ─ 8 days ago                                        the last day
    all finished tasks, among them a tenth of the open     nine tenths of the open

What is there: `tasks`; `routing_decisions` of all of them; `task_events` of the last day (older events would have been
trimmed after seven days: so would the ends of the finished); `task_words` of the open. All open tasks are ready, in the
root, a thousandth in each project; 50 requesters have them. What is not there: words of finished tasks, attempts,
delegations, dependencies, running and waiting tasks (those would end or be worked on as soon as a router starts), the
archive. The record of a decision speaks of the task it was copied from.

It is good for five days: then events, and later tasks, are old enough for a router to begin to move them away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg
import uvloop

from hopper.router.v1 import task_pb2, task_service_pb2
from hopper_common.database import Database
from hopper_router import tables
from hopper_router.fairness import TURN
from hopper_router.rows import SHORT_ID
from hopper_router.store_sql import EPISODES_SENT
from hopper_router.words_index import CURSOR as WORDS_INDEXED
from hopper_router.words_index import WordIndex
from hopper_testing.postgres import OwnServer, kept_server
from tests.bench import driving, message
from tests.bench.rig import POSTGRESQL, Rig, Router

DATABASE: Final = "full_table"
_FACTS: Final = "full_table.json"
_SCHEMA: Final = "hopper_router"
_SHORT: Final = 100
"""Different specs of finished tasks."""
_REQUESTERS: Final = 50
_CHUNK: Final = 500_000
_WAIT: Final = 7200.0
_DAY: Final = 86_400_000_000
_OLDEST: Final = 11 * _DAY
_OLD: Final = 8 * _DAY
_MARGIN: Final = 60_000_000
"""Microseconds between the newest copy and now."""
_FILLED: Final = ("tasks", "routing_decisions", "task_events", "task_words")
_TIMES: Final = (
    "create_time", "update_time", "ready_time", "queue_time", "first_start", "claim_time", "lease_end", "finish_time",
)  # fmt: skip
# Faster, as long as the machine does not fail; and `minimal` logs no rows of a table that was emptied a moment ago.
_FILLING: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
    "maintenance_work_mem": "1GB",
}


@dataclass(frozen=True)
class Size:
    """How many tasks there are."""

    finished: int = 10_000_000
    open: int = 1_000_000

    @property
    def old(self) -> int:
        """Tasks that are older than a day."""
        return self.finished + self.open // 10

    @property
    def recent(self) -> int:
        """The others: all of them are open."""
        return self.finished + self.open - self.old

    @property
    def step(self) -> int:
        """Each so manyth of the old ones is open."""
        return self.old // (self.open // 10)


# ---------------------------------------------------------------- a directory


async def prepare(rig: Rig, directory: Path, size: Size) -> None:
    """Make the directory, which must be empty or missing."""
    begin = time.monotonic()
    with kept_server(directory, **_FILLING) as server:
        server.execute(f"CREATE DATABASE {DATABASE}")
        await fill(rig, server.url(DATABASE), size)
    with _timed("sync"):
        os.sync()
    bytes_ = sum(path.stat().st_size for path in (directory / "data").rglob("*") if path.is_file())
    (directory / _FACTS).write_text(json.dumps(asdict(size)))
    print(f"{directory}: {bytes_ / 1e9:.1f} GB in {(time.monotonic() - begin) / 60:.1f} minutes")


@contextmanager
def opened(directory: Path) -> Iterator[tuple[OwnServer, Size]]:
    """
    The server of a directory that was made, with the settings that all are measured with, and what is in it.

    Raises:
        FileNotFoundError: It was not made, or not to its end.
    """
    size = Size(**json.loads((directory / _FACTS).read_text()))
    with kept_server(directory, checkpoint_completion_target="0.9") as server:
        yield server, size


# ---------------------------------------------------------------- a database


async def fill(rig: Rig, url: str, size: Size) -> None:
    """Fill an empty database; prints how far it is."""
    async with rig.router(POSTGRESQL, place=url) as router:
        await _make_patterns(router, rig.projects)
    await _index_words(url)
    connection = await asyncpg.connect(url, server_settings={"search_path": _SCHEMA}, command_timeout=_WAIT)
    try:
        await _Filling(connection, size, rig.projects).run()
    finally:
        await connection.close()


async def _make_patterns(router: Router, projects: int) -> None:
    """Short ones, finished; then an open one for each project."""
    chance = random.Random(7)
    await _submit(router, [_short_spec(number, chance) for number in range(_SHORT)])
    await driving.complete(router, await driving.claim(router, "bench", _SHORT))
    await _submit(router, [_open_spec(topic) for topic in range(projects)])


async def _submit(router: Router, specs: list[task_pb2.TaskSpec]) -> None:
    items = [task_service_pb2.SubmitTasksItem(spec=spec) for spec in specs]
    request = task_service_pb2.SubmitTasksRequest(parent=message.ROOT, items=items)
    driving.check_batch(await router.tasks.SubmitTasks(request))


def _short_spec(number: int, chance: random.Random) -> task_pb2.TaskSpec:
    """200 to 350 bytes, for the queue that is worked off; its project is given, so that the decision is short too."""
    return task_pb2.TaskSpec(
        title=f"report {number} of topic{message.HOT}",
        description=chance.randbytes(chance.randrange(50, 125)).hex(),
        tags=[f"tag{message.HOT}", "kind:report"],
        project=message.QUEUE,
        requester=f"requester{number % _REQUESTERS}",
    )


def _open_spec(topic: int) -> task_pb2.TaskSpec:
    spec = message.spec(topic)
    spec.requester = f"requester{topic % _REQUESTERS}"
    return spec


async def _index_words(url: str) -> None:
    """The router does that when nothing else happens; so long we do not wait."""
    db = await Database.open(
        url, metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    )
    try:
        await WordIndex(db).catch_up()
    finally:
        await db.close()


class _Filling:
    """
    Copies what is there, in one transaction.

    All there is to say of the nth task follows from its number, so that each table can be filled by itself.
    """

    def __init__(self, connection: asyncpg.Connection, size: Size, projects: int) -> None:
        self._connection = connection
        self._size = size
        self._projects = projects
        self._now = time.time_ns() // 1000 - _MARGIN

    async def run(self) -> None:
        """Fill, then index, then let the server learn what it has."""
        run = self._connection.execute
        indexes = await self._indexes()
        async with self._connection.transaction():
            await self._keep_patterns()
            await run(f"TRUNCATE {', '.join(_FILLED)}, requests")
            for drop, _ in indexes:
                await run(drop)
            await self._copy("tasks", *await self._task())
            await self._copy("routing_decisions", *await self._decision())
            await self._copy(
                "task_events", _EVENT, "version, topic, key, body, create_time", after=self._size.old
            )
            await self._copy("task_words", _WORDS, "id, words")
            await self._finish_log()
        for _, make in reversed(indexes):
            with _timed(make.partition(" ON ")[0].removeprefix("ALTER TABLE ")):
                await run(make)
        for table in _FILLED:
            with _timed(f"vacuum {table}"):
                await run(f"VACUUM (FREEZE, ANALYZE) {table}")
        await run("VACUUM ANALYZE")  # catalogues too: autovacuum shall find nothing to do
        await run("CHECKPOINT")

    # ------------------------------------------------------------ indexes

    async def _indexes(self) -> list[tuple[str, str]]:
        """How to drop and to make each; primary keys last, so that they are made first."""
        constraints = await self._connection.fetch(
            "SELECT conrelid::regclass AS of, conname, pg_get_constraintdef(oid) AS made FROM pg_constraint "
            "WHERE contype = 'p' AND conrelid = ANY($1::text[]::regclass[])",
            _FILLED,
        )
        others = await self._connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = $1 AND tablename = ANY($2) "
            "AND indexname <> ALL($3)",
            _SCHEMA, _FILLED, [row["conname"] for row in constraints],
        )  # fmt: skip
        return [(f"DROP INDEX {row['indexname']}", row["indexdef"]) for row in others] + [
            (
                f"ALTER TABLE {row['of']} DROP CONSTRAINT {row['conname']}",
                f"ALTER TABLE {row['of']} ADD CONSTRAINT {row['conname']} {row['made']}",
            )
            for row in constraints
        ]

    # ------------------------------------------------------------ patterns

    async def _keep_patterns(self) -> None:
        """By a number: first the finished, then the open in the order of their projects."""
        run = self._connection.execute
        await run(
            "CREATE TEMP TABLE pattern AS SELECT (row_number() OVER ("
            "ORDER BY ready, CASE WHEN ready THEN substr(project, 11)::int END) - 1)::int AS k, * "
            "FROM tasks WHERE requester LIKE 'requester%'"  # others only asked whether the router knew the projects
        )
        await run(
            "CREATE TEMP TABLE pattern_decision AS SELECT p.k, d.* FROM routing_decisions d "
            "JOIN pattern p ON 'decisions/' || d.id = p.decision"
        )
        await run(
            "CREATE TEMP TABLE pattern_words AS SELECT p.k, w.words FROM task_words w JOIN pattern p USING (id)"
        )
        found = await self._connection.fetchrow(
            "SELECT count(*) FILTER (WHERE ready), count(DISTINCT project) FILTER (WHERE ready), "
            "count(*) FILTER (WHERE state = 'SUCCEEDED'), (SELECT count(*) FROM pattern_words) FROM pattern"
        )
        if tuple(found) != (self._projects, self._projects, _SHORT, self._projects + _SHORT):
            raise driving.Refused(f"the router made other patterns than wanted: {tuple(found)}")

    # ------------------------------------------------------------ copies

    async def _copy(self, table: str, query: str, columns: str, *, after: int = 0) -> None:
        """Fill a table, with what a query says of the copies after the *after*th."""
        copied, total = 0, self._size.finished + self._size.open
        with _timed(table) as say:
            for first in range(after + 1, total + 1, _CHUNK):
                last = min(first + _CHUNK - 1, total)
                status = await self._connection.execute(
                    f"INSERT INTO {table} ({columns}) {query.format(copies=self._copies(first, last))}"
                )
                copied += int(status.rpartition(" ")[2])
                say(f"{copied:,} rows")

    def _copies(self, first: int, last: int) -> str:
        """Some of the copies, each with its number, pattern, ids, and when it was made."""
        size, old = self._size, self._size.old
        open_ = f"(n > {old} OR n % {size.step} = 0)"
        made = (
            f"CASE WHEN n > {old} THEN {self._now - _DAY} + (n - {old})::bigint * {_DAY} / {size.recent} "
            f"ELSE {self._now - _OLDEST} + n::bigint * {_OLDEST - _OLD} / {old} END"
        )
        pattern = f"CASE WHEN {open_} THEN {_SHORT} + n % {self._projects} ELSE n % {_SHORT} END"
        numbered = (
            f"SELECT n, {open_} AS open, {made} AS made, {pattern} AS k, md5(n::text) AS chance "
            f"FROM generate_series({first}, {last}) n"
        )
        return (
            f"(SELECT n, open, k, made, "
            f"{_STAMP} || left(chance, 16) AS copy, {_STAMP} || right(chance, 16) AS decided, "
            f"'projects/p' || n % {self._projects} AS project FROM ({numbered} OFFSET 0) numbered OFFSET 0) copies"
        )

    async def _task(self) -> tuple[str, str]:
        columns = await self._columns("tasks")
        changed = {
            "id": "copy",
            "short_id": f"right(copy, {SHORT_ID})",
            "project": "copies.project",
            "decision": "'decisions/' || decided",
            "generation": "3 * n",
            "rank": f"t.rank + n / {self._projects}::bigint * {TURN}",
        } | {name: f"t.{name} + made - t.create_time" for name in _TIMES}
        values = ", ".join(changed.get(name, f"t.{name}") for name in columns)
        return f"SELECT {values} FROM {{copies}} JOIN pattern t USING (k)", ", ".join(columns)

    async def _decision(self) -> tuple[str, str]:
        columns = await self._columns("routing_decisions")
        changed = {"id": "decided", "task": f"'{message.ROOT}/tasks/' || copy", "project": "copies.project"}
        values = ", ".join(changed.get(name, f"t.{name}") for name in columns)
        return f"SELECT {values} FROM {{copies}} JOIN pattern_decision t USING (k)", ", ".join(columns)

    async def _columns(self, table: str) -> list[str]:
        rows = await self._connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped "
            "ORDER BY attnum",
            table,
        )
        return [row["attname"] for row in rows]

    async def _finish_log(self) -> None:
        """Memory and the index of words have been told of all that is in the log; what is not was trimmed."""
        run, head = self._connection.execute, 3 * (self._size.finished + self._size.open)
        await run(
            "INSERT INTO task_events (version, topic, key, body, create_time) VALUES ($1, '', '', '', $2)",
            3 * self._size.old,
            self._now - _OLD,
        )
        await run("SELECT setval('task_events_version_seq', $1)", head)
        await self._connection.executemany(
            "INSERT INTO router_values VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [(key, str(head).encode()) for key in (EPISODES_SENT, WORDS_INDEXED)],
        )


# As `hopper_common.ids` makes it: the time in milliseconds, ten digits of 32.
_STAMP: Final = " || ".join(
    f"substr('0123456789abcdefghjkmnpqrstvwxyz', (made / 1000 >> {shift} & 31)::int + 1, 1)"
    for shift in range(45, -1, -5)
)
# As the hot path logs a new task.
_EVENT: Final = (
    f"SELECT 3 * n, 'SUBMIT', '{message.ROOT}/tasks/' || copy, "
    "convert_to(json_build_array(project, 'decisions/' || decided, made)::text, 'UTF8'), made FROM {copies} WHERE open"
)
_WORDS: Final = "SELECT copy, words FROM {copies} JOIN pattern_words USING (k) WHERE open"


@contextmanager
def _timed(what: str) -> Iterator[Callable[[str], None]]:
    """Prints what is done, how far it is, and how long it took."""
    begin = time.monotonic()

    def say(how_far: str) -> None:
        print(f"{what}: {how_far}, {time.monotonic() - begin:.0f} s", flush=True)

    yield say
    say("done")


async def main(directory: Path, size: Size) -> None:
    """Make the directory."""
    async with Rig(memory=False) as rig:
        await prepare(rig, directory, size)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.full_table", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--finished", type=int, default=Size.finished)
    parser.add_argument("--open", type=int, default=Size.open)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    if arguments.directory.exists() and any(arguments.directory.iterdir()):
        raise SystemExit(f"{arguments.directory} is not empty: choose another, or remove it")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments.directory, Size(arguments.finished, arguments.open)))
