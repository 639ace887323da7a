"""
Takes what the router has handed to a peer's instance, and offers it to the peer.

    instance of the peer ── ClaimTasks, no more than the peer has slots for ──► a claim ─► whose is it? `lineage`
      ▲                                                                                       │
      │ RejectDelegation: the policy says no, or it has been there; ReleaseTask: not yet      ▼
      └───────────────────────────────────────────────────────────────── one transaction: `offering`

The claim is kept for as long as the hand-over is open (`claims`). Where this Hopper was away for longer than its
lease, the router has the task in the queue again, and this service claims it again: the open hand-over is adopted,
with the new token. That goes on while the peer's instance is being stopped, and whatever has no hand-over goes back:
of what must not run twice the router cannot tell whether it has left.
"""

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc.aio
import structlog

from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.border.grants import PENDING_OF_KNOWN
from hopper_common.database import Signal
from hopper_common.errors import HopperError
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.calls import CALL_SECONDS, made
from hopper_federation.delegation.claims import CLAIM_LEASE
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.crossings_journal import CrossingsJournal
from hopper_federation.delegation.lineage import Lineage, lineage_of
from hopper_federation.delegation.offering import Offerer, Refused
from hopper_federation.delegation.presence import WORKER, Places
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustSnapshot, TrustSnapshots

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = structlog.get_logger(__name__)

WAIT: Final = timedelta(seconds=20)
MOST_AT_ONCE: Final = 20
_AGAIN_AFTER: Final = 1.0
_MOST_REASON: Final = 500


class _Queue(NamedTuple):
    """
    What is to be claimed.

    Attributes:
        free: How many tasks at once.
        by_hand: A person has sent there whatever is in it now.
    """

    instance: str
    free: int
    by_hand: bool = False


class Claimer:
    """Runs beside the server: for each peer, a long poll at its instance."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        places: Places,
        snapshots: TrustSnapshots,
        credit: Credits,
        offerer: Offerer,
        journal: CrossingsJournal,
    ) -> None:
        self._work: WorkServiceAsyncStub = WorkServiceStub(channel)
        self._delegations: DelegationServiceAsyncStub = DelegationServiceStub(channel)
        self._places = places
        self._snapshots = snapshots
        self._credit = credit
        self._offerer = offerer
        self._journal = journal
        self._changed = Signal()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        snapshots.on_change(self._on_trust)

    async def run(self) -> None:
        """Claim for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._changed.count
                self._follow(group)
                await self._changed.wait(after=seen)

    def _follow(self, group: asyncio.TaskGroup) -> None:
        wanted = set(self._snapshots.current.peers)
        for install_id in self._tasks.keys() - wanted:
            self._tasks.pop(install_id).cancel()
        for install_id in wanted - self._tasks.keys():
            self._tasks[install_id] = group.create_task(self._claim_for(install_id))

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._credit.let_go()
        self._changed.fire()

    async def _claim_for(self, install_id: str) -> None:
        while True:
            queue = self._to_claim(install_id)
            if not queue.free or not queue.instance:
                await self._until_free()
                continue
            try:
                await self._claim(install_id, queue)
            except HopperError as error:
                log.info("nothing is claimed for a peer", install_id=install_id, reason=error.reason)
                await asyncio.sleep(_AGAIN_AFTER)

    def _to_claim(self, install_id: str) -> _Queue:
        peer = self._snapshots.current.peers.get(install_id)
        by_hand = self._places.by_hand(install_id)
        needed = Level.KNOWN if by_hand else Level.TRUSTED
        working = self._places.working(install_id) if peer is not None and peer.may(needed) else ""
        if not working:
            return _Queue(self._places.closing(install_id), MOST_AT_ONCE)
        if self._credit.held(install_id):
            return _Queue(working, 0)
        # Who is no more than known does not say how much it would take.
        free = PENDING_OF_KNOWN if by_hand else min(self._credit.of(install_id), MOST_AT_ONCE)
        return _Queue(working, free, by_hand)

    async def _until_free(self) -> None:
        seen = self._credit.changed.count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_AFTER):
                await self._credit.changed.wait(after=seen)

    async def _claim(self, install_id: str, queue: _Queue) -> None:
        request = wsvc.ClaimTasksRequest(
            queue=queue.instance,
            worker=WORKER,
            max_tasks=queue.free,
            lease_duration=to_proto(CLAIM_LEASE),
            wait=to_proto(WAIT),
        )
        seconds = WAIT.total_seconds() + CALL_SECONDS
        answer = await made(self._work.ClaimTasks(request, timeout=seconds))
        self._credit.spent(install_id, len(answer.tasks))
        for outcome in await asyncio.gather(
            *(self._offer(install_id, task, by_hand=queue.by_hand) for task in answer.tasks),
            return_exceptions=True,
        ):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _offer(self, install_id: str, task: Task, *, by_hand: bool) -> None:
        """What cannot be offered now for want of an answer here is claimed again when its lease has run out."""
        request = dsvc.ListDelegationsRequest(task=task.name)
        chain = await made(self._delegations.ListDelegations(request, timeout=CALL_SECONDS))
        lineage = lineage_of(task.name, chain.delegations)
        closing = bool(self._places.closing(install_id))
        outcome = await self._offerer.offer(install_id, task, lineage, closing=closing, by_hand=by_hand)
        if not isinstance(outcome, Refused):
            return
        self._journal.refused(install_id, outcome.reason, outcome.rule)
        self._credit.earned(install_id)
        if outcome.retry_after is None:
            await self._send_back(install_id, task, lineage, outcome)
        else:
            await self._wait(install_id, task, outcome, outcome.retry_after)

    async def _wait(self, install_id: str, task: Task, why: Refused, seconds: float) -> None:
        """It may go there later: until then it is in the peer's queue, and nothing more is claimed for that peer."""
        self._credit.hold(install_id, seconds)
        request = wsvc.ReleaseTaskRequest(
            claim=wsvc.ClaimRef(task=task.name, fencing_token=task.claim.fencing_token),
            reason=_said(why),
            not_begun=True,
        )
        await made(self._work.ReleaseTask(request, timeout=CALL_SECONDS))

    async def _send_back(self, install_id: str, task: Task, lineage: Lineage, why: Refused) -> None:
        request = dsvc.RejectDelegationRequest(
            name=lineage.delegation,
            reason=_said(why),
            fencing_token=task.claim.fencing_token,
        )
        await made(self._delegations.RejectDelegation(request, timeout=CALL_SECONDS))


def _said(why: Refused) -> str:
    return f"{why.reason}: {why.detail} ({why.rule})"[:_MOST_REASON]
