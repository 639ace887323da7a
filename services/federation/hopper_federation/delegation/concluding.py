"""
Says how a task ended that came from a peer: read whole, and signed. What a third Hopper has done is passed on as that
one signed it, countersigned.
"""

from datetime import datetime, timedelta
from typing import Final

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1.task_pb2 import Task
from hopper_common.clock import Clock
from hopper_common.identity.store import Identity
from hopper_common.timestamps import time_field
from hopper_federation.artifacts.manifests import manifest_of
from hopper_federation.artifacts.store_sql import Artifacts
from hopper_federation.artifacts.tasks import Tasks
from hopper_federation.delegation.claims import ENDED, Claims
from hopper_federation.delegation.desks import Desks
from hopper_federation.delegation.model import ENDED_AS, Delegation, Outcome, Role, TaskNews
from hopper_federation.delegation.sealing import Ended, countersign, passes_on, seal_result

_OUTCOMES: Final = {
    Task.STATE_SUCCEEDED: Outcome.SUCCEEDED,
    Task.STATE_FAILED: Outcome.FAILED,
    Task.STATE_REJECTED: Outcome.FAILED,
    Task.STATE_CANCELLED: Outcome.CANCELLED,
}
UNPLACED: Final = "NO_ELIGIBLE_EXECUTOR"


class Concluder:
    """
    Reads and signs.

    Args:
        files, tasks: For the files beside a result.
    """

    def __init__(
        self,
        desks: Desks,
        claims: Claims,
        identity: Identity,
        clock: Clock,
        files: Artifacts,
        tasks: Tasks,
    ) -> None:
        self._desks = desks
        self._claims = claims
        self._identity = identity
        self._clock = clock
        self._files = files
        self._tasks = tasks

    async def conclude(self, known: Delegation, begun: datetime | None) -> TaskNews | None:
        """
        How the task of a hand-over ended; None: it has not, or there is none.

        Args:
            begun: When work on it began; None: nobody knows.

        Raises:
            HopperError: It cannot be said now.
        """
        task = await self._claims.task(known.task)
        if task is None or task.state not in ENDED:
            return None
        outcome = _OUTCOMES[task.state]
        result = await self._passed_on(known, outcome) or await self._own(known, task, outcome, begun)
        unplaced = task.state == Task.STATE_REJECTED or task.failure.reason == UNPLACED
        return TaskNews(outcome=outcome, unplaced=unplaced, sealed=result.SerializeToString())

    async def _own(
        self, known: Delegation, task: Task, outcome: Outcome, begun: datetime | None
    ) -> dpb.Result:
        """What this Hopper has done itself."""
        finished = time_field(task, "finish_time") or self._clock.now()
        artifacts = await manifest_of(self._files, self._tasks, task.name)
        ended = Ended(
            outcome=outcome,
            finish_time=finished,
            output=task.result,
            artifacts=tuple(artifacts),
            failure_reason=task.failure.reason,
            failure_message=task.failure.message,
            permanent=task.failure.permanent,
            effort=None if begun is None else max(timedelta(), finished - begun),
            attempts=max(1, task.attempt),
        )
        return seal_result(self._identity, dpb.Offer.FromString(known.offer), ended)

    async def _passed_on(self, known: Delegation, outcome: Outcome) -> dpb.Result | None:
        """What a third Hopper has done, to which it had been handed on."""
        offer = dpb.Offer.FromString(known.offer)
        copies = await self._desks.read(lambda rows: rows.of_task_uid(known.task_uid))
        ended = [
            each
            for each in copies
            if each.role is Role.OUT and each.state is ENDED_AS[outcome] and each.result
        ]
        further = [each for each in ended if passes_on(dpb.Offer.FromString(each.offer), offer)]
        if not further:
            return None
        newest = max(further, key=lambda each: each.epoch)
        return countersign(self._identity, dpb.Result.FromString(newest.result), offer, self._clock.now())
