"""
The router of a simulated Hopper: no more of it than a hand-over meets. What it says is durable.

Queues, claims with leases and tokens, workers that begin and end, and the ledger of what they really did. Each time a
task is routed to a peer it becomes another child there, with a name of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.federation.sim.world import World

CLAIM_LEASE = 300.0
LOCAL = "local"
MOST_LOST = 3


class TaskState(StrEnum):
    """As the router's, without what no hand-over meets."""

    WAITING = "WAITING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"

    @property
    def over(self) -> bool:
        """Whether nothing happens to it any more."""
        return self in _OVER


_OVER = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELLED})


@dataclass(frozen=True)
class What:
    """
    What a task is, wherever it is.

    Attributes:
        able: The Hoppers that can do it.
        effort: How long it takes, in seconds.
        lease, start, close: Of each hand-over, in seconds.
    """

    uid: str
    able: frozenset[str]
    exclusive: bool
    effort: float
    fails: bool
    lease: float
    start: float
    close: float


@dataclass
class Run:
    """One execution, as the world saw it."""

    uid: str
    hopper: str
    path: tuple[str, ...]
    begun: float
    end: float | None = None
    unguarded: bool = False
    """Its Hopper's federation was down while it ran."""
    at_start: bool = False
    """It began while its Hopper came up, which had not looked at its leases yet."""


@dataclass
class SimTask:
    """
    A task.

    Attributes:
        path: Hoppers it came through, this one not among them.
        inbound: The hand-over that brought it; empty: it was submitted here.
        hops, fan_out: How far it may be handed on from here.
        at: LOCAL, or the peer it is queued for.
        leg: How often it was routed: names the child at a peer.
        claims: How often this leg was claimed.
        sent_back: Peers that sent it back.
        lost: How often each peer has sent it back for what passes.
    """

    name: str
    what: What
    path: tuple[str, ...] = ()
    hops: int = 3
    fan_out: int = 16
    inbound: str = ""
    start_by: float = 0.0
    at: str = ""
    state: TaskState = TaskState.WAITING
    leg: int = 0
    claims: int = 0
    token: int = 0
    lease_end: float | None = None
    run: Run | None = None
    sent_back: set[str] = field(default_factory=set)
    lost: Counter[str] = field(default_factory=Counter)
    result: str = ""
    results: list[str] = field(default_factory=list)

    @property
    def child(self) -> str:
        """What it is called in the queue of the peer it is routed to."""
        return f"{self.name}~{self.leg}"


