"""What was spent on advice, and what people said of where tasks go."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "advice_budgets",
        sa.Column("adviser", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("money", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("adviser", "instance", "day"),
    )
    op.create_table(
        "advice_feedback",
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("fits", sa.Boolean(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("decision"),
    )
