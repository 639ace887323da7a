"""
Tells memory every decision, and what came of it, without anyone's help.

The router's own log is the outbox: whatever decides or ends a task writes an event in the same transaction, and
the sender here reads the log from its cursor on, in order, and moves the cursor when memory has acknowledged.

    log ── DECIDE ───────────► Episode of the new decision, and REROUTED for the one it replaces
        ── a final state ────► EpisodeOutcome of the decision in force
                                       │
    cursor ◄── acknowledged ◄── RecordEpisodes, at most 500 of each and 3 MiB

So nothing is lost when memory is down or either of the two restarts, and something may be sent twice, which
memory does not mind. What is sent is read when it is sent, not when it happened: a decision never changes, and
neither does a task in a final state.

Memory may refuse an episode as invalid. It would for ever, and hold up all that follow: so such a batch is
halved until the one at fault is alone, which is named in the log and left out. A refusal that an upgrade of
memory would mend (a field it does not know) is waited out like any other trouble.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration

from hopper.memory.v1.episode_pb2 import Episode, EpisodeCandidate, EpisodeOutcome
from hopper.memory.v1.episodic_service_pb2 import RecordEpisodesRequest
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
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
from hopper_common.timestamps import to_proto
from hopper_router.backoff import Backoff
from hopper_router.convert import STATE_FROM_PROTO, event_from_bytes
from hopper_router.model import Decision, Task, TaskSpec, TaskState
from hopper_router.recall import decision_of, is_short
from hopper_router.transitions import TABLE
from hopper_router.transitions import Event as Transition

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


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """
    A decision with what memory wants to know besides.

    Attributes:
        spec: What the task asks for.
        parent_decision: The decision one level up that handed the task here; "" at the top.
        earlier_decisions: About the same task, before this one, oldest first.
    """

    decision: Decision
    spec: TaskSpec
    parent_decision: str = ""
    earlier_decisions: tuple[str, ...] = ()


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

    async def records(self, decisions: Collection[str]) -> Sequence[DecisionRecord]:
        """The decisions of these names, in any order; those that do not exist are left out."""
        ...

    async def tasks(self, names: Collection[str]) -> Mapping[str, Task]:
        """The tasks of these names, by name, as they are now; those that do not exist are left out."""
        ...


# What is said, as functions.


def episode(record: DecisionRecord) -> Episode:
    """A decision as memory keeps it."""
    decision, spec = record.decision, record.spec
    return Episode(
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
        decide_time=to_proto(decision.create_time),
        candidates=[
            EpisodeCandidate(project=candidate.project, confidence=_share(candidate.confidence))
            for candidate in decision.candidates[:_MOST_CANDIDATES]
        ],
    )


def rerouted(record: DecisionRecord) -> EpisodeOutcome | None:
    """What a decision means for the one it replaces; None if it is the task's first."""
    # Those before that one were told when it replaced them.
    if not record.earlier_decisions:
        return None
    return EpisodeOutcome(
        decision=record.earlier_decisions[-1],
        outcome=Episode.OUTCOME_REROUTED,
        finish_time=to_proto(record.decision.create_time),
    )


def outcome(task: Task) -> EpisodeOutcome | None:
    """What came of the decision in force of a task; None while it is open, or if nothing was decided."""
    if not task.state.final or not task.decision:
        return None
    said = EpisodeOutcome(
        decision=task.decision,
        outcome=_OUTCOMES[task.state],
        finish_time=to_proto(task.finish_time or task.update_time),
        attempts=task.attempt,
    )
    if task.failure is not None and task.state in (TaskState.FAILED, TaskState.REJECTED):
        said.failure_reason = task.failure.reason
    if task.claim is not None:
        said.worker = task.claim.worker
        said.run_duration.CopyFrom(_length((task.finish_time or task.update_time) - task.claim.start))
    if task.first_start is not None and task.queue_time is not None:
        said.queue_duration.CopyFrom(_length(task.first_start - task.queue_time))
    return said


