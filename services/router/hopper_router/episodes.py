"""
Tells memory every decision, and what came of it, without anyone's help.

The router's own log is the outbox: whatever decides or ends a task writes an event in the same transaction, and
the sender here reads the log from its cursor on, in order, and moves the cursor when memory has acknowledged.

    log ── DECIDE ───────────► Episode of the new decision, and REROUTED for the one it replaces
        ── a final state ────► EpisodeOutcome of the decision in force
                                       │
    cursor ◄── acknowledged ◄── RecordEpisodes, at most 500 of each and 3 MiB

Who gives feedback a moment after a decision should find that memory knows it, and a busy router should not send each
decision by itself. So one request follows the other after a pause that grows with what there was to send: a lonely
decision is sent at once, and a thousand a second are sent by the five hundred.

So nothing is lost when memory is down or either of the two restarts, and something may be sent twice, which
memory does not mind. What is sent is read when it is sent, not when it happened: a decision never changes, and
neither does a task in a final state.

Memory may refuse an episode as invalid. It would for ever, and hold up all that follow: so such a batch is
halved until the one at fault is alone, which is named in the log and left out. A refusal that an upgrade of
memory would mend (a field it does not know) is waited out like any other trouble.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from typing import Final, NamedTuple, Protocol

import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.memory.v1.episode_pb2 import Episode, EpisodeFactor, EpisodeOutcome
from hopper.memory.v1.episodic_service_pb2 import RecordEpisodesRequest
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.router.v1.decision_pb2 import Decision
from hopper.router.v1.task_pb2 import TaskSpec
from hopper_common.errors import (
    HopperError,
    InvalidArgument,
    RequestTooLarge,
    ResourceExhausted,
    ResumeTooOld,
    ShuttingDown,
    Unavailable,
)
from hopper_common.eventlog import Event
from hopper_common.rpc.errors import from_rpc_error
from hopper_router.backoff import Backoff
from hopper_router.convert import STATE_FROM_PROTO, event_from_bytes
from hopper_router.model import TaskState
from hopper_router.recall import decision_of, is_short
from hopper_router.transitions import TABLE
from hopper_router.transitions import Event as Transition
from hopper_router.weighing import weighed

_log = structlog.get_logger(__name__)

TOPICS: Final = frozenset(
    {event.value for (_, event), state in TABLE.items() if state.final}
    | {Transition.DECIDE.value, Transition.SUBMIT.value}
)
"""The events that memory hears of: decisions, and whatever may end a task."""

_DECIDED: Final = frozenset({Transition.DECIDE.value, Transition.SUBMIT.value})
MOST_ITEMS: Final = 500
MOST_BYTES: Final = 3 * 1024 * 1024
"""Of one request; memory takes 4 MiB."""

_MOST_TITLE_BYTES: Final = 300
_MOST_DESCRIPTION_BYTES: Final = 4000
_MOST_CANDIDATES: Final = 10
_GATHER: Final = 0.008
"""Seconds to let the log gather, for each event that there was the last time: up to 125 a second are sent singly."""
_BREATH: Final = 50
"""Events that are worked on at a stretch: then others have their turn."""


class DecisionRecord(NamedTuple):
    """
    A decision with what memory wants to know besides.

    Attributes:
        decision: As it is stored: `hopper.router.v1.Decision`.
        spec: What the task asks for, as it is stored: `hopper.router.v1.TaskSpec`.
        parent_decision: The decision one level up that handed the task here; "" at the top.
        replaced: The decision about the same task before this one; "": there was none.
    """

    decision: bytes
    spec: bytes
    parent_decision: str = ""
    replaced: str = ""


class EndedTask(NamedTuple):
    """
    What memory wants to know of a task that ended; times in microseconds.

    Attributes:
        state: It may have gone on since: then it is not a final one.
        decision: The one in force; "": there is none.
        worker: Who had it last; "": nobody.
        claim_time: Since when that worker had it.
        due: When it was to be done, by its own deadline or what the project promises; None: nobody said.
    """

    state: TaskState
    decision: str
    finish_time: int
    attempts: int
    failure_reason: str
    worker: str
    claim_time: int | None
    queue_time: int | None
    first_start: int | None
    due: int | None = None

    @property
    def late(self) -> bool:
        """Whether it was done, but later than promised."""
        return self.state is TaskState.SUCCEEDED and self.due is not None and self.finish_time > self.due


class EpisodeSource(Protocol):
    """What the sender reads: the router's log and records."""

    async def load_cursor(self) -> int:
        """The version up to which memory has been told; 0 if it never was."""
        ...

    async def save_cursor(self, version: int) -> None:
        """Memory has been told up to here. The log must keep what comes after."""
        ...

    def tail(self, after: int) -> AsyncIterator[list[Event]]:
        """
        The events after a version, in order, for ever: lists of 1 to 500. May leave out those whose topic is not
        in `TOPICS`.

        Raises:
            ResumeTooOld: They are no longer kept.
            ShuttingDown: The log was closed.
        """
        ...

    async def records(
        self, decisions: Collection[str], first: Collection[str]
    ) -> Mapping[str, DecisionRecord]:
        """
        The decisions of these names, by name; those that do not exist are left out.

        Args:
            first: Those of them that are known to be the first about their task.
        """
        ...

    async def ended(self, tasks: Collection[str]) -> Mapping[str, EndedTask]:
        """The tasks of these names, by name, as they are now; those that do not exist are left out."""
        ...


