"""The table of the audit log."""

from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()

RECORDS = Table(
    "audit_records",
    METADATA,
    Column("chain", String, primary_key=True),  # whose: processes can share a database, but not a chain
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),  # microseconds
    Column("principal", String, nullable=False),
    Column("acting_for", String, nullable=False),
    Column("credential", String, nullable=False),
    Column("source", String, nullable=False),
    Column("method", String, nullable=False),
    Column("resources", Text, nullable=False),  # a word each, with spaces between
    Column("allowed", Boolean, nullable=False),
    Column("reason", String, nullable=False),
    Column("rule", String, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
# By what people look for them; each is read backwards.
Index("ix_audit_records_principal", RECORDS.c.chain, RECORDS.c.principal, RECORDS.c.sequence)
Index("ix_audit_records_time", RECORDS.c.chain, RECORDS.c.time)
Index("ix_audit_records_refused", RECORDS.c.chain, RECORDS.c.allowed, RECORDS.c.sequence)
