"""A page of a list is read by an index that has just what it shows, however full the table is."""

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Connection, event

from hopper_router.model import OPEN_STATES, TaskState
from hopper_router.store_sql import Store, TaskFilter
from tests.router.harness import Router

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
