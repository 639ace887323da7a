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
from tests.common.toy import METADATA, MIGRATIONS, add_note, add_reply, notes

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
RECREATE = """with op.batch_alter_table("notes", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.String))"""
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


async def open_toy(path: Path, migrations: str = MIGRATIONS, service: str = "toy") -> Database:
    return await Database.open(path, metadata=METADATA, migrations=migrations, service=service)


async def columns(db: Database) -> set[str]:
    return await db.read(lambda conn: {column["name"] for column in sa.inspect(conn).get_columns("notes")})


@pytest.mark.parametrize("body", [ADD_COLUMN, RECREATE])
async def test_an_older_database_is_brought_up_to_date_with_its_rows(
    tmp_path: Path, make_history: MakeHistory, body: str
) -> None:
    path = tmp_path / "toy.db"
    db = await open_toy(path)
    await db.write(lambda conn: add_note(conn, "a"))
    await db.write(
        lambda conn: add_reply(conn, note=1)
    )  # a table that is referred to is the harder one to alter
    await db.close()
    db = await open_toy(path, make_history(body))
    assert await columns(db) == {"id", "text", "colour"}
    assert await db.read(notes) == ["a"]
    await db.close()


async def test_a_database_from_the_future_is_refused_with_file_and_remedy(
    tmp_path: Path, make_history: MakeHistory
) -> None:
    path = tmp_path / "toy.db"
    newer = make_history(ADD_COLUMN)
    await (await open_toy(path, newer)).close()
    with pytest.raises(DatabaseNewer, match="run the newer Hopper") as caught:
        await open_toy(path)
    assert caught.value.metadata == {"file": str(path), "revision": "0002"}
    assert str(path) in str(caught.value)
    await (await open_toy(path, newer)).close()  # nothing was changed, and the lock is free


async def test_a_revision_that_fails_leaves_nothing_behind(tmp_path: Path, make_history: MakeHistory) -> None:
    path = tmp_path / "toy.db"
    await (await open_toy(path)).close()
    with pytest.raises(Exception, match="nowhere"):
        await open_toy(path, make_history(ADD_COLUMN, FAIL))
    db = await open_toy(path)
    assert await columns(db) == {"id", "text"}
    await db.close()


async def test_a_table_that_no_revision_makes_is_a_defect_found_at_start(tmp_path: Path) -> None:
    more = sa.MetaData()
    sa.Table("forgotten", more, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(Internal, match="makes no table forgotten"):
        await Database.open(tmp_path / "toy.db", metadata=more, migrations=MIGRATIONS, service="toy")


async def test_each_service_keeps_its_own_version(tmp_path: Path) -> None:
    db = await open_toy(tmp_path / "toy.db")
    version = await db.read(lambda conn: conn.exec_driver_sql("SELECT * FROM alembic_version_toy").scalar())
    await db.close()
    assert version == "0001"


async def test_services_that_start_together_do_not_mix_their_histories(
    tmp_path: Path, make_history: MakeHistory
) -> None:
    """`alembic.op` is one name for the whole process."""
    histories = [make_history(ADD_COLUMN) for _ in range(6)]
    opened = await asyncio.gather(
        *(open_toy(tmp_path / f"{name}.db", name, f"toy{i}") for i, name in enumerate(histories))
    )
    for db in opened:
        assert await columns(db) == {"id", "text", "colour"}
        await db.close()


async def test_the_toy_history_makes_the_toy_tables() -> None:
    assert await differences(metadata=METADATA, migrations=MIGRATIONS, service="toy") == []


async def test_a_difference_between_history_and_tables_is_found(make_history: MakeHistory) -> None:
    found = await differences(metadata=METADATA, migrations=make_history(ADD_COLUMN), service="toy")
    assert [(what, table) for what, _, table, _ in found] == [("remove_column", "notes")]
