"""Learning from memory: everything, in order, through every kind of trouble. Against a real memory."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from hopper.memory.v1 import learning_service_pb2 as pb
from hopper.memory.v1.episode_pb2 import Episode, EpisodeOutcome, Feedback
from hopper.memory.v1.episodic_service_pb2 import RecordEpisodesRequest
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.learning_service_pb2_grpc import (
    LearningServiceServicer,
    add_LearningServiceServicer_to_server,
)
from hopper_common.rpc.channel import open_channel
from hopper_memory import app as memory_app
from hopper_memory.learning import Watchers
from hopper_router.convert import decision_to_bytes, spec_to_bytes
from hopper_router.episodes import DecisionRecord, episode
from hopper_router.lessons import CHUNK_TIME, PART_BYTES, LessonWatch
from hopper_router.model import Candidate, Decision, Factor, Lesson, Outcome, TaskSpec, Truth, Weighed
from hopper_testing.clock import ManualClock
from tests.memory.harness import RunningMemory
from tests.router.neighbours import Neighbour

SOON = 60.0
MILLISECOND = timedelta(milliseconds=1)
FORMAT = "notebook/1"


class Notebook:
    """
    A learner that writes everything down.

    Attributes:
        lessons: (position, decision) of everything it knows.
        chunks: How many lessons came at once, each time.
    """

    snapshot_format = FORMAT

    def __init__(self, *, learn: Callable[[Sequence[Lesson]], None] = lambda _: None) -> None:
        self.lessons: list[tuple[int, str]] = []
        self.last: Lesson | None = None
        self.chunks: list[int] = []
        self.restored: list[int] = []
        self.refuse: frozenset[int] = frozenset()
        self.padding = 0
        self._learn = learn

    @property
    def positions(self) -> list[int]:
        return [position for position, _ in self.lessons]

    def restore(self, snapshot: bytes, position: int) -> bool:
        if position in self.refuse:
            return False
        self.lessons = [(position, decision) for position, decision in json.loads(snapshot)["known"]]
        self.restored.append(position)
        return True

    def forget(self) -> None:
        self.lessons = []

    def apply(self, lessons: Sequence[Lesson]) -> None:
        self.chunks.append(len(lessons))
        self._learn(lessons)
        self.lessons += [(lesson.position, lesson.decision) for lesson in lessons]
        self.last = lessons[-1] if lessons else self.last

    def snapshot(self) -> bytes:
        return json.dumps({"known": self.lessons, "padding": "x" * self.padding}).encode()


@pytest.fixture
async def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningMemory]:
    # Otherwise those who are slow to learn, on a slow machine, are not waited for when feedback is given.
    monkeypatch.setattr(memory_app, "Watchers", partial(Watchers, patience=timedelta(hours=1)))
    running = RunningMemory(tmp_path / "hopper", ManualClock())
    await running.start()
    yield running
    await running.close()


@asynccontextmanager
async def learning(directory: Path, learner: Notebook, **options: Any) -> AsyncIterator[LessonWatch]:
    """A watch that runs, on the memory of a directory."""
    settings: dict[str, Any] = {
        "first_wait": MILLISECOND,
        "longest_wait": 20 * MILLISECOND,
        "snapshot_interval": timedelta(0),
        **options,
    }
    async with open_channel(f"unix:{directory / 'hopper.sock'}") as channel:
        watch = LessonWatch(channel, learner, **settings)
        task = asyncio.ensure_future(watch.run())
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled(), task.exception()


def decision(number: int) -> str:
    return f"decisions/d{number}"


async def teach(memory: RunningMemory, *numbers: int) -> None:
    """Record decisions that turn out well."""
    await memory.episodes.RecordEpisodes(
        RecordEpisodesRequest(
            episodes=[
                Episode(
                    decision=decision(number),
                    task=f"instances/global/tasks/t{number}",
                    instance="instances/global",
                    project="projects/web",
                    title=f"title {number}",
                    description="all of it",
                    tags=["a", "b"],
                    strategy="rules",
                )
                for number in numbers
            ],
            outcomes=[an_outcome(number) for number in numbers],
        ),
        wait_for_ready=True,  # it may have come back just now
    )


def an_outcome(number: int) -> EpisodeOutcome:
    said = EpisodeOutcome(
        decision=decision(number), outcome=Episode.OUTCOME_SUCCEEDED, attempts=1, worker="ann"
    )
    said.finish_time.FromMicroseconds(1_000_000 * (number + 1))
    return said


async def give(memory: RunningMemory, number: int) -> None:
    feedback = Feedback(match=Feedback.MATCH_BAD, better_project="projects/ops", author="bob")
    await memory.feedback.SubmitFeedback(SubmitFeedbackRequest(decision=decision(number), feedback=feedback))


async def learned(watch: LessonWatch, position: int) -> None:
    async with asyncio.timeout(SOON):
        while watch.position < position:
            await watch.progress.wait(after=watch.progress.count)


async def caught_up(watch: LessonWatch) -> None:
    async with asyncio.timeout(SOON):
        await watch.wait_caught_up()


def counted(position: int) -> list[int]:
    return list(range(1, position + 1))


# ---------------------------------------------------------------- lessons


async def test_a_lesson_is_learned_as_it_was_taught(memory: RunningMemory) -> None:
    await teach(memory, 1)
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 1)
        await give(memory, 1)
        # The feedback is answered when it is learned.
        assert learner.last == Lesson(
            position=2,
            instance="instances/global",
            decision=decision(1),
            title="title 1",
            description="all of it",
            tags=("a", "b"),
            truth=Truth.RIGHT,
            project="projects/ops",
            source="bob",
            weight=1.0,
            create_time=memory.clock.now(),
            sent_to="projects/web",
        )


async def test_what_a_decision_weighed_comes_back_with_how_it_went(memory: RunningMemory) -> None:
    """From the router's record through memory: how much each factor should count is learned of that."""

    def weighed(project: str, score: float, workload: float) -> Candidate:
        factors = (Factor("workload", workload, 0.25), Factor("learned", 0.5, 2.0))
        return Candidate(f"projects/{project}", score, 0.5, factors)

    made = Decision(
        Outcome.ROUTED,
        name=decision(1),
        task="instances/global/tasks/t1",
        instance="instances/global",
        project="projects/web",
        strategy="learned",
        candidates=(weighed("web", 1.5, 1.0), weighed("ops", 1.25, 0.5)),
        create_time=memory.clock.now(),
    )
    record = DecisionRecord(decision_to_bytes(made), spec_to_bytes(TaskSpec("mend it")))
    failed = an_outcome(1)
    failed.outcome = Episode.OUTCOME_FAILED
    await memory.episodes.RecordEpisodes(
        RecordEpisodesRequest(episodes=[episode(record)], outcomes=[failed]), wait_for_ready=True
    )
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 1)
    assert learner.last is not None
    assert (learner.last.truth, learner.last.sent_to) == (Truth.FAILED, "projects/web")
    assert learner.last.candidates == (
        Weighed("projects/web", 1.25, (("workload", 1.0),)),
        Weighed("projects/ops", 1.125, (("workload", 0.5),)),
    )


