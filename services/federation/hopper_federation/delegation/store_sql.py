"""
Hand-overs on the service's database: `ports.DelegationStore` over SQLAlchemy Core, and what the shells ask for besides.

A hand-over is a row of `tables.DELEGATIONS`. Fields that no query asks for are JSON in its `body`; what a later version
has put there beside them stays as it is. A message is kept as it is sent, so that it is the same however often it is.
"""

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql import ColumnElement

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.ids import Ids
from hopper_federation.delegation import wire
from hopper_federation.delegation.breaker import Hold
from hopper_federation.delegation.desk import due_of
from hopper_federation.delegation.gathered import Gathered
from hopper_federation.delegation.model import (
    KEPT_FOR,
    REPLACED,
    Appraisal,
    Body,
    Cancel,
    Delegation,
    Errand,
    Outcome,
    Receipt,
    Result,
    Role,
    State,
    Task,
)
from hopper_federation.delegation.ports import Sent
from hopper_federation.delegation.tables import (
    DELEGATIONS,
    EPOCHS,
    ERRANDS,
    INBOX,
    OUTBOX,
    SENDERS,
)

EPOCHS_KEPT_FOR: Final = 12 * KEPT_FOR
"""Longer than anybody remembers a hand-over: an epoch must not come twice."""

UNDECIDED: Final = (State.SUSPECT, State.ORPHANED, State.DISPUTED)
"""States in which a hand-over stays until a person here says what becomes of it."""

_IDS: Final = Ids()

# Fields with a column of their own, as they are; `body` has the others.
_PLAIN: Final = ("id", "peer", "task_uid", "epoch", "task", "settled", "rule", "created", "updated")
_BYTES: Final = ("offer", "result", "appraisal")
_IN_BODY: Final = tuple(
    each.name for each in fields(Delegation) if each.name not in {*_PLAIN, *_BYTES, "role", "state"}
)


_FIELDS: Final = {kind: frozenset(each.name for each in fields(kind)) for kind in (Delegation, Errand)}

_NEVER_CHANGES: Final = ("role", "id", "peer", "task_uid", "created")
"""Columns that are not written again: each has an index, which would be written with it."""

_TO_JSON: Final = json.JSONEncoder(separators=(",", ":")).encode

