"""
A Hopper that is killed again and again keeps what it has acknowledged: a few rounds of what `make faults` runs 200 of.

`HOPPER_FAULT_ROUNDS` rounds (5) from the seed `HOPPER_FAULT_SEED` (a new one for each run; it is in the report).
"""

import os
import secrets
from collections.abc import Callable
from typing import Final

import pytest

from tests.faults import rounds
from tests.faults.stage import ENGINES, Engine

ROUNDS: Final = int(os.environ.get("HOPPER_FAULT_ROUNDS", "5"))
SEED: Final = int(os.environ.get("HOPPER_FAULT_SEED", "0")) or secrets.randbelow(2**32)


@pytest.mark.slow
@pytest.mark.timeout(1200 + 20 * ROUNDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_acknowledged_is_lost_or_done_twice(
    engine: Engine, figure: Callable[[str, object], None]
) -> None:
    figure("seed", SEED)
    result = rounds.run(engine, rounds=ROUNDS, seed=SEED)
    summary = "\n".join(result.lines())
    figure(engine, summary)
    assert result.report.violations == [], summary
    assert (result.report.lost, result.report.doubled) == (0, 0)
    assert result.report.counts["acks"] > 0
    assert result.report.counts["completes"] > 0
    assert result.report.counts["watched"] > 0
