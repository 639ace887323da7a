"""
Bringing a service's tables to the version its code expects.

Each service keeps its history in a package `migrations` with Alembic revisions under `versions/`. There is no
`alembic.ini` and no `env.py`: this module is the environment, the same for all. The version is kept in
`alembic_version_<service>`, so that services can share one database and still move on their own.

A database that is ahead of the code is refused, never guessed at: the newer Hopper may have moved data to
where this one does not look.
"""

import importlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, MetaData, inspect

from hopper_common.errors import DatabaseNewer, Internal

# `alembic.op` is one name for the whole process: services that start together take turns.
_one_at_a_time = threading.Lock()


def upgrade(connection: Connection, *, migrations: str, service: str, database: str) -> bool:
    """
    Run the revisions that *connection*'s database does not have yet.

    All of it happens in the transaction the caller has begun, so it is done entirely or not at all where the
    database can roll back DDL (SQLite and PostgreSQL can).

    Args:
        migrations: The package with the folder `versions`, e.g. "hopper_router.migrations".
        service: Short name, e.g. "router".
        database: What to call it in errors: its file, or its address without password.

    Returns:
        Whether there were any.

    Raises:
        DatabaseNewer: The database is at a revision this code does not know.
    """
    script = _script(migrations)

    def steps(revision: Any, context: MigrationContext) -> Iterable[Any]:
        return script._upgrade_revs("head", revision)

    context = _context(connection, service, fn=steps)
    _refuse_newer(script, context, service, database)
    if set(context.get_current_heads()) == set(script.get_heads()):
        return False
    with _one_at_a_time, Operations.context(context):
        context.run_migrations()
    return True


def check_complete(connection: Connection, *, metadata: MetaData, migrations: str) -> None:
    """
    Refuse to serve tables that the migrations forgot.

    Raises:
        Internal: A table of *metadata* is not in the database.
    """
    if missing := sorted(metadata.tables.keys() - set(inspect(connection).get_table_names())):
        raise Internal(f"{migrations} makes no table {', '.join(missing)}: add a revision that does")


def differences(connection: Connection, *, metadata: MetaData, service: str) -> list[Any]:
    """
    How *metadata* differs from the tables in the database: Alembic's operations, empty if nothing does.

    Only tables named in *metadata* count; the database may hold those of other services.
    """

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "table" or name in metadata.tables

    context = _context(connection, service, include_name=ours, compare_type=True)
    return list(compare_metadata(context, metadata))


def _context(connection: Connection, service: str, **options: Any) -> MigrationContext:
    version_table = f"alembic_version_{service}"
    return MigrationContext.configure(connection, opts={"version_table": version_table, **options})


def _script(migrations: str) -> ScriptDirectory:
    (folder,) = importlib.import_module(migrations).__path__
    return ScriptDirectory(str(Path(folder)))


def _refuse_newer(script: ScriptDirectory, context: MigrationContext, service: str, database: str) -> None:
    for revision in context.get_current_heads():
        try:
            known = script.revision_map.get_revision(revision) is not None
        except RevisionError:
            known = False
        if not known:
            raise DatabaseNewer(
                f"{database} is at {service} revision {revision}, which this Hopper does not know: "
                "run the newer Hopper that wrote it, or restore the backup from before the upgrade",
                file=database,
                revision=revision,
            )
