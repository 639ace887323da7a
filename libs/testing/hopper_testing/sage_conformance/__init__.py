"""
What every Sage must do, as checks against a running one: the comments of `hopper/sage/v1/*.proto`, tried out.

    python -m hopper_testing.sage_conformance 127.0.0.1:9000
    python -m hopper_testing.sage_conformance 127.0.0.1:9000 --start './my-sage --port 9000'

With `--start` the suite starts the Sage by itself, and also stops and kills it to see what it remembers. A check uses
decisions and tasks of its own, so it can be run again and again against a Sage that keeps its journal; but not beside
others who ask it, because some checks count.

`CHECKS` are all of them. Each takes a `Sage`, and raises `Broken`, in words for whoever writes the Sage, or
`NotApplicable`.
"""

from hopper_testing.sage_conformance.checking import Broken, Check, NotApplicable
from hopper_testing.sage_conformance.checks import CHECKS
from hopper_testing.sage_conformance.stage import Running, Sage, Stage, Started

__all__ = ["CHECKS", "Broken", "Check", "NotApplicable", "Running", "Sage", "Stage", "Started"]
