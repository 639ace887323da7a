"""
Carries out what is to be done at this Hopper's services: each errand until it is done, those of one hand-over one after
the other.

    errands ─► SUBMIT, STOP                       what came from a peer: made a task, called off
            ─► PROGRESS, COMPLETE, FAIL, RETURN   what is with a peer: its claim is told
            ─► FEEDBACK                           memory is told
         │ an answer: noted, and the errand is struck off, in one transaction
         └ none, or one that passes: again, later and later

Whoever dies between the answer and its transaction does it again: so each has a request id that follows from the
hand-over, or is one of which a repeat changes nothing.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper.router.v1.task_pb2 import Failure, Progress
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.database import Signal
from hopper_common.errors import (
    HopperError,
    IdempotencyConflict,
    LostRace,
    NotFound,
    Overloaded,
    StorageFull,
    StorageUnavailable,
    WrongState,
)
from hopper_common.timestamps import to_proto
from hopper_federation.delegation import bodies
from hopper_federation.delegation.appraising import Appraiser
from hopper_federation.delegation.calls import CALL_SECONDS, made, passes
from hopper_federation.delegation.chain import nobodys_keys, read_offer
from hopper_federation.delegation.claims import CLAIM_LEASE, ENDED, Claims
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.files_wanted import FilesWanted
from hopper_federation.delegation.model import Delegation, Errand, Role, Task
from hopper_federation.delegation.store_sql import Chore, SqlDelegations
from hopper_federation.errors import ResyncNeeded
from hopper_federation.trust_snapshot import TrustSnapshots

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceAsyncStub
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub
    from hopper.router.v1.work_service_pb2_grpc import WorkServiceAsyncStub

log = structlog.get_logger(__name__)

ROOT: Final = "instances/global"
KEPT: Final = "KEEP"
"""The reason of a SUBMIT that makes an orphan this Hopper's own."""

AT_ONCE: Final = 64
LOOK_EVERY: Final = 5.0
"""For errands that another process has written down."""
SHORTEST_PAUSE: Final = 0.05
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
MOST_TOLD: Final = 10
"""How often memory is told in vain."""

_NAMESPACE: Final = uuid.UUID("8c4f2e52-6f0c-5d0e-9a4e-6b1f1d0a7c55")
_MOST_REASON: Final = 500
_MOST_WORD: Final = 100
_MOST_MESSAGE: Final = 4000
_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)

_Note = Callable[[Sitting], object]
"""What an answer comes to, at the desk."""


class _Again(Exception):
    """It is to be done once more, at once: something about it has changed."""


