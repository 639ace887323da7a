"""
A Hopper whose wall clock is stepped while it runs: `python stepped.py FILE [SERVICE]`.

FILE holds by how many seconds this machine's wall clock is wrong; whoever writes another number steps the clock. All
services run in one process, or SERVICE alone.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from hopper_common import logs
from hopper_common.clock import SystemClock
from hopper_common.host import Ready, installed_services, serve
from hopper_common.settings import load_settings


def _ready(reached: Ready) -> None:
    names, where = ", ".join(reached.services), " and ".join(reached.addresses)
    print(f"hopper ({names}) listens on {where}; data in {reached.data_dir}; pid {reached.pid}", flush=True)


async def _main(file: Path, service: str) -> None:
    settings, services = load_settings(), installed_services()
    if service:
        settings, services = settings.for_one(service), [one for one in services if one.name == service]
    logs.configure(level=settings.log_level, form=settings.log_format)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    clock = SystemClock(wall=lambda: time.time_ns() + round(float(file.read_text()) * 1e9))
    await serve(services, settings, ready=_ready, stop=stop, clock=clock)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), "".join(sys.argv[2:])))
