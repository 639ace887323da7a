"""
Run worlds, one seed after the other: `python -m tests.federation.sim [--seconds 300] [--seed N] [--first N]`.

A failure prints its seed; the same seed does the same again.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.federation.sim.invariants import violations
from tests.federation.sim.world import World


def main() -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.federation.sim", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long to go on (default 300)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one, and tell what happened")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        return _tell(wanted.seed)
    began, seed, failed, events = time.monotonic(), wanted.first, 0, 0
    while time.monotonic() - began < wanted.seconds:
        found, steps = tried(seed)
        events += steps
        if found:
            failed += 1
            print(f"seed {seed}: {found[0]} ({len(found)} in all)", flush=True)
        seed += 1
    print(f"{seed - wanted.first} seeds from {wanted.first}, {events} events, {failed} with violations")
    return 1 if failed else 0


def tried(seed: int) -> tuple[list[str], int]:
    """What is wrong with one world, and how many events it had."""
    world = World(seed)
    try:
        world.run()
    except Exception:  # a violation like any other: the next seed is tried all the same
        return [traceback.format_exc()], world.events
    return violations(world), world.events


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
