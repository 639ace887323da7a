"""Lessons, those of what is known already too; snapshots of what they add up to; where what was rerouted went."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Where the next decision about the same task sent it.
REROUTED_TO = """
UPDATE episodes SET rerouted_to = later.project
FROM (
    SELECT decision, lead(project) OVER (PARTITION BY task ORDER BY decide_time, decision) AS project
    FROM episodes
    WHERE task IN (SELECT task FROM episodes WHERE outcome = 'REROUTED')
) AS later
WHERE episodes.decision = later.decision AND episodes.outcome = 'REROUTED' AND later.project IS NOT NULL
"""

# What `hopper_memory.lessons` says, of all that was said and happened before there were lessons. In the order in which
# it was, as far as the clocks of those who told it agree.
LESSONS = """
WITH taught (time, part, id, decision, truth, project, source, weight) AS (
    SELECT
        said.create_time, 0, said.id, said.decision,
        CASE
            WHEN said.match = 'NONE' THEN 'NONE'
            WHEN said.match = 'BAD' AND said.better_project = '' THEN 'WRONG'
            ELSE 'RIGHT'
        END,
        CASE
            WHEN said.match = 'NONE' THEN ''
            WHEN said.better_project = '' THEN episodes.project
            WHEN said.better_project = episodes.project THEN ''
            ELSE said.better_project
        END,
        CASE said.author WHEN '' THEN 'anonymous' ELSE said.author END,
        1.0
    FROM task_feedback AS said JOIN episodes ON episodes.decision = said.decision
    WHERE said.match IS NOT NULL AND episodes.strategy NOT IN ('', 'scope')
    UNION ALL
    SELECT
        finish_time, 1, id, decision,
        CASE outcome WHEN 'SUCCEEDED' THEN 'RIGHT' ELSE 'WRONG' END,
        project,
        CASE worker WHEN '' THEN 'router' ELSE worker END,
        CASE outcome WHEN 'REROUTED' THEN 0.25 ELSE 0.5 END
    FROM episodes
    WHERE strategy NOT IN ('', 'scope')
        AND (
            outcome = 'SUCCEEDED'
            OR outcome IN ('FAILED', 'REJECTED')
                AND failure_reason IN ('WRONG_PROJECT', 'NOT_MINE', 'CANNOT', 'OUT_OF_SCOPE', 'MISROUTED')
            OR outcome = 'REROUTED' AND strategy <> 'pin' AND rerouted_to NOT IN ('', project)
        )
        AND NOT EXISTS (
            SELECT 1 FROM task_feedback AS said
            WHERE said.decision = episodes.decision AND said.match IS NOT NULL
                AND said.create_time < episodes.finish_time
        )
)
INSERT INTO lessons (decision, truth, project, source, weight, create_time)
SELECT decision, truth, project, source, weight, time FROM taught
WHERE project <> '' OR truth = 'NONE'
ORDER BY time, part, id
"""


def upgrade() -> None:
    for table in ("episodes", "pending_outcomes"):
        op.add_column(table, sa.Column("rerouted_to", sa.String, nullable=False, server_default=""))
    make_lessons()
    make_models()
    op.execute(REROUTED_TO)
    op.execute(LESSONS)


def make_lessons() -> None:
    op.create_table(
        "lessons",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("truth", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )


def make_models() -> None:
    op.create_table(
        "models",
        sa.Column("format", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("upload", sa.String, nullable=False),
        sa.Column("parts", sa.Integer, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "model_parts",
        sa.Column("upload", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