async def test_feedback_is_learned_when_it_is_answered(memory: RunningMemory) -> None:
    numbers = range(50)
    await teach(memory, *numbers)
    first, second = Notebook(), Notebook()
    async with (
        learning(memory.directory, first) as one,
        learning(memory.directory, second) as other,
    ):
        await learned(one, 50)
        await learned(other, 50)
        for number in numbers:
            await give(memory, number)
            assert first.positions[-1] == second.positions[-1] == 51 + number
    assert first.lessons == second.lessons
    assert first.positions == counted(100)


async def test_nothing_to_learn_is_up_to_date(memory: RunningMemory) -> None:
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        assert not watch.caught_up
        await caught_up(watch)
    assert learner.lessons == []
    assert not watch.caught_up


async def test_much_is_learned_in_order_and_in_chunks(memory: RunningMemory) -> None:
    for begin in range(0, 1500, 500):
        await teach(memory, *range(begin, begin + 500))
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 1500)
        assert watch.caught_up
    assert learner.positions == counted(1500)
    assert learner.chunks[0] == 1  # nobody knows yet how long they take


async def test_a_slow_learner_is_given_few_at_a_time(memory: RunningMemory) -> None:
    await teach(memory, *range(400))
    loop = asyncio.get_running_loop()

    def slowly(lessons: Sequence[Lesson]) -> None:
        until = loop.time() + 0.001 * len(lessons)
        while loop.time() < until:
            pass

    learner = Notebook(learn=slowly)
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 400)
    assert max(learner.chunks) <= 1000 * CHUNK_TIME


