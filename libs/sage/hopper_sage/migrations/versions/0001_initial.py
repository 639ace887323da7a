"""The journal, with its full-text index."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# An index without a copy of the words: it reads `entries` where it needs them. Porter makes "failing" and "failed" the
# same word.
FULL_TEXT = """
CREATE VIRTUAL TABLE entries_fts USING fts5(
    words, content='entries', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
)
"""
# The words of an entry never change after it was written, so there is nothing to do on update.
KEEP_IN_STEP = (
    """
CREATE TRIGGER entries_fts_insert AFTER INSERT ON entries BEGIN
    INSERT INTO entries_fts (rowid, words) VALUES (new.id, new.words);
END
""",
    """
CREATE TRIGGER entries_fts_delete AFTER DELETE ON entries BEGIN
    INSERT INTO entries_fts (entries_fts, rowid, words) VALUES ('delete', old.id, old.words);
END
""",
)


def upgrade() -> None:
    op.create_table(
        "entries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("decision", sa.String, nullable=False, unique=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("response", sa.LargeBinary),
        sa.Column("answer", sa.String),
        sa.Column("project", sa.String),
        sa.Column("confidence", sa.Float),
        sa.Column("model_calls", sa.Integer),
        sa.Column("input_tokens", sa.Integer),
        sa.Column("output_tokens", sa.Integer),
        sa.Column("money", sa.Integer),
        sa.Column("outcome", sa.String),
        sa.Column("final_project", sa.String),
        sa.Column("success", sa.Boolean),
        sa.Column("duration", sa.BigInteger),
        sa.Column("revision", sa.BigInteger),
    )
    op.create_index("ix_entries_create_time", "entries", ["create_time"])
    op.execute(FULL_TEXT)
    for trigger in KEEP_IN_STEP:
        op.execute(trigger)
