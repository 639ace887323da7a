"""Every policy that an instance has had, and what a policy's shadow would have decided."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables; the policies of now are the first that are kept."""
    op.create_table(
        "policy_versions",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "version"),
    )
    op.execute(
        "INSERT INTO policy_versions (instance, version, source, update_time) "
        "SELECT instance, version, source, update_time FROM policies"
    )
    op.create_table(
        "shadow_decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("shadow_decisions_instance", "shadow_decisions", ["instance", "id"])
