"""Whose turn it is: what start-time fair queueing promises, whatever is submitted, and end to end under a flood."""

import asyncio
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper_common.database import Signal
from hopper_router.fairness import TURN, Turns, lane
from tests.router.harness import ROOT, Router

LANE = lane("projects/web", 50)
KEYS = "abcd"
weights = st.sampled_from([0.01, 0.5, 1.0, 2.0, 7.0, 100.0])
steps = st.lists(st.one_of(st.sampled_from(KEYS), st.none()), max_size=200)


class Queue:
    """A queue as the statements keep it: claims take the smallest rank, then the smallest id."""

    def __init__(self, turns: Turns | None = None) -> None:
        self.turns = turns or Turns()
        self.ready: list[tuple[int, int, str, int]] = []
        self.next_id = 0

    def submit(self, key: str, weight: float = 1.0, slots: int = 1) -> int:
        rank = self.turns.take(LANE, key, weight, slots)
        heapq.heappush(self.ready, (rank, self.next_id, key, slots))
        self.next_id += 1
        return rank

    def claim(self) -> tuple[str, int]:
        rank, _, key, slots = heapq.heappop(self.ready)
        self.turns.served(LANE, rank)
        return key, slots

    def restart(self) -> None:
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for rank, _, key, _ in self.ready:
            first[key], last[key] = min(rank, first.get(key, rank)), max(rank, last.get(key, rank))
        self.turns = Turns()
        self.turns.restore((LANE, key, first[key], last[key]) for key in first)


def shares(claims: Iterable[tuple[str, int]]) -> Counter[str]:
    got: Counter[str] = Counter()
    for key, slots in claims:
        got[key] += slots
    return got


@given(st.fixed_dictionaries(dict.fromkeys(KEYS, weights)), st.data())
def test_keys_that_both_wait_share_by_their_weights(by_key: dict[str, float], data: st.DataObject) -> None:
    """
    At every moment, and to within one task each: |served a / weight a - served b / weight b| is at most the longest
    turn of a and of b. (Goyal, Vin, Cheng 1996, theorem 1.)
    """
    queue = Queue()
    slots = data.draw(st.lists(st.integers(1, 5), min_size=10, max_size=40))
    for number in slots:
        for key in data.draw(st.permutations(KEYS)):
            queue.submit(key, by_key[key], number)
    left = Counter(dict.fromkeys(KEYS, len(slots)))
    got: Counter[str] = Counter()
    longest = max(slots)
    while min(left.values()) > 0:
        key, number = queue.claim()
        left[key] -= 1
        got[key] += number
        for one in KEYS:
            for other in KEYS:
                apart = abs(got[one] / by_key[one] - got[other] / by_key[other])
                assert apart <= longest / by_key[one] + longest / by_key[other] + 1e-3


@given(steps)
def test_nobody_starves(moves: list[str | None]) -> None:
    """Between two claims of a key that waits, no other is served more than twice: once before, once behind."""
    queue = Queue()
    since: dict[str, Counter[str]] = defaultdict(Counter)
    waiting: Counter[str] = Counter()
    for key in moves:
        if key is not None:
            if not waiting[key]:
                since[key] = Counter()
            queue.submit(key)
            waiting[key] += 1
        elif queue.ready:
            served, _ = queue.claim()
            waiting[served] -= 1
            since[served] = Counter()
            for other in KEYS:
                if other != served and waiting[other]:
                    since[other][served] += 1
                    assert since[other][served] <= 2


@pytest.mark.parametrize("restarted", [False, True])
def test_a_newcomer_is_served_next_however_deep_the_flood(restarted: bool) -> None:
    queue = Queue()
    for _ in range(20_000):
        queue.submit("flood")
    for _ in range(500):
        queue.claim()
    if restarted:
        queue.restart()
    queue.submit("newcomer")
    assert "newcomer" in [queue.claim()[0] for _ in range(2)]


def test_a_flood_of_another_priority_delays_nobody() -> None:
    """Each priority is a lane of its own: what was served before in a higher one does not count."""
    turns = Turns()
    for _ in range(1000):
        turns.served(lane("q", 90), turns.take(lane("q", 90), "flood", 1.0))
    for _ in range(1000):
        turns.take(lane("q", 50), "backlog", 1.0)
    assert turns.take(lane("q", 50), "newcomer", 1.0) == 0


