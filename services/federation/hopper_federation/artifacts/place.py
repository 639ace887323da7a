"""
Whether the files beside tasks are where they were when the database was last used: who takes the service over in
another directory has the rows of files, and not their bytes.
"""

import secrets
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from hopper_common.database import Database
from hopper_common.identity.files import write_private
from hopper_federation.delegation import positions

log = structlog.get_logger(__name__)

FILE: Final = "place"
_NAME: Final = "blobs"
_BITS: Final = 62


async def check(db: Database, directory: Path) -> bool:
    """
    Compare the number in the directory with the one in the database, and say so loudly if they differ; from then on
    they agree.

    Returns:
        Whether they did.
    """
    found = _read(directory / FILE)
    here = found or secrets.randbits(_BITS) + 1
    if not found:
        write_private(directory / FILE, b"%d\n" % here)

    def work(conn: Connection) -> int:
        known = positions.read(conn, _NAME)
        if known != here:
            positions.save(conn, _NAME, here)
        return known

    same = await db.write(work) in (0, here)
    if not same:
        log.error(
            "files beside tasks were kept in another directory, and those are not here: let all processes of this "
            "Hopper share one (HOPPER_ARTIFACT_DIR)",
            directory=str(directory),
        )
    return same


def _read(file: Path) -> int:
    try:
        return int(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return 0
