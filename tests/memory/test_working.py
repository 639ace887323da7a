"""Working memory: the suite on every engine, and what is peculiar to the one in process."""

from datetime import timedelta

from hopper_memory.working import InProcessWorkingMemory
from hopper_testing.clock import ManualClock
from tests.memory.suite_working import WorkingMemorySuite


class TestWorkingMemory(WorkingMemorySuite):
    pass


async def test_it_lets_go_of_what_has_run_out_without_being_asked_for_it() -> None:
    clock = ManualClock()
    memory = InProcessWorkingMemory(clock)
    for number in range(100):
        await memory.put(f"key/{number}", bytes(1000), timedelta(seconds=1 + number))
    clock.advance(timedelta(seconds=50))
    await memory.put("another", b"", timedelta(seconds=1))
    assert len(memory) == 51


async def test_replacing_for_ever_does_not_grow_it() -> None:
    memory = InProcessWorkingMemory(ManualClock())
    for _ in range(10_000):
        await memory.put("key", b"", timedelta(hours=1))
    assert len(memory) == 1
    assert len(memory._deadlines) < 100
