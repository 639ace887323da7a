"""
The tables of memory. Times and durations are integer microseconds; flags and enums are words.

`episodes_fts`, the full-text index over title, description, tags and place, is not among them: SQLAlchemy
cannot describe it. The first migration makes it, with the triggers that keep it in step with `episodes`.
"""

from sqlalchemy import (
    JSON,
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
    text,
)

from hopper_common.idempotency import requests_table

METADATA = MetaData()


def _outcome_columns(*, known: bool) -> list[Column[object]]:
    """What is reported of an end; all NULL in an episode that has none yet."""
    return [
        Column("outcome", String, nullable=not known),
        Column("finish_time", BigInteger, nullable=not known),
        Column("attempts", Integer, nullable=not known),
        Column("worker", String, nullable=not known),
        Column("failure_reason", String, nullable=not known),
        Column("queue_duration", BigInteger),
        Column("run_duration", BigInteger),
        Column("rerouted_to", String, nullable=False, server_default=""),
    ]


EPISODES = Table(
    "episodes",
    METADATA,
    Column("id", Integer, primary_key=True),  # names the row to the full-text index
    Column("decision", String, nullable=False, unique=True),
    Column("task", String, nullable=False),
    Column("instance", String, nullable=False),
    Column("parent_decision", String, nullable=False),
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", Text, nullable=False),  # with spaces between: a tag has none
    Column("project", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("strategy", String, nullable=False),
    Column("decide_time", BigInteger, nullable=False),
    Column("candidates", JSON, nullable=False),  # [[project, confidence], ...]
    *_outcome_columns(known=False),
    # Whether the newest feedback that says so says it was right. Kept here, so that neither the score nor
    # the list of mistakes has to look at feedback.
    Column("verdict", Boolean),
)

# As text, because SQLite takes the indexes below only for a condition that is spelled like theirs.
WENT_WRONG = text("(verdict IS 0 OR outcome IN ('FAILED', 'REROUTED'))")

Index("ix_episodes_project", EPISODES.c.project, EPISODES.c.decide_time, EPISODES.c.decision)
Index("ix_episodes_time", EPISODES.c.decide_time, EPISODES.c.project)
Index("ix_episodes_instance", EPISODES.c.instance, EPISODES.c.decide_time, EPISODES.c.project)
# Has all that the score is made of, so that the wide rows are not read for it.
Index(
    "ix_episodes_score",
    EPISODES.c.instance,
    EPISODES.c.project,
    EPISODES.c.verdict,
    EPISODES.c.confidence,
    EPISODES.c.outcome,
)
# Mistakes are few: an index of only those is small, and lists them without a search.
Index("ix_episodes_mistakes", EPISODES.c.decide_time, EPISODES.c.decision, sqlite_where=WENT_WRONG)
Index(
    "ix_episodes_instance_mistakes",
    EPISODES.c.instance,
    EPISODES.c.decide_time,
    EPISODES.c.decision,
    sqlite_where=WENT_WRONG,
)

# Outcomes whose decisions have not come yet.
PENDING_OUTCOMES = Table(
    "pending_outcomes",
    METADATA,
    Column("decision", String, primary_key=True),
    *_outcome_columns(known=True),
)

TASK_FEEDBACK = Table(
    "task_feedback",
    METADATA,
    Column("id", Integer, primary_key=True),  # in the order of recording: the greatest is the newest
    Column("feedback", String, nullable=False, unique=True),
    Column("decision", String, nullable=False),
    Column("match", String),
    Column("better_project", String, nullable=False),
    Column("actual_effort", BigInteger),
    Column("quality", Float),
    Column("rework", Boolean, nullable=False),
    Column("blockers", JSON, nullable=False),
    Column("comment", Text, nullable=False),
    Column("author", String, nullable=False),
    Column("from_decision", String, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

Index("ix_task_feedback_decision", TASK_FEEDBACK.c.decision, TASK_FEEDBACK.c.id)

# What was taught, in order. The text it is about is in the episode of the decision.
LESSONS = Table(
    "lessons",
    METADATA,
    Column("position", Integer, primary_key=True),
    Column("decision", String, nullable=False),
    Column("truth", String, nullable=False),
    Column("project", String, nullable=False),
    Column("source", String, nullable=False),
    Column("weight", Float, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

MODELS = Table(
    "models",
    METADATA,
    Column("format", String, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("upload", String, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

# The bytes of models, and of those that are being saved.
MODEL_PARTS = Table(
    "model_parts",
    METADATA,
    Column("upload", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

REQUESTS = requests_table(METADATA)
