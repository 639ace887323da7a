"""
The federation service's store over SQLAlchemy Core.

`SqlStore` is one transaction, and speaks the model (`hopper_federation.ports`). `Federation` is the database as the
servicers see it: it runs work in transactions, answers repeated requests with their first answer, and follows the log.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, Row, Table, bindparam, case, delete, func, insert, select, update

from hopper.common.v1.identity_pb2 import SignedBundle, TrustBundle
from hopper_common.clock import Clock
from hopper_common.database import Database, Signal, notify
from hopper_common.eventlog import Event, EventLog
from hopper_common.idempotency import Requests
from hopper_common.identity.bundles import TRUSTED
from hopper_common.timestamps import from_micros, to_micros
from hopper_federation.convert import peer_from_stored, peer_to_proto, stored_peer
from hopper_federation.incarnation import Incarnation, Restored
from hopper_federation.model import REPEATABLE_FOR, Invitation, InvitationState, Peer
from hopper_federation.pairing import OPEN, Session, Step
from hopper_federation.tables import (
    EVENTS,
    INCARNATION,
    INVITATIONS,
    JOINS,
    PAIRINGS,
    PEER_MARKS,
    PEERS,
    REQUESTS,
    TRUST_ROOTS,
)
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustedPeer, accepts_roots

# The log's topics. Keys are resource names; bodies the peer as of that change, as callers see it.
PEER_CHANGED: Final = "peer"
PEER_REMOVED: Final = "peer_removed"  # renamed away; no body

KEEP_EVENTS: Final = 10_000
KEEP_REQUESTS_FOR: Final = timedelta(days=1)
KEEP_INVITATIONS_FOR: Final = timedelta(days=7)
KEEP_PAIRINGS_FOR: Final = timedelta(hours=1)
KEEP_JOINS_FOR: Final = timedelta(days=7)

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_LOG: Final = EventLog(EVENTS)
_LOGGED: Final = "federation.logged"
_PEER_OF: Final = select(PEERS).where(
    PEERS.c.install_id == bindparam("install_id")
)  # asked for with each offer


class SqlStore:
    """
    One transaction: a `PeerStore`, an `InvitationStore` and a `SessionStore`.

    Args:
        conn: Of the unit of work.
        now: When it happens.
    """

    def __init__(self, conn: Connection, now: datetime) -> None:
        self.conn = conn
        self._now = now

    @property
    def now(self) -> datetime:
        return self._now

    @property
    def version(self) -> int:
        """The version of the newest change in the log."""
        return _LOG.head(self.conn)

    # Peers.

    def peer(self, name: str) -> Peer | None:
        row = self.conn.execute(select(PEERS).where(PEERS.c.name == name)).one_or_none()
        return None if row is None else _peer(row)

    def peer_of(self, install_id: str) -> Peer | None:
        row = self.conn.execute(_PEER_OF, {"install_id": install_id}).one_or_none()
        return None if row is None else _peer(row)

    def peers(self, *, after: str = "", limit: int | None = None, blocked: bool = True) -> list[Peer]:
        query = select(PEERS).where(PEERS.c.name > after).order_by(PEERS.c.name).limit(limit)
        if not blocked:
            query = query.where(~PEERS.c.blocked)
        return [_peer(row) for row in self.conn.execute(query)]

    def save_peer(self, peer: Peer) -> None:
        former = self.conn.scalar(select(PEERS.c.name).where(PEERS.c.install_id == peer.install_id))
        row = {
            "install_id": peer.install_id,
            "name": peer.name,
            "revision": peer.revision,
            "blocked": peer.level is Level.BLOCKED,
            "drain_time": to_micros(peer.drain_time),
            "body": stored_peer(peer).SerializeToString(),
        }
        self._put(PEERS, row)
        if former is not None and former != peer.name:
            self._tell(PEER_REMOVED, former, b"")
        self._tell(PEER_CHANGED, peer.name, peer_to_proto(peer).SerializeToString())

    def root_key(self, install_id: str) -> bytes:
        query = select(TRUST_ROOTS.c.root_key).where(TRUST_ROOTS.c.install_id == install_id)
        return self.conn.scalar(query) or b""

    def bundle(self, install_id: str) -> TrustBundle | None:
        """What the install told of its keys last, verified; None: nothing."""
        query = select(TRUST_ROOTS.c.bundle).where(TRUST_ROOTS.c.install_id == install_id)
        signed = self.conn.scalar(query)
        return None if signed is None else _told(signed)

    def save_bundle(self, install_id: str, sequence: int, root_key: bytes, bundle: bytes) -> None:
        row = {
            "install_id": install_id,
            "sequence": sequence,
            "root_key": root_key,
            "bundle": bundle,
            "learn_time": to_micros(self._now),
        }
        self._put(TRUST_ROOTS, row)

    def trusted_peers(self) -> list[TrustedPeer]:
        """Everybody the guard must know, blocked peers too."""
        query = select(PEERS, TRUST_ROOTS.c.bundle).outerjoin(
            TRUST_ROOTS, PEERS.c.install_id == TRUST_ROOTS.c.install_id
        )
        return [_trusted(row, self._now) for row in self.conn.execute(query)]

    def acknowledged(self, install_id: str) -> int:
        """The sequence of this Hopper's bundle that a peer has said it knows; 0: none."""
        query = select(PEER_MARKS.c.acknowledged).where(PEER_MARKS.c.install_id == install_id)
        return self.conn.scalar(query) or 0

    def acknowledge(self, install_id: str, sequence: int) -> None:
        """Note that it knows that one; an earlier one changes nothing."""
        if sequence > self.acknowledged(install_id):
            self._put(PEER_MARKS, {"install_id": install_id, "acknowledged": sequence})

    def unaware(self, sequence: int, heard: Collection[str]) -> list[str]:
        """
        The active peers that have not said that they know this Hopper's bundle of that sequence, by name.

        Args:
            heard: Install ids of those that are active though nobody has said where they are.
        """
        told = {row.install_id: row.acknowledged for row in self.conn.execute(select(PEER_MARKS))}
        active = (
            peer
            for peer in self.peers(blocked=False)
            if peer.addresses or peer.install_id in told or peer.install_id in heard
        )
        return [peer.name for peer in active if told.get(peer.install_id, 0) < sequence]

    # What was restored from a copy.

    def incarnation(self) -> Incarnation | None:
        """What this database knows of itself; None: nothing yet."""
        row = self.conn.execute(select(INCARNATION)).one_or_none()
        return (
            None if row is None else Incarnation(row.identity, row.number, row.tick, Restored(row.restored))
        )

    def save_incarnation(self, incarnation: Incarnation) -> None:
        """Insert or replace it."""
        row = {
            "id": 1,
            "identity": incarnation.identity,
            "number": incarnation.number,
            "tick": incarnation.tick,
            "restored": str(incarnation.restored),
        }
        self._put(INCARNATION, row)

    def must_sync(self, install_id: str) -> bool:
        """Whether notes have to be compared with a peer before anything is sent to it: this Hopper was restored."""
        current = self.incarnation()
        return current is not None and bool(current.restored) and self._synced(install_id) < current.number

    def note_synced(self, install_id: str) -> None:
        """Note that they have been."""
        current = self.incarnation()
        if current is not None:
            self._put(PEER_MARKS, {"install_id": install_id, "synced": current.number})

    def unsynced(self) -> list[str]:
        """The peers with whom notes have to be compared, by name, but for blocked ones."""
        return [peer.name for peer in self.peers(blocked=False) if self.must_sync(peer.install_id)]

    def _synced(self, install_id: str) -> int:
        query = select(PEER_MARKS.c.synced).where(PEER_MARKS.c.install_id == install_id)
        return self.conn.scalar(query) or 0

    # Invitations.

    def invitation(self, name: str) -> Invitation | None:
        return self._invitation(INVITATIONS.c.id == name.removeprefix("invitations/"))

    def invitation_of(self, secret_id: bytes) -> Invitation | None:
        return self._invitation(INVITATIONS.c.secret_id == secret_id)

    def _invitation(self, which: Any) -> Invitation | None:
        row = self.conn.execute(select(INVITATIONS).where(which)).one_or_none()
        return None if row is None else _invitation(row)

    def invitations(self, limit: int) -> list[Invitation]:
        query = select(INVITATIONS).order_by(INVITATIONS.c.create_time.desc(), INVITATIONS.c.id.desc())
        return [_invitation(row) for row in self.conn.execute(query.limit(limit))]

    def open_invitations(self) -> int:
        return self.conn.scalar(select(func.count()).where(*self._redeemable())) or 0

    def _redeemable(self) -> tuple[Any, ...]:
        return (
            INVITATIONS.c.state == InvitationState.OPEN,
            INVITATIONS.c.expire_time > to_micros(self._now),
        )

    def add_invitation(self, invitation: Invitation) -> None:
        row = {
            "secret_id": invitation.secret_id,
            "id": invitation.id,
            "key": invitation.key,
            "root_key": invitation.root_key,
            "peer_id": invitation.peer_id,
            "level": invitation.level,
            "state": invitation.state,
            "wrong_proofs": 0,
            "contested": 0,
            "redeemer_install_id": "",
            "redeemer": b"",
            "nonce": b"",
            "our_nonce": b"",
            "create_time": to_micros(invitation.create_time),
            "expire_time": to_micros(invitation.expire_time),
        }
        self.conn.execute(insert(INVITATIONS), row)

    def redeem(
        self, secret_id: bytes, install_id: str, redeemer: bytes, nonce: bytes, our_nonce: bytes
    ) -> bool:
        redeemed = (
            update(INVITATIONS)
            .where(INVITATIONS.c.secret_id == secret_id, *self._redeemable())
            .values(
                state=InvitationState.REDEEMED,
                redeemer_install_id=install_id,
                redeemer=redeemer,
                nonce=nonce,
                our_nonce=our_nonce,
                redeem_time=to_micros(self._now),
            )
        )
        return self.conn.execute(redeemed).rowcount == 1

    def count_wrong_proof(self, secret_id: bytes, most: int) -> None:
        count = INVITATIONS.c.wrong_proofs + 1
        ended = count >= most
        counted = (
            update(INVITATIONS)
            .where(INVITATIONS.c.secret_id == secret_id, INVITATIONS.c.state == InvitationState.OPEN)
            .values(
                wrong_proofs=count,
                state=case((ended, InvitationState.DEAD), else_=INVITATIONS.c.state),
            )
        )
        self.conn.execute(counted)

    def count_contest(self, secret_id: bytes) -> None:
        counted = update(INVITATIONS).where(INVITATIONS.c.secret_id == secret_id)
        self.conn.execute(counted.values(contested=INVITATIONS.c.contested + 1))

    def end_invitation(self, secret_id: bytes) -> None:
        ended = update(INVITATIONS).where(
            INVITATIONS.c.secret_id == secret_id, INVITATIONS.c.state == InvitationState.OPEN
        )
        self.conn.execute(ended.values(state=InvitationState.DEAD))

    # Invitations of others.

    def join_nonce(self, secret_id: bytes, install_id: str, fresh: bytes) -> bytes:
        """The nonce with which an invitation of another Hopper is redeemed: the same in every attempt."""
        query = select(JOINS.c.nonce).where(JOINS.c.secret_id == secret_id)
        nonce = self.conn.scalar(query)
        if nonce is not None:
            return bytes(nonce)
        row = {
            "secret_id": secret_id,
            "nonce": fresh,
            "install_id": install_id,
            "done": False,
            "create_time": to_micros(self._now),
        }
        self.conn.execute(insert(JOINS), row)
        return fresh

    def joined(self, secret_id: bytes) -> bool:
        """Whether an invitation of another Hopper has been redeemed here."""
        return bool(self.conn.scalar(select(JOINS.c.done).where(JOINS.c.secret_id == secret_id)))

    def finish_join(self, secret_id: bytes) -> None:
        """Note that it has been."""
        self.conn.execute(update(JOINS).where(JOINS.c.secret_id == secret_id).values(done=True))

    # Pairings by digits.

    def session(self, name: str) -> Session | None:
        return self._session(PAIRINGS.c.id == name.removeprefix("pairings/"))

    def session_of(self, session: bytes) -> Session | None:
        return self._session((PAIRINGS.c.session == session) & ~PAIRINGS.c.outgoing)

    def _session(self, which: Any) -> Session | None:
        row = self.conn.execute(select(PAIRINGS).where(which)).one_or_none()
        return None if row is None else _session(row)

    def sessions(self, limit: int) -> list[Session]:
        query = select(PAIRINGS).order_by(PAIRINGS.c.create_time.desc(), PAIRINGS.c.id.desc())
        return [_session(row) for row in self.conn.execute(query.limit(limit))]

    def open_sessions(self, *, outgoing: bool | None = None) -> list[Session]:
        """Those of which something may still come, the oldest first; only those that were asked for here or there."""
        query = select(PAIRINGS).where(PAIRINGS.c.open).order_by(PAIRINGS.c.create_time, PAIRINGS.c.id)
        if outgoing is not None:
            query = query.where(PAIRINGS.c.outgoing == outgoing)
        return [_session(row) for row in self.conn.execute(query)]

    def save_session(self, session: Session) -> None:
        self._put(PAIRINGS, _session_row(session))

    def pending(self, source: str = "") -> int:
        query = select(func.count()).where(
            PAIRINGS.c.open, ~PAIRINGS.c.outgoing, PAIRINGS.c.expire_time > to_micros(self._now)
        )
        if source:
            query = query.where(PAIRINGS.c.source == source)
        return self.conn.scalar(query) or 0

    # What keeps the pairing port open.

    def port_needed_until(self) -> datetime | None:
        """Until when somebody may have to reach the pairing port; None, or a time that is past: nobody has to."""
        redeemable = select(func.max(INVITATIONS.c.expire_time)).where(*self._redeemable())
        repeatable = select(func.max(INVITATIONS.c.redeem_time)).where(
            INVITATIONS.c.state == InvitationState.REDEEMED
        )
        incoming = select(func.max(PAIRINGS.c.expire_time)).where(
            ~PAIRINGS.c.outgoing, PAIRINGS.c.open | (PAIRINGS.c.step == Step.DONE)
        )
        redeemed = from_micros(self.conn.scalar(repeatable))
        times = (
            from_micros(self.conn.scalar(redeemable)),
            None if redeemed is None else redeemed + REPEATABLE_FOR,
            from_micros(self.conn.scalar(incoming)),
        )
        return max((time for time in times if time is not None), default=None)

    # Both.

    def forget(self) -> None:
        """Drop what is over and old."""
        now = self._now
        old = INVITATIONS.c.expire_time < to_micros(now - KEEP_INVITATIONS_FOR)
        self.conn.execute(delete(INVITATIONS).where(old))
        over = (~PAIRINGS.c.open, PAIRINGS.c.end_time < to_micros(now - KEEP_PAIRINGS_FOR))
        self.conn.execute(delete(PAIRINGS).where(*over))
        self.conn.execute(delete(JOINS).where(JOINS.c.create_time < to_micros(now - KEEP_JOINS_FOR)))
        _LOG.trim(self.conn, before=_LOG.head(self.conn) - KEEP_EVENTS + 1)

    def _put(self, table: Table, row: Mapping[str, Any]) -> None:
        """Insert or replace. Two statements, because the one that does both is every database's own."""
        (key,) = table.primary_key.columns
        if self.conn.execute(update(table).where(key == row[key.name]).values(row)).rowcount == 0:
            self.conn.execute(insert(table), row)

    def _tell(self, topic: str, key: str, body: bytes) -> None:
        _LOG.append(self.conn, topic=topic, key=key, body=body, now=self._now)
        notify(self.conn, _LOGGED)


