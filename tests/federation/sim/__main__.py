"""
Run worlds, one seed after the other, on all cores: `python -m tests.federation.sim [--seconds 300] [--first N]`.

A failure prints its seed; `--seed N` does the same again, and tells what happened.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.federation.sim.invariants import violations
from tests.federation.sim.running import Tally, chunks
from tests.federation.sim.world import World


def main() -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.federation.sim", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long to go on (default 300)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--seed", type=int, help="only this one, and tell what happened")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        return _tell(wanted.seed)
    began, total = time.monotonic(), Tally()
    for tally in chunks(wanted.first, wanted.seconds, wanted.jobs):
        total.add(tally)
        for seed, found in tally.wrong.items():
            print(f"seed {seed}: {found[0]} ({len(found)} in all)", flush=True)
    took = time.monotonic() - began
    print(
        f"{total.seeds} seeds from {wanted.first} in {took:.0f} s ({total.seeds / took:.0f} a second),"
        f" {total.events} events, {len(total.wrong)} with violations; the next is {wanted.first + total.seeds}"
    )
    if total.wrong:
        print(f"replay: python -m tests.federation.sim --seed {min(total.wrong)}")
    return 1 if total.wrong else 0


def _tell(seed: int) -> int:
    world = World(seed)
    try:
        world.run()
    finally:
        print(world.plan, *world.log, sep="\n")
    wrong = violations(world)
    for hopper in world.hoppers.values():
        for each in hopper.tables.delegations.values():
            print(hopper.name, each)
        for task in hopper.router.tasks.values():
            print(hopper.name, task)
    print(*world.ledger, *world.alarms, *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
