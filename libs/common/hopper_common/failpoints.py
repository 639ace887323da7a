"""
Places where a test makes the process die, fail, lose its connection or stand still.

What a crash leaves behind depends on the moment, and the moments that matter are a few microseconds around a
commit. So the code says where they are, `hit("commit.before")`, and a test says what happens there:

    HOPPER_FAILPOINTS="commit.sent=kill@3; router:commit.before=sleep:0.5"        a process of its own
    with failpoints.active("commit.sent=drop@1"): ...                              this process

Nothing is ever hit unless asked for in one of these two ways; otherwise a hit is the look at an empty dict.

| place | the moment |
|---|---|
| `transaction.begun` | the transaction has the right to write; nothing is written yet |
| `unit.after` | a unit of work has run, the next one or the commit has not begun |
| `sql.after` | one SQL statement of a unit has run (only where the failpoint was set before the database was opened) |
| `commit.before` | everything is written, COMMIT is not sent |
| `commit.sent` | COMMIT is sent, its answer has not been read (in SQLite: COMMIT is done) |
| `commit.after` | COMMIT is done, nobody has been answered |
| `statement.before`, `statement.sent`, `statement.after` | the same around a statement of its own (PostgreSQL) |
| `redeem.done` | an invitation is redeemed for good, and its redeemer does not know |
| `join.before`, `join.answered` | before a foreign invitation is redeemed; when the answer is there, not kept |
| `identity.half`, `identity.rename` | a file of the identity is half written; it is whole and has not got its name |
| `identity.keys`, `identity.done` | new keys are on the disk, nothing refers to them yet; something does |

| action | |
|---|---|
| `kill` | SIGKILL to this process: nothing is flushed, nobody is told |
| `error` | raises `FailpointError` |
| `drop` | cuts the connection to the database; where there is none, the same as `error` |
| `sleep:SECONDS` | waits; other tasks of the event loop go on |

`@N` means: at the N-th hit and never again; without it, at every hit. A name with a service before it,
`router:commit.sent`, is hit by that service alone.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "HOPPER_FAILPOINTS"
PLACES: Final = frozenset(
    {
        "transaction.begun",
        "unit.after",
        "sql.after",
        "commit.before",
        "commit.sent",
        "commit.after",
        "statement.before",
        "statement.sent",
        "statement.after",
        "redeem.done",
        "join.before",
        "join.answered",
        "identity.half",
        "identity.rename",
        "identity.keys",
        "identity.done",
    }
)


class FailpointError(Exception):
    """A test asked for this failure."""


@dataclass(slots=True)
class _Failpoint:
    action: str
    seconds: float
    only_hit: int  # 0: every one
    hits: int = 0

    def due(self) -> bool:
        self.hits += 1
        return self.only_hit in (0, self.hits)


_active: dict[str, _Failpoint] = {}


def armed(place: str = "") -> bool:
    """Whether a place, or any, has something happening at it."""
    return any(name.rpartition(":")[2] == place for name in _active) if place else bool(_active)


def hit(place: str, service: str, drop: Callable[[], object] | None = None) -> None:
    """
    The code has come to *place*, on a thread that may block.

    Args:
        drop: Cuts the connection.

    Raises:
        FailpointError: If a test wants that.
    """
    if _active and (seconds := _act(place, service, drop)):
        time.sleep(seconds)


async def reach(place: str, service: str, drop: Callable[[], object] | None = None) -> None:
    """The same on the event loop, which goes on while this task sleeps."""
    if _active and (seconds := _act(place, service, drop)):
        await asyncio.sleep(seconds)


@contextmanager
def active(text: str) -> Iterator[None]:
    """Set failpoints for a while, in the form of the environment variable; hits are counted from here."""
    before = dict(_active)
    _active.update(_parse(text))
    try:
        yield
    finally:
        _active.clear()
        _active.update(before)


def _act(place: str, service: str, drop: Callable[[], object] | None) -> float:
    for name in (place, f"{service}:{place}"):
        failpoint = _active.get(name)
        if failpoint is not None and failpoint.due():
            return _do(failpoint, name, drop)
    return 0.0


def _do(failpoint: _Failpoint, name: str, drop: Callable[[], object] | None) -> float:
    if failpoint.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if failpoint.action == "drop" and drop is not None:
        drop()
    elif failpoint.action in ("error", "drop"):
        raise FailpointError(name)
    return failpoint.seconds


def _parse(text: str) -> dict[str, _Failpoint]:
    entries = (entry.strip() for entry in text.replace(";", ",").split(","))
    return dict(_entry(entry) for entry in entries if entry)


def _entry(text: str) -> tuple[str, _Failpoint]:
    name, _, what = (part.strip() for part in text.partition("="))
    what, _, only_hit = what.partition("@")
    action, _, seconds = what.partition(":")
    known = name.rpartition(":")[2] in PLACES and action in ("kill", "error", "drop", "sleep")
    if not known or (action == "sleep") != bool(seconds):
        raise ValueError(f"{VARIABLE}: {text!r} is not PLACE=kill|error|drop|sleep:SECONDS[@N]")
    return name, _Failpoint(action, float(seconds or 0), int(only_hit or 0))


_active.update(_parse(os.environ.get(VARIABLE, "")))
