"""
Sends each peer what is in the outbox for it, in order, until it is answered.

    desk ─► outbox ─ told ─► Post (one per peer) ── Deliver: at most 50, one batch at a time ──► peer
                              ▲   │                                                               │
     heard, reached, moved ───┘   └◄── receipts, in one transaction, before the next batch ◄──────┘

Each peer has a task of its own: one that does not answer holds up no other. Nowhere else is anything tried again, so
that a Hopper which has been away is not overrun; how long to wait is written down, and outlives the process. Whoever
is heard of is tried at once.

A message is the same however often it is sent, and whoever gets it answers it once. So an answer that is lost costs
nothing but time, and so does a process that dies between an answer and its transaction.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.database import Signal
from hopper_common.errors import (
    HopperError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ServiceUnavailable,
    StorageFull,
    StorageUnavailable,
)
from hopper_federation.delegation import wire
from hopper_federation.delegation.breaker import LONGEST, Hold
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import UNREADABLE, Gone, Receipt
from hopper_federation.delegation.store_sql import Outgoing, SqlDelegations
from hopper_federation.delegation.syncing import Syncer, Unanswered, asked
from hopper_federation.peer_links import PeerLinks
from hopper_federation.statuses import Statuses
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot, TrustSnapshots

log = structlog.get_logger(__name__)

MOST_MESSAGES: Final = 50
MOST_BYTES: Final = 1 << 20
CALL_SECONDS: Final = 30.0
LOOK_EVERY: Final = 5.0
SOONEST_AGAIN: Final = 1.0
LATEST_AGAIN: Final = 3600.0
"""Bounds for what a peer may ask a message to wait."""
SPOILT_WAITS: Final = 300.0

_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)
_ENDED: Final = frozenset({"PEER_REVOKED", "PEER_UNKNOWN"})
"""What a peer answers that wants nothing more of this Hopper."""
_RESYNC: Final = frozenset({"RESYNC_NEEDED"})
_CUT_SHORT: Final = frozenset({"PEER_UNREACHABLE", "SHUTTING_DOWN", "SERVICE_UNAVAILABLE"})
"""After these, a sign of life means that it is worth trying again; after others it is there, and will not."""

T = TypeVar("T")


class Senders:
    """
    Runs beside the server.

    Args:
        told_slots: Told how many more tasks a peer would take, by its install id.
        chance: A number from 0 to 1, for pauses.

    Attributes:
        sending: Ids of the messages that are under way.
    """

    def __init__(
        self,
        desks: Desks,
        links: PeerLinks,
        snapshots: TrustSnapshots,
        statuses: Statuses,
        syncer: Syncer,
        *,
        told_slots: Callable[[str, int], None],
        chance: Callable[[], float] = random.random,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.desks = desks
        self.links = links
        self.statuses = statuses
        self.syncer = syncer
        self.told_slots = told_slots
        self.chance = chance
        self.sending: set[str] = set()
        self._snapshots = snapshots
        self._look_every = look_every
        self._posts: dict[str, Post] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = Signal()
        desks.sending = lambda: self.sending
        desks.on_told(self._told)
        statuses.on_heard(self._alive)
        statuses.on_reached(self._alive)
        statuses.on_back(self._back)
        snapshots.on_change(self._on_trust)

    def hold_of(self, peer: str) -> Hold:
        """Why nothing is sent to a peer for now; nothing, if it is."""
        post = self._posts.get(peer)
        return Hold() if post is None else post.hold

    def restored(self, peer: str) -> None:
        """A peer has begun anew: notes are compared before anything else is sent to it."""
        self.syncer.is_needed(peer)
        self._told(peer)

    async def run(self) -> None:
        """Send, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._changed.count
                self._follow(group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every):
                        await self._changed.wait(after=seen)
                        continue
                await self._look()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        """A post for each peer that may be sent to, and none for the others."""
        now = self.links.clock.now()
        wanted = {
            peer.install_id: peer for peer in self._snapshots.current.peers.values() if not peer.is_gone(now)
        }
        for install_id in self._tasks.keys() - wanted:
            self._tasks.pop(install_id).cancel()
            del self._posts[install_id]
        for install_id, peer in wanted.items():
            post = self._posts.get(install_id)
            if post is None:
                post = self._posts[install_id] = Post(self, peer)
                self._tasks[install_id] = group.create_task(post.run())
            post.is_now(peer)

    async def _look(self) -> None:
        """What another process has put into the outbox, this one was not told of."""
        try:
            waiting = await self.desks.read(lambda rows: rows.outbox_peers())
        except _PUT_OFF as error:
            log.warning("the outbox cannot be read", reason=error.reason)
            return
        for peer in waiting:
            self._told(peer)

    def _told(self, peer: str, messages: Sequence[Outgoing] | None = None) -> None:
        if peer in self._posts:
            self._posts[peer].told(messages)

    def _alive(self, peer: str) -> None:
        if peer in self._posts:
            self._posts[peer].alive()

    def _back(self, peer: str) -> None:
        self.syncer.is_due(peer)
        self._told(peer)

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._changed.fire()