# What every message asks for is made once: building a statement takes as long as running it.
_NEWEST: Final = (DELEGATIONS.c.epoch.desc(), DELEGATIONS.c.created.desc(), DELEGATIONS.c.id.desc())
"""By epochs first: clocks may have been set back between two."""
_OLDEST: Final = (DELEGATIONS.c.created, DELEGATIONS.c.epoch, DELEGATIONS.c.id, DELEGATIONS.c.role)
_THIS_ONE: Final = and_(
    DELEGATIONS.c.role == bindparam("this_role"), DELEGATIONS.c.id == bindparam("this_id")
)
_FIND: Final = select(DELEGATIONS).where(_THIS_ONE)
_FIND_BODY: Final = select(DELEGATIONS.c.body).where(_THIS_ONE)
_ANY_ROLE: Final = DELEGATIONS.c.role.in_([literal_column(f"'{role}'") for role in Role])
_EITHER_SIDE: Final = and_(_ANY_ROLE, DELEGATIONS.c.id.in_(bindparam("ids", expanding=True)))
_OF_THE_TASKS: Final = DELEGATIONS.c.task_uid.in_(bindparam("task_uids", expanding=True))
_FIND_ONE_AND_COPIES: Final = (
    select(DELEGATIONS)
    .where(
        or_(
            and_(_ANY_ROLE, DELEGATIONS.c.id == bindparam("this_id")),
            DELEGATIONS.c.task_uid == bindparam("task_uid"),
        )
    )
    .order_by(*_OLDEST)
)
_FIND_MANY: Final = select(DELEGATIONS).where(_EITHER_SIDE)
_FIND_MANY_AND_COPIES: Final = select(DELEGATIONS).where(or_(_EITHER_SIDE, _OF_THE_TASKS)).order_by(*_OLDEST)
_REPLACE: Final = update(DELEGATIONS).where(_THIS_ONE)
_ADD: Final = insert(DELEGATIONS)
_ADD_MESSAGE: Final = insert(OUTBOX)
_ADD_ANSWER: Final = insert(INBOX)
_ADD_ERRAND: Final = insert(ERRANDS)
_FIND_NEWEST: Final = (
    select(DELEGATIONS).where(DELEGATIONS.c.task == bindparam("task")).order_by(*_NEWEST).limit(1)
)
_FIND_COPIES: Final = (
    select(DELEGATIONS).where(DELEGATIONS.c.task_uid == bindparam("task_uid")).order_by(*_OLDEST)
)
_FIND_ANSWER: Final = select(INBOX.c.digest, INBOX.c.receipt).where(
    INBOX.c.peer == bindparam("peer"), INBOX.c.message == bindparam("message")
)
_FIND_ANSWERS: Final = select(INBOX.c.message, INBOX.c.digest, INBOX.c.receipt).where(
    INBOX.c.peer == bindparam("peer"), INBOX.c.message.in_(bindparam("messages", expanding=True))
)
_FIND_INCARNATION: Final = select(SENDERS.c.incarnation).where(SENDERS.c.peer == bindparam("peer"))
_WHAT_IT_SAID: Final = (OUTBOX.c.id, OUTBOX.c.role, OUTBOX.c.delegation, OUTBOX.c.body)
_TAKE_OUT: Final = delete(OUTBOX).where(OUTBOX.c.id == bindparam("message")).returning(*_WHAT_IT_SAID)
_TAKE_OUT_MANY: Final = (
    delete(OUTBOX).where(OUTBOX.c.id.in_(bindparam("messages", expanding=True))).returning(*_WHAT_IT_SAID)
)
_EARLIER: Final = OUTBOX.alias("earlier")
_HELD_BACK: Final = exists().where(
    _EARLIER.c.delegation == OUTBOX.c.delegation,
    _EARLIER.c.role == OUTBOX.c.role,
    _EARLIER.c.position < OUTBOX.c.position,
    _EARLIER.c.not_before > bindparam("now"),
    OUTBOX.c.kind != wire.KINDS[Cancel],
)
_READY: Final = (
    select(OUTBOX.c.id, OUTBOX.c.body, OUTBOX.c.create_time)
    .where(OUTBOX.c.peer == bindparam("peer"), OUTBOX.c.not_before <= bindparam("now"), ~_HELD_BACK)
    .order_by(OUTBOX.c.position)
    .limit(bindparam("most"))
)
_BEFORE_IT: Final = ERRANDS.alias("earlier")
_FOLLOWS: Final = exists().where(
    _BEFORE_IT.c.delegation == ERRANDS.c.delegation,
    _BEFORE_IT.c.role == ERRANDS.c.role,
    _BEFORE_IT.c.position < ERRANDS.c.position,
)
_TO_DO: Final = (
    select(ERRANDS)
    .where(ERRANDS.c.not_before <= bindparam("now"), ~_FOLLOWS)
    .order_by(ERRANDS.c.position)
    .limit(bindparam("most"))
)
_NEXT_ERRAND: Final = select(func.min(ERRANDS.c.not_before))
_NEXT_DUE: Final = select(func.min(DELEGATIONS.c.due))
_WAITS_UNTIL: Final = select(func.min(OUTBOX.c.not_before)).where(OUTBOX.c.peer == bindparam("peer"))
_COUNT_OPEN: Final = (
    select(DELEGATIONS.c.role, DELEGATIONS.c.state, DELEGATIONS.c.rule, func.count().label("open_ones"))
    .where(DELEGATIONS.c.peer == bindparam("peer"), DELEGATIONS.c.open)
    .group_by(DELEGATIONS.c.role, DELEGATIONS.c.state, DELEGATIONS.c.rule)
)


