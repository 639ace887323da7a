"""How far each peer has come with what it was told, and which incarnation of the database this is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "peer_marks",
        sa.Column("install_id", sa.String, primary_key=True),
        sa.Column("acknowledged", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("synced", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "incarnation",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("identity", sa.String, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("tick", sa.BigInteger, nullable=False),
        sa.Column("restored", sa.String, nullable=False),
    )
