"""The demo's own Hopper: `hopper up` as a child process, on a directory that is gone afterwards."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hopper_cli.problems import CommandError

_START_PATIENCE: Final = 30.0
_STOP_PATIENCE: Final = 15.0
_LOG_TAIL: Final = 2000


@dataclass(frozen=True, slots=True)
class Child:
    """A Hopper that runs."""

    address: str
    data_dir: Path
    pid: int


@contextlib.asynccontextmanager
async def running_hopper() -> AsyncIterator[Child]:
    """
    Start a Hopper, and stop it, and only it, whatever happens.

    Raises:
        CommandError: It did not come up; carries the end of its log.
    """
    directory = Path(tempfile.mkdtemp(prefix="hopper-demo-"))
    log_path = directory / "log"
    try:
        with log_path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hopper_cli", "up", "--json", "--data-dir", str(directory)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is ours; we stop it
            )
            try:
                yield await _ready(process, directory, log_path)
            finally:
                await _stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _environment() -> dict[str, str]:
    """This process's, without what would make another Hopper of it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HOPPER_")}
    return {**own, "HOPPER_LOG_LEVEL": "warning"}


async def _ready(process: asyncio.subprocess.Process, directory: Path, log_path: Path) -> Child:
    if process.stdout is None:
        raise AssertionError("its output is a pipe")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_PATIENCE)
        reached = json.loads(line)
    except (TimeoutError, ValueError) as error:
        raise CommandError(
            f"the demo's Hopper did not come up: {_tail(log_path) or 'it said nothing'}",
            remedy="`hopper doctor` looks for the cause",
            reason="DEMO_NOT_STARTED",
        ) from error
    return Child(address=reached["addresses"][0], data_dir=directory, pid=reached["pid"])


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):  # the next signal it cannot refuse
            await asyncio.wait_for(process.wait(), _STOP_PATIENCE)