# What is said, as functions.


def episode(record: DecisionRecord) -> Episode:
    """A decision as memory keeps it."""
    decision, spec = Decision.FromString(record.decision), TaskSpec.FromString(record.spec)
    said = Episode(
        decision=decision.name,
        task=decision.task,
        instance=decision.instance,
        parent_decision=record.parent_decision,
        title=_cut(spec.title, _MOST_TITLE_BYTES),
        description=_cut(spec.description, _MOST_DESCRIPTION_BYTES),
        tags=spec.tags,
        project=decision.project,
        confidence=_share(decision.confidence),
        strategy=decision.strategy,
        decide_time=decision.create_time,
    )
    add = said.candidates.add
    candidates = decision.candidates[:_MOST_CANDIDATES]
    for candidate in candidates:
        add(project=candidate.project, confidence=_share(candidate.confidence))
    for message, (_, rest, factors) in zip(said.candidates, weighed(candidates), strict=False):
        message.rest = rest
        message.factors.extend(EpisodeFactor(name=name, value=value) for name, value in factors)
    return said


def rerouted(record: DecisionRecord) -> EpisodeOutcome | None:
    """What a decision means for the one it replaces; None if it is the task's first."""
    # Those before that one were told when it replaced them.
    if not record.replaced:
        return None
    decision = Decision.FromString(record.decision)
    return EpisodeOutcome(
        decision=record.replaced,
        outcome=Episode.OUTCOME_REROUTED,
        finish_time=decision.create_time,
        rerouted_to=decision.project,
    )


def outcome(task: EndedTask) -> EpisodeOutcome | None:
    """What came of the decision in force of a task; None while it is open, or if nothing was decided."""
    if not task.state.final or not task.decision:
        return None
    said = EpisodeOutcome(
        decision=task.decision,
        outcome=_OUTCOMES[task.state],
        attempts=task.attempts,
        failure_reason=_LATE if task.late else task.failure_reason,
        worker=task.worker,
    )
    _put(said.finish_time, task.finish_time)
    # A clock that was set back makes no negative lengths.
    if task.claim_time is not None:
        _put(said.run_duration, max(task.finish_time - task.claim_time, 0))
    if task.first_start is not None and task.queue_time is not None:
        _put(said.queue_duration, max(task.first_start - task.queue_time, 0))
    return said


_LATE: Final = "LATE"
_OUTCOMES: Final = {
    state: Episode.Outcome.Value(f"OUTCOME_{state.name}") for state in TaskState if state.final
}


def _cut(text: str, most: int) -> str:
    """The beginning of a text, at most that many bytes of it."""
    return text.encode()[:most].decode(errors="ignore")


def _share(value: float) -> float:
    """Sums of floats may end a hair above 1, and memory is strict."""
    return value if 0.0 <= value <= 1.0 else min(max(value, 0.0), 1.0)


def _put(out: Timestamp | Duration, micros: int) -> None:
    out.seconds, rest = divmod(micros, 1_000_000)
    out.nanos = 1000 * rest


Said = Episode | EpisodeOutcome