class SimRouter:
    """
    One Hopper's.

    Args:
        peers: Whom it may hand tasks to; changed by whoever owns it.
        wake: Called when its Hopper should look.
    """

    def __init__(self, world: World, name: str, peers: set[str], wake: Callable[[], None]) -> None:
        self.name = name
        self.peers = peers
        self.tasks: dict[str, SimTask] = {}
        self.abroad: dict[str, SimTask] = {}
        self.news: dict[str, None] = {}
        self.up = True
        self.lost = False  # a task that was with a peer is over
        self._world = world
        self._wake = wake
        self._requests: dict[str, str] = {}
        self._tokens = 0

    # Tasks.

    def submit(self, request: str, task: SimTask) -> str:
        """Take a task in, once for each request."""
        if request not in self._requests:
            self._requests[request] = task.name
            self.tasks[task.name] = task
            self.route(task)
            self._world.at(task.start_by, lambda: self._too_late(task))
        return self._requests[request]

    def route(self, task: SimTask) -> None:
        """Decide where it goes: here, or to a peer that has not had it."""
        world, able = self._world, task.what.able
        choices = [LOCAL] if self.name in able else []
        if task.fan_out > 0 and (task.hops > 0 or not task.path):
            been = task.sent_back if world.plan.careless else task.sent_back | set(task.path)
            choices += sorted(peer for peer in self.peers - been if able - {self.name})
        task.leg, task.claims, task.token, task.lease_end = task.leg + 1, 0, 0, None
        self.abroad.pop(task.name, None)
        task.at, task.state = "", TaskState.WAITING
        if choices:
            task.at, task.state = world.rng.choice(choices), TaskState.QUEUED
        if task.at == LOCAL:
            self._begin(task)
        elif task.at:
            self.abroad[task.name] = task
            self._wake()
        elif self._world.now >= task.start_by:
            self._end(task, TaskState.REJECTED)

    def cancel(self, name: str) -> None:
        """Call it off, whoever has it."""
        task = self.tasks[name]
        if not task.state.over:
            self._end(task, TaskState.CANCELLED)

    def _end(self, task: SimTask, state: TaskState) -> None:
        if task.run is not None:
            task.run.end = self._world.now
            task.run = None
        task.state = state
        self.lost |= self.abroad.pop(task.name, None) is not None
        if task.inbound:
            self.news[task.name] = None
        self._wake()

    # Claims of the federation service.

    def claim_child(self, task: SimTask) -> bool:
        """Claim one task; returns whether it was to be had."""
        self._lapse(task)
        if task.state is not TaskState.QUEUED:
            return False
        self._tokens += 1
        task.token, task.claims, task.state = self._tokens, task.claims + 1, TaskState.RUNNING
        task.lease_end = self._world.now + CLAIM_LEASE
        return True

    def _lapse(self, task: SimTask) -> None:
        if task.lease_end is not None and self._world.now >= task.lease_end:
            task.state, task.lease_end = TaskState.QUEUED, None

    def leg(self, child: str) -> SimTask | None:
        """The task of a child that is not over; None: it is."""
        task = self.tasks[child.partition("~")[0]]
        return None if task.state.over or task.child != child else task

    def renew(self, child: str, token: int) -> bool:
        """Extend a claim; returns whether it is in force."""
        task = self.leg(child)
        if task is None or task.token != token or task.lease_end is None or self._world.now >= task.lease_end:
            return False
        task.lease_end = self._world.now + CLAIM_LEASE
        return True

    def _held(self, child: str, token: int) -> SimTask | str:
        task = self.leg(child)
        if task is None:
            return "over"
        self._lapse(task)
        return task if task.state is TaskState.RUNNING and task.token == token else "stale"

    def end(self, child: str, token: int, state: TaskState, result: str) -> str:
        """End a claim. Returns `ok`, `stale` or `over`."""
        task = self._held(child, token)
        if isinstance(task, str):
            return task
        task.result = result
        if state is TaskState.SUCCEEDED:
            task.results.append(result)
        self._end(task, state)
        return "ok"

    def give_back(self, child: str, token: int, *, may_come_again: bool = False) -> str:
        """Decide anew, without that peer unless what kept it passes. Returns `ok`, `stale` or `over`."""
        task = self._held(child, token)
        if isinstance(task, str):
            return task
        task.lost[task.at] += may_come_again
        if not may_come_again or task.lost[task.at] >= MOST_LOST:
            task.sent_back.add(task.at)
        self.route(task)
        return "ok"

    def without(self, peer: str, with_peer: Callable[[str], bool]) -> None:
        """Nothing goes to a peer any more; what is queued for it, and no hand-over is open of, goes elsewhere."""
        self.peers.discard(peer)
        for task in list(self.abroad.values()):
            self._lapse(task)
            if task.at != peer or task.state is not TaskState.QUEUED or with_peer(task.child):
                continue
            if task.what.exclusive and task.claims:
                self._end(task, TaskState.FAILED)  # it may have been begun
                continue
            task.sent_back.add(peer)
            self.route(task)

    # Time, and workers.

    def _begin(self, task: SimTask) -> None:
        if not self.up:
            return
        world = self._world
        run = task.run = Run(task.what.uid, self.name, task.path, world.now)
        task.state = TaskState.RUNNING
        world.ledger.append(run)
        if task.inbound:
            self.news[task.name] = None
            self._wake()
        world.after(task.what.effort, lambda: self._finish(task, run))

    def _finish(self, task: SimTask, run: Run) -> None:
        if task.run is not run:
            return
        if not task.what.fails:
            task.result = f"{self.name}/{task.name}/{len(self._world.finished)}"
            task.results.append(task.result)
            self._world.finished.add(task.result)
        self._end(task, TaskState.FAILED if task.what.fails else TaskState.SUCCEEDED)

    def _too_late(self, task: SimTask) -> None:
        if not self.up:
            self._world.after(60.0, lambda: self._too_late(task))
        elif task.state is TaskState.WAITING:
            self._end(task, TaskState.REJECTED)
        elif task.state is TaskState.QUEUED:
            self._end(task, TaskState.FAILED)

    def goes_down(self) -> None:
        """The machine went down: what ran here runs no more; what must not run twice has failed."""
        self.up = False
        for task in self.tasks.values():
            if task.run is None:
                continue
            if task.what.exclusive:
                self._end(task, TaskState.FAILED)
            else:
                task.run.end, task.run = self._world.now, None
                task.state = TaskState.QUEUED

    def comes_up(self) -> None:
        """What waited for a worker begins, before anybody has looked whether its lease has run out meanwhile."""
        self.up = True
        for task in self.tasks.values():
            if task.at == LOCAL and task.state is TaskState.QUEUED:
                self._begin(task)
                if task.run is not None:
                    task.run.at_start = True

    def unguarded(self) -> None:
        """Nobody here hears that somebody else wants a task stopped."""
        for task in self.tasks.values():
            if task.run is not None:
                task.run.unguarded = True
