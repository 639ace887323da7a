"""
Indexes for lists: open tasks of a project or a requester, and tasks in the states that few are in.

A page of a full table must not cost reading the table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_OPEN = "state IN ('SUBMITTED', 'QUEUED', 'RUNNING', 'INPUT_REQUIRED', 'DELEGATED')"
_SELDOM = "state NOT IN ('QUEUED', 'RUNNING', 'SUCCEEDED')"


def upgrade() -> None:
    """Make them; that by state serves those who wait for a place as well."""
    op.drop_index("tasks_unplaced", "tasks")
    _index("tasks_seldom", ["state", "id"], _SELDOM)
    _index("tasks_open_by_project", ["project", "id"], _OPEN)
    _index("tasks_open_by_requester", ["requester", "id"], _OPEN)


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        name, "tasks", columns, unique=False, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )
