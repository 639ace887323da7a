"""Taking decisions in, and getting them written."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from hopper.common.v1.options_pb2 import RateClass
from hopper_common.audit import sink as sinks
from hopper_common.audit.app import MIGRATIONS, NAME
from hopper_common.audit.chain import Head
from hopper_common.audit.model import CLOSED, DIVERGED, LOST, OPENED, Handling
from hopper_common.audit.sink import BURST, REFILL, _Budget, handling_of
from hopper_common.audit.tables import METADATA, RECORDS
from hopper_common.clock import SystemClock
from hopper_common.errors import Overloaded, ShuttingDown, StorageFull, StorageUnavailable
from hopper_testing.clock import ManualClock
from hopper_testing.database import differences
from tests.common.audit.harness import DECISION, HOT, REFUSED, Log, open_log, remove, tamper

SECOND = timedelta(seconds=1)


async def test_the_migrations_make_the_table(url: str) -> None:
    assert await differences(metadata=METADATA, migrations=MIGRATIONS, service=NAME, url=url) == []


@pytest.mark.parametrize(
    ("rate_class", "allowed", "refused"),
    [
        (RateClass.RATE_CLASS_READ, Handling.IGNORED, Handling.AWAITED),
        (RateClass.RATE_CLASS_WATCH, Handling.IGNORED, Handling.AWAITED),
        (RateClass.RATE_CLASS_WORK, Handling.COUNTED, Handling.AWAITED),
        (RateClass.RATE_CLASS_WRITE, Handling.KEPT, Handling.AWAITED),
        (RateClass.RATE_CLASS_ADMIN, Handling.AWAITED, Handling.AWAITED),
        (RateClass.RATE_CLASS_STRANGER, Handling.AWAITED, Handling.AWAITED),
    ],
)
def test_every_class_has_its_handling(
    rate_class: "RateClass.ValueType", allowed: Handling, refused: Handling
) -> None:
    assert handling_of(rate_class, allowed=True) is allowed
    assert handling_of(rate_class, allowed=False) is refused


# Writing.


async def test_what_is_awaited_is_on_the_disk_when_it_goes_on(url: str) -> None:
    async with open_log(url) as log:
        for decision in (REFUSED, DECISION):
            ticket = log.sink.record(decision, Handling.AWAITED)
            assert ticket
            await log.sink.flushed(ticket)
            assert (await log.records())[-1].decision == decision
        assert (await log.verdict()).intact


async def test_what_is_kept_is_written_when_its_time_has_come(url: str) -> None:
    clock = ManualClock()
    async with open_log(url, clock) as log:
        assert not log.sink.record(DECISION, Handling.KEPT)
        clock.advance(timedelta(seconds=0.1))
        await log.until(lambda: log.sink.head.sequence == 2)
        (record,) = await log.records()
        assert (record.decision, record.count) == (DECISION, 1)


async def test_what_is_counted_is_written_when_its_second_is_over(url: str) -> None:
    clock = ManualClock()
    async with open_log(url, clock) as log:
        for n in range(1000):
            assert not log.sink.record(HOT._replace(resources=(f"projects/p{n % 100}",)), Handling.COUNTED)
        begun = clock.now()
        clock.advance(SECOND)
        await log.until(lambda: log.sink.head.sequence == 2)
        (record,) = await log.records()
        assert (record.count, record.time) == (1000, begun)
        assert record.decision.resources == tuple(f"projects/p{n}" for n in range(8))


async def test_each_second_has_a_record_of_its_own(file_url: str) -> None:
    clock = ManualClock()
    async with open_log(file_url, clock) as log:
        for count in (3, 5):
            for _ in range(count):
                log.sink.record(HOT, Handling.COUNTED)
            clock.advance(SECOND)
        await log.sink.flushed()
        assert [record.count for record in await log.records()] == [3, 5]


async def test_only_equal_decisions_are_one_record(file_url: str) -> None:
    others = [
        HOT._replace(**{field: value})  # type: ignore[arg-type]
        for field, value in {
            "principal": "principals/bob",
            "acting_for": "principals/bob",
            "credential": "token",
            "source": "10.0.0.2",
            "method": "/hopper.router.v1.WorkService/CompleteTask",
            "rule": "member on instances/global",
        }.items()
    ]
    async with open_log(file_url) as log:
        for decision in [HOT, *others, HOT]:
            log.sink.record(decision, Handling.COUNTED)
        await log.sink.flushed()
        counts = {record.decision: record.count for record in await log.records()}
        assert counts == {HOT: 2, **dict.fromkeys(others, 1)}


async def test_what_may_be_read_is_not_recorded(file_url: str) -> None:
    async with open_log(file_url) as log:
        assert not log.sink.record(DECISION, Handling.IGNORED)
        await log.sink.flushed()
        assert await log.records() == []


async def test_equal_refusals_that_wait_together_are_one_record(url: str) -> None:
    """A stranger who knocks cannot fill a disk."""
    async with open_log(url) as log:
        tickets = [log.sink.record(REFUSED, Handling.AWAITED) for _ in range(200)]
        await asyncio.gather(*(log.sink.flushed(ticket) for ticket in tickets))
        assert [record.count for record in await log.records()] == [200]


async def test_far_reaching_calls_have_a_record_each(file_url: str) -> None:
    async with open_log(file_url) as log:
        await asyncio.gather(*(log.put(DECISION, Handling.AWAITED) for _ in range(50)))
        assert [record.count for record in await log.records()] == [1] * 50
        # the first may be written alone; the others share
        assert log.database.committed.count < 10


async def test_who_waits_too_much_waits_a_little_longer() -> None:
    clock = ManualClock()
    budget = _Budget(clock.monotonic)
    for _ in range(BURST):
        assert budget.delay() == 0
        budget.spend()
    assert budget.delay() == pytest.approx(1 / REFILL)
    clock.advance(timedelta(seconds=1 / REFILL))
    assert budget.delay() == pytest.approx(0)
    budget.spend()
    assert budget.delay() == pytest.approx(1 / REFILL)


async def test_a_spent_budget_delays_and_does_not_stop(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "BURST", 1)
    clock = ManualClock()
    async with open_log(file_url, clock) as log:
        await log.put(REFUSED, Handling.AWAITED)
        waiting = asyncio.create_task(log.put(REFUSED, Handling.AWAITED))
        await asyncio.sleep(0)
        clock.advance(SECOND)
        await asyncio.wait_for(waiting, 30)
        assert len(await log.records()) == 2


async def test_a_caller_who_leaves_holds_up_nobody(file_url: str) -> None:
    async with open_log(file_url) as log:
        leaving = asyncio.create_task(log.put(REFUSED, Handling.AWAITED))
        await asyncio.sleep(0)
        leaving.cancel()
        await log.put(DECISION, Handling.AWAITED)
        assert [record.decision for record in await log.records()] == [REFUSED, DECISION]


# Opening and closing.


async def rules(log: Log) -> list[tuple[str, str]]:
    found = await log.all_records()
    return [(record.decision.method, record.decision.rule.partition(":")[0]) for record in found]


async def test_the_log_says_when_it_was_open(url: str) -> None:
    for _ in range(2):
        async with open_log(url) as log:
            log.sink.record(HOT, Handling.COUNTED)
    async with open_log(url) as log:
        assert (await log.verdict()).intact
        assert await rules(log) == [
            (OPENED, "the first record of its chain"),
            (HOT.method, HOT.rule),
            (CLOSED, "the process has stopped"),
            (OPENED, "after it was closed"),
            (HOT.method, HOT.rule),
            (CLOSED, "the process has stopped"),
            (OPENED, "after it was closed"),
        ]
        assert (await log.all_records())[0].decision.resources == ("chains/hopper",)


async def test_after_the_end_nothing_is_taken_in(file_url: str) -> None:
    async with open_log(file_url, keep=False) as log:
        await log.sink.close()
        for handling in (Handling.COUNTED, Handling.KEPT, Handling.AWAITED):
            with pytest.raises(ShuttingDown):
                log.sink.record(DECISION, handling)
        with pytest.raises(ShuttingDown):
            await log.sink.flushed()


async def test_who_waits_at_the_end_is_told(file_url: str) -> None:
    """Whether it is written, or not."""
    async with open_log(file_url, keep=False) as log:
        waiting = asyncio.create_task(log.put(DECISION, Handling.AWAITED))
        await asyncio.sleep(0)
        await log.sink.close()
        await waiting
    async with open_log(file_url, keep=False) as log:
        waiting = asyncio.create_task(log.put(DECISION, Handling.AWAITED))
        await asyncio.sleep(0)
        log.database.set_next_error(StorageFull(service=NAME))
        with capture_logs() as logged:
            await log.sink.close()
        with pytest.raises(StorageFull):
            await waiting
        assert "audit records are lost: the log could not be written" in [line["event"] for line in logged]


async def test_two_processes_have_a_chain_each(url: str) -> None:
    """In one database, where it can be shared."""
    async with open_log(url, chain="router-1") as log:
        await log.put(DECISION, Handling.AWAITED)
    async with open_log(url, chain="router-2") as log:
        await log.put(REFUSED, Handling.AWAITED)
        assert [record.decision for record in await log.records()] == [REFUSED]
        assert [record.sequence for record in await log.all_records()] == [1, 2]
        assert (await log.verdict()).intact


# When it cannot be written.


async def test_what_cannot_be_written_is_not_done_and_is_written_later(url: str) -> None:
    async with open_log(url) as log:
        told: list[bool] = []
        log.sink.on_ready(told.append)
        log.database.set_next_error(StorageFull(service=NAME))
        with pytest.raises(StorageFull):
            await log.put(REFUSED, Handling.AWAITED)
        assert not log.sink.ready
        log.clock.advance(SECOND)
        await log.until(lambda: log.sink.ready)
        assert told == [False, True]
        assert [record.decision for record in await log.records()] == [REFUSED]
        assert (await log.verdict()).intact


async def test_what_was_written_without_an_answer_is_not_written_twice(url: str) -> None:
    """The database was lost while it committed."""
    async with open_log(url) as log:
        log.database.set_next_error(StorageUnavailable(service=NAME), at="answer")
        with pytest.raises(StorageUnavailable):
            await log.put(REFUSED, Handling.AWAITED)
        log.clock.advance(SECOND)
        await log.put(DECISION, Handling.AWAITED)
        assert [record.decision for record in await log.records()] == [REFUSED, DECISION]
        assert (await log.verdict()).intact


async def test_others_go_on_until_there_is_a_crowd(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "CROWDED", 3)
    async with open_log(file_url, keep=False) as log:
        assert [bool(log.sink.record(DECISION, Handling.KEPT)) for _ in range(4)] == [
            False,
            False,
            True,
            True,
        ]
        assert log.sink.record(HOT, Handling.COUNTED)


async def test_nothing_is_dropped_in_silence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is refused and counted, and the number is a record."""
    monkeypatch.setattr(sinks, "MOST", 3)
    async with open_log(url, keep=False) as log:
        outcomes = []
        for n in range(10):
            try:
                log.sink.record(DECISION._replace(resources=(f"projects/p{n}",)), Handling.KEPT)
                outcomes.append("taken")
            except Overloaded:
                outcomes.append("refused")
        assert outcomes == ["taken"] * 3 + ["refused"] * 7
    async with open_log(url, keep=False) as log:
        assert [(record.decision.method, record.count) for record in await log.all_records()] == [
            (OPENED, 1),
            *[(DECISION.method, 1)] * 3,
            (LOST, 7),
            (CLOSED, 1),
            (OPENED, 1),
        ]


