"""The tables of the federation service."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _peers()
    _trust_roots()
    _grants()
    _invitations()
    _joins()
    _pairings()
    _log()


def _peers() -> None:
    op.create_table(
        "peers",
        sa.Column("install_id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("drain_time", sa.BigInteger),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def _trust_roots() -> None:
    op.create_table(
        "trust_roots",
        sa.Column("install_id", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("root_key", sa.LargeBinary, nullable=False),
        sa.Column("bundle", sa.LargeBinary, nullable=False),
        sa.Column("learn_time", sa.BigInteger, nullable=False),
    )


def _grants() -> None:
    op.create_table(
        "grants",
        sa.Column("install_id", sa.String, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("set_by", sa.String, nullable=False),
        sa.Column("set_time", sa.BigInteger, nullable=False),
        sa.Column("sign_time", sa.BigInteger, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
    )


def _invitations() -> None:
    op.create_table(
        "invitations",
        sa.Column("secret_id", sa.LargeBinary, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("root_key", sa.LargeBinary, nullable=False),
        sa.Column("peer_id", sa.String, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("wrong_proofs", sa.Integer, nullable=False),
        sa.Column("contested", sa.Integer, nullable=False),
        sa.Column("redeemer_install_id", sa.String, nullable=False),
        sa.Column("redeemer", sa.LargeBinary, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("our_nonce", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("redeem_time", sa.BigInteger),
    )
    op.create_index("ix_invitations_state", "invitations", ["state", "expire_time"])


def _joins() -> None:
    op.create_table(
        "joins",
        sa.Column("secret_id", sa.LargeBinary, primary_key=True),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("install_id", sa.String, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )


def _pairings() -> None:
    op.create_table(
        "pairings",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("session", sa.LargeBinary, nullable=False),
        sa.Column("outgoing", sa.Boolean, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("install_id", sa.String, nullable=False),
        sa.Column("claimed_name", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("ours", sa.LargeBinary, nullable=False),
        sa.Column("theirs", sa.LargeBinary, nullable=False),
        sa.Column("commitment", sa.LargeBinary, nullable=False),
        sa.Column("our_nonce", sa.LargeBinary, nullable=False),
        sa.Column("their_nonce", sa.LargeBinary, nullable=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("binding", sa.LargeBinary, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("peer_id", sa.String, nullable=False),
        sa.Column("failure", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger),
    )
    op.create_index("ix_pairings_session", "pairings", ["session", "outgoing"], unique=True)
    op.create_index("ix_pairings_open", "pairings", ["open", "expire_time"])


def _log() -> None:
    op.create_table(
        "federation_events",
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
