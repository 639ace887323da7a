"""The tables of the router."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    _tables()
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE tasks_fts USING fts5(id UNINDEXED, title, description, tags, tokenize='porter unicode61')"
        )


def _tables() -> None:
    op.create_table(
        "policies",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance"),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index(op.f("ix_requests_create_time"), "requests", ["create_time"], unique=False)
    op.create_table(
        "router_values",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "routing_decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("routing_decisions_instance", "routing_decisions", ["instance", "id"], unique=False)
    op.create_index("routing_decisions_task", "routing_decisions", ["task", "id"], unique=False)
    op.create_table(
        "task_delegations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("from_instance", sa.Text(), nullable=False),
        sa.Column("to_instance", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("child_tasks", sa.Text(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("offer_end", sa.BigInteger(), nullable=True),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "task_delegations_offer_end",
        "task_delegations",
        ["offer_end"],
        unique=False,
        sqlite_where=sa.text("offer_end IS NOT NULL"),
        postgresql_where=sa.text("offer_end IS NOT NULL"),
    )
    op.create_index("task_delegations_task", "task_delegations", ["task", "id"], unique=False)
    op.create_table(
        "task_dependencies",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("depends_on", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task", "depends_on"),
    )
    op.create_index("task_dependencies_depends_on", "task_dependencies", ["depends_on"], unique=False)
    op.create_table(
        "task_events",
        sa.Column("version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("short_id", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("ready_time", sa.BigInteger(), nullable=False),
        sa.Column("blockers", sa.Integer(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("offered", sa.Boolean(), nullable=False),
        sa.Column("wake_time", sa.BigInteger(), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("delegation", sa.Text(), nullable=False),
        sa.Column("requester", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("queue_time", sa.BigInteger(), nullable=True),
        sa.Column("finish_time", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("live", sa.Text(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("tasks_instance", "tasks", ["instance", "id"], unique=False)
    op.create_index(
        "tasks_open",
        "tasks",
        ["state", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"),
        postgresql_where=sa.text(
            "state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"
        ),
    )
    op.create_index(
        "tasks_ready_by_instance",
        "tasks",
        ["instance", sa.literal_column("priority DESC"), "ready_time", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND blockers = 0 AND held = false"),
        postgresql_where=sa.text("state = 'QUEUED' AND blockers = 0 AND held = false"),
    )
    op.create_index(
        "tasks_ready_by_project",
        "tasks",
        ["project", sa.literal_column("priority DESC"), "ready_time", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND blockers = 0 AND held = false"),
        postgresql_where=sa.text("state = 'QUEUED' AND blockers = 0 AND held = false"),
    )
    op.create_index(
        "tasks_running_by_instance",
        "tasks",
        ["instance"],
        unique=False,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_index(
        "tasks_running_by_project",
        "tasks",
        ["project"],
        unique=False,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_index("tasks_short_id", "tasks", ["short_id"], unique=False)
    op.create_index(
        "tasks_wake",
        "tasks",
        ["wake_time"],
        unique=False,
        sqlite_where=sa.text("wake_time IS NOT NULL"),
        postgresql_where=sa.text("wake_time IS NOT NULL"),
    )