class Post:
    """
    Sends to one peer. Made by `Senders`.

    Attributes:
        wake: Fires when there may be something to send.
        hold: Why nothing is sent for now.
    """

    def __init__(self, senders: Senders, peer: TrustedPeer) -> None:
        self.wake = Signal()
        self.hold = Hold()
        self._all = senders
        self._desks = senders.desks
        self._peer = peer.install_id
        self._known = peer
        self._next: list[Outgoing] = []
        self._behind = True  # there may be more in the outbox than what is next
        self._one_by_one = 0  # so many messages are sent by themselves, to find the one that is refused

    def is_now(self, peer: TrustedPeer) -> None:
        """What is known of the peer: where that has changed, it is tried at once, whatever was wrong."""
        if peer != self._known:
            self._known = peer
            self.hold = self.hold.shortened()
            self.wake.fire()

    def alive(self) -> None:
        """It is there: if it was not reached, it is tried at once."""
        if self.hold.failures and self.hold.reason in _CUT_SHORT:
            self.hold = self.hold.shortened()
            self.wake.fire()

    async def run(self) -> None:
        """Send, until cancelled."""
        await self._undisturbed(self._begin)
        while True:
            seen = self.wake.count
            pause = await self._undisturbed(self._round)
            if pause != 0.0:
                await self._rest(pause, seen)

    async def _undisturbed(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until this Hopper's own database takes it."""
        while True:
            try:
                return await work()
            except _PUT_OFF as error:
                log.warning("sending is put off", install_id=self._peer, reason=error.reason)
                self._look_again()
                await asyncio.sleep(SOONEST_AGAIN)

    async def _begin(self) -> None:
        self.hold = (await self._desks.read(lambda rows: rows.hold(self._peer))).begun(self._now())

    async def _rest(self, pause: float | None, seen: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self.wake.wait(after=seen)

    async def _round(self) -> float | None:
        """Send one batch, if one may be sent. Returns for how long there is nothing to do; None: until woken."""
        held = self.hold.until - self._now()
        if held > 0:
            return held
        batch: Sequence[Outgoing] = ()
        try:
            await self._all.syncer.if_due(self._peer)
            batch, until = await self._batch()
            if not batch:
                return self._pause(until)
            await self._send(batch)
        except Unanswered as error:
            await self._failed(error.problem, batch)
        finally:
            self._all.sending.difference_update(message.id for message in batch)
        return 0.0

    def told(self, messages: Sequence[Outgoing] | None) -> None:
        """There is something to send, that comes next; None: whatever is in the outbox."""
        if messages is None or len(self._next) > MOST_MESSAGES or _size(self._next) > MOST_BYTES:
            self._look_again()
        elif not self._behind:
            self._next += messages
        self.wake.fire()

    def _look_again(self) -> None:
        self._next, self._behind = [], True

    async def _batch(self) -> tuple[Sequence[Outgoing], float | None]:
        """What is to be sent now; and if that is nothing, when the first message may be."""
        limit = 1 if self._one_by_one or self.hold.open else MOST_MESSAGES
        until: float | None = None
        if self._behind or limit == 1:
            batch, until = await self._from_outbox(limit)
        else:
            batch, self._next = _first(self._next)
        self._one_by_one = max(0, self._one_by_one - len(batch))
        self._all.sending.update(message.id for message in batch)
        return batch, until

    async def _from_outbox(self, limit: int) -> tuple[Sequence[Outgoing], float | None]:
        now = self._now()

        def work(rows: SqlDelegations) -> tuple[Sequence[Outgoing], float | None, int]:
            batch = rows.batch(self._peer, now, limit=limit, most_bytes=MOST_BYTES)
            return batch, None if batch else rows.waiting_until(self._peer), rows.outbox_count(self._peer)

        # What is committed from now on is told, and some of that is in what is read.
        self._next, self._behind = [], False
        batch, until, count = await self._desks.read(work)
        if len(batch) < count:
            self._look_again()
        read = {message.id for message in batch}
        self._next = [message for message in self._next if message.id not in read]
        return batch, until

    def _pause(self, until: float | None) -> float | None:
        """How long nothing can be sent."""
        # What could be sent now is held back by what was said of the same hand-over before it.
        waits = [] if until is None else [max(SOONEST_AGAIN, until - self._now())]
        return min([*waits, self._all.syncer.due_in(self._peer)])

    async def _send(self, batch: Sequence[Outgoing]) -> None:
        request = svc.DeliverRequest(
            messages=[pb.Message.FromString(message.body) for message in batch],
            incarnation=self._all.syncer.incarnation,
        )
        answer = await asked(
            self._all.links, self._peer, lambda stub: stub.Deliver(request, timeout=CALL_SECONDS)
        )
        receipts = dict(_readable(answer.receipts))
        if any(receipt.retry_after is not None for receipt in receipts.values()):
            self._look_again()  # what waits holds back what was said later of the same
        await self._answered([(each, receipts[each.id]) for each in batch if each.id in receipts])
        self._all.told_slots(self._peer, answer.free_slots)
        left = [each for each in batch if each.id not in receipts]
        if left:
            await self._failed(ServiceUnavailable("it does not say what became of a message"), left)

    # What came of it.

    async def _answered(self, receipts: Sequence[tuple[Outgoing, Receipt]]) -> None:
        """Write down what became of messages, before anything else is sent."""
        try:
            await self._desks.write(lambda sitting: self._write_down(sitting, receipts))
        except HopperError:
            raise
        except Exception:
            log.exception("receipts cannot be written down together", install_id=self._peer)
            self._look_again()
            await self._one_at_a_time(receipts)
        self.hold = Hold()

    async def _one_at_a_time(self, receipts: Sequence[tuple[Outgoing, Receipt]]) -> None:
        """So that one that cannot be understood holds up no other."""
        for message, receipt in receipts:
            await self._alone(message, receipt)

    async def _alone(self, message: Outgoing, receipt: Receipt) -> None:
        try:
            await self._desks.write(lambda sitting: self._write_down(sitting, [(message, receipt)]))
        except HopperError:
            raise
        except Exception:
            log.exception("a receipt cannot be written down", install_id=self._peer, message=message.id)
            until = self._now() + SPOILT_WAITS
            await self._desks.write(lambda sitting: sitting.rows.postpone(message.id, until))

    def _write_down(self, sitting: Sitting, receipts: Sequence[tuple[Outgoing, Receipt]]) -> None:
        over = [message.id for message, receipt in receipts if receipt.retry_after is None]
        sitting.rows.foresee_hand_overs([each.delegation for each in sitting.rows.take_out(over)])
        for message, receipt in receipts:
            # An answer may be to the first of several attempts, and leases count from that.
            said_at = min(message.create_time, sitting.now)
            sitting.desk.answered(message.id, _bounded(receipt), said_at)
        if self.hold.failures:
            sitting.rows.save_hold(self._peer, Hold())

    async def _failed(self, problem: HopperError, batch: Sequence[Outgoing]) -> None:
        self._look_again()
        if problem.reason in _RESYNC and self._all.syncer.is_needed(self._peer):
            return
        if problem.reason in UNREADABLE and batch:
            await self._refused(problem, batch)
            return
        before = self.hold
        if problem.reason not in _CUT_SHORT and before.reason in _CUT_SHORT:
            # It answers: how long it was not reached says nothing of when it will take something.
            before = Hold()
        self.hold = hold = before.after(
            self._now(), problem.reason, problem.message, chance=self._all.chance(), least=_least(problem)
        )
        ended = problem.reason in _ENDED
        log.info(
            "a peer is not sent to", install_id=self._peer, reason=problem.reason, failures=hold.failures
        )

        def work(sitting: Sitting) -> None:
            sitting.rows.save_hold(self._peer, hold)
            sitting.rows.failed_to_send([message.id for message in batch])
            if ended:
                sitting.desk.peer_gone(self._peer, Gone.REVOKED_BY_PEER)
                sitting.rows.give_up(self._peer)

        await self._desks.write(work)

    async def _refused(self, problem: HopperError, batch: Sequence[Outgoing]) -> None:
        """The call as a whole is wrong: whichever message it is about, it is not to hold up the others."""
        if len(batch) > 1:
            self._one_by_one = len(batch)
            return
        (message,) = batch
        log.warning("a peer cannot read a message", install_id=self._peer, reason=problem.reason)
        await self._answered([(message, Receipt(message.id, None, problem.reason, problem.message))])

    def _now(self) -> float:
        return self._desks.steady()


def _size(messages: Iterable[Outgoing]) -> int:
    return sum(len(message.body) for message in messages)


def _first(messages: list[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
    """As many as one call carries, and the others."""
    size = count = 0
    for message in messages[:MOST_MESSAGES]:
        size += len(message.body)
        if count and size > MOST_BYTES:
            break
        count += 1
    return messages[:count], messages[count:]


def _least(problem: HopperError) -> float:
    """How long the peer wants to be left alone."""
    if isinstance(problem, PermissionDenied):
        return LONGEST
    if problem.retry_after is None or problem.reason in _CUT_SHORT:
        return 0.0  # of who does not answer, nobody knows
    return problem.retry_after.total_seconds()


def _readable(receipts: Iterable[pb.Receipt]) -> Iterator[tuple[str, Receipt]]:
    """A newer peer may name a state that is not known here: its message waits for a newer Hopper."""
    for proto in receipts:
        try:
            yield proto.message_id, wire.receipt_from_proto(proto)
        except InvalidArgument as error:
            yield proto.message_id, Receipt(proto.message_id, None, error.reason, error.message, LATEST_AGAIN)


def _bounded(receipt: Receipt) -> Receipt:
    wait = receipt.retry_after
    if wait is None:
        return receipt
    return replace(receipt, retry_after=min(LATEST_AGAIN, max(SOONEST_AGAIN, wait)))
