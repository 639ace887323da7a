"""
The claims a worker holds, and the one loop that keeps their leases from running out.

All leases are renewed in one call, at a third of the shortest, so that two renewals may fail before a lease
does. A claim the router no longer knows is *lost*: its handler is cancelled, and its result would be refused
anyhow, because the fencing token is stale. While no Hopper answers, handlers go on; the token decides later.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import ClaimRef, RenewClaimsRequest
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
        lost: Set once it is known that the claim is somebody else's, or the task is over.
        handler: What to cancel then.
    """

    def __init__(self, task: Task, lease: timedelta, claimed_at: float) -> None:
        heartbeat = duration_field(task.spec.clocks, "heartbeat")
        self.task = task
        self.ref = ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
        self.lease = min(lease, heartbeat or lease).total_seconds()
        self.renew_at = claimed_at + self.lease / 3
        self.lost = asyncio.Event()
        self.handler: asyncio.Task[object] | None = None

    def renewed(self, sent_at: float) -> None:
        """The lease runs anew, from *sent_at* at the earliest."""
        self.renew_at = sent_at + self.lease / 3

    def lose(self, error: HopperError) -> None:
        """The claim is gone: stop its handler."""
        self.renew_at = math.inf
        if self.lost.is_set() or self.handler is None or self.handler.done():
            return  # its end is on its way, and may be the very reason why the token is stale
        log.warning("the claim of %s was lost: %s", self.task.name, error.reason)
        self.lost.set()
        self.handler.cancel()


class Claims:
    """
    All claims of one worker.

    Attributes:
        lease: What each renewal asks for.
    """

    def __init__(self, work: "WorkServiceAsyncStub", lease: timedelta) -> None:
        self._work = work
        self.lease = lease
        self._held: set[Held] = set()
        self._changed = asyncio.Event()

    def add(self, task: Task, claimed_at: float) -> Held:
        """
        Begin to keep a claim.

        Args:
            claimed_at: In the loop's time, not later than it was made.
        """
        held = Held(task, self.lease, claimed_at)
        self._held.add(held)
        self._changed.set()
        return held

    def remove(self, held: Held) -> None:
        """Stop keeping a claim: it has ended."""
        self._held.discard(held)
        self._changed.set()

    @contextlib.contextmanager
    def suspended(self, held: Held) -> Iterator[None]:
        """Within, the router has stopped the claim's lease; afterwards it is renewed at once."""
        held.renew_at = math.inf
        try:
            yield
        finally:
            if not held.lost.is_set():
                held.renew_at = asyncio.get_running_loop().time()
            self._changed.set()

    async def keep(self) -> NoReturn:
        """Renew what is due, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            due = min((held.renew_at for held in self._held), default=math.inf)
            with contextlib.suppress(TimeoutError):  # that is: something is due
                async with asyncio.timeout_at(due if due < math.inf else None):
                    await self._changed.wait()
            if any(held.renew_at <= loop.time() for held in self._held):
                await self._renew()

    async def _renew(self) -> None:
        running = [held for held in self._held if held.renew_at < math.inf]
        for start in range(0, len(running), MOST_CLAIMS_PER_CALL):
            await self._renew_some(running[start : start + MOST_CLAIMS_PER_CALL])

    async def _renew_some(self, claims: Sequence[Held]) -> None:
        sent_at = asyncio.get_running_loop().time()
        third = min(held.lease for held in claims) / 3
        request = RenewClaimsRequest(
            claims=[held.ref for held in claims], lease_duration=to_proto(self.lease)
        )
        try:
            response = await self._work.RenewClaims(request, timeout=max(_SHORTEST_TIMEOUT, third))
        except HopperError as error:
            log.warning("%d leases could not be renewed, trying again: %s", len(claims), error.message)
            for held in claims:
                _renew_soon(held)
            return
        for held, result in zip(claims, response.results, strict=True):
            if not result.HasField("error"):
                held.renewed(sent_at)
            elif is_lost(from_item(result.error)):
                held.lose(from_item(result.error))
            else:
                _renew_soon(held)


def _renew_soon(held: Held) -> None:
    held.renew_at = asyncio.get_running_loop().time() + held.lease / 10
