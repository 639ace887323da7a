"""A process that writes notes as fast as it can and prints each one acknowledged; killed by its test."""

import asyncio
import os
import sys

from hopper_common.database import Database
from tests.common.toy import METADATA, MIGRATIONS, add_note


async def write_for_ever(db: Database, writer: int) -> None:
    number = 0
    while True:
        text = f"{writer}-{number}"
        await db.write(lambda conn, text=text: add_note(conn, text))  # type: ignore[misc]
        os.write(1, f"{text}\n".encode())
        number += 1


async def main() -> None:
    db = await Database.open(sys.argv[1], metadata=METADATA, migrations=MIGRATIONS, service="toy")
    await asyncio.gather(*(write_for_ever(db, writer) for writer in range(16)))


asyncio.run(main())
