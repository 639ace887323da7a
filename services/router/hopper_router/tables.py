"""The router's tables. Times are microseconds since 1970, UTC; names are stored whole unless a comment differs."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

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
    # The queue: in it or not, and where.
    Column("ready", Boolean, nullable=False),  # a worker may claim it: kept, never computed
    Column("priority", Integer, nullable=False),
    Column("rank", BigInteger, nullable=False),  # its turn among equal priorities; see fairness
    Column("fairness_key", Text, nullable=False),
    Column("concurrency_key", Text, nullable=False),  # "": none
    Column("slots", Integer, nullable=False),
    Column("affinity", Text, nullable=False),  # the worker that did what it depended on; "": none
    Column("ready_time", BigInteger, nullable=False),
    Column("blockers", Integer, nullable=False),
    Column("awaited", Boolean, nullable=False),  # another task depends on it, or did
    Column("held", Boolean, nullable=False),
    Column("offered", Boolean, nullable=False),
    # Its clocks, for statements that set the next one.
    Column("wake_time", BigInteger),  # the next of them; see transitions.wake_time
    Column("start_by", BigInteger),
    Column("finish_by", BigInteger),
    Column("run_for", BigInteger),
    Column("heartbeat", BigInteger),
    # Who has it, or had it last.
    Column("token", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),  # "": nobody
    Column("lease", BigInteger),
    Column("lease_end", BigInteger),  # NULL: stopped, or nobody has it
    Column("claim_time", BigInteger),
    Column("first_start", BigInteger),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("spec_version", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    Column("delegation", Text, nullable=False),
    Column("requester", Text, nullable=False),
    Column("tags", Text, nullable=False),  # "\n" before, between and after, for exact matches
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("queue_time", BigInteger),
    Column("finish_time", BigInteger),
    Column("spec", LargeBinary, nullable=False),  # hopper.router.v1.TaskSpec
    Column("live", Text, nullable=False),  # JSON: failure, progress, input, hold, wait; see rows
    Column("result", LargeBinary, nullable=False),
)

OPEN: Final = "state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"
SELDOM: Final = "state NOT IN ('QUEUED', 'RUNNING', 'SUCCEEDED')"
"""The states that few tasks are in, or only in the end: an index by state that has no others costs the rest nothing."""
BELOW_ROOT: Final = "instance <> 'instances/global'"
"""
The root holds most tasks and is never claimed from: an index by instance that leaves it out costs the rest nothing.
"""


def _partial_index(name: str, *columns: ColumnElement[Any], where: str) -> None:
    Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


Index("tasks_short_id", tasks.c.short_id)
_partial_index("tasks_instance", tasks.c.instance, tasks.c.id, where=BELOW_ROOT)
_partial_index("tasks_open", tasks.c.id, where=OPEN)
_partial_index("tasks_open_by_project", tasks.c.project, tasks.c.id, where=OPEN)
_partial_index("tasks_open_by_requester", tasks.c.requester, tasks.c.id, where=OPEN)
_partial_index("tasks_seldom", tasks.c.state, tasks.c.id, where=SELDOM)
_partial_index("tasks_wake", tasks.c.wake_time, where="wake_time IS NOT NULL")
# The two queues that workers claim from, in the order of claiming.
_partial_index(
    "tasks_ready_by_project",
    tasks.c.project,
    tasks.c.priority.desc(),
    tasks.c.rank,
    tasks.c.id,
    where="ready",
)
_partial_index(
    "tasks_ready_by_instance", tasks.c.instance, tasks.c.priority.desc(), tasks.c.rank, tasks.c.id,
    where=f"ready AND {BELOW_ROOT}",
)  # fmt: skip
_partial_index("tasks_ready_for", tasks.c.affinity, where="ready AND affinity <> ''")
_partial_index(
    "tasks_running_by_project", tasks.c.project, tasks.c.concurrency_key, where="state = 'RUNNING'"
)
_partial_index("tasks_running_by_instance", tasks.c.instance, where=f"state = 'RUNNING' AND {BELOW_ROOT}")

attempts = Table(
    "task_attempts",  # those that failed
    metadata,
    Column("task", Text, primary_key=True),  # its id
    Column("token", BigInteger, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("permanent", Boolean, nullable=False),
)

archive = Table(
    "tasks_archive",  # finished tasks, whole, out of the way; in PostgreSQL partitioned by month of finish
    metadata,
    Column("finish_time", BigInteger, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("instance", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),  # the row of `tasks`, as JSON, compressed
    Index("tasks_archive_id", "id"),
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
)
_partial_index("routing_decisions_instance", decisions.c.instance, decisions.c.id, where=BELOW_ROOT)

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

advice_budgets = Table(
    "advice_budgets",  # what was spent on advice, or is reserved: see llm/budget
    metadata,
    Column("adviser", Text, primary_key=True),  # llm, sage
    Column("instance", Text, primary_key=True),  # whose policy it is
    Column("day", Text, primary_key=True),  # of UTC, as 2026-01-31
    Column("calls", BigInteger, nullable=False),
    Column("money", BigInteger, nullable=False),  # millionths
)

advice_feedback = Table(
    "advice_feedback",  # what people said of where tasks go, until memory has been told
    metadata,
    Column("decision", Text, primary_key=True),
    Column("fits", Boolean, nullable=False),  # false: nobody should have had it
    Column("author", Text, nullable=False),
)

advice_given = Table(
    "advice_given",  # the newest choice of each adviser about each task: see calibration
    metadata,
    Column("stage", Text, primary_key=True),  # llm, sage
    Column("task", Text, primary_key=True),
    Column("decision", Text, nullable=False),  # the last that it went into; ids grow with time
    Column("decided", Text, nullable=False),  # where that sent the task; "": nowhere
    Column("model", Text, nullable=False),
    Column("project", Text, nullable=False),  # what it chose
    Column("stated", Float, nullable=False),  # how sure it said it was
    Index("advice_given_decision", "decision"),
)

starts = Table(
    "task_starts",  # of projects that limit how many start in a period: see rates
    metadata,
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),  # the concurrency key; "": the project as a whole
    Column("used_until", BigInteger, nullable=False),  # nanoseconds since 1970
    Index("task_starts_used_until", "project", "used_until"),
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
# Set by the hot path, which keeps no more of an answer than what it is told again from: see recall.
requests.append_column(Column("generation", BigInteger))

schedules = Table(
    "schedules",
    metadata,
    Column("id", Text, primary_key=True),
    Column("instance", Text, nullable=False),
    Column("definition", LargeBinary, nullable=False),  # hopper.router.v1.Schedule, what people say about it
    Column("paused", Boolean, nullable=False),
    Column("pause_reason", Text, nullable=False),
    Column("next_time", BigInteger),  # the occurrence it waits for; NULL: none
    Column("due_time", BigInteger),  # when that one is submitted
    Column("runs", BigInteger, nullable=False),
    Column("skips", BigInteger, nullable=False),
    Column("misses", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("error", Text, nullable=False),  # JSON; "": the last occurrence was not refused
    Column("error_time", BigInteger),
    Column("version", Integer, nullable=False),  # grows with every change by a call
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)
_partial_index("schedules_due", schedules.c.due_time, where="due_time IS NOT NULL")

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("id", Text, primary_key=True),  # grows with time
    Column("schedule", Text, nullable=False),  # its id
    Column("time", BigInteger, nullable=False),  # the occurrence
    Column("by_hand", Boolean, nullable=False),
    Column("run_time", BigInteger, nullable=False),
    Column("instance", Text, nullable=False),  # of the task
    Column("task", Text, nullable=False),  # its id; "": it was refused
    Column("error", Text, nullable=False),  # JSON; "": it was not
    Index("schedule_runs_schedule", "schedule", "id"),
)
# Of each occurrence one run, whoever wants to make a second.
Index(
    "schedule_runs_once", schedule_runs.c.schedule, schedule_runs.c.time, unique=True,
    sqlite_where=text("NOT by_hand"), postgresql_where=text("NOT by_hand"),
)  # fmt: skip

policy_versions = Table(
    "policy_versions",  # every policy that an instance has had
    metadata,
    Column("instance", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("source", Text, nullable=False),  # "": removed
    Column("update_time", BigInteger, nullable=False),
)

shadow_decisions = Table(
    "shadow_decisions",  # what a policy's shadow would have decided; see shadow
    metadata,
    Column("id", Text, primary_key=True),  # of the decision that was made
    Column("instance", Text, nullable=False),
    Column("strategy", Text, nullable=False),  # of the shadow
    Column("project", Text, nullable=False),  # "": nowhere
    Column("confidence", Float, nullable=False),
    Index("shadow_decisions_instance", "instance", "id"),
)
