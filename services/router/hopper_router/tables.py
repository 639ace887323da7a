"""The router's tables. Times are microseconds since 1970, UTC; names are stored whole unless a comment differs."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, Table, Text, text

from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),  # the last segment of the name
    Column("short_id", Text, nullable=False),  # the last 6 characters of the id: what people type
    Column("instance", Text, nullable=False),
    Column("project", Text, nullable=False),  # "": none
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("ready_time", BigInteger, nullable=False),
    Column("blockers", Integer, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("offered", Boolean, nullable=False),
    Column("wake_time", BigInteger),  # the next of its clocks; see transitions.wake_time
    Column("generation", BigInteger, nullable=False),
    Column("spec_version", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    Column("delegation", Text, nullable=False),
    Column("requester", Text, nullable=False),
    Column("tags", Text, nullable=False),  # "\n" before, between and after, for exact matches with instr
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("queue_time", BigInteger),
    Column("finish_time", BigInteger),
    Column("spec", LargeBinary, nullable=False),  # hopper.router.v1.TaskSpec
    Column("live", Text, nullable=False),  # JSON: claim, failure, progress, input, hold, wait; see store_sql
    Column("result", LargeBinary, nullable=False),
)

_OPEN = "state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"
_READY = "state = 'QUEUED' AND blockers = 0 AND held = false"

Index("tasks_short_id", tasks.c.short_id)
Index("tasks_instance", tasks.c.instance, tasks.c.id)
Index("tasks_open", tasks.c.state, tasks.c.id, sqlite_where=text(_OPEN), postgresql_where=text(_OPEN))
Index(
    "tasks_wake", tasks.c.wake_time, sqlite_where=text("wake_time IS NOT NULL"),
    postgresql_where=text("wake_time IS NOT NULL"),
)  # fmt: skip
# The two queues that workers claim from, in the order of claiming.
for _queue in ("project", "instance"):
    Index(
        f"tasks_ready_by_{_queue}",
        tasks.c[_queue],
        tasks.c.priority.desc(),
        tasks.c.ready_time,
        tasks.c.id,
        sqlite_where=text(_READY),
        postgresql_where=text(_READY),
    )
for _queue in ("project", "instance"):
    Index(
        f"tasks_running_by_{_queue}",
        tasks.c[_queue],
        sqlite_where=text("state = 'RUNNING'"),
        postgresql_where=text("state = 'RUNNING'"),
    )

dependencies = Table(
    "task_dependencies",
    metadata,
    Column("task", Text, primary_key=True),
    Column("depends_on", Text, primary_key=True),
    Index("task_dependencies_depends_on", "depends_on"),
)

decisions = Table(
    "routing_decisions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),  # hopper.router.v1.Decision
    Index("routing_decisions_task", "task", "id"),
    Index("routing_decisions_instance", "instance", "id"),
)

delegations = Table(
    "task_delegations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("from_instance", Text, nullable=False),
    Column("to_instance", Text, nullable=False),
    Column("path", Text, nullable=False),  # JSON list
    Column("child_tasks", Text, nullable=False),  # JSON list
    Column("depth", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("offer_end", BigInteger),  # set while OFFERED
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Index("task_delegations_task", "task", "id"),
    Index(
        "task_delegations_offer_end", "offer_end", sqlite_where=text("offer_end IS NOT NULL"),
        postgresql_where=text("offer_end IS NOT NULL"),
    ),
)  # fmt: skip

policies = Table(
    "policies",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("source", Text, nullable=False),  # "": removed, the version lives on
    Column("update_time", BigInteger, nullable=False),
)

values = Table(
    "router_values",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""Small things the router keeps for itself: how far episodes were sent, the last copy of the registry."""

events = event_table(metadata, "task_events")
requests = requests_table(metadata)