_Kind = tuple[str, str, str]
"""Role, state and rule of a hand-over."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """
    A message of the outbox.

    Attributes:
        body: A serialised `Message`.
        create_time: When it was written down: not after it was sent first.
    """

    id: str
    body: bytes
    create_time: float


@dataclass(frozen=True, slots=True)
class Chore:
    """
    An errand, and what it is about.

    Attributes:
        position: Its own, for `errand_done` and `errand_failed`.
        attempts: How often it was tried in vain.
    """

    position: int
    delegation: Delegation
    errand: Errand
    attempts: int


@dataclass(frozen=True, slots=True)
class Counts:
    """
    What there is between this Hopper and a peer.

    Attributes:
        outbox: Messages for it that it has not answered.
        oldest: When the oldest of them was written; None: there is none.
        quarantined: Of those taken over, how many wait for a person.
    """

    outbox: int = 0
    oldest: float | None = None
    handed_over: int = 0
    taken_over: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Used:
    """
    What a peer has used up, for its policy.

    Attributes:
        pending: How many of its offers wait for a person.
        open: How many of its offers are open here.
        in_flight: By rule name, what is open that crossed by it, either way.
        recent: By rule name, when each crossed in the last stretch of its rate, either way.
    """

    pending: int = 0
    open: int = 0
    in_flight: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[str, Sequence[datetime]] = field(default_factory=dict)


class SqlDelegations:
    """
    One transaction.

    Args:
        conn: Of the unit of work.
        sending: Ids of messages that are under way in this moment: what replaces them comes after them.

    Attributes:
        saved: The hand-overs that were written, as they are now.
        told: What was put into the outbox, by the install ids of peers; None: look at all of it.
        asked: Something is to be done at the router.
    """

    def __init__(self, conn: Connection, sending: Collection[str] = frozenset()) -> None:
        self._conn = Gathered(conn)
        self._sending = sending
        # What was read or written in this transaction stands as it is: nobody else writes meanwhile.
        self._bodies: dict[tuple[Role, str], dict[str, Any]] = {}
        self._known: dict[tuple[Role, str], Delegation] = {}
        self._absent: set[tuple[Role, str]] = set()
        self._copies: dict[str, Sequence[Delegation]] = {}  # by task uid
        self._open: dict[str, Counter[_Kind]] = {}  # by peer
        self._answers: dict[tuple[str, str], tuple[bytes, Receipt] | None] = {}  # by peer and message
        self._taken: dict[str, Sent | None] = {}  # by message
        self._numbers = itertools.count()
        self.saved: dict[tuple[Role, str], Delegation] = {}
        self.told: dict[str, list[Outgoing] | None] = {}
        self.asked = False

    def gathering(self) -> AbstractContextManager[None]:
        """Write nothing before the end of this that nobody asks for within it."""
        return self._conn.gathering()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What fails within is undone by itself."""
        saved = dict(self.saved)
        try:
            with self._conn.apart():
                yield
        except BaseException:
            self.saved, self.told = saved, dict.fromkeys(self.told)
            self._ask_again()
            raise

    def _ask_again(self) -> None:
        """What was read and written may not be what is there any more."""
        for known in (
            self._bodies,
            self._known,
            self._absent,
            self._copies,
            self._open,
            self._answers,
            self._taken,
        ):
            known.clear()

    def foresee(
        self, peer: str, messages: Collection[str], ids: Collection[str], task_uids: Collection[str]
    ) -> None:
        """
        Ask once for what many messages of a peer will be about.

        Args:
            messages: Their own ids.
            ids: Of hand-overs, on either side.
            task_uids: Of tasks that are offered.
        """
        if len(messages) > 1:
            answered = self._conn.execute(_FIND_ANSWERS, {"peer": peer, "messages": sorted(messages)})
            self._answers |= dict.fromkeys((peer, message) for message in messages)
            self._answers |= {(peer, row.message): _answer(row) for row in answered}
        self.foresee_hand_overs(ids, task_uids)

    def foresee_hand_overs(self, ids: Collection[str], task_uids: Collection[str] = ()) -> None:
        """Ask once for many hand-overs, by their ids or by what they are of."""
        if len(ids) + len(task_uids) < 2:
            return  # what is asked for anyway
        found = self._read_many(ids, task_uids)
        self._absent |= {(role, each) for role in Role for each in ids} - self._known.keys()
        for task_uid in task_uids:
            self._copies[task_uid] = [each for each in found if each.task_uid == task_uid]

    def _read_many(self, ids: Collection[str], task_uids: Collection[str]) -> Sequence[Delegation]:
        # A list among the parameters costs as much as another statement.
        if len(ids) == len(task_uids) == 1:
            return self._read(_FIND_ONE_AND_COPIES, this_id=next(iter(ids)), task_uid=next(iter(task_uids)))
        if task_uids:
            return self._read(_FIND_MANY_AND_COPIES, ids=sorted(ids), task_uids=sorted(task_uids))
        return self._read(_FIND_MANY, ids=sorted(ids))

    # ---------------------------------------------------------------- hand-overs

    def delegation(self, role: Role, delegation: str) -> Delegation | None:
        key = role, delegation
        unasked = key not in self._known and key not in self._absent
        if unasked:
            row = self._conn.look(_FIND, {"this_role": role, "this_id": delegation}).one_or_none()
            if row is None:
                self._absent.add(key)
            else:
                self._delegation(row)
        return self._known.get(key)

    def save(self, delegation: Delegation) -> None:
        key = delegation.role, delegation.id
        if self._known.get(key) == delegation:
            return
        this = {"this_role": delegation.role, "this_id": delegation.id}
        body = self._bodies.get(key)
        if body is None and key not in self._absent:
            text = self._conn.look(_FIND_BODY, this).scalar()
            body = None if text is None else json.loads(text)
        after = {**(body or {}), "v": 1, **{name: getattr(delegation, name) for name in _IN_BODY}}
        row = _row(delegation, after)
        if body is None or self._conn.keeps(_ADD, key):
            self._conn.put(_ADD, key, row)
        else:
            changing = {name: value for name, value in row.items() if name not in _NEVER_CHANGES}
            self._conn.put(_REPLACE, key, {**changing, **this})
        self._count_anew(key, delegation)
        self._bodies[key], self._known[key] = after, delegation
        self.saved[key] = delegation
        self._absent.discard(key)
        self._copies.pop(delegation.task_uid, None)

    def _count_anew(self, key: tuple[Role, str], delegation: Delegation) -> None:
        """Keep what was counted true."""
        counted = self._open.get(delegation.peer)
        if counted is None:
            return
        if key in self._known:
            counted.subtract(_counted(self._known[key]))
        elif key not in self._absent:
            del self._open[delegation.peer]  # it may have been counted
            return
        counted.update(_counted(delegation))

    def of_task_uid(self, task_uid: str) -> Sequence[Delegation]:
        if task_uid not in self._copies:
            self._copies[task_uid] = self._read(_FIND_COPIES, task_uid=task_uid)
        return self._copies[task_uid]

    def of_task(self, task: str) -> Delegation | None:
        found = self._read(_FIND_NEWEST, task=task)
        return found[0] if found else None

    def open_of(self, peer: str) -> Sequence[Delegation]:
        query = select(DELEGATIONS).where(DELEGATIONS.c.peer == peer, DELEGATIONS.c.open)
        return self._read(query.order_by(DELEGATIONS.c.id, DELEGATIONS.c.role))

    def held(self) -> Sequence[Delegation]:
        """Those on whose task this Hopper has a claim: open ones, and those of which the router is still to be told."""
        out = and_(DELEGATIONS.c.role == Role.OUT, ~DELEGATIONS.c.settled)
        ended = select(ERRANDS.c.delegation).where(ERRANDS.c.role == Role.OUT)
        to_tell = self._all(out, ~DELEGATIONS.c.open, DELEGATIONS.c.id.in_(ended))
        return [*self._all(out, DELEGATIONS.c.open), *to_tell]

    def due(self, now: float, limit: int) -> Sequence[Delegation]:
        query = select(DELEGATIONS).where(DELEGATIONS.c.due <= now)
        return self._read(query.order_by(DELEGATIONS.c.due, DELEGATIONS.c.id).limit(limit))

    def hand_overs_of(self, task: str) -> Sequence[Delegation]:
        """Every hand-over that a task of this Hopper's router went through, or came by, the oldest first."""
        return self._all(DELEGATIONS.c.task == task)

    def page(
        self,
        *,
        peer: str = "",
        states: Iterable[State] = (),
        waiting: bool = False,
        before: tuple[float, str] | None = None,
        limit: int = 50,
    ) -> Sequence[Delegation]:
        """
        The newest first.

        Args:
            peer: Only with that one.
            states: Only in these; none: in all.
            waiting: Only those that a person here has to decide about.
            before: `(created, id)` of the last of the page before.
        """
        query = select(DELEGATIONS)
        if peer:
            query = query.where(DELEGATIONS.c.peer == peer)
        wanted = list(states)
        if wanted:
            query = query.where(DELEGATIONS.c.state.in_(wanted))
        if waiting:
            offered = and_(DELEGATIONS.c.state == State.QUARANTINED, DELEGATIONS.c.role == Role.IN)
            query = query.where(or_(DELEGATIONS.c.state.in_(UNDECIDED), offered))
        if before is not None:
            query = query.where(tuple_(DELEGATIONS.c.created, DELEGATIONS.c.id) < tuple_(*before))
        newest = (DELEGATIONS.c.created.desc(), DELEGATIONS.c.id.desc(), DELEGATIONS.c.role)
        return self._read(query.order_by(*newest).limit(limit))

    def open_peers(self) -> list[str]:
        """Install ids of everybody with whom something is open."""
        query = select(DELEGATIONS.c.peer).where(DELEGATIONS.c.open).distinct()
        return sorted(self._conn.scalars(query))

    def next_due(self) -> float | None:
        """When the next clock runs out; None: none runs."""
        return self._least(_NEXT_DUE)

    def _all(self, *where: ColumnElement[bool]) -> list[Delegation]:
        return self._read(select(DELEGATIONS).where(*where).order_by(*_OLDEST))

    def _read(self, query: Any, **parameters: Any) -> list[Delegation]:
        return [self._delegation(row) for row in self._conn.execute(query, parameters)]

    def _delegation(self, row: Row[Any]) -> Delegation:
        body = json.loads(row.body)
        found = _delegation(row, body)
        self._bodies[found.role, found.id] = body
        self._known[found.role, found.id] = found
        return found

    # ---------------------------------------------------------------- inbox

    def answer_of(self, peer: str, message: str) -> tuple[bytes, Receipt] | None:
        key = peer, message
        if key not in self._answers:
            row = self._conn.look(_FIND_ANSWER, {"peer": peer, "message": message}).one_or_none()
            self._answers[key] = None if row is None else _answer(row)
        return self._answers[key]

    def keep_answer(self, peer: str, digest: bytes, receipt: Receipt, now: float) -> None:
        row = {
            "peer": peer,
            "message": receipt.message,
            "digest": digest,
            "receipt": wire.receipt_to_proto(receipt).SerializeToString(),
            "take_time": now,
        }
        self._conn.put(_ADD_ANSWER, (peer, receipt.message), row)
        self._answers[peer, receipt.message] = digest, receipt

    # ---------------------------------------------------------------- outbox

    def send(self, delegation: Delegation, body: Body, now: float) -> None:
        kind = wire.KINDS[type(body)]
        if isinstance(body, REPLACED):
            self._take_back(delegation, kind)
        message = _IDS.new(datetime.fromtimestamp(now, UTC))
        written = wire.message_to_proto(message, delegation, body).SerializeToString(deterministic=True)
        row = {
            "id": message,
            "peer": delegation.peer,
            "role": delegation.role,
            "delegation": delegation.id,
            "kind": kind,
            "body": written,
            "create_time": now,
            "not_before": now,
            "attempts": 0,
        }
        self._conn.put(_ADD_MESSAGE, message, row)
        told = self.told.setdefault(delegation.peer, [])
        if told is not None:
            told.append(Outgoing(message, written, now))

    def _take_back(self, delegation: Delegation, kind: str) -> None:
        """Whatever says the same of the hand-over and has not been sent."""
        same = (*_about(OUTBOX, delegation), OUTBOX.c.kind == kind, OUTBOX.c.attempts == 0)
        found = [row.id for row in self._conn.execute(select(OUTBOX.c.id).where(*same))]
        unsent = [message for message in found if message not in self._sending]
        if unsent:
            self._conn.execute(delete(OUTBOX).where(OUTBOX.c.id.in_(unsent)))
            self.told[delegation.peer] = None

    def forget_message(self, message: str) -> Sent | None:
        if message not in self._taken:
            self.take_out([message])
        found, self._taken[message] = self._taken[message], None
        return found

    def take_out(self, messages: Collection[str]) -> list[Sent]:
        """Take messages out of the outbox, that are told by `forget_message`. Returns those that were in it."""
        if len(messages) == 1:
            rows = self._conn.execute(_TAKE_OUT, {"message": next(iter(messages))})
        else:
            rows = self._conn.execute(_TAKE_OUT_MANY, {"messages": sorted(messages)})
        found = {row.id: _sent(row) for row in rows}
        self._taken |= {**dict.fromkeys(messages), **found}
        return list(found.values())

    def unanswered(self, delegation: Delegation) -> Sequence[type[Body]]:
        query = select(OUTBOX.c.kind).where(*_about(OUTBOX, delegation)).order_by(OUTBOX.c.position)
        return [wire.kind_of(kind) for kind in self._conn.scalars(query)]

    def postpone(self, message: str, until: float) -> None:
        self._conn.execute(update(OUTBOX).where(OUTBOX.c.id == message).values(not_before=until))

    def wait_no_longer(self, now: float) -> None:
        """Whatever was to wait may be said and done: the clock may have been set back since that was written."""
        for table in (OUTBOX, ERRANDS):
            self._conn.execute(update(table).where(table.c.not_before > now).values(not_before=now))
        self.told |= dict.fromkeys(self.outbox_peers())
        self.asked = True

    def batch(self, peer: str, now: float, *, limit: int, most_bytes: int) -> list[Outgoing]:
        """
        What is to be sent to a peer next, in order, at least one message if there is any.

        What is postponed holds back what was said later of the same hand-over, and nothing else. A call-off is not held
        back: an offer that is put off again and again would keep it here until the lease has run out.
        """
        found: list[Outgoing] = []
        size = 0
        for row in self._conn.execute(_READY, {"peer": peer, "now": now, "most": limit}):
            size += len(row.body)
            if found and size > most_bytes:
                break
            found.append(Outgoing(row.id, bytes(row.body), row.create_time))
        return found

    def waiting_until(self, peer: str) -> float | None:
        """When the first message for a peer may be sent; None: there is none."""
        return self._least(_WAITS_UNTIL, peer=peer)

    def outbox_count(self, peer: str) -> int:
        """How many messages there are for a peer."""
        return self._count(OUTBOX, OUTBOX.c.peer == peer)

    def outbox_peers(self) -> list[str]:
        """Install ids of everybody for whom there are messages."""
        return sorted(self._conn.scalars(select(OUTBOX.c.peer).distinct()))

    def failed_to_send(self, messages: Collection[str]) -> None:
        """Count an attempt of each."""
        sent = update(OUTBOX).where(OUTBOX.c.id.in_(messages))
        self._conn.execute(sent.values(attempts=OUTBOX.c.attempts + 1))

    def give_up(self, peer: str) -> None:
        """Say nothing more to a peer but how what it handed over has ended, for when it is one again."""
        kept = [wire.KINDS[Result], wire.KINDS[Appraisal]]
        self._conn.execute(delete(OUTBOX).where(OUTBOX.c.peer == peer, OUTBOX.c.kind.not_in(kept)))
        self.told[peer] = None

    def unanswered_count(self, delegation: Delegation) -> int:
        """How many messages about a hand-over have not been answered."""
        return self._count(OUTBOX, *_about(OUTBOX, delegation))

    # ---------------------------------------------------------------- errands

    def errand(self, delegation: Delegation, errand: Errand) -> None:
        now = delegation.updated
        if errand.task is Task.PROGRESS:
            same = (*_about(ERRANDS, delegation), ERRANDS.c.task == Task.PROGRESS)
            self._conn.execute(delete(ERRANDS).where(*same))
        row = {
            "role": delegation.role,
            "delegation": delegation.id,
            "task": errand.task,
            "body": json.dumps({name: value for name, value in asdict(errand).items() if name != "task"}),
            "create_time": now,
            "not_before": 0.0,
            "attempts": 0,
        }
        self._conn.put(_ADD_ERRAND, next(self._numbers), row)
        self.asked = True

    def errands(self, now: float, limit: int) -> list[Chore]:
        """What is to be done now, the oldest first; of each hand-over, only what comes first."""
        rows = list(self._conn.execute(_TO_DO, {"now": now, "most": limit}))
        about = self._many({(row.role, row.delegation) for row in rows})
        return [
            Chore(
                row.position,
                about[Role(row.role), row.delegation],
                Errand(Task(row.task), **_known(Errand, json.loads(row.body))),
                row.attempts,
            )
            for row in rows
        ]

    def errand_done(self, position: int) -> bool:
        """Strike it off. Returns whether it was there: another may have taken its place."""
        return self._conn.execute(delete(ERRANDS).where(ERRANDS.c.position == position)).rowcount == 1

    def errand_failed(self, position: int, again_at: float) -> None:
        """Have it tried again, then."""
        tried = update(ERRANDS).where(ERRANDS.c.position == position)
        self._conn.execute(tried.values(not_before=again_at, attempts=ERRANDS.c.attempts + 1))

    def next_errand(self) -> float | None:
        """When the next errand may be done; None: there is none."""
        return self._least(_NEXT_ERRAND)

    def _many(self, keys: Collection[tuple[str, str]]) -> dict[tuple[Role, str], Delegation]:
        if not keys:
            return {}
        found = self._all(tuple_(DELEGATIONS.c.role, DELEGATIONS.c.id).in_(sorted(keys)))
        return {(each.role, each.id): each for each in found}

    # ---------------------------------------------------------------- epochs

    def next_epoch(self, task_uid: str, now: float) -> int:
        """One more than any before, of hand-overs of that task by this Hopper."""
        last = self._conn.scalar(select(EPOCHS.c.last).where(EPOCHS.c.task_uid == task_uid))
        row = {"last": (last or 0) + 1, "use_time": now}
        if last is None:
            self._conn.execute(insert(EPOCHS), {"task_uid": task_uid, **row})
        else:
            self._conn.execute(update(EPOCHS).where(EPOCHS.c.task_uid == task_uid).values(row))
        return int(row["last"])

    # ---------------------------------------------------------------- how it stands with a peer

    def used(self, peer: str, windows: Mapping[str, float], now: float) -> Used:
        """
        What a peer has used up.

        Args:
            windows: Of each rule with a rate, its stretch of time in seconds.
        """
        in_flight: dict[str, int] = {}
        pending = open_here = 0
        for (role, state, rule), count in self._open_of(peer).items():
            in_flight[rule] = in_flight.get(rule, 0) + count
            open_here += count if role == Role.IN else 0
            pending += count if (role, state) == (Role.IN, State.QUARANTINED) else 0
        recent = {rule: self._crossed(peer, rule, now - window) for rule, window in windows.items()}
        return Used(pending, open_here, in_flight, recent)

    def _open_of(self, peer: str) -> Counter[_Kind]:
        """By role, state and rule, how many are open with a peer."""
        if peer not in self._open:
            counted = self._conn.execute(_COUNT_OPEN, {"peer": peer})
            self._open[peer] = Counter({(row.role, row.state, row.rule): row.open_ones for row in counted})
        return self._open[peer]

    def _crossed(self, peer: str, rule: str, since: float) -> list[datetime]:
        query = select(DELEGATIONS.c.created).where(
            DELEGATIONS.c.peer == peer, DELEGATIONS.c.rule == rule, DELEGATIONS.c.created > since
        )
        return [
            datetime.fromtimestamp(time, UTC)
            for time in self._conn.scalars(query.order_by(DELEGATIONS.c.created))
        ]

    def counts(self, peer: str) -> Counts:
        """What there is between this Hopper and a peer."""
        sent = select(func.count(), func.min(OUTBOX.c.create_time)).where(OUTBOX.c.peer == peer)
        outbox, oldest = tuple(self._conn.execute(sent).one())
        open_now: dict[tuple[str, str], int] = {}
        for (role, state, _), count in self._open_of(peer).items():
            open_now[role, state] = open_now.get((role, state), 0) + count
        return Counts(
            outbox=outbox,
            oldest=oldest,
            handed_over=sum(count for (role, _), count in open_now.items() if role == Role.OUT),
            taken_over=sum(count for (role, _), count in open_now.items() if role == Role.IN),
            quarantined=open_now.get((Role.IN, State.QUARANTINED), 0),
        )

    def hold(self, peer: str) -> Hold:
        """Whether sending to a peer is held back."""
        row = self._conn.execute(select(SENDERS).where(SENDERS.c.peer == peer)).one_or_none()
        if row is None:
            return Hold()
        return Hold(row.failures, row.failed, row.held_until, row.reason, row.detail)

    def save_hold(self, peer: str, hold: Hold) -> None:
        """Write down whether it is."""
        row = {
            "failures": hold.failures,
            "failed": hold.failed,
            "held_until": hold.until,
            "reason": hold.reason,
            "detail": hold.detail,
        }
        self._put_sender(peer, row)

    def incarnation_of(self, peer: str) -> int:
        """With which incarnation of a peer notes have been compared; 0: with none."""
        return self._conn.look(_FIND_INCARNATION, {"peer": peer}).scalar() or 0

    def save_incarnation_of(self, peer: str, incarnation: int) -> None:
        """Note that they have been."""
        self._put_sender(peer, {"incarnation": incarnation})

    def _put_sender(self, peer: str, row: Mapping[str, Any]) -> None:
        if self._conn.execute(update(SENDERS).where(SENDERS.c.peer == peer).values(row)).rowcount == 0:
            empty = {
                "failures": 0,
                "failed": 0.0,
                "held_until": 0.0,
                "reason": "",
                "detail": "",
                "incarnation": 0,
            }
            self._conn.execute(insert(SENDERS), {"peer": peer, **empty, **row})

    # ---------------------------------------------------------------- what is over

    def forget(self, now: float, limit: int = 500) -> int:
        """Drop what has been over for long enough, at most so many hand-overs. Returns how many."""
        before = now - KEPT_FOR
        waits = exists().where(ERRANDS.c.delegation == DELEGATIONS.c.id, ERRANDS.c.role == DELEGATIONS.c.role)
        old = select(DELEGATIONS.c.role, DELEGATIONS.c.id).where(
            ~DELEGATIONS.c.open, DELEGATIONS.c.updated < before, ~waits
        )
        keys = [tuple(row) for row in self._conn.execute(old.limit(limit))]
        if keys:
            self._conn.execute(delete(OUTBOX).where(tuple_(OUTBOX.c.role, OUTBOX.c.delegation).in_(keys)))
            self._conn.execute(
                delete(DELEGATIONS).where(tuple_(DELEGATIONS.c.role, DELEGATIONS.c.id).in_(keys))
            )
            self._ask_again()
        self._conn.execute(delete(INBOX).where(INBOX.c.take_time < before))
        self._conn.execute(delete(EPOCHS).where(EPOCHS.c.use_time < now - EPOCHS_KEPT_FOR))
        return len(keys)

    def _least(self, query: Any, **parameters: Any) -> float | None:
        time: float | None = self._conn.scalar(query, parameters)
        return time

    def _count(self, table: Table, *where: ColumnElement[bool]) -> int:
        return self._conn.scalar(select(func.count()).select_from(table).where(*where)) or 0


