"""
The registry's tables. A resource is kept whole, as a serialized message in `body`; beside it stand the columns
that queries ask for.

Times are microseconds since 1970.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table

METADATA = MetaData()
MIGRATIONS = "hopper_registry.migrations"

# Body: a `Project` without presence, which is summed over `workers` when it is read.
PROJECTS = Table(
    "projects",
    METADATA,
    Column("name", String, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# What lists filter by: kind is "capability" or "tag".
PROJECT_WORDS = Table(
    "project_words",
    METADATA,
    Column("kind", String, primary_key=True),
    Column("word", String, primary_key=True),
    Column("project", String, primary_key=True),
    Index("ix_project_words_project", "project"),
)

WORKERS = Table(
    "workers",
    METADATA,
    Column("name", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("labels", Text, nullable=False),  # JSON with sorted keys, so that equal labels are equal text
    Column("time_to_live", BigInteger, nullable=False),
    Column("heartbeat_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("live", Boolean, nullable=False),
    Index("ix_workers_project", "project", "name"),
    Index("ix_workers_expire", "live", "expire_time"),
)

# Body: an `Instance`.
INSTANCES = Table(
    "hopper_instances",
    METADATA,
    Column("name", String, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("parent", String, nullable=False),
    Column("terminated", Boolean, nullable=False),
    # The project it stands for; NULL for those that stand for none, or for none any more.
    Column("serves", String, unique=True),
    Column("body", LargeBinary, nullable=False),
    Index("ix_hopper_instances_parent", "parent", "name"),
)

EVENTS = event_table(METADATA, "registry_events")
REQUESTS = requests_table(METADATA)
