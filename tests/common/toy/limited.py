"""A process whose files may not grow: prints what its writes came to; then they may, and it writes again."""

import asyncio
import resource
import sys

from hopper_common.database import Database
from hopper_common.errors import HopperError
from tests.common.toy import METADATA, MIGRATIONS, add_note, notes


async def outcome(db: Database, text: str) -> str:
    try:
        await db.write(lambda conn: add_note(conn, text))
    except HopperError as error:
        return error.reason
    return "OK"


async def main() -> None:
    db = await Database.open(sys.argv[1], metadata=METADATA, migrations=MIGRATIONS, service="toy")
    await db.write(lambda conn: add_note(conn, "before"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    large = await asyncio.gather(*(outcome(db, f"{i}" * 100_000) for i in range(4)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    after = await outcome(db, "after")
    print(*large, after, *await db.read(notes))
    await db.close()


asyncio.run(main())