async def test_what_cannot_be_learned_is_left_out_and_logged(memory: RunningMemory) -> None:
    def stumble(lessons: Sequence[Lesson]) -> None:
        if any(lesson.position == 2 for lesson in lessons):
            raise ZeroDivisionError

    learner = Notebook(learn=stumble)
    with capture_logs() as logs:
        async with learning(memory.directory, learner) as watch:
            await caught_up(watch)
            for number in (1, 2, 3):
                await teach(memory, number)
                await learned(watch, number)
    assert learner.positions == [1, 3]
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (said["first"], said["last"]) == (2, 2)


# ---------------------------------------------------------------- trouble


async def test_memory_may_go_away_and_come_back(memory: RunningMemory) -> None:
    learner = Notebook()
    await teach(memory, 1)
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 1)
        await memory.stop()
        async with asyncio.timeout(SOON):
            while watch.caught_up:
                await watch.progress.wait(after=watch.progress.count)
        await memory.start()
        await teach(memory, 1, 2)
        await learned(watch, 2)
        assert learner.positions == [1, 2]
        assert learner.restored == []


async def test_memory_may_come_later(tmp_path: Path) -> None:
    learner = Notebook()
    async with learning(tmp_path, learner) as watch:
        memory = RunningMemory(tmp_path, ManualClock())
        await memory.start()
        try:
            await teach(memory, 1)
            await learned(watch, 1)
        finally:
            await memory.close()
    assert learner.positions == [1]


async def test_a_memory_that_knows_less_is_learned_anew(memory: RunningMemory, tmp_path: Path) -> None:
    await teach(memory, 1, 2, 3)
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 3)
        await memory.stop()
        with sqlite(memory) as connection:  # as a backup from before would have it
            connection.execute(sa.text("DELETE FROM lessons WHERE position > 1"))
        await memory.start()
        async with asyncio.timeout(SOON):
            while learner.positions != [1]:
                await watch.progress.wait(after=watch.progress.count)
        await caught_up(watch)
        assert watch.position == 1


def sqlite(memory: RunningMemory) -> Any:
    return sa.create_engine(f"sqlite:///{memory.directory / 'memory.db'}", poolclass=sa.NullPool).begin()


class Beyond(LearningServiceServicer):
    """A memory that teaches more than this router understands."""

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> AsyncIterator[pb.GetModelResponse]:
        return
        yield pb.GetModelResponse()

    async def WatchLessons(
        self, request_iterator: AsyncIterator[pb.WatchLessonsRequest], context: Any
    ) -> AsyncIterator[pb.WatchLessonsResponse]:
        await anext(request_iterator)
        beyond = pb.Lesson(position=1, truth=99)  # type: ignore[arg-type]
        plain = pb.Lesson(position=2, truth=pb.Lesson.TRUTH_NONE, decision=decision(2))
        plain.create_time.FromSeconds(1)
        yield pb.WatchLessonsResponse(lessons=[beyond, plain], head=2)
        async for _ in request_iterator:
            pass

    async def SaveModel(
        self, request_iterator: AsyncIterator[pb.SaveModelRequest], context: Any
    ) -> pb.SaveModelResponse:
        raise AssertionError("too little was learned for that")


async def test_what_only_a_newer_memory_teaches_is_passed_over(tmp_path: Path) -> None:
    service = pb.DESCRIPTOR.services_by_name["LearningService"]
    neighbour = Neighbour(
        tmp_path / "hopper.sock", (service, Beyond(), add_LearningServiceServicer_to_server)
    )
    await neighbour.start()
    learner = Notebook()
    try:
        async with learning(tmp_path, learner) as watch:
            await learned(watch, 2)
    finally:
        await neighbour.stop()
    assert learner.positions == [2]


