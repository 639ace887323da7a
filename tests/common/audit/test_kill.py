"""What is left of the log when its process is killed around a commit."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hopper_common.audit.model import OPENED
from tests.common.audit.harness import REFUSED, open_log

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("place", ["sql.after", "commit.before", "commit.sent", "commit.after"])
async def test_what_was_durable_is_there_once_and_the_chain_holds(url: str, place: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.common.audit.writer", url],
        env={"HOPPER_FAILPOINTS": f"audit:{place}=kill@4"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    acknowledged = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("durable ")]
    assert "durable all" not in done.stdout
    async with open_log(url) as log:
        assert (await log.verdict()).intact
        records = await log.all_records()
        refused = [
            name
            for record in records
            if record.decision.method == REFUSED.method
            for name in record.decision.resources
        ]
        # what was being written when it died may be there, and nothing is twice
        assert refused[: len(acknowledged)] == acknowledged
        assert len(refused) <= len(acknowledged) + 1
        assert records[-1].decision.method == OPENED
        assert records[-1].decision.rule.startswith("not closed before") or len(records) == 1