def _about(table: Table, delegation: Delegation) -> tuple[ColumnElement[bool], ...]:
    return table.c.delegation == delegation.id, table.c.role == delegation.role


def _row(delegation: Delegation, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "role": delegation.role,
        "state": delegation.state,
        "open": delegation.state.open,
        "due": due_of(delegation),
        "body": _TO_JSON(body),
        **{name: getattr(delegation, name) for name in (*_PLAIN, *_BYTES)},
    }


def _delegation(row: Row[Any], body: Mapping[str, Any]) -> Delegation:
    rest = _known(Delegation, body)
    outcome = rest.pop("outcome", None)
    rest |= {name: getattr(row, name) for name in _PLAIN}
    rest |= {name: bytes(getattr(row, name)) for name in _BYTES}
    return Delegation(
        role=Role(row.role),
        state=State(row.state),
        outcome=None if outcome is None else Outcome(outcome),
        **rest,
    )


def _counted(delegation: Delegation) -> dict[_Kind, int]:
    """What it adds to the open ones with its peer."""
    return {(delegation.role, delegation.state, delegation.rule): 1} if delegation.state.open else {}


def _answer(row: Row[Any]) -> tuple[bytes, Receipt]:
    return bytes(row.digest), wire.receipt_from_proto(pb.Receipt.FromString(row.receipt))


def _sent(row: Row[Any]) -> Sent:
    return Sent(Role(row.role), row.delegation, wire.body_from_proto(pb.Message.FromString(row.body)))


def _known(kind: type[Delegation | Errand], body: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of it."""
    names = _FIELDS[kind]
    return {name: value for name, value in body.items() if name in names}
