"""
Many rows at once: tasks copied straight in the router's tables, while no router has them open.

What a router made is the pattern; its ids, project and decision are new in each copy. So the copies are as the router
would have made them, at a hundred thousand a second.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from tests.bench import message

_SCHEMA: Final = "hopper_router"
_DIGITS: Final = 24
_PATIENCE: Final = 7200.0
"""Seconds: ten million rows take their time."""


@dataclass(frozen=True, slots=True)
class Copies:
    """
    So many copies of a task.

    Attributes:
        pattern: Which task, as a condition on its row.
        prefix: The first two characters of their ids, before those of all that are made later: `0` and another.
        spread: Whether they go to all projects, rather than to that of the pattern.
    """

    pattern: str
    prefix: str
    count: int
    spread: bool = True


class _Tables(ABC):
    """An open database, and the words of its SQL."""

    series: str
    id_: str
    short: str

    @abstractmethod
    async def row(self, query: str) -> Mapping[str, Any]:
        """The first row."""

    @abstractmethod
    async def run(self, statement: str) -> None:
        """Run a statement."""

    async def multiply(self, copies: Copies) -> None:
        """Copy a task, its decision, and what it depends on."""
        id_ = self.id_.format(prefix=copies.prefix, digits=_DIGITS)
        series = self.series.format(count=copies.count)
        task = await self.row(f"SELECT * FROM tasks WHERE {copies.pattern} LIMIT 1")
        decision = task["decision"].removeprefix("decisions/")
        own = {"id": id_, "short_id": self.short.format(id_=id_), "decision": f"'decisions/' || {id_}"}
        name = f"'{task['instance']}/tasks/' || {id_}"
        project = {"project": f"'projects/p' || n % {message.PROJECTS}"} if copies.spread else {}
        await self._copy("tasks", f"t.id = '{task['id']}'", own | project, series)
        await self._copy(
            "routing_decisions", f"t.id = '{decision}'", {"id": id_, "task": name} | project, series
        )
        depends = f"t.task = '{task['instance']}/tasks/{task['id']}'"
        await self._copy("task_dependencies", depends, {"task": name}, series)

    async def _copy(self, table: str, which: str, changed: Mapping[str, str], series: str) -> None:
        columns = list(await self.row(f"SELECT t.* FROM (SELECT 1) one LEFT JOIN {table} t ON {which}"))
        values = ", ".join(changed.get(column, f"t.{column}") for column in columns)
        await self.run(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} t, {series} WHERE {which}"
        )


class _Postgres(_Tables):
    series = "generate_series(1, {count}) n"
    id_ = "'{prefix}' || lpad(n::text, {digits}, '0')"
    short = "right({id_}, 6)"

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def row(self, query: str) -> Mapping[str, Any]:
        return dict(await self._connection.fetchrow(query))

    async def run(self, statement: str) -> None:
        await self._connection.execute(statement, timeout=_PATIENCE)


class _Sqlite(_Tables):
    series = (
        "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)"
    )
    id_ = "printf('{prefix}%0{digits}d', n)"
    short = "substr({id_}, -6)"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._connection.row_factory = sqlite3.Row

    async def row(self, query: str) -> Mapping[str, Any]:
        return dict(self._connection.execute(query).fetchone())

    async def run(self, statement: str) -> None:
        self._connection.execute(statement)


async def multiply(where: str | Path, copies: Sequence[Copies]) -> None:
    """
    Copy tasks, and let the database learn what it has now.

    Args:
        where: A PostgreSQL URL, or a file.
    """
    async with _open(where) as tables:
        for one in copies:
            await tables.multiply(one)
        await tables.run("VACUUM ANALYZE" if isinstance(tables, _Postgres) else "ANALYZE")


@asynccontextmanager
async def _open(where: str | Path) -> AsyncIterator[_Tables]:
    if isinstance(where, Path):
        with closing(sqlite3.connect(where, isolation_level=None)) as connection:
            yield _Sqlite(connection)
        return
    server = await asyncpg.connect(where, server_settings={"search_path": _SCHEMA})
    try:
        yield _Postgres(server)
    finally:
        await server.close()
