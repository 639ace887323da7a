"""
A simulated Hopper: the desk and its state machines as they are, in shells that are as small as can be.

It may go down before and after every transaction, and between the router's and its own: the process alone, with workers
that live on, or the whole machine. What it had in memory is gone then, what it had committed is not (unless its disk
lies), and its clock may jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hopper_federation.delegation.desk import Desk, note_of
from hopper_federation.delegation.model import (
    CLOCKS_APART,
    OPEN,
    Appraisal,
    Delegation,
    Errand,
    Gone,
    Message,
    Note,
    Offer,
    OfferFacts,
    Outcome,
    Receipt,
    Role,
    State,
    Task,
    TaskNews,
    Verdict,
)
from hopper_federation.delegation.narrowing import Redelegation, at_origin, handed_on
from hopper_federation.errors import CapabilityDenied, FanOutLimit, HopLimit
from tests.federation.sim.memory_store import Change, Chore, MemoryDelegations, Row, Tables, undone
from tests.federation.sim.sim_router import SimRouter, SimTask, TaskState, What

if TYPE_CHECKING:
    from tests.federation.sim.world import World

T = TypeVar("T")

TIMEOUT = 10.0
PAUSE = 1.0
LONGEST_PAUSE = 300.0
SYNC_EVERY = 3600.0
KEEP_EVERY = 100.0
PAGE = 3
BATCH = 50
NEVER = 1e9
RESYNC = "RESYNC_NEEDED"
REVOKED = "PEER_REVOKED"

_WAITS_FOR_PEOPLE = frozenset({State.QUARANTINED, State.SUSPECT, State.ORPHANED, State.DISPUTED})


_FINAL = frozenset(State) - OPEN - {State.ORPHANED, State.DISPUTED}
"""What nothing changes any more, but a peer that refuses a result."""


class Crash(Exception):
    """The Hopper went down at this very step."""


@dataclass(frozen=True)
class Ruled:
    """What a simulated border says."""

    allowed: bool
    quarantined: bool = False
    rule: str = "sim"
    reason: str = ""
    detail: str = ""
    retry_after: float | None = None


@dataclass
class Line:
    """
    The sending to one peer: gone with the process.

    Attributes:
        due: When notes are to be compared next.
        needed: It takes nothing before they have been.
        pages: What is left of the comparison that is under way.
    """

    busy: bool = False
    calls: int = 0
    pause: float = PAUSE
    not_before: float = 0.0
    due: float = 0.0
    needed: bool = False
    sending: tuple[str, ...] = ()
    pages: list[list[Note]] | None = None
    after: str = ""


@dataclass(frozen=True)
class Cargo:
    """What an offer carries besides what the core reads."""

    what: What
    allowed: Redelegation
    path: tuple[str, ...]


@dataclass
class Trust:
    """
    Whom it is paired with: written down elsewhere, and never lost here.

    Attributes:
        draining: Until when what is under way with a peer may go on.
    """

    peers: set[str]
    revoked: dict[str, Gone] = field(default_factory=dict)
    draining: dict[str, float] = field(default_factory=dict)


class SimHopper:
    """
    One Hopper.

    Args:
        peers: Whom it is paired with.
    """

    lies = False

    def __init__(self, world: World, name: str, peers: set[str]) -> None:
        self.world = world
        self.name = name
        self.trust = Trust(set(peers))
        self.tables = Tables()
        self.router = SimRouter(world, name, set(peers), self.wake)
        self.up = False
        self.life = 0
        self.incarnation = 1
        self.restored = False
        self.restored_last = 0.0
        self._restored_at: float | None = None  # by its own clock; None: it has not come up since
        self.unsynced: list[list[Change]] = []
        self.copy: Tables | None = None
        self._born = world.now
        self._skew = 0.0
        self._rate = 1.0
        self._lines: dict[str, Line] = {}
        self._pump_at: float | None = None
        self._keep_at = 0.0
        self._asked: dict[tuple[Role, str], None] = {}

    # Being up and down.

    def steady(self) -> float:
        """Its steady clock: even while it is up, and as wrong as its wall clock was when it started."""
        return self._born + self._skew + (self.world.now - self._born) * self._rate

    def start(self) -> None:
        """Come up, if it is down."""
        if self.up:
            return
        world, rng = self.world, self.world.rng
        if not self.router.up:
            self.router.comes_up()
        self.up, self.life, self._born = True, self.life + 1, world.now
        self._rate = 1 + rng.uniform(-1, 1) * world.plan.drift
        self._skew = rng.choice([0.0, rng.uniform(-1, 1) * world.plan.skew])
        if self._restored_at is None:
            self._restored_at = self.steady()
        self._lines = {peer: Line(due=world.now) for peer in self._partners()}
        self._asked.clear()
        self._keep_at = 0.0
        for name, task in self.router.tasks.items():
            if task.inbound:
                self.router.news[name] = None
        self._safely(self._begin)
        self.wake()

    def _begin(self) -> None:
        self.txn(lambda desk, store: desk.restarted(self._partners()))
        if self.restored:
            self._sweep()
        for peer, why in list(self.trust.revoked.items()):
            self.gone(peer, why)
        for peer, until in list(self.trust.draining.items()):
            self.world.at(until, lambda peer=peer: self.drained(peer))  # type: ignore[misc]
        for key in self.tables.delegations:
            self._ask_people(self.tables.delegations[key])

    def _partners(self) -> list[str]:
        return sorted({*self.trust.peers, *self.trust.draining})

    def _sweep(self) -> None:
        """After a restore: what was made of hand-overs that nobody here knows of any more is stopped."""
        for task in list(self.router.tasks.values()):
            if (
                task.inbound
                and (Role.IN, task.inbound) not in self.tables.delegations
                and not task.state.over
            ):
                self.router.cancel(task.name)
                self.step()

    def down(self, machine: bool | None = None) -> None:
        """The process dies, or the whole machine."""
        world, rng = self.world, self.world.rng
        machine = rng.random() < 0.5 if machine is None else machine
        world.note(f"{self.name} goes down, {'the machine' if machine else 'the process'}")
        self.up = False
        self.router.unguarded()
        if machine:
            self.router.goes_down()
            self._lose_power()
        world.after(rng.choice([1.0, 60.0, 2000.0, 7000.0]), self.start)

    def _lose_power(self) -> None:
        if self.world.plan.disk_lies:
            for changes in reversed(self.unsynced):
                undone(changes)
        self.unsynced.clear()

    def restore(self, copy: Tables) -> None:
        """Bring back an old copy of its tables."""
        self.world.note(f"{self.name} is restored from a copy")
        if self.up:
            self.down(machine=False)
        self.tables = copy.copy()
        self.unsynced.clear()
        self.incarnation += 1
        self.restored, self._restored_at, self.restored_last = True, None, self.world.now
        store = MemoryDelegations(self.tables, self.world.number, self.name)
        Desk(store, self.steady()).restored(sorted(self._open_with()))

    def step(self) -> None:
        """A place where it may go down."""
        if not self.world.calm and self.world.rng.random() < self.world.plan.crash:
            raise Crash

    def _safely(self, what: Callable[[], object]) -> None:
        try:
            what()
        except Crash:
            self.down()

    def txn(self, work: Callable[[Desk, MemoryDelegations], T], by: str = "") -> T:
        """
        A transaction.

        Args:
            by: Who asks for it: nothing may change that is not between it and this Hopper.
        """
        self.step()
        sending = frozenset(message for line in self._lines.values() for message in line.sending)
        store = MemoryDelegations(self.tables, self.world.number, self.name, sending)
        desk = Desk(store, self.steady(), self, self.name)
        try:
            answer = work(desk, store)
            self.step()
        except BaseException:
            undone(store.changes)
            raise
        self._committed(desk, store, by)
        self.step()
        return answer

    def _committed(self, desk: Desk, store: MemoryDelegations, by: str) -> None:
        world = self.world
        for before, each in store.changed():
            if by and each.peer != by:
                world.wrong(f"I4 {by} has changed {each.id} at {self.name}, which is with {each.peer}")
            if (
                before is not None
                and before.state is not each.state
                and before.state in _FINAL
                and (each.state is not State.DISPUTED)
            ):
                world.wrong(f"{each.role} {each.id} at {self.name} was {before.state} and is {each.state}")
            if each.role is Role.IN and each.state.open and not self.lies:
                self._one_copy(each)
            self._ask_people(each)
        for raised in desk.alarms:
            world.alarm(self, raised)
        if world.plan.disk_lies:
            self.unsynced.append(store.changes)
            if world.rng.random() < 0.2:
                self.unsynced.clear()

    def _one_copy(self, each: Delegation) -> None:
        keys = [
            key for key in self.tables.by_uid[each.task_uid] if key[0] is Role.IN and key in self.tables.open
        ]
        if len(keys) > 1:
            self.world.wrong(f"I6 {each.task_uid} is at {self.name} as {sorted(key[1] for key in keys)}")

    # Its policy.

    def rule_on(self, peer: str, facts: OfferFacts) -> Ruled:
        """Its policy: most may come in, some of it by way of a person, later, or not at all."""
        world = self.world
        if peer in self.trust.revoked or peer in self.trust.draining:
            return Ruled(False, reason="CAPABILITY_DENIED")
        verdict = world.borders.get((self.name, peer))
        if verdict == "no" or (verdict == "moody" and world.rng.random() < 0.5):
            return Ruled(False, reason="CAPABILITY_DENIED")
        if verdict == "later" and world.now < world.began + 3000.0:
            return Ruled(False, reason="QUOTA", retry_after=200.0)
        taken = [key for key in self.tables.open if key[0] is Role.IN]
        if sum(self.tables.delegations[key].peer == peer for key in taken) >= world.plan.quota:
            return Ruled(False, reason="QUOTA", retry_after=60.0)
        return Ruled(True, quarantined=world.rng.random() < world.plan.quarantine)

    def may_have_been_here(self, facts: OfferFacts) -> bool:
        """Whether what is not known here may have been taken before an old copy was brought back."""
        return self.restored and facts.made <= (self._restored_at or 0.0) + CLOCKS_APART

    # What it does when something has happened, or a clock has run out.

    def wake(self, after: float = 0.05) -> None:
        """Look around soon."""
        when = self.world.now + after
        if not self.up or (self._pump_at is not None and self._pump_at <= when):
            return
        self._pump_at = when
        life = self.life
        self.world.at(when, lambda: self._pump(when, life))

    def _pump(self, when: float, life: int) -> None:
        if self._pump_at == when:
            self._pump_at = None
        if self.up and life == self.life:
            self._safely(self._look_around)
            if self.up:
                self._sleep()

    def _look_around(self) -> None:
        if self.router.abroad:
            self._claim()
        if self.router.lost or self.world.now >= self._keep_at:
            self._keep_claims()
        if self.router.news:
            self._watch()
        if self.tables.errands:
            self._run_errands()
        world, steady = self.world, self.steady()
        if any(clock <= steady for clock in self.tables.clocks.values()):
            self.txn(lambda desk, store: desk.tick())
        for peer, line in self._lines.items():
            if not line.busy and world.now >= line.not_before:
                self.send(peer, line)

    def _sleep(self) -> None:
        """Until the next clock."""
        world, steady = self.world, self.steady()
        waits = [clock - steady for clock in self.tables.clocks.values()]
        if self.tables.errands:
            waits.append(10.0)
        if self.router.abroad:
            waits.append(self._keep_at - world.now)
        open_with = self._open_with()
        for peer, line in self._lines.items():
            if not line.busy:
                waits.append(max(self._next_to_say(peer, line, open_with), line.not_before - world.now))
        soonest = min(waits, default=NEVER)
        if soonest < NEVER:
            self.wake(max(0.05, soonest))

    def _next_to_say(self, peer: str, line: Line, open_with: set[str]) -> float:
        """How long there is nothing to be said to a peer, in seconds."""
        if line.pages is not None or self._must_sync(peer):
            return 0.0
        rows = self.tables.outbox.get(peer)
        until = min((row.not_before for row in rows.values()), default=NEVER) if rows else NEVER
        # What could be sent now is held back by what was said of the same hand-over before it.
        said = max(1.0, until - self.steady())
        return min(said, line.due - self.world.now if peer in open_with else NEVER)

    # Handing over.

    def _claim(self) -> None:
        for task in list(self.router.abroad.values()):
            if task.at in self.trust.peers:
                if self.router.claim_child(task):
                    self._claimed(task)
            elif task.at not in self.trust.draining or not task.claims:
                self.router.without(task.at, self._is_with_peer)

    def _claimed(self, task: SimTask) -> None:
        self.step()
        offered = self.txn(lambda desk, store: self._offer(desk, store, task))
        self.world.copies(task.what.uid)
        if offered is None:
            self.router.give_back(task.child, task.token)

    def _may_have_run(self, task: SimTask) -> bool:
        """What must not run twice, was claimed before, and is in no table: the copy may be older than its hand-over."""
        known = self.tables.by_task.get(task.child)
        return self.restored and task.what.exclusive and task.claims > 1 and known is None

    def _is_with_peer(self, child: str) -> bool:
        keys = self.tables.by_task.get(child, ())
        return any(key in self.tables.unsettled for key in keys)

    def _offer(self, desk: Desk, store: MemoryDelegations, task: SimTask) -> Delegation | None:
        """None: it may not go there."""
        peer = task.at
        adopted = desk.claimed(task.child, task.token)
        if adopted is not None:
            return adopted
        if self._may_have_run(task):
            return desk.doubt(self._hand_over(store, task, ""))
        world, what = self.world, task.what
        try:
            allowed = self._allowed(store, task, peer)
        except (CapabilityDenied, HopLimit, FanOutLimit):
            return None
        path = (*task.path, self.name)
        facts = OfferFacts(
            sealed=f"{what.uid}#{world.number()}".encode(),
            task_uid=what.uid,
            origin=path[0],
            path=path,
            lease=what.lease,
            exclusive=what.exclusive,
            hops=allowed.hops,
            fan_out=allowed.fan_out,
            schedule_to_start=what.start,
            title=world.load(Cargo(what, allowed, path)),
            made=self.steady(),
        )
        return desk.offer(self._hand_over(store, task, facts.title), Offer(facts.sealed, facts))

    def _hand_over(self, store: MemoryDelegations, task: SimTask, cargo: str) -> Delegation:
        what, now = task.what, self.steady()
        id_ = f"{self.name}d{self.world.number()}"
        self.world.begun[id_] = self.world.now
        return Delegation(
            id=id_,
            role=Role.OUT,
            peer=task.at,
            task_uid=what.uid,
            epoch=store.next_epoch(what.uid),
            state=State.OFFERED,
            lease=what.lease,
            exclusive=what.exclusive,
            task=task.child,
            token=task.token,
            start_by=now + what.start,
            close_by=now + what.close,
            title=cargo,
            created=now,
            updated=now,
        )

    def _allowed(self, store: MemoryDelegations, task: SimTask, peer: str) -> Redelegation:
        others = [
            each for each in store.of_task_uid(task.what.uid) if each.role is Role.OUT and each.state.open
        ]
        spent = sum(1 + self.world.cargo[each.title].allowed.fan_out for each in others if each.title)
        if not task.path:
            return at_origin(hops=task.hops, fan_out=task.fan_out, spent=spent)
        came = self.tables.delegations.get((Role.IN, task.inbound))
        if came is None:
            raise CapabilityDenied("nobody knows where it came from")
        return handed_on(self.world.cargo[came.title].allowed, peer, spent=spent)

    def _keep_claims(self) -> None:
        self._keep_at, self.router.lost = self.world.now + KEEP_EVERY, False
        for key in list(self.tables.unsettled):
            if key[0] is Role.OUT:
                self._keep_claim(self.tables.delegations[key])

    def _keep_claim(self, each: Delegation) -> bool:
        """Returns whether its claim is in force, or is again."""
        if self.router.renew(each.task, each.token):
            return True
        task = self.router.leg(each.task)
        if task is None:
            if each.state.open:
                self.txn(lambda desk, store: desk.cancel(each.id, "over", by_router=True))
            return False
        if not self.router.claim_child(task):
            return False
        self.step()
        self.txn(lambda desk, store: desk.claimed(task.child, task.token))
        return True

    # Taking over.

    def _watch(self) -> None:
        for name in list(self.router.news):
            each = self.tables.delegations.get((Role.IN, self.router.tasks[name].inbound))
            news = None if each is None or each.task != name else self._news_of(each)
            if each is not None and each.task != name and each.state.open:
                continue  # its errand is not done
            if each is not None and news is not None:
                self.txn(lambda desk, store, each=each, news=news: desk.news(each.id, news))  # type: ignore[misc]
            self.router.news.pop(name, None)

    def _news_of(self, each: Delegation) -> TaskNews | None:
        task = self.router.tasks[each.task]
        if task.state.over:
            outcome = _OUTCOMES.get(task.state, Outcome.FAILED)
            return TaskNews(
                outcome=outcome,
                unplaced=task.state is TaskState.REJECTED,
                sealed=f"{task.result}|{each.id}".encode(),
            )
        if task.run is not None:
            return TaskNews(running=True)
        return None

    # People.

    def _ask_people(self, each: Delegation) -> None:
        key = (each.role, each.id)
        if each.state in _WAITS_FOR_PEOPLE and key not in self._asked:
            self._asked[key] = None
            life = self.life
            self.world.after(self.world.rng.uniform(60, 3600), lambda: self._person(key, life))

    def _person(self, key: tuple[Role, str], life: int) -> None:
        if not self.up or self.life != life:
            return
        self._asked.pop(key, None)
        each = self.tables.delegations.get(key)
        if each is not None and each.state in _WAITS_FOR_PEOPLE:
            self._safely(lambda: self._decide(each))
            if self.up:
                self._ask_people(self.tables.delegations[key])
                self.wake()

    def _decide(self, each: Delegation) -> None:
        rng, world = self.world.rng, self.world
        if each.state is State.QUARANTINED:
            if each.role is Role.IN:
                yes = rng.random() < 0.7
                if yes and not each.may_be_begun:
                    return
                self.txn(lambda desk, store: desk.decide(each.id, yes))
            return
        if each.state is State.SUSPECT:
            if world.now < world.began + 6 * 3600 and rng.random() < 0.8:
                return
            verdict = Verdict.RETRY if world.never_ran(each) else Verdict.GIVE_UP
        elif each.state is State.ORPHANED:
            verdict = Verdict.DISCARD if each.exclusive or rng.random() < 0.5 else Verdict.KEEP
        else:
            verdict = rng.choice([Verdict.KEEP, Verdict.GIVE_UP])
        self.txn(lambda desk, store: desk.resolve(each.role, each.id, verdict, "a person said so"))

    def call_off(self, each: Delegation) -> None:
        """A person calls a hand-over off."""

        def work(desk: Desk, store: MemoryDelegations) -> None:
            if each.role is Role.OUT:
                desk.cancel(each.id, "a person", by_router=False)
            elif each.state is State.QUARANTINED:
                desk.decide(each.id, False, "a person")
            else:
                store.errand(each, Errand(Task.STOP, "CANCELLED", "a person"))

        if self.up:
            self._safely(lambda: self.txn(work))
            self.wake()

    # Errands.

    def _run_errands(self) -> None:
        waits: set[tuple[Role, str]] = set()
        for chore in list(self.tables.errands.values()):
            key = (chore.role, chore.delegation)
            if key not in waits and chore.position in self.tables.errands and not self._run_errand(chore):
                waits.add(key)

    def _run_errand(self, chore: Chore) -> bool:
        """Returns whether it is done."""
        about = self.tables.delegations[chore.role, chore.delegation]
        if self._does_not_answer(about):
            return False
        match chore.errand.task:
            case Task.SUBMIT:
                return self._make(chore, about)
            case Task.PROGRESS | Task.FEEDBACK:
                return self._done(chore)
            case Task.STOP:
                if about.task:
                    self.router.cancel(about.task)
                self.step()
                return self._done(chore)
        answer = self._tell_router(about, chore.errand)
        self.step()
        if answer == "stale":
            self._keep_claim(about)
            return False
        return self._done(chore, lambda desk: self._settled(desk, about))

    def _make(self, chore: Chore, about: Delegation) -> bool:
        kept = chore.errand.reason == "KEEP"
        if not kept and not about.may_be_begun:
            return not about.state.open and self._done(chore)
        if not kept and self.world.refused(about.id):
            return self._done(chore, lambda desk: desk.refused(about.id, "LIMIT", "too many"))
        name = self._submit(about, kept)
        self.step()
        self.router.news[name] = None
        if not kept:
            self.world.after(self.world.rng.uniform(60, 300), lambda: self._unplaced(about.id, name))
        return self._done(chore, None if kept else lambda desk: desk.submitted(about.id, name))

    def _unplaced(self, delegation: str, name: str) -> None:
        """What nobody here can do goes back."""
        if self.up and self.router.tasks[name].state is TaskState.WAITING:
            self._safely(lambda: self.txn(lambda desk, store: desk.unplaced(delegation)))
            self.wake()

    def _does_not_answer(self, about: Delegation) -> bool:
        """The router is out of reach for a moment: what should be stopped goes on."""
        if self.world.calm or self.world.rng.random() >= self.world.plan.unreachable:
            return False
        made = self.router.tasks.get(about.task)
        if made is not None and made.run is not None:
            made.run.unguarded = True
        return True

    def _settled(self, desk: Desk, about: Delegation) -> None:
        done = desk.settled(Role.OUT, about.id)
        there = done.peer in self._lines  # what is said to who is gone stays for when it is back
        if there and done.state is State.COMPLETED and self.world.rng.random() < 0.3:
            desk.appraise(Role.OUT, about.id, Appraisal(b"good"))

    def _submit(self, about: Delegation, kept: bool) -> str:
        cargo = self.world.cargo[about.title]
        name = f"{about.id}{'KEEP' if kept else ''}@{self.name}"
        task = SimTask(
            name=name,
            what=cargo.what,
            path=cargo.path,
            hops=cargo.allowed.hops,
            fan_out=cargo.allowed.fan_out,
            inbound="" if kept else about.id,
            start_by=self.world.now + cargo.what.start,
        )
        if kept:
            self.world.exempt(cargo.what.uid)
        return self.router.submit(name, task)

    def _tell_router(self, about: Delegation, errand: Errand) -> str:
        if errand.task is Task.COMPLETE:
            result = about.result.decode().partition("|")[0]
            return self.router.end(about.task, about.token, TaskState.SUCCEEDED, result)
        if errand.task is Task.FAIL:
            return self.router.end(about.task, about.token, TaskState.FAILED, "")
        return self.router.give_back(about.task, about.token, may_come_again=errand.may_come_again)

    def _done(self, chore: Chore, tell: Callable[[Desk], object] | None = None) -> bool:
        def work(desk: Desk, store: MemoryDelegations) -> None:
            store.drop(store.tables.errands, chore.position)
            if tell is not None:
                tell(desk)

        self.txn(work)
        return True

    # Sending.

    def _must_sync(self, peer: str) -> bool:
        behind = self.restored and self.tables.synced.get(peer, 1) != self.incarnation
        return behind or self._lines[peer].needed

    def _open_with(self) -> set[str]:
        return {self.tables.delegations[key].peer for key in self.tables.open}

    def send(self, peer: str, line: Line) -> None:
        """Send a peer what there is to be said, or compare notes."""
        is_time = self.world.now >= line.due and peer in self._open_with()
        if line.pages is not None or self._must_sync(peer) or is_time:
            self._sync(peer, line)
        elif self.tables.outbox.get(peer):
            batch = MemoryDelegations(self.tables, self.world.number).batch(peer, self.steady(), BATCH)
            if batch:
                self._deliver(peer, line, batch)

    def _deliver(self, peer: str, line: Line, batch: Sequence[Row]) -> None:
        messages = self.worded([row.message for row in batch])
        line.sending = tuple(message.id for message in messages)
        for row in batch:
            self.world.said(self, row)
        said = {message.id: message for message in messages}
        said_at = {row.message.id: row.created for row in batch}

        def answered(answer: list[Receipt] | str) -> None:
            line.sending = ()
            if isinstance(answer, str):
                self._refused(peer, answer)
                return

            def work(desk: Desk, store: MemoryDelegations) -> None:
                for each in answer:
                    desk.answered(each.message, each, said_at.get(each.message, self.steady()))

            self.txn(work)
            for each in [] if self.lies else answer:
                self.world.answered(peer, said[each.message], each)

        incarnation = self.incarnation
        self._call(peer, lambda other: other.take(self.name, messages, incarnation), answered)

    def worded(self, messages: list[Message]) -> list[Message]:
        """As they are sent."""
        return messages

    def _refused(self, peer: str, reason: str) -> None:
        if reason == RESYNC:
            self._lines[peer].needed = True
        else:
            self.trust.revoked[peer] = Gone.REVOKED_BY_PEER
            self.gone(peer, Gone.REVOKED_BY_PEER)

    def _call(self, peer: str, ask: Callable[[SimHopper], T], then: Callable[[T], None]) -> None:
        """Call a peer; if no answer comes in time, call again later."""
        line, life, world = self._lines[peer], self.life, self.world
        line.busy, line.calls = True, line.calls + 1
        call = line.calls

        def waits() -> bool:
            same = self.up and self.life == life and self._lines.get(peer) is line
            return same and line.busy and line.calls == call

        def came(answer: T) -> None:
            if waits():
                line.busy, line.pause, line.not_before = False, PAUSE, 0.0
                self._safely(lambda: then(answer))
                self.wake()

        def late() -> None:
            if waits():
                self._unanswered(line)

        def arrive() -> None:
            other = world.hoppers[peer]
            if other.up:
                other.serve(self.name, lambda: world.carry(peer, self.name, partial(came, ask(other))))

        world.carry(self.name, peer, arrive)
        world.after(TIMEOUT, late)

    def _unanswered(self, line: Line) -> None:
        world = self.world
        line.busy, line.pages, line.due = False, None, world.now
        sending, line.sending = line.sending, ()
        line.not_before = world.now + line.pause * world.rng.uniform(0.6, 1.4)
        line.pause = min(line.pause * 2, LONGEST_PAUSE)
        if sending:
            self._safely(lambda: self.txn(lambda desk, store: store.failed_to_send(sending)))
        self.wake(max(0.05, line.not_before - world.now))

    def serve(self, peer: str, work: Callable[[], None]) -> None:
        """A peer calls."""
        self._safely(work)
        if self.up:
            self._alive(peer)

    def _alive(self, peer: str) -> None:
        """A sign of life of a peer."""
        line = self._lines.get(peer)
        if line is not None and line.not_before > self.world.now:
            line.not_before = 0.0
            self.wake()

    def take(self, peer: str, batch: Sequence[Message], incarnation: int) -> list[Receipt] | str:
        """Messages have come. A word: why nothing was done."""
        if not self._knows(peer):
            return REVOKED
        world = self.world
        for message in batch:
            world.heard(self, peer, message)

        def work(desk: Desk, store: MemoryDelegations) -> list[Receipt] | str:
            known = store.tables.compared.get(peer)
            if known != incarnation:
                if known is not None and store.open_of(peer):
                    return RESYNC
                store.put(store.tables.compared, peer, incarnation)
            return [desk.take(peer, each) for each in batch]

        answer = self.txn(work, by=peer)
        self.wake()
        return answer

    def _knows(self, peer: str) -> bool:
        until = self.trust.draining.get(peer)
        return peer not in self.trust.revoked and (until is None or self.world.now < until)

    # Comparing notes.

    def _sync(self, peer: str, line: Line) -> None:
        if line.pages is None:
            notes = [
                note_of(each) for each in MemoryDelegations(self.tables, self.world.number).open_of(peer)
            ]
            line.pages = [notes[begin : begin + PAGE] for begin in range(0, len(notes), PAGE)] or [[]]
            line.after = ""
        page, last = line.pages[0], len(line.pages) == 1
        after, up_to = line.after, "" if last else page[-1].delegation
        incarnation = self.incarnation

        def answered(answer: tuple[list[Note], list[str]] | str) -> None:
            if isinstance(answer, str):
                self._refused(peer, answer)
                return

            def work(desk: Desk, store: MemoryDelegations) -> None:
                for note in answer[0]:
                    desk.noted(peer, note)
                for each in answer[1]:
                    desk.unknown_there(peer, each)
                if last:
                    store.put(store.tables.synced, peer, incarnation)

            self.txn(work, by=peer)
            line.pages, line.after = (None if last else (line.pages or [])[1:]), up_to
            if last:
                line.due, line.needed = self.world.now + SYNC_EVERY, False

        self._call(peer, lambda other: other.compare(self.name, page, after, up_to, incarnation), answered)

    def compare(
        self, peer: str, notes: Sequence[Note], after: str, up_to: str, incarnation: int
    ) -> tuple[list[Note], list[str]] | str:
        """A peer says what it knows."""
        if not self._knows(peer):
            return REVOKED

        def work(desk: Desk, store: MemoryDelegations) -> tuple[list[Note], list[str]]:
            ours = [desk.noted(peer, note) for note in notes]
            unknown = [note.delegation for note, our in zip(notes, ours, strict=True) if our is None]
            named = {note.delegation for note in notes}
            more = [
                note
                for note in desk.notes(peer)
                if note.delegation not in named
                and note.delegation > after
                and (not up_to or note.delegation <= up_to)
            ]
            if not up_to:
                store.put(store.tables.compared, peer, incarnation)
            return [our for our in ours if our is not None] + more, unknown

        answer = self.txn(work, by=peer)
        self.wake()
        return answer

    # Trust.

    def revoke(self, peer: str, why: Gone, drain: float | None) -> None:
        """The owner revokes a peer: durable at once; *drain*: what is under way may go on for so long."""
        if drain is None:
            self.trust.revoked.setdefault(peer, why)
            if self.up:
                self._safely(lambda: self.gone(peer, why))
            return
        self.trust.draining.setdefault(peer, self.world.now + drain)
        self.trust.peers.discard(peer)
        self.router.without(peer, self._is_with_peer)
        self.world.after(drain, lambda: self.drained(peer))

    def drained(self, peer: str) -> None:
        """What was under way with a peer may go on no longer."""
        self.trust.draining.pop(peer, None)
        self.revoke(peer, Gone.REVOKED, None)

    def gone(self, peer: str, why: Gone) -> None:
        """A peer is none any more."""
        self.trust.peers.discard(peer)
        self._lines.pop(peer, None)

        def work(desk: Desk, store: MemoryDelegations) -> None:
            desk.peer_gone(peer, why)
            store.give_up(peer)

        self.txn(work)
        self.router.without(peer, self._is_with_peer)
        self.wake()


_OUTCOMES = {TaskState.SUCCEEDED: Outcome.SUCCEEDED, TaskState.CANCELLED: Outcome.CANCELLED}
