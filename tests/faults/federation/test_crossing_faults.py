"""
Two Hoppers hand work to each other while they are killed, frozen and cut off: one short round of what `make nemesis`
does for as long as one likes. Part of `make faults`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.federation import rounds
from tests.faults.federation.working import Ledger, read_ledgers

SEED = int(os.environ.get("HOPPER_NEMESIS_SEED", "7"))


@pytest.mark.slow
@pytest.mark.skipif("HOPPER_FAULTS_NETWORK" not in os.environ, reason="part of make faults")
def test_nothing_is_lost_or_counts_twice(figure: Callable[[str, object], None]) -> None:
    result = rounds.run(SEED, hoppers=2, seconds=25, postgres=False)
    summary = "\n".join(result.lines())
    figure("nemesis", summary)
    assert result.violations == [], summary
    assert result.counts["acknowledged"] > 0
    assert result.counts["completed"] > 0
    assert sum(result.struck.values()) > 0


def test_a_line_that_a_kill_has_cut_off_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ann.jsonl"
    ledger = Ledger(path, "ann")
    begun = ledger.note("ann-1", "5f", "begin")
    done = ledger.note("ann-1", "5f", "done")
    path.write_bytes(path.read_bytes() + b'{"uid": "ann-2", "hop')
    assert list(read_ledgers([path])) == [begun, done]
    assert done.result == b"ann-1/ann/5f"
