"""The migration runner: forwards, all or nothing, and never on a database from the future."""

import asyncio
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from hopper_common.database import Database
from hopper_common.errors import DatabaseNewer, Internal
from hopper_testing.database import differences
from hopper_testing.postgres import postgres_server
from tests.common.toy import METADATA, MIGRATIONS, EngineKind, add_note, add_reply, new_toy, notes, open_toy

FIRST = Path(__file__).parent / "toy" / "migrations" / "versions" / "0001_tables.py"
SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"

def upgrade() -> None:
    {body}
"""
ADD_COLUMN = 'op.add_column("notes", sa.Column("colour", sa.String))'
# SQLite makes a new table of it.
ALTER = """with op.batch_alter_table("notes") as batch:
        batch.add_column(sa.Column("colour", sa.String))
        batch.alter_column("text", nullable=False)"""
FAIL = 'op.drop_table("nowhere")'

MakeHistory = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture
def make_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeHistory:
    """Makes a package with the toy's first revision and more after it; returns its import name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*bodies: str) -> str:
        name = f"toy_history_{next(_numbers)}"
        versions = tmp_path / name / "versions"
        versions.mkdir(parents=True)
        (versions.parent / "__init__.py").touch()
        shutil.copy(FIRST, versions)
        for number, body in enumerate(bodies, start=2):
            text = SECOND.format(revision=f"000{number}", down_revision=f"000{number - 1}", body=body)
            (versions / f"000{number}_more.py").write_text(text)
        return name

    return make


async def columns(db: Database) -> set[str]:
    return await db.read(lambda conn: {column["name"] for column in sa.inspect(conn).get_columns("notes")})


@pytest.mark.parametrize("body", [ADD_COLUMN, ALTER])
async def test_an_older_database_is_brought_up_to_date_with_its_rows(
    database_url: str, make_history: MakeHistory, body: str
) -> None:
    db = await open_toy(database_url)
    await db.write(lambda conn: add_note(conn, "a"))
    await db.write(
        lambda conn: add_reply(conn, note=1)
    )  # a table that is referred to is the harder one to alter
    await db.close()
    db = await open_toy(database_url, make_history(body))
    assert await columns(db) == {"id", "text", "colour"}
    assert await db.read(notes) == ["a"]
    await db.close()


async def test_a_database_from_the_future_is_refused_with_name_and_remedy(
    database_url: str, make_history: MakeHistory
) -> None:
    newer = make_history(ADD_COLUMN)
    db = await open_toy(database_url, newer)
    await db.close()
    with pytest.raises(DatabaseNewer, match="run the newer Hopper") as caught:
        await open_toy(database_url)
    assert caught.value.metadata == {"file": db.name, "revision": "0002"}
    assert db.name in str(caught.value)
    await (await open_toy(database_url, newer)).close()  # nothing was changed, and the lock is free


async def test_a_revision_that_fails_leaves_nothing_behind(
    database_url: str, make_history: MakeHistory
) -> None:
    await (await open_toy(database_url)).close()
    with pytest.raises(Exception, match="nowhere"):
        await open_toy(database_url, make_history(ADD_COLUMN, FAIL))
    db = await open_toy(database_url)
    assert await columns(db) == {"id", "text"}
    await db.close()


async def test_a_table_that_no_revision_makes_is_a_defect_found_at_start(database_url: str) -> None:
    more = sa.MetaData()
    sa.Table("forgotten", more, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(Internal, match="makes no table forgotten"):
        await Database.open(database_url, metadata=more, migrations=MIGRATIONS, service="toy")


async def test_each_service_keeps_its_own_version(database_url: str) -> None:
    db = await open_toy(database_url)
    version = await db.read(lambda conn: conn.exec_driver_sql("SELECT * FROM alembic_version_toy").scalar())
    await db.close()
    assert version == "0001"


async def test_services_that_start_together_do_not_mix_their_histories(
    engine_kind: EngineKind, tmp_path: Path, make_history: MakeHistory
) -> None:
    """`alembic.op` is one name for the whole process."""
    histories = [make_history(ADD_COLUMN) for _ in range(6)]
    urls = [tmp_path / f"{name}.db" for name in histories]
    if engine_kind == "postgresql":  # where they may share a database, too
        urls = [new_toy(engine_kind, tmp_path)] * 6  # type: ignore[list-item]
    opened = await asyncio.gather(
        *(open_toy(url, name, f"toy{i}") for i, (url, name) in enumerate(zip(urls, histories, strict=True)))
    )
    for db in opened:
        assert await columns(db) == {"id", "text", "colour"}
        await db.close()


async def test_replicas_that_start_together_migrate_once(tmp_path: Path, make_history: MakeHistory) -> None:
    url = postgres_server().create_database()
    history = make_history(ADD_COLUMN)
    opened = await asyncio.gather(*(open_toy(url, history) for _ in range(4)))
    for db in opened:
        assert await columns(db) == {"id", "text", "colour"}
        await db.close()


async def test_a_migration_beside_a_running_replica_waits_its_turn(make_history: MakeHistory) -> None:
    """And what the running one has prepared against the old tables is prepared again."""
    url = postgres_server().create_database()
    older = await open_toy(url)
    await older.write(lambda conn: add_note(conn, "a"))
    everything = sa.text("SELECT * FROM notes")
    assert await older.write(lambda conn: len(conn.execute(everything).keys())) == 2
    newer = await open_toy(url, make_history(ADD_COLUMN))
    assert await older.write(lambda conn: len(conn.execute(everything).keys())) == 3
    assert await older.read(notes) == ["a"]
    await older.close()
    await newer.close()


async def test_the_toy_history_makes_the_toy_tables(engine_kind: EngineKind) -> None:
    url = postgres_server().create_database() if engine_kind == "postgresql" else ""
    assert await differences(metadata=METADATA, migrations=MIGRATIONS, service="toy", url=url) == []


async def test_a_difference_between_history_and_tables_is_found(
    engine_kind: EngineKind, make_history: MakeHistory
) -> None:
    url = postgres_server().create_database() if engine_kind == "postgresql" else ""
    found = await differences(metadata=METADATA, migrations=make_history(ADD_COLUMN), service="toy", url=url)
    assert [(what, table) for what, _, table, _ in found] == [("remove_column", "notes")]
