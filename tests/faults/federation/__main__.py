"""Rounds by hand: `python -m tests.faults.federation --minutes 30`, or one again: `--seed 7 --rounds 1`."""

import argparse
import itertools
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all processes end with this one
    say = partial(print, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    total = rounds.Result(arguments.seed)
    stopped = False
    try:
        for seed in _seeds(arguments, time.monotonic()):
            result = one(seed, arguments.seconds, say)
            total.add(result)
            say(
                f"seed {seed} at {commit}: {result.counts['tasks']} tasks, "
                f"{result.counts['hand-overs']} hand-overs, {result.counts['kills']} kills, "
                f"{sum(result.struck.values())} faults, {len(result.violations)} violations, {result.seconds:.0f} s"
            )
    except KeyboardInterrupt:
        stopped = True
        say("stopped; what was under way does not count")
    for line in total.lines():
        say(line)
    return 1 if total.violations or stopped else 0


def _seeds(arguments: argparse.Namespace, began: float) -> Iterator[int]:
    """One after the other, until there are enough, or there is less time left than half a round takes."""
    for done in itertools.count():
        gone = time.monotonic() - began
        left = arguments.minutes * 60 - gone
        if done >= arguments.rounds if arguments.rounds else done and left < gone / done / 2:
            return
        yield arguments.seed + done


def one(seed: int, seconds: float, say: rounds.Say) -> rounds.Result:
    """A round, as the seed says: three or four Hoppers, and in every second one a revocation, each way in turn."""
    hoppers = random.Random(f"shape/{seed}").choice((3, 3, 4))
    mode = rounds.MODES[seed // 2 % len(rounds.MODES)] if seed % 2 else None
    say(
        f"seed {seed}: {hoppers} Hoppers"
        + (f", of whom one is revoked ({rounds.told(mode)})" if mode else "")
    )
    return rounds.run(seed, hoppers=hoppers, seconds=seconds, revokes=mode, say=say)


if __name__ == "__main__":
    sys.exit(main())
