"""
A worker's stream: tasks come, and renewals and ends go back, all on one call.

```
   what changed ──► _requests: the one next thing to say ──► Work ──► _hear: tasks, and answers in order
                        ends that wait, together
                        all leases, when one is due
                        free slots, when all that were said have been filled
```

Nothing is sent task by task: while one message is on its way, whatever ends meanwhile gathers for the next.

**Slots.** What is said replaces what was said before, and tasks may be on their way just then; so slots are said only
when everything that was said has been filled, and no more tasks come than there are slots. Should they not be filled
for a while and more have become free, they are said anyway; a task too many waits for its slot.

**Ends of the stream.** Half-closed by this side, it ends when everything has been answered. Broken, what was not
answered is sent again on the next, which begins by renewing all claims: those that were lost meanwhile are found out.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2 import (
    ClaimResult,
    ReleaseTaskRequest,
    WorkOpen,
    WorkRequest,
    WorkResponse,
    WorkSlots,
)
from hopper_client.claims import MOST_CLAIMS_PER_CALL, Held
from hopper_client.client import AsyncHopper
from hopper_client.delivery import Ending, completion_of
from hopper_client.shift import Shift
from hopper_common.rpc.channel import ACCEPTED

MOST_SLOTS = 1000
STALE_SLOTS = 1.0
"""Seconds after which slots that were said and not filled are said anew, if more are free by now."""
IDLE = 0.02
"""Seconds without a task in hand after which a worker that is to leave when idle looks whether it is."""

_Heard = Callable[[Sequence[ClaimResult]], None]


class WorkerStream:
    """
    One stream, from its beginning to its end.

    Args:
        most: How many tasks may be taken in this run, all its streams together.
        until_idle: Close it when nothing has been in hand for a moment.

    Attributes:
        heard: Whether anything has come.
    """

    def __init__(
        self, hopper: AsyncHopper, shift: Shift, opened: WorkOpen, *, most: float, until_idle: bool
    ) -> None:
        self.heard = False
        self._hopper = hopper
        self._shift = shift
        self._opened = opened
        self._most = most
        self._until_idle = until_idle
        self._loop = asyncio.get_running_loop()
        self._said = 0
        self._said_at = 0.0
        self._idle_since = math.inf
        self._expected: deque[_Heard] = deque()
        self._unanswered: deque[Sequence[Ending]] = deque()
        self._renewals: deque[Held] = deque()
        self._call: Any = None
        self._accepted = False
        self._over = False
        self._defect: Exception | None = None

    async def run(self) -> None:
        """
        Work on it until it ends.

        Raises:
            HopperError: It broke, or was refused.
        """
        self._shift.claims.renew_all()
        self._call = call = self._hopper.work.Work(self._requests())
        try:
            async for response in call:
                self._hear(response)
        except asyncio.CancelledError:
            if self._defect is not None:  # grpc cancels a call whose requests fail
                raise self._defect from None
            raise
        finally:
            self._over = True
            self._shift.changed.set()  # lets `_requests` end
            call.cancel()
            self._put_back()

    def _put_back(self) -> None:
        for endings in reversed(self._unanswered):
            self._shift.outbox.put_back(endings)

    # What is said.

    async def _requests(self) -> AsyncIterator[WorkRequest]:
        changed = self._shift.changed
        try:
            yield WorkRequest(open=self._opened)
            while await self._is_accepted():
                changed.clear()
                message = self._next()
                if message is not None:
                    yield message
                elif self._is_done():
                    return
                else:
                    await self._until_changed()
        except Exception as error:
            self._defect = error
            raise

    async def _is_accepted(self) -> bool:
        """
        Whether more may be said: who writes on a call that was refused does not hear why.
        """
        if not self._accepted and not self._over:
            metadata = await self._call.initial_metadata()
            self._accepted = set(ACCEPTED) <= set(metadata or ())
        return self._accepted and not self._over

    async def _until_changed(self) -> None:
        timer = None
        due = self._due()
        if due < math.inf:
            timer = self._loop.call_at(due, self._shift.changed.set)
        try:
            await self._shift.changed.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _due(self) -> float:
        """When there may be something to say though nothing changes."""
        due = self._shift.claims.due
        if 0 < self._said < self._shift.room and not self._shift.stopping.is_set():
            due = min(due, self._said_at + STALE_SLOTS)
        if self._until_idle and not self._shift.in_hand:
            due = min(due, self._idle_since + IDLE)
        return due

    def _next(self) -> WorkRequest | None:
        outbox = self._shift.outbox
        successes = outbox.next_successes()
        if successes:
            self._expect(successes)
            return WorkRequest(complete=completion_of(successes))
        other = outbox.next_other()
        if other is not None:
            self._expect([other])
            if isinstance(other.request, ReleaseTaskRequest):
                return WorkRequest(release=other.request)
            return WorkRequest(fail=other.request)
        return self._renew() or self._say_slots()

    def _expect(self, endings: Sequence[Ending]) -> None:
        self._unanswered.append(endings)

        def heard(results: Sequence[ClaimResult]) -> None:
            self._unanswered.popleft()
            self._shift.outbox.answer(endings, results)

        self._expected.append(heard)

    def _renew(self) -> WorkRequest | None:
        claims = self._shift.claims
        now = self._loop.time()
        if not self._renewals and claims.due <= now:
            self._renewals.extend(claims.take_due())
        if not self._renewals:
            return None
        count = min(len(self._renewals), MOST_CLAIMS_PER_CALL)
        batch = [self._renewals.popleft() for _ in range(count)]
        self._expected.append(lambda results: claims.answered(batch, results, now))
        return WorkRequest(renew=claims.request(batch))

    def _say_slots(self) -> WorkRequest | None:
        if self._shift.stopping.is_set():
            wanted = 0
            if not self._said:
                return None
        else:
            wanted = int(min(self._shift.room, MOST_SLOTS, self._most - self._shift.stats.claimed))
            stale = self._said_at + STALE_SLOTS <= self._loop.time()
            if wanted <= max(self._said, 0) or (self._said > 0 and not stale):
                return None
        self._said, self._said_at = wanted, self._loop.time()
        return WorkRequest(slots=WorkSlots(free=wanted))

    def _is_done(self) -> bool:
        if self._shift.in_hand:
            self._idle_since = math.inf
            return False
        if self._shift.stopping.is_set() or self._shift.stats.claimed >= self._most:
            return True
        if not self._until_idle:
            return False
        now = self._loop.time()
        self._idle_since = min(self._idle_since, now)
        return now >= self._idle_since + IDLE

    # What is heard.

    def _hear(self, response: WorkResponse) -> None:
        self.heard = True
        self._shift.answered()
        if response.WhichOneof("message") == "answer":
            self._expected.popleft()(response.answer.results)
            return
        tasks = response.assigned.tasks
        self._said -= sum(task.spec.slots or 1 for task in tasks)
        self._shift.take(tasks, self._loop.time() - self._age(tasks[0]))
        self._shift.changed.set()

    def _age(self, task: Task) -> float:
        """How long ago a task that has just come was claimed, should this process have been busy meanwhile."""
        expires = task.claim.lease_expire_time
        lease = self._shift.claims.lease.total_seconds()
        age = time.time() - (expires.seconds + expires.nanos / 1e9 - lease)
        return min(max(age, 0.0), lease / 3)
