"""Who may call: principals, their roles, their keys, and what tokens are signed with."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _principals()
    _keys()
    op.create_table(
        "first_admin",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )


def _principals() -> None:
    op.create_table(
        "principals",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("acts_for", sa.String),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_principals_acts_for", "principals", ["acts_for"])
    op.create_table(
        "role_bindings",
        sa.Column("principal", sa.String, primary_key=True),
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("resource", sa.String, primary_key=True),
    )
    op.create_index("ix_role_bindings_resource", "role_bindings", ["resource"])


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("last_use_time", sa.BigInteger),
        sa.Column("revoke_time", sa.BigInteger),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_api_keys_principal", "api_keys", ["principal", "create_time"])
    op.create_table(
        "token_keys",
        sa.Column("kid", sa.String, primary_key=True),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("sign_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_token_keys_expire", "token_keys", ["expire_time"])
