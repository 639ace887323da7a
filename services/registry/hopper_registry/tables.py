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

# Who may call. Body: a `Principal` without its bindings, which are in a table of their own.
PRINCIPALS = Table(
    "principals",
    METADATA,
    Column("name", String, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("acts_for", String),  # NULL for those who act for themselves
    Column("body", LargeBinary, nullable=False),
    Index("ix_principals_acts_for", "acts_for"),
)

ROLE_BINDINGS = Table(
    "role_bindings",
    METADATA,
    Column("principal", String, primary_key=True),
    Column("role", String, primary_key=True),
    Column("resource", String, primary_key=True),
    Index("ix_role_bindings_resource", "resource"),
)

# What they prove themselves with. The key itself is nowhere, only its hash. Body: an `ApiKey` without times.
API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("name", String, primary_key=True),
    Column("id", String, nullable=False, unique=True),  # the last segment, as it stands in the key
    Column("principal", String, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("last_use_time", BigInteger),
    Column("revoke_time", BigInteger),
    Column("body", LargeBinary, nullable=False),
    Index("ix_api_keys_principal", "principal", "create_time"),
)

# The public parts of what tokens are signed with. The private parts are files of the process that signs.
TOKEN_KEYS = Table(
    "token_keys",
    METADATA,
    Column("kid", String, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("sign_time", BigInteger, nullable=False),  # signs from then on
    Column("expire_time", BigInteger, nullable=False),
    Index("ix_token_keys_expire", "expire_time"),
)

# One row once the first admin has been made, for ever: whoever removes that admin does not get a second first one.
FIRST_ADMIN = Table(
    "first_admin",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("principal", String, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

EVENTS = event_table(METADATA, "registry_events")
REQUESTS = requests_table(METADATA)
