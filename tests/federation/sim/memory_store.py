"""
A `DelegationStore` in memory. What a transaction changes is written down beside it, so that it can be taken back: when
it does not commit, and when the power goes before the disk has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hopper_federation.delegation.desk import due_of
from hopper_federation.delegation.model import (
    REPLACED,
    Body,
    Cancel,
    Delegation,
    Errand,
    Message,
    Receipt,
    Role,
    Task,
)
from hopper_federation.delegation.ports import Sent

Key = tuple[Role, str]
Change = tuple[dict[Any, Any], Any, Any]
"""A table, a key in it, and what was there."""

_NOTHING = object()


@dataclass(frozen=True)
class Row:
    """A message of the outbox."""

    position: int
    role: Role
    peer: str
    message: Message
    created: float
    not_before: float = 0.0
    attempts: int = 0


@dataclass(frozen=True)
class Chore:
    """An errand, and whose."""

    position: int
    role: Role
    delegation: str
    errand: Errand


@dataclass
class Tables:
    """
    All that is written down.

    Attributes:
        clocks: When a clock of a hand-over runs out first, of those with one that runs.
        open, unsettled: The keys of those that are, in order.
        compared: With which incarnation of a peer notes were compared.
        synced: With which incarnation of this Hopper's a peer compared notes.
    """

    delegations: dict[Key, Delegation] = field(default_factory=dict)
    clocks: dict[Key, float] = field(default_factory=dict)
    open: dict[Key, None] = field(default_factory=dict)
    unsettled: dict[Key, None] = field(default_factory=dict)
    by_uid: dict[str, tuple[Key, ...]] = field(default_factory=dict)
    by_task: dict[str, tuple[Key, ...]] = field(default_factory=dict)
    outbox: dict[str, dict[int, Row]] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    inbox: dict[tuple[str, str], tuple[bytes, Receipt]] = field(default_factory=dict)
    errands: dict[int, Chore] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Tables:
        """As they are now. The values in them never change."""
        copied = {name: dict(table) for name, table in vars(self).items()}
        copied["outbox"] = {peer: dict(rows) for peer, rows in self.outbox.items()}
        return Tables(**copied)

    def rows_for(self, peer: str) -> list[Row]:
        """What is in the outbox for a peer, in order."""
        rows = self.outbox.get(peer)
        return [rows[position] for position in sorted(rows)] if rows else []


def undone(changes: Sequence[Change]) -> None:
    """Take back what was changed."""
    for table, key, before in reversed(changes):
        if before is _NOTHING:
            table.pop(key, None)
        else:
            table[key] = before


class MemoryDelegations:
    """
    One transaction.

    Args:
        counter: Gives numbers that are never given again, whatever becomes of the tables.
        name: Of the Hopper, for the ids of messages.
        sending: Ids of messages that are under way: what replaces them comes after them.

    Attributes:
        changes: What it has changed.
        sent: Messages that were put into the outbox.
    """

    def __init__(
        self,
        tables: Tables,
        counter: Callable[[], int],
        name: str = "",
        sending: frozenset[str] = frozenset(),
    ) -> None:
        self.tables = tables
        self.changes: list[Change] = []
        self.sent: list[Message] = []
        self._counter = counter
        self._name = name
        self._sending = sending

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write a row."""
        self.changes.append((table, key, table.get(key, _NOTHING)))
        table[key] = value

    def drop(self, table: dict[Any, Any], key: Any) -> None:
        """Delete a row, if it is there."""
        before = table.pop(key, _NOTHING)
        if before is not _NOTHING:
            self.changes.append((table, key, before))

    def changed(self) -> list[tuple[Delegation | None, Delegation]]:
        """The hand-overs that were written: as they were, and as they are now."""
        before: dict[Key, Any] = {}
        for table, key, was in self.changes:
            if table is self.tables.delegations:
                before.setdefault(key, None if was is _NOTHING else was)
        return [(was, self.tables.delegations[key]) for key, was in before.items()]

    # Hand-overs.

    def delegation(self, role: Role, delegation: str) -> Delegation | None:
        return self.tables.delegations.get((role, delegation))

    def save(self, delegation: Delegation) -> None:
        tables, key = self.tables, (delegation.role, delegation.id)
        was = tables.delegations.get(key)
        if was == delegation:
            return
        self.put(tables.delegations, key, delegation)
        self._index(tables.open, key, delegation.state.open)
        self._index(tables.unsettled, key, not delegation.settled)
        clock = due_of(delegation)
        if clock is None:
            self.drop(tables.clocks, key)
        elif tables.clocks.get(key) != clock:
            self.put(tables.clocks, key, clock)
        if was is None:
            self.put(tables.by_uid, delegation.task_uid, (*tables.by_uid.get(delegation.task_uid, ()), key))
        if delegation.task and (was is None or was.task != delegation.task):
            self.put(tables.by_task, delegation.task, (*tables.by_task.get(delegation.task, ()), key))

    def _index(self, index: dict[Key, None], key: Key, there: bool) -> None:
        if there and key not in index:
            self.put(index, key, None)
        elif not there:
            self.drop(index, key)

    def of_task_uid(self, task_uid: str) -> Sequence[Delegation]:
        return [self.tables.delegations[key] for key in self.tables.by_uid.get(task_uid, ())]

    def of_task(self, task: str) -> Delegation | None:
        found = [self.tables.delegations[key] for key in self.tables.by_task.get(task, ())]
        return max(found, key=lambda each: (each.epoch, each.created), default=None)

    def open_of(self, peer: str) -> Sequence[Delegation]:
        found = [self.tables.delegations[key] for key in self.tables.open]
        return sorted((each for each in found if each.peer == peer), key=lambda each: each.id)

    def due(self, now: float, limit: int) -> Sequence[Delegation]:
        over = sorted((clock, key) for key, clock in self.tables.clocks.items() if clock <= now)
        return [self.tables.delegations[key] for _, key in over[:limit]]

    # Inbox, outbox, errands.

    def answer_of(self, peer: str, message: str) -> tuple[bytes, Receipt] | None:
        return self.tables.inbox.get((peer, message))

    def keep_answer(self, peer: str, digest: bytes, receipt: Receipt, now: float) -> None:
        self.put(self.tables.inbox, (peer, receipt.message), (digest, receipt))

    def send(self, delegation: Delegation, body: Body, now: float) -> None:
        if isinstance(body, REPLACED):
            for row in self._about(delegation):
                unsent = row.attempts == 0 and row.message.id not in self._sending
                if unsent and type(row.message.body) is type(body):
                    self._drop_row(row)
        position = self._counter()
        message = Message(
            id=f"{self._name}m{position}",
            delegation=delegation.id,
            epoch=delegation.epoch,
            sequence=delegation.sent,
            body=body,
            digest=repr((delegation.id, delegation.epoch, delegation.sent, body)).encode(),
        )
        self.sent.append(message)
        self.put_row(Row(position, delegation.role, delegation.peer, message, now))
        self.put(self.tables.places, message.id, (delegation.peer, position))

    def put_row(self, row: Row) -> None:
        """Write a message of the outbox."""
        self.put(self.tables.outbox.setdefault(row.peer, {}), row.position, row)

    def _drop_row(self, row: Row) -> None:
        self.drop(self.tables.outbox[row.peer], row.position)
        self.drop(self.tables.places, row.message.id)

    def _about(self, delegation: Delegation) -> list[Row]:
        rows = self.tables.rows_for(delegation.peer)
        return [
            row for row in rows if row.message.delegation == delegation.id and row.role is delegation.role
        ]

    def row_of(self, message: str) -> Row | None:
        """A message of the outbox."""
        place = self.tables.places.get(message)
        return None if place is None else self.tables.outbox[place[0]][place[1]]

    def forget_message(self, message: str) -> Sent | None:
        row = self.row_of(message)
        if row is None:
            return None
        self._drop_row(row)
        return Sent(row.role, row.message.delegation, row.message.body)

    def unanswered(self, delegation: Delegation) -> Sequence[type[Body]]:
        return [type(row.message.body) for row in self._about(delegation)]

    def postpone(self, message: str, until: float) -> None:
        row = self.row_of(message)
        if row is not None:
            self.put_row(replace(row, not_before=until))

    def errand(self, delegation: Delegation, errand: Errand) -> None:
        if errand.task is Task.PROGRESS:
            for chore in list(self.tables.errands.values()):
                same = (chore.role, chore.delegation) == (delegation.role, delegation.id)
                if same and chore.errand.task is Task.PROGRESS:
                    self.drop(self.tables.errands, chore.position)
        position = self._counter()
        self.put(self.tables.errands, position, Chore(position, delegation.role, delegation.id, errand))

    # What the shells ask for besides.

    def next_epoch(self, task_uid: str) -> int:
        """One more than any before, of hand-overs of that task by this Hopper."""
        epoch = self.tables.epochs.get(task_uid, 0) + 1
        self.put(self.tables.epochs, task_uid, epoch)
        return epoch

    def batch(self, peer: str, now: float, limit: int) -> list[Row]:
        """
        What is to be sent next, in order.

        What is postponed holds back what is about the same hand-over, but that it is called off.
        """
        held: set[tuple[Role, str]] = set()
        found: list[Row] = []
        for row in self.tables.rows_for(peer):
            about = row.role, row.message.delegation
            if row.not_before > now:
                held.add(about)
            elif about not in held or isinstance(row.message.body, Cancel):
                found.append(row)
        return found[:limit]

    def failed_to_send(self, messages: Sequence[str]) -> None:
        """Count an attempt of each."""
        for message in messages:
            row = self.row_of(message)
            if row is not None:
                self.put_row(replace(row, attempts=row.attempts + 1))

    def give_up(self, peer: str) -> None:
        """Say nothing more to a peer."""
        for row in self.tables.rows_for(peer):
            self._drop_row(row)
