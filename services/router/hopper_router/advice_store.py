"""What the router keeps about advice: what was spent on it, and what people said that memory has not been told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, select, text

from hopper_common.database import Database
from hopper_router import tables
from hopper_router.calibration import Given
from hopper_router.llm.budget import Spent

_B = tables.advice_budgets
_F = tables.advice_feedback
_G = tables.advice_given
_PUT: Final = text(
    "INSERT INTO advice_budgets (adviser, instance, day, calls, money) "
    "VALUES (:adviser, :instance, :day, :calls, :money) "
    "ON CONFLICT (adviser, instance, day) DO UPDATE SET calls = excluded.calls, money = excluded.money"
)


class SqlBudgetStore:
    """The `BudgetStore` of one adviser, in the router's database: the same for all routers that share it."""

    def __init__(self, db: Database, adviser: str) -> None:
        self._db = db
        self._adviser = adviser

    async def change(self, instance: str, day: date, change: Callable[[Spent], Spent]) -> Spent:
        """See `BudgetStore`."""
        key = {"adviser": self._adviser, "instance": instance, "day": day.isoformat()}

        def work(conn: Connection) -> Spent:
            query = select(_B.c.calls, _B.c.money).filter_by(**key)
            row = conn.execute(query).one_or_none()
            spent = change(Spent(*row) if row else Spent())
            conn.execute(_PUT, {**key, "calls": spent.calls, "money": spent.money})
            return spent

        return await self._db.write(work)


MOST_GIVEN: Final = 2000
"""So many of the newest choices say what an adviser's word is worth; older ones are forgotten."""


async def given(db: Database) -> Sequence[Given]:
    """What those who were asked chose, the newest first."""

    def work(conn: Connection) -> Sequence[Given]:
        query = select(_G).order_by(_G.c.decision.desc(), _G.c.stage).limit(MOST_GIVEN)
        return [
            Given(row.stage, row.model, row.project, row.stated, row.decision, row.decided)
            for row in conn.execute(query)
        ]

    return await db.read(work)


async def forget_given(db: Database, before: str) -> None:
    """Forget what was chosen before that decision."""
    await db.write(lambda conn: conn.execute(delete(_G).where(_G.c.decision < before)) and None)


class Said(NamedTuple):
    """What somebody said of a decision: whether the task belongs where it went, or to nobody."""

    decision: str
    fits: bool
    author: str


async def untold(db: Database, limit: int) -> Sequence[Said]:
    """What memory has not been told, oldest first."""
    query = select(_F.c.decision, _F.c.fits, _F.c.author).order_by(_F.c.decision).limit(limit)
    return await db.read(lambda conn: [Said(*row) for row in conn.execute(query)])


async def told(db: Database, decision: str) -> None:
    """Memory has been told."""
    await db.write(lambda conn: conn.execute(delete(_F).where(_F.c.decision == decision)) and None)
