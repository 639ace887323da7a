"""The LearningService over real gRPC: lessons as they come, feedback that waits for who learns, models."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from hopper.memory.v1.episode_pb2 import Episode, Feedback
from hopper.memory.v1.learning_service_pb2 import (
    GetModelRequest,
    Lesson,
    SaveModelRequest,
    SaveModelResponse,
    WatchLessonsRequest,
    WatchLessonsResponse,
)
from hopper_common.timestamps import to_proto
from hopper_memory import app
from hopper_memory.learning import MOST_WATCHERS, PATIENCE, Watchers
from hopper_testing.clock import ManualClock
from tests.memory.harness import RunningMemory, refusal, violations
from tests.memory.samples import decision
from tests.memory.test_servicer import BAD, GOOD, episode, get, give, outcome, record

CODE = grpc.StatusCode
SOON = 60.0
PATIENCE_SECONDS = PATIENCE.total_seconds()
HOUR = timedelta(hours=1)


class Learner:
    """A router as memory sees it, with its answers in the test's hand."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def hear(self) -> WatchLessonsResponse:
        async with asyncio.timeout(SOON):
            response = await self.call.read()
        assert isinstance(response, WatchLessonsResponse), "the stream has ended"
        return response

    async def hear_positions(self) -> list[int]:
        return [lesson.position for lesson in (await self.hear()).lessons]

    async def acknowledge(self, position: int) -> None:
        await self.call.write(WatchLessonsRequest(position=position))

    async def keep_up(self) -> None:
        while True:
            response = await self.call.read()
            await self.acknowledge(response.head)


@asynccontextmanager
async def learner(memory: RunningMemory, position: int = 0) -> AsyncIterator[Learner]:
    call = memory.learning.WatchLessons()
    await call.write(WatchLessonsRequest(position=position))
    try:
        yield Learner(call)
    finally:
        call.cancel()


@asynccontextmanager
async def keeping_up(memory: RunningMemory) -> AsyncIterator[None]:
    async with learner(memory) as quick:
        await quick.hear()
        task = asyncio.ensure_future(quick.keep_up())
        try:
            yield
        finally:
            task.cancel()


async def decided(memory: RunningMemory, *numbers: int, **fields: Any) -> None:
    await record(memory, *(episode(number, strategy="rules", **fields) for number in numbers))


@pytest.fixture
async def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningMemory]:
    """A memory that waits for whoever has to learn as long as they take."""
    monkeypatch.setattr(app, "Watchers", partial(Watchers, patience=HOUR))
    running = RunningMemory(tmp_path / "hopper", ManualClock())
    await running.start()
    yield running
    await running.close()


class TestWatchLessons:
    async def test_a_lesson_comes_as_soon_as_it_is_taught(self, memory: RunningMemory) -> None:
        await decided(memory, 1, title="login", description="fails", tags=["a", "b"])
        async with learner(memory) as router:
            assert await router.hear() == WatchLessonsResponse()
            await give(memory, 1, Feedback(match=Feedback.MATCH_BAD, author="ann"))
            assert await router.hear() == WatchLessonsResponse(
                lessons=[
                    Lesson(
                        position=1,
                        instance="instances/global",
                        decision=decision(1),
                        title="login",
                        description="fails",
                        tags=["a", "b"],
                        truth=Lesson.TRUTH_WRONG,
                        project="projects/web",
                        source="ann",
                        weight=1,
                        create_time=to_proto(memory.clock.now()),
                        sent_to="projects/web",
                    )
                ],
                head=1,
            )

    async def test_an_outcome_teaches_too(self, memory: RunningMemory) -> None:
        async with learner(memory) as router:
            await router.hear()
            await decided(memory, 1)
            await record(memory, outcomes=[outcome(1, worker="ann")])
            (lesson,) = (await router.hear()).lessons
            assert (lesson.truth, lesson.source, lesson.weight) == (Lesson.TRUTH_RIGHT, "ann", 0.5)

    async def test_each_lesson_comes_once_in_the_one_order_however_many_teach(
        self, memory: RunningMemory
    ) -> None:
        numbers = range(120)
        await decided(memory, *numbers)

        async def learned(after: int) -> list[tuple[int, str]]:
            heard: list[tuple[int, str]] = []
            async with learner(memory, after) as router:
                while not heard or heard[-1][0] < len(numbers):
                    response = await router.hear()
                    heard += [(lesson.position, lesson.decision) for lesson in response.lessons]
                    await router.acknowledge(response.head)
            return heard

        async with asyncio.TaskGroup() as group:
            early = [group.create_task(learned(0)) for _ in range(3)]
            for number in numbers:
                group.create_task(give(memory, number, GOOD))
        first = early[0].result()
        assert [position for position, _ in first] == [number + 1 for number in numbers]
        assert {said for _, said in first} == {decision(number) for number in numbers}
        assert all(other.result() == first for other in early)
        assert await learned(100) == first[100:]

    async def test_a_restart_goes_on_where_it_was(self, memory: RunningMemory) -> None:
        await decided(memory, 1, 2)
        await give(memory, 1, GOOD)
        await memory.restart()
        await give(memory, 2, GOOD)
        async with learner(memory, 1) as router:
            assert await router.hear_positions() == [2]

    async def test_a_position_that_never_was_is_refused(self, memory: RunningMemory) -> None:
        await decided(memory, 1)
        await give(memory, 1, GOOD)
        async with learner(memory, 2) as router:
            await refusal(_drained(router), CODE.OUT_OF_RANGE, "RESUME_TOO_OLD", oldest="1", asked="2")

    async def test_the_first_message_says_where_to_begin(self, memory: RunningMemory) -> None:
        call = memory.learning.WatchLessons()
        await call.done_writing()
        await refusal(call.read(), CODE.INVALID_ARGUMENT, "INVALID_REQUEST")

    async def test_what_is_said_later_is_checked_too(self, memory: RunningMemory) -> None:
        async with learner(memory) as router:
            await router.hear()
            await router.acknowledge(-1)
            assert await violations(_drained(router)) == {"position": "must be at least 0"}

    async def test_only_so_many_are_told(self, memory: RunningMemory) -> None:
        calls = [memory.learning.WatchLessons() for _ in range(MOST_WATCHERS)]
        for call in calls:
            await call.write(WatchLessonsRequest())
            await Learner(call).hear()
        async with learner(memory) as late:
            error = await refusal(_drained(late), CODE.RESOURCE_EXHAUSTED, "OVERLOADED", service="memory")
            assert error.retry_after is not None
        calls.pop().cancel()
        # A place is free as soon as the server has noticed.
        while True:
            async with learner(memory) as next_one:
                if await _is_told(next_one):
                    break
        for call in calls:
            call.cancel()


