"""
The table of the journal. Times and durations are integer microseconds; enums are words.

`entries_fts`, the full-text index over the words of tasks, is not in here: SQLAlchemy cannot describe it. The first
migration makes it, with the triggers that keep it in step with `entries`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()

# One line of the journal: a decision, with what was asked about it or what was told of it, mostly both.
ENTRIES = Table(
    "entries",
    METADATA,
    Column("id", Integer, primary_key=True),  # in the order of writing; names the row to the full-text index
    Column("decision", String, nullable=False, unique=True),
    Column("create_time", BigInteger, nullable=False),
    Column("words", Text, nullable=False),  # of the task, with spaces between
    # What was asked and answered; NULL where the Sage was only told.
    Column("digest", LargeBinary),
    Column("response", LargeBinary),
    Column("answer", String),  # CHOICE, CLARIFICATION or a kind of abstention
    Column("project", String),
    Column("confidence", Float),
    Column("model_calls", Integer),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
    Column("money", Integer),
    # What came of it; NULL until somebody says.
    Column("outcome", String),
    Column("final_project", String),
    Column("success", Boolean),
    Column("duration", BigInteger),
    Column("revision", BigInteger),
)

Index("ix_entries_create_time", ENTRIES.c.create_time)
