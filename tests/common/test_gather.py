"""Gathering: one set at a time, in order, and nobody pays for another's mistake."""

import asyncio
from collections.abc import Sequence

import pytest

from hopper_common import gather
from hopper_common.errors import Overloaded, StorageUnavailable
from hopper_common.gather import Gatherer


class Desk:
    """Doubles numbers in sets, when it is let; refuses what is negative."""

    def __init__(self) -> None:
        self.sets: list[list[int]] = []
        self.open = asyncio.Event()
        self.away = False

    async def run(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.sets.append(list(items))
        await self.open.wait()
        if self.away:
            raise StorageUnavailable(service="desk")
        if min(items) < 0:
            raise ValueError("negative")
        return [KeyError(item) if item == 13 else 2 * item for item in items]


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_the_first_goes_at_once_and_the_rest_are_one_set(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    first = gatherer.add(1)
    await asyncio.sleep(0)
    rest = [gatherer.add(n) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    assert (desk.sets, len(gatherer)) == ([[1]], 3)
    desk.open.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
    assert desk.sets == [[1], [2, 3, 4]]


async def test_sets_are_bounded_by_weight_and_keep_the_order(desk: Desk) -> None:
    gatherer = Gatherer(desk.run, limit=5, weigh=lambda n: n)
    desk.open.set()
    assert await asyncio.gather(*(gatherer.add(n) for n in (1, 3, 2, 9, 1, 4))) == [2, 6, 4, 18, 2, 8]
    assert desk.sets == [[1, 3], [2], [9], [1, 4]]


async def test_each_gets_its_own_answer_and_its_own_refusal(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    desk.open.set()
    results = await asyncio.gather(*(gatherer.add(n) for n in (1, 13, 2)), return_exceptions=True)
    assert (results[0], results[2]) == (2, 4)
    assert isinstance(results[1], KeyError)


async def test_who_is_at_fault_fails_alone(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    desk.open.set()
    results = await asyncio.gather(*(gatherer.add(n) for n in (1, -2, 3)), return_exceptions=True)
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)
    assert desk.sets == [[1, -2, 3], [1], [-2], [3]]


async def test_storage_that_is_away_is_everybodys_trouble_once(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    desk.away = True
    desk.open.set()
    results = await asyncio.gather(*(gatherer.add(n) for n in (1, 2)), return_exceptions=True)
    assert all(isinstance(result, StorageUnavailable) for result in results)
    assert results[0] is not results[1]
    assert desk.sets == [[1, 2]]


async def test_who_leaves_before_its_set_takes_its_item_along(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    first = gatherer.add(1)
    await asyncio.sleep(0)
    second, third = gatherer.add(2), gatherer.add(3)
    second.cancel()
    desk.open.set()
    assert [await first, await third] == [2, 6]
    assert desk.sets == [[1], [3]]


async def test_too_many_are_told_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "WAITING_LIMIT", 2)
    gatherer = Gatherer(desk.run)
    waiting = [gatherer.add(n) for n in (1, 2)]
    with pytest.raises(Overloaded):
        gatherer.add(3)
    desk.open.set()
    assert await asyncio.gather(*waiting) == [2, 4]


async def test_closing_waits_for_what_was_added(desk: Desk) -> None:
    gatherer = Gatherer(desk.run)
    waiting = [gatherer.add(n) for n in (1, 2)]
    desk.open.set()
    await gatherer.close()
    assert [future.result() for future in waiting] == [2, 4]
