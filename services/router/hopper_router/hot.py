"""
What most calls are made of, in sets: taking tasks in, claiming, renewing, completing.

    calls ─► Gatherer ─► plan: pure, in memory ─► HotStore: one statement, one commit ─► each caller's own answer

Everything that can happen to a task is in `placing`, `handover` and `working`, one `Unit` at a time. Nearly all calls
are of a simple kind, though: a task that goes into a project's queue, a claim from a queue without limits, an end that
nobody else waits for. These go through here, many at once, without reading what they do not need. Whatever is not of
that kind is left alone here (`Left.COLD`) and goes through a unit. Both ways leave the same rows and say the same
things; `tests/router/test_hot.py` holds them to that.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

from hopper_common.timestamps import to_micros
from hopper_router.model import Decision, Task

AFFINITY_GRACE: Final = timedelta(seconds=2)
"""How long a task is left alone for the worker that did what it depended on."""
MOST_ROWS: Final = 1000
"""Of one statement: enough to hide the commit, few enough that nobody waits long."""


class Left(enum.Enum):
    """What a hot path does not do."""

    COLD = "COLD"
    """It is for a unit of work."""


# ---------------------------------------------------------------- what is asked of the store


@dataclass(frozen=True, slots=True)
class Admission:
    """
    One call that takes tasks in, planned: everything but the generations, which the log gives.

    Attributes:
        answer: What a repeat of the call is answered from: the response with names only.
        places: Which of the call's tasks these are, from 0.
        records: The decision about each, as it is stored.
    """

    request_id: str
    digest: bytes
    answer: bytes
    tasks: Sequence[Task]
    decisions: Sequence[Decision]
    records: Sequence[bytes]
    now: datetime
    places: Sequence[int] = (0,)


class Repeat(NamedTuple):
    """The call was made before: what is stored of it, and the generation of its first event."""

    digest: bytes
    answer: bytes
    generation: int | None


@dataclass(frozen=True, slots=True)
class Want:
    """One claim: up to *most* tasks of a queue for a worker."""

    column: str
    queue: str
    worker: str
    most: int
    lease: timedelta
    request_id: str = ""
    digest: bytes = b""


class Keep(NamedTuple):
    """A lease to extend."""

    id: str
    token: int
    lease: timedelta


class End(NamedTuple):
    """A claim that ended with success."""

    id: str
    token: int
    result: bytes


Row = Mapping[str, Any]

_SHOWN: Final = (
    "id", "instance", "spec", "generation", "project", "decision", "attempt", "delegation", "live", "create_time",
    "update_time", "spec_version",
)  # fmt: skip
_CLAIM: Final = ("worker", "lease_end", "claim_time")
CLAIMED_ROW: Final = (
    *_SHOWN, *_CLAIM, "token", "fairness_key", "priority", "rank", "failures", "ready_time", "queue_time"
)  # fmt: skip
"""The columns of a claimed task that its worker is told, or that are counted."""
RENEWED_ROW: Final = (*_SHOWN, *_CLAIM)
"""The same of a claim that goes on."""
COMPLETED_ROW: Final = (*_SHOWN, "finish_time", "fairness_key")
"""The same of a task that is done."""
CLAIMED: Final = (
    "project", "decision", "worker", "token", "attempt", "lease", "lease_end", "first_start", "live"
)  # fmt: skip
"""What the log keeps of a claim, as a JSON list: the columns that later events change."""


def submitted_body(task: Task) -> bytes:
    """What the log keeps of a task that was taken in and placed at once; `recall` reads it."""
    return f'["{task.project}","{task.decision}",{to_micros(task.ready_time)}]'.encode()


class HotStore(Protocol):
    """
    The statements; each answers item by item, in order, when all of it is durable.

    *origin* says who tells other routers on the same database (see replicas).
    """

    async def admit(self, calls: Sequence[Admission], origin: str) -> Sequence[int | Repeat]:
        """Store tasks, decisions and events; the generation of each call's first task, or its repeat."""
        ...

    async def claim(
        self, wants: Sequence[Want], now: datetime, origin: str
    ) -> Sequence[list[Row] | Repeat | Left]:
        """
        Claim what is next; the rows after it, with the columns of `CLAIMED_ROW`.

        A want is left to a unit if a task that it would get, or one before that, takes more than one slot, or is left
        alone for the worker that did what it depended on; and the want of a worker that has such tasks of its own.
        """
        ...

    async def renew(self, keeps: Sequence[Keep], now: datetime) -> Sequence[Row | None]:
        """Extend leases; `RENEWED_ROW` after it, or None where the claim is not live."""
        ...

    async def complete(self, ends: Sequence[End], now: datetime, origin: str) -> Sequence[Row | None]:
        """End claims; `COMPLETED_ROW` after it, or None where a unit must look."""
        ...


def by_queue(wants: Sequence[Want]) -> dict[tuple[str, str], list[int]]:
    """The positions of wants of the same queue, so that a statement picks from each queue once."""
    found: dict[tuple[str, str], list[int]] = {}
    for position, want in enumerate(wants):
        found.setdefault((want.column, want.queue), []).append(position)
    return found
