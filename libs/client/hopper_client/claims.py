"""
The claims a worker holds, and when their leases have to be renewed.

All leases are renewed in one message, at a third of the shortest, so that two renewals may fail before a lease
does. A claim the router no longer knows is *lost*: its handler is cancelled, and its result would be refused
anyhow, because the fencing token is stale. While no Hopper answers, handlers go on; the token decides later.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import ClaimRef, ClaimResult, RenewClaimsRequest
from hopper_client.errors import from_item, is_lost
from hopper_common.errors import HopperError
from hopper_common.timestamps import duration_field, to_proto

if TYPE_CHECKING:  # stubs of grpc.aio are types only
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = logging.getLogger(__name__)

MOST_CLAIMS_PER_CALL = 1000
_SHORTEST_TIMEOUT = 0.5


class Held:
    """
    A claim this worker holds.

    Attributes:
        lease: Seconds a renewal is good for: the worker's, or the task's heartbeat clock if that is shorter.
        renew_at: When to renew, in the loop's time; infinity while the router has stopped the lease.
        slots: How many of the worker's slots it takes.
        has_slots: Whether it has them now.
        is_lost: It is known that the claim is somebody else's, or the task is over.
        runner: What works on it, None before that has begun.
    """

    __slots__ = ("_lost", "has_slots", "is_lost", "lease", "ref", "renew_at", "runner", "slots", "task")

    def __init__(self, task: Task, lease: float, claimed_at: float) -> None:
        self.task = task
        self.ref = ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
        spec = task.spec
        heartbeat = duration_field(spec.clocks, "heartbeat") if spec.HasField("clocks") else None
        self.lease = lease if heartbeat is None else min(lease, heartbeat.total_seconds())
        self.renew_at = claimed_at + self.lease / 3
        self.slots = spec.slots or 1
        self.has_slots = False
        self.is_lost = False
        self.runner: asyncio.Task[None] | None = None
        self._lost: asyncio.Event | None = None

    @property
    def lost(self) -> asyncio.Event:
        """Set once the claim is lost."""
        if self._lost is None:  # few handlers ask
            self._lost = asyncio.Event()
            if self.is_lost:
                self._lost.set()
        return self._lost

    def renewed(self, sent_at: float) -> None:
        """The lease runs anew, from *sent_at* at the earliest."""
        self.renew_at = sent_at + self.lease / 3

    def renew_soon(self, now: float) -> None:
        """The lease was not renewed: try again."""
        self.renew_at = now + self.lease / 10

    def lose(self, error: HopperError) -> None:
        """The claim is gone: stop its handler."""
        self.renew_at = math.inf
        if self.is_lost or (self.runner is not None and self.runner.done()):
            return  # its end is on its way, and may be the very reason why the token is stale
        log.warning("the claim of %s was lost: %s", self.task.name, error.reason)
        self.is_lost = True
        if self._lost is not None:
            self._lost.set()
        if self.runner is not None:
            self.runner.cancel()


class Claims:
    """
    All claims of one worker.

    Attributes:
        lease: What each renewal asks for.
        changed: Set when something is due earlier than it was, and by whoever else shares the event.
    """

    def __init__(self, work: "WorkServiceAsyncStub", lease: timedelta, changed: asyncio.Event) -> None:
        self._work = work
        self.lease = lease
        self.changed = changed
        self._seconds = lease.total_seconds()
        self._held: set[Held] = set()
        self._due = math.inf
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def due(self) -> float:
        """When `take_due` is to be called, in the loop's time; it may turn out that nothing is due then."""
        return self._due

    def add(self, task: Task, claimed_at: float) -> Held:
        """
        Begin to keep a claim.

        Args:
            claimed_at: In the loop's time, not later than it was made.
        """
        held = Held(task, self._seconds, claimed_at)
        self._held.add(held)
        self._due_at(held.renew_at)
        return held

    def remove(self, held: Held) -> None:
        """Stop keeping a claim: it has ended."""
        self._held.discard(held)

    def renew_all(self) -> None:
        """Renew everything at once: nobody knows how the last renewals went."""
        now = asyncio.get_running_loop().time()
        for held in self._held:
            held.renew_at = min(held.renew_at, now) if held.renew_at < math.inf else math.inf
        self._due_at(now if self._held else math.inf)

    @contextlib.contextmanager
    def suspended(self, held: Held) -> Iterator[None]:
        """Within, the router has stopped the claim's lease; afterwards it is renewed at once."""
        held.renew_at = math.inf
        try:
            yield
        finally:
            if not held.is_lost:
                held.renew_at = asyncio.get_running_loop().time()
                self._due_at(held.renew_at)

    def _due_at(self, time: float) -> None:
        if time < self._due:
            self._due = time
            self._wake.set()
            self.changed.set()

    def take_due(self) -> list[Held]:
        """All claims, if one of them is due, as renewed from now; else none. Up to 1,000 travel together."""
        now = asyncio.get_running_loop().time()
        running = [held for held in self._held if held.renew_at < math.inf]
        due = any(held.renew_at <= now for held in running)
        if due:
            for held in running:
                held.renewed(now)
        self._due = min((held.renew_at for held in running), default=math.inf)
        return running if due else []

    def request(self, claims: Iterable[Held]) -> RenewClaimsRequest:
        """What renews them."""
        return RenewClaimsRequest(claims=[held.ref for held in claims], lease_duration=to_proto(self.lease))

    def answered(self, claims: Sequence[Held], results: Sequence[ClaimResult], sent_at: float) -> None:
        """Take in how a renewal went."""
        for held, result in zip(claims, results, strict=True):
            if not result.HasField("error"):
                held.renewed(sent_at)
            elif is_lost(from_item(result.error)):
                held.lose(from_item(result.error))
            else:
                self.unanswered([held])

    def unanswered(self, claims: Iterable[Held]) -> None:
        """A renewal did not come through."""
        now = asyncio.get_running_loop().time()
        for held in claims:
            held.renew_soon(now)
            self._due_at(held.renew_at)

    # Without a stream.

    async def keep(self) -> NoReturn:
        """Renew what is due, for ever."""
        while True:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):  # that is: something is due
                async with asyncio.timeout_at(self._due if self._due < math.inf else None):
                    await self._wake.wait()
            due = self.take_due()
            for start in range(0, len(due), MOST_CLAIMS_PER_CALL):
                await self._renew(due[start : start + MOST_CLAIMS_PER_CALL])

    async def _renew(self, claims: Sequence[Held]) -> None:
        sent_at = asyncio.get_running_loop().time()
        third = min(held.lease for held in claims) / 3
        try:
            response = await self._work.RenewClaims(
                self.request(claims), timeout=max(_SHORTEST_TIMEOUT, third)
            )
        except HopperError as error:
            log.warning("%d leases could not be renewed, trying again: %s", len(claims), error.message)
            self.unanswered(claims)
            return
        self.answered(claims, response.results, sent_at)
