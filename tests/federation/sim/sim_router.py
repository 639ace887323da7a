"""
The router of a simulated Hopper: no more of it than a hand-over meets. What it says is durable.

Queues, claims with leases and tokens, workers that begin and end, and the ledger of what they really did.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

CLAIM_LEASE = 300.0
LOCAL = "local"


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
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELLED)


@dataclass
class SimTask:
    """
    A task.

    Attributes:
        able: The Hoppers that can do it.
        path: Hoppers it came through, this one not among them.
        inbound: The hand-over that brought it; empty: it was submitted here.
        at: LOCAL, or the peer it is queued for.
        sent_back: Peers that sent it back.
        effort: How long it takes, in seconds.
    """

    name: str
    uid: str
    able: frozenset[str]
    exclusive: bool
    effort: float
    fails: bool
    path: tuple[str, ...] = ()
    hops: int = 3
    fan_out: int = 16
    inbound: str = ""
    at: str = ""
    state: TaskState = TaskState.WAITING
    token: int = 0
    lease_end: float | None = None
    ends_at: float | None = None
    start_by: float = 0.0
    sent_back: set[str] = field(default_factory=set)
    result: str = ""
    results: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One execution, as the world saw it."""

    uid: str
    hopper: str
    begun: float


class SimRouter:
    """
    One Hopper's.

    Args:
        ledger: Every execution that began, of all Hoppers.
        finished: Results of executions that ended.
    """

    def __init__(self, name: str, peers: set[str], ledger: list[Run], finished: set[str]) -> None:
        self.name = name
        self.peers = peers
        self.tasks: dict[str, SimTask] = {}
        self.requests: dict[str, str] = {}
        self.ledger = ledger
        self.finished = finished
        self._tokens = 0

    # Tasks.

    def submit(self, request: str, task: SimTask, now: float, rng: random.Random) -> str:
        """Take a task in, once for each request."""
        if request not in self.requests:
            self.requests[request] = task.name
            self.tasks[task.name] = task
            self.route(task, now, rng)
        return self.requests[request]

    def route(self, task: SimTask, now: float, rng: random.Random) -> None:
        """Decide where it goes: here, or to a peer that has not had it."""
        choices = [LOCAL] if self.name in task.able else []
        if task.hops > 0 or not task.path:
            choices += sorted(
                peer for peer in self.peers - task.sent_back - set(task.path) if task.able - {self.name}
            )
        task.token = 0
        task.lease_end = task.ends_at = None
        if choices:
            task.at, task.state = rng.choice(choices), TaskState.QUEUED
        else:
            task.at, task.state = "", TaskState.WAITING

    def cancel(self, name: str) -> None:
        """Call it off, whoever has it."""
        task = self.tasks[name]
        if not task.state.over:
            task.state = TaskState.CANCELLED

    # Claims of the federation service.

    def claim(self, peer: str, now: float) -> list[SimTask]:
        """What is queued for a peer."""
        found = [task for task in self.tasks.values() if task.at == peer and task.state is TaskState.QUEUED]
        for task in found:
            self._claim(task, now)
        return found

    def _claim(self, task: SimTask, now: float) -> None:
        self._tokens += 1
        task.token, task.state = self._tokens, TaskState.RUNNING
        task.lease_end = now + CLAIM_LEASE

    def holds(self, name: str, token: int) -> bool:
        """Whether that claim is in force."""
        task = self.tasks[name]
        return task.state is TaskState.RUNNING and task.token == token

    def renew(self, name: str, token: int, now: float) -> bool:
        """Extend a claim; returns whether it is in force."""
        if not self.holds(name, token):
            return False
        self.tasks[name].lease_end = now + CLAIM_LEASE
        return True

    def end(self, name: str, token: int, state: TaskState, result: str) -> str:
        """End a claim. Returns `ok`, `stale` or `over`."""
        task = self.tasks[name]
        if task.state is state and task.token == token and task.result == result:
            return "ok"
        if task.state.over:
            return "over"
        if not self.holds(name, token):
            return "stale"
        task.state, task.result = state, result
        if state is TaskState.SUCCEEDED:
            task.results.append(result)
        return "ok"

    def give_back(self, name: str, token: int, now: float, rng: random.Random) -> str:
        """Decide anew, without that peer. Returns `ok`, `stale` or `over`."""
        task = self.tasks[name]
        if task.state.over:
            return "over"
        if not self.holds(name, token):
            # Its answer may have been lost: it is with somebody else by now.
            return "ok" if task.at in (LOCAL, "") else "stale"
        task.sent_back.add(task.at)
        self.route(task, now, rng)
        return "ok"

    # Time, and workers.

    def work(self, now: float) -> bool:
        """Do what the time asks for. Returns whether anything has changed."""
        changed = False
        for task in list(self.tasks.values()):
            changed |= self._work_on(task, now)
        return changed

    def _work_on(self, task: SimTask, now: float) -> bool:
        if task.state is TaskState.QUEUED and task.at == LOCAL:
            self._claim(task, now)
            task.lease_end = None
            task.ends_at = now + task.effort
            self.ledger.append(Run(task.uid, self.name, now))
            return True
        if task.state is TaskState.RUNNING and task.ends_at is not None and now >= task.ends_at:
            self._finish(task)
            return True
        if task.state is TaskState.RUNNING and task.lease_end is not None and now >= task.lease_end:
            task.state, task.lease_end = TaskState.QUEUED, None
            return True
        if task.state in (TaskState.WAITING, TaskState.QUEUED) and now >= task.start_by:
            task.state = TaskState.FAILED if task.state is TaskState.QUEUED else TaskState.REJECTED
            return True
        return False

    def _finish(self, task: SimTask) -> None:
        task.state = TaskState.FAILED if task.fails else TaskState.SUCCEEDED
        if not task.fails:
            task.result = f"{self.name}/{task.name}/{task.token}"
            task.results.append(task.result)
            self.finished.add(task.result)

    def workers_die(self, now: float) -> None:
        """The machine went down: what ran here runs no more; what must not run twice has failed."""
        for task in self.tasks.values():
            if task.state is TaskState.RUNNING and task.ends_at is not None:
                task.ends_at = None
                if task.exclusive:
                    task.state = TaskState.FAILED
                else:
                    task.lease_end = now + CLAIM_LEASE

    def next_due(self) -> float | None:
        """When `work` has something to do."""
        clocks: list[float] = []
        for task in self.tasks.values():
            if task.state is TaskState.RUNNING:
                clocks += [clock for clock in (task.ends_at, task.lease_end) if clock is not None]
            elif task.state in (TaskState.WAITING, TaskState.QUEUED):
                clocks.append(task.start_by)
        return min(clocks, default=None)
