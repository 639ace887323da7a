"""Crash rounds by hand: `python -m tests.faults --engine sqlite --engine postgresql --rounds 200 --seed 7`."""

import argparse
import secrets
import sys
from functools import partial
from pathlib import Path

from tests.faults import rounds
from tests.faults.stage import ENGINES


def main() -> int:
    """Run the rounds, print what came of them, and return 1 if anything was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=rounds.__doc__)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: each")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--keep", type=Path, help="a directory for ledgers and logs")
    arguments = parser.parse_args()
    say = partial(print, flush=True)
    results = [
        rounds.run(engine, rounds=arguments.rounds, seed=arguments.seed, say=say, keep=arguments.keep)
        for engine in arguments.engine or ENGINES
    ]
    say()
    for result in results:
        for line in result.lines():
            say(line)
    return 1 if any(result.report.violations for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
