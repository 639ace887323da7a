"""
Where decisions are handed in: at once, in memory; and written in groups.

    record(decision) ──► counted: one entry for equal ones of a second ──┐
                     ──► kept, awaited: an entry each                    ├─► a batch ─► the chain, one transaction
                         (equal refusals that wait together: one)  ──────┘       │
    flushed(ticket)  ◄───────────────────────────────────────────────────────────┘ or why it could not be written

**When.** What is kept is written within `FLUSH_SECONDS`, what is counted when its second is over, and both at once
when somebody waits. Waiting callers gather while a batch is written, as in any group commit. Should there be very many
of them, as when a stranger knocks as fast as he can, they are let through in larger and rarer groups: a budget of
`BURST` batches, refilled with `REFILL` a second. So refusals cannot wear out a disk.

**What is lost when the process is killed**: what was allowed without waiting, up to `FLUSH_SECONDS` of what is kept and
a second of what is counted. Nothing that was awaited. The next `OPENED` record then follows no `CLOSED`.

**When it cannot be written** (full disk, no database) the process is unready, and says so. Whoever has to wait is told
why, and does nothing: what is awaited fails closed. The others go on, and their entries wait in memory; from `CROWDED`
of them on, all have to wait. At `MOST`, a decision is refused and counted, and the number becomes a `LOST` record, so
nothing is ever dropped in silence. A batch is repeated as it is until it is known to be written.

Used from one event loop.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import structlog

from hopper.common.v1.options_pb2 import RateClass
from hopper_common.audit.chain import Head
from hopper_common.audit.model import (
    CLOSED,
    LOST,
    MOST_RESOURCES,
    OPENED,
    PROCESS,
    Decision,
    Handling,
    Happened,
    cleaned,
)
from hopper_common.audit.store import AuditStore
from hopper_common.clock import Clock
from hopper_common.errors import HopperError, Overloaded, ShuttingDown

log = structlog.get_logger(__name__)

FLUSH_SECONDS: Final = 0.1
COUNTED_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
BURST: Final = 500
REFILL: Final = 20.0
CROWDED: Final = 4_096
MOST: Final = 16_384
BATCH: Final = 2_000
CHECKPOINT_RECORDS: Final = 10_000
CHECKPOINT_SECONDS: Final = 86_400.0

_HANDLING: Final = {
    RateClass.RATE_CLASS_READ: Handling.IGNORED,
    RateClass.RATE_CLASS_WATCH: Handling.IGNORED,
    RateClass.RATE_CLASS_WORK: Handling.COUNTED,
    RateClass.RATE_CLASS_WRITE: Handling.KEPT,
}


def handling_of(rate_class: "RateClass.ValueType", *, allowed: bool) -> Handling:
    """What becomes of a decision about a method of that class; of a class that nobody thought of, the most."""
    return _HANDLING.get(rate_class, Handling.AWAITED) if allowed else Handling.AWAITED


class _Entry:
    """A decision that waits to be written, or several equal ones."""

    __slots__ = ("count", "decision", "resources", "time")

    def __init__(self, decision: Decision, time: datetime) -> None:
        self.decision = decision
        self.time = time
        self.count = 1
        self.resources = decision.resources

    def again(self, resources: tuple[str, ...]) -> None:
        """Another equal one, which may have named something else."""
        self.count += 1
        if resources != self.resources and len(self.resources) < MOST_RESOURCES:
            self.resources = tuple(dict.fromkeys(self.resources + resources))

    def happened(self) -> Happened:
        decision = cleaned(self.decision._replace(resources=self.resources))
        return Happened(self.time, decision, self.count)


_Key = tuple[Any, ...]
"""Of a decision, all but what it named."""


class AuditSink:
    """
    Takes decisions in, and gets them written. `keep` has to run beside it.

    Args:
        head: The end of the chain.

    Attributes:
        head: The last record that is known to be written.
        ready: Whether the log can be written.
    """

    def __init__(self, store: AuditStore, clock: Clock, *, head: Head) -> None:
        self.head = head
        self.ready = True
        self._store = store
        self._clock = clock
        self._monotonic = clock.monotonic
        # What is not written: equal ones of this second, others in their order, and batches under way.
        self._counted: dict[_Key, _Entry] = {}
        self._counted_until = 0.0
        self._last: _Entry | None = None  # of the counted ones
        self._entries: list[_Entry] = []
        self._refused: dict[_Key, _Entry] = {}
        self._batches: deque[list[Happened]] = deque()
        self._size = 0
        self._lost: _Entry | None = None
        # Who waits. Tickets count the calls of `record`.
        self._tickets = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._everything = False
        # When to write.
        self._changed = asyncio.Event()
        self._due = math.inf
        self._retry_at = 0.0
        self._budget = _Budget(clock.monotonic)
        self._writing = asyncio.Lock()
        self._closed = False
        self._checkpoints = _Checkpoints(store.chain, clock.monotonic)
        self._on_ready: list[Callable[[bool], None]] = []

    @property
    def chain(self) -> str:
        """The name of the chain."""
        return self._store.chain

    def on_ready(self, callback: Callable[[bool], None]) -> None:
        """Call *callback* whenever `ready` changes."""
        self._on_ready.append(callback)

    # Taking in.

    def record(self, decision: Decision, handling: Handling) -> int:
        """
        Take in a decision, without I/O.

        Returns:
            0, or a ticket to be handed to `flushed` before anything is done or answered.

        Raises:
            Overloaded: The log could not be written for so long that there is no more room.
            ShuttingDown: After `close`.
        """
        if handling is Handling.IGNORED:
            return 0
        self._tickets += 1
        if handling is Handling.COUNTED:
            self._count(decision)
        elif decision.allowed:
            self._keep(decision)
        else:
            self._refuse(decision)
        if self._size >= CROWDED:
            self._everything = True
            return self._tickets
        return self._tickets if handling is Handling.AWAITED else 0

    async def flushed(self, ticket: int | None = None) -> None:
        """
        Wait until a decision is on the disk.

        Args:
            ticket: What `record` returned. None: all that was recorded so far.

        Raises:
            StorageFull, StorageUnavailable: It is not yet, and the call is not to be done.
            ShuttingDown: After `close`.
        """
        if self._closed:
            raise ShuttingDown(service="audit")
        if ticket is None:
            self._tickets += 1  # what is being written now does not count
            ticket, self._everything = self._tickets, True
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((ticket, waiter))
        self._changed.set()
        await waiter

    async def has_not_written(self, sequence: int) -> bool:
        """Whether a record of the chain's end is certainly not of this process."""
        async with self._writing:
            return not self._batches and sequence > self.head.sequence

    def _count(self, decision: Decision) -> None:
        # While nothing can be written, a longer second takes less room.
        if self.ready and self._monotonic() >= self._counted_until:
            self._spill()
            self._counted_until = self._monotonic() + COUNTED_SECONDS
        last = self._last
        if last is not None and last.decision is decision:  # as of one who calls again and again
            last.count += 1
            return
        key = decision[:-1]
        entry = self._counted.get(key)
        if entry is None:
            entry = self._counted[key] = self._entry(decision, due=self._counted_until)
        else:
            entry.again(decision.resources)
        self._last = entry

    def _keep(self, decision: Decision) -> _Entry:
        entry = self._entry(decision, due=self._monotonic() + FLUSH_SECONDS)
        self._entries.append(entry)
        return entry

    def _refuse(self, decision: Decision) -> None:
        key = decision[:-1]
        entry = self._refused.get(key)
        if entry is None:
            self._refused[key] = self._keep(decision)
        else:
            entry.again(decision.resources)

    def _entry(self, decision: Decision, *, due: float) -> _Entry:
        if self._closed:
            raise ShuttingDown(service="audit")
        if self._size >= MOST:
            self._lose()
            raise Overloaded("the audit log cannot be written; nothing was done", service="audit")
        self._size += 1
        if due < self._due:
            self._due = due
            self._changed.set()
        return _Entry(decision, self._clock.now())

    def _lose(self) -> None:
        self._everything = True
        if self._lost is None:
            rule = "found no room while the log could not be written; these calls were refused"
            self._lost = self._own(LOST, rule)
        else:
            self._lost.count += 1

    # Writing.

    async def keep(self) -> None:
        """Write what is recorded, when it is due, until cancelled."""
        while True:
            while (delay := self._delay()) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay if delay < math.inf else None):
                        await self._changed.wait()
            await self._flush()

    async def open(self) -> None:
        """
        Begin: write that the process has opened the log, and how it left it.

        Raises:
            StorageFull, StorageUnavailable: The log cannot be written.
        """
        last = await self._store.last()
        if last is None:
            rule = "the first record of its chain"
        elif last.decision.method == CLOSED:
            rule = "after it was closed"
        else:
            rule = "not closed before: what was allowed in the last second may be missing"
        self._entries.append(self._own(OPENED, rule))
        await self._write_all()
        self._checkpoints.note(self.head)

    async def close(self) -> None:
        """Write all that is left, and end."""
        if self._closed:
            return
        self._closed = True
        self._spill()
        self._entries.append(self._own(CLOSED, "the process has stopped"))
        await self._flush()
        for _, waiter in self._waiters:
            _fail(waiter, ShuttingDown(service="audit"))
        if self.ready:
            self._checkpoints.note(self.head)
        else:
            log.error("audit records are lost: the log could not be written", records=self._size)

    def _delay(self) -> float:
        """Seconds until there is something to do."""
        now = self._monotonic()
        if not self.ready:
            return self._retry_at - now - (RETRY_SECONDS - FLUSH_SECONDS if self._waiters else 0)
        if self._waiters:
            return min(self._budget.delay(), self._due - now)
        return min(self._due, self._checkpoints.due) - now

    async def _flush(self) -> None:
        upto = self._tickets
        if self._waiters:
            self._budget.spend()
        try:
            await self._write_all()
        except HopperError as error:
            self._be_unready(error)
            self._answer(upto, error)
        except Exception:  # a defect: the process ends
            self._answer(upto, ShuttingDown(service="audit"))
            raise
        else:
            self._be_ready()
            self._answer(upto, None)

    async def _write_all(self) -> None:
        async with self._writing:
            await self._write_batches()  # what could not be written before
            self._make_batches()
            await self._write_batches()
        if self._checkpoints.are_due(self.head):
            self._checkpoints.note(self.head)

    async def _write_batches(self) -> None:
        while self._batches:
            batch = self._batches[0]
            end = await self._store.append(batch, after=self.head)
            if end.sequence != self.head.sequence + len(batch):
                log.error("the audit log was changed by another", chain=self.chain, expected=str(self.head))
            self.head = end
            self._batches.popleft()
            self._size -= len(batch)

    def _make_batches(self) -> None:
        if self._everything or self._monotonic() >= self._counted_until:
            self._spill()
        entries, self._entries = self._entries, []
        self._refused.clear()
        self._everything = False
        self._due = self._counted_until if self._counted else math.inf
        happened = [entry.happened() for entry in entries]
        self._batches.extend(happened[at : at + BATCH] for at in range(0, len(happened), BATCH))

    def _spill(self) -> None:
        self._entries += self._counted.values()
        self._counted.clear()
        self._last = None
        if self._lost is not None:
            self._entries.append(self._lost)
            self._lost = None

    def _own(self, method: str, rule: str) -> _Entry:
        """What this process did by itself."""
        self._size += 1
        resources = (f"chains/{self.chain}",)
        decision = Decision(PROCESS, "", "none", "", method, allowed=True, rule=rule, resources=resources)
        return _Entry(decision, self._clock.now())

    # Telling.

    def _answer(self, upto: int, error: HopperError | None) -> None:
        waiting = []
        for ticket, waiter in self._waiters:
            if ticket > upto:
                waiting.append((ticket, waiter))
            elif error is not None:
                _fail(waiter, error)
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = waiting

    def _be_ready(self) -> None:
        if not self.ready:
            log.info("the audit log is written again", chain=self.chain)
            self._tell(ready=True)

    def _be_unready(self, error: HopperError) -> None:
        self._retry_at = self._monotonic() + RETRY_SECONDS
        if self.ready:
            log.error(
                "the audit log cannot be written", chain=self.chain, reason=error.reason, error=str(error)
            )
            self._tell(ready=False)

    def _tell(self, *, ready: bool) -> None:
        self.ready = ready
        for callback in self._on_ready:
            callback(ready)


