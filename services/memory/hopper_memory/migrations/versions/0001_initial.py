"""Episodes with their full-text index, outcomes that wait, feedback, answered requests."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

WENT_WRONG = sa.text("verdict IS 0 OR outcome IN ('FAILED', 'REROUTED')")

# An index without a copy of the text: it reads `episodes` where it needs it. Porter makes "failing" and
# "failed" the same word; project and instance are in it to narrow a search down before it is scored.
FULL_TEXT = """
CREATE VIRTUAL TABLE episodes_fts USING fts5(
    title, description, tags, project, instance,
    content='episodes', content_rowid='id',
    tokenize='porter unicode61 remove_diacritics 2'
)
"""
# What is indexed of an episode never changes after it was written, so there is nothing to do on update.
KEEP_IN_STEP = (
    """
CREATE TRIGGER episodes_fts_insert AFTER INSERT ON episodes BEGIN
    INSERT INTO episodes_fts (rowid, title, description, tags, project, instance)
    VALUES (new.id, new.title, new.description, new.tags, new.project, new.instance);
END
""",
    """
CREATE TRIGGER episodes_fts_delete AFTER DELETE ON episodes BEGIN
    INSERT INTO episodes_fts (episodes_fts, rowid, title, description, tags, project, instance)
    VALUES ('delete', old.id, old.title, old.description, old.tags, old.project, old.instance);
END
""",
)


def upgrade() -> None:
    make_episodes()
    make_full_text()
    make_pending_outcomes()
    make_feedback()
    make_requests()


def make_episodes() -> None:
    op.create_table(
        "episodes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("decision", sa.String, nullable=False, unique=True),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("instance", sa.String, nullable=False),
        sa.Column("parent_decision", sa.String, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("strategy", sa.String, nullable=False),
        sa.Column("decide_time", sa.BigInteger, nullable=False),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String),
        sa.Column("finish_time", sa.BigInteger),
        sa.Column("attempts", sa.Integer),
        sa.Column("worker", sa.String),
        sa.Column("failure_reason", sa.String),
        sa.Column("queue_duration", sa.BigInteger),
        sa.Column("run_duration", sa.BigInteger),
        sa.Column("verdict", sa.Boolean),
    )
    op.create_index("ix_episodes_project", "episodes", ["project", "decide_time", "decision"])
    op.create_index("ix_episodes_time", "episodes", ["decide_time", "project"])
    op.create_index("ix_episodes_instance", "episodes", ["instance", "decide_time", "project"])
    op.create_index(
        "ix_episodes_score", "episodes", ["instance", "project", "verdict", "confidence", "outcome"]
    )
    op.create_index("ix_episodes_mistakes", "episodes", ["decide_time", "decision"], sqlite_where=WENT_WRONG)
    op.create_index(
        "ix_episodes_instance_mistakes",
        "episodes",
        ["instance", "decide_time", "decision"],
        sqlite_where=WENT_WRONG,
    )


def make_full_text() -> None:
    op.execute(FULL_TEXT)
    for trigger in KEEP_IN_STEP:
        op.execute(trigger)


def make_pending_outcomes() -> None:
    op.create_table(
        "pending_outcomes",
        sa.Column("decision", sa.String, primary_key=True),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("finish_time", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String, nullable=False),
        sa.Column("failure_reason", sa.String, nullable=False),
        sa.Column("queue_duration", sa.BigInteger),
        sa.Column("run_duration", sa.BigInteger),
    )


def make_feedback() -> None:
    op.create_table(
        "task_feedback",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("feedback", sa.String, nullable=False, unique=True),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("match", sa.String),
        sa.Column("better_project", sa.String, nullable=False),
        sa.Column("actual_effort", sa.BigInteger),
        sa.Column("quality", sa.Float),
        sa.Column("rework", sa.Boolean, nullable=False),
        sa.Column("blockers", sa.JSON, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("from_decision", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_task_feedback_decision", "task_feedback", ["decision", "id"])


def make_requests() -> None:
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_requests_create_time", "requests", ["create_time"])
