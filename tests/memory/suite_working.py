"""What every working memory does, whatever it keeps contexts in."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from hopper_memory.errors import ContextNotFound, WorkingMemoryFull
from hopper_memory.model import Context
from hopper_memory.ports import WorkingMemory
from hopper_testing.clock import ManualClock
from tests.memory.factories import WORKING_MEMORIES

MOST = 10
MINUTE = timedelta(minutes=1)
MOMENT = timedelta(microseconds=1)


class WorkingMemorySuite:
    """The clock stands still unless moved; at most `MOST` contexts are held."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture(params=WORKING_MEMORIES)
    async def memory(
        self, request: pytest.FixtureRequest, clock: ManualClock
    ) -> AsyncIterator[WorkingMemory]:
        async with WORKING_MEMORIES[request.param](clock, MOST) as memory:
            yield memory

    async def test_a_context_comes_back_as_it_was_put(
        self, memory: WorkingMemory, clock: ManualClock
    ) -> None:
        stored = await memory.put("session/42", b"\0value", MINUTE)
        assert stored == Context("session/42", b"\0value", MINUTE, clock.now() + MINUTE)
        assert await memory.get("session/42") == stored

    async def test_an_unknown_key_is_an_error_that_names_it(self, memory: WorkingMemory) -> None:
        with pytest.raises(ContextNotFound) as caught:
            await memory.get("nothing")
        assert dict(caught.value.metadata) == {"context": "nothing"}

    async def test_it_is_there_until_its_time_is_over(
        self, memory: WorkingMemory, clock: ManualClock
    ) -> None:
        await memory.put("key", b"", MINUTE)
        clock.advance(MINUTE - timedelta(milliseconds=1))
        await memory.get("key")
        clock.advance(timedelta(milliseconds=1))
        with pytest.raises(ContextNotFound):
            await memory.get("key")

    async def test_replacing_starts_its_time_again(self, memory: WorkingMemory, clock: ManualClock) -> None:
        await memory.put("key", b"old", MINUTE)
        clock.advance(MINUTE / 2)
        await memory.put("key", b"new", MINUTE)
        clock.advance(MINUTE / 2 + timedelta(seconds=1))
        assert (await memory.get("key")).value == b"new"

    async def test_replacing_can_shorten_its_time(self, memory: WorkingMemory, clock: ManualClock) -> None:
        await memory.put("key", b"", timedelta(hours=1))
        await memory.put("key", b"", MINUTE)
        clock.advance(MINUTE)
        with pytest.raises(ContextNotFound):
            await memory.get("key")

    async def test_a_full_memory_takes_no_new_key(self, memory: WorkingMemory) -> None:
        for number in range(MOST):
            await memory.put(f"key/{number}", b"", MINUTE)
        with pytest.raises(WorkingMemoryFull) as caught:
            await memory.put("one more", b"", MINUTE)
        assert dict(caught.value.metadata) == {"service": "memory"}

    async def test_a_full_memory_still_replaces(self, memory: WorkingMemory) -> None:
        for number in range(MOST):
            await memory.put(f"key/{number}", b"", MINUTE)
        await memory.put("key/0", b"new", MINUTE)
        assert (await memory.get("key/0")).value == b"new"

    async def test_what_has_run_out_makes_room(self, memory: WorkingMemory, clock: ManualClock) -> None:
        for number in range(MOST):
            await memory.put(f"key/{number}", b"", MINUTE)
        clock.advance(MINUTE)
        for number in range(MOST):
            await memory.put(f"other/{number}", b"", MINUTE)

    async def test_a_change_of_the_time_of_day_neither_loses_nor_keeps_it(
        self, memory: WorkingMemory, clock: ManualClock
    ) -> None:
        await memory.put("key", b"", MINUTE)
        clock.time += timedelta(days=1)
        await memory.get("key")
        clock.time -= timedelta(days=2)
        clock.advance(MINUTE)
        with pytest.raises(ContextNotFound):
            await memory.get("key")
