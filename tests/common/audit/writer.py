"""A process with an audit log, for tests that kill it: prints what each decision that is durable named."""

import asyncio
import sys

from hopper_common.audit.model import Handling
from hopper_common.clock import SystemClock
from tests.common.audit.harness import HOT, REFUSED, open_log


async def main() -> None:
    async with open_log(sys.argv[1], SystemClock()) as log:
        for number in range(100):
            log.sink.record(HOT, Handling.COUNTED)
            await log.put(REFUSED._replace(resources=(f"projects/p{number}",)), Handling.AWAITED)
            print(f"durable projects/p{number}", flush=True)
        print("durable all", flush=True)


asyncio.run(main())
