"""`python -m hopper_testing.sage_conformance ADDRESS`: says whether a Sage keeps to the contract."""

import argparse
import asyncio
import contextlib
import shlex
import sys
from collections.abc import Sequence

from hopper_common.startup import StartupError
from hopper_testing.sage_conformance import (
    CHECKS,
    Broken,
    Check,
    NotApplicable,
    Running,
    Sage,
    Stage,
    Started,
)


async def conforms(stage: Stage, checks: Sequence[Check]) -> bool:
    """
    Run checks against a Sage, one after the other, and print what came of each.

    Returns:
        Whether none was broken.
    """
    broken = 0
    for check in checks:
        try:
            async with Sage.connected(stage) as sage:
                await check.run(sage)
        except Broken as error:
            broken += 1
            print(f"BROKEN   {check.name}: {check.promise}\n         {error}", flush=True)
        except NotApplicable as reason:
            print(f"skipped  {check.name}: {reason}", flush=True)
        else:
            print(f"ok       {check.name}: {check.promise}", flush=True)
    print(f"{broken} of {len(checks)} broken" if broken else "this Sage keeps to the contract", flush=True)
    return not broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit code: 0 it conforms, 1 it does not, 2 it was called wrongly."""
    parser = argparse.ArgumentParser(
        prog="python -m hopper_testing.sage_conformance",
        description="Check whether a Sage keeps to hopper.sage.v1.",
    )
    parser.add_argument("address", help="unix:/path/to.sock, or host:port of this machine")
    parser.add_argument(
        "--start", metavar="COMMAND", help="start the Sage with this, and restart and kill it too"
    )
    parser.add_argument("--only", metavar="NAME", action="append", choices=[check.name for check in CHECKS])
    options = parser.parse_args(arguments)
    checks = [check for check in CHECKS if not options.only or check.name in options.only]
    with contextlib.ExitStack() as stack:
        stage: Stage = Running(options.address)
        if options.start:
            stage = stack.enter_context(Started(shlex.split(options.start), options.address))
        try:
            return 0 if asyncio.run(conforms(stage, checks)) else 1
        except StartupError as error:
            print(f"hopper: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