def _fail(waiter: asyncio.Future[None], error: HopperError) -> None:
    if not waiter.done():
        # One each: callers add their own tracebacks.
        waiter.set_exception(type(error)(error.message, **error.metadata))


class _Budget:
    """How many batches may be written because somebody waits: some at once, then a few a second."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left = float(BURST)
        self._at = monotonic()

    def delay(self) -> float:
        """Seconds until there is one."""
        now = self._monotonic()
        self._left = min(BURST, self._left + (now - self._at) * REFILL)
        self._at = now
        return max(0.0, 1 - self._left) / REFILL

    def spend(self) -> None:
        """Take one, if there is one."""
        self._left = max(0.0, self._left - 1)


class _Checkpoints:
    """
    Lines in the ordinary log that name the end of the chain. Whoever cuts off the end of the chain has to change that
    log too, or it shows.
    """

    def __init__(self, chain: str, monotonic: Callable[[], float]) -> None:
        self.due = math.inf
        self._chain = chain
        self._monotonic = monotonic
        self._noted = 0
        self._since = monotonic()

    def are_due(self, head: Head) -> bool:
        """Whether it is time for one. There is none while nothing happens."""
        if head.sequence == self._noted:
            self.due = math.inf
            return False
        self.due = self._since + CHECKPOINT_SECONDS
        return self._monotonic() >= self.due or head.sequence >= self._noted + CHECKPOINT_RECORDS

    def note(self, head: Head) -> None:
        """Write one, unless it is written."""
        if head.sequence == self._noted:
            return
        log.info("audit checkpoint", chain=self._chain, anchor=str(head))
        self._noted, self._since, self.due = head.sequence, self._monotonic(), math.inf
