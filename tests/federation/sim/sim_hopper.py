"""
A simulated Hopper: the desk and its state machines as they are, in shells that are as small as can be.

It may go down before or after every transaction, and between the router's and its own. What it had in memory is gone
then, what it had committed is not, and its clock jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from hopper_federation.delegation.desk import Desk, due_of, note_of
from hopper_federation.delegation.model import (
    Delegation,
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
from tests.federation.sim.memory_store import Chore, MemoryDelegations, Tables, copied
from tests.federation.sim.sim_router import SimRouter, SimTask, TaskState

if TYPE_CHECKING:
    from tests.federation.sim.world import World

T = TypeVar("T")

TIMEOUT = 10.0
PAUSE = 1.0
LONGEST_PAUSE = 300.0
SYNC_EVERY = 3600.0
FAN_OUT = 16


class Crash(Exception):
    """The Hopper went down at this very step."""


@dataclass(frozen=True)
class Ruled:
    """What a simulated border says."""

    allowed: bool
    quarantined: bool
    rule: str = "sim"
    reason: str = ""
    detail: str = ""
    retry_after: float | None = None


@dataclass
class Line:
    """The sending to one peer: gone with the process."""

    busy: bool = False
    pause: float = PAUSE
    not_before: float = 0.0
    synced: float = float("-inf")


class SimHopper:
    """
    One Hopper.

    Args:
        peers: Whom it is paired with.
    """

    def __init__(self, world: World, name: str, peers: set[str]) -> None:
        self.world = world
        self.name = name
        self.peers = peers
        self.tables = Tables()
        self.router = SimRouter(name, set(peers), world.ledger, world.finished)
        self.up = False
        self.life = 0
        self.skew = 0.0
        self.rate = 1.0
        self.revoked: set[str] = set()
        self._lines: dict[str, Line] = {}
        self._pump_at: float | None = None
        self._told: dict[str, tuple[bool, float]] = {}

    # Being up and down.

    def steady(self) -> float:
        """Its steady clock: even while it is up, and wrong by as much as its wall clock was when it started."""
        return self.world.now * self.rate + self.skew

    def start(self) -> None:
        """Come up, if it is down."""
        if self.up:
            return
        rng = self.world.rng
        self.up, self.life = True, self.life + 1
        self.rate = 1 + rng.uniform(-1e-5, 1e-5)
        self.skew = rng.choice([0.0, 0.0, rng.uniform(-600, 600)])
        self._lines = {peer: Line() for peer in sorted(self.peers)}
        self._told.clear()
        self._safely(lambda: self._txn(lambda desk, store: desk.restarted(sorted(self.peers))))
        self.wake()

    def _down(self) -> None:
        self.world.note(f"{self.name} goes down")
        self.up = False
        self.router.workers_die(self.world.now)
        self.world.after(self.world.rng.choice([1.0, 60.0, 2000.0, 7000.0]), self.start)

    def _step(self) -> None:
        """A place where it may go down."""
        if not self.world.calm and self.world.rng.random() < self.world.plan.crash:
            raise Crash

    def _safely(self, what: Callable[[], object]) -> None:
        try:
            what()
        except Crash:
            self._down()

    def _txn(self, work: Callable[[Desk, MemoryDelegations], T]) -> T:
        self._step()
        tables = copied(self.tables)
        store = MemoryDelegations(tables, self.name)
        desk = Desk(store, self.steady(), self, self.name)
        answer = work(desk, store)
        self._step()
        self.tables = tables
        self._step()
        return answer

    def rule_on(self, peer: str, facts: OfferFacts) -> Ruled:
        """Its policy: everything may come in, some of it by way of a person."""
        quarantined = self.world.rng.random() < self.world.plan.quarantine
        return Ruled(allowed=peer not in self.revoked, quarantined=quarantined, reason="CAPABILITY_DENIED")

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
        self.router.work(self.world.now)
        self._claim()
        self._keep_claims()
        self._watch()
        self._run_errands()
        self._people()
        if any((clock := due_of(each)) is not None and clock <= self.steady() for each in self._all()):
            self._txn(lambda desk, store: desk.tick())
        for peer in self._lines:
            self._send(peer)
        self.router.work(self.world.now)

    def _sleep(self) -> None:
        """Until the next clock."""
        steady = self.steady()
        waits = [clock - steady for each in self._all() if (clock := due_of(each)) is not None]
        due = self.router.next_due()
        if due is not None:
            waits.append(due - self.world.now)
        if self.tables.errands:
            waits.append(5.0)
        if any(task.at in self.peers and not task.state.over for task in self.router.tasks.values()):
            waits.append(100.0)
        waits += [line.not_before - self.world.now for peer, line in self._lines.items() if self._waits(peer)]
        if waits:
            self.wake(max(0.05, min(waits)))

    def _all(self) -> list[Delegation]:
        return list(self.tables.delegations.values())

    # Handing over.

    def _claim(self) -> None:
        for peer in sorted(self.peers):
            for task in self.router.claim(peer, self.world.now):
                self._step()
                self._txn(lambda desk, store, task=task, peer=peer: self._offer(desk, store, task, peer))  # type: ignore[misc]

    def _offer(self, desk: Desk, store: MemoryDelegations, task: SimTask, peer: str) -> None:
        if desk.claimed(task.name, task.token) is not None:
            return
        epoch = store.next_epoch(task.uid)
        path = (*task.path, self.name)
        rng = self.world.rng
        lease = rng.choice(self.world.plan.leases)
        facts = OfferFacts(
            sealed=f"{task.uid}#{epoch}".encode(),
            task_uid=task.uid,
            origin=path[0],
            path=path,
            lease=lease,
            exclusive=task.exclusive,
            hops=task.hops - 1,
            fan_out=task.fan_out,
            title=repr((sorted(task.able), task.effort, task.fails)),
        )
        new = Delegation(
            id=f"{self.name}d{store._next()}",
            role=Role.OUT,
            peer=peer,
            task_uid=task.uid,
            epoch=epoch,
            state=State.OFFERED,
            lease=lease,
            exclusive=task.exclusive,
            task=task.name,
            token=task.token,
            start_by=self.steady() + 4 * 3600,
            close_by=self.steady() + 12 * 3600,
            offer=facts.sealed,
            created=self.steady(),
        )
        desk.offer(new, Offer(facts.sealed, facts))

    def _keep_claims(self) -> None:
        for each in self._all():
            if each.role is not Role.OUT or each.settled:
                continue
            renewed = not each.state.open or self.router.renew(each.task, each.token, self.world.now)
            if not renewed and self.router.tasks[each.task].state.over:
                self._txn(lambda desk, store, each=each: desk.cancel(each.id, "over", by_router=True))  # type: ignore[misc]

    # Taking over.

    def _watch(self) -> None:
        for each in self._all():
            if each.role is not Role.IN or not each.task or each.task not in self.router.tasks:
                continue
            news = self._news_of(each)
            if news is not None:
                self._txn(lambda desk, store, each=each, news=news: desk.news(each.id, news))  # type: ignore[misc]

    def _news_of(self, each: Delegation) -> TaskNews | None:
        task = self.router.tasks[each.task]
        if task.state.over:
            if each.result or each.settled or not (each.state.open or each.state is State.RECLAIMED):
                return None
            outcome = {TaskState.SUCCEEDED: Outcome.SUCCEEDED, TaskState.CANCELLED: Outcome.CANCELLED}.get(
                task.state, Outcome.FAILED
            )
            return TaskNews(
                outcome=outcome, unplaced=task.state is TaskState.REJECTED, sealed=f"{task.result}|".encode()
            )
        if task.state is TaskState.RUNNING and each.state is State.ACCEPTED:
            return TaskNews(running=True)
        return None

    def _people(self) -> None:
        """A person looks, now and then, at what waits for one; when all is calm, at all of it."""
        rng = self.world.rng
        for each in self._all():
            if not self.world.calm and rng.random() < 0.9:
                continue
            if each.state is State.QUARANTINED and each.role is Role.IN:
                yes = rng.random() < 0.7
                self._txn(lambda desk, store, each=each, yes=yes: desk.decide(each.id, yes))  # type: ignore[misc]
            elif each.state is State.SUSPECT and self.world.now > self.world.began + 8 * 3600:
                self._txn(
                    lambda desk, store, each=each: desk.resolve(Role.OUT, each.id, Verdict.GIVE_UP)  # type: ignore[misc]
                )

    # Errands.

    def _run_errands(self) -> None:
        seen: set[tuple[Role, str]] = set()
        for chore in list(self.tables.errands):
            key = (chore.role, chore.delegation)
            if key in seen:
                continue
            if not self._run_errand(chore):
                seen.add(key)

    def _run_errand(self, chore: Chore) -> bool:
        """Returns whether it is done."""
        about = self.tables.delegations[chore.role, chore.delegation]
        task = chore.errand.task
        if task is Task.SUBMIT:
            name = self._submit(about, chore.errand.reason)
            self._step()
            self._done(chore, lambda desk: desk.submitted(about.id, name))
            return True
        if task in (Task.PROGRESS, Task.FEEDBACK):
            self._done(chore)
            return True
        if task is Task.STOP:
            if about.task:
                self.router.cancel(about.task)
            self._step()
            self._done(chore)
            return True
        answer = self._tell_router(about, task)
        self._step()
        if answer == "stale":
            return False
        self._done(chore, lambda desk: desk.settled(Role.OUT, about.id))
        return True

    def _submit(self, about: Delegation, reason: str) -> str:
        able, effort, fails = eval(about.title)  # noqa: S307 - written by `_offer`
        facts = self.world.offers[about.id]
        task = SimTask(
            name=f"{about.id}{reason}@{self.name}",
            uid=about.task_uid,
            able=frozenset(able),
            exclusive=about.exclusive,
            effort=effort,
            fails=fails,
            path=facts.path,
            hops=facts.hops,
            fan_out=facts.fan_out,
            inbound=about.id,
            start_by=self.world.now + 2 * 3600,
        )
        return self.router.submit(f"{about.id}{reason}", task, self.world.now, self.world.rng)

    def _tell_router(self, about: Delegation, task: Task) -> str:
        token = about.token
        if task is Task.COMPLETE:
            result = about.result.decode().partition("|")[0]
            return self.router.end(about.task, token, TaskState.SUCCEEDED, result)
        if task is Task.FAIL:
            return self.router.end(about.task, token, TaskState.FAILED, "")
        return self.router.give_back(about.task, token, self.world.now, self.world.rng)

    def _done(self, chore: Chore, tell: Callable[[Desk], object] | None = None) -> None:
        def work(desk: Desk, store: MemoryDelegations) -> None:
            store.tables.errands = [each for each in store.tables.errands if each.id != chore.id]
            if tell is not None:
                tell(desk)

        self._txn(work)

    # Sending.

    def _waits(self, peer: str) -> bool:
        line = self._lines[peer]
        return not line.busy and any(row.peer == peer for row in self.tables.outbox.values())

    def _send(self, peer: str) -> None:
        line = self._lines[peer]
        now = self.world.now
        if line.busy or now < line.not_before or peer not in self.peers:
            return
        if now - line.synced > SYNC_EVERY and any(each.peer == peer for each in self._all()):
            self._sync(peer, line)
            return
        batch = MemoryDelegations(self.tables).batch(peer, self.steady(), 50)
        if not batch:
            return
        sent_at, life = self.steady(), self.life
        for message in batch:
            row = self.tables.outbox[message.id]
            self.tables.outbox[message.id] = replace(row, sent_at=sent_at)

        def answered(receipts: list[Receipt] | None) -> None:
            if receipts is None:
                self._gone(peer, Gone.REVOKED_BY_PEER)
                return

            def work(desk: Desk, store: MemoryDelegations) -> None:
                for each in receipts:
                    desk.answered(each.message, each, sent_at)

            self._txn(work)

        self._call(peer, life, lambda other: other.take(self.name, batch), answered)

    def _call(
        self,
        peer: str,
        life: int,
        ask: Callable[[SimHopper], T | None],
        then: Callable[[T | None], None],
    ) -> None:
        """Call a peer; if no answer comes in time, call again later."""
        line = self._lines[peer]
        line.busy = True
        over = False

        def here() -> bool:
            return self.up and self.life == life and self._lines.get(peer) is line

        def came(answer: T | None) -> None:
            nonlocal over
            if over or not here():
                return
            over, line.busy, line.pause, line.not_before = True, False, PAUSE, 0.0
            self._safely(lambda: then(answer))
            self.wake()

        def late() -> None:
            nonlocal over
            if over or not here():
                return
            over, line.busy = True, False
            line.not_before = self.world.now + line.pause * self.world.rng.uniform(0.6, 1.4)
            line.pause = min(line.pause * 2, LONGEST_PAUSE)
            self.wake(max(0.05, line.not_before - self.world.now))

        def arrive() -> None:
            other = self.world.hoppers[peer]
            if not other.up:
                return

            def serve() -> None:
                answer = ask(other)
                self.world.carry(peer, self.name, lambda: came(answer))

            other._safely(serve)
            line_back = other._lines.get(self.name)
            if other.up and line_back is not None:
                line_back.not_before = 0.0  # a sign of life
                other.wake()

        self.world.carry(self.name, peer, arrive)
        self.world.after(TIMEOUT, late)

    def take(self, peer: str, batch: list[Message]) -> list[Receipt] | None:
        """Messages have come; None: from nobody it knows."""
        if peer in self.revoked:
            return None
        for message in batch:
            if isinstance(message.body, Offer) and message.body.facts is not None:
                self.world.offers.setdefault(message.delegation, message.body.facts)
        receipts = self._txn(lambda desk, store: [desk.take(peer, each) for each in batch])
        self.wake()
        return receipts

    def _sync(self, peer: str, line: Line) -> None:
        life = self.life
        notes = self._notes(peer)

        def answered(answer: tuple[list[Note], list[str]] | None) -> None:
            if answer is None:
                self._gone(peer, Gone.REVOKED_BY_PEER)
                return
            theirs, unknown = answer
            line.synced = self.world.now

            def work(desk: Desk, store: MemoryDelegations) -> None:
                for note in theirs:
                    desk.noted(peer, note)
                for each in unknown:
                    desk.unknown_there(peer, each)

            self._txn(work)

        self._call(peer, life, lambda other: other.compare(self.name, notes), answered)

    def _notes(self, peer: str) -> list[Note]:
        return [note_of(each) for each in MemoryDelegations(self.tables).open_of(peer)]

    def compare(self, peer: str, notes: list[Note]) -> tuple[list[Note], list[str]] | None:
        """A peer says what it knows."""
        if peer in self.revoked:
            return None

        def work(desk: Desk, store: MemoryDelegations) -> tuple[list[Note], list[str]]:
            ours = [desk.noted(peer, note) for note in notes]
            unknown = [note.delegation for note, our in zip(notes, ours, strict=True) if our is None]
            named = {note.delegation for note in notes}
            more = [note for note in desk.notes(peer) if note.delegation not in named]
            return [our for our in ours if our is not None] + more, unknown

        answer = self._txn(work)
        self.wake()
        return answer

    # Trust.

    def revoke(self, peer: str) -> None:
        """The owner revokes a peer: durable, whether or not the process is up."""
        self.revoked.add(peer)
        if self.up:
            self._safely(lambda: self._gone(peer, Gone.REVOKED))

    def _gone(self, peer: str, why: Gone) -> None:
        self.revoked.add(peer)
        self.peers.discard(peer)
        self.router.peers.discard(peer)
        self._lines.pop(peer, None)

        def work(desk: Desk, store: MemoryDelegations) -> None:
            desk.peer_gone(peer, why)
            store.tables.outbox = {key: row for key, row in store.tables.outbox.items() if row.peer != peer}

        self._txn(work)
        for task in self.router.tasks.values():
            if task.at == peer and task.state is TaskState.QUEUED:
                task.sent_back.add(peer)
                self.router.route(task, self.world.now, self.world.rng)
        self.wake()