class Router:
    """The errands themselves: each says what its answer comes to, or raises."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        claims: Claims,
        snapshots: TrustSnapshots,
        appraiser: Appraiser,
        files: FilesWanted,
    ) -> None:
        self._work: WorkServiceAsyncStub = WorkServiceStub(channel)
        self._tasks: TaskServiceAsyncStub = TaskServiceStub(channel)
        self._delegations: DelegationServiceAsyncStub = DelegationServiceStub(channel)
        self._claims = claims
        self._snapshots = snapshots
        self._appraiser = appraiser
        self._files = files
        self._ways = {
            Task.SUBMIT: self._submit,
            Task.STOP: self._stop,
            Task.PROGRESS: self._progress,
            Task.COMPLETE: self._complete,
            Task.FAIL: self._fail,
            Task.RETURN: self._return,
            Task.FEEDBACK: self._tell_memory,
        }

    async def carry_out(self, about: Delegation, errand: Errand) -> _Note:
        """
        Do it.

        Raises:
            HopperError: It has not been done.
            _Again: Likewise.
        """
        return await self._ways[errand.task](about, errand)

    # What came from a peer.

    async def _submit(self, about: Delegation, errand: Errand) -> _Note:
        kept = errand.reason == KEPT
        if not kept and not about.may_be_begun:
            if about.state.open:
                raise ResyncNeeded(peer=about.peer)
            return _nothing
        offer = dpb.Offer.FromString(about.offer)
        peer = self._snapshots.current.peers.get(about.peer)
        path = read_offer(offer, nobodys_keys).path[:-1]
        close_by = None if about.close_by is None else datetime.fromtimestamp(about.close_by, UTC)
        spec = bodies.spec_of(
            dpb.TaskBody.FromString(offer.body),
            about,
            peer=about.peer if peer is None else peer.name,
            path=path,
            close_by=None if kept else close_by,
        )
        if kept:
            del spec.labels[bodies.DELEGATION]
        request = tsvc.SubmitTaskRequest(
            parent=ROOT, spec=spec, request_id=_request_id(about, KEPT if kept else errand.task)
        )
        try:
            answer = await made(self._tasks.SubmitTask(request, timeout=CALL_SECONDS))
        except HopperError as error:
            if passes(error):
                raise
            log.warning("what came from a peer is not taken", delegation=about.id, reason=error.reason)
            reason, detail = error.reason, error.message
            return _nothing if kept else lambda sitting: sitting.desk.refused(about.id, reason, detail)
        name = answer.task.name
        return _nothing if kept else lambda sitting: sitting.desk.submitted(about.id, name)

    async def _stop(self, about: Delegation, errand: Errand) -> _Note:
        if not about.task:
            return _nothing
        reason = (errand.detail or errand.reason)[:_MOST_REASON]
        request = tsvc.CancelTaskRequest(name=about.task, reason=reason)
        with contextlib.suppress(NotFound, WrongState):  # it is over, and the watch tells how
            await made(self._tasks.CancelTask(request, timeout=CALL_SECONDS))
        return _nothing

    # What is with a peer.

    async def _progress(self, about: Delegation, errand: Errand) -> _Note:
        request = wsvc.ReportProgressRequest(
            claim=_claim(about),
            progress=Progress(fraction=errand.fraction, message=errand.detail[:_MOST_REASON]),
            lease_duration=to_proto(CLAIM_LEASE),
        )
        try:
            await made(self._work.ReportProgress(request, timeout=CALL_SECONDS))
        except HopperError as error:  # the next one says more
            log.debug("progress is not told", delegation=about.id, reason=error.reason)
        return _nothing

    async def _complete(self, about: Delegation, _: Errand) -> _Note:
        await self._files.of(about)
        output = dpb.Result.FromString(about.result).output
        completion = wsvc.Completion(claim=_claim(about), result=output)
        request = wsvc.CompleteTasksRequest(completions=[completion])
        answer = await made(self._work.CompleteTasks(request, timeout=CALL_SECONDS))
        result = answer.results[0]
        if result.HasField("error"):
            log.info("a task is not completed", delegation=about.id, reason=result.error.reason)
            return await self._without_claim(about)

        def note(sitting: Sitting) -> None:
            done = sitting.desk.settled(Role.OUT, about.id)
            sitting.rows.errand(done, Errand(Task.FEEDBACK))

        return note

    async def _fail(self, about: Delegation, errand: Errand) -> _Note:
        failure = Failure(reason=errand.reason or "FAILED", message=errand.detail)
        if about.result:
            envelope = dpb.ResultEnvelope.FromString(dpb.Result.FromString(about.result).envelope.payload)
            failure.reason = _word(envelope.failure_reason) or "FAILED"
            failure.message = envelope.failure_message[:_MOST_MESSAGE]
            failure.permanent = envelope.permanent
        request = wsvc.FailTaskRequest(
            claim=_claim(about), failure=failure, request_id=_request_id(about, Task.FAIL)
        )
        try:
            await made(self._work.FailTask(request, timeout=CALL_SECONDS))
        except IdempotencyConflict:  # done already, and claimed again since: for the next hand-over
            return await self._released(about)
        except (LostRace, NotFound):
            return await self._without_claim(about)
        return lambda sitting: sitting.desk.settled(Role.OUT, about.id)

    async def _return(self, about: Delegation, errand: Errand) -> _Note:
        task = await self._claims.task(about.task)
        if task is None or task.state in ENDED or not task.delegation:
            return lambda sitting: sitting.desk.settled(Role.OUT, about.id)
        request = dsvc.RejectDelegationRequest(
            name=task.delegation,
            reason=": ".join(filter(None, (errand.reason, errand.detail)))[:_MOST_REASON],
            fencing_token=about.token,
            may_come_again=errand.may_come_again,
        )
        try:
            await made(self._delegations.RejectDelegation(request, timeout=CALL_SECONDS))
        except (LostRace, WrongState):
            return await self._without_claim(about)
        return lambda sitting: sitting.desk.settled(Role.OUT, about.id)

    async def _without_claim(self, about: Delegation) -> _Note:
        """The claim is not this Hopper's any more: it is taken again, or the task is over."""
        if await self._claims.again(about):
            raise _Again
        return lambda sitting: sitting.desk.settled(Role.OUT, about.id)

    async def _released(self, about: Delegation) -> _Note:
        request = wsvc.ReleaseTaskRequest(claim=_claim(about), reason="for the next hand-over")
        with contextlib.suppress(LostRace, NotFound):
            await made(self._work.ReleaseTask(request, timeout=CALL_SECONDS))
        return lambda sitting: sitting.desk.settled(Role.OUT, about.id)

    # What memory should know.

    async def _tell_memory(self, about: Delegation, _: Errand) -> _Note:
        await self._appraiser.appraise(about)
        return _nothing


