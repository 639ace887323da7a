"""
Offers a task to a peer: in one transaction the policy is asked once more, the task gets its next epoch, what may leave
of it is sealed, and the hand-over and its first message are written down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1.task_pb2 import Task
from hopper_common.errors import PermissionDenied, WrongState
from hopper_common.identity.errors import IdentityWrongState
from hopper_common.identity.store import Identity
from hopper_common.ids import Ids
from hopper_federation.delegation import bodies
from hopper_federation.delegation.border import Verdict
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.lineage import Lineage
from hopper_federation.delegation.model import (
    DEFAULT_CLOSE,
    DEFAULT_START,
    Delegation,
    Offer,
    Role,
    State,
)
from hopper_federation.delegation.narrowing import at_origin
from hopper_federation.delegation.redaction import kept_from, redacted
from hopper_federation.delegation.sealing import HandOver, extend_offer, seal_offer

WHOLE: Final = "another Hopper's task goes on whole or not at all"
PART: Final = "a part of another Hopper's task does not leave"


@dataclass(frozen=True, slots=True)
class Refused:
    """
    Why a task is not offered to a peer.

    Attributes:
        reason: Of the catalogue.
        detail: The same for people.
        retry_after: When it may be, in seconds; None: never.
    """

    rule: str
    reason: str
    detail: str
    retry_after: float | None = None


CLOSING: Final = Refused("closing", "PEER_REVOKED", "nothing is handed to it any more")


@dataclass(frozen=True, slots=True)
class _Case:
    """
    A task that may leave.

    Attributes:
        came: The hand-over that brought it here; None: it is this Hopper's own.
        uid: What it is called everywhere.
    """

    peer: str
    task: Task
    body: dpb.TaskBody
    came: Delegation | None
    uid: str
    exclusive: bool
    verdict: Verdict


class Offerer:
    """
    Makes offers.

    Args:
        lease: Of every hand-over.
    """

    def __init__(self, desks: Desks, identity: Identity, *, lease: timedelta) -> None:
        self._desks = desks
        self._identity = identity
        self._lease = lease
        self._ids = Ids()

    async def offer(
        self, peer: str, task: Task, lineage: Lineage, *, closing: bool = False, by_hand: bool = False
    ) -> Delegation | Refused:
        """
        Offer a claimed task to a peer, or adopt the hand-over that it has.

        Args:
            closing: Nothing new is handed to it any more.
            by_hand: A person has sent it there, not the router.
        """
        return await self._desks.write(
            lambda sitting: self._offer(sitting, peer, task, lineage, closing=closing, by_hand=by_hand)
        )

    def _offer(
        self, sitting: Sitting, peer: str, task: Task, lineage: Lineage, *, closing: bool, by_hand: bool
    ) -> Delegation | Refused:
        adopted = sitting.desk.claimed(task.name, task.claim.fencing_token)
        came = _brought(sitting, lineage)
        exclusive = task.spec.exclusive if came is None else came.exclusive
        uid = f"{self._desks.own_install}/{_id_of(lineage.work)}" if came is None else came.task_uid
        if adopted is None and exclusive and _may_have_left(sitting, task):
            adopted = self._doubt(sitting, peer, task, uid)
        if adopted is not None:
            return adopted
        if closing or (came is not None and lineage.is_part):
            return CLOSING if closing else Refused("parts", "CAPABILITY_DENIED", PART)
        body = bodies.body_of(task.spec) if came is None else _body_of(came)
        origin = "" if came is None else came.task_uid.partition("/")[0]
        crossing = bodies.crossing_of(body, exclusive=exclusive, origin=origin)
        if by_hand and came is None:  # another Hopper's work is not for people here to send on
            crossing = replace(crossing, by_hand=True)
        verdict = sitting.border.rule(peer, crossing)
        if not verdict.allowed:
            return Refused(verdict.rule, verdict.reason, verdict.detail, verdict.retry_after)
        kept = [] if came is None else kept_from(body, verdict.redact)
        if kept:
            return Refused(verdict.rule, "LABEL_DENIED", f"{', '.join(kept)} may not leave, and {WHOLE}")
        try:
            return self._hand_over(sitting, _Case(peer, task, body, came, uid, exclusive, verdict))
        except IdentityWrongState:
            raise  # it is not the task's fault
        except (WrongState, PermissionDenied) as error:  # it would go in a circle, or further than it may
            return Refused(verdict.rule, error.reason, error.message)

    def _doubt(self, sitting: Sitting, peer: str, task: Task, uid: str) -> Delegation:
        now = sitting.now
        new = Delegation(
            id=self._ids.new(sitting.store.now),
            role=Role.OUT,
            peer=peer,
            task_uid=uid,
            epoch=sitting.rows.next_epoch(uid, now),
            state=State.SUSPECT,
            lease=self._lease.total_seconds(),
            exclusive=True,
            task=task.name,
            token=task.claim.fencing_token,
            title=task.spec.title,
            created=now,
            updated=now,
        )
        return sitting.desk.doubt(new)

    def _hand_over(self, sitting: Sitting, case: _Case) -> Delegation:
        spec, now = case.task.spec, sitting.now
        hand_over = self._hand_over_of(sitting, case)
        sealed = self._seal(sitting, case, hand_over).SerializeToString()
        new = Delegation(
            id=hand_over.delegation,
            role=Role.OUT,
            peer=case.peer,
            task_uid=case.uid,
            epoch=hand_over.epoch,
            state=State.OFFERED,
            lease=hand_over.lease.total_seconds(),
            exclusive=case.exclusive,
            rule=case.verdict.rule,
            task=case.task.name,
            token=case.task.claim.fencing_token,
            start_by=now + (hand_over.schedule_to_start or DEFAULT_START).total_seconds(),
            close_by=now + (hand_over.schedule_to_close or DEFAULT_CLOSE).total_seconds(),
            offer=sealed,
            title=spec.title,
            created=now,
            updated=now,
        )
        return sitting.desk.offer(new, Offer(sealed))

    def _hand_over_of(self, sitting: Sitting, case: _Case) -> HandOver:
        time = sitting.store.now
        start = bodies.time_left(case.task.spec, "start_by", time)
        close = bodies.time_left(case.task.spec, "finish_by", time)
        if close is not None and start is None:
            start = min(close, DEFAULT_START)
        return HandOver(
            to=case.peer,
            delegation=self._ids.new(time),
            epoch=sitting.rows.next_epoch(case.uid, sitting.now),
            lease=self._lease,
            schedule_to_start=start,
            schedule_to_close=close,
        )

    def _seal(self, sitting: Sitting, case: _Case, hand_over: HandOver) -> dpb.Offer:
        time = sitting.store.now
        spent = _spent(sitting.rows.of_task_uid(case.uid))
        if case.came is not None:
            came = dpb.Offer.FromString(case.came.offer)
            return extend_offer(self._identity, came, hand_over, spent=spent, now=time)
        # Those third Hoppers that the rule lets take part may have it from the peer.
        transit = case.verdict.transit
        return seal_offer(
            self._identity,
            redacted(case.body, case.verdict.redact),
            hand_over,
            task=case.uid.partition("/")[2],
            redelegation=at_origin(spent=spent, installs=None if transit is None else sorted(transit)),
            exclusive=case.exclusive,
            not_after=time + (hand_over.schedule_to_start or DEFAULT_START),
            now=time,
        )


def _brought(sitting: Sitting, lineage: Lineage) -> Delegation | None:
    """The hand-over that brought a task here from another Hopper, if one did."""
    came = sitting.rows.of_task(lineage.first)
    return came if came is not None and came.role is Role.IN else None


def _body_of(came: Delegation) -> dpb.TaskBody:
    """What another Hopper has said is to be done: what goes on, whatever was made of it here."""
    return dpb.TaskBody.FromString(dpb.Offer.FromString(came.offer).body)


def _may_have_left(sitting: Sitting, task: Task) -> bool:
    """It was claimed before, and the copy that this Hopper was restored from may be older than its hand-over."""
    incarnation = sitting.store.incarnation()
    return task.attempt > 1 and incarnation is not None and bool(incarnation.restored)


def _id_of(task: str) -> str:
    return task.rpartition("/")[2]


def _spent(others: Sequence[Delegation]) -> int:
    """How many copies of a task are under way below this Hopper."""
    offers = [
        dpb.Offer.FromString(each.offer)
        for each in others
        if each.role is Role.OUT and each.state.open and each.offer
    ]
    hops = [dpb.Hop.FromString(offer.hops[-1].payload) for offer in offers]
    return sum(1 + hop.redelegation.fan_out for hop in hops)