# ---------------------------------------------------------------- snapshots


async def saved(memory: RunningMemory) -> list[int]:
    """The positions of all snapshots that memory has, newest first."""
    found: list[int] = []
    while True:
        request = pb.GetModelRequest(format=FORMAT, before_position=found[-1] if found else 0)
        try:
            positions = [part.position async for part in memory.learning.GetModel(request) if part.position]
        except Exception:
            return found
        found += positions


async def until_saved(memory: RunningMemory, position: int, *by: LessonWatch) -> None:
    """Wait until there is a snapshot of that position, and until those who may have sent it know."""
    async with asyncio.timeout(SOON):
        while (await saved(memory))[:1] != [position]:  # noqa: ASYNC110 - memory does not tell
            await asyncio.sleep(0.01)
        for watch in by:  # one that does not know yet would leave out the next
            if watch._upload is not None:
                await asyncio.wait({watch._upload})


async def test_a_start_goes_on_from_the_last_snapshot(memory: RunningMemory) -> None:
    learner = Notebook()
    learner.padding = 3 * PART_BYTES
    async with learning(memory.directory, learner, snapshot_every=10) as watch:
        await caught_up(watch)
        await teach(memory, *range(10))
        await learned(watch, 10)
        await until_saved(memory, 10)
        await teach(memory, 10)
        await learned(watch, 11)

    successor = Notebook()
    async with learning(memory.directory, successor) as watch:
        await learned(watch, 11)
    assert successor.restored == [10]
    assert successor.lessons == learner.lessons
    assert sum(successor.chunks) == 1


async def test_snapshots_are_made_every_so_many_lessons(memory: RunningMemory) -> None:
    async with learning(memory.directory, Notebook(), snapshot_every=5) as watch:
        await caught_up(watch)
        for begin in (0, 4, 5, 9):  # 4, 5, 9 and 10 lessons
            await teach(memory, *range(begin, {0: 4, 4: 5, 5: 9, 9: 10}[begin]))
            await learned(watch, {0: 4, 4: 5, 5: 9, 9: 10}[begin])
            if watch.position % 5 == 0:
                await until_saved(memory, watch.position, watch)
        assert await saved(memory) == [10, 5]


async def test_they_are_not_made_too_often(memory: RunningMemory) -> None:
    hour = timedelta(hours=1)
    async with learning(memory.directory, Notebook(), snapshot_every=1, snapshot_interval=hour) as watch:
        await caught_up(watch)
        await teach(memory, 1)
        await until_saved(memory, 1)
        await teach(memory, 1, 2)
        await learned(watch, 2)
        await give(memory, 2)  # it has been past the place where a snapshot would be made
    assert await saved(memory) == [1]


async def three_snapshots(memory: RunningMemory) -> None:
    async with learning(memory.directory, Notebook(), snapshot_every=1) as watch:
        await caught_up(watch)
        for number in (1, 2, 3):
            await teach(memory, number)
            await learned(watch, number)
            await until_saved(memory, number, watch)


async def test_a_snapshot_that_is_refused_leaves_the_one_before(memory: RunningMemory) -> None:
    await three_snapshots(memory)
    learner = Notebook()
    learner.refuse = frozenset({3})
    with capture_logs() as logs:
        async with learning(memory.directory, learner) as watch:
            await learned(watch, 3)
    assert (learner.restored, learner.positions) == ([2], [1, 2, 3])
    assert [entry["position"] for entry in logs if entry["log_level"] == "warning"] == [3]


async def test_when_all_are_refused_everything_is_learned_from_the_beginning(memory: RunningMemory) -> None:
    await three_snapshots(memory)
    learner = Notebook()
    learner.refuse = frozenset({1, 2, 3})
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 3)
    assert (learner.restored, learner.positions) == ([], [1, 2, 3])


async def test_a_snapshot_that_was_damaged_is_not_even_read(memory: RunningMemory) -> None:
    await three_snapshots(memory)
    await memory.stop()
    with sqlite(memory) as connection:
        newest = "(SELECT upload FROM models ORDER BY position DESC LIMIT 1)"
        connection.execute(sa.text(f"UPDATE model_parts SET data = x'00' WHERE upload = {newest}"))
    await memory.start()
    learner = Notebook()
    async with learning(memory.directory, learner) as watch:
        await learned(watch, 3)
    assert learner.restored == [2]


