"""
How late what is promised may be.

`make faults` holds Hopper to its promises, on a machine that has time for them (`HOPPER_FAULTS_STRICT=1`). The suite
runs on any machine, also on one that is busy with other things: there a promise is kept if it is kept at all.
"""

import os
from datetime import timedelta
from typing import Final

_STRICT: Final = bool(os.environ.get("HOPPER_FAULTS_STRICT"))

MARGIN: Final = 250_000 if _STRICT else 30_000_000
"""Microseconds beside the second within which a task is ready again: what finding out may take."""
FAIL_OVER: Final = timedelta(seconds=5 if _STRICT else 30)
"""How soon another router keeps the clocks."""
NOTICED: Final = timedelta(seconds=15 if _STRICT else 90)
"""How soon a link to a peer that has died without a word is noticed."""
RECOVERED: Final = timedelta(seconds=2 if _STRICT else 90)
"""How soon one that is back is used again."""
