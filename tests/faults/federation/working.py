"""
Somebody who works at one Hopper, and writes down what has really been done: a process of its own.

    python -m tests.faults.federation.working ADDRESS NAME PROJECT LEDGER

A line in the ledger before anything else, one after it; both are on the disk before the work goes on. What is to be
done is in the task's payload (`Job`).
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from hopper_client import AsyncHopper, TaskContext, TaskFailed, Worker

LEASE: Final = timedelta(seconds=10)
SLOTS: Final = 8


@dataclass(frozen=True, slots=True)
class Job:
    """
    What a task asks for.

    Attributes:
        uid: The run's own name for the task, on whichever Hopper it is.
        seconds: How long it takes.
        fails: It fails, for good.
    """

    uid: str
    seconds: float = 0.0
    fails: bool = False

    def payload(self) -> bytes:
        """As it travels."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, payload: bytes) -> "Job":
        """The job that was asked for."""
        return cls(**json.loads(payload))


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A line of the ledger.

    Attributes:
        run: One execution of a task.
        what: `begin`; or how it ended: `done`, `failed`, `stopped` (told so while it ran).
        time: Wall clock.
    """

    uid: str
    hopper: str
    run: str
    what: str
    time: float

    @property
    def result(self) -> bytes:
        """What this execution returned, if it came to its end."""
        return f"{self.uid}/{self.hopper}/{self.run}".encode()


def read_ledgers(paths: Iterable[Path]) -> Iterator[Entry]:
    """All that was written; a line that was cut off by a kill was not."""
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield Entry(**json.loads(line))


class Ledger:
    """Side effects: what is noted here has happened."""

    def __init__(self, path: Path, hopper: str) -> None:
        self._hopper = hopper
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, uid: str, run: str, what: str) -> Entry:
        """On the disk when this returns."""
        entry = Entry(uid, self._hopper, run, what, time.time())
        os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")
        os.fdatasync(self._file)
        return entry

    @contextmanager
    def execution(self, uid: str) -> Iterator[str]:
        """Note that it begins, and that it was stopped if it is."""
        run = secrets.token_hex(4)
        self.note(uid, run, "begin")
        try:
            yield run
        except asyncio.CancelledError:
            self.note(uid, run, "stopped")
            raise


async def work(address: str, name: str, project: str, ledger: Ledger) -> None:
    """Until SIGTERM."""

    async def handle(context: TaskContext) -> bytes:
        job = Job.of(context.task.spec.payload)
        with ledger.execution(job.uid) as run:
            await asyncio.sleep(job.seconds / 2)
            if job.seconds > 1:
                await context.progress(0.5, "half of it")
            await asyncio.sleep(job.seconds / 2)
        if job.fails:
            ledger.note(job.uid, run, "failed")
            raise TaskFailed("BROKEN", "as it was asked to be", permanent=True)
        return ledger.note(job.uid, run, "done").result

    async with AsyncHopper(address) as hopper:
        worker = Worker(hopper, project, handle, worker_id=name, concurrency=SLOTS, lease=LEASE)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


def main() -> None:
    """As the arguments say."""
    logging.basicConfig(level=logging.WARNING)
    address, name, project, path = sys.argv[1:]
    asyncio.run(work(address, name, project, Ledger(Path(path), name)))


if __name__ == "__main__":
    main()
