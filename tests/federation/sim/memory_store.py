"""A `DelegationStore` in memory: a transaction works on a copy, which is kept if it commits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hopper_federation.delegation.desk import due_of
from hopper_federation.delegation.model import (
    REPLACED,
    Body,
    Delegation,
    Errand,
    Message,
    Receipt,
    Role,
    Task,
)
from hopper_federation.delegation.ports import Sent


@dataclass
class Row:
    """A message of the outbox."""

    role: Role
    peer: str
    message: Message
    not_before: float = 0.0
    sent_at: float | None = None


@dataclass
class Chore:
    """An errand, and whose."""

    id: int
    role: Role
    delegation: str
    errand: Errand


@dataclass
class Tables:
    """All that is written down."""

    delegations: dict[tuple[Role, str], Delegation] = field(default_factory=dict)
    outbox: dict[str, Row] = field(default_factory=dict)  # in order
    inbox: dict[tuple[str, str], tuple[bytes, Receipt]] = field(default_factory=dict)
    errands: list[Chore] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    made: int = 0


class MemoryDelegations:
    """
    One transaction.

    Args:
        tables: Changed in place: hand over a copy, and keep it if the transaction commits.
        name: Of the Hopper, for the ids of messages.
    """

    def __init__(self, tables: Tables, name: str = "") -> None:
        self.tables = tables
        self._name = name

    def _next(self) -> int:
        self.tables.made += 1
        return self.tables.made

    def delegation(self, role: Role, delegation: str) -> Delegation | None:
        return self.tables.delegations.get((role, delegation))

    def save(self, delegation: Delegation) -> None:
        self.tables.delegations[delegation.role, delegation.id] = delegation

    def of_task_uid(self, task_uid: str) -> Sequence[Delegation]:
        return [each for each in self.tables.delegations.values() if each.task_uid == task_uid]

    def of_task(self, task: str) -> Delegation | None:
        found = [each for each in self.tables.delegations.values() if each.task == task]
        return max(found, key=lambda each: (each.created, each.epoch), default=None)

    def open_of(self, peer: str) -> Sequence[Delegation]:
        found = [each for each in self.tables.delegations.values() if each.peer == peer and each.state.open]
        return sorted(found, key=lambda each: each.id)

    def due(self, now: float, limit: int) -> Sequence[Delegation]:
        clocks = [(due_of(each), each) for each in self.tables.delegations.values()]
        over = [(clock, each) for clock, each in clocks if clock is not None and clock <= now]
        return [each for _, each in sorted(over, key=lambda pair: (pair[0], pair[1].id))[:limit]]

    def answer_of(self, peer: str, message: str) -> tuple[bytes, Receipt] | None:
        return self.tables.inbox.get((peer, message))

    def keep_answer(self, peer: str, digest: bytes, receipt: Receipt, now: float) -> None:
        self.tables.inbox[peer, receipt.message] = (digest, receipt)

    def send(self, delegation: Delegation, body: Body, now: float) -> None:
        if isinstance(body, REPLACED):
            for key, row in list(self.tables.outbox.items()):
                same = row.message.delegation == delegation.id and row.role is delegation.role
                if same and row.sent_at is None and type(row.message.body) is type(body):
                    del self.tables.outbox[key]
        message = Message(
            id=f"{self._name}m{self._next()}",
            delegation=delegation.id,
            epoch=delegation.epoch,
            sequence=delegation.sent,
            body=body,
            digest=repr(body).encode(),
        )
        self.tables.outbox[message.id] = Row(delegation.role, delegation.peer, message)

    def forget_message(self, message: str) -> Sent | None:
        row = self.tables.outbox.pop(message, None)
        return None if row is None else Sent(row.role, row.message.delegation, row.message.body)

    def unanswered(self, delegation: Delegation) -> Sequence[type[Body]]:
        return [
            type(row.message.body)
            for row in self.tables.outbox.values()
            if row.message.delegation == delegation.id and row.role is delegation.role
        ]

    def postpone(self, message: str, until: float) -> None:
        row = self.tables.outbox.get(message)
        if row is not None:
            self.tables.outbox[message] = replace(row, not_before=until)

    def errand(self, delegation: Delegation, errand: Errand) -> None:
        if errand.task is Task.PROGRESS:
            self.tables.errands = [
                chore
                for chore in self.tables.errands
                if (chore.role, chore.delegation, chore.errand.task)
                != (delegation.role, delegation.id, Task.PROGRESS)
            ]
        self.tables.errands.append(Chore(self._next(), delegation.role, delegation.id, errand))

    # What the shells ask for besides.

    def next_epoch(self, task_uid: str) -> int:
        """One more than any before, of hand-overs of that task by this Hopper."""
        epoch = self.tables.epochs.get(task_uid, 0) + 1
        self.tables.epochs[task_uid] = epoch
        return epoch

    def batch(self, peer: str, now: float, limit: int) -> list[Message]:
        """What is to be sent next, in order; what is postponed holds back what is about the same hand-over."""
        held: set[str] = set()
        found: list[Message] = []
        for row in self.tables.outbox.values():
            if row.peer != peer:
                continue
            if row.not_before > now or row.message.delegation in held:
                held.add(row.message.delegation)
                continue
            found.append(row.message)
        return found[:limit]


def copied(tables: Tables) -> Tables:
    """To work on: the values in it never change, so that a shallow copy of each table is enough."""
    return Tables(
        dict(tables.delegations),
        {key: copy.copy(row) for key, row in tables.outbox.items()},
        dict(tables.inbox),
        list(tables.errands),
        dict(tables.epochs),
        tables.made,
    )
