"""Telling memory: everything, in order, through every kind of trouble. Against a real log and a real server."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hopper.memory.v1 import episodic_service_pb2, episodic_service_pb2_grpc
from hopper.memory.v1.episode_pb2 import Episode, EpisodeOutcome
from hopper_common.database import Signal
from hopper_common.errors import (
    FieldViolation,
    HopperError,
    InvalidArgument,
    ServiceUnavailable,
    StorageUnavailable,
    UnknownField,
)
from hopper_common.eventlog import Event
from hopper_common.rpc.channel import open_channel
from hopper_common.timestamps import to_micros
from hopper_router import episodes, tables
from hopper_router.convert import decision_to_bytes, event_to_bytes, spec_to_bytes
from hopper_router.episodes import (
    DecisionRecord,
    EndedTask,
    EpisodeSender,
    batches,
    episode,
    outcome,
    rerouted,
)
from hopper_router.model import Candidate, Claim, Decision, Failure, Outcome, Task, TaskSpec, TaskState
from hopper_router.store_sql import EPISODES_SENT, EVENTS, Store
from hopper_testing.database import FaultyDatabase, temporary_database
from tests.router.neighbours import Neighbour

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
SPEC = TaskSpec(title="mend it", description="all of it", tags=("type:Bug",))


def a_decision(number: int = 1, **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "outcome": Outcome.ROUTED,
        "project": "projects/p",
        "confidence": 0.75,
        "strategy": "rules",
        "candidates": (Candidate("projects/p", 2.0, 0.75), Candidate("projects/q", 1.0, 0.25)),
        "name": f"decisions/{number}",
        "task": f"instances/global/tasks/{number}",
        "instance": "instances/global",
        "create_time": NOW,
    }
    return Decision(**{**values, **changes})


def a_task(number: int = 1, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": f"instances/global/tasks/{number}",
        "instance": "instances/global",
        "spec": SPEC,
        "state": TaskState.SUCCEEDED,
        "create_time": NOW,
        "update_time": NOW + timedelta(seconds=9),
        "ready_time": NOW,
        "finish_time": NOW + timedelta(seconds=9),
        "queue_time": NOW + timedelta(seconds=1),
        "first_start": NOW + timedelta(seconds=4),
        "decision": f"decisions/{number}",
        "attempt": 2,
        "claim": Claim("w1", 2, timedelta(minutes=1), None, NOW + timedelta(seconds=4)),
    }
    return Task(**{**values, **changes})


def a_record(
    decision: Decision, spec: TaskSpec = SPEC, parent_decision: str = "", replaced: str = ""
) -> DecisionRecord:
    return DecisionRecord(decision_to_bytes(decision), spec_to_bytes(spec), parent_decision, replaced)


def an_end(task: Task) -> EndedTask:
    failed = task.state in (TaskState.FAILED, TaskState.REJECTED)
    return EndedTask(
        state=task.state,
        decision=task.decision,
        finish_time=to_micros(task.finish_time or task.update_time),
        attempts=task.attempt,
        failure_reason=task.failure.reason if failed and task.failure else "",
        worker=task.claim.worker if task.claim else "",
        claim_time=to_micros(task.claim.start) if task.claim else None,
        queue_time=to_micros(task.queue_time),
        first_start=to_micros(task.first_start),
    )


# ---------------------------------------------------------------- what is said


def test_an_episode_is_the_decision_and_what_was_asked() -> None:
    said = episode(a_record(a_decision(), parent_decision="decisions/0"))

    assert (said.decision, said.parent_decision) == ("decisions/1", "decisions/0")
    assert (said.task, said.instance) == ("instances/global/tasks/1", "instances/global")
    assert (said.title, said.description, list(said.tags)) == ("mend it", "all of it", ["type:Bug"])
    assert (said.project, said.confidence, said.strategy) == ("projects/p", 0.75, "rules")
    assert said.decide_time.ToDatetime(UTC) == NOW
    assert [(candidate.project, candidate.confidence) for candidate in said.candidates] == [
        ("projects/p", 0.75),
        ("projects/q", 0.25),
    ]


def test_a_long_description_is_cut_between_characters() -> None:
    said = episode(a_record(a_decision(), replace(SPEC, description="x" + "ü" * 4000)))

    assert said.description == "x" + "ü" * 1999
    assert len(said.description.encode()) <= 4000


def test_a_confidence_a_hair_above_one_is_one() -> None:
    decision = a_decision(confidence=1.0000000002, candidates=(Candidate("projects/p", 1, 1.0000000002),))
    said = episode(a_record(decision))

    assert (said.confidence, said.candidates[0].confidence) == (1, 1)


def test_a_later_decision_reroutes_the_one_before() -> None:
    said = rerouted(a_record(a_decision(3), replaced="decisions/2"))

    assert said is not None
    assert (said.decision, said.outcome) == ("decisions/2", Episode.OUTCOME_REROUTED)
    assert said.finish_time.ToDatetime(UTC) == NOW
    assert said.rerouted_to == "projects/p"


def test_a_first_decision_reroutes_nothing() -> None:
    assert rerouted(a_record(a_decision())) is None


def test_an_outcome_is_how_the_task_ended() -> None:
    said = outcome(an_end(a_task()))

    assert said is not None
    assert (said.decision, said.outcome) == ("decisions/1", Episode.OUTCOME_SUCCEEDED)
    assert (said.worker, said.attempts, said.failure_reason) == ("w1", 2, "")
    assert said.finish_time.ToDatetime(UTC) == NOW + timedelta(seconds=9)
    assert said.queue_duration.seconds == 3
    assert said.run_duration.seconds == 5


@pytest.mark.parametrize("state", TaskState)
def test_only_what_ended_has_an_outcome(state: TaskState) -> None:
    said = outcome(an_end(a_task(state=state)))

    if state.final:
        assert said is not None
        assert Episode.Outcome.Name(said.outcome) == f"OUTCOME_{state.name}"
    else:
        assert said is None


def test_what_was_never_decided_has_no_outcome() -> None:
    assert outcome(an_end(a_task(state=TaskState.CANCELLED, decision=""))) is None


def test_a_failure_has_its_reason() -> None:
    failed = outcome(an_end(a_task(state=TaskState.FAILED, failure=Failure("NO_NETWORK", "secret text"))))
    cancelled = outcome(an_end(a_task(state=TaskState.CANCELLED, failure=Failure("NO_NETWORK"))))

    assert failed is not None
    assert cancelled is not None
    assert (failed.failure_reason, cancelled.failure_reason) == ("NO_NETWORK", "")


def test_what_was_never_claimed_took_no_time() -> None:
    said = outcome(an_end(a_task(state=TaskState.CANCELLED, claim=None, first_start=None)))

    assert said is not None
    assert not said.HasField("queue_duration")
    assert not said.HasField("run_duration")


def test_a_clock_that_was_set_back_makes_no_negative_lengths() -> None:
    said = outcome(an_end(a_task(queue_time=NOW + timedelta(hours=1), finish_time=NOW)))

    assert said is not None
    assert said.HasField("queue_duration")
    assert said.HasField("run_duration")
    assert (said.queue_duration.seconds, said.run_duration.seconds) == (0, 0)


def test_memory_hears_of_decisions_and_ends() -> None:
    assert {
        "SUBMIT",
        "DECIDE",
        "COMPLETE",
        "FAIL",
        "TIME_OUT",
        "REJECT",
        "CANCEL",
        "CHILDREN_DONE",
        "CHILD_FAILED",
    } == episodes.TOPICS


@given(st.lists(st.integers(0, 4000), max_size=1200))
def test_batches_are_everything_in_order_and_small_enough(sizes: list[int]) -> None:
    said: list[episodes.Said] = [
        Episode(decision=f"decisions/{number}", description="x" * size) for number, size in enumerate(sizes)
    ]
    made = list(batches(said))

    assert [item for batch in made for item in batch] == said
    assert all(0 < len(batch) <= episodes.MOST_ITEMS for batch in made)


def test_batches_fit_memorys_limit() -> None:
    said: list[episodes.Said] = [
        Episode(decision=f"decisions/{number}", description="x" * 4000, tags=["y" * 100] * 64)
        for number in range(500)
    ]
    made = list(batches(said))

    assert len(made) == 2
    for batch in made:
        request = episodic_service_pb2.RecordEpisodesRequest(
            episodes=[item for item in batch if isinstance(item, Episode)]
        )
        assert request.ByteSize() <= episodes.MOST_BYTES


# ---------------------------------------------------------------- the two ends


class Router:
    """The router's log and cursor as they are, on a real database; its records are in a dictionary."""

    def __init__(self, db: FaultyDatabase) -> None:
        self.db = db
        self.known: dict[str, DecisionRecord] = {}
        self.tasks: dict[str, Task] = {}

    async def decide(self, *numbers: int, task: int | None = None, earlier: Sequence[int] = ()) -> None:
        """Decide on tasks of these numbers, or several times on one."""
        for number in numbers:
            decision = a_decision(number, task=f"instances/global/tasks/{task or number}")
            replaced = f"decisions/{earlier[-1]}" if earlier else ""
            self.known[decision.name] = a_record(decision, replaced=replaced)
        tasks = [
            a_task(task or number, state=TaskState.SUBMITTED, decision=f"decisions/{number}")
            for number in numbers
        ]
        await self.log("DECIDE", *tasks)

    async def finish(self, number: int, kind: str = "COMPLETE", **changes: Any) -> None:
        task = a_task(number, **changes)
        self.tasks[task.name] = task
        await self.log(kind, task)

    async def log(self, kind: str, *tasks: Task) -> None:
        bodies = [(task.name, event_to_bytes(kind, None, task, None)) for task in tasks]
        await self.db.write(
            lambda conn: [
                EVENTS.append(conn, topic=kind, key=name, body=body, now=NOW) for name, body in bodies
            ]
        )

    async def load_cursor(self) -> int:
        return await self.db.read(lambda conn: Store(conn).episodes_sent())

    async def save_cursor(self, version: int) -> None:
        await self.db.write(lambda conn: Store(conn).put_value(EPISODES_SENT, b"%d" % version))

    def tail(self, after: int) -> AsyncIterator[list[Event]]:
        return EVENTS.tail(self.db, after=after)

    async def records(
        self, decisions: Collection[str], first: Collection[str]
    ) -> Mapping[str, DecisionRecord]:
        return {name: self.known[name] for name in decisions if name in self.known}

    async def ended(self, tasks: Collection[str]) -> Mapping[str, EndedTask]:
        return {name: an_end(self.tasks[name]) for name in tasks if name in self.tasks}

    async def until_sent(self) -> None:
        """Wait until the cursor is at the end of the log."""
        head = await self.db.read(EVENTS.head)
        async with asyncio.timeout(60):
            commits = self.db.committed.count
            while await self.load_cursor() < head:
                commits = await self.db.committed.wait(after=commits)