async def _drained(router: Learner) -> None:
    """Read to the end, which is an error."""
    async with asyncio.timeout(SOON):
        while True:
            await router.hear()


async def _is_told(router: Learner) -> bool:
    try:
        await router.hear()
    except grpc.aio.AioRpcError as error:
        if error.code() is CODE.RESOURCE_EXHAUSTED:
            return False
        raise
    return True


class TestReadYourOwnFeedback:
    async def test_feedback_is_answered_when_all_have_learned_it(self, patient: RunningMemory) -> None:
        memory = patient
        await decided(memory, 1)
        async with learner(memory) as first, learner(memory) as second:
            await first.hear()
            await second.hear()
            given = asyncio.ensure_future(give(memory, 1, GOOD))
            assert await first.hear_positions() == await second.hear_positions() == [1]
            # It is durable, and others may read it, while its giver waits.
            assert len((await get(memory, 1)).feedback) == 1
            await first.acknowledge(1)
            assert not given.done()
            await second.acknowledge(1)
            await given

    async def test_it_waits_for_the_slow_no_longer_than_a_quarter_of_a_second(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watchers: list[Watchers] = []

        def made() -> Watchers:
            watchers.append(Watchers())
            return watchers[-1]

        monkeypatch.setattr(app, "Watchers", made)
        memory = RunningMemory(tmp_path / "hopper", ManualClock())
        await memory.start()
        await decided(memory, 1, 2, 3)
        async with learner(memory) as slow:
            await slow.hear()
            began = time.monotonic()
            await give(memory, 1, GOOD)
            assert time.monotonic() - began >= PATIENCE_SECONDS - 0.05
            # Not again, until it has caught up.
            monkeypatch.setattr(watchers[0], "_patience", HOUR.total_seconds())
            await give(memory, 2, GOOD)
            heard: list[int] = []
            while heard[-1:] != [2]:
                heard += await slow.hear_positions()
            await slow.acknowledge(1)
            await slow.acknowledge(2)
            while not all(each.awaited for each in watchers[0]._watchers):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
            given = asyncio.ensure_future(give(memory, 3, GOOD))
            assert await slow.hear_positions() == [3]
            assert not given.done()
            await slow.acknowledge(3)
            await given
        await memory.close()

    async def test_who_leaves_is_not_waited_for(self, patient: RunningMemory) -> None:
        memory = patient
        await decided(memory, 1)
        async with learner(memory) as router:
            await router.hear()
            given = asyncio.ensure_future(give(memory, 1, GOOD))
            await router.hear()
            router.call.cancel()
            await given

    async def test_who_only_listens_is_not_waited_for(self, patient: RunningMemory) -> None:
        memory = patient
        await decided(memory, 1, 2)
        async with learner(memory) as listener:
            await listener.hear()
            await listener.call.done_writing()
            await give(memory, 1, GOOD)
            await give(memory, 2, GOOD)
            assert await listener.hear_positions() in ([1], [1, 2])

    async def test_what_teaches_nothing_waits_for_nobody(self, patient: RunningMemory) -> None:
        memory = patient
        await decided(memory, 1)
        async with learner(memory) as slow:
            await slow.hear()
            await give(memory, 1, Feedback(comment="thanks"))

    async def test_a_repeated_request_waits_for_nobody(self, patient: RunningMemory) -> None:
        memory = patient
        await decided(memory, 1)
        request_id = "6f1c3b0e-8f7e-4a59-9a54-0d1d3c1b2a11"
        first = await give(memory, 1, BAD, request_id)
        async with learner(memory) as slow:
            await slow.hear()
            assert await give(memory, 1, BAD, request_id) == first

    async def test_many_at_once_are_all_answered(self, memory: RunningMemory) -> None:
        await decided(memory, *range(100))
        async with keeping_up(memory), keeping_up(memory):
            await asyncio.gather(*(give(memory, number, GOOD) for number in range(100)))

    async def test_feedback_before_its_episode_may_be_repeated(self, memory: RunningMemory) -> None:
        error = await refusal(
            give(memory, 1, GOOD), CODE.NOT_FOUND, "EPISODE_NOT_FOUND", decision=decision(1)
        )
        assert error.retry_after is not None
        await decided(memory, 1)
        await give(memory, 1, GOOD)


def parts_of(position: int, *parts: bytes, **fields: Any) -> list[SaveModelRequest]:
    first = SaveModelRequest(
        format="f/1", position=position, sha256=hashlib.sha256(b"".join(parts)).digest(), data=parts[0]
    )
    first.MergeFrom(SaveModelRequest(**fields))
    return [first, *(SaveModelRequest(data=part) for part in parts[1:])]


async def save(memory: RunningMemory, requests: list[SaveModelRequest]) -> SaveModelResponse:
    return await memory.learning.SaveModel(iter(requests))


async def load(memory: RunningMemory, **fields: Any) -> tuple[int, bytes]:
    request = GetModelRequest(format="f/1", **fields)
    responses = [response async for response in memory.learning.GetModel(request)]
    data = b"".join(response.data for response in responses)
    assert responses[0].sha256 == hashlib.sha256(data).digest()
    return responses[0].position, data


class TestModels:
    @pytest.fixture
    async def taught(self, memory: RunningMemory) -> RunningMemory:
        """With ten lessons."""
        await decided(memory, *range(10))
        await record(memory, outcomes=[outcome(number) for number in range(10)])
        return memory

    async def test_a_model_comes_back_after_a_restart(self, taught: RunningMemory) -> None:
        large = [bytes([number]) * 1_048_576 for number in range(5)]
        assert (await save(taught, parts_of(7, *large))).position == 7
        await taught.restart()
        assert await load(taught) == (7, b"".join(large))
        assert (await save(taught, parts_of(9, b"newer"))).position == 9
        assert await load(taught) == (9, b"newer")
        assert await load(taught, before_position=9) == (7, b"".join(large))

    async def test_an_older_one_changes_nothing(self, taught: RunningMemory) -> None:
        await save(taught, parts_of(7, b"seven"))
        assert (await save(taught, parts_of(6, b"six", b"more"))).position == 7
        assert await load(taught) == (7, b"seven")

    async def test_where_there_is_none_it_is_not_found(self, taught: RunningMemory) -> None:
        await refusal(load(taught), CODE.NOT_FOUND, "MODEL_NOT_FOUND", format="f/1")

    async def test_what_is_not_what_it_says_is_refused(self, taught: RunningMemory) -> None:
        wrong = parts_of(7, b"this", b"that")
        wrong[1].data = b"else"
        for requests, position in ((wrong, "7"), (parts_of(11, b"ahead"), "11")):
            call = save(taught, requests)
            await refusal(call, CODE.INVALID_ARGUMENT, "MODEL_INVALID", format="f/1", position=position)
        await refusal(load(taught), CODE.NOT_FOUND, "MODEL_NOT_FOUND", format="f/1")

    async def test_the_first_part_says_what_it_is(self, taught: RunningMemory) -> None:
        missing = {
            "format": "is required in the first part",
            "position": "is required in the first part",
            "sha256": "must be 32 bytes in the first part",
        }
        assert await violations(save(taught, [SaveModelRequest(data=b"x")])) == missing
        assert await violations(save(taught, [])) == missing

    async def test_a_part_has_a_megabyte_at_most(self, taught: RunningMemory) -> None:
        assert list(await violations(save(taught, parts_of(7, b"x" * 1_048_577)))) == ["data"]


async def test_an_episode_says_where_it_went_instead(memory: RunningMemory) -> None:
    await decided(memory, 1)
    rerouted = outcome(1, Episode.OUTCOME_REROUTED, rerouted_to="projects/ops")
    await record(memory, outcomes=[rerouted])
    assert (await get(memory, 1)).rerouted_to == "projects/ops"
    async with learner(memory) as router:
        (lesson,) = (await router.hear()).lessons
    assert (lesson.truth, lesson.project, lesson.weight) == (Lesson.TRUTH_WRONG, "projects/web", 0.25)
