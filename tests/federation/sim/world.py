"""
Several Hoppers, the network between them, and what goes wrong: everything from one seed.

    World ── events in order of virtual time ──► SimHopper.pump: claim, errands, send, watch, tick
      │                                              │ transactions that may fail before or after the commit
      └─ Network: delay, loss, duplicates, partitions ◄┘
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hopper_federation.delegation.model import OfferFacts
from tests.federation.sim.sim_hopper import SimHopper
from tests.federation.sim.sim_router import Run, SimTask

HOUR = 3600.0
TROUBLE_FOR = 3 * HOUR
LAST_HOUR = 60 * HOUR
MOST_EVENTS = 60_000


@dataclass
class Plan:
    """
    What a seed makes of a world.

    Attributes:
        crash: The chance of a crash at each step of a Hopper.
        loss, duplicate: The chance of each for each message of the network.
        delay: The mean delay of the network, in seconds.
    """

    hoppers: int
    tasks: int
    crash: float
    loss: float
    duplicate: float
    delay: float
    partitions: int
    revocations: int
    cancels: int
    quarantine: float
    leases: list[float] = field(default_factory=lambda: [120.0, 900.0])


def plan_of(rng: random.Random) -> Plan:
    """Some worlds are calm, and some are wild."""
    wild = rng.random()
    return Plan(
        hoppers=rng.randint(3, 5),
        tasks=rng.randint(2, 8),
        crash=rng.choice([0.0, 0.003, 0.02]) if wild > 0.2 else 0.0,
        loss=rng.choice([0.0, 0.02, 0.2]),
        duplicate=rng.choice([0.0, 0.05, 0.3]),
        delay=rng.choice([0.02, 0.3, 5.0]),
        partitions=rng.randint(0, 6),
        revocations=1 if rng.random() < 0.25 else 0,
        cancels=rng.randint(0, 2),
        quarantine=rng.choice([0.0, 0.0, 0.5]),
    )


class World:
    """
    One run.

    Args:
        seed: Says everything that happens.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.plan = plan_of(self.rng)
        self.now = 1_000_000.0
        self.began = self.now
        self.calm = False
        self.ledger: list[Run] = []
        self.finished: set[str] = set()
        self.log: list[str] = []
        self.events = 0
        self.offers: dict[str, OfferFacts] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._cut: dict[tuple[str, str], int] = {}
        names = [f"h{number}" for number in range(self.plan.hoppers)]
        self.hoppers = {name: SimHopper(self, name, set(names) - {name}) for name in names}
        self.submitted: list[tuple[str, str]] = []

    # Time.

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in a while."""
        self.at(self.now + seconds, what)

    def note(self, text: str) -> None:
        """For who reads a failure."""
        self.log.append(f"{self.now - self.began:10.2f} {text}")

    def run(self) -> None:
        """From the first task until nothing happens any more."""
        self._make_trouble()
        for hopper in self.hoppers.values():
            hopper.start()
        self.at(self.began + TROUBLE_FOR, self._heal)
        events = 0
        end = self.began + LAST_HOUR
        while self._events and events < MOST_EVENTS:
            when, _, what = heapq.heappop(self._events)
            if when > end:
                break
            self.now = when
            events += 1
            what()
        self.events = events

    # Trouble.

    def _make_trouble(self) -> None:
        rng, plan = self.rng, self.plan
        names = sorted(self.hoppers)
        for number in range(plan.tasks):
            self.after(rng.uniform(0, HOUR), self._submitting(number))
        for _ in range(plan.partitions):
            one, other = rng.sample(names, 2)
            begins, lasts = rng.uniform(0, TROUBLE_FOR * 0.8), rng.choice([5.0, 90.0, 1500.0, 6000.0])
            ways = [(one, other), (other, one)] if rng.random() < 0.6 else [(one, other)]
            self.after(begins, self._cutting(ways, 1))
            self.after(min(begins + lasts, TROUBLE_FOR), self._cutting(ways, -1))
        for _ in range(plan.revocations):
            one, other = rng.sample(names, 2)
            self.after(rng.uniform(HOUR / 4, TROUBLE_FOR), self._revoking(one, other))
        for _ in range(plan.cancels):
            self.after(rng.uniform(0, TROUBLE_FOR), self._cancel_one)

    def _submitting(self, number: int) -> Callable[[], None]:
        def submit() -> None:
            rng = self.rng
            names = sorted(self.hoppers)
            home = rng.choice(names)
            able = frozenset(rng.sample(names, rng.randint(1, 2)))
            task = SimTask(
                name=f"t{number}",
                uid=f"{home}/t{number}",
                able=able,
                exclusive=rng.random() < 0.3,
                effort=rng.choice([0.5, 20.0, 300.0, 1500.0]),
                fails=rng.random() < 0.1,
                hops=rng.randint(1, 3),
                start_by=self.now + 40 * HOUR,
            )
            self.submitted.append((home, task.name))
            self.hoppers[home].router.submit(task.name, task, self.now, rng)
            self.hoppers[home].wake()

        return submit

    def _cutting(self, ways: Iterable[tuple[str, str]], by: int) -> Callable[[], None]:
        def cut() -> None:
            for way in ways:
                self._cut[way] = self._cut.get(way, 0) + by
            self.note(f"{'cut' if by > 0 else 'healed'} {list(ways)}")

        return cut

    def _revoking(self, one: str, other: str) -> Callable[[], None]:
        def revoke() -> None:
            self.note(f"{one} revokes {other}")
            self.hoppers[one].revoke(other)

        return revoke

    def _cancel_one(self) -> None:
        open_ones = [
            (home, name)
            for home, name in self.submitted
            if not self.hoppers[home].router.tasks[name].state.over
        ]
        if open_ones:
            home, name = self.rng.choice(open_ones)
            self.note(f"{home} cancels {name}")
            self.hoppers[home].router.cancel(name)
            self.hoppers[home].wake()

    def _heal(self) -> None:
        self.note("calm")
        self.calm = True
        self._cut.clear()
        for hopper in self.hoppers.values():
            hopper.start()

    # The network.

    def carry(self, one: str, other: str, what: Callable[[], None]) -> None:
        """Something goes from one Hopper to another, or is lost, or comes twice."""
        rng, plan = self.rng, self.plan
        copies = 1
        if not self.calm:
            if self._cut.get((one, other), 0) > 0 or rng.random() < plan.loss:
                return
            copies += rng.random() < plan.duplicate
        for _ in range(copies):
            self.after(rng.expovariate(1 / plan.delay) if not self.calm else 0.02, what)
