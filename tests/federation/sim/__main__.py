"""
Run worlds, one seed after the other: `python -m tests.federation.sim [--seconds 300] [--seed N] [--first N]`.

A failure prints its seed; the same seed does the same again.
"""

from __future__ import annotations

import argparse
import sys
import time

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
        world = World(seed)
        world.run()
        events += world.events
        wrong = violations(world)
        if wrong:
            failed += 1
            print(f"seed {seed}: {wrong[0]} ({len(wrong)} in all)", flush=True)
        seed += 1
    print(f"{seed - wanted.first} seeds from {wanted.first}, {events} events, {failed} with violations")
    return 1 if failed else 0


def _tell(seed: int) -> int:
    world = World(seed)
    world.run()
    print(*world.log, sep="\n")
    wrong = violations(world)
    print(*wrong, sep="\n")
    for hopper in world.hoppers.values():
        for each in hopper.tables.delegations.values():
            print(
                hopper.name, each.role, each.id, each.peer, each.task_uid, each.epoch, each.state, each.reason
            )
        for task in hopper.router.tasks.values():
            print(
                hopper.name,
                "task",
                task.name,
                task.uid,
                task.state,
                task.at,
                sorted(task.able),
                task.exclusive,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
