"""Files that are where they were, and that are not."""

from pathlib import Path

from hopper_common.database import Database
from hopper_federation.artifacts import place
from hopper_federation.tables import METADATA, MIGRATIONS


async def test_whoever_takes_over_in_another_directory_says_so_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir(0o700)
    db = await Database.open(
        tmp_path / "federation.db", metadata=METADATA, migrations=MIGRATIONS, service="federation"
    )
    try:
        said = [await place.check(db, directory) for directory in (one, one, other, other, one)]
    finally:
        await db.close()
    assert said == [True, True, False, True, False]
