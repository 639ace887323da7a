"""
Several Hoppers, the network between them, and what goes wrong: everything from one seed.

    World ── events in order of virtual time ──► SimHopper: claim, errands, send, watch, tick
      │                                              │ transactions that may fail before or after the commit
      ├─ Network: delay, loss, duplicates, partitions ◄┘
      └─ Trouble: crashes, power cuts, old copies, revocations, clocks, liars; and then calm
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from hopper_federation.delegation.desk import Raised
from hopper_federation.delegation.model import (
    HELD,
    Delegation,
    Gone,
    Message,
    Offer,
    Receipt,
    Result,
    Role,
    State,
)
from tests.federation.sim.lies import LyingHopper
from tests.federation.sim.memory_store import Row
from tests.federation.sim.sim_hopper import Cargo, SimHopper
from tests.federation.sim.sim_router import Run, SimTask, What

HOUR = 3600.0
TROUBLE_FOR = 3 * HOUR
LAST_HOUR = 80 * HOUR
MOST_EVENTS = 100_000


@dataclass(frozen=True)
class Plan:
    """
    What a seed makes of a world.

    Attributes:
        crash: The chance of a crash at each step of a Hopper.
        loss, duplicate: The chance of each for each message of the network.
        delay: The mean delay of the network, in seconds.
        cancels, called_off: How often the router's task, and a hand-over, is no longer wanted.
        quarantine: The chance that an offer waits for a person.
        quota: How many hand-overs a peer may have open with a Hopper.
        restores: How often a Hopper's tables are brought back from an old copy.
        liars: How many Hoppers say whatever they like.
        skew: By how much a clock may be wrong after a start, in seconds.
        drift: By how much it may be too fast.
        careless: Routers send tasks back to where they have been.
        unreachable: The chance that a router does not answer its own Hopper.
        disk_lies: What was committed may be lost when the power goes.
        leases: Of hand-overs, in seconds.
    """

    hoppers: int
    tasks: int
    crash: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.02
    partitions: int = 0
    revocations: int = 0
    cancels: int = 0
    called_off: int = 0
    quarantine: float = 0.0
    quota: int = 100
    refusals: float = 0.0
    restores: int = 0
    liars: int = 0
    skew: float = 0.0
    drift: float = 1e-5
    careless: bool = False
    unreachable: float = 0.0
    disk_lies: bool = False
    leases: tuple[float, ...] = (120.0, 900.0)
    fan_out: tuple[int, ...] = (16,)
    hurried: float = 0.0
    exclusive: float = 0.3


def plan_of(rng: random.Random) -> Plan:
    """Some worlds are calm, and some are wild: each trouble comes in some of them."""
    wild = rng.random() > 0.15
    seldom = rng.random
    return Plan(
        hoppers=rng.randint(3, 5),
        tasks=rng.randint(2, 7),
        crash=rng.choice([0.0, 0.002, 0.01]) if wild else 0.0,
        loss=rng.choice([0.0, 0.02, 0.2]),
        duplicate=rng.choice([0.0, 0.05, 0.3]),
        delay=rng.choice([0.02, 0.3, 4.0]),
        partitions=rng.randint(0, 6),
        revocations=rng.randint(1, 2) if seldom() < 0.2 else 0,
        cancels=rng.choice([0, 0, 1, 2]),
        called_off=rng.choice([0, 0, 0, 2]),
        quarantine=rng.choice([0.0, 0.0, 0.5]),
        quota=rng.choice([100, 100, 1]),
        refusals=rng.choice([0.0, 0.0, 0.3]),
        restores=rng.randint(1, 2) if seldom() < 0.15 else 0,
        liars=1 if seldom() < 0.15 else 0,
        skew=rng.choice([0.0, 0.0, 600.0]),
        drift=rng.choice([1e-6, 1e-4]),
        careless=seldom() < 0.15,
        unreachable=rng.choice([0.0, 0.0, 0.05]),
        fan_out=rng.choice([(16,), (1, 2, 4)]),
        hurried=rng.choice([0.0, 0.3]),
        exclusive=rng.choice([0.0, 0.3, 1.0]),
    )


class World:
    """
    One run.

    Args:
        seed: Says everything that happens.
        changes: Of the plan that the seed makes.
    """

    def __init__(self, seed: int, **changes: Any) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.plan = replace(plan_of(self.rng), **changes)
        self.now = 1_000_000.0
        self.began = self.now
        self.calm = False
        self.ledger: list[Run] = []
        self.finished: set[str] = set()
        self.log: list[str] = []
        self.found: list[str] = []
        self.alarms: list[tuple[str, Raised]] = []
        self.events = 0
        self.cargo: dict[str, Cargo] = {}
        self.exempted: set[str] = set()
        self.acknowledged: set[tuple[str, str, Role]] = set()
        self.most_open: dict[str, int] = {}
        self.begun: dict[str, float] = {}  # when a task came, and a hand-over was made, by uid and by id
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._cut: dict[tuple[str, str], int] = {}
        self._refused: dict[str, bool] = {}
        self._said: dict[tuple[str, Role, str, int], bytes] = {}
        names = [f"h{number}" for number in range(self.plan.hoppers)]
        self.borders = {
            (one, other): self.rng.choice(["no", "later", "moody"])
            for one in names
            for other in names
            if self.rng.random() < self.plan.refusals
        }
        liars = self.rng.sample(names, self.plan.liars)
        self.hoppers = {
            name: (LyingHopper if name in liars else SimHopper)(self, name, set(names) - {name})
            for name in names
        }
        self.submitted: list[tuple[str, str]] = []

    # Time.

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in a while."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what))

    def number(self) -> int:
        """One that was never given before."""
        return next(self._numbers)

    def run(self) -> None:
        """From the first task until nothing happens any more."""
        self._make_trouble()
        for hopper in self.hoppers.values():
            hopper.start()
        self.at(self.began + TROUBLE_FOR, self._heal)
        end = self.began + LAST_HOUR
        while self._events and self.events < MOST_EVENTS:
            when, _, what = heapq.heappop(self._events)
            if when > end:
                break
            self.now = when
            self.events += 1
            what()
        if self.events >= MOST_EVENTS:
            self.wrong("it never comes to rest")

    # What is told.

    def note(self, text: str) -> None:
        """For who reads a failure."""
        self.log.append(f"{self.now - self.began:10.2f} {text}")

    def wrong(self, text: str) -> None:
        """Something that must not be."""
        self.note(text)
        self.found.append(text)

    def alarm(self, hopper: SimHopper, raised: Raised) -> None:
        """A person is told."""
        self.alarms.append((hopper.name, raised))

    def load(self, cargo: Cargo) -> str:
        """What an offer carries, by a name."""
        name = f"c{self.number()}"
        self.cargo[name] = cargo
        return name

    def copies(self, uid: str) -> None:
        """
        Count how many copies of a task are under way, below the origin and below each hand-over that is over.

        What a restored Hopper only fears to have handed over has no offer, and is no copy.
        """
        counts = Counter(
            self._below(hopper, hopper.tables.delegations[key])
            for hopper in self.hoppers.values()
            for key in hopper.tables.by_uid.get(uid, ())
            if key[0] is Role.OUT and key in hopper.tables.open and hopper.tables.delegations[key].offer
        )
        self.most_open[uid] = max(*counts.values(), 0, self.most_open.get(uid, 0))

    def _below(self, hopper: SimHopper, each: Delegation) -> str:
        """
        Whose copy it is: the hand-over's above it which is over already, or the origin's, which has no name.

        What is over by the clock is counted no more by whoever handed over, and what is below it ends when it is told,
        or when its own leases run out.
        """
        task = hopper.router.tasks.get(each.task.partition("~")[0])
        if task is None or not task.inbound:
            return ""
        above = self.hoppers[task.path[-1]]
        came = above.tables.delegations.get((Role.OUT, task.inbound))
        return self._below(above, came) if came is not None and came.state.open else task.inbound

    def untouched(self, name: str, *hoppers: SimHopper) -> bool:
        """Whether a task came, or a hand-over was made, after each of those Hoppers was restored last, if ever."""
        return all(hopper.restored_last < self.begun[name] for hopper in hoppers)

    def exempt(self, uid: str) -> None:
        """Somebody has lied about it, or a person has had it made again: the core does not answer for it."""
        self.exempted.add(uid)

    def said(self, hopper: SimHopper, row: Row) -> None:
        """A message is sent: nothing else ever has its number, but for what a restored Hopper does not know."""
        message = row.message
        if hopper.restored:
            return
        before = self._said.setdefault(
            (hopper.name, row.role, message.delegation, message.sequence), message.digest
        )
        if before != message.digest:
            self.wrong(f"{hopper.name} says two things as {message.delegation} number {message.sequence}")

    def heard(self, hopper: SimHopper, peer: str, message: Message) -> None:
        """A message has come."""
        body = type(message.body).__name__
        self.note(
            f"{hopper.name} hears of {peer}: {message.delegation} {message.sequence} {body} ({message.id})"
        )
        if (
            isinstance(message.body, Offer)
            and message.body.facts is not None
            and hopper.name in message.body.facts.path
        ):
            self.note(f"{hopper.name} has had it")

    def answered(self, hopper: str, message: Message, receipt: Receipt) -> None:
        """A Hopper has said that it has something: it must not lose it."""
        if receipt.taken and isinstance(message.body, Offer):
            if receipt.state in HELD or receipt.state is State.QUARANTINED:
                self.acknowledged.add((hopper, message.delegation, Role.IN))
        elif receipt.taken and isinstance(message.body, Result):
            self.acknowledged.add((hopper, message.delegation, Role.OUT))

    def refused(self, delegation: str) -> bool:
        """Whether the router takes no task of that hand-over, however often it is asked."""
        refused = self._refused.get(delegation)
        if refused is None:
            refused = self._refused[delegation] = self.rng.random() < self.plan.refusals / 2
        return refused

    def never_ran(self, each: Delegation) -> bool:
        """What a person finds out who asks at the other side, once it is calm."""
        there = self.hoppers[each.peer]
        taken = there.tables.delegations.get((Role.IN, each.id))
        ran = any(run.uid == each.task_uid for run in self.ledger)
        return (
            self.calm and not ran and taken is not None and not taken.state.open and not there.tables.errands
        )

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
        for _ in range(plan.restores):
            self.after(rng.uniform(0, TROUBLE_FOR * 0.7), self._copying(rng.choice(names)))
        for _ in range(plan.cancels):
            self.after(rng.uniform(0, TROUBLE_FOR), self._cancel_one)
        for _ in range(plan.called_off):
            self.after(rng.uniform(0, TROUBLE_FOR), self._call_one_off)

    def _submitting(self, number: int) -> Callable[[], None]:
        def submit() -> None:
            rng, plan = self.rng, self.plan
            names = sorted(self.hoppers)
            home = rng.choice(names)
            hurried = rng.random() < plan.hurried
            what = What(
                uid=f"{home}/t{number}",
                able=frozenset(rng.sample(names, rng.randint(1, 2))),
                exclusive=rng.random() < plan.exclusive,
                effort=rng.choice([0.5, 20.0, 300.0, 1500.0]),
                fails=rng.random() < 0.1,
                lease=rng.choice(plan.leases),
                start=rng.choice([300.0, 4 * HOUR]) if hurried else 4 * HOUR,
                close=rng.choice([400.0, 1200.0]) if hurried else 12 * HOUR,
            )
            task = SimTask(
                name=f"t{number}",
                what=what,
                hops=rng.randint(1, 4),
                fan_out=rng.choice(plan.fan_out),
                start_by=self.now + 40 * HOUR,
            )
            if not self.hoppers[home].router.up:
                self.after(60.0, submit)
                return
            self.submitted.append((home, task.name))
            self.begun[what.uid] = self.now
            if self.hoppers[home].lies:
                self.exempt(what.uid)
            self.hoppers[home].router.submit(task.name, task)

        return submit

    def _cutting(self, ways: Iterable[tuple[str, str]], by: int) -> Callable[[], None]:
        def cut() -> None:
            for way in ways:
                self._cut[way] = self._cut.get(way, 0) + by
            self.note(f"{'cut' if by > 0 else 'healed'} {list(ways)}")

        return cut

    def _revoking(self, one: str, other: str) -> Callable[[], None]:
        def revoke() -> None:
            why = self.rng.choice([Gone.REVOKED, Gone.COMPROMISED])
            drain = self.rng.choice([None, 100.0, 5000.0])
            self.note(f"{one} revokes {other}: {why}, {drain}")
            self.hoppers[one].revoke(other, why, drain)

        return revoke

    def _copying(self, name: str) -> Callable[[], None]:
        def copy() -> None:
            hopper = self.hoppers[name]
            kept = hopper.tables.copy()
            self.note(f"{name} is copied")
            self.after(self.rng.choice([10.0, 500.0, 3000.0]), lambda: hopper.restore(kept))

        return copy

    def _cancel_one(self) -> None:
        open_ones = [
            (home, name)
            for home, name in self.submitted
            if self.hoppers[home].router.up and not self.hoppers[home].router.tasks[name].state.over
        ]
        if open_ones:
            home, name = self.rng.choice(open_ones)
            self.note(f"{home} cancels {name}")
            self.hoppers[home].router.cancel(name)

    def _call_one_off(self) -> None:
        open_ones = [
            (hopper, hopper.tables.delegations[key])
            for hopper in self.hoppers.values()
            if hopper.up
            for key in hopper.tables.open
        ]
        if open_ones:
            hopper, each = self.rng.choice(open_ones)
            self.note(f"{hopper.name} calls {each.role} {each.id} off")
            hopper.call_off(each)

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
        if self.calm:
            self.after(0.02, what)
            return
        if self._cut.get((one, other), 0) > 0 or rng.random() < plan.loss:
            return
        self.after(rng.expovariate(1 / plan.delay), what)
        if rng.random() < plan.duplicate:
            self.after(rng.expovariate(1 / plan.delay), what)
