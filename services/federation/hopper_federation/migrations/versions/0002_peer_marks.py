"""How far each peer has come with what it was told."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "peer_marks",
        sa.Column("install_id", sa.String, primary_key=True),
        sa.Column("acknowledged", sa.BigInteger, nullable=False),
    )
