"""Records."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit_records",
        sa.Column("chain", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("acting_for", sa.String, nullable=False),
        sa.Column("credential", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("resources", sa.Text, nullable=False),
        sa.Column("allowed", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_audit_records_principal", "audit_records", ["chain", "principal", "sequence"])
    op.create_index("ix_audit_records_time", "audit_records", ["chain", "time"])
    op.create_index("ix_audit_records_refused", "audit_records", ["chain", "allowed", "sequence"])
