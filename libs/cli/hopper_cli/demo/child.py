"""The demo's own Hoppers: `hopper up` as child processes, on directories that are gone afterwards."""

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

_START_PATIENCE: Final = 120.0  # one that ends is noticed at once
_STOP_PATIENCE: Final = 15.0
_LOG_TAIL: Final = 2000


@dataclass(frozen=True, slots=True)
class Child:
    """A Hopper that runs."""

    address: str
    data_dir: Path
    pid: int


class OwnHopper:
    """
    A Hopper on a directory of its own. `start`, `kill` and `stop` may alternate: the directory stays.

    Args:
        environment: Settings of it, `HOPPER_…`.
    """

    def __init__(self, directory: Path, **environment: str) -> None:
        self._directory = directory
        self._log = directory / "log"
        self.environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Child:
        """
        Start it; it answers when this returns.

        Raises:
            CommandError: It did not come up; carries the end of its log.
        """
        with self._log.open("ab") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hopper_cli", "up", "--json", "--data-dir", str(self._directory)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**_environment(), **self.environment},
                start_new_session=True,  # Ctrl-C is ours; we stop it
            )
        return await _ready(process, self._directory, self._log)

    async def kill(self) -> None:
        """End it with -9, at once, and only it."""
        if self._process is not None:
            await _end(self._process, signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it, and only it, whatever happens."""
        if self._process is not None:
            await _end(self._process, signal.SIGTERM, signal.SIGKILL)


@contextlib.asynccontextmanager
async def own_hopper(**environment: str) -> AsyncIterator[OwnHopper]:
    """A Hopper that is not started yet; stopped, and its directory gone, when the body is left."""
    directory = Path(tempfile.mkdtemp(prefix="hopper-demo-"))
    hopper = OwnHopper(directory, **environment)
    try:
        yield hopper
    finally:
        await hopper.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def running_hopper() -> AsyncIterator[Child]:
    """
    Start a Hopper, and stop it.

    Raises:
        CommandError: It did not come up; carries the end of its log.
    """
    async with own_hopper() as hopper:
        yield await hopper.start()


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


async def _end(process: asyncio.subprocess.Process, *signals: signal.Signals) -> None:
    for number in signals:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):  # the next signal it cannot refuse
            await asyncio.wait_for(process.wait(), _STOP_PATIENCE)
