"""The table of files beside tasks. Times are microseconds since 1970."""

from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, MetaData, String, Table

METADATA = MetaData()
"""Part of the service's (`hopper_federation.tables`)."""

ARTIFACTS = Table(
    "artifacts",
    METADATA,
    Column("task", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("media_type", String, nullable=False),
    Column("stored", Boolean, nullable=False),  # all of it is in the blob store
    Column("wanted", Boolean, nullable=False),  # still to be pulled
    Column("problem", String, nullable=False),
    Column("peer", String, nullable=False),  # where it comes from; empty: put here
    Column("delegation", String, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("ix_artifacts_sha256", "sha256"),
    Index("ix_artifacts_peer", "peer", "wanted"),
    Index("ix_artifacts_create_time", "create_time", "task"),
)
