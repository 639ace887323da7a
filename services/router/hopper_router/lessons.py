"""
Learns what memory says that outcomes and feedback teach, in its order, for ever.

    memory ── GetModel ─────────────► restore ─┐                      (once, at the start)
           ── WatchLessons ─────────► apply ───┼─► whoever learns: the port `Learner`
           ◄─ learned up to here ──────────────┤
           ◄─ SaveModel ◄─ snapshot ◄──────────┘                      (every 2,000 lessons)
                               └──► a file of ours                    (then too, and when we stop)

The order is memory's, so that every router that has learned up to a position knows the same. When memory is away,
what is known is known; the stream is opened again where it broke, and whoever starts meanwhile begins with the file.
When memory was restored from a backup and knows nothing of the last position, or does not keep the lessons after it any
more, everything is forgotten and learned anew: from its newest snapshot on, or from the oldest lesson that it has.

Whatever comes in has the right of way: lessons are learned in chunks of a few milliseconds, with pauses between
them while the event loop has other things to do. A snapshot is made in a thread, and nothing is learned meanwhile.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import grpc.aio
import structlog

from hopper.memory.v1 import learning_service_pb2 as pb
from hopper.memory.v1.episode_pb2 import EpisodeCandidate
from hopper.memory.v1.learning_service_pb2_grpc import LearningServiceStub
from hopper_common.database import Signal
from hopper_common.errors import NotFound, ResumeTooOld
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import from_proto
from hopper_router import model_file
from hopper_router.backoff import Backoff
from hopper_router.model import Lesson, Truth, Weighed

_log = structlog.get_logger(__name__)

PART_BYTES: Final = 1024 * 1024
"""Of a snapshot, in one message."""
CHUNK_TIME: Final = 0.005
"""How many seconds lessons are learned at a stretch."""
_BUSY: Final = 0.0005
"""An event loop that comes back later than that has other things to do."""


class Learner(Protocol):
    """
    Who learns: a model, as far as it has to be known to teach it.

    All methods but `snapshot` are called from the event loop, one at a time; while `snapshot` runs, none is.

    Attributes:
        snapshot_format: What `snapshot` makes and `restore` reads, e.g. `hopper-learning/1`: a word, up to 60 bytes.
    """

    @property
    def snapshot_format(self) -> str: ...

    def restore(self, snapshot: bytes, position: int) -> bool:
        """
        Know what was known when *snapshot* was made, after the lesson at *position*, and nothing else.

        Returns:
            False: It cannot be read, being damaged or from a newer version. Then nothing is changed.
        """
        ...

    def forget(self) -> None:
        """Know nothing any more: lessons will come from the first on, or a snapshot."""
        ...

    def apply(self, lessons: Sequence[Lesson]) -> None:
        """Learn some lessons, in their order. May take `CHUNK_TIME`; how many come at once is adapted to it."""
        ...

    def snapshot(self) -> bytes:
        """Everything that is known, for `restore`. Called in a thread, may take its time."""
        ...


class LessonWatch:
    """
    Teaches a learner everything that memory knows, and keeps what it knows safe; let `run` run.

    Args:
        channel: To memory.
        first_wait: How long to wait before a broken stream is opened again; doubled each time.
        longest_wait: The most it is doubled to.
        snapshot_every: So many lessons after the last snapshot, another is saved.
        snapshot_interval: But not more often than this.
        transfer_timeout: How long a snapshot may be under way.
        file: Where the last snapshot is kept, to begin with when memory is away. None: nowhere.

    Attributes:
        position: The last lesson that was learned; 0: none yet.
        progress: Fires when some more were, or when `caught_up` changes.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        learner: Learner,
        *,
        first_wait: timedelta = timedelta(milliseconds=100),
        longest_wait: timedelta = timedelta(seconds=5),
        snapshot_every: int = 2000,
        snapshot_interval: timedelta = timedelta(seconds=30),
        transfer_timeout: timedelta = timedelta(minutes=2),
        file: Path | None = None,
    ) -> None:
        self.position = 0
        self.progress = Signal()
        self._memory = LearningServiceStub(channel)
        self._learner = learner
        self._backoff = Backoff("lessons", first=first_wait, longest=longest_wait)
        self._longest_wait = longest_wait.total_seconds()
        self._snapshot_every = snapshot_every
        self._snapshot_interval = snapshot_interval.total_seconds()
        self._transfer_timeout = transfer_timeout.total_seconds()
        self._file = file
        self._filed = 0
        self._begun = False  # with a snapshot, or knowing that there is none
        self._behind = True  # since it began
        self._head: int | None = None  # memory's last lesson; None: the stream is not open
        self._chunk = 1
        self._saved = 0
        self._next_snapshot = 0.0
        self._upload: asyncio.Task[None] | None = None

    @property
    def caught_up(self) -> bool:
        """Whether memory is being heard, and everything that it has said is learned."""
        return self._head is not None and self.position >= self._head

    async def wait_caught_up(self) -> None:
        """Wait until it is."""
        while not self.caught_up:
            await self.progress.wait(after=self.progress.count)

    async def run(self) -> NoReturn:
        """Learn until cancelled."""
        try:
            async with asyncio.TaskGroup() as background:
                while True:
                    reason = await self._follow(background)
                    await asyncio.sleep(self._backoff.failed(reason))
        finally:
            if self._file is not None and self.position > self._filed:
                snapshot = self._snapshot()
                if snapshot is not None:
                    self._write(snapshot)
        raise AssertionError("it has no end")

    async def _follow(self, background: asyncio.TaskGroup) -> str:
        """Learn for as long as the stream lasts; returns why it ended."""
        try:
            if not self._begun:
                await self._begin()
            await self._learn(background)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, ResumeTooOld):
                self._start_over(int(failure.metadata["oldest"]))
            return failure.reason
        return "STREAM_ENDED"

    def _start_over(self, oldest: int) -> None:
        if not self.position and oldest > 1:
            # There is no snapshot that can be read here, and what came before is not kept.
            _log.error("what was taught before is lost, learning what there is", before=oldest)
            self.position = oldest - 1
            return
        _log.error("memory does not know what was learned, learning anew", position=self.position)
        self._learner.forget()
        self.position, self._saved, self._begun = 0, 0, False

    # Where to begin.

    async def _begin(self) -> None:
        """Begin with the newest snapshot that can be used; without one, with the first lesson."""
        try:
            await self._begin_with_memorys()
        except grpc.aio.AioRpcError:
            kept = model_file.read(self._file) if self._file is not None else None
            if kept is None or not self._restore(_Found(kept.position, kept.data, whole=True)):
                raise
            self.position = self._saved = self._filed = kept.position
        self._begun = self._behind = True
        _log.info("learning begins", after=self.position)

    async def _begin_with_memorys(self) -> None:
        before = 0
        while (found := await self._load(before)) is not None:
            if found.whole and self._restore(found):
                self.position = self._saved = found.position
                break
            _log.warning(
                "a snapshot cannot be used, trying the one before", position=found.position, whole=found.whole
            )
            before = found.position

    def _restore(self, found: "_Found") -> bool:
        try:
            return self._learner.restore(found.data, found.position)
        except Exception:  # of the model: what is in memory must not keep the router from starting
            _log.exception("a snapshot could not be read", position=found.position)
            self._learner.forget()
            return False

    async def _load(self, before: int) -> "_Found | None":
        """The newest snapshot before a position, 0 for the newest of all; None if there is none."""
        request = pb.GetModelRequest(format=self._learner.snapshot_format, before_position=before)
        about, data, digest = pb.GetModelResponse(), bytearray(), hashlib.sha256()
        try:
            async for part in self._memory.GetModel(request, timeout=self._transfer_timeout):
                if part.position:
                    about = part
                digest.update(part.data)
                data += part.data
        except grpc.aio.AioRpcError as error:
            if isinstance(from_rpc_error(error), NotFound):
                return None
            raise
        return (
            _Found(about.position, bytes(data), digest.digest() == about.sha256) if about.position else None
        )

    # Lessons.

    async def _learn(self, background: asyncio.TaskGroup) -> None:
        call = self._memory.WatchLessons()
        # A stream on which nothing is taught is silent; one that lasts is one that works.
        lasts = asyncio.get_running_loop().call_later(self._longest_wait, self._backoff.worked)
        try:
            await _say(call, self.position)
            while True:
                response = await call.read()
                if not isinstance(response, pb.WatchLessonsResponse):  # the end
                    return
                self._backoff.worked()
                await self._take(call, response)
                await self._keep(background)
        finally:
            lasts.cancel()
            call.cancel()
            self._head = None
            self.progress.fire()

    async def _take(self, call: "_Call", response: pb.WatchLessonsResponse) -> None:
        self._head = response.head
        self.progress.fire()
        await self._learn_all(call, response)
        if self._behind and self.caught_up:
            self._behind = False
            _log.info("all is learned that there is", position=self.position)

    async def _learn_all(self, call: "_Call", response: pb.WatchLessonsResponse) -> None:
        learned = 0
        while learned < len(response.lessons):
            chunk = response.lessons[learned : learned + self._chunk]
            took = self._apply(chunk)
            learned += len(chunk)
            self.position = chunk[-1].position
            await _say(call, self.position)
            self.progress.fire()
            await _give_way(took)

    def _apply(self, messages: Sequence[pb.Lesson]) -> float:
        """Learn a few; returns how long it took."""
        now = asyncio.get_running_loop().time
        began = now()
        try:
            if lessons := [_lesson(message) for message in messages if message.truth in _TRUTHS]:
                self._learner.apply(lessons)
        except Exception:  # of the model: one text must not keep the router from learning all that follow
            first, last = messages[0].position, messages[-1].position
            _log.exception("lessons could not be learned and are left out", first=first, last=last)
        took = now() - began
        fitting = int(len(messages) * CHUNK_TIME / took) if took else 2 * len(messages)
        self._chunk = max(1, min(fitting, 2 * len(messages)))
        return took

    # Snapshots.

    async def _keep(self, background: asyncio.TaskGroup) -> None:
        """Save what is known, if enough was learned since; the upload goes on beside."""
        now = asyncio.get_running_loop().time
        busy = self._upload is not None and not self._upload.done()
        if busy or self.position - self._saved < self._snapshot_every or now() < self._next_snapshot:
            return
        self._next_snapshot = now() + self._snapshot_interval
        snapshot = await asyncio.to_thread(self._snapshot)
        if snapshot is not None:
            await asyncio.to_thread(self._write, snapshot)
            self._upload = background.create_task(self._save(snapshot.data, snapshot.position))

    def _snapshot(self) -> model_file.Snapshot | None:
        try:
            return model_file.Snapshot(self.position, self._learner.snapshot())
        except Exception:  # of the model, which learns on all the same
            _log.exception("a snapshot could not be made", position=self.position)
            return None

    def _write(self, snapshot: model_file.Snapshot) -> None:
        """Keep a snapshot in the file; one that cannot be written is not missed, unless memory is away at a start."""
        if self._file is None:
            return
        try:
            model_file.write(self._file, snapshot)
        except OSError as error:
            _log.warning(
                "what was learned is not kept in a file", file=str(self._file), reason=error.strerror
            )
            return
        self._filed = snapshot.position

    async def _save(self, snapshot: bytes, position: int) -> None:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(snapshot).digest())
        parts = _parts(snapshot, self._learner.snapshot_format, position, digest)
        try:
            answer = await self._memory.SaveModel(parts, timeout=self._transfer_timeout)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error).reason
            _log.warning("a snapshot was not saved", position=position, bytes=len(snapshot), reason=reason)
            return
        # Another router may have saved a newer one.
        self._saved = max(self._saved, min(answer.position, self.position))


