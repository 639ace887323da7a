"""The road past one database: the hot path's statements, unchanged, on open tasks partitioned by hash of the id."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from hopper_router.engine import hot_store
from hopper_router.hot import End, HotStore, Want
from tests.bench.bar import Result, bar
from tests.bench.bars_storage import MANY, Storage, _open, _stored
from tests.bench.load import Load, Side, closed_loop
from tests.bench.rig import Rig
from tests.bench.stock import Stock

PARTITIONS: Final = 8
CLAIM: Final = 100
_SCHEMA: Final = "hopper_router"


async def _partition(url: str) -> None:
    """Make the empty table of tasks one of several parts. Its columns, key and indexes stay what they are."""
    await (await _open(url)).close()
    connection = await asyncpg.connect(url, server_settings={"search_path": _SCHEMA})
    await connection.execute("ALTER TABLE tasks RENAME TO tasks_whole")
    await connection.execute("CREATE TABLE tasks (LIKE tasks_whole INCLUDING ALL) PARTITION BY HASH (id)")
    for part in range(PARTITIONS):
        await connection.execute(
            f"CREATE TABLE tasks_{part} PARTITION OF tasks "
            f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {part})"
        )
    await connection.execute("DROP TABLE tasks_whole")
    await connection.close()


async def _work_off(store: HotStore, queue: str, seconds: float) -> Load:
    """Claim a hundred and complete them, over and over."""

    async def one(_: int) -> None:
        now = datetime.now(UTC)
        want = Want("project", queue, "bench", CLAIM, timedelta(seconds=60))
        (rows,) = await store.claim([want], now, "bench")
        assert isinstance(rows, list)
        await store.complete([End(row["id"], row["token"], b"") for row in rows], now, "bench")

    return await closed_loop(one, 1, seconds, each=CLAIM)


@bar
async def partitions(rig: Rig) -> list[Result]:
    """Tasks in eight partitions, beside one table: what taking in and working off cost."""
    stock = Stock()
    stock.make(1, 1)
    queue = stock.take().tasks[0].project
    async with AsyncExitStack() as stack:
        whole = await stack.enter_async_context(_stored(rig.database()))
        url = rig.database()
        await _partition(url)
        parts = await stack.enter_async_context(_stored(url))
        stores = {"one table": hot_store(whole), f"{PARTITIONS} partitions": hot_store(parts)}

        async def stock_up() -> None:
            stock.make(int(20 * rig.pace.seconds) + 2, MANY)

        def insert(name: str, store: HotStore) -> Side:
            own = Storage(store, stock)
            return Side(
                f"insert, {name}", lambda length: own.insert(1, length, each=MANY), postgres, stock_up
            )

        def work_off(name: str, store: HotStore) -> Side:
            return Side(f"work off, {name}", lambda length: _work_off(store, queue, length), postgres)

        postgres = {"postgres": rig.postgres.pid}
        sides = [side(name, store) for side in (insert, work_off) for name, store in stores.items()]
        rounds = await rig.bench().interleaved(*sides)
    return [
        Result(
            f"{what} with {PARTITIONS} partitions / one table",
            rounds.ratio(f"{what}, {PARTITIONS} partitions", f"{what}, one table"),
            "x",
            verdict="reported",
            sides=rounds.figures(f"{what}, {PARTITIONS} partitions", f"{what}, one table"),
            note=rounds.method,
        )
        for what in ("insert", "work off")
    ]
