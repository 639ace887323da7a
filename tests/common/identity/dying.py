"""
Changes identities in processes that die while they do: run as a program of its own, which may fork.

Each line on standard input is a JSON object: what to change, where, and the failpoints. Each line on standard output is
how that process ended.
"""

import json
import logging
import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import structlog

from hopper_common import failpoints
from hopper_common.identity.backup import restore
from hopper_common.identity.rotation import Verb
from hopper_common.identity.sealing import Cost
from hopper_common.identity.store import IdentityStore
from hopper_testing.clock import ManualClock

CHEAP = Cost(4)


def change(case: dict[str, Any]) -> None:
    directory, clock = Path(case["directory"]), ManualClock(datetime.fromisoformat(case["now"]))
    with failpoints.active(case["failpoints"]):
        match case["what"]:
            case "open":
                IdentityStore.open(directory, clock)
            case "restore":
                restore(Path(case["backup"]).read_bytes(), b"secret", directory, clock, overwrite=True)
            case verb:
                IdentityStore.open(directory, clock).move(Verb(verb))


def _change_and_leave(case: dict[str, Any]) -> NoReturn:
    try:
        change(case)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for line in sys.stdin:
        case = json.loads(line)
        child = os.fork()
        if child == 0:
            _change_and_leave(case)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