def test_who_was_idle_is_neither_punished_nor_rewarded() -> None:
    queue = Queue()
    for _ in range(300):
        queue.submit("busy")
    for _ in range(50):
        queue.submit("idle")
    for _ in range(150):
        queue.claim()
    for _ in range(50):
        queue.submit("idle")  # it had its turns, and was away meanwhile
    got = shares(queue.claim() for _ in range(40))
    assert abs(got["busy"] - got["idle"]) <= 2


@given(st.lists(st.tuples(st.sampled_from(KEYS), weights, st.integers(1, 100)), max_size=100))
def test_the_ranks_of_a_key_never_fall_and_restore_keeps_that(tasks: list[tuple[str, float, int]]) -> None:
    queue = Queue()
    last: dict[str, int] = {}
    for key, weight, slots in tasks:
        rank = queue.submit(key, weight, slots)
        assert rank >= last.get(key, 0)
        last[key] = rank
    queue.restart()
    for key, rank in last.items():
        assert queue.submit(key) > rank


def test_a_hundred_thousand_keys_are_forgotten_when_they_are_served() -> None:
    turns = Turns()
    for number in range(100_001):
        turns.served(LANE, turns.take(LANE, f"k{number}", 1.0))
        turns.served(LANE, number * TURN)
    assert len(turns._next) < 10


def test_a_hundred_thousand_tasks_of_one_key_keep_their_order() -> None:
    turns = Turns()
    ranks = [turns.take(LANE, "one", 1.0) for _ in range(100_000)]
    assert ranks == sorted(ranks)
    assert ranks[-1] < 2**62


# ---------------------------------------------------------------- end to end


async def flood(router: Router, requester: str, count: int, **fields: Any) -> None:
    spec = pb.TaskSpec(title=requester, requester=requester, **fields)
    for begin in range(0, count, 1000):
        items = [task_svc.SubmitTasksItem(spec=spec)] * min(1000, count - begin)
        await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))


async def drain(router: Router, queue: str, count: int, size: int = 10) -> list[str]:
    order: list[str] = []
    while len(order) < count:
        claimed = await router.claim(queue, max_tasks=size)
        assert claimed
        order += [task.spec.requester for task in claimed]
    return order[:count]


@pytest.mark.parametrize("limited", [False, True])
async def test_a_flood_starves_nobody(router: Router, limited: bool) -> None:
    """By the hot path, and by units of work."""
    web = router.registry.project("web", max_running=10_000 if limited else 0)
    await flood(router, "flood", 2000)
    await drain(router, web, 100)
    await flood(router, "other", 20)
    order = await drain(router, web, 60)
    assert [place for place, who in enumerate(order) if who == "other"][-1] <= 41
    assert order.count("other") == 20


async def test_turns_go_on_after_a_restart(router: Router) -> None:
    web = router.registry.project("web")
    await flood(router, "flood", 1000)
    await flood(router, "other", 10)
    await drain(router, web, 10)
    await router.stop()
    await router.start()
    await flood(router, "late", 3)
    order = await drain(router, web, 20)
    assert order.count("late") == 3
    assert order.count("other") == 5


async def test_weights_share_a_queue(router: Router) -> None:
    web = router.registry.project("web")
    await flood(router, "heavy", 200, fairness_weight=3.0)
    await flood(router, "light", 200, fairness_weight=1.0)
    got = Counter(await drain(router, web, 80))
    assert abs(got["heavy"] - 60) <= 2


async def test_a_trickle_beside_a_flood_does_not_wait_for_it(live_router: Router) -> None:
    """Each of a few that come while a thousand wait is among the next that are claimed; how soon, the bar measures."""
    router = live_router
    web = router.registry.project("web")
    claimed: list[str] = []
    moved = Signal()

    async def worker(name: str) -> None:
        while True:
            for task in await router.claim(web, name):
                claimed.append(task.name)
                moved.fire()
                await router.complete(task)

    await flood(router, "flood", 1000)
    passed: list[int] = []
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        workers = [group.create_task(worker(f"w{n}")) for n in range(2)]
        for _ in range(25):
            before = len(claimed)
            task = await router.submit("mine", requester="mine")
            while task.name not in claimed:
                await moved.wait(after=moved.count)
            passed.append(claimed.index(task.name) - before)
        assert len(await router.found(requester="flood")) > 100  # the flood was there all the time
        for one in workers:
            one.cancel()
    assert max(passed) <= 20  # its turn is the next, and two workers are at it meanwhile
