"""What those who are asked have chosen, to learn what their word is worth."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "advice_given",
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("decided", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("stated", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("stage", "task"),
    )
    op.create_index("advice_given_decision", "advice_given", ["decision"])