def _peer(row: Row[Any]) -> Peer:
    return peer_from_stored(row.body, row.revision, from_micros(row.drain_time))


def _trusted(row: Row[Any], now: datetime) -> TrustedPeer:
    peer = _peer(row)
    payload = b"" if row.bundle is None else SignedBundle.FromString(row.bundle).payload
    bundle = TrustBundle.FromString(payload)
    roots = tuple(root.certificate for root in bundle.roots if root.stage in TRUSTED)
    return TrustedPeer(
        name=peer.name,
        install_id=peer.install_id,
        level=peer.level,
        revocation=peer.revocation,
        revoke_time=peer.revoke_time,
        drain_time=peer.drain_time,
        addresses=peer.addresses,
        roots=roots if accepts_roots(peer.revocation, peer.revoke_time, now) else (),
        bundle=payload,
        bundle_sequence=bundle.sequence,
        policy_version=peer.policy_version,
        alert=peer.alert,
    )


def _told(signed: bytes) -> TrustBundle:
    return TrustBundle.FromString(SignedBundle.FromString(signed).payload)


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        id=row.id,
        secret_id=bytes(row.secret_id),
        key=bytes(row.key),
        root_key=bytes(row.root_key),
        peer_id=row.peer_id,
        level=Level(row.level),
        create_time=from_micros(row.create_time),
        expire_time=from_micros(row.expire_time),
        state=InvitationState(row.state),
        wrong_proofs=row.wrong_proofs,
        redeemer_install_id=row.redeemer_install_id,
        redeemer=bytes(row.redeemer),
        nonce=bytes(row.nonce),
        our_nonce=bytes(row.our_nonce),
        redeem_time=from_micros(row.redeem_time),
        contested=row.contested,
    )


