"""
What crosses between this Hopper and its peers, for its people: looked at, called off, and decided where one has to.
One method per RPC: convert, call, convert, answer.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import grpc.aio

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.federation.v1 import delegation_service_pb2 as svc
from hopper.federation.v1.delegation_service_pb2_grpc import RemoteDelegationServiceServicer
from hopper_common.errors import DelegationNotFound, DelegationWrongState, FieldViolation, InvalidArgument
from hopper_common.pagination import PageTokens, page_size
from hopper_common.timestamps import to_proto
from hopper_federation.artifacts.manifests import named_by
from hopper_federation.delegation import wire
from hopper_federation.delegation.chain import KeysOf
from hopper_federation.delegation.custody import custody_of
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Appraisal, Delegation, Errand, Role, State, Task, Verdict
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.errors import PeerNotFound
from hopper_federation.trust_snapshot import TrustSnapshots

_Context = grpc.aio.ServicerContext[Any, Any]
_Request = svc.DecideRemoteDelegationRequest

_VERDICTS: Final = {
    _Request.VERDICT_DISCARD: Verdict.DISCARD,
    _Request.VERDICT_RETRY: Verdict.RETRY,
    _Request.VERDICT_GIVE_UP: Verdict.GIVE_UP,
    _Request.VERDICT_KEEP: Verdict.KEEP,
}


class RemoteDelegationServicer(RemoteDelegationServiceServicer):
    """
    `hopper.federation.v1.RemoteDelegationService`.

    Args:
        keys_of: Whose signatures can be verified here.
    """

    def __init__(
        self, desks: Desks, snapshots: TrustSnapshots, keys_of: KeysOf, page_tokens: PageTokens
    ) -> None:
        self._desks = desks
        self._snapshots = snapshots
        self._keys_of = keys_of
        self._tokens = page_tokens

    # Looking.

    async def ListRemoteDelegations(
        self, request: svc.ListRemoteDelegationsRequest, context: _Context
    ) -> svc.ListRemoteDelegationsResponse:
        size = page_size(request.page_size)
        place = self._tokens.decode(request.page_token, request)
        before = (float(place["created"]), str(place["id"])) if place else None
        peer = self._install_of(request.peer) if request.peer else ""
        states = [state for state in map(wire.state_from_proto, request.states) if state is not None]

        def look(rows: SqlDelegations) -> tuple[list[svc.RemoteDelegation], Delegation | None]:
            found = rows.page(
                peer=peer, states=states, waiting=request.waiting, before=before, limit=size + 1
            )
            last = found[size - 1] if len(found) > size else None
            return [self._to_proto(rows, each) for each in found[:size]], last

        found, last = await self._desks.read(look)
        token = "" if last is None else self._tokens.encode({"created": last.created, "id": last.id}, request)
        return svc.ListRemoteDelegationsResponse(delegations=found, next_page_token=token)

    async def GetRemoteDelegation(
        self, request: svc.GetRemoteDelegationRequest, context: _Context
    ) -> svc.GetRemoteDelegationResponse:
        def look(rows: SqlDelegations) -> svc.GetRemoteDelegationResponse:
            found = _found(rows, request.id)
            answer = self._explained(rows, found)
            if found.role is Role.IN and found.state is State.QUARANTINED:
                answer.body.CopyFrom(_asked_for(found))
            return answer

        return await self._desks.read(look)

    async def ExplainCustody(
        self, request: svc.ExplainCustodyRequest, context: _Context
    ) -> svc.ExplainCustodyResponse:
        own_uid = self._own_uid(request.task)

        def look(rows: SqlDelegations) -> list[svc.GetRemoteDelegationResponse]:
            direct = [*rows.hand_overs_of(request.task), *rows.of_task_uid(own_uid)]
            same_work = [each for uid in {each.task_uid for each in direct} for each in rows.of_task_uid(uid)]
            return [self._explained(rows, each) for each in _oldest_first([*direct, *same_work])]

        return svc.ExplainCustodyResponse(hand_overs=await self._desks.read(look))

    def _explained(self, rows: SqlDelegations, delegation: Delegation) -> svc.GetRemoteDelegationResponse:
        custody = custody_of(
            delegation, own=self._desks.own_install, keys_of=self._keys_of, name_of=self._name_of
        )
        return svc.GetRemoteDelegationResponse(delegation=self._to_proto(rows, delegation), custody=custody)

    # Deciding.

    async def CancelRemoteDelegation(
        self, request: svc.CancelRemoteDelegationRequest, context: _Context
    ) -> svc.CancelRemoteDelegationResponse:
        def effect(sitting: Sitting) -> svc.CancelRemoteDelegationResponse:
            after = _cancel(sitting, _found(sitting.rows, request.id), request.reason)
            return svc.CancelRemoteDelegationResponse(delegation=self._to_proto(sitting.rows, after))

        return await self._desks.answer(request, svc.CancelRemoteDelegationResponse, effect)

    async def DecideRemoteDelegation(
        self, request: svc.DecideRemoteDelegationRequest, context: _Context
    ) -> svc.DecideRemoteDelegationResponse:
        def effect(sitting: Sitting) -> svc.DecideRemoteDelegationResponse:
            after = _decide(sitting, _found(sitting.rows, request.id), request)
            return svc.DecideRemoteDelegationResponse(delegation=self._to_proto(sitting.rows, after))

        return await self._desks.answer(request, svc.DecideRemoteDelegationResponse, effect)

    # Telling.

    async def AppraiseRemoteDelegation(
        self, request: svc.AppraiseRemoteDelegationRequest, context: _Context
    ) -> svc.AppraiseRemoteDelegationResponse:
        if not request.appraisal.ListFields():
            raise InvalidArgument(violations=[FieldViolation("appraisal", "says nothing")])
        own_uid = self._own_uid(request.task)

        def effect(sitting: Sitting) -> svc.AppraiseRemoteDelegationResponse:
            done = _done_by_peer(sitting.rows, request.task, own_uid)
            sitting.border.check_feedback(done.peer, done.rule)
            said = Appraisal(request.appraisal.SerializeToString(deterministic=True))
            after = sitting.desk.appraise(Role.OUT, done.id, said)
            return svc.AppraiseRemoteDelegationResponse(delegation=self._to_proto(sitting.rows, after))

        return await self._desks.answer(request, svc.AppraiseRemoteDelegationResponse, effect)

    # Names and messages.

    def _own_uid(self, task: str) -> str:
        """What a task is called everywhere, if its work began with it."""
        return f"{self._desks.own_install}/{task.rpartition('/')[2]}"

    def _name_of(self, install_id: str) -> str:
        peer = self._snapshots.current.peers.get(install_id)
        return "" if peer is None else peer.name

    def _install_of(self, name: str) -> str:
        for peer in self._snapshots.current.peers.values():
            if peer.name == name:
                return peer.install_id
        raise PeerNotFound(f"there is no {name}", peer=name)

    def _to_proto(self, rows: SqlDelegations, delegation: Delegation) -> svc.RemoteDelegation:
        return svc.RemoteDelegation(
            id=delegation.id,
            peer=self._name_of(delegation.peer),
            handed_over=delegation.role is Role.OUT,
            state=wire.state_to_proto(delegation.state),
            task=delegation.task,
            task_uid=delegation.task_uid,
            epoch=delegation.epoch,
            exclusive=delegation.exclusive,
            rule=delegation.rule,
            reason=delegation.reason,
            detail=delegation.detail,
            title=delegation.title,
            fraction=delegation.fraction,
            lease_expire_time=to_proto(_time(delegation.lease_end)),
            late_result=delegation.late,
            create_time=to_proto(_time(delegation.created)),
            update_time=to_proto(_time(delegation.updated)),
            unanswered=rows.unanswered_count(delegation),
            artifacts=named_by(delegation.result),
        )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _found(rows: SqlDelegations, delegation: str) -> Delegation:
    """
    The hand-over of that id. Where a peer has taken an id of this Hopper's for one of its own: the one that is open.

    Raises:
        DelegationNotFound: There is none.
    """
    both = [rows.delegation(role, delegation) for role in Role]
    found = sorted((each for each in both if each is not None), key=lambda each: not each.state.open)
    if not found:
        raise DelegationNotFound(f"there is no hand-over {delegation}", delegation=delegation)
    return found[0]


def _done_by_peer(rows: SqlDelegations, task: str, own_uid: str) -> Delegation:
    """
    The newest hand-over by which a peer has completed a task.

    Raises:
        DelegationNotFound: There is none.
    """
    direct = [*rows.hand_overs_of(task), *rows.of_task_uid(own_uid)]
    same_work = [each for uid in {each.task_uid for each in direct} for each in rows.of_task_uid(uid)]
    done = [each for each in same_work if each.role is Role.OUT and each.state is State.COMPLETED]
    if not done:
        raise DelegationNotFound(f"no peer has completed {task}", task=task)
    return max(done, key=lambda each: (each.created, each.epoch, each.id))


def _asked_for(offered: Delegation) -> dpb.TaskBody:
    """What is to be done, as it was offered: so much of it as a person decides by."""
    body = dpb.TaskBody.FromString(dpb.Offer.FromString(offered.offer).body)
    body.ClearField("payload")
    return body


def _oldest_first(delegations: Sequence[Delegation]) -> list[Delegation]:
    """Each once."""
    once = {(each.role, each.id): each for each in delegations}
    return sorted(once.values(), key=lambda each: (each.created, each.id))


def _cancel(sitting: Sitting, was: Delegation, reason: str) -> Delegation:
    """
    Call a hand-over off.

    Raises:
        DelegationWrongState: It is over.
    """
    if not was.state.open:
        raise DelegationWrongState(
            f"the hand-over is over: it is {was.state}", delegation=was.id, state=was.state, verb="cancel"
        )
    if was.role is Role.OUT:
        return sitting.desk.cancel(was.id, reason, by_router=False)
    if was.state is State.QUARANTINED:
        return sitting.desk.decide(was.id, accepted=False, reason=reason)
    # The task that was made of it is stopped; how that ended is what whoever handed it over hears.
    sitting.rows.errand(was, Errand(Task.STOP, "CANCELLED", reason))
    return was


def _decide(sitting: Sitting, was: Delegation, request: _Request) -> Delegation:
    """
    Do what a person says.

    Raises:
        DelegationWrongState: It does not wait for that.
    """
    if request.verdict == _Request.VERDICT_ACCEPT or (
        request.verdict == _Request.VERDICT_DISCARD and was.state is State.QUARANTINED
    ):
        if was.role is Role.OUT:
            raise DelegationWrongState(
                "who it was offered to accepts or discards it",
                delegation=was.id,
                state=was.state,
                verb="decide",
            )
        accepted = request.verdict == _Request.VERDICT_ACCEPT
        return sitting.desk.decide(was.id, accepted=accepted, reason=request.reason)
    verdict = _VERDICTS.get(request.verdict)
    if verdict is None:
        raise InvalidArgument(violations=[FieldViolation("verdict", "is none that this Hopper knows")])
    return sitting.desk.resolve(was.role, was.id, verdict, request.reason)