_Call = grpc.aio.StreamStreamCall[pb.WatchLessonsRequest, pb.WatchLessonsResponse]


class _Found(NamedTuple):
    """A snapshot as it came. `whole`: it is what its checksum says."""

    position: int
    data: bytes
    whole: bool


async def _say(call: "_Call", position: int) -> None:
    """Tell memory how far we are."""
    try:
        await call.write(pb.WatchLessonsRequest(position=position))
    except asyncio.InvalidStateError:
        return  # it is over, and whoever reads next is told why


async def _give_way(took: float) -> None:
    """Let others have their turn; for longer, if there are any."""
    now = asyncio.get_running_loop().time
    began = now()
    await asyncio.sleep(0)
    if now() - began > _BUSY:
        await asyncio.sleep(4 * took)


async def _parts(
    snapshot: bytes, snapshot_format: str, position: int, digest: bytes
) -> AsyncIterator[pb.SaveModelRequest]:
    first = pb.SaveModelRequest(format=snapshot_format, position=position, sha256=digest)
    for begin in range(0, max(len(snapshot), 1), PART_BYTES):
        first.data = snapshot[begin : begin + PART_BYTES]
        yield first
        first = pb.SaveModelRequest()


_TRUTHS: Final[dict[Any, Truth]] = {pb.Lesson.Truth.Value(f"TRUTH_{truth.value}"): truth for truth in Truth}
"""What else a newer memory may teach is not for us."""


def _lesson(message: pb.Lesson) -> Lesson:
    return Lesson(
        position=message.position,
        instance=message.instance,
        decision=message.decision,
        title=message.title,
        description=message.description,
        tags=tuple(message.tags),
        truth=_TRUTHS[message.truth],
        project=message.project,
        source=message.source,
        weight=message.weight,
        create_time=from_proto(message.create_time),
        sent_to=message.sent_to,
        candidates=tuple([_weighed(candidate) for candidate in message.candidates]),
    )


def _weighed(message: EpisodeCandidate) -> Weighed:
    factors = tuple([(factor.name, factor.value) for factor in message.factors])
    return Weighed(message.project, message.rest, factors)
