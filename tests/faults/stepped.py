"""
A Hopper whose wall clock is stepped while it runs: `python stepped.py FILE [SERVICE]`.

FILE holds by how many seconds this machine's wall clock is wrong; whoever writes another number steps the clock. All
services run in one process, or SERVICE alone; but for the clock it is what `hopper up` runs.
"""

import sys
import time
from pathlib import Path

from hopper_common.clock import SystemClock
from hopper_common.host import installed_services, run
from hopper_common.settings import load_settings


def _main(file: Path, service: str) -> int:
    settings, services = load_settings(), installed_services()
    if service:
        settings, services = settings.for_one(service), [one for one in services if one.name == service]
    clock = SystemClock(wall=lambda: time.time_ns() + round(float(file.read_text()) * 1e9))
    return run(services, settings, clock=clock)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), "".join(sys.argv[2:])))