class Errands:
    """
    Runs beside the server.

    Attributes:
        waiting: How many there were to be done when it was looked last.
    """

    def __init__(self, desks: Desks, router: Router, credit: Credits) -> None:
        self.waiting = 0
        self._desks = desks
        self._router = router
        self._credit = credit
        self._under_way: set[int] = set()
        self._free = Signal()

    async def run(self) -> None:
        """Carry them out for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                asked, ends = self._desks.asked.count, self._free.count
                try:
                    due = await self._begin(group)
                except _PUT_OFF as error:
                    log.warning("errands are put off", reason=error.reason)
                    due = FIRST_PAUSE
                await self._until_something(asked, ends, due)

    async def _begin(self, group: asyncio.TaskGroup) -> float:
        """Begin whatever is to be done. Returns in how many seconds there is more, if nothing happens before."""
        now = self._desks.steady()
        chores, due = await self._desks.read(lambda rows: _to_do(rows, now))
        self.waiting = len(chores)
        for chore in chores:
            if chore.position in self._under_way or len(self._under_way) >= AT_ONCE:
                continue
            self._under_way.add(chore.position)
            group.create_task(self._do(chore))
        if chores:
            return LOOK_EVERY
        return LOOK_EVERY if due is None else min(LOOK_EVERY, max(SHORTEST_PAUSE, due - now))

    async def _until_something(self, asked: int, ends: int, seconds: float) -> None:
        waits = [
            asyncio.ensure_future(self._desks.asked.wait(after=asked)),
            asyncio.ensure_future(self._free.wait(after=ends)),
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _do(self, chore: Chore) -> None:
        try:
            await self._carry_out(chore)
        except HopperError as error:  # what was done is done again, and that changes nothing
            say = log.warning if isinstance(error, _PUT_OFF) else log.error
            say("what became of an errand is not noted", task=chore.errand.task, reason=error.reason)
            await asyncio.sleep(FIRST_PAUSE)
        finally:
            self._under_way.discard(chore.position)
            self._free.fire()

    async def _carry_out(self, chore: Chore) -> None:
        about = chore.delegation
        try:
            note = await self._router.carry_out(about, chore.errand)
        except _Again:
            await self._repeat(chore, 0.0 if not chore.attempts else _pause(chore))
            return
        except HopperError as error:
            if not _given_up(chore, error):
                await self._put_off(chore, error)
                return
            log.warning("an errand is given up", task=chore.errand.task, reason=error.reason)
            note = _nothing
        done = await self._desks.write(lambda sitting: _struck_off(sitting, chore, note))
        if done and about.role is Role.OUT and chore.errand.task in _LAST:
            self._credit.earned(about.peer)

    async def _put_off(self, chore: Chore, error: HopperError) -> None:
        pause = _pause(chore)
        if error.retry_after is not None:
            pause = max(pause, error.retry_after.total_seconds())
        say = log.info if passes(error) else log.error
        say(
            "an errand is put off",
            task=chore.errand.task,
            delegation=chore.delegation.id,
            reason=error.reason,
        )
        await self._repeat(chore, pause)

    async def _repeat(self, chore: Chore, pause: float) -> None:
        again_at = self._desks.steady() + pause
        await self._desks.write(lambda sitting: sitting.rows.errand_failed(chore.position, again_at))


def _to_do(rows: SqlDelegations, now: float) -> tuple[list[Chore], float | None]:
    """What is to be done now; and if that is nothing, when there is something."""
    chores = rows.errands(now, 2 * AT_ONCE)
    return chores, None if chores else rows.next_errand()


_LAST: Final = frozenset({Task.COMPLETE, Task.FAIL, Task.RETURN})


def _pause(chore: Chore) -> float:
    """Seconds until it is tried again: twice as long each time."""
    pause = min(FIRST_PAUSE * 2.0 ** min(chore.attempts, 16), LONGEST_PAUSE)
    return pause * random.uniform(0.6, 1.4)  # noqa: S311 - spreads calls, hides nothing


def _given_up(chore: Chore, error: HopperError) -> bool:
    """Whether it is no more than good to know, and does not come through."""
    return chore.errand.task is Task.FEEDBACK and (not passes(error) or chore.attempts >= MOST_TOLD)


def _struck_off(sitting: Sitting, chore: Chore, note: _Note) -> bool:
    """An errand that another has taken the place of has come to nothing."""
    if not sitting.rows.errand_done(chore.position):
        return False
    note(sitting)
    return True


def _nothing(sitting: Sitting) -> None:
    """Nothing is to be noted."""


def _claim(about: Delegation) -> wsvc.ClaimRef:
    return wsvc.ClaimRef(task=about.task, fencing_token=about.token)


def _request_id(about: Delegation, what: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{about.role}/{about.id}/{about.epoch}/{what}"))


def _word(text: str) -> str:
    """A word of somebody else's, as a reason has to be."""
    word = "".join(each for each in text if each.isprintable() and not each.isspace())
    return word.encode()[:_MOST_WORD].decode(errors="ignore")
