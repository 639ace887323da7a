"""What is read and changed is found by the index that has just that, however full the table is."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from hopper_common.postgres import PostgresDatabase
from hopper_router import hot_postgres
from hopper_router.model import OPEN_STATES, TaskState
from hopper_router.store_sql import Store, TaskFilter
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW, Router, a_router

PAGES = [
    (TaskFilter(), "tasks_open"),
    (TaskFilter(project="projects/web"), "tasks_open_by_project"),
    (TaskFilter(requester="somebody"), "tasks_open_by_requester"),
    (TaskFilter(states={TaskState.SUBMITTED}), "tasks_seldom"),
    (TaskFilter(states={TaskState.INPUT_REQUIRED}), "tasks_seldom"),
    (TaskFilter(states={TaskState.FAILED}), "tasks_seldom"),
    (TaskFilter(states={TaskState.FAILED}, project="projects/web"), "tasks_seldom"),
]


@pytest.mark.parametrize(("wanted", "index"), PAGES)
async def test_a_page_is_read_by_its_index(router: Router, wanted: TaskFilter, index: str) -> None:
    plan = await router.db.read(lambda conn: _plan(conn, wanted))
    assert f"{index} " in plan
    assert "SORT" not in plan.upper()
    assert "TEMP B-TREE" not in plan


def _plan(conn: Connection, wanted: TaskFilter) -> str:
    asked: list[tuple[str, Any]] = []

    def ask(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        asked.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", ask)
    Store(conn).list_tasks(wanted, before_id="", limit=50)
    event.remove(conn, "before_cursor_execute", ask)
    explain = "EXPLAIN QUERY PLAN"
    if conn.dialect.name == "postgresql":
        explain = "EXPLAIN"
        for way in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):  # which an empty table is read by
            conn.exec_driver_sql(f"SET LOCAL {way} = off")
    [(statement, parameters)] = asked
    rows = conn.exec_driver_sql(f"{explain} {statement}", parameters)
    return "\n".join(str(row[-1]) for row in rows) + " "


@pytest.mark.parametrize("statement", [hot_postgres._RENEW, hot_postgres._COMPLETE])
async def test_claims_are_looked_for_by_id_however_few_seemed_to_run(
    empty_router_db: Path, statement: str
) -> None:
    """If they were looked for among those that run, each set would take as long as there are such."""
    async with a_router(empty_router_db, ManualClock(NOW), engine="postgresql") as router:
        for _ in range(20):
            await router.submit()
        nothing = ", ".join(["NULL"] * max(map(int, re.findall(r"\$(\d+)", statement))))

        async def plan(conn: Any) -> list[str]:
            await conn.execute("ANALYZE tasks")
            await conn.execute(f"PREPARE hot AS {statement}")
            return [row[0] for row in await conn.fetch(f"EXPLAIN EXECUTE hot({nothing})")]

        assert isinstance(router.db, PostgresDatabase)
        lines = await router.db.statement(plan)
        assert any("tasks_pkey" in line for line in lines)
        assert not any("running" in line for line in lines)


async def test_a_list_shows_the_states_that_are_asked_for(router: Router) -> None:
    web = router.registry.project("web")
    for _ in range(3):
        await router.submit()
    done, failed = await router.claim(web, max_tasks=2)
    await router.complete(done)
    await router.fail(failed, permanent=True)
    everything = await _listed(router, TaskState)
    assert len(everything) == 3
    assert await _listed(router, OPEN_STATES) == everything - {done.name, failed.name}
    assert await _listed(router, [TaskState.SUCCEEDED]) == {done.name}
    assert await _listed(router, [TaskState.FAILED]) == {failed.name}
    assert await _listed(router, [TaskState.FAILED, TaskState.SUCCEEDED]) == {done.name, failed.name}
    assert await _listed(router, [TaskState.QUEUED, TaskState.FAILED]) == everything - {done.name}


async def _listed(router: Router, states: Iterable[TaskState]) -> set[str]:
    wanted = TaskFilter(states=set(states))
    tasks = await router.db.read(lambda conn: Store(conn).list_tasks(wanted, before_id="", limit=50))
    return {task.name for task in tasks}