async def test_equal_ones_need_no_room(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, seconds are longer."""
    monkeypatch.setattr(sinks, "MOST", 3)
    async with open_log(file_url) as log:
        log.database.set_next_error(StorageFull(service=NAME))
        with pytest.raises(StorageFull):
            await log.put(REFUSED, Handling.AWAITED)
        for _ in range(100):
            log.sink.record(HOT, Handling.COUNTED)
            log.sink.record(REFUSED, Handling.AWAITED)
            log.clock.advance(timedelta(milliseconds=9))
        log.clock.advance(SECOND)
        await log.until(lambda: log.sink.ready)
        await log.sink.flushed()
        assert sum(record.count for record in await log.records()) == 201


# Somebody else at the table.


async def test_a_log_that_was_cut_while_it_ran_says_so_for_ever(url: str) -> None:
    async with open_log(url) as log:
        for _ in range(4):
            await log.put(DECISION, Handling.AWAITED)
        await log.database.write(remove(RECORDS.c.sequence > 3))
        with capture_logs() as logged:
            await log.put(REFUSED, Handling.AWAITED)
        assert "the audit log was changed by another" in [line["event"] for line in logged]
    async with open_log(url) as log:
        verdict = await log.verdict()
        assert verdict.broken_sequence == 4
        assert "the process found the log changed while it ran" in verdict.problem
        assert (await log.all_records())[3].decision.method == DIVERGED
        assert REFUSED in [record.decision for record in await log.records()]


async def test_a_row_of_nonsense_is_found(file_url: str) -> None:
    """SQLite takes anything into any column."""
    async with open_log(file_url) as log:
        await log.put(DECISION, Handling.AWAITED)
        await log.database.write(tamper(RECORDS.c.sequence == 2, resources=7))
        assert (await log.verdict()).broken_sequence == 2


# Checkpoints.


def anchors(logged: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line["anchor"] for line in logged if line["event"] == "audit checkpoint"]


async def test_the_end_of_the_chain_is_noted_elsewhere(file_url: str) -> None:
    """When the log is opened and closed, and once a day while there is something to note."""
    clock = ManualClock()
    with capture_logs() as logged:
        async with open_log(file_url, clock) as log:
            opened = log.sink.head
            await log.put(DECISION, Handling.AWAITED)
            noted = log.sink.head
            clock.advance(timedelta(days=1))
            await log.sink.flushed()
            clock.advance(timedelta(days=3))
            await log.sink.flushed()
        closed = log.sink.head
    assert anchors(logged) == [str(head) for head in (opened, noted, closed)]
    async with open_log(file_url) as log:
        assert (await log.verdict(*(Head.parse(anchor) for anchor in anchors(logged)))).intact


async def test_it_is_noted_without_anybody_calling(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "CHECKPOINT_SECONDS", 0.05)
    with capture_logs() as logged:
        async with open_log(file_url, SystemClock()) as log:
            await log.put(DECISION, Handling.AWAITED)
            await log.until(lambda: str(log.sink.head) in anchors(logged))


async def test_many_records_are_noted_sooner(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "CHECKPOINT_RECORDS", 3)
    async with open_log(file_url) as log:
        with capture_logs() as logged:
            for _ in range(7):
                await log.put(DECISION, Handling.AWAITED)
        assert [anchor.partition(":")[0] for anchor in anchors(logged)] == ["4", "7"]
