"""Hand-overs to and from peers, what is to be said about them, and what is to be done."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _delegations()
    _outbox()
    _inbox()
    _errands()
    _peers()


def _delegations() -> None:
    op.create_table(
        "delegations",
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("peer", sa.String, nullable=False),
        sa.Column("task_uid", sa.String, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("due", sa.Double),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("offer", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.Column("appraisal", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_delegations_due", "delegations", ["due"])
    op.create_index("ix_delegations_peer", "delegations", ["peer", "open", "rule", "created"])
    op.create_index("ix_delegations_task_uid", "delegations", ["task_uid"])
    op.create_index("ix_delegations_task", "delegations", ["task"])
    op.create_index("ix_delegations_created", "delegations", ["created", "id"])
    op.create_index("ix_delegations_over", "delegations", ["open", "updated"])


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("position", _COUNTER, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("peer", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("delegation", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_peer", "outbox", ["peer", "position"])
    op.create_index("ix_outbox_delegation", "outbox", ["delegation", "role", "position"])


def _inbox() -> None:
    op.create_table(
        "inbox",
        sa.Column("peer", sa.String, primary_key=True),
        sa.Column("message", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("receipt", sa.LargeBinary, nullable=False),
        sa.Column("take_time", sa.Double, nullable=False),
    )
    op.create_index("ix_inbox_take_time", "inbox", ["take_time"])


def _errands() -> None:
    op.create_table(
        "errands",
        sa.Column("position", _COUNTER, primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("delegation", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_errands_delegation", "errands", ["delegation", "role", "position"])
    op.create_index("ix_errands_not_before", "errands", ["not_before"])
    op.create_table(
        "epochs",
        sa.Column("task_uid", sa.String, primary_key=True),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("use_time", sa.Double, nullable=False),
    )
    op.create_index("ix_epochs_use_time", "epochs", ["use_time"])


def _peers() -> None:
    op.create_table(
        "senders",
        sa.Column("peer", sa.String, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("failed", sa.Double, nullable=False),
        sa.Column("held_until", sa.Double, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("detail", sa.String, nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
    )
