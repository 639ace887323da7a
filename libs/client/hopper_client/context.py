"""What a handler is given: its task, and how to say something about it while it runs."""

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from hopper.federation.v1.delegation_pb2 import Artifact
from hopper.router.v1.task_pb2 import InputRequest, Progress, Task
from hopper.router.v1.task_service_pb2 import WatchTasksResponse
from hopper.router.v1.work_service_pb2 import ReportProgressRequest, RequestInputRequest
from hopper_client.artifacts import Source
from hopper_client.claims import Held
from hopper_client.delivery import until_answered
from hopper_client.errors import is_lost, will_pass
from hopper_client.policy import with_request_id
from hopper_common.errors import HopperError, LostRace
from hopper_common.timestamps import to_proto

if TYPE_CHECKING:
    from hopper_client.client import AsyncHopper
    from hopper_client.shift import Shift

log = logging.getLogger(__name__)

_MOST_PROGRESS_BYTES = 500
_MOST_FAILURE_BYTES = 4000
_MOST_REASON_BYTES = 100


class TaskFailed(Exception):
    """
    Raised by a handler: this attempt has failed, and the task's retry policy says what now.

    Args:
        reason: One word that retry policies may name, e.g. `NO_NETWORK`. At most 100 bytes.
        message: What a person should know.
        permanent: True: trying again cannot help.
    """

    def __init__(self, reason: str, message: str = "", permanent: bool = False) -> None:
        if (
            not reason
            or not reason.isprintable()
            or " " in reason
            or len(reason.encode()) > _MOST_REASON_BYTES
        ):
            raise ValueError(f"a reason is one printable word of at most 100 bytes, not {reason!r}")
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = cut(message, _MOST_FAILURE_BYTES)
        self.permanent = permanent


class ClaimLost(LostRace):
    """The claim was lost while its task waited for an answer."""

    reason = "STALE_TOKEN"


class TaskContext:
    """
    One task in a worker's hands.

    Attributes:
        task: As it was claimed, in FULL view: title, description and payload are in `task.spec`.
        lost: Set when the claim is lost: the lease ran out, or the task was cancelled. The handler is
            cancelled too; what it still returns counts for nothing.
    """

    __slots__ = ("_held", "_hopper", "_shift")

    def __init__(self, hopper: "AsyncHopper", shift: "Shift", held: Held) -> None:
        self._hopper = hopper
        self._shift = shift
        self._held = held

    @property
    def task(self) -> Task:
        return self._held.task

    @property
    def lost(self) -> asyncio.Event:
        return self._held.lost

    async def progress(self, fraction: float, message: str = "") -> None:
        """
        Say how far the work is, from 0 to 1, and what it does now. That also renews the lease.

        When no Hopper answers this is logged and the work goes on: the next report says more anyhow.
        """
        request = ReportProgressRequest(
            claim=self._held.ref,
            progress=Progress(fraction=fraction, message=cut(message, _MOST_PROGRESS_BYTES)),
            lease_duration=to_proto(self._shift.claims.lease),
        )
        sent_at = asyncio.get_running_loop().time()
        try:
            await self._hopper.work.ReportProgress(request)
            self._held.renewed(sent_at)
        except HopperError as error:
            if is_lost(error):
                self._held.lose(error)
            if not will_pass(error):
                raise
            log.warning("progress of %s was not reported: %s", self.task.name, error.message)

    async def put_artifact(self, source: Source, *, name: str = "", media_type: str = "") -> Artifact:
        """Put a file beside the task, before it ends: see `AsyncHopper.put_artifact`."""
        return await self._hopper.put_artifact(self.task.name, source, name=name, media_type=media_type)

    async def ask(self, question: str, from_: str = "") -> str:
        """
        Ask a person, an agent or an outside event, and wait for the answer, however long that takes.

        The task waits in INPUT_REQUIRED meanwhile; the claim is kept and its lease stands still. The worker's
        slot is free for others meanwhile, and the handler goes on when it has one again.

        Args:
            from_: Who should answer.

        Raises:
            LostRace: The task was cancelled, or is somebody else's now; `lost` is set.
        """
        asked = InputRequest(question=question)
        setattr(asked, "from", from_)  # a keyword of Python's
        request = with_request_id(RequestInputRequest(claim=self._held.ref, input=asked))
        async with self._shift.away(self._held):
            return await self._asked(request)

    async def _asked(self, request: RequestInputRequest) -> str:
        with self._shift.claims.suspended(self._held):
            try:
                response = await until_answered(
                    lambda: self._hopper.work.RequestInput(request), "asking a question"
                )
                return await self._answer_after(response.task.generation)
            except HopperError as error:
                if is_lost(error):
                    self._held.lose(error)
                raise

    async def _answer_after(self, generation: int) -> str:
        changes = self._hopper.watch_tasks(task=self.task.name, after_generation=generation)
        seen = False
        async with aclosing(changes):
            async for message in changes:
                task = _task_in(message)
                if task is None:
                    # The end of a snapshot, which has all open tasks: without ours in it, ours is over.
                    if not seen:
                        break
                    continue
                seen = True
                if not self._is_still_ours(task):
                    break
                if task.state == Task.STATE_RUNNING:
                    return task.input.answer
        raise ClaimLost(task=self.task.name)

    def _is_still_ours(self, task: Task) -> bool:
        # Tokens are shown to claimants only; the attempt grows with every claim just the same.
        return (
            task.state in (Task.STATE_RUNNING, Task.STATE_INPUT_REQUIRED)
            and task.attempt == self.task.attempt
            and task.claim.worker == self.task.claim.worker
        )


def _task_in(message: WatchTasksResponse) -> Task | None:
    if message.HasField("change"):
        return message.change.task
    return message.task if message.HasField("task") else None


def cut(text: str, most_bytes: int) -> str:
    """The text, cut to at most so many bytes of UTF-8."""
    return text.encode()[:most_bytes].decode(errors="ignore")