class Memory(episodic_service_pb2_grpc.EpisodicMemoryServiceServicer):
    """Memory's contract: a repeat changes nothing, and an end prevails over REROUTED."""

    def __init__(self) -> None:
        self.episodes: dict[str, Episode] = {}
        self.outcomes: dict[str, EpisodeOutcome] = {}
        self.requests: list[list[str]] = []
        self.called = Signal()
        self.recorded = Signal()
        self.before: deque[HopperError] = deque()
        self.after: deque[HopperError] = deque()
        self.poison = ""
        self.gate = asyncio.Event()
        self.gate.set()

    async def RecordEpisodes(self, request: Any, context: Any) -> Any:
        names = [item.decision for item in (*request.episodes, *request.outcomes)]
        self.requests.append(names)
        self.called.fire()
        await self.gate.wait()
        if self.before:
            raise self.before.popleft()
        if self.poison in names:
            raise InvalidArgument(violations=[FieldViolation("episodes[0].title", "is odd")])
        for said in request.episodes:
            self.episodes.setdefault(said.decision, said)
        for said in request.outcomes:
            known = self.outcomes.get(said.decision)
            if known is None or known.outcome == Episode.OUTCOME_REROUTED:
                self.outcomes[said.decision] = said
        self.recorded.fire()
        if self.after:
            raise self.after.popleft()
        return episodic_service_pb2.RecordEpisodesResponse()

    async def until(self, decision: str) -> None:
        """Wait until an episode is recorded."""
        async with asyncio.timeout(60):
            seen = self.recorded.count
            while decision not in self.episodes:
                seen = await self.recorded.wait(after=seen)


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    async with temporary_database(
        metadata=tables.metadata, migrations="hopper_router.migrations", service="router"
    ) as db:
        yield Router(db)