# Columns that are as the model has them.
_SAME: Final = (
    *("id", "session", "outgoing", "source", "install_id", "claimed_name", "address", "ours", "theirs"),
    *("commitment", "our_nonce", "their_nonce", "leaf", "binding", "code", "peer_id", "failure"),
)


def _session_row(session: Session) -> dict[str, Any]:
    return {
        **{name: getattr(session, name) for name in _SAME},
        "step": session.step,
        "open": session.step in OPEN,
        "create_time": to_micros(session.create_time),
        "expire_time": to_micros(session.expire_time),
        "end_time": to_micros(session.end_time),
    }


def _session(row: Row[Any]) -> Session:
    same = {name: getattr(row, name) for name in _SAME}
    return Session(
        **same,
        step=Step(row.step),
        create_time=from_micros(row.create_time),
        expire_time=from_micros(row.expire_time),
        end_time=from_micros(row.end_time),
    )


class Federation:
    """
    The federation service's database.

    Args:
        db: Open, with the tables of `hopper_federation.tables`. Whoever opened it closes it.

    Attributes:
        committed: Fires after each commit, of any process that shares the database.
        logged: Fires after those that have changed a peer; and when one may have been missed.
        begun: What the database knows of itself since this start; see `incarnation`.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._requests = Requests(REQUESTS, clock)
        self.logged = Signal()
        db.on_notify(self._heard)
        self.begun = Incarnation("", 0)

    def begin(self, incarnation: Incarnation) -> None:
        """Say what the database was found to be."""
        self.begun = incarnation

    @property
    def incarnation(self) -> int:
        """Grows when this Hopper is restored from a copy, and is never given twice."""
        return self.begun.number

    @property
    def resync(self) -> bool:
        """Whether it was restored: nothing is sent to a peer of which `SqlStore.must_sync` says so."""
        return bool(self.begun.restored)

    @property
    def committed(self) -> Signal:
        return self._db.committed

    async def read(self, work: Callable[[SqlStore], T]) -> T:
        """Run *work* on one snapshot."""
        return await self._db.read(lambda conn: work(self._store(conn)))

    async def write(self, work: Callable[[SqlStore], T]) -> T:
        """Run *work* in one transaction; return its result once that is durable."""
        return await self._db.write(lambda conn: work(self._store(conn)))

    async def answer(self, request: Message, response: type[M], effect: Callable[[SqlStore], M]) -> M:
        """
        Answer a mutation: carry it out in one transaction, or give the first answer again to a request that was
        carried out.

        Raises:
            IdempotencyConflict: The request's id was used for another request.
        """
        method = request.DESCRIPTOR.name.removesuffix("Request")

        def work(conn: Connection) -> M:
            return self._requests.once(conn, method, request, response, lambda: effect(self._store(conn)))

        return await self._db.write(work)

    def _heard(self, payload: str) -> None:
        if payload in ("", _LOGGED):
            self.logged.fire()

    def _store(self, conn: Connection) -> SqlStore:
        return SqlStore(conn, self._clock.now())

    def changes(self, *, after: int) -> AsyncGenerator[list[Event], None]:
        """Every change of a peer after a version, for ever. See `hopper_common.eventlog.EventLog.tail`."""
        return _LOG.tail(self._db, after=after, topics=(PEER_CHANGED, PEER_REMOVED))

    async def forget(self) -> None:
        """Drop what is over and old."""

        def work(conn: Connection) -> None:
            store = self._store(conn)
            self._requests.forget(conn, before=store.now - KEEP_REQUESTS_FOR)
            store.forget()

        await self._db.write(work)