async def test_a_learner_that_breaks_on_a_snapshot_learns_without(memory: RunningMemory) -> None:
    class Fragile(Notebook):
        def restore(self, snapshot: bytes, position: int) -> bool:
            self.lessons = [(0, "half of it")]
            raise MemoryError

        def snapshot(self) -> bytes:
            raise ZeroDivisionError

    await three_snapshots(memory)
    learner = Fragile()
    with capture_logs() as logs:
        async with learning(memory.directory, learner, snapshot_every=1) as watch:
            await learned(watch, 3)
            await teach(memory, 4)
            await learned(watch, 4)
    assert learner.positions == [1, 2, 3, 4]
    said = {entry["event"] for entry in logs if entry["log_level"] == "error"}
    assert said == {"a snapshot could not be read", "a snapshot could not be made"}


async def test_of_two_routers_both_go_on(memory: RunningMemory) -> None:
    async with (
        learning(memory.directory, Notebook(), snapshot_every=2) as one,
        learning(memory.directory, Notebook(), snapshot_every=2) as other,
    ):
        await caught_up(one)
        await caught_up(other)
        for number in (2, 4):
            await teach(memory, number, number + 1)
            await learned(one, number)
            await learned(other, number)
            await until_saved(memory, number, one, other)
    assert await saved(memory) == [4, 2]


async def test_who_starts_while_memory_is_away_begins_with_what_was_kept(
    memory: RunningMemory, tmp_path: Path
) -> None:
    file = tmp_path / "learned.model"
    await teach(memory, 1, 2, 3)
    async with learning(memory.directory, Notebook(), file=file) as watch:
        await learned(watch, 3)
    assert file.stat().st_mode & 0o777 == 0o600
    await memory.stop()
    again = Notebook()
    async with learning(memory.directory, again, file=file) as watch:
        await learned(watch, 3)
        assert (again.positions, watch.position, watch.caught_up) == ([1, 2, 3], 3, False)
        await memory.start()
        await teach(memory, 4, 5)
        await learned(watch, 5)
        assert again.positions == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"", b"too short", bytes(200)])
async def test_a_damaged_file_is_no_file(memory: RunningMemory, tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "learned.model"
    file.write_bytes(damage)
    await memory.stop()
    learner = Notebook()
    async with learning(memory.directory, learner, file=file) as watch:
        await memory.start()
        await teach(memory, 1, 2)
        await learned(watch, 2)
    assert learner.positions == [1, 2]
    assert learner.restored == []


async def test_what_memory_does_not_keep_any_more_is_in_the_snapshots(memory: RunningMemory) -> None:
    await three_snapshots(memory)
    memory.clock.advance(timedelta(days=366))
    first = Notebook()
    async with learning(memory.directory, first, snapshot_every=1) as watch:
        await caught_up(watch)
        await teach(memory, 4, 5)
        await until_saved(memory, 5)
    newcomer, older = Notebook(), Notebook()
    older.refuse = frozenset({3, 5})
    for learner in (newcomer, older):
        async with learning(memory.directory, learner) as watch:
            await learned(watch, 5)
        assert learner.lessons == first.lessons
    assert (newcomer.restored, older.restored) == ([5], [2])


async def test_who_can_read_no_snapshot_learns_what_is_left(memory: RunningMemory) -> None:
    await three_snapshots(memory)
    memory.clock.advance(timedelta(days=366))
    async with learning(memory.directory, Notebook(), snapshot_every=1) as watch:
        await caught_up(watch)
        await teach(memory, 4)
        await until_saved(memory, 4)
    learner = Notebook()
    learner.refuse = frozenset({2, 3, 4})
    with capture_logs() as logs:
        async with learning(memory.directory, learner) as watch:
            await learned(watch, 4)
    assert learner.positions == [3, 4]
    assert [entry["before"] for entry in logs if entry["log_level"] == "error"] == [3]
