"""
A Hopper of fifty lines that keeps its promises, and the history its callers would have written: what the checker's own
tests plant their violations in.
"""

import random
from dataclasses import dataclass, field, replace

from hopper_testing.checker import SECOND
from hopper_testing.dump import Dump, Event, TaskFacts
from hopper_testing.history import Grant, History, Kind, Operation, Outcome, Seen, Watcher

LEASE: int = 10 * SECOND
WORKERS = ("ann", "bob", "bob", "cid")  # two of one name


@dataclass(slots=True)
class _Task:
    name: str
    title: str
    state: str
    generation: int = 0
    token: int = 0
    grant: Grant | None = None
    lease_end: int = 0
    result: str = ""


@dataclass
class Simulated:
    """Time stands still but for `pass_`; every call takes a tenth of a second, and may lose its answer."""

    chance: random.Random
    now: int = 1_000_000 * SECOND
    history: History = field(default_factory=lambda: History(watchers=[Watcher(0)]))
    events: list[Event] = field(default_factory=list)
    tasks: dict[str, _Task] = field(default_factory=dict)
    _requests: int = 0

    def run(self, steps: int) -> tuple[History, Dump]:
        """Let callers do that many things, then let everything be finished."""
        for _ in range(steps):
            self.pass_(self.chance.randrange(2 * SECOND))
            self.chance.choice(
                (self.submit, self.submit, self.claim, self.claim, self.renew, self.end, self.cancel)
            )()
        return self.history, self.dump()

    def dump(self) -> Dump:
        facts = [
            TaskFacts(one.name, one.title, one.state, one.generation, one.result)
            for one in self.tasks.values()
        ]
        return Dump(facts, list(self.events), after=0, head=len(self.events), taken=self.now)

    def pass_(self, length: int) -> None:
        """Let time pass, and leases run out on time."""
        self.now += length
        for task in self.tasks.values():
            if task.state == "RUNNING" and task.lease_end <= self.now:
                self._move(task, "EXPIRE", "QUEUED", at=max(task.lease_end, self.now - SECOND))

    # What callers do.

    def submit(self) -> None:
        number = len(self.tasks)
        task = _Task(f"instances/i/tasks/{number}", f"title {number}", "")
        self.tasks[task.name] = task
        self._move(task, "SUBMIT", "SUBMITTED")
        self._move(task, "QUEUE", "QUEUED")
        operation = self._ask(Kind.SUBMIT, title=task.title)
        if not self._answered(operation, task=task.name) or self.chance.random() < 0.2:
            again = replace(
                operation, asked_at=self._client(0.2), ended_at=self._client(0.3), outcome=Outcome.OK
            )
            self.history.operations.append(replace(again, task=task.name))

    def claim(self) -> None:
        ready = [task for task in self.tasks.values() if task.state == "QUEUED"]
        if not ready:
            return
        task, worker = self.chance.choice(ready), self.chance.choice(WORKERS)
        task.token += self.chance.randint(1, 3)
        task.grant = Grant(task.name, task.token, worker, self.now, self.now + LEASE)
        task.lease_end = self.now + LEASE
        self._move(task, "CLAIM", "RUNNING")
        operation = self._ask(Kind.CLAIM, worker=worker, lease=LEASE / SECOND)
        self._answered(operation, grants=(task.grant,))

    def renew(self) -> None:
        for task, grant in self._known(0.3):
            operation = self._ask(Kind.RENEW, task=task.name, token=grant.token, lease=LEASE / SECOND)
            if self._refused(operation, task, grant):
                continue
            task.lease_end = max(task.lease_end, self.now + LEASE)
            self._answered(operation, lease_end=task.lease_end)

    def end(self) -> None:
        for task, grant in self._known(0.4):
            kind = self.chance.choice((Kind.COMPLETE, Kind.COMPLETE, Kind.FAIL, Kind.RELEASE))
            result = f"{self.chance.getrandbits(32):08x}" if kind is Kind.COMPLETE else ""
            operation = self._ask(kind, task=task.name, token=grant.token, result=result)
            if self._refused(operation, task, grant):
                continue
            task.result = result
            event, state = {
                Kind.COMPLETE: ("COMPLETE", "SUCCEEDED"),
                Kind.FAIL: ("RETRY", "QUEUED"),
                Kind.RELEASE: ("RELEASE", "QUEUED"),
            }[kind]
            self._move(task, event, state)
            self._answered(operation)

    def cancel(self) -> None:
        task = self.chance.choice(list(self.tasks.values())) if self.tasks else None
        if task is None or self.chance.random() < 0.7:
            return
        operation = self._ask(Kind.CANCEL, task=task.name)
        if task.state == "SUCCEEDED":
            operation.outcome, operation.reason = Outcome.REFUSED, "TASK_WRONG_STATE"
            return
        if task.state != "CANCELLED":
            self._move(task, "CANCEL", "CANCELLED")
        self._answered(operation)

    # How it is written down.

    def _known(self, share: float) -> list[tuple[_Task, Grant]]:
        """Some of all the claims that callers know of, live or not, with their tasks."""
        grants = [grant for operation in self.history.operations for grant in operation.grants]
        return [(self.tasks[grant.task], grant) for grant in grants if self.chance.random() < share / 4]

    def _refused(self, operation: Operation, task: _Task, grant: Grant) -> bool:
        if task.state == "RUNNING" and task.token == grant.token:
            return False
        operation.outcome, operation.reason = Outcome.REFUSED, "STALE_TOKEN"
        operation.ended_at = self._client(0.1)
        return True

    def _client(self, later: float) -> float:
        return self.now / SECOND - 999_000 + later

    def _ask(self, kind: Kind, **facts: object) -> Operation:
        self._requests += 1
        operation = Operation(
            kind=kind, client="c", asked_at=self._client(0), request_id=f"r{self._requests}"
        )
        for name, value in facts.items():
            setattr(operation, name, value)
        self.history.operations.append(operation)
        return operation

    def _answered(self, operation: Operation, **facts: object) -> bool:
        operation.ended_at = self._client(0.1)
        if self.chance.random() < 0.1:
            return False
        operation.outcome = Outcome.OK
        for name, value in facts.items():
            setattr(operation, name, value)
        return True

    def _move(self, task: _Task, kind: str, state: str, *, at: int = 0) -> None:
        event = Event(len(self.events) + 1, task.name, kind, task.state, state, at or self.now)
        if state == "RUNNING" and task.grant is not None:
            claim = task.grant
            event = replace(event, worker=claim.worker, start=claim.start, lease_end=claim.lease_end)
        self.events.append(event)
        self.history.watchers[0].seen.append(Seen(event.generation, event.task, event.kind))
        task.state, task.generation = state, event.generation
