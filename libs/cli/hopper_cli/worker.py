"""
The worker behind `hopper work`: a process for each task.

The process has a session of its own, so that Ctrl-C ends the worker and not the work: what runs is finished
first. When the claim is lost or the worker is told twice, the whole session is ended.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from hopper_cli.output import to_json
from hopper_client import AsyncHopper, TaskContext, TaskFailed, Worker, WorkerStats

Tell = Callable[[str, str, float], None]
"""Told of every task that has ended: its name, a word, how many seconds it took."""

MOST_RESULT_BYTES: Final = 1024 * 1024
MOST_ERROR_BYTES: Final = 4000
_GRACE: Final = 5.0
"""Seconds a process has between the request to end and being killed."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    What to work on, and how.

    Attributes:
        execute: A shell command.
        worker: Its id; None: one is made.
        until_idle: Leave when the queue is empty.
        max_tasks: Leave after so many; None: never.
    """

    address: str
    timeout: float
    queue: str
    execute: str
    concurrency: int
    worker: str | None
    lease: timedelta
    until_idle: bool = False
    max_tasks: int | None = None
    key_file: Path | None = None

    async def run(self, tell: Tell, *, stopping: Callable[[], None]) -> WorkerStats:
        """
        Work until told to stop: one SIGINT or SIGTERM lets running processes finish, a second ends them.

        Args:
            stopping: Called at the first of them.

        Raises:
            HopperError: The queue cannot be worked on.
            KeyboardInterrupt: Told twice.
        """

        async def handle(context: TaskContext) -> bytes:
            return await self._handle(context, tell)

        async with AsyncHopper(self.address, timeout=self.timeout, key_file=self.key_file) as hopper:
            worker = Worker(
                hopper,
                self.queue,
                handle,
                worker_id=self.worker,
                concurrency=self.concurrency,
                lease=self.lease,
            )
            running = asyncio.ensure_future(worker.run(until_idle=self.until_idle, max_tasks=self.max_tasks))
            with _told(worker, running, stopping):
                try:
                    return await running
                except asyncio.CancelledError:
                    raise KeyboardInterrupt from None

    def _environment(self) -> dict[str, str]:
        """So that `hopper` in the command asks the same one, with the same key."""
        environment = {**os.environ, "HOPPER_ADDRESS": self.address}
        if self.key_file is not None:
            environment.pop("HOPPER_API_KEY", None)
            environment["HOPPER_API_KEY_FILE"] = str(self.key_file.expanduser().absolute())
        return environment

    async def _handle(self, context: TaskContext, tell: Tell) -> bytes:
        began = time.monotonic()
        outcome = "was interrupted"
        try:
            result = await run_command(self.execute, context, self._environment())
            outcome = "done"
        except TaskFailed as error:
            outcome = f"failed ({error.reason})"
            raise
        finally:
            tell(context.task.name, outcome, time.monotonic() - began)
        return result


@contextlib.contextmanager
def _told(
    worker: Worker, running: "asyncio.Future[WorkerStats]", stopping: Callable[[], None]
) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            running.cancel()
            return
        asked = True
        worker.stop()
        stopping()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def run_command(command: str, context: TaskContext, environment: Mapping[str, str]) -> bytes:
    """
    Run a command for a task.

    Returns:
        What it printed.

    Raises:
        TaskFailed: It ended with a status other than 0 (`EXIT_3`), by a signal (`SIGNAL_9`), or printed more
            than a result may have.
    """
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**environment, "HOPPER_TASK": context.task.name},
    )
    given = json.dumps(to_json(context.task), ensure_ascii=False).encode()
    try:
        printed, complaints = await process.communicate(given)
    except asyncio.CancelledError:
        await _end(process)
        raise
    return judge(process.returncode or 0, printed, complaints)


def judge(status: int, printed: bytes, complaints: bytes) -> bytes:
    """
    What a finished process means for its task.

    Raises:
        TaskFailed: As `run_command`.
    """
    if status:
        reason = f"EXIT_{status}" if status > 0 else f"SIGNAL_{-status}"
        raise TaskFailed(reason, complaints[-MOST_ERROR_BYTES:].decode("utf-8", "replace").strip())
    if len(printed) > MOST_RESULT_BYTES:
        raise TaskFailed(
            "RESULT_TOO_LARGE",
            f"it printed {len(printed):,} bytes, and a result has at most {MOST_RESULT_BYTES:,}",
            permanent=True,
        )
    return printed


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and whatever it started."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.killpg(process.pid, number)
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            continue
        return