def batches(said: Iterable[Said]) -> Iterator[list[Said]]:
    """The same, in order, in parts that memory takes in one request."""
    batch: list[Said] = []
    size = 0
    for item in said:
        item_size = item.ByteSize() + 8  # with its tag and length
        if batch and (len(batch) == MOST_ITEMS or size + item_size > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield batch


def _request(said: Sequence[Said]) -> RecordEpisodesRequest:
    return RecordEpisodesRequest(
        episodes=[item for item in said if isinstance(item, Episode)],
        outcomes=[item for item in said if isinstance(item, EpisodeOutcome)],
    )


class _News(NamedTuple):
    """
    What an event is about: a decision that was made, or else a task that ended.

    Attributes:
        first: The decision is known to be the first about its task.
    """

    decision: str = ""
    task: str = ""
    first: bool = False


def _news(events: Iterable[Event]) -> Iterator[_News]:
    for event in events:
        if event.topic not in TOPICS:
            continue
        if is_short(event):
            if event.topic == "COMPLETE":
                yield _News(task=event.key)
            else:  # the hot path decides about new tasks only
                yield _News(decision=decision_of(event), first=True)
            continue
        happened = event_from_bytes(event.body, event.version).task
        if event.topic in _DECIDED and happened.decision:
            yield _News(decision=happened.decision)
        if STATE_FROM_PROTO[happened.state].final:
            yield _News(task=event.key)


# Saying it.


class EpisodeSender:
    """
    Sends memory every decision and outcome; let `run` run.

    Args:
        channel: To memory.
        source: The router's log and records.
        first_wait: How long to wait after a first failure; doubled each time.
        longest_wait: The most it is doubled to.
        linger: The longest time that the log is let gather between two requests.
        timeout: How long memory may take for one request.
        pause: How to let the log gather, for so many seconds.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        source: EpisodeSource,
        *,
        first_wait: timedelta = timedelta(milliseconds=200),
        longest_wait: timedelta = timedelta(seconds=10),
        linger: timedelta = timedelta(milliseconds=500),
        timeout: timedelta = timedelta(seconds=10),
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._memory = EpisodicMemoryServiceStub(channel)
        self._source = source
        self._memory_backoff = Backoff("memory", first=first_wait, longest=longest_wait)
        self._source_backoff = Backoff("episodes of the log", first=first_wait, longest=longest_wait)
        self._linger = linger.total_seconds()
        self._timeout = timeout.total_seconds()
        self._pause = pause
        self._cursor: int | None = None

    async def run(self) -> None:
        """Send until cancelled, or until the log is closed."""
        while True:
            try:
                await self._follow()
            except ShuttingDown:
                return
            except ResumeTooOld as error:
                self._start_over(error)
            except (Unavailable, ResourceExhausted) as error:
                await asyncio.sleep(self._source_backoff.failed(error.reason))

    async def _follow(self) -> None:
        if self._cursor is None:
            self._cursor = await self._source.load_cursor()
        else:  # after trouble, and noting it may have been the trouble
            await self._source.save_cursor(self._cursor)
        async for events in self._source.tail(self._cursor):
            for batch in batches(await self._said(events)):
                await self._send(batch)
            self._cursor = events[-1].version
            await self._source.save_cursor(self._cursor)
            self._source_backoff.worked()
            if len(events) < MOST_ITEMS:
                await self._pause(min(_GATHER * len(events), self._linger))

    def _start_over(self, error: ResumeTooOld) -> None:
        # The log was trimmed past us, or the database was restored from a backup and is behind us. What is
        # still there is sent; what memory has already changes nothing.
        oldest = int(error.metadata["oldest"])
        _log.error("the log does not go on where memory was told", cursor=self._cursor, oldest=oldest)
        self._cursor = oldest - 1

    async def _said(self, events: Iterable[Event]) -> list[Said]:
        """Everything that events say to memory, in their order."""
        news = list(_news(events))
        decisions = {new.decision: new.first for new in news if new.decision}
        ended = {new.task for new in news if new.task}
        records: Mapping[str, DecisionRecord] = {}
        if decisions:
            first = [decision for decision, is_first in decisions.items() if is_first]
            records = await self._source.records(decisions, first)
        tasks = await self._source.ended(ended) if ended else {}
        said: list[Said] = []
        now = asyncio.get_running_loop().time
        for begin in range(0, len(news), _BREATH):
            began = now()
            for new in news[begin : begin + _BREATH]:
                said += _told(new, records, tasks)
            # What comes in has the right of way: this takes a fifth of the time at most, and catches up later.
            await asyncio.sleep(4 * (now() - began))
        return said

    async def _send(self, said: Sequence[Said]) -> None:
        """Send until memory has it; what it refuses for ever is left out."""
        while True:
            try:
                await self._memory.RecordEpisodes(_request(said), timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
            else:
                self._memory_backoff.worked()
                return
            if failure.reason in _REFUSALS:
                await self._send_without_the_refused(said, failure)
                return
            await asyncio.sleep(self._memory_backoff.failed(failure.reason))

    async def _send_without_the_refused(self, said: Sequence[Said], failure: HopperError) -> None:
        if len(said) > 1:
            middle = len(said) // 2
            await self._send(said[:middle])
            await self._send(said[middle:])
            return
        fields = [at.field for at in failure.violations] if isinstance(failure, InvalidArgument) else []
        _log.error("memory refuses it, it is left out", decision=said[0].decision, fields=fields)


_REFUSALS: Final = frozenset({InvalidArgument.reason, RequestTooLarge.reason})


def _told(
    new: _News, records: Mapping[str, DecisionRecord], tasks: Mapping[str, EndedTask]
) -> Iterable[Said]:
    record, task = records.get(new.decision), tasks.get(new.task)
    if record is not None:
        replaced = rerouted(record)
        return (episode(record),) if replaced is None else (episode(record), replaced)
    if task is not None:
        ended = outcome(task)
        return () if ended is None else (ended,)
    _log.warning("memory is not told of what is gone", decision=new.decision, task=new.task)
    return ()
