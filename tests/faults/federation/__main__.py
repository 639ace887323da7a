"""Rounds by hand: `python -m tests.faults.federation --minutes 30`, or one again: `--seed 7 --rounds 1`."""

import argparse
import random
import secrets
import subprocess
import sys
import time
from functools import partial

from tests.faults.federation import rounds

_SECONDS = 90.0


def main() -> int:
    """Run rounds until the time is over, print what came of them, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.federation", description=rounds.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=0, help="so many, however long they take")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**32), help="of the first; they count up"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="how long faults strike in each")
    arguments = parser.parse_args()
    say = partial(print, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    total, began = rounds.Result(arguments.seed), time.monotonic()
    while (
        total.rounds < arguments.rounds
        if arguments.rounds
        else time.monotonic() - began < arguments.minutes * 60
    ):
        seed = arguments.seed + total.rounds
        result = one(seed, arguments.seconds, say)
        total.add(result)
        say(
            f"seed {seed} at {commit}: {result.counts['tasks']} tasks, {result.counts['hand-overs']} hand-overs, "
            f"{result.counts['kills']} kills, {sum(result.struck.values())} faults, "
            f"{len(result.violations)} violations, {result.seconds:.0f} s"
        )
    for line in total.lines():
        say(line)
    return 1 if total.violations else 0


def one(seed: int, seconds: float, say: rounds.Say) -> rounds.Result:
    """A round, as the seed says: three or four Hoppers, with a revocation now and then."""
    chance = random.Random(f"shape/{seed}")
    hoppers = chance.choice((3, 3, 4))
    return rounds.run(seed, hoppers=hoppers, seconds=seconds, revokes=chance.random() < 0.35, say=say)


if __name__ == "__main__":
    sys.exit(main())
