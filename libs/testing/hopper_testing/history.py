"""
What callers asked and were told, written down as it happens, so that a checker can hold Hopper to it afterwards.

Every client process has a `Ledger` of its own: a file that is only appended to, a JSON line before each call and one
after it. A line is one `write`, so a client that is killed (SIGKILL) leaves at most half a line at the end, and what
it had asked without an answer stands there as *unknown*: it may have been done or not, but not twice.

    ledger = Ledger(directory / "worker-1.jsonl", "worker-1")
    call = ledger.asks(Kind.SUBMIT, title=title, request_id=request_id)
    ...
    ledger.told(call, task=response.task.name)            # or refused(call, reason), or unknown(call, reason)

    history = History.read(directory.glob("*.jsonl"))
    dump = take_dump(address, after=1)                    # hopper_testing.dump: what is there in the end
    report = check(history, dump)                         # hopper_testing.checker: what does not fit together

Two kinds of time stand in it and are never mixed. `asked_at` and `ended_at` are the client's: seconds of the machine's
monotonic clock, comparable between the processes of one machine. `start`, `lease_end` and the times of events are the
server's, as it said them: microseconds since 1970.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

FOREVER: Final = math.inf


class Kind(StrEnum):
    """What was asked."""

    SUBMIT = "submit"
    CLAIM = "claim"
    RENEW = "renew"
    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"
    CANCEL = "cancel"


ENDS: Final = frozenset({Kind.COMPLETE, Kind.FAIL, Kind.RELEASE})
"""What ends a claim."""


class Outcome(StrEnum):
    """What came of it."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """A claim as the server granted it."""

    task: str
    token: int
    worker: str
    start: int
    lease_end: int


@dataclass(slots=True, kw_only=True)
class Operation:
    """
    One thing that was asked; a batch is several, with one `request_id`.

    Attributes:
        title: SUBMIT: what the task is called; each submission has a title of its own.
        task: The task it is about; SUBMIT: as it was answered.
        token: The claim's; RENEW and the ends.
        worker: CLAIM: who asked.
        lease: CLAIM, RENEW: the seconds asked for.
        result: COMPLETE: in hexadecimal digits.
        grants: CLAIM: what was answered.
        lease_end: RENEW: what was answered.
        reason: Of a refusal, or of not knowing.
    """

    kind: Kind
    client: str
    asked_at: float
    ended_at: float = FOREVER
    outcome: Outcome = Outcome.UNKNOWN
    reason: str = ""
    request_id: str = ""
    title: str = ""
    task: str = ""
    token: int = 0
    worker: str = ""
    lease: float = 0.0
    result: str = ""
    grants: tuple[Grant, ...] = ()
    lease_end: int = 0

    @property
    def may_be_done(self) -> bool:
        """Whether it was done, or nobody knows."""
        return self.outcome is not Outcome.REFUSED


@dataclass(frozen=True, slots=True)
class Seen:
    """A change that a watcher was shown."""

    generation: int
    task: str
    kind: str


@dataclass(slots=True)
class Watcher:
    """What one watcher saw: everything after `start`, in the order it came."""

    start: int
    seen: list[Seen] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which the server could not be expected to do anything, by its own clock."""

    begin: int
    end: int


class LedgerDamagedError(Exception):
    """A line that is not the last one of its file is no ledger's line."""


class Ledger:
    """
    Where one client writes. Threads may share it.

    Args:
        path: Its file; made if missing, else added to.
        client: Who writes.
    """

    def __init__(self, path: Path, client: str) -> None:
        self.path = path
        self.client = client
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)

    def asks(self, kind: Kind, **facts: Any) -> int:
        """Note what is about to be asked; returns the call's number."""
        call = next(self._calls)
        self._write(
            {"call": call, "kind": kind, "client": self.client, "asked_at": time.monotonic(), **facts}
        )
        return call

    def told(self, call: int, **facts: Any) -> None:
        """Note an answer."""
        if "grants" in facts:
            facts["grants"] = [
                [grant.task, grant.token, grant.worker, grant.start, grant.lease_end]
                for grant in facts["grants"]
            ]
        self._end(call, Outcome.OK, facts)

    def refused(self, call: int, reason: str) -> None:
        """Note that the answer was no: it was not done."""
        self._end(call, Outcome.REFUSED, {"reason": reason})

    def unknown(self, call: int, reason: str) -> None:
        """Note that no answer came, or none that says whether it was done."""
        self._end(call, Outcome.UNKNOWN, {"reason": reason})

    def watches(self, watch: int, start: int) -> None:
        """Note that a watch has begun: what comes after *start* is to be seen by it."""
        self._write({"watch": watch, "start": start})

    def sees(self, watch: int, change: Seen) -> None:
        """Note a change that a watch was shown."""
        self._write({"watch": watch, "seen": [change.generation, change.task, change.kind]})

    def outage(self, begin: int, end: int) -> None:
        """Note when the server was kept from working."""
        self._write({"outage": [begin, end]})

    def _end(self, call: int, outcome: Outcome, facts: dict[str, Any]) -> None:
        self._write({"call": call, "outcome": outcome, "ended_at": time.monotonic(), **facts})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


@dataclass(slots=True)
class History:
    """Everything that callers know."""

    operations: list[Operation] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "History":
        """
        Read ledgers, of clients that have ended or not.

        Raises:
            LedgerDamagedError: One was not written by a `Ledger`.
        """
        history = cls()
        for path in sorted(paths):
            _read_one(path, history)
        history.operations.sort(key=lambda operation: operation.asked_at)
        return history


_FIELDS: Final = frozenset(field.name for field in fields(Operation))


def _read_one(path: Path, history: History) -> None:
    calls: dict[int, Operation] = {}
    watches: dict[int, Watcher] = {}
    for line in _lines(path):
        if "outage" in line:
            history.outages.append(Outage(*line["outage"]))
        elif "watch" in line:
            _read_watch(line, watches)
        elif "kind" in line:
            facts = {name: value for name, value in line.items() if name in _FIELDS}
            calls[line["call"]] = Operation(**(facts | {"kind": Kind(line["kind"])}))
        else:
            _read_end(line, calls[line["call"]])
    history.operations += calls.values()
    history.watchers += watches.values()


def _read_watch(line: dict[str, Any], watches: dict[int, Watcher]) -> None:
    if "start" in line:
        watches[line["watch"]] = Watcher(line["start"])
    else:
        watches[line["watch"]].seen.append(Seen(*line["seen"]))


def _read_end(line: dict[str, Any], operation: Operation) -> None:
    for name, value in line.items():
        if name == "grants":
            operation.grants = tuple(Grant(*grant) for grant in value)
        elif name == "outcome":
            operation.outcome = Outcome(value)
        elif name in _FIELDS:
            setattr(operation, name, value)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    *whole, torn = path.read_bytes().split(b"\n")  # what comes after the last newline was cut off by a kill
    del torn
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise LedgerDamagedError(f"{path.name}, line {number}: {text[:80]!r}") from error
        yield line
