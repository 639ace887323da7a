"""
The hot path: what statements must see or set becomes a column, and every index costs as little as it can.

A kept ready flag and a rank take the place of computing both at each claim; the claim leaves its JSON document.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from hopper.router.v1 import task_pb2

revision = "0002"
down_revision = "0001"

_OPEN = "state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"
_BELOW_ROOT = "instance <> 'instances/global'"
_OLD_INDEXES = (
    "tasks_open",
    "tasks_instance",
    "tasks_ready_by_instance",
    "tasks_ready_by_project",
    "tasks_running_by_instance",
    "tasks_running_by_project",
)


def upgrade() -> None:
    """Add the columns, fill them, and put the indexes on them."""
    for name in _OLD_INDEXES:
        op.drop_index(name, "tasks")
    op.drop_index("routing_decisions_instance", "routing_decisions")
    _columns()
    op.add_column("requests", sa.Column("generation", sa.BigInteger(), nullable=True))
    _fill(op.get_bind())
    _indexes()
    _tables()
    # Every task there is has been indexed as it was taken in; from here on the index follows the log.
    op.execute(
        "INSERT INTO router_values (key, value) "
        "SELECT 'words_indexed', CAST(CAST(max(version) AS TEXT) AS BLOB) FROM task_events HAVING max(version) IS NOT NULL"
        if op.get_bind().dialect.name == "sqlite"
        else "INSERT INTO router_values (key, value) "
        "SELECT 'words_indexed', convert_to(max(version)::text, 'UTF8') FROM task_events HAVING max(version) IS NOT NULL"
    )


def _columns() -> None:
    def add(name: str, kind: Any, default: str | None) -> None:
        op.add_column(
            "tasks",
            sa.Column(
                name,
                kind,
                nullable=default is None,
                server_default=None if default is None else sa.text(default),
            ),
        )

    add("ready", sa.Boolean(), "false")
    add("awaited", sa.Boolean(), "false")
    add("rank", sa.BigInteger(), "0")
    for name in ("fairness_key", "concurrency_key", "affinity", "worker"):
        add(name, sa.Text(), "''")
    add("slots", sa.Integer(), "1")
    for name in (
        "start_by", "finish_by", "run_for", "heartbeat", "lease", "lease_end", "claim_time", "first_start",
    ):  # fmt: skip
        add(name, sa.BigInteger(), None)


def _fill(bind: sa.Connection) -> None:
    bind.execute(
        sa.text(
            # Who was ready keeps the order of before: by when.
            "UPDATE tasks SET fairness_key = requester, rank = ready_time, ready = "
            "(state = 'QUEUED' AND blockers = 0 AND held = false AND ready_time <= update_time)"
        )
    )
    rows = bind.execute(
        sa.text(
            "SELECT id, state, spec, live, wake_time, ready, ready_time, blockers, held FROM tasks "
            "WHERE live <> '' OR finish_time IS NULL"
        )
    ).all()
    for row in rows:
        values = {**_claim(row.live), **_clocks(row.spec), "wake_time": row.wake_time}
        waits_for_time = row.state == "QUEUED" and not (row.ready or row.blockers or row.held)
        if waits_for_time:
            values["wake_time"] = min(row.ready_time, row.wake_time or row.ready_time)
        sets = ", ".join(f"{name} = :{name}" for name in values)
        bind.execute(sa.text(f"UPDATE tasks SET {sets} WHERE id = :id"), {**values, "id": row.id})  # noqa: S608

    bind.execute(
        sa.text(
            "UPDATE tasks SET awaited = true WHERE EXISTS "
            "(SELECT 1 FROM task_dependencies WHERE depends_on = instance || '/tasks/' || id)"
        )
    )


def _claim(document: str) -> dict[str, Any]:
    live = json.loads(document) if document else {}
    values: dict[str, Any] = {"first_start": live.pop("first_start", None)}
    if "claim" in live:
        worker, _token, lease, lease_end, start = live.pop("claim")
        values |= {"worker": worker, "lease": lease, "lease_end": lease_end, "claim_time": start}
    return {**values, "live": json.dumps(live, separators=(",", ":")) if live else ""}


def _clocks(body: bytes) -> dict[str, int | None]:
    clocks = task_pb2.TaskSpec.FromString(body).clocks
    return {
        "start_by": clocks.start_by.ToMicroseconds() if clocks.HasField("start_by") else None,
        "finish_by": clocks.finish_by.ToMicroseconds() if clocks.HasField("finish_by") else None,
        "run_for": clocks.run_for.ToMicroseconds() if clocks.HasField("run_for") else None,
        "heartbeat": clocks.heartbeat.ToMicroseconds() if clocks.HasField("heartbeat") else None,
    }


def _index(name: str, table: str, columns: list[Any], where: str) -> None:
    op.create_index(
        name, table, columns, unique=False, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )


def _indexes() -> None:
    _index("tasks_instance", "tasks", ["instance", "id"], _BELOW_ROOT)
    _index("tasks_open", "tasks", ["id"], _OPEN)
    _index("tasks_unplaced", "tasks", ["id"], "state = 'SUBMITTED'")
    order = [sa.literal_column("priority DESC"), "rank", "id"]
    _index("tasks_ready_by_project", "tasks", ["project", *order], "ready")
    _index("tasks_ready_by_instance", "tasks", ["instance", *order], f"ready AND {_BELOW_ROOT}")
    _index("tasks_ready_for", "tasks", ["affinity"], "ready AND affinity <> ''")
    _index("tasks_running_by_project", "tasks", ["project", "concurrency_key"], "state = 'RUNNING'")
    _index("tasks_running_by_instance", "tasks", ["instance"], f"state = 'RUNNING' AND {_BELOW_ROOT}")
    _index("routing_decisions_instance", "routing_decisions", ["instance", "id"], _BELOW_ROOT)


def _tables() -> None:
    op.create_table(
        "task_attempts",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("permanent", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task", "token"),
    )
    op.create_table(
        "task_starts",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("used_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project", "key"),
    )
    op.create_index("task_starts_used_until", "task_starts", ["project", "used_until"], unique=False)
    columns = (
        sa.Column("finish_time", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("finish_time", "id"),
    )
    op.create_table("tasks_archive", *columns, postgresql_partition_by="RANGE (finish_time)")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE TABLE tasks_archive_rest PARTITION OF tasks_archive DEFAULT")
        # English stems, but every word counts: "sign in" is not "sign".
        op.execute("CREATE TEXT SEARCH DICTIONARY words_stem (TEMPLATE = snowball, LANGUAGE = english)")
        op.execute("CREATE TEXT SEARCH CONFIGURATION words (COPY = pg_catalog.english)")
        op.execute("ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING REPLACE english_stem WITH words_stem")
        op.execute("CREATE TABLE task_words (id TEXT PRIMARY KEY, words TSVECTOR NOT NULL)")
        op.execute("CREATE INDEX task_words_words ON task_words USING gin (words)")
    op.create_index("tasks_archive_id", "tasks_archive", ["id"], unique=False)