@pytest.fixture
async def memory() -> Memory:
    return Memory()  # type: ignore[abstract]  # only what the router calls; the rest answers UNIMPLEMENTED


@pytest.fixture
async def server(memory: Memory, tmp_path: Path) -> AsyncIterator[Neighbour]:
    server = Neighbour(
        tmp_path / "memory.sock",
        (
            episodic_service_pb2.DESCRIPTOR.services_by_name["EpisodicMemoryService"],
            memory,
            episodic_service_pb2_grpc.add_EpisodicMemoryServiceServicer_to_server,
        ),
    )
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def sending(server: Neighbour, router: Router, **options: Any) -> AsyncIterator[None]:
    """A sender that runs, with waits short enough for tests."""
    quick = {"first_wait": MILLISECOND, "longest_wait": 20 * MILLISECOND, "linger": timedelta()}
    patient = {"timeout": timedelta(seconds=60)}
    async with open_channel(server.address) as channel:
        sender = EpisodeSender(channel, router, **{**quick, **patient, **options})
        running = asyncio.create_task(sender.run())
        try:
            yield
        finally:
            running.cancel()
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended


# ---------------------------------------------------------------- saying it


async def test_memory_learns_of_a_task_from_its_decision_to_its_end(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    async with sending(server, router):
        await router.decide(1)
        await router.log("CLAIM", a_task(1, state=TaskState.RUNNING))
        await router.finish(1)
        await router.until_sent()

    assert memory.episodes == {"decisions/1": episode(router.known["decisions/1"])}
    assert memory.outcomes == {"decisions/1": outcome(an_end(a_task(1)))}


async def test_an_open_task_has_no_outcome_whatever_happens_to_it(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    task = a_task(1, state=TaskState.QUEUED)
    router.tasks[task.name] = task
    async with sending(server, router):
        await router.log("TIME_OUT", task)  # a topic that memory hears of, and a state that is not final
        await router.until_sent()

    assert memory.requests == []


async def test_a_task_decided_again_is_rerouted_and_ends_once(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    async with sending(server, router):
        await router.decide(1, task=1)
        await router.decide(2, task=1, earlier=[1])
        await router.decide(3, task=1, earlier=[1, 2])
        await router.finish(1, decision="decisions/3")
        await router.until_sent()

    assert set(memory.episodes) == {"decisions/1", "decisions/2", "decisions/3"}
    assert {name: said.outcome for name, said in memory.outcomes.items()} == {
        "decisions/1": Episode.OUTCOME_REROUTED,
        "decisions/2": Episode.OUTCOME_REROUTED,
        "decisions/3": Episode.OUTCOME_SUCCEEDED,
    }


async def test_a_long_log_is_sent_in_order_and_in_batches(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await router.decide(*range(1, 1201))
    async with sending(server, router, linger=timedelta(hours=1)):  # which full batches do not wait for
        await router.until_sent()

    assert [name for names in memory.requests for name in names] == [f"decisions/{n}" for n in range(1, 1201)]
    assert [len(names) for names in memory.requests] == [500, 500, 200]


async def test_what_comes_soon_after_much_is_gathered(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    pauses: list[float] = []
    gathering, enough = asyncio.Event(), asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        gathering.set()
        await enough.wait()

    await router.decide(*range(1, 101))
    async with sending(server, router, linger=timedelta(hours=1), pause=pause):
        await gathering.wait()
        for number in (101, 104, 107):
            await router.decide(number, number + 1, number + 2)
        enough.set()
        await router.until_sent()

    assert [len(names) for names in memory.requests] == [100, 9]
    assert pauses[0] == 100 * episodes._GATHER


async def test_one_that_comes_alone_is_sent_at_once(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    async with sending(server, router, linger=timedelta(hours=1)):
        for number in range(1, 4):
            await router.decide(number)
            async with asyncio.timeout(60):  # each was alone: nobody waits for the hour
                await router.until_sent()

    assert [len(names) for names in memory.requests] == [1, 1, 1]


# ---------------------------------------------------------------- trouble


async def test_nothing_is_lost_while_memory_is_down(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await server.stop()
    async with sending(server, router):
        for number in range(1, 6):
            await router.decide(number)
            await router.finish(number)
        assert memory.requests == []
        await server.start()
        await router.until_sent()

    assert set(memory.episodes) == set(memory.outcomes) == {f"decisions/{number}" for number in range(1, 6)}


async def test_what_memory_had_no_time_to_acknowledge_is_sent_again(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    memory.after.append(ServiceUnavailable())
    async with sending(server, router):
        await router.decide(1)
        await router.until_sent()

    assert memory.requests == [["decisions/1"], ["decisions/1"]]


async def test_a_memory_that_is_too_slow_is_asked_again(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    memory.gate.clear()
    async with sending(server, router, timeout=timedelta(seconds=1)):
        await router.decide(1)
        await memory.called.wait(after=1)
        memory.gate.set()
        await router.until_sent()

    assert set(memory.episodes) == {"decisions/1"}


async def test_a_router_started_again_goes_on_where_it_was(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    async with sending(server, router):
        await router.decide(1)
        await router.until_sent()
    await router.decide(2)
    async with sending(server, router):
        await router.until_sent()

    assert memory.requests == [["decisions/1"], ["decisions/2"]]


async def test_a_router_that_died_before_it_noted_how_far_it_was_sends_again(
    server: Neighbour, router: Router, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = asyncio.Event()

    async def die(version: int) -> None:
        noting.set()
        await asyncio.Event().wait()

    await router.decide(1)
    with monkeypatch.context() as patch:
        patch.setattr(router, "save_cursor", die)
        async with sending(server, router):
            await noting.wait()
    async with sending(server, router):
        await router.until_sent()

    assert memory.requests == [["decisions/1"], ["decisions/1"]]


async def test_a_database_that_cannot_be_read_for_a_moment_is_waited_for(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await router.decide(1)
    for _ in range(5):
        router.db.set_next_error(StorageUnavailable(service="router"), at="read")
    async with sending(server, router):
        await memory.until("decisions/1")


async def test_a_cursor_that_cannot_be_written_for_a_moment_is_written_later(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await router.decide(1)
    for _ in range(3):
        router.db.set_next_error(StorageUnavailable(service="router"))
    async with sending(server, router):
        await router.until_sent()

    assert memory.requests == [["decisions/1"]]


async def test_one_that_memory_refuses_for_ever_holds_up_no_other(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    memory.poison = "decisions/6"
    await router.decide(*range(1, 11))
    with capture_logs() as logs:
        async with sending(server, router):
            await router.until_sent()

    assert set(memory.episodes) == {f"decisions/{number}" for number in range(1, 11)} - {"decisions/6"}
    (told,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (told["decision"], told["fields"]) == ("decisions/6", ["episodes[0].title"])


async def test_a_memory_that_is_older_is_waited_for(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    memory.before.extend([UnknownField(), UnknownField()])
    await router.decide(1, 2)
    async with sending(server, router):
        await router.until_sent()

    assert set(memory.episodes) == {"decisions/1", "decisions/2"}
    assert len(memory.requests) == 3


async def test_a_log_trimmed_too_far_is_sent_from_where_it_begins(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await router.decide(1, 2, 3)
    await router.db.write(lambda conn: EVENTS.trim(conn, before=3))
    with capture_logs() as logs:
        async with sending(server, router):
            await router.until_sent()

    assert set(memory.episodes) == {"decisions/3"}
    assert [entry["oldest"] for entry in logs if entry["log_level"] == "error"] == [3]


async def test_a_log_restored_from_a_backup_is_sent_again(
    server: Neighbour, router: Router, memory: Memory
) -> None:
    await router.decide(1, 2)
    await router.save_cursor(99)
    async with sending(server, router):
        await memory.until("decisions/2")
        await router.decide(3)
        await memory.until("decisions/3")

    assert set(memory.episodes) == {"decisions/1", "decisions/2", "decisions/3"}


async def test_what_is_gone_is_told_to_the_log(server: Neighbour, router: Router, memory: Memory) -> None:
    await router.decide(1, 2)
    del router.known["decisions/1"]
    with capture_logs() as logs:
        async with sending(server, router):
            await router.until_sent()

    assert set(memory.episodes) == {"decisions/2"}
    assert [entry["decision"] for entry in logs if entry["log_level"] == "warning"] == ["decisions/1"]


async def test_it_ends_when_the_database_is_closed(server: Neighbour, router: Router) -> None:
    async with open_channel(server.address) as channel:
        running = asyncio.create_task(EpisodeSender(channel, router).run())
        await router.db.close()

        await asyncio.wait_for(running, 60)
