"""
The tables of the federation service. A peer is kept whole, as a serialized message in `body`; beside it stand the
columns that queries ask for.

Times are microseconds since 1970.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table
from hopper_federation.artifacts import tables as files
from hopper_federation.delegation import positions
from hopper_federation.delegation import tables as hand_overs

METADATA = MetaData()
MIGRATIONS = "hopper_federation.migrations"

# Body: a `Peer` without its etag.
PEERS = Table(
    "peers",
    METADATA,
    Column("install_id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("revision", BigInteger, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("drain_time", BigInteger),  # until when a drained peer may go on
    Column("body", LargeBinary, nullable=False),
)

# What each install told of its keys last: verified, and kept when it is revoked.
TRUST_ROOTS = Table(
    "trust_roots",
    METADATA,
    Column("install_id", String, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("root_key", LargeBinary, nullable=False),  # of the active root
    Column("bundle", LargeBinary, nullable=False),  # a `SignedBundle`, as it came
    Column("learn_time", BigInteger, nullable=False),
)

# How far each peer has come: with this Hopper's bundle, by sequence, and with comparing notes, by this Hopper's
# incarnation.
PEER_MARKS = Table(
    "peer_marks",
    METADATA,
    Column("install_id", String, primary_key=True),
    Column("acknowledged", BigInteger, nullable=False, server_default="0"),
    Column("synced", BigInteger, nullable=False, server_default="0"),
)

# This database's own, one row: see `incarnation`.
INCARNATION = Table(
    "incarnation",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("identity", String, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("tick", BigInteger, nullable=False),
    Column("restored", String, nullable=False),
)

# The owner's policies for peers, every version that ever was.
GRANTS = Table(
    "grants",
    METADATA,
    Column("install_id", String, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("policy", Text, nullable=False),
    Column("set_by", String, nullable=False),
    Column("set_time", BigInteger, nullable=False),
    Column("sign_time", BigInteger, nullable=False),  # signed anew as keys change
    Column("signature", LargeBinary, nullable=False),
    Column("key_id", String, nullable=False),
)

INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("secret_id", LargeBinary, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("key", LargeBinary, nullable=False),  # made from the secret, which is not kept
    Column("root_key", LargeBinary, nullable=False),
    Column("peer_id", String, nullable=False),
    Column("level", String, nullable=False),
    Column("state", String, nullable=False),
    Column("wrong_proofs", Integer, nullable=False),
    Column("contested", Integer, nullable=False),
    Column("redeemer_install_id", String, nullable=False),
    Column("redeemer", LargeBinary, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("our_nonce", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("redeem_time", BigInteger),
    Index("ix_invitations_state", "state", "expire_time"),
)

# Invitations of others that this Hopper redeems or has redeemed: the nonce has to be the same in every attempt.
JOINS = Table(
    "joins",
    METADATA,
    Column("secret_id", LargeBinary, primary_key=True),
    Column("nonce", LargeBinary, nullable=False),
    Column("install_id", String, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

PAIRINGS = Table(
    "pairings",
    METADATA,
    Column("id", String, primary_key=True),
    Column("session", LargeBinary, nullable=False),
    Column("outgoing", Boolean, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("step", String, nullable=False),
    Column("source", String, nullable=False),
    Column("install_id", String, nullable=False),
    Column("claimed_name", String, nullable=False),
    Column("address", String, nullable=False),
    Column("ours", LargeBinary, nullable=False),  # an `Introduction`, as it went
    Column("theirs", LargeBinary, nullable=False),  # an `Introduction`, as it came
    Column("commitment", LargeBinary, nullable=False),
    Column("our_nonce", LargeBinary, nullable=False),
    Column("their_nonce", LargeBinary, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("binding", LargeBinary, nullable=False),
    Column("code", String, nullable=False),
    Column("peer_id", String, nullable=False),
    Column("failure", String, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Index("ix_pairings_session", "session", "outgoing", unique=True),
    Index("ix_pairings_open", "open", "expire_time"),
)

EVENTS = event_table(METADATA, "federation_events")
REQUESTS = requests_table(METADATA)

for _part in (hand_overs.METADATA, positions.METADATA, files.METADATA):
    for _table in _part.sorted_tables:
        _table.to_metadata(METADATA)
