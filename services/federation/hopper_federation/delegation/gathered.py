"""
A connection that may keep rows back, to write those of a transaction together: a statement costs more than its rows.

Whatever is asked comes after what was kept back, so that nobody can tell; but for `look`.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, ScalarResult
from sqlalchemy.sql import Executable
from sqlalchemy.sql.dml import UpdateBase


class Gathered:
    """One transaction's connection. Writes at once, except while `gathering`."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._kept: dict[UpdateBase, dict[Hashable, Mapping[str, Any]]] = {}
        self._gathers = False

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Keep rows back until the end of this."""
        self._gathers = True
        try:
            yield
            self.flush()
        finally:
            self._gathers = False
            self._kept.clear()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What fails within is undone by itself."""
        self.flush()
        try:
            with self._conn.begin_nested():
                yield
                self.flush()
        except BaseException:
            self._kept.clear()
            raise

    def put(self, statement: UpdateBase, key: Hashable, row: Mapping[str, Any]) -> None:
        """Write a row, at the latest at the end; *key* tells it from others: the last one that is put counts."""
        if self._gathers:
            self._kept.setdefault(statement, {})[key] = row
        else:
            self._conn.execute(statement, row)

    def keeps(self, statement: UpdateBase, key: Hashable) -> bool:
        """Whether that row is kept back."""
        return key in self._kept.get(statement, ())

    def flush(self) -> None:
        """Write what was kept back, kind by kind, in the order in which it was put."""
        kept, self._kept = self._kept, {}
        for statement, rows in kept.items():
            self._conn.execute(statement, list(rows.values()))

    def look(self, query: Executable, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """Ask for what cannot be among what was kept back."""
        return self._conn.execute(query, parameters)

    def execute(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        self.flush()
        return self._conn.execute(query, parameters)

    def scalar(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        self.flush()
        return self._conn.scalar(query, parameters)

    def scalars(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> ScalarResult[Any]:
        self.flush()
        return self._conn.scalars(query, parameters)
