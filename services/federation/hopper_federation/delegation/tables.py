"""
The tables of hand-overs, of what is to be said about them, and of what is to be done.

Times are seconds of the steady clock (`model`), as doubles: they come back as they were.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()
"""Part of the service's (`hopper_federation.tables`)."""

# Wide enough for ever in PostgreSQL; SQLite counts up without reuse only in a plain INTEGER.
_COUNTER = BigInteger().with_variant(Integer, "sqlite")

# A hand-over as one side knows it. What no query asks for is in `body`, JSON.
DELEGATIONS = Table(
    "delegations",
    METADATA,
    Column("role", String, primary_key=True),  # OUT, IN
    Column("id", String, primary_key=True),
    Column("peer", String, nullable=False),  # install id, as everywhere here
    Column("task_uid", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("task", String, nullable=False),
    Column("state", String, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("settled", Boolean, nullable=False),
    Column("rule", String, nullable=False),
    Column("due", Double),  # when a clock of it runs out; null: none runs
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("body", Text, nullable=False),
    Column("offer", LargeBinary, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("appraisal", LargeBinary, nullable=False),
    Index("ix_delegations_due", "due"),
    Index("ix_delegations_peer", "peer", "open", "rule", "created"),
    Index("ix_delegations_task_uid", "task_uid"),
    Index("ix_delegations_task", "task"),
    Index("ix_delegations_created", "created", "id"),
    Index("ix_delegations_over", "open", "updated"),
)

# Messages that have not been answered, in the order in which they came about.
OUTBOX = Table(
    "outbox",
    METADATA,
    Column("position", _COUNTER, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("peer", String, nullable=False),
    Column("role", String, nullable=False),
    Column("delegation", String, nullable=False),
    Column("kind", String, nullable=False),  # field of the body in `Message`
    Column("body", LargeBinary, nullable=False),  # a `Message`, always sent as it stands here
    Column("create_time", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("attempts", Integer, nullable=False),  # that failed
    Index("ix_outbox_peer", "peer", "position"),
    Index("ix_outbox_delegation", "delegation", "role", "position"),
    sqlite_autoincrement=True,
)

# The first answer to each message of a peer.
INBOX = Table(
    "inbox",
    METADATA,
    Column("peer", String, primary_key=True),
    Column("message", String, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("receipt", LargeBinary, nullable=False),  # a `Receipt`
    Column("take_time", Double, nullable=False),
    Index("ix_inbox_take_time", "take_time"),
)

# What is to be done at the router, in the order in which it came about.
ERRANDS = Table(
    "errands",
    METADATA,
    Column("position", _COUNTER, primary_key=True),
    Column("role", String, nullable=False),
    Column("delegation", String, nullable=False),
    Column("task", String, nullable=False),  # `model.Task`
    Column("body", Text, nullable=False),
    Column("create_time", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index("ix_errands_delegation", "delegation", "role", "position"),
    Index("ix_errands_not_before", "not_before"),
    sqlite_autoincrement=True,
)

# How often this Hopper has handed each task over.
EPOCHS = Table(
    "epochs",
    METADATA,
    Column("task_uid", String, primary_key=True),
    Column("last", BigInteger, nullable=False),
    Column("use_time", Double, nullable=False),
    Index("ix_epochs_use_time", "use_time"),
)

# How sending to each peer goes, and which of its incarnations notes have been compared with.
SENDERS = Table(
    "senders",
    METADATA,
    Column("peer", String, primary_key=True),
    Column("failures", Integer, nullable=False),  # in a row
    Column("failed", Double, nullable=False),  # when last
    Column("held_until", Double, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("incarnation", BigInteger, nullable=False),  # 0: none yet
)
