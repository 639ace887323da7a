"""The tables of the registry."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _projects()
    _workers()
    _instances()
    _log()


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "project_words",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("word", sa.String, primary_key=True),
        sa.Column("project", sa.String, primary_key=True),
    )
    op.create_index("ix_project_words_project", "project_words", ["project"])


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("running", sa.Integer, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("time_to_live", sa.BigInteger, nullable=False),
        sa.Column("heartbeat_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
    )
    op.create_index("ix_workers_project", "workers", ["project", "name"])
    op.create_index("ix_workers_expire", "workers", ["live", "expire_time"])


def _instances() -> None:
    op.create_table(
        "hopper_instances",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("parent", sa.String, nullable=False),
        sa.Column("terminated", sa.Boolean, nullable=False),
        sa.Column("serves", sa.String, unique=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_hopper_instances_parent", "hopper_instances", ["parent", "name"])


def _log() -> None:
    op.create_table(
        "registry_events",
        sa.Column("version", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_requests_create_time", "requests", ["create_time"])