_OUTCOMES: Final = {
    state: Episode.Outcome.Value(f"OUTCOME_{state.name}") for state in TaskState if state.final
}


def _cut(text: str, most: int) -> str:
    """The beginning of a text, at most that many bytes of it."""
    return text.encode()[:most].decode(errors="ignore")


def _share(value: float) -> float:
    """Sums of floats may end a hair above 1, and memory is strict."""
    return min(max(value, 0.0), 1.0)


def _length(length: timedelta) -> Duration:
    """A clock that was set back makes no negative lengths."""
    return to_proto(max(length, timedelta()))


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


def _request(said: Iterable[Said]) -> RecordEpisodesRequest:
    request = RecordEpisodesRequest()
    for item in said:
        if isinstance(item, Episode):
            request.episodes.append(item)
        else:
            request.outcomes.append(item)
    return request


@dataclass(frozen=True, slots=True)
class _News:
    """What an event is about: a decision that was made, or else a task that ended."""

    decision: str = ""
    task: str = ""


def _news(events: Iterable[Event]) -> Iterator[_News]:
    for event in events:
        if event.topic not in TOPICS:
            continue
        if is_short(event):
            yield _News(task=event.key) if event.topic == "COMPLETE" else _News(decision=decision_of(event))
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
        linger: How long to let the log gather between two requests, unless more is waiting already.
        timeout: How long memory may take for one request.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        source: EpisodeSource,
        *,
        first_wait: timedelta = timedelta(milliseconds=200),
        longest_wait: timedelta = timedelta(seconds=10),
        linger: timedelta = timedelta(milliseconds=250),
        timeout: timedelta = timedelta(seconds=10),
    ) -> None:
        self._memory = EpisodicMemoryServiceStub(channel)
        self._source = source
        self._memory_backoff = Backoff("memory", first=first_wait, longest=longest_wait)
        self._source_backoff = Backoff("episodes of the log", first=first_wait, longest=longest_wait)
        self._linger = linger.total_seconds()
        self._timeout = timeout.total_seconds()
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
            began = asyncio.get_running_loop().time()
            for batch in batches(await self._said(events)):
                await self._send(batch)
            self._cursor = events[-1].version
            await self._source.save_cursor(self._cursor)
            self._source_backoff.worked()
            # What comes in has the right of way: telling takes a fifth of the time at most, and catches up later.
            took = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(self._linger if len(events) < MOST_ITEMS else 0.0, 4 * took))

    def _start_over(self, error: ResumeTooOld) -> None:
        # The log was trimmed past us, or the database was restored from a backup and is behind us. What is
        # still there is sent; what memory has already changes nothing.
        oldest = int(error.metadata["oldest"])
        _log.error("the log does not go on where memory was told", cursor=self._cursor, oldest=oldest)
        self._cursor = oldest - 1

    async def _said(self, events: Iterable[Event]) -> list[Said]:
        """Everything that events say to memory, in their order."""
        news = list(_news(events))
        decisions = [new.decision for new in news if new.decision]
        ended = [new.task for new in news if new.task]
        records = await self._source.records(decisions) if decisions else ()
        by_name = {record.decision.name: record for record in records}
        tasks = await self._source.tasks(ended) if ended else {}
        said: list[Said] = []
        for new in news:
            found = _of_decision(by_name.get(new.decision)) if new.decision else _of_task(tasks.get(new.task))
            if found is None:
                _log.warning("memory is not told of what is gone", decision=new.decision, task=new.task)
            said.extend(found or ())
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


def _of_decision(record: DecisionRecord | None) -> list[Said] | None:
    if record is None:
        return None
    replaced = rerouted(record)
    return [episode(record)] if replaced is None else [episode(record), replaced]


def _of_task(task: Task | None) -> list[Said] | None:
    if task is None:
        return None
    ended = outcome(task)
    return [] if ended is None else [ended]
